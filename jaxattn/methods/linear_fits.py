"""Weighted least squares over coalitions: with a fixed sum, and with a penalty."""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxattn._types import Scalar
from jaxattn.methods.pseudo_inverse import pseudo_inverse

Penalty: TypeAlias = Literal["ridge", "lasso"]

#: The iterations of the proximal gradient method for lasso.
_ITERATIONS = 500
_EXACT = jax.lax.Precision.HIGHEST


class LinearFit(NamedTuple):
    """A linear model of the score.

    Attributes:
        coefficients: the coefficient of each group.
        intercept: the value without any group.
        r_squared: the weighted coefficient of determination; 1 for constant scores.
    """

    coefficients: Float[Array, " groups"]
    intercept: Scalar
    r_squared: Scalar


def fit_with_sum(
    members: Bool[Array, "coalitions groups"],
    weights: Float[Array, " coalitions"],
    scores: Float[Array, " coalitions"],
    total: Scalar,
    exists: Bool[Array, " groups"],
) -> Float[Array, " groups"]:
    """Return coefficients that fit scores by least squares, under the constraint of their sum.

    The deviations from equal coefficients are projected on those of sum zero, so the sum is exact.
    Of several solutions it is the one closest to equal coefficients.

    Args:
        members: the groups in each coalition.
        weights: the weight of each coalition.
        scores: the score of each coalition, minus that of the empty one.
        total: the sum of the coefficients.
        exists: the groups with a coefficient; that of others is 0.
    """
    dtype = scores.dtype
    present, ones = members.astype(dtype), exists.astype(dtype)
    weights = weights.astype(dtype)
    weights /= jnp.maximum(weights.sum(), jnp.finfo(dtype).tiny)
    mean = total / ones.sum()
    rest = scores - mean * jnp.dot(present, ones, precision=_EXACT)
    weighted = present * weights[:, None]
    gram = jnp.dot(weighted.T, present, precision=_EXACT)
    moment = jnp.dot(weighted.T, rest, precision=_EXACT)

    def project(vectors: Array) -> Array:
        """Project on the vectors of sum zero over the groups that exist."""
        kept = vectors * (ones if vectors.ndim == 1 else ones[:, None])
        means = kept.sum(0, keepdims=True) / ones.sum()
        return kept - means * (ones if vectors.ndim == 1 else ones[:, None])

    projected = project(project(gram).T)
    inverse = pseudo_inverse((projected + projected.T) / 2)
    deviation = project(jnp.dot(inverse, project(moment), precision=_EXACT))
    return mean * ones + deviation


def fit_with_penalty(
    members: Bool[Array, "coalitions groups"],
    weights: Float[Array, " coalitions"],
    scores: Float[Array, " coalitions"],
    penalty: Penalty,
    alpha: ArrayLike,
) -> LinearFit:
    """Return a ridge or lasso fit of scores. The intercept is not penalised.

    Ridge minimises sum w r^2 + alpha |c|_2^2, lasso sum w r^2 / (2 sum w) + alpha |c|_1, for
    residuals r and coefficients c.
    """
    dtype = scores.dtype
    present, weights = members.astype(dtype), weights.astype(dtype)
    total, size = weights.sum(), jnp.asarray(alpha, dtype)
    share = weights / total
    mean_present = (present * share[:, None]).sum(0)
    mean_score = (scores * share).sum()
    centred, rest = present - mean_present[None], scores - mean_score
    gram = jnp.dot((centred * share[:, None]).T, centred, precision=_EXACT)
    moment = jnp.dot((centred * share[:, None]).T, rest, precision=_EXACT)
    if penalty == "ridge":
        with_penalty = gram + size / total * jnp.eye(gram.shape[0], dtype=dtype)
        inverse = pseudo_inverse(with_penalty)
        coefficients = jnp.dot(inverse, moment, precision=_EXACT)
    else:
        coefficients = _lasso(gram, moment, size)
    residual = rest - jnp.dot(centred, coefficients, precision=_EXACT)
    spread = (share * rest**2).sum()
    unexplained = (share * residual**2).sum() / jnp.where(spread == 0, 1, spread)
    intercept = mean_score - jnp.dot(mean_present, coefficients, precision=_EXACT)
    return LinearFit(coefficients, intercept, 1 - unexplained)


def _lasso(gram: Array, moment: Array, alpha: Array) -> Array:
    """Minimise c'Gc/2 - m'c + alpha |c|_1 by an accelerated proximal gradient method."""
    tiny = jnp.finfo(gram.dtype).tiny
    step = 1 / jnp.maximum(jnp.abs(gram).sum(1).max(), tiny)  # at least the largest eigenvalue

    def advance(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        old, point, momentum = state
        moved = point - step * (jnp.dot(gram, point, precision=_EXACT) - moment)
        new = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - step * alpha, 0)
        # Momentum that points uphill is dropped, so that the iteration converges linearly.
        uphill = jnp.dot(point - new, new - old, precision=_EXACT) > 0
        momentum = jnp.where(uphill, jnp.ones_like(momentum), momentum)
        after = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        return new, new + jnp.where(uphill, 0, (momentum - 1) / after) * (new - old), after

    start = jnp.zeros_like(moment)
    state = start, start, jnp.ones((), gram.dtype)
    found: Array = jax.lax.fori_loop(0, _ITERATIONS, advance, state)[0]
    return found
