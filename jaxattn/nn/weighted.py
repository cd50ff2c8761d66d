"""Attention without a query: one weighted sum over a sequence."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Shaped

from jaxattn.jaxpr.capture import tag
from jaxattn.nn.attending import Attended, checked_mask, masked_softmax
from jaxattn.nn.attention_layer import check_sizes


class FeedForwardAttention(nnx.Module):
    r"""Sums a sequence up, each step weighted by a squashed score of its own.

    $e_t = \tanh(x_t W + b)$, $\alpha = \mathrm{softmax}(e)$ and $v = \sum_t \alpha_t x_t$ (Raffel &
    Ellis 2015, https://arxiv.org/abs/1512.08756). As scores lie in (-1, 1), no step gets more than
    $e^2$ times the weight of another.

    Args:
        in_features: D, size of the input at each step.
        name: the tag of the weights, for `jaxattn.capture` and `jaxattn.intervene`.
        param_dtype: dtype of `W` (D, 1) and `b` (1,).
        rngs: random streams; `W` is drawn from `params`.

    Raises:
        ValueError: an `in_features` below 1.
        TypeError: a size that is no integer, a `param_dtype` that is not floating.
    """

    def __init__(
        self,
        in_features: int,
        *,
        name: str = "attention",
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(in_features=in_features)
        if not jnp.issubdtype(param_dtype, jnp.floating):
            raise TypeError(f"param_dtype must be floating, got {param_dtype}")
        self.in_features = in_features
        self.name = name
        draw = initializers.glorot_uniform()
        self.W = nnx.Param(draw(rngs.params(), (in_features, 1), param_dtype))
        self.b = nnx.Param(jnp.zeros(1, param_dtype))

    def __call__(
        self,
        x: Shaped[ArrayLike, "*batch T D"],
        mask: Bool[ArrayLike, "..."] | None = None,
    ) -> Attended:
        """Return the weighted sum and the weights.

        What stands at masked steps changes nothing, NaN included, and gets no gradient. The dtype
        is the one to which `x` and the weights promote.

        Args:
            x: one example (T, D), or a batch of any rank (..., T, D); integers are converted.
            mask: True at steps that may be read, (..., T); leading axes may be 1 or missing.
                None: at all.

        Returns:
            The sum (..., D) and the weights (..., T), both zero where no step may be read.

        Raises:
            ValueError: an `x` of another shape or without steps, a mask that does not fit it.
            TypeError: an `x` that is not real numbers, a mask that is not boolean.
        """
        x = jnp.asarray(x)
        if x.ndim < 2 or x.shape[-1] != self.in_features or not x.shape[-2]:
            raise ValueError(f"x must have shape (..., T, {self.in_features}), got {x.shape}")
        if not jnp.issubdtype(x.dtype, jnp.floating) and not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"x must be real numbers, got dtype {x.dtype}")
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.promote_types(x.dtype, self.W.dtype)
        W, b = self.W[...].astype(dtype), self.b[...].astype(dtype)

        def attend(x: Array, mask: Array | None) -> Attended:
            if mask is not None:
                x = jnp.where(mask[:, None], x, 0)
            weights = tag(masked_softmax(jnp.tanh((x @ W)[:, 0] + b), mask), self.name)
            return Attended(weights @ x, weights)

        for _ in x.shape[:-2]:
            attend = jax.vmap(attend)
        return attend(x.astype(dtype), None if mask is None else checked_mask(mask, x.shape[:-1]))
