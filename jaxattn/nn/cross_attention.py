"""Attention of one sequence over another: additive, multiplicative, and of a pair on each other."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Shaped

from jaxattn.jaxpr.capture import tag
from jaxattn.nn.attending import Attended, masked_softmax
from jaxattn.nn.attention_layer import (
    AttentionLayer,
    additive_scores,
    as_sequence,
    check_choice,
    check_sizes,
    queried,
    read,
)

Score = Literal["dot", "general", "concat"]
Local = Literal["monotonic", "predictive"]


class AdditiveAttention(AttentionLayer):
    r"""Additive attention (Bahdanau et al. 2015, arXiv:1409.0473).

    $e_{ij} = V_a^\top \tanh(q_i W_a + k_j U_a + b_a)$; its softmax over $j$ weighs the values.

    The weights are `Wa` (Q, units), `Ua` (K, units), `ba` (units,) and `Va` (units, 1).

    Args:
        query_features: Q, size of a query.
        key_features: K, size of a key; Q by default.
        units: size of the hidden layer.
        use_bias: add `ba`.
        param_dtype: dtype of the weights.
        name: the tag of the attention weights.
        rngs: random streams; the weights are drawn from `params`.

    Raises:
        ValueError: a size below 1.
        TypeError: a `param_dtype` that is not floating.
    """

    def __init__(
        self,
        query_features: int,
        key_features: int | None = None,
        *,
        units: int = 32,
        use_bias: bool = True,
        param_dtype: DTypeLike = jnp.float32,
        name: str = "attention",
        rngs: nnx.Rngs,
    ):
        key_features = query_features if key_features is None else key_features
        check_sizes(query_features=query_features, key_features=key_features, units=units)
        self.query_features, self.key_features = query_features, key_features
        shapes: dict[str, tuple[int, ...]] = {
            "Wa": (query_features, units),
            "Ua": (key_features, units),
            "Va": (units, 1),
        }
        super().__init__(shapes | ({"ba": (units,)} if use_bias else {}), param_dtype, name, rngs)

    def __call__(
        self,
        queries: Shaped[ArrayLike, "*batch T_out Q"],
        keys: Shaped[ArrayLike, "*batch T_in K"],
        values: Shaped[ArrayLike, "*batch T_in D"] | None = None,
        *,
        mask: Bool[ArrayLike, "..."] | None = None,
    ) -> Attended:
        """Let every query read the values.

        What lies at masked positions changes nothing, NaN included, and gets no gradient. Where all
        is masked, weights and values are zero.

        Args:
            queries: one example (T_out, Q), or a batch (..., T_out, Q).
            keys: (..., T_in, K).
            values: what is read, (..., T_in, D); the keys by default.
            mask: True at keys that may be read, (..., T_in). None: at all.

        Returns:
            Values (..., T_out, D) and weights (..., T_out, T_in).

        Raises:
            ValueError: sequences or a mask of another shape.
            TypeError: sequences that are not real numbers, a mask that is not boolean.
        """
        sizes = self.query_features, self.key_features, None
        return self._attend(self._one, *queried(queries, keys, values, sizes, mask))

    def _one(
        self, weights: dict[str, Array], queries: Array, keys: Array, values: Array, *masks: Any
    ) -> Attended:
        scores = additive_scores(
            queries, keys, weights["Wa"], weights["Ua"], weights.get("ba"), weights["Va"]
        )
        return read(scores, values, masks[1], self.name)


class MultiplicativeAttention(AttentionLayer):
    r"""Multiplicative attention, global or local (Luong et al. 2015, arXiv:1508.04025).

    The score $e_{ij}$ is $q_i \cdot k_j$ ("dot"), $q_i W_a k_j^\top$ ("general"), or
    $V_a^\top \tanh([q_i; k_j] W_a)$ ("concat"); its softmax over $j$ weighs the values.

    Local attention reads only keys within `window` of a position $p_i$, counted among those that
    may be read. It is the query's own, $p_i = i$ ("monotonic"), or
    $p_i = S \, \sigma(\tanh(q_i W_p) V_p)$ of $S$ keys ("predictive"), and then a Gaussian about
    it, of a standard deviation of half the `window`, favours the keys near by. The paper multiplies
    the softmax by the Gaussian, and its weights sum to less than 1; here they are divided by their
    sum, unless `normalize` is False.

    The weights are `Wa` (Q, K), or for "concat" (Q + K, units) with `Va` (units, 1); and of
    "predictive" `Wp` (Q, units) and `Vp` (units, 1).

    Args:
        query_features: Q, size of a query.
        key_features: K, size of a key; Q by default.
        score: "dot", "general" or "concat".
        local: "monotonic" or "predictive"; None for global attention.
        window: how far from its position local attention reads, in keys: the paper's D.
        normalize: whether the weights of predictive attention are made to sum to 1.
        units: size of hidden layers.
        param_dtype: dtype of the weights.
        name: the tag of the attention weights.
        rngs: random streams; the weights are drawn from `params`.

    Raises:
        ValueError: a size below 1, an unknown `score` or `local`, a "dot" of different sizes.
        TypeError: a `param_dtype` that is not floating.
    """

    def __init__(
        self,
        query_features: int,
        key_features: int | None = None,
        *,
        score: Score = "general",
        local: Local | None = None,
        window: int = 10,
        normalize: bool = True,
        units: int = 32,
        param_dtype: DTypeLike = jnp.float32,
        name: str = "attention",
        rngs: nnx.Rngs,
    ):
        key_features = query_features if key_features is None else key_features
        check_choice("score", score, get_args(Score))
        check_choice("local", local, (None, *get_args(Local)))
        check_sizes(
            query_features=query_features, key_features=key_features, units=units, window=window
        )
        if score == "dot" and query_features != key_features:
            raise ValueError(
                "score='dot' needs queries and keys of one size, got query_features="
                f"{query_features} and key_features={key_features}"
            )
        self.query_features, self.key_features = query_features, key_features
        self.score, self.local, self.window, self.normalize = score, local, window, normalize
        shapes: dict[str, tuple[int, ...]] = {}
        if score == "general":
            shapes = {"Wa": (query_features, key_features)}
        elif score == "concat":
            shapes = {"Wa": (query_features + key_features, units), "Va": (units, 1)}
        if local == "predictive":
            shapes |= {"Wp": (query_features, units), "Vp": (units, 1)}
        super().__init__(shapes, param_dtype, name, rngs)

    def __call__(
        self,
        queries: Shaped[ArrayLike, "*batch T_out Q"],
        keys: Shaped[ArrayLike, "*batch T_in K"],
        values: Shaped[ArrayLike, "*batch T_in D"] | None = None,
        *,
        mask: Bool[ArrayLike, "..."] | None = None,
    ) -> Attended:
        """Let every query read the values.

        Arguments, result and errors are those of `AdditiveAttention`. Where a window of monotonic
        attention lies beyond the last key, weights and values are zero.
        """
        sizes = self.query_features, self.key_features, None
        return self._attend(self._one, *queried(queries, keys, values, sizes, mask))

    def _one(
        self, weights: dict[str, Array], queries: Array, keys: Array, values: Array, *masks: Any
    ) -> Attended:
        mask = masks[1]
        if self.score == "concat":
            of_queries, of_keys = jnp.split(weights["Wa"], [self.query_features])
            scores = additive_scores(queries, keys, of_queries, of_keys, None, weights["Va"])
        else:
            projected = queries @ weights["Wa"] if self.score == "general" else queries
            scores = projected @ keys.T
        if self.local is None:
            return read(scores, values, mask, self.name)

        valid = jnp.ones(len(keys), bool) if mask is None else mask
        # In half precision one cannot count far.
        wide = scores.dtype if jnp.finfo(scores.dtype).bits >= 32 else jnp.dtype(jnp.float32)
        places = (jnp.cumsum(valid) - 1).astype(wide)[None]
        if self.local == "monotonic":
            centres = jnp.arange(len(queries), dtype=wide)[:, None]
        else:
            share = jax.nn.sigmoid(jnp.tanh(queries @ weights["Wp"]) @ weights["Vp"])
            centres = valid.sum().astype(wide) * share.astype(wide)
        away = places - centres
        mask = valid[None] & (jnp.abs(away) <= self.window)
        if self.local == "monotonic":
            return read(scores, values, mask, self.name)
        fading = (-2 * jnp.square(away / self.window)).astype(scores.dtype)
        if self.normalize:
            return read(scores + fading, values, mask, self.name)
        found = tag(masked_softmax(scores, mask) * jnp.exp(fading), self.name)
        return Attended(found @ values, found)


class CrossAttention(AttentionLayer):
    r"""Attention of two sequences on each other (Parikh et al. 2016, arXiv:1606.01933).

    $e_{ij} = F(a_i) \cdot F(b_j)$, where $F$ is a network of ReLU layers; its softmax over $j$
    tells what $a_i$ reads of $b$, and its softmax over $i$ what $b_j$ reads of $a$.

    The weights are `W0` (D, units[0]), `b0` (units[0],), `W1` (units[0], units[1]), ...

    Args:
        features: D, size of each step of both sequences.
        units: sizes of the layers of F; none for the plain dot product.
        param_dtype: dtype of the weights.
        name: the tag of both directions' attention weights: a over b, then b over a.
        rngs: random streams; the weights are drawn from `params`.

    Raises:
        ValueError: a size below 1.
        TypeError: a `param_dtype` that is not floating.
    """

    def __init__(
        self,
        features: int,
        *,
        units: Sequence[int] = (200, 200),
        param_dtype: DTypeLike = jnp.float32,
        name: str = "attention",
        rngs: nnx.Rngs,
    ):
        sizes = (features, *units)
        check_sizes(features=features, **{f"units[{i}]": size for i, size in enumerate(units)})
        self.features = features
        shapes: dict[str, tuple[int, ...]] = {}
        for i, size in enumerate(units):
            shapes |= {f"W{i}": (sizes[i], size), f"b{i}": (size,)}
        super().__init__(shapes, param_dtype, name, rngs)

    def __call__(
        self,
        a: Shaped[ArrayLike, "*batch T_a D"],
        b: Shaped[ArrayLike, "*batch T_b D"],
        *,
        mask_a: Bool[ArrayLike, "..."] | None = None,
        mask_b: Bool[ArrayLike, "..."] | None = None,
    ) -> tuple[Attended, Attended]:
        """Let each sequence read the other.

        What lies at masked positions changes nothing, NaN included, and gets no gradient. What
        reads a sequence that is masked as a whole has weights and values of zero.

        Args:
            a: one example (T_a, D), or a batch (..., T_a, D).
            b: (..., T_b, D).
            mask_a: True at what may be read of `a`, (..., T_a). None: all.
            mask_b: the same of `b`.

        Returns:
            What `a` reads of `b`, values (..., T_a, D) and weights (..., T_a, T_b); and what `b`
            reads of `a`, values (..., T_b, D) and weights (..., T_b, T_a).

        Raises:
            ValueError: sequences or a mask of another shape.
            TypeError: sequences that are not real numbers, a mask that is not boolean.
        """
        a = as_sequence("a", a, self.features)
        b = as_sequence("b", b, self.features, a.shape[:-2])
        return self._attend(self._one, (a, b), (mask_a, mask_b))

    def _one(
        self, weights: dict[str, Array], a: Array, b: Array, mask_a: Any, mask_b: Any
    ) -> tuple[Attended, Attended]:
        def compared(x: Array) -> Array:
            for i in range(len(weights) // 2):
                x = jax.nn.relu(x @ weights[f"W{i}"] + weights[f"b{i}"][None])
            return x

        scores = compared(a) @ compared(b).T
        return read(scores, b, mask_b, self.name), read(scores.T, a, mask_a, self.name)
