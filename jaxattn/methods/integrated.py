"""Methods that integrate gradients along a path from a baseline."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._batch import chunked_sum
from jaxattn._explain import explainer
from jaxattn._perturb import broadcast_baseline, is_floating
from jaxattn._target import scored
from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_count
from jaxattn.methods.gradients import value_and_gradient


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


@explainer(evaluations=lambda x, output, options: int(options.get("num_steps", 64)))
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
    distance, point = straight_line(start, x)

    def slope(alpha: Any) -> Inputs:
        return value_and_gradient(fn, point(alpha), target, args)[2]

    mean = path_integral(slope, num_steps, quadrature, batch_size)
    values = jax.tree.map(lambda d, g: d.astype(g.dtype) * g, distance, mean)
    score, output = scored(fn, target, args)(x)
    score_start, _ = scored(fn, target, args)(start)
    total = sum(leaf.sum() for leaf in jax.tree.leaves(values))
    return Attribution(values, output, {"delta": total - (score - score_start)})
