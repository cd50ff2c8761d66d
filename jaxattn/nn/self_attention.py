"""Self-attention of a sequence, as in keras-self-attention."""

from typing import Literal, get_args

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Shaped

from jaxattn.nn.attending import Attended
from jaxattn.nn.attention_layer import (
    Activation,
    AttentionLayer,
    additive_scores,
    as_activation,
    as_sequence,
    attend,
    check_choice,
    check_sizes,
)

AttentionType = Literal["additive", "multiplicative"]


class SeqSelfAttention(AttentionLayer):
    r"""Self-attention of a sequence, as in keras-self-attention.

    The scores are $e_{ij} = \tanh(x_i W_t + x_j W_x + b_h) W_a + b_a$ ("additive", Zheng et al.
    2018), or $e_{ij} = x_i W_a x_j^\top + b_a$ without scaling ("multiplicative"). The softmax over
    $j$ of the activated and masked scores weighs the steps $x_j$.

    A query attends to the `attention_width` steps from $i - \lfloor w/2 \rfloor$ on, or with
    `history_only` to as many up to its own. keras-self-attention adds -10000 to the score of every
    other step, which results in the same weights as their omission. Its mask removes only pairs of
    two padded steps, and valid steps attend to padding; here no step attends to padding.
    `compat=True` masks as keras-self-attention does.

    The weights of the layer are `Wt` and `Wx` (D, units), `bh` (units,), `Wa` (units, 1) and `ba`
    (1,); for "multiplicative" `Wa` (D, D) and `ba` (1,). Matrices are drawn by Glorot's normal
    initialiser, biases start at 0.

    Args:
        features: D, size of each step.
        units: Size of the hidden layer of additive attention.
        attention_width: Number of steps that a query attends to; None for all.
        attention_type: "additive" or "multiplicative".
        history_only: Whether a query attends only to steps up to its own (causal attention).
        use_additive_bias: Whether to add `bh`.
        use_attention_bias: Whether to add `ba`, which the softmax cancels unless there is an
            activation.
        attention_activation: Activation of the scores: a function, or the name of one in `jax.nn`.
        compat: Whether to mask padding as keras-self-attention does.
        param_dtype: Dtype of the weights.
        name: Tag of the attention weights for `jaxattn.capture` and `jaxattn.intervene`.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If a size or width is below 1, or a type or activation is unknown.
        TypeError: If a size is not an integer, or `param_dtype` is not floating.

    Reference:
        Zheng et al. 2018, OpenTag: open attribute value extraction from product profiles,
        arXiv:1806.01264; keras-self-attention, https://github.com/CyberZHG/keras-self-attention.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> layer = ja.nn.SeqSelfAttention(8, attention_width=3, rngs=nnx.Rngs(0))
        >>> values, weights = layer(jnp.ones((5, 8)))
        >>> values.shape, weights.shape
        ((5, 8), (5, 5))
    """

    def __init__(
        self,
        features: int,
        *,
        units: int = 32,
        attention_width: int | None = None,
        attention_type: AttentionType = "additive",
        history_only: bool = False,
        use_additive_bias: bool = True,
        use_attention_bias: bool = True,
        attention_activation: Activation | str | None = None,
        compat: bool = False,
        param_dtype: DTypeLike = jnp.float32,
        name: str = "attention",
        rngs: nnx.Rngs,
    ):
        check_sizes(features=features, units=units, attention_width=attention_width)
        check_choice("attention_type", attention_type, get_args(AttentionType))
        self.features = features
        self.attention_width = attention_width
        self.attention_type = attention_type
        self.history_only = history_only
        self.attention_activation = as_activation("attention_activation", attention_activation)
        self.compat = compat
        shapes: dict[str, tuple[int, ...]] = {"Wa": (features, features)}
        if attention_type == "additive":
            shapes = {"Wt": (features, units), "Wx": (features, units), "Wa": (units, 1)}
            shapes |= {"bh": (units,)} if use_additive_bias else {}
        shapes |= {"ba": (1,)} if use_attention_bias else {}
        super().__init__(shapes, param_dtype, name, rngs)

    def __call__(
        self,
        x: Shaped[ArrayLike, "*batch T D"],
        mask: Bool[ArrayLike, "..."] | None = None,
    ) -> Attended:
        """Compute the attention of every step over the sequence.

        Masked steps, NaN included, do not affect the result and have a gradient of zero, unless
        `compat`. A step without unmasked steps has weights and values of zero.

        Args:
            x: Sequence of shape `(T, D)`, or a batch `(..., T, D)`.
            mask: True at steps that may be attended to, shape `(..., T)`. All by default.

        Returns:
            Values `(..., T, D)` and weights `(..., T, T)`, queries first.

        Raises:
            ValueError: If `x` or `mask` has another shape.
            TypeError: If `x` does not hold real numbers, or `mask` is not boolean.
        """
        x = as_sequence("x", x, self.features)
        if self.compat and mask is not None:
            return self._attend(self._compatible, (x,), (mask,), zero_masked=False)
        return self._attend(self._single, (x,), (mask,))

    def _scores(self, weights: dict[str, Array], x: Array) -> Array:
        if self.attention_type == "additive":
            scores = additive_scores(
                x, x, weights["Wt"], weights["Wx"], weights.get("bh"), weights["Wa"]
            )
        else:
            scores = x @ weights["Wa"] @ x.T
        if "ba" in weights:
            scores = scores + weights["ba"][0]
        return scores if self.attention_activation is None else self.attention_activation(scores)

    def _single(self, weights: dict[str, Array], x: Array, mask: Array | None) -> Attended:
        allowed = _window(len(x), self.attention_width, self.history_only)
        if mask is not None:
            allowed = mask[None] if allowed is None else allowed & mask[None]
        return attend(self._scores(weights, x), x, allowed, self.name)

    def _compatible(self, weights: dict[str, Array], x: Array, mask: Array) -> Attended:
        """Mask as keras-self-attention does."""
        scores = self._scores(weights, x)
        window = _window(len(x), self.attention_width, self.history_only)
        if window is not None:
            scores = scores - jnp.where(window, 0, 1e4).astype(scores.dtype)
        padded = ~mask[:, None] & ~mask[None]
        scores = scores - jnp.where(padded, 1e4, 0).astype(scores.dtype)
        return attend(scores, x, None, self.name)


