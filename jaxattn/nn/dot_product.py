"""Dot-product attention: scaled, and with several heads."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Shaped

from jaxattn.jaxpr.capture import tag
from jaxattn.nn.attending import Attended, masked_softmax
from jaxattn.nn.attention_layer import (
    Activation,
    AttentionLayer,
    Sizes,
    as_activation,
    attend,
    check_queried,
    check_sizes,
)


class ScaledDotProductAttention(AttentionLayer):
    r"""Scaled dot-product attention, $\mathrm{softmax}(Q K^\top / \sqrt{d}) V$.

    The layer has no weights.

    Args:
        history_only: Whether query $i$ attends only to keys up to the $i$-th (causal attention).
        name: Tag of the attention weights for `jaxattn.capture` and `jaxattn.intervene`.

    Reference:
        Vaswani et al. 2017, Attention is all you need, arXiv:1706.03762.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> layer = ja.nn.ScaledDotProductAttention(history_only=True)
        >>> layer(jnp.ones((3, 4))).weights[0].tolist()
        [1.0, 0.0, 0.0]
    """

    def __init__(self, *, history_only: bool = False, name: str = "attention"):
        super().__init__({}, jnp.float32, name)
        self.history_only = history_only

    def __call__(
        self,
        queries: Shaped[ArrayLike, "*batch T_q d"],
        keys: Shaped[ArrayLike, "*batch T_k d"] | None = None,
        values: Shaped[ArrayLike, "*batch T_k D"] | None = None,
        *,
        mask: Bool[ArrayLike, "..."] | None = None,
    ) -> Attended:
        """Compute the attention of the queries over the values.

        Masked keys and values, NaN included, do not affect the result and have a gradient of zero.
        A query without unmasked keys has weights and values of zero.

        Args:
            queries: Queries of shape `(T_q, d)`, or a batch `(..., T_q, d)`.
            keys: Keys of shape `(..., T_k, d)`; the queries by default.
            values: Values of shape `(..., T_k, D)`; the keys by default.
            mask: True at keys that may be attended to, shape `(..., T_k)`. All by default.

        Returns:
            Values `(..., T_q, D)` and weights `(..., T_q, T_k)`.

        Raises:
            ValueError: If a sequence or the mask has another shape.
            TypeError: If a sequence does not hold real numbers, or the mask is not boolean.
        """
        size = jnp.shape(queries)[-1] if jnp.ndim(queries) else None
        return self._attend(
            self._single, *check_queried(queries, keys, values, Sizes(key=size), mask)
        )

    def _single(
        self, _: dict[str, Array], q: Array, k: Array, v: Array, *masks: Array | None
    ) -> Attended:
        allowed = _allowed_keys(len(q), len(k), self.history_only, masks[1])
        return attend(q @ k.T / jnp.sqrt(q.shape[-1]).astype(q.dtype), v, allowed, self.name)


class MultiHeadAttention(AttentionLayer):
    r"""Multi-head attention.

    With $Q = q W_q + b_q$, $K = k W_k + b_k$ and $V = v W_v + b_v$, head $h$ computes scaled
    dot-product attention with the $h$-th part of the columns of Q, K and V. The concatenated
    results of the heads are multiplied by $W_o$, and $b_o$ is added.

    The weights of the layer have the names and shapes of keras-multi-head: `Wq` (Q, D), `Wk`
    (K, D), `Wv` and `Wo` (D, D), `bq`, `bk`, `bv` and `bo` (D,). Matrices are drawn by Glorot's
    normal initialiser, biases start at 0. The `activation` of all four projections is "relu" by
    default in keras-multi-head, and none here.

    Args:
        features: D, size of a value and of the result.
        num_heads: Number of heads, a divisor of D.
        query_features: Q, size of a query; D by default.
        key_features: K, size of a key; D by default.
        activation: Activation of the projections: a function, or the name of one in `jax.nn`.
        use_bias: Whether to add biases.
        history_only: Whether query $i$ attends only to keys up to the $i$-th (causal attention).
        param_dtype: Dtype of the weights.
        name: Tag of the attention weights for `jaxattn.capture` and `jaxattn.intervene`.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If a size is below 1, `num_heads` does not divide `features`, or `activation`
            is unknown.
        TypeError: If a size is not an integer, or `param_dtype` is not floating.

    Reference:
        Vaswani et al. 2017, Attention is all you need, arXiv:1706.03762.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> layer = ja.nn.MultiHeadAttention(8, num_heads=2, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((5, 8))).weights.shape
        (2, 5, 5)
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        *,
        query_features: int | None = None,
        key_features: int | None = None,
        activation: Activation | str | None = None,
        use_bias: bool = True,
        history_only: bool = False,
        param_dtype: DTypeLike = jnp.float32,
        name: str = "attention",
        rngs: nnx.Rngs,
    ):
        self.query_features = features if query_features is None else query_features
        self.key_features = features if key_features is None else key_features
        check_sizes(
            features=features, num_heads=num_heads, query_features=self.query_features,
            key_features=self.key_features,
        )  # fmt: skip
        if features % num_heads:
            raise ValueError(f"`num_heads` must divide features={features}, got {num_heads}.")
        self.features, self.num_heads, self.history_only = features, num_heads, history_only
        self.activation = as_activation("activation", activation)
        shapes: dict[str, tuple[int, ...]] = {
            "Wq": (self.query_features, features),
            "Wk": (self.key_features, features),
            "Wv": (features, features),
            "Wo": (features, features),
        }
        if use_bias:
            shapes |= {f"b{part}": (features,) for part in "qkvo"}
        super().__init__(shapes, param_dtype, name, rngs)

    def __call__(
        self,
        queries: Shaped[ArrayLike, "*batch T_q Q"],
        keys: Shaped[ArrayLike, "*batch T_k K"] | None = None,
        values: Shaped[ArrayLike, "*batch T_k D"] | None = None,
        *,
        mask: Bool[ArrayLike, "..."] | None = None,
    ) -> Attended:
        """Compute the attention of the queries over the values with each head.

        Masked keys and values, NaN included, do not affect the result and have a gradient of zero.
        A query without unmasked keys has weights of zero, and the values of its heads are zero.

        Args:
            queries: Queries of shape `(T_q, Q)`, or a batch `(..., T_q, Q)`.
            keys: Keys of shape `(..., T_k, K)`; the queries by default.
            values: Values of shape `(..., T_k, D)`; the keys by default.
            mask: True at keys that may be attended to, shape `(..., T_k)`. All by default.

        Returns:
            Values `(..., T_q, D)` and weights `(..., heads, T_q, T_k)`.

        Raises:
            ValueError: If a sequence or the mask has another shape.
            TypeError: If a sequence does not hold real numbers, or the mask is not boolean.
        """
        sizes = Sizes(self.query_features, self.key_features, self.features)
        return self._attend(self._single, *check_queried(queries, keys, values, sizes, mask))

    def _single(
        self, weights: dict[str, Array], q: Array, k: Array, v: Array, *masks: Array | None
    ) -> Attended:
        def project(x: Array, part: str) -> Array:
            x = x @ weights[f"W{part}"]
            x = x + weights[f"b{part}"][None] if f"b{part}" in weights else x
            return x if self.activation is None else self.activation(x)

        def heads(x: Array, part: str) -> Array:  # (heads, T, D / heads)
            return project(x, part).reshape(len(x), self.num_heads, -1).swapaxes(0, 1)

        queries, keys = heads(q, "q"), heads(k, "k")
        scores = queries @ keys.swapaxes(1, 2) / jnp.sqrt(keys.shape[-1]).astype(keys.dtype)
        allowed = _allowed_keys(len(q), len(k), self.history_only, masks[1])
        attention = tag(masked_softmax(scores, allowed), self.name)
        values = (attention @ heads(v, "v")).swapaxes(0, 1).reshape(len(q), -1)
        return Attended(project(values, "o"), attention)


def _allowed_keys(
    queries: int, keys: int, history_only: bool, mask: Array | None
) -> Bool[Array, "..."] | None:
    """Return the keys that each query may attend to; None for all."""
    if not history_only:
        return mask
    past = jnp.arange(keys)[None] <= jnp.arange(queries)[:, None]
    return past if mask is None else past & mask[None]
