"""Methods that look at a named intermediate and at its place between input and output."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_count
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline, floating_leaves
from jaxattn.engine.target import scored
from jaxattn.jaxpr.capture import split_at
from jaxattn.methods.gradients import value_and_gradient
from jaxattn.methods.integrated import path_integral, straight_line


@method(needs_at=True, per_example=())
def grad_cam(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    channel_axis: int = -1,
    relu: bool = True,
    shape: int | Sequence[int] | None = None,
) -> Attribution:
    """Where the channels of a layer are active that raise the score.

    Each channel is weighted by the mean of the score's gradient over all its places; the map is the
    weighted sum of the channels, of which the positive part is shown.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained.
        at: the name of the layer's output, with a channel axis and at least one other, such as
            (H, W, C) or (T, C); see `jaxattn.tag`. It must be given.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: not used: one evaluation is needed.
        channel_axis: which axis of the intermediate holds the channels.
        relu: whether to show only what raises the score; otherwise the map is signed.
        shape: what the map is resized to, linearly, such as (H, W) of the image. An axis of length
            1 in front, as in a model that takes batches, is left out then.

    Returns:
        values of the shape of the intermediate without its channels, or of `shape`.

    Raises:
        TypeError: if the intermediate holds integers, or `shape` anything else.
        ValueError: if the target does not fit the output, the intermediate has no axis beside its
            channels, or `shape` does not have as many axes.

    Reference:
        Selvaraju et al. 2017, Grad-CAM: visual explanations from deep networks via gradient-based
        localization, arXiv:1610.02391.
    """
    (layer,) = jax.tree.leaves(x)
    if layer.ndim < 2:
        raise ValueError(
            f"at must name an intermediate with channels and another axis, got shape {layer.shape}"
        )
    if channel_axis not in range(-layer.ndim, layer.ndim):
        raise ValueError(f"channel_axis {channel_axis} is no axis of at's shape {layer.shape}")
    _, output, slope = value_and_gradient(fn, layer, target, args)
    places = tuple(axis for axis in range(layer.ndim) if axis != channel_axis % layer.ndim)
    values = (layer * slope.mean(places, keepdims=True)).sum(channel_axis)
    if relu:
        values = jax.nn.relu(values)
    if shape is not None:
        sizes = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
        for size in sizes:
            check_count("shape", size)
        kept = values.shape[values.ndim - len(sizes) :]
        if len(kept) != len(sizes) or math.prod(kept) != values.size:
            raise ValueError(f"shape {sizes} does not fit a map of shape {values.shape}")
        values = jax.image.resize(values.reshape(kept), sizes, "linear")
    return Attribution(values, output)


@method(
    evaluations=lambda x, output, o: check_count("num_steps", o.get("num_steps", 64)),
    needs_at=True,
    keeps_input=True,
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
    baseline: Any = 0.0,
    num_steps: int = 64,
    quadrature: Literal["midpoint", "gauss_legendre"] = "midpoint",
) -> Attribution:
    """How much of the score's rise from a baseline to the input flows through each unit of a layer.

    With x(a) on the straight line from the baseline to the input and y the layer, unit j gets the
    integral of dF/dy_j dy_j/da over a: integrated gradients along the path that the layer takes.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained.
        at: the name of the layer's output; see `jaxattn.tag`. It must be given.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: how many evaluations of `fn` are in flight.
        baseline: where the path starts; a number or an array that broadcasts to `x`, or a pytree of
            such. Integer leaves stay what they are in `x`.
        num_steps: points on the path.
        quadrature: where the points lie and what they weigh.

    Returns:
        values of the shape of the intermediate, in units of the output. `info["delta"]` is their
        sum less the difference of the scores at `x` and at the baseline: 0 for an exact integral if
        all that reaches the output goes through the intermediate.

    Raises:
        TypeError: if `x` or the intermediate holds integers only, or a function with a
            `jax.custom_vjp` lies before the intermediate.
        ValueError: if the target does not fit the output, the baseline does not broadcast, or for
            fewer than one step or an unknown quadrature.

    Reference:
        Dhamdhere et al. 2018, How important is a neuron?, arXiv:1805.12233.
    """
    if at is None:
        raise ValueError("at is missing: layer_conductance wants the name of an intermediate")
    name = at
    floating_leaves(x, "a path from the baseline")
    start = broadcast_baseline(baseline, x, keep_integers=True)
    _, point = straight_line(start, x)

    def flow(alpha: Any) -> Any:
        def layer(alpha: Any) -> Any:
            return split_at(fn, (point(alpha), *args), name)[0]

        y, speed = jax.jvp(layer, (alpha,), (jnp.ones_like(alpha),))
        _, rest = split_at(fn, (point(alpha), *args), name)
        _, _, slope = value_and_gradient(rest, y, target, ())
        return jax.tree.map(lambda g, s: g * s.astype(g.dtype), slope, speed)

    values = path_integral(flow, num_steps, quadrature, batch_size)
    score, output = scored(fn, target, args)(x)
    score_start, _ = scored(fn, target, args)(start)
    total = sum(leaf.sum() for leaf in jax.tree.leaves(values))
    return Attribution(values, output, {"delta": total - (score - score_start)})
