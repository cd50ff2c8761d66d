"""Dot-product attention: scaled, and in several heads with keras-multi-head's weights by name."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Shaped

from jaxattn.jaxpr.capture import tag
from jaxattn.nn.attending import Attended, masked_softmax
from jaxattn.nn.attention_layer import (
    Activation,
    AttentionLayer,
    as_activation,
    check_sizes,
    queried,
    read,
)


class ScaledDotProductAttention(AttentionLayer):
    r"""Scaled dot-product attention, $\mathrm{softmax}(Q K^\top / \sqrt{d}) V$, without weights.

    Args:
        history_only: let query $i$ read no key after the $i$-th.
        name: the tag of the attention weights.

    Reference:
        Vaswani et al. 2017, arXiv:1706.03762.
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
        """Let every query read the values.

        What lies at masked keys and values changes nothing, NaN included, and gets no gradient. A
        query that may read none has weights and values of zero.

        Args:
            queries: one example (T_q, d), or a batch (..., T_q, d).
            keys: (..., T_k, d); the queries by default.
            values: (..., T_k, D); the keys by default.
            mask: True at keys that may be read, (..., T_k). None: at all.

        Returns:
            Values (..., T_q, D) and weights (..., T_q, T_k).

        Raises:
            ValueError: sequences or a mask of another shape.
            TypeError: sequences that are not real numbers, a mask that is not boolean.
        """
        size = jnp.shape(queries)[-1] if jnp.ndim(queries) else None
        return self._attend(self._one, *queried(queries, keys, values, (None, size, None), mask))

    def _one(self, _: dict[str, Array], q: Array, k: Array, v: Array, *masks: Any) -> Attended:
        allowed = _readable(len(q), len(k), self.history_only, masks[1])
        return read(q @ k.T / jnp.sqrt(q.shape[-1]).astype(q.dtype), v, allowed, self.name)


class MultiHeadAttention(AttentionLayer):
    r"""Multi-head attention: several scaled dot products of parts of projected sequences.

    With $Q = q W_q + b_q$, $K = k W_k + b_k$, $V = v W_v + b_v$, head $h$ reads the $h$-th part of
    the columns of V by those of Q and K, and the heads' values side by side go through
    $\cdot W_o + b_o$. Weights have the names and shapes of keras-multi-head: `Wq` (Q, D), `Wk`
    (K, D), `Wv` and `Wo` (D, D), `bq`, `bk`, `bv` and `bo` (D,). An
    `activation` is applied to all four products; it is "relu" there by default, and none here.

    Args:
        features: D, size of a value and of what is returned.
        num_heads: how many heads; they divide D.
        query_features: Q, size of a query; D by default.
        key_features: K, size of a key; D by default.
        activation: applied to the projections; a function, or the name of one in `jax.nn`.
        use_bias: add biases.
        history_only: let query $i$ read no key after the $i$-th.
        param_dtype: dtype of the weights.
        name: the tag of the attention weights.
        rngs: random streams; the weights are drawn from `params`.

    Raises:
        ValueError: a size below 1, heads that do not divide `features`, an unknown activation.
        TypeError: a size that is no integer, a `param_dtype` that is not floating.

    Reference:
        Vaswani et al. 2017, arXiv:1706.03762.
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
            raise ValueError(f"num_heads must divide features={features}, got {num_heads}")
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
        """Let every query read the values, head by head.

        What lies at masked keys and values changes nothing, NaN included, and gets no gradient. A
        query that may read none has weights of zero, and the values of its heads are zero.

        Args:
            queries: one example (T_q, Q), or a batch (..., T_q, Q).
            keys: (..., T_k, K); the queries by default.
            values: (..., T_k, D); the keys by default.
            mask: True at keys that may be read, (..., T_k). None: at all.

        Returns:
            Values (..., T_q, D) and weights (..., heads, T_q, T_k).

        Raises:
            ValueError: sequences or a mask of another shape.
            TypeError: sequences that are not real numbers, a mask that is not boolean.
        """
        sizes = self.query_features, self.key_features, self.features
        return self._attend(self._one, *queried(queries, keys, values, sizes, mask))

    def _one(
        self, weights: dict[str, Array], q: Array, k: Array, v: Array, *masks: Any
    ) -> Attended:
        def projected(x: Array, part: str) -> Array:
            x = x @ weights[f"W{part}"]
            x = x + weights[f"b{part}"][None] if f"b{part}" in weights else x
            return x if self.activation is None else self.activation(x)

        def heads(x: Array, part: str) -> Array:  # (heads, T, D / heads)
            return projected(x, part).reshape(len(x), self.num_heads, -1).swapaxes(0, 1)

        queries, keys = heads(q, "q"), heads(k, "k")
        scores = queries @ keys.swapaxes(1, 2) / jnp.sqrt(keys.shape[-1]).astype(keys.dtype)
        allowed = _readable(len(q), len(k), self.history_only, masks[1])
        found = tag(masked_softmax(scores, allowed), self.name)
        values = (found @ heads(v, "v")).swapaxes(0, 1).reshape(len(q), -1)
        return Attended(projected(values, "o"), found)


def _readable(
    queries: int, keys: int, history_only: bool, mask: Array | None
) -> Bool[Array, "..."] | None:
    """What each query may read; None where that is all."""
    if not history_only:
        return mask
    past = jnp.arange(keys)[None] <= jnp.arange(queries)[:, None]
    return past if mask is None else past & mask[None]
