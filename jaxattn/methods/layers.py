"""Methods that follow a layer along a path of the input: conductance and internal influence."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jaxattn._types import (
    Attribution,
    Inputs,
    RandomKey,
    Scalar,
    Target,
)
from jaxattn.engine.convergence import TOLERANCE, convergence
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline, floating_leaves
from jaxattn.engine.target import scored
from jaxattn.jaxpr.capture import split_at
from jaxattn.methods.gradients import value_and_gradient
from jaxattn.methods.quadrature import (
    MORE_STEPS,
    Quadrature,
    QuadratureRule,
    evaluations,
    integral,
    path_integral,
    straight_line,
)


@method(
    evaluations=evaluations,
    needs_at=True,
    keeps_input=True,
    remedy=f"{MORE_STEPS} It also misses what does not pass through the layer.",
)
def layer_conductance(
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
    num_steps: int | Literal["auto"] = 64,
    quadrature: QuadratureRule = "midpoint",
    tolerance: ArrayLike = TOLERANCE,
) -> Attribution:
    """Compute layer conductance: integrated gradients of the input that flow through each unit.

    With x(a) on the straight line from the baseline to the input and y the layer's output, unit j
    gets the integral of dF/dy_j dy_j/da over a. `at` is required: it names the layer's output.

    Cost: `num_steps + 2` evaluations of `fn` and, for each step, one Jacobian-vector product up to
    the layer and one vector-Jacobian product behind it. Deterministic.

    Args:
        baseline: where the path starts: a number or an array that broadcasts to `x`, or a pytree of
            these with the structure of `x`. Integer leaves keep their values.
        num_steps: the number of points on the path. With `"auto"` it grows from 32 until
            `info["relative_delta"]` is at most `tolerance`, for each example: threefold up to 2592
            points for `"midpoint"`, which reuses earlier points, and twofold up to 1024 for
            `"gauss_legendre"`. The result equals that of the final number. Such a call has no
            reverse-mode derivative.
        quadrature: where the points lie and how they are weighted.
        tolerance: the largest relative delta for `num_steps="auto"`.

    Returns:
        values of the shape of the intermediate, signed, in units of the output. `info["delta"]` is
        the convergence delta: their sum minus the difference between the target at `x` and at the
        baseline. It is 0 for an exact integral if the target depends on `x` only through the
        intermediate. `info["relative_delta"]` is its magnitude relative to that difference; above
        0.01 a `jaxattn.ConvergenceWarning` is shown, outside of `jit`. `info["num_steps"]` is the
        number of points.

    Raises:
        TypeError: if no leaf of `x` is floating, as for token ids, which have no path between them
            (`integrated_gradients` with the same `at` has one); if no leaf of the intermediate is,
            or a function with a `jax.custom_vjp` lies before it.
        ValueError: if `at` is missing, the target does not fit the output, the baseline does not
            broadcast to `x`, or for fewer than one step or an unknown quadrature.

    Reference:
        Dhamdhere et al. 2018, How important is a neuron?, arXiv:1805.12233.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     h = ja.tag(jnp.stack([x[0] + x[1], x[1]]), "layer")
        ...     return 2 * h[0] - h[1]
        >>> x = jnp.array([1.0, 2.0])
        >>> print(ja.layer_conductance(fn, x, at="layer", num_steps=4).values)
        [ 6. -2.]
    """
    name = _checked_name("layer_conductance", at)
    point, start = _path(x, baseline, name)

    def flow(alpha: Scalar) -> PyTree:
        def layer(alpha: Scalar) -> PyTree:
            return split_at(fn, (point(alpha), *args), name)[0]

        y, speed = jax.jvp(layer, (alpha,), (jnp.ones_like(alpha),))
        _, rest = split_at(fn, (point(alpha), *args), name)
        slope = value_and_gradient(rest, y, target, ()).gradient
        return jax.tree.map(lambda g, s: g * s.astype(g.dtype), slope, speed)

    score, output = scored(fn, target, args)(x)
    score_start, _ = scored(fn, target, args)(start)

    def converged(values: PyTree) -> dict[str, Array]:
        total = sum(leaf.sum() for leaf in jax.tree.leaves(values))
        return convergence(total, score, score_start)

    def integrate(nodes: Quadrature) -> PyTree:
        return path_integral(flow, nodes, batch_size)

    values, steps = integral(integrate, converged, quadrature, num_steps, tolerance)
    return Attribution(values, output, {**converged(values), "num_steps": steps})


@method(evaluations=evaluations, needs_at=True, keeps_input=True, for_logits=True)
def internal_influence(
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
    """Compute internal influence: the mean gradient with respect to a layer along a path of inputs.

    With x(a) on the straight line from the baseline to the input and y the layer's output, unit j
    gets the integral of dF/dy_j at y(x(a)) over a. It is not multiplied by a difference, and
    does not sum to one. `at` is required: it names the layer's output.

    Cost: `num_steps + 1` evaluations of `fn` and, for each step, one vector-Jacobian product behind
    the layer. Deterministic.

    Args:
        baseline: where the path starts: a number or an array that broadcasts to `x`, or a pytree of
            these with the structure of `x`. Integer leaves keep their values.
        num_steps: the number of points on the path.
        quadrature: where the points lie and how they are weighted.

    Returns:
        values of the shape of the intermediate, signed, in units of the output per unit of the
        intermediate.

    Raises:
        TypeError: if no leaf of `x`, or none of the intermediate, is floating.
        ValueError: if `at` is missing, the target does not fit the output, the baseline does not
            broadcast to `x`, or for fewer than one step or an unknown quadrature.

    Reference:
        Leino et al. 2018, Influence-directed explanations for deep convolutional networks,
        arXiv:1802.03788.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     h = ja.tag(3 * x, "layer")
        ...     return h[0] ** 2 - h[1]
        >>> print(ja.internal_influence(fn, jnp.array([1.0, 2.0]), at="layer").values)
        [ 3. -1.]
    """
    name = _checked_name("internal_influence", at)
    point, _ = _path(x, baseline, name)

    def slope(alpha: Scalar) -> PyTree:
        y, rest = split_at(fn, (point(alpha), *args), name)
        return value_and_gradient(rest, y, target, ()).gradient

    values = path_integral(slope, Quadrature.of(quadrature, num_steps), batch_size)
    return Attribution(values, fn(x, *args))


def _checked_name(method: str, at: str | None) -> str:
    if at is None:
        raise ValueError(f"`at` is missing: {method} needs the name of an intermediate.")
    return at


def _path(
    x: Inputs, baseline: PyTree[ArrayLike], name: str
) -> tuple[Callable[[Scalar], Inputs], Inputs]:
    """Return the straight line to an input, and where it starts."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(x)]
    if all(jnp.issubdtype(dtype, jnp.integer) for dtype in dtypes):
        raise TypeError(
            "`x` must hold floating-point numbers for a path from the baseline, got "
            f"{', '.join(map(str, dtypes))}: for token ids use jaxattn.integrated_gradients with "
            f"at={name!r}, whose path lies in the space of the intermediate."
        )
    floating_leaves(x, "a path from the baseline")
    start = broadcast_baseline(baseline, x, keep_integers=True)
    return straight_line(start, x), start
