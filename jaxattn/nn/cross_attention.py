"""Attention of one sequence over another: additive, multiplicative and mutual."""

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Shaped

from jaxattn.jaxpr.capture import tag
from jaxattn.nn.attending import Attended, masked_softmax
from jaxattn.nn.attention_layer import (
    AttentionLayer,
    Sizes,
    additive_scores,
    as_sequence,
    attend,
    check_choice,
    check_queried,
    check_sizes,
)

Score = Literal["dot", "general", "concat"]
Local = Literal["monotonic", "predictive"]


class AdditiveAttention(AttentionLayer):
    r"""Additive attention (Bahdanau et al. 2015).

    The scores are $e_{ij} = V_a^\top \tanh(q_i W_a + k_j U_a + b_a)$. Their softmax over $j$ weighs
    the values. The weights of the layer are `Wa` (Q, units), `Ua` (K, units), `ba` (units,) and
    `Va` (units, 1); matrices are drawn by Glorot's normal initialiser, biases start at 0.

    Args:
        query_features: Q, size of a query.
        key_features: K, size of a key; Q by default.
        units: Size of the hidden layer.
        use_bias: Whether to add `ba`.
        param_dtype: Dtype of the weights.
        name: Tag of the attention weights for `jaxattn.capture` and `jaxattn.intervene`.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If a size is below 1.
        TypeError: If a size is not an integer, or `param_dtype` is not floating.

    Reference:
        Bahdanau, Cho and Bengio 2015, Neural machine translation by jointly learning to align and
        translate, arXiv:1409.0473.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> layer = ja.nn.AdditiveAttention(4, 6, rngs=nnx.Rngs(0))
        >>> values, weights = layer(jnp.ones((3, 4)), jnp.ones((5, 6)))
        >>> values.shape, weights.shape
        ((3, 6), (3, 5))
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
        """Compute the attention of the queries over the values.

        Masked positions, NaN included, do not affect the result and have a gradient of zero. If all
        are masked, weights and values are zero.

        Args:
            queries: Queries of shape `(T_out, Q)`, or a batch `(..., T_out, Q)`.
            keys: Keys of shape `(..., T_in, K)`.
            values: Values of shape `(..., T_in, D)`; the keys by default.
            mask: True at keys that may be attended to, shape `(..., T_in)`. All by default.

        Returns:
            Values `(..., T_out, D)` and weights `(..., T_out, T_in)`.

        Raises:
            ValueError: If a sequence or the mask has another shape.
            TypeError: If a sequence does not hold real numbers, or the mask is not boolean.
        """
        sizes = Sizes(self.query_features, self.key_features)
        return self._attend(self._single, *check_queried(queries, keys, values, sizes, mask))

    def _single(
        self,
        weights: dict[str, Array],
        queries: Array,
        keys: Array,
        values: Array,
        *masks: Array | None,
    ) -> Attended:
        scores = additive_scores(
            queries, keys, weights["Wa"], weights["Ua"], weights.get("ba"), weights["Va"]
        )
        return attend(scores, values, masks[1], self.name)


class MultiplicativeAttention(AttentionLayer):
    r"""Multiplicative attention, global or local (Luong et al. 2015).

    The score $e_{ij}$ is $q_i \cdot k_j$ ("dot"), $q_i W_a k_j^\top$ ("general"), or
    $V_a^\top \tanh([q_i; k_j] W_a)$ ("concat"). Its softmax over $j$ weighs the values.

    Local attention is restricted to keys within `window` of a position $p_i$, counted over unmasked
    keys: $p_i = i$ ("monotonic"), or $p_i = S \, \sigma(\tanh(q_i W_p) V_p)$ for $S$ keys
    ("predictive"). Predictive weights are multiplied by a Gaussian about $p_i$ with half the
    `window` as its standard deviation. In the paper they then sum to less than 1; here they are
    normalised to sum to 1 unless `normalize` is False.

    The weights of the layer are `Wa` (Q, K), or for "concat" (Q + K, units) with `Va` (units, 1);
    for "predictive" also `Wp` (Q, units) and `Vp` (units, 1). Matrices are drawn by Glorot's normal
    initialiser.

    Args:
        query_features: Q, size of a query.
        key_features: K, size of a key; Q by default.
        score: "dot", "general" or "concat".
        local: "monotonic" or "predictive"; None for global attention.
        window: Largest distance of local attention from its position, in keys: D in the paper.
        normalize: Whether the weights of predictive attention sum to 1.
        units: Size of the hidden layers.
        param_dtype: Dtype of the weights.
        name: Tag of the attention weights for `jaxattn.capture` and `jaxattn.intervene`.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If a size is below 1, `score` or `local` is unknown, or sizes differ for "dot".
        TypeError: If a size is not an integer, or `param_dtype` is not floating.

    Reference:
        Luong, Pham and Manning 2015, Effective approaches to attention-based neural machine
        translation, arXiv:1508.04025.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> layer = ja.nn.MultiplicativeAttention(4, local="predictive", rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((3, 4)), jnp.ones((5, 4))).weights.shape
        (3, 5)
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
                "`key_features` must equal `query_features` for score='dot', got "
                f"{key_features} and {query_features}."
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
        """Compute the attention of the queries over the values.

        If a window of monotonic attention lies beyond the last key, weights and values are zero.

        Args:
            queries: Queries of shape `(T_out, Q)`, or a batch `(..., T_out, Q)`.
            keys: Keys of shape `(..., T_in, K)`.
            values: Values of shape `(..., T_in, D)`; the keys by default.
            mask: True at keys that may be attended to, shape `(..., T_in)`. All by default.

        Returns:
            Values `(..., T_out, D)` and weights `(..., T_out, T_in)`.

        Raises:
            ValueError: If a sequence or the mask has another shape.
            TypeError: If a sequence does not hold real numbers, or the mask is not boolean.
        """
        sizes = Sizes(self.query_features, self.key_features)
        return self._attend(self._single, *check_queried(queries, keys, values, sizes, mask))

    def _single(
        self,
        weights: dict[str, Array],
        queries: Array,
        keys: Array,
        values: Array,
        *masks: Array | None,
    ) -> Attended:
        mask = masks[1]
        if self.score == "concat":
            query_kernel, key_kernel = jnp.split(weights["Wa"], [self.query_features])
            scores = additive_scores(queries, keys, query_kernel, key_kernel, None, weights["Va"])
        else:
            projected = queries @ weights["Wa"] if self.score == "general" else queries
            scores = projected @ keys.T
        if self.local is None:
            return attend(scores, values, mask, self.name)

        valid = jnp.ones(len(keys), bool) if mask is None else mask
        # Half precision cannot represent large positions.
        wide = scores.dtype if jnp.finfo(scores.dtype).bits >= 32 else jnp.dtype(jnp.float32)
        positions = (jnp.cumsum(valid) - 1).astype(wide)[None]
        if self.local == "monotonic":
            centres = jnp.arange(len(queries), dtype=wide)[:, None]
        else:
            fraction = jax.nn.sigmoid(jnp.tanh(queries @ weights["Wp"]) @ weights["Vp"])
            centres = valid.sum().astype(wide) * fraction.astype(wide)
        distance = positions - centres
        mask = valid[None] & (jnp.abs(distance) <= self.window)
        if self.local == "monotonic":
            return attend(scores, values, mask, self.name)
        log_gaussian = (-2 * jnp.square(distance / self.window)).astype(scores.dtype)
        if self.normalize:
            return attend(scores + log_gaussian, values, mask, self.name)
        attention = tag(masked_softmax(scores, mask) * jnp.exp(log_gaussian), self.name)
        return Attended(attention @ values, attention)