def _window(steps: int, width: int | None, history_only: bool) -> Bool[Array, "T T"] | None:
    """Return the steps that each step may attend to; None for all."""
    if width is None and not history_only:
        return None
    width = 2 * steps if width is None else min(width, 2 * steps)
    lowest = width - 1 if history_only else width // 2
    ahead = jnp.arange(steps)[None] - jnp.arange(steps)[:, None]
    return (ahead >= -lowest) & (ahead < width - lowest)


def attention_regularizer(
    weights: Float[Array, "*batch T T"], weight: ArrayLike = 1.0
) -> Float[Array, ""]:
    r"""Compute the penalty of similar attention weights, $\lambda \sum (a a^\top - I)^2 / B$.

    The penalty of B examples is to be added to a loss.

    Args:
        weights: Attention weights of shape `(T, T)`, or of a batch, `(..., T, T)`.
        weight: $\lambda$.

    Returns:
        The penalty, a scalar.

    Raises:
        ValueError: If `weights` is not square.

    Reference:
        Lin et al. 2017, A structured self-attentive sentence embedding, arXiv:1703.03130.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> float(ja.nn.attention_regularizer(jnp.eye(4)))
        0.0
    """
    if weights.ndim < 2 or weights.shape[-1] != weights.shape[-2]:
        raise ValueError(f"`weights` must have shape (..., T, T), got {weights.shape}.")
    products = weights @ jnp.swapaxes(weights, -1, -2)
    batch = weights.size / weights.shape[-1] ** 2
    identity = jnp.eye(weights.shape[-1], dtype=weights.dtype)
    rest = products - jnp.broadcast_to(identity, products.shape)
    return jnp.asarray(weight, weights.dtype) * jnp.square(rest).sum() / batch
