"""Integrated gradients, and integrals along a straight line from a baseline."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Scalar, Target, check_count
from jaxattn.engine.batch import chunked_sum, chunked_total, wide
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline, floating_leaves, is_floating
from jaxattn.engine.target import scored
from jaxattn.jaxpr.reuse.affine_prefix import AffinePrefix

QuadratureRule: TypeAlias = Literal["midpoint", "gauss_legendre"]


class Quadrature(NamedTuple):
    """A quadrature rule on [0, 1]: nodes, and weights that sum to 1."""

    nodes: Float[Array, "..."]
    weights: Float[Array, "..."]

    @classmethod
    def of(cls, rule: QuadratureRule, num_steps: int) -> "Quadrature":
        """Return the rule of a name with `num_steps` nodes.

        Raises:
            ValueError: for fewer than one step or an unknown rule.
        """
        check_count("num_steps", num_steps)
        if rule == "midpoint":
            nodes = (np.arange(num_steps) + 0.5) / num_steps
            weights = np.full(num_steps, 1 / num_steps)
        elif rule == "gauss_legendre":
            points, masses = np.polynomial.legendre.leggauss(num_steps)
            nodes, weights = (points + 1) / 2, masses / 2
        else:
            raise ValueError(f'`quadrature` must be "midpoint" or "gauss_legendre", got {rule!r}.')
        return cls(jnp.asarray(nodes), jnp.asarray(weights))


def path_integral(
    f: Callable[[Scalar], PyTree], quadrature: Quadrature, batch_size: int | None
) -> PyTree:
    """Integrate a pytree `f(alpha)` over alpha from 0 to 1."""

    def term(one: Quadrature) -> PyTree:
        values = f(one.nodes)
        return jax.tree.map(lambda value: one.weights.astype(value.dtype) * value, values)

    return chunked_sum(term, quadrature, batch_size)


def straight_line(start: Inputs, x: Inputs) -> Callable[[Scalar], Inputs]:
    """Return the map from alpha to the point between `start` (0) and `x` (1).

    Integer leaves stay at `start`, which has the structure and the shapes of `x`.
    """

    def step(leaf: Array, first: Array) -> Array:
        return leaf - first if is_floating(leaf) else jnp.zeros_like(leaf)

    steps = jax.tree.map(step, x, start)

    def point(alpha: Scalar) -> Inputs:
        def between(first: Array, step: Array) -> Array:
            return first + alpha.astype(step.dtype) * step if is_floating(step) else first

        return jax.tree.map(between, start, steps)

    return point


def _mean_gradient(
    score: Callable[..., Scalar],
    start: list[Array],
    distance: list[Array],
    quadrature: Quadrature,
    batch_size: int | None,
) -> list[Array]:
    """Average the gradient of a score of some arrays along a straight line.

    Args:
        score: a function of the arrays.
        start: where the line starts.
        distance: from there to the end of the line.
        quadrature: the nodes and weights of the average.
        batch_size: how many nodes are in flight.
    """
    prefix = AffinePrefix.of(score, distance)  # from the baseline on nothing may vary over devices
    if prefix is not None:
        return _mean_gradient_behind(prefix, start, distance, quadrature, batch_size)

    def gradient(alpha: Scalar) -> list[Array]:
        point = [f + alpha.astype(d.dtype) * d for f, d in zip(start, distance, strict=True)]
        return jax.grad(lambda leaves: score(*leaves))(point)

    means: list[Array] = path_integral(gradient, quadrature, batch_size)
    return means


class _Segment(NamedTuple):
    """A line in the image of an affine prefix, and an offset that is differentiated."""

    start: Array
    along: Array
    offset: Array


def _mean_gradient_behind(
    prefix: AffinePrefix,
    start: list[Array],
    distance: list[Array],
    quadrature: Quadrature,
    batch_size: int | None,
) -> list[Array]:
    """Average the gradient along a straight line, for a function with an affine prefix.

    The prefix maps the line to a straight line, and its transpose maps the mean gradient behind it
    back to the input: neither is computed at each node.
    """
    first, push = jax.linearize(prefix.affine, *start)
    along = push(*distance)

    def total(nodes: Quadrature, valid: Bool[Array | np.ndarray, " nodes"]) -> list[Array]:
        def weighted_scores(offsets: list[Array]) -> Scalar:
            segments = [_Segment(*parts) for parts in zip(first, along, offsets, strict=True)]

            def one(alpha: Scalar, weight: Scalar) -> Scalar:
                def at(segment: _Segment) -> Array:
                    start, along, offset = segment
                    point = start + alpha.astype(start.dtype) * along
                    return (point.astype(offset.dtype) + offset).astype(start.dtype)

                value = prefix.remainder(segments, at)
                return weight.astype(value.dtype) * value

            return jax.vmap(one)(nodes.nodes, jnp.where(valid, nodes.weights, 0)).sum()

        # One gradient for all nodes: the cotangents are summed before they are propagated back.
        return jax.grad(weighted_scores)(
            [jnp.zeros(leaf.shape, wide(leaf.dtype)) for leaf in first]
        )

    means = chunked_total(total, quadrature, batch_size)
    means = [mean.astype(leaf.dtype) for mean, leaf in zip(means, first, strict=True)]
    return list(jax.linear_transpose(push, *start)(means))


@method(evaluations=lambda x, output, o: check_count("num_steps", o.get("num_steps", 64)))
def integrated_gradients(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    baseline: PyTree[ArrayLike] = 0.0,
    num_steps: int = 64,
    quadrature: QuadratureRule = "midpoint",
) -> Attribution:
    """Compute integrated gradients (IG).

    Each value is the gradient of the target, averaged along the straight line from a baseline to
    the input, times the difference between input and baseline.

    Cost: `num_steps + 2` evaluations of `fn` and `num_steps` vector-Jacobian products per example.
    Products before the first nonlinearity, such as the input projection of a recurrent layer, are
    not repeated at each step. Deterministic.

    Args:
        baseline: where the path starts: a number or an array that broadcasts to `x`, or a pytree of
            these with the structure of `x`. Integer leaves keep their values.
        num_steps: the number of points on the path.
        quadrature: where the points lie and how they are weighted.

    Returns:
        values of the shape of `x`, signed, in units of the output. `info["delta"]` is the
        convergence delta: their sum minus the difference between the target at `x` and at the
        baseline; 0 for an exact integral.

    Raises:
        TypeError: if no leaf of `x` is floating.
        ValueError: if the target does not fit the output, the baseline does not broadcast to `x`,
            or for fewer than one step or an unknown quadrature.

    Reference:
        Sundararajan et al. 2017, Axiomatic attribution for deep networks, arXiv:1703.01365.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] ** 2 - 3 * x[1]
        >>> ig = ja.integrated_gradients(fn, jnp.array([1.0, 2.0]), num_steps=4)
        >>> print(ig.values, ig.info["delta"])
        [ 1. -6.] 0.0
    """
    start = broadcast_baseline(baseline, x, keep_integers=True)
    score_of = scored(fn, target, args)
    floating, merge = floating_leaves(x, "a gradient")
    starts, _ = floating_leaves(start, "a gradient")
    distances = [leaf - first for leaf, first in zip(floating, starts, strict=True)]

    def score_at(*leaves: Array) -> Scalar:
        return score_of(merge(list(leaves)))[0]

    nodes = Quadrature.of(quadrature, num_steps)
    means = _mean_gradient(score_at, starts, distances, nodes, batch_size)
    products = [d.astype(g.dtype) * g for d, g in zip(distances, means, strict=True)]
    score, output = score_of(x)
    values = merge(products, lambda leaf: jnp.zeros(leaf.shape, score.dtype))
    score_start, _ = score_of(start)
    total = sum(leaf.sum(dtype=score.dtype) for leaf in products)
    return Attribution(values, output, {"delta": total - (score - score_start)})
