"""Attention of a sequence over itself, with the weights of keras-self-attention by their names."""

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
    check_choice,
    check_sizes,
    read,
)

AttentionType = Literal["additive", "multiplicative"]


class SeqSelfAttention(AttentionLayer):
    r"""Self-attention over a sequence, as keras-self-attention has it.

    additive: $e_{ij} = \tanh(x_i W_t + x_j W_x + b_h) W_a + b_a$ (Zheng et al. 2018,
    arXiv:1806.01264); multiplicative: $e_{ij} = x_i W_a x_j^\top + b_a$, not scaled. Then
    `attention_activation`, the masks, and the softmax over $j$, which weighs the steps $x_j$.

    A query reads the `attention_width` steps from $i - \lfloor w/2 \rfloor$ on, or with
    `history_only` those up to its own. The original adds -10000 to the score of every other step,
    which gives the same weights, to the last digit, as leaving it out. Its mask removes only pairs
    of two padded steps, so that a valid step reads padding; ours removes padded steps from all
    that is read. `compat=True` does as the original, -10000 and all.

    The weights are `Wt` and `Wx` (D, units), `bh` (units,), `Wa` (units, 1) and `ba` (1,);
    multiplicative `Wa` (D, D) and `ba` (1,).

    Args:
        features: D, size of each step.
        units: size of the hidden layer of additive attention.
        attention_width: how many steps a query reads; None for all.
        attention_type: "additive" or "multiplicative".
        history_only: read no later step than the query's own.
        use_additive_bias: add `bh`.
        use_attention_bias: add `ba`, which no softmax sees but an activation may.
        attention_activation: applied to the scores; a function, or the name of one in `jax.nn`.
        compat: mask padding as the original does.
        param_dtype: dtype of the weights.
        name: the tag of the attention weights.
        rngs: random streams; the weights are drawn from `params`.

    Raises:
        ValueError: a size or a width below 1, an unknown type or activation.
        TypeError: a size that is no integer, a `param_dtype` that is not floating.
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
        """Let every step read the others.

        What lies at masked steps changes nothing, NaN included, and gets no gradient, unless
        `compat`. A step that may read none has weights and values of zero.

        Args:
            x: one example (T, D), or a batch (..., T, D).
            mask: True at steps that may be read, (..., T). None: at all.

        Returns:
            Values (..., T, D) and weights (..., T, T), queries first.

        Raises:
            ValueError: an `x` or a mask of another shape.
            TypeError: an `x` that is not real numbers, a mask that is not boolean.
        """
        x = as_sequence("x", x, self.features)
        published = self.compat and mask is not None
        one = self._published if published else self._one
        return self._attend(one, (x,), (mask,), blank=not published)

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

    def _one(self, weights: dict[str, Array], x: Array, mask: Array | None) -> Attended:
        allowed = _window(len(x), self.attention_width, self.history_only)
        if mask is not None:
            allowed = mask[None] if allowed is None else allowed & mask[None]
        return read(self._scores(weights, x), x, allowed, self.name)

    def _published(self, weights: dict[str, Array], x: Array, mask: Array) -> Attended:
        scores = self._scores(weights, x)
        window = _window(len(x), self.attention_width, self.history_only)
        if window is not None:
            scores = scores - jnp.where(window, 0, 1e4).astype(scores.dtype)
        padded = ~mask[:, None] & ~mask[None]
        scores = scores - jnp.where(padded, 1e4, 0).astype(scores.dtype)
        return read(scores, x, None, self.name)


def _window(steps: int, width: int | None, history_only: bool) -> Bool[Array, "T T"] | None:
    """What each step may read; None where that is all."""
    if width is None and not history_only:
        return None
    width = 2 * steps if width is None else min(width, 2 * steps)
    lowest = width - 1 if history_only else width // 2
    ahead = jnp.arange(steps)[None] - jnp.arange(steps)[:, None]
    return (ahead >= -lowest) & (ahead < width - lowest)


def attention_regularizer(
    weights: Float[Array, "*batch T T"], weight: ArrayLike = 1.0
) -> Float[Array, ""]:
    r"""How far queries read alike: $\lambda \sum (a a^\top - I)^2 / B$, to be added to a loss.

    Args:
        weights: of one example, (T, T), or of a batch, (..., T, T).
        weight: $\lambda$.

    Returns:
        The penalty, a scalar.

    Raises:
        ValueError: weights that are not square.

    Reference:
        Lin et al. 2017, A structured self-attentive sentence embedding, arXiv:1703.03130.
    """
    if weights.ndim < 2 or weights.shape[-1] != weights.shape[-2]:
        raise ValueError(f"weights must have shape (..., T, T), got {weights.shape}")
    alike = weights @ jnp.swapaxes(weights, -1, -2)
    batch = weights.size / weights.shape[-1] ** 2
    rest = alike - jnp.broadcast_to(jnp.eye(weights.shape[-1], dtype=weights.dtype), alike.shape)
    return jnp.asarray(weight, weights.dtype) * jnp.square(rest).sum() / batch
