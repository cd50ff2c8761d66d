"""Dynamask: masks of a series whose area is given, several areas at once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Scalar, Target, check_count
from jaxattn.engine.batch import chunked_map, wide
from jaxattn.engine.method import method
from jaxattn.engine.perturb import floating_leaves
from jaxattn.methods.mask_penalties import area_penalty, check_area, prepare_area, smoothness
from jaxattn.methods.mask_references import PerAxis, Perturbation, perturbation as perturbation_of
from jaxattn.methods.mask_training import MaskMode, check_mode, check_optimizer, minimised
from jaxattn.methods.output_errors import OutputError, output_error

#: The areas of a mask if none are given.
_AREAS = tuple(round(0.05 * i, 2) for i in range(1, 11))


def _areas(area: ArrayLike | Sequence[ArrayLike]) -> Array:
    check_area(area)
    areas = jnp.ravel(jnp.asarray(area))
    return areas if jnp.issubdtype(areas.dtype, jnp.floating) else areas.astype(float)


def _number(options: dict[str, Any]) -> int:
    return sum(jnp.size(area) for area in jax.tree.leaves(options.get("area", _AREAS)))


def _evaluations(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    steps = check_count("num_steps", options.get("num_steps", 500))
    return _number(options) * (steps + 1) + 2


@method(
    evaluations=_evaluations,
    in_flight=lambda x, output, options: _number(options),
    sizes=("window", "sigma"),
    prepare=prepare_area,
)
def dynamask(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    area: ArrayLike | Sequence[ArrayLike] = _AREAS,
    tolerance: ArrayLike = 0.01,
    mode: MaskMode = "preservation",
    perturbation: Perturbation = "fade_moving_average",
    baseline: PyTree[ArrayLike] = 0.0,
    window: PerAxis = None,
    sigma: PerAxis = 2.0,
    error: OutputError = "squared",
    area_weight: ArrayLike = 0.5,
    area_growth: ArrayLike = 100.0,
    smoothness_weight: ArrayLike = 0.0,
    num_steps: int = 500,
    optimizer: optax.GradientTransformation | None = None,
) -> Attribution:
    """Learn masks of given areas, and keep the smallest that preserves the output (Dynamask).

    For each area a, gradient steps change a mask m in [0, 1], which starts at 0.5, to minimise

        error + weight_i mean (sorted(m) - r_a)^2 + smoothness_weight mean |m_t+1 - m_t|

    where the error is the distance of the output for the perturbed input from the output, and r_a
    holds zeros, then a share a of ones. In step i the weight is
    `area_weight * area_growth ** (i / num_steps)`. The mask is kept that has the smallest area at
    which the error is at most `tolerance` times the error with all features perturbed. In the mode
    `"deletion"` the features with m = 1 are perturbed and the error is subtracted; the mask is
    kept that has the smallest area with at least `1 - tolerance` times that error. If no area
    suffices, the best error decides.

    Cost: `num_steps + 1` evaluations of `fn` and `num_steps` vector-Jacobian products for each
    area, and 2 evaluations, per example. The areas run side by side. Draws nothing.

    Args:
        area: the share of features with m = 1, or several shares. With one, its mask is kept.
        tolerance: the part of the largest error that counts as preserved.
        mode: `"preservation"` or `"deletion"`.
        perturbation: what happens to a feature where m is below 1. `"fade_moving_average"`,
            `"fade_blur"` and `"fade_baseline"` mix it with an average, a blur or the baseline;
            `"gaussian_blur"` blurs it in time by the width sigma (1 - m).
        baseline: a number or an array that broadcasts to `x`, or a pytree like `x` of these; for
            `"fade_baseline"`.
        window: the time steps of the moving average, or its length along each axis; `None` for the
            whole series.
        sigma: the width of a blur, in time steps, or along each axis. It must be a number, not a
            traced array.
        error: `"squared"` for the mean of the squared differences of the outputs;
            `"cross_entropy"` for the cross-entropy of their softmaxes over the last axis, less the
            entropy of the unperturbed one. Both compare the whole output, of one number, several or
            one per time step, or the target where it is given.
        area_weight: the initial weight of the area, in units of the error.
        area_growth: the factor by which this weight grows over all steps.
        smoothness_weight: the weight of changes in time, along the first axis.
        num_steps: the number of gradient steps.
        optimizer: any optax optimiser; `optax.adam(0.02)` by default.

    Returns:
        values m of the shape of `x`, in [0, 1], and 0 for integers. In `info`, `"losses"`, of shape
        (num_steps,), is the objective before each step for the mask that is kept, `"area"` its
        area, `"error"` its error in the end, and `"errors"`, of shape (areas,), that of each area.

    Raises:
        TypeError: if no leaf of `x` is floating, or `optimizer` is not one of optax's.
        ValueError: if an area is outside (0, 1), the target does not fit the output, the baseline,
            window or width does not fit `x`, or an option is unknown or out of range.

    Reference:
        Crabbe and van der Schaar 2021, Explaining time series predictions with dynamic masks,
        arXiv:2106.05303.

    Examples:
        Only two of eight features matter.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> x = jnp.array([[1.0, 2.0], [-1.0, 1.0], [2.0, -2.0], [-2.0, -1.0]])
        >>> mask = ja.dynamask(lambda x: x[1:3, 0], x, area=(0.25, 0.5))
        >>> print(mask.values.round(1).T, mask.info["area"])
        [[0. 1. 1. 0.]
         [0. 0. 0. 0.]] 0.25
    """
    check_count("num_steps", num_steps)
    check_mode(mode)
    areas = _areas(area)
    optimizer = optax.adam(0.02) if optimizer is None else optimizer
    check_optimizer(optimizer)
    floating, merge = floating_leaves(x, "a mask")
    perturbed = perturbation_of(perturbation, x, baseline, window, sigma)
    output = fn(x, *args)
    error_of = output_error(fn, target, args, error, output)
    preserves = mode == "preservation"

    def error_with(masks: list[Array]) -> Scalar:
        return error_of(merge(perturbed(masks if preserves else [1 - mask for mask in masks])))

    def fitted(area: Scalar) -> _Fitted:
        def objective(masks: list[Array], progress: Scalar) -> Scalar:
            distance = error_with(masks)
            weight = area_weight * area_growth**progress
            penalty = weight * area_penalty(masks, area) + smoothness_weight * smoothness(masks)
            return (distance if preserves else -distance) + penalty.astype(distance.dtype)

        start = [jnp.full(leaf.shape, 0.5, wide(leaf.dtype)) for leaf in floating]
        progress = jnp.arange(num_steps, dtype=start[0].dtype) / num_steps
        masks, losses = minimised(objective, start, optimizer, num_steps, each_step=progress)
        return _Fitted(masks, losses, error_with(masks))

    each = chunked_map(fitted, areas, batch_size)
    most = error_of(merge(perturbed([jnp.zeros_like(leaf) for leaf in floating])))
    kept = _extremal(each.error, areas, most, tolerance, preserves)
    fit = jax.tree.map(lambda leaf: leaf[kept], each)
    masks = [mask.astype(leaf.dtype) for mask, leaf in zip(fit.masks, floating, strict=True)]
    values = merge(masks, lambda leaf: jnp.zeros(leaf.shape, masks[0].dtype))
    info = {"losses": fit.losses, "area": areas[kept], "error": fit.error, "errors": each.error}
    return Attribution(values, output, info)


class _Fitted(NamedTuple):
    """The masks of one area, their losses and their error in the end."""

    masks: list[Array]
    losses: Float[Array, " steps"]
    error: Scalar


def _extremal(
    errors: Float[Array, " areas"],
    areas: Float[Array, " areas"],
    most: Scalar,
    tolerance: ArrayLike,
    preserves: bool,
) -> Array:
    """Return the index of the smallest area whose error suffices, else that of the best error."""
    if preserves:
        suffices, worse = errors <= tolerance * most, errors
    else:
        suffices, worse = errors >= (1 - tolerance) * most, -errors
    return jnp.where(suffices.any(), jnp.where(suffices, areas, 2).argmin(), worse.argmin())