class CrossAttention(AttentionLayer):
    r"""Attention of two sequences over each other (Parikh et al. 2016).

    The scores are $e_{ij} = F(a_i) \cdot F(b_j)$, where $F$ is a network of ReLU layers. Their
    softmax over $j$ is the attention of $a_i$ over $b$, that over $i$ the attention of $b_j$ over
    $a$. The weights of the layer are `W0` (D, units[0]), `b0` (units[0],), `W1` (units[0],
    units[1]), and so on; matrices are drawn by Glorot's normal initialiser, biases start at 0.

    Args:
        features: D, size of each step of both sequences.
        units: Sizes of the layers of F; empty for the plain dot product.
        param_dtype: Dtype of the weights.
        name: Tag of the attention weights of both directions: a over b, then b over a.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If a size is below 1.
        TypeError: If a size is not an integer, or `param_dtype` is not floating.

    Reference:
        Parikh, Täckström, Das and Uszkoreit 2016, A decomposable attention model for natural
        language inference, arXiv:1606.01933.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> layer = ja.nn.CrossAttention(4, units=(8,), rngs=nnx.Rngs(0))
        >>> a_over_b, b_over_a = layer(jnp.ones((3, 4)), jnp.ones((5, 4)))
        >>> a_over_b.weights.shape, b_over_a.weights.shape
        ((3, 5), (5, 3))
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
        """Compute the attention of each sequence over the other.

        Masked positions, NaN included, do not affect the result and have a gradient of zero. The
        attention over a sequence that is masked as a whole has weights and values of zero.

        Args:
            a: Sequence of shape `(T_a, D)`, or a batch `(..., T_a, D)`.
            b: Sequence of shape `(..., T_b, D)`.
            mask_a: True at steps of `a` that may be attended to, shape `(..., T_a)`. All by
                default.
            mask_b: True at steps of `b` that may be attended to, shape `(..., T_b)`. All by
                default.

        Returns:
            The attention of `a` over `b`, values `(..., T_a, D)` and weights `(..., T_a, T_b)`; and
            of `b` over `a`, values `(..., T_b, D)` and weights `(..., T_b, T_a)`.

        Raises:
            ValueError: If a sequence or the mask has another shape.
            TypeError: If a sequence does not hold real numbers, or the mask is not boolean.
        """
        a = as_sequence("a", a, self.features)
        b = as_sequence("b", b, self.features, a.shape[:-2])
        return self._attend(self._single, (a, b), (mask_a, mask_b))

    def _single(
        self,
        weights: dict[str, Array],
        a: Array,
        b: Array,
        mask_a: Array | None,
        mask_b: Array | None,
    ) -> tuple[Attended, Attended]:
        def project(x: Array) -> Array:
            for i in range(len(weights) // 2):
                x = jax.nn.relu(x @ weights[f"W{i}"] + weights[f"b{i}"][None])
            return x

        scores = project(a) @ project(b).T
        return attend(scores, b, mask_b, self.name), attend(scores.T, a, mask_a, self.name)
