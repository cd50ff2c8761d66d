"""Attention without queries: one weighted sum of a sequence."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Shaped

from jaxattn.jaxpr.capture import tag
from jaxattn.nn.attending import Attended, masked_softmax
from jaxattn.nn.attention_layer import AttentionLayer, as_sequence, check_sizes


class SeqWeightedAttention(AttentionLayer):
    r"""Attention that sums a sequence, weighted by the softmax of linear scores.

    The attention weights are the softmax of $x_j W + b$ over the steps $j$. The weights of the
    layer, `W` (D, 1) and `b` (1,), have the names and shapes of keras-self-attention; `W` is drawn
    uniformly from [-0.05, 0.05].

    Args:
        features: D, size of each step.
        use_bias: Whether to add `b`, which the softmax cancels.
        param_dtype: Dtype of the weights.
        name: Tag of the attention weights for `jaxattn.capture` and `jaxattn.intervene`.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If `features` is below 1.
        TypeError: If `features` is not an integer, or `param_dtype` is not floating.

    Reference:
        SeqWeightedAttention of keras-self-attention,
        https://github.com/CyberZHG/keras-self-attention.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> layer = ja.nn.SeqWeightedAttention(8, rngs=nnx.Rngs(0))
        >>> values, weights = layer(jnp.ones((5, 8)))
        >>> values.shape, weights.shape
        ((8,), (5,))
    """

    _kernel_init = staticmethod(partial(jax.random.uniform, minval=-0.05, maxval=0.05))

    def __init__(
        self,
        features: int,
        *,
        use_bias: bool = True,
        param_dtype: DTypeLike = jnp.float32,
        name: str = "attention",
        rngs: nnx.Rngs,
    ):
        check_sizes(features=features)
        self.features = features
        shapes = {"W": (features, 1)} | ({"b": (1,)} if use_bias else {})
        super().__init__(shapes, param_dtype, name, rngs, kernel_init=self._kernel_init)

    def __call__(
        self,
        x: Shaped[ArrayLike, "*batch T D"],
        mask: Bool[ArrayLike, "..."] | None = None,
    ) -> Attended:
        """Compute the weighted sum of the steps.

        Masked steps, NaN included, do not affect the result and have a gradient of zero. If all
        steps are masked, weights and values are zero.

        Args:
            x: Sequence of shape `(T, D)`, or a batch `(..., T, D)`.
            mask: True at steps that may be attended to, shape `(..., T)`. All by default.

        Returns:
            Values `(..., D)` and weights `(..., T)`.

        Raises:
            ValueError: If `x` or `mask` has another shape.
            TypeError: If `x` does not hold real numbers, or `mask` is not boolean.
        """
        return self._attend(self._single, (as_sequence("x", x, self.features),), (mask,))

    def _single(self, weights: dict[str, Array], x: Array, mask: Array | None) -> Attended:
        scores = (x @ weights["W"])[:, 0]
        if "b" in weights:
            scores = scores + weights["b"][0]
        attention = tag(masked_softmax(self._activation(scores), mask), self.name)
        return Attended(attention @ x, attention)

    def _activation(self, scores: Array) -> Array:
        return scores


class FeedForwardAttention(SeqWeightedAttention):
    r"""Feed-forward attention (Raffel and Ellis 2015): a weighted sum by bounded scores.

    The attention weights are the softmax of $\tanh(x_j W + b)$ over the steps $j$, so the ratio of
    two weights is at most $e^2$. `W` is drawn by Glorot's uniform initialiser. Arguments, results
    and errors are those of `SeqWeightedAttention`.

    Reference:
        Raffel and Ellis 2015, Feed-forward networks with attention can solve some long-term memory
        problems, arXiv:1512.08756.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> layer = ja.nn.FeedForwardAttention(8, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 5, 8))).weights.shape
        (2, 5)
    """

    _kernel_init = staticmethod(initializers.glorot_uniform())

    def _activation(self, scores: Array) -> Array:
        return jnp.tanh(scores)
