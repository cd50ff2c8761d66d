"""Attention without a query: one weighted sum over a sequence."""

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
    r"""One weighted sum over a sequence, as keras-self-attention has it.

    The softmax of $x_j W + b$ over $j$ weighs the steps. The weights are `W` (D, 1) and `b` (1,);
    `W` starts uniform in [-0.05, 0.05].

    Args:
        features: D, size of each step.
        use_bias: add `b`, which no softmax sees.
        param_dtype: dtype of the weights.
        name: the tag of the attention weights.
        rngs: random streams; the weights are drawn from `params`.

    Raises:
        ValueError: a size below 1.
        TypeError: a `param_dtype` that is not floating.
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
        """Sum the steps.

        What lies at masked steps changes nothing, NaN included, and gets no gradient. Where all is
        masked, weights and values are zero.

        Args:
            x: one example (T, D), or a batch (..., T, D).
            mask: True at steps that may be read, (..., T). None: at all.

        Returns:
            Values (..., D) and weights (..., T).

        Raises:
            ValueError: an `x` or a mask of another shape.
            TypeError: an `x` that is not real numbers, a mask that is not boolean.
        """
        return self._attend(self._one, (as_sequence("x", x, self.features),), (mask,))

    def _one(self, weights: dict[str, Array], x: Array, mask: Array | None) -> Attended:
        scores = (x @ weights["W"])[:, 0]
        if "b" in weights:
            scores = scores + weights["b"][0]
        found = tag(masked_softmax(self._squashed(scores), mask), self.name)
        return Attended(found @ x, found)

    def _squashed(self, scores: Array) -> Array:
        return scores


class FeedForwardAttention(SeqWeightedAttention):
    r"""One weighted sum over a sequence, by scores that are squashed (Raffel & Ellis 2015).

    The softmax of $\tanh(x_j W + b)$ over $j$ weighs the steps: no step gets more than $e^2$ times
    the weight of another. `W` is drawn by Glorot's uniform rule. Arguments, result and errors are
    those of `SeqWeightedAttention`.

    Reference:
        Raffel and Ellis 2015, Feed-forward networks with attention can solve some long-term memory
        problems, arXiv:1512.08756.
    """

    _kernel_init = staticmethod(initializers.glorot_uniform())

    def _squashed(self, scores: Array) -> Array:
        return jnp.tanh(scores)
