"""Methods that explain the output of a layer: Grad-CAM and layer conductance."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jaxattn._types import (
    Attribution,
    Inputs,
    RandomKey,
    Scalar,
    Target,
    check_bool,
    check_count,
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


@method(needs_at=True, per_example=())
def grad_cam(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    channel_axis: int | np.integer = -1,
    relu: bool = True,
    shape: int | Sequence[int] | None = None,
) -> Attribution:
    """Compute Grad-CAM (gradient-weighted class activation mapping) at a layer.

    Each channel of the layer's output is weighted by the mean of its gradient over all positions.
    The map is the ReLU of the weighted sum of the channels. `at` is required: it names an
    intermediate with a channel axis and at least one other, such as (H, W, C) or (T, C).

    Cost: one evaluation of `fn` and one vector-Jacobian product per example. Deterministic.

    Args:
        channel_axis: the axis of the intermediate that holds the channels.
        relu: whether the ReLU is applied; otherwise the map is signed.
        shape: the shape to which the map is resized by linear interpolation, such as (H, W) of the
            image. Leading axes of length 1, as in a model that takes batches, are dropped then.

    Returns:
        values of the shape of the intermediate without its channel axis, or of `shape`, in units of
        the output.

    Raises:
        TypeError: if the intermediate holds integers, or `shape` does not hold ints.
        ValueError: if the target does not fit the output, the intermediate has no axis besides its
            channels, or `shape` does not have as many axes as the map.

    Reference:
        Selvaraju et al. 2017, Grad-CAM: visual explanations from deep networks via gradient-based
        localization, arXiv:1610.02391.

    Examples:
        A layer with two positions and two channels, of which the second lowers the target.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     h = ja.tag(x ** 2, "layer")
        ...     return (h[:, 0] - h[:, 1]).sum()
        >>> x = jnp.array([[2.0, 1.0], [0.0, 3.0]])
        >>> print(ja.grad_cam(fn, x, at="layer").values)
        [3. 0.]
        >>> print(ja.grad_cam(fn, x, at="layer", relu=False).values)
        [ 3. -9.]
    """
    check_bool("relu", relu)
    (layer,) = jax.tree.leaves(x)
    if layer.ndim < 2:
        raise ValueError(
            "`at` must name an intermediate with channels and another axis, got shape "
            f"{layer.shape}."
        )
    if channel_axis not in range(-layer.ndim, layer.ndim):
        raise ValueError(
            f"`channel_axis` must be an axis of the intermediate of shape {layer.shape}, got "
            f"{channel_axis}."
        )
    result = value_and_gradient(fn, layer, target, args)
    positions = tuple(axis for axis in range(layer.ndim) if axis != channel_axis % layer.ndim)
    weights = result.gradient.mean(positions, keepdims=True)
    values = (layer * weights).sum(channel_axis)
    if relu:
        values = jax.nn.relu(values)
    return Attribution(values if shape is None else _resized(values, shape), result.output)


def _resized(values: Array, shape: int | Sequence[int]) -> Array:
    """Resize a map by linear interpolation, without its leading axes of length 1."""
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    for size in sizes:
        check_count("shape", size)
    kept = values.shape[values.ndim - len(sizes) :]
    if len(kept) != len(sizes) or math.prod(kept) != values.size:
        raise ValueError(
            f"`shape` must have as many axes as the map of shape {values.shape}, got {sizes}."
        )
    return jax.image.resize(values.reshape(kept), sizes, "linear")


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
    if at is None:
        raise ValueError("`at` is missing: layer_conductance needs the name of an intermediate.")
    name = at
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(x)]
    if all(jnp.issubdtype(dtype, jnp.integer) for dtype in dtypes):
        raise TypeError(
            "`x` must hold floating-point numbers for a path from the baseline, got "
            f"{', '.join(map(str, dtypes))}: for token ids use jaxattn.integrated_gradients with "
            f"at={name!r}, whose path lies in the space of the intermediate."
        )
    floating_leaves(x, "a path from the baseline")
    start = broadcast_baseline(baseline, x, keep_integers=True)
    point = straight_line(start, x)

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
