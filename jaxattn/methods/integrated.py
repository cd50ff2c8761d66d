"""Methods that integrate gradients along a path from a baseline."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_count
from jaxattn.engine.batch import chunked_sum, chunked_total, wide
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline, floating_leaves, is_floating
from jaxattn.engine.target import scored
from jaxattn.jaxpr.reuse.affine_prefix import AffinePrefix


def _quadrature(rule: str, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in [0, 1] and weights that sum to 1."""
    check_count("num_steps", num_steps)
    if rule == "midpoint":
        return (np.arange(num_steps) + 0.5) / num_steps, np.full(num_steps, 1 / num_steps)
    if rule == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(num_steps)
        return (nodes + 1) / 2, weights / 2
    raise ValueError(f'quadrature must be "midpoint" or "gauss_legendre", got {rule!r}')


def path_integral(
    f: Callable[[Any], Any], num_steps: int, quadrature: str, batch_size: int | None
) -> Any:
    """The integral over alpha from 0 to 1 of a pytree `f(alpha)`.

    Raises:
        ValueError: for fewer than one step or an unknown quadrature.
    """

    def part(node: tuple[Any, Any]) -> Any:
        alpha, weight = node
        return jax.tree.map(lambda value: weight.astype(value.dtype) * value, f(alpha))

    nodes, weights = _quadrature(quadrature, num_steps)
    return chunked_sum(part, (jnp.asarray(nodes), jnp.asarray(weights)), batch_size)


def straight_line(start: Inputs, x: Inputs) -> tuple[Inputs, Callable[[Any], Inputs]]:
    """The distance from `start` to `x`, and the point at each alpha; integers stay where they are.

    Args:
        start: a baseline, in the structure and shapes of `x`.
        x: the input.
    """

    def difference(leaf: Any, first: Any) -> Any:
        return leaf - first if is_floating(leaf) else jnp.zeros_like(leaf)

    distance = jax.tree.map(difference, x, start)

    def point(alpha: Any) -> Inputs:
        def between(first: Any, step: Any) -> Any:
            return first + alpha.astype(step.dtype) * step if is_floating(step) else first

        return jax.tree.map(between, start, distance)

    return distance, point


def _mean_slope(
    score: Callable[..., Any],
    start: list[Any],
    distance: list[Any],
    num_steps: int,
    quadrature: str,
    batch_size: int | None,
) -> list[Any]:
    """The gradient of a score of some arrays, averaged along a straight line.

    What is affine at the front of the function takes the line to a straight line, and its transpose
    takes the mean of the slopes back: neither is computed at each point.
    """
    prefix = AffinePrefix.of(score, distance)  # from the baseline on nothing may vary over devices
    if prefix is None:

        def slope(alpha: Any) -> list[Any]:
            steps = [f + alpha.astype(d.dtype) * d for f, d in zip(start, distance, strict=True)]
            return jax.grad(lambda leaves: score(*leaves))(steps)

        return path_integral(slope, num_steps, quadrature, batch_size)
    first, push = jax.linearize(prefix.affine, *start)
    along = push(*distance)

    def total(nodes: tuple[Any, Any], valid: Any) -> list[Any]:
        alphas, weights = nodes

        def weighted(moved: list[Any]) -> Any:
            def one(alpha: Any, weight: Any) -> Any:
                def at(line: tuple[Any, Any, Any]) -> Any:
                    start, along, moved = line
                    point = start + alpha.astype(start.dtype) * along
                    return (point.astype(moved.dtype) + moved).astype(start.dtype)

                value = prefix.remainder(list(zip(first, along, moved, strict=True)), at)
                return weight.astype(value.dtype) * value

            return jax.vmap(one)(alphas, jnp.where(valid, weights, 0)).sum()

        # One gradient of all points: it is summed before it goes on back.
        return jax.grad(weighted)([jnp.zeros(leaf.shape, wide(leaf.dtype)) for leaf in first])

    nodes, weights = map(jnp.asarray, _quadrature(quadrature, num_steps))
    means = chunked_total(total, (nodes, weights), batch_size)
    means = [mean.astype(leaf.dtype) for mean, leaf in zip(means, first, strict=True)]
    return list(jax.linear_transpose(push, *start)(means))


@method(evaluations=lambda x, output, o: check_count("num_steps", o.get("num_steps", 64)))
def integrated_gradients(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    baseline: Any = 0.0,
    num_steps: int = 64,
    quadrature: Literal["midpoint", "gauss_legendre"] = "midpoint",
) -> Attribution:
    """The gradient, averaged along the straight line from a baseline, times the distance.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: how many evaluations of `fn` are in flight.
        baseline: where the path starts; a number or an array that broadcasts to `x`, or a pytree of
            such. Integer leaves stay what they are in `x`.
        num_steps: points on the path.
        quadrature: where the points lie and what they weigh.

    Returns:
        values of the shape of `x`, in units of the output. `info["delta"]` is their sum less
        the difference of the scores at `x` and at the baseline: 0 for an exact integral.

    Raises:
        TypeError: if `x` holds integers only.
        ValueError: if the target does not fit the output, the baseline does not broadcast, or for
            fewer than one step or an unknown quadrature.

    Reference:
        Sundararajan et al. 2017, Axiomatic attribution for deep networks, arXiv:1703.01365.
    """
    start = broadcast_baseline(baseline, x, keep_integers=True)
    score_of = scored(fn, target, args)
    floating, merge = floating_leaves(x, "a gradient")
    starts, _ = floating_leaves(start, "a gradient")
    distances = [leaf - first for leaf, first in zip(floating, starts, strict=True)]

    def score_at(*leaves: Any) -> Any:
        return score_of(merge(list(leaves)))[0]

    means = _mean_slope(score_at, starts, distances, num_steps, quadrature, batch_size)
    products = [d.astype(g.dtype) * g for d, g in zip(distances, means, strict=True)]
    score, output = score_of(x)
    values = merge(products, lambda leaf: jnp.zeros(leaf.shape, score.dtype))
    score_start, _ = score_of(start)
    total = sum(leaf.sum(dtype=score.dtype) for leaf in products)
    return Attribution(values, output, {"delta": total - (score - score_start)})
