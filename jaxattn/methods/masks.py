"""Learned masks: the smallest perturbation that destroys the target, found by optimisation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Scalar, Target, check_count
from jaxattn.engine.method import method
from jaxattn.engine.perturb import floating_leaves
from jaxattn.engine.target import Score, scored
from jaxattn.methods.mask_penalties import (
    area_penalty,
    check_area,
    prepare_area,
    total_variation,
)
from jaxattn.methods.mask_references import PerAxis, Perturbation, perturbation as perturbation_of
from jaxattn.methods.mask_training import MaskMode, check_mode, check_optimizer, minimised


@method(
    draws=True,
    numbers={"initial": "in [0, 1]"},
    evaluations=lambda x, output, o: check_count("num_steps", o.get("num_steps", 300)) + 2,
    in_flight=lambda x, output, options: 1,
    sizes=("window", "sigma"),
    prepare=prepare_area,
)
def learned_mask(
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
    l1: ArrayLike = 0.05,
    tv: ArrayLike = 0.01,
    tv_beta: ArrayLike = 3.0,
    num_steps: int = 300,
    optimizer: optax.GradientTransformation | None = None,
    initial: ArrayLike = 0.5,
    coarseness: int | Sequence[int] = 1,
    jitter: int | np.integer = 0,
    score: Score = "logit",
    mode: MaskMode = "deletion",
    perturbation: Perturbation = "fade_baseline",
    window: PerAxis = None,
    sigma: PerAxis = 2.0,
    area: ArrayLike | None = None,
    area_weight: ArrayLike = 100.0,
) -> Attribution:
    """Learn the smallest smooth mask whose deletion destroys the target (meaningful perturbation).

    Minimises f(m x + (1 - m) x0) + l1 sum |1 - m| + tv TV(m) over a mask m in [0, 1], where x0 is
    the baseline and TV(m) the sum of |difference of neighbours|^tv_beta. The mask keeps a feature
    where it is 1 and deletes it where it is 0. Integer leaves are never deleted. In the mode
    `"preservation"` it is the smallest mask that preserves the target:
    -f(m x + (1 - m) x0) + l1 sum |m| + tv TV(m) is minimised. With an `area`,
    `area_weight * mean (sorted(v) - r)^2` replaces the term of `l1`, where v are the values that
    are returned and r holds zeros, then a share `area` of ones.

    Cost: `num_steps + 2` evaluations of `fn` and `num_steps` vector-Jacobian products per example,
    one after the other. Draws shifts of the input if `jitter` is positive: `key` is required then.

    Args:
        baseline: x0, the values of deleted features: a number or an array that broadcasts to `x`,
            or a pytree of these with the structure of `x`. For photographs, a blurred `x`.
        l1: the cost of a deleted feature, in units of the score. The defaults of `l1` and `tv` were
            chosen by the deletion scores of 28 x 28 images of digits.
        tv: the weight of the total variation.
        tv_beta: the exponent of the total variation.
        num_steps: the number of gradient steps.
        optimizer: any optax optimiser; `optax.adam(0.1)` by default.
        initial: the initial value of the mask. At 1, an unperturbed input, the gradient of a
            saturated network can be close to zero, and the mask may not move.
        coarseness: how many features share one entry of the mask along each axis; the mask is then
            interpolated linearly. Axes that are not named have 1. 8 suits photographs.
        jitter: the largest random shift of the input, in features along each axis longer than one.
        score: what of the output f is: `"logit"` for the output itself; `"probability"` and
            `"log_probability"` for its softmax over the last axis, which need much smaller `l1` and
            `tv` where the network is certain.
        mode: `"deletion"` or `"preservation"`.
        perturbation: `"fade_baseline"` for the baseline as x0, `"fade_moving_average"` or
            `"fade_blur"` for a moving average or a Gaussian blur of `x`; `"gaussian_blur"` blurs
            each feature along the first axis by the width sigma (1 - m) instead.
        window: the length of the moving average along the first axis, or along each axis, such as
            `(9, 9)` for an image; `None` for the mean of the whole first axis.
        sigma: the width of a blur in features, along the first axis or each; it must be a number,
            not a traced array.
        area: the share of features that are deleted, or preserved, instead of a cost for each.
        area_weight: the weight of the area, in units of the score.

    Returns:
        values of the shape of `x`, in [0, 1]: the deleted part 1 - m, for `"preservation"` the
        preserved part m; 0 for integers. `info["losses"]`, of shape (num_steps,), is the objective
        before each step, `info["score"]` the score of the masked input.

    Raises:
        TypeError: if no leaf of `x` is floating, or `optimizer` is not one of optax's.
        ValueError: if the target does not fit the output, the baseline does not broadcast to `x`,
            the area is not between 0 and 1, an option is unknown or out of range, or `key` is
            missing for a positive `jitter`.

    Reference:
        Fong and Vedaldi 2017, Interpretable explanations of black boxes by meaningful perturbation,
        arXiv:1704.03296.

    Examples:
        The first feature raises the target and is deleted; the second lowers it and is kept.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] - x[1]
        >>> mask = ja.learned_mask(fn, jnp.array([1.0, 1.0]), l1=0.5, tv=0.0, num_steps=50)
        >>> print(mask.values, mask.info["score"])
        [1. 0.] -1.0
    """
    check_count("num_steps", num_steps)
    check_count("jitter", jitter, 0)
    if jitter and key is None:
        raise ValueError(f"`key` is missing: jitter={jitter} draws, give key=jax.random.key(0).")
    check_mode(mode)
    if area is not None:
        check_area(area)
        if np.ndim(area):
            raise ValueError(f"`area` must be one number, got {area!r}.")
    optimizer = optax.adam(0.1) if optimizer is None else optimizer
    check_optimizer(optimizer)
    floating, merge = floating_leaves(x, "a mask")
    perturbed = perturbation_of(perturbation, x, baseline, window, sigma)
    score_of = scored(fn, target, args, score=score)
    deletes = mode == "deletion"

    def fine(masks: list[Array]) -> list[Array]:
        return [_fine(mask, leaf) for mask, leaf in zip(masks, floating, strict=True)]

    def penalty(masks: list[Array]) -> Scalar:
        selected = [1 - mask for mask in masks] if deletes else masks
        total: Any = sum(tv * total_variation(mask, tv_beta) for mask in masks)
        if area is not None:
            distance = area_weight * area_penalty(selected, area)
            return total.astype(distance.dtype) + distance
        return total + sum(l1 * jnp.abs(values).sum() for values in selected)

    def objective(masks: list[Array], step_key: RandomKey | None) -> Scalar:
        masks = fine(masks)
        leaves = perturbed(masks)
        if jitter:
            assert step_key is not None  # checked with the options
            leaves = _shifted(leaves, step_key, jitter)
        value, _ = score_of(merge(leaves))
        return (value if deletes else -value) + penalty(masks).astype(value.dtype)

    start = [jnp.full(_coarse(leaf.shape, coarseness), initial, leaf.dtype) for leaf in floating]
    keys = None if key is None else jax.random.split(key, num_steps)
    coarse, losses = minimised(objective, start, optimizer, num_steps, each_step=keys)
    masks = fine(coarse)
    selected = [1 - mask for mask in masks] if deletes else masks
    values = merge(selected, lambda leaf: jnp.zeros(leaf.shape, losses.dtype))
    final, _ = score_of(merge(perturbed(masks)))
    return Attribution(values, fn(x, *args), {"losses": losses, "score": final})


def _shifted(leaves: list[Array], key: RandomKey, jitter: int | np.integer) -> list[Array]:
    """Return the leaves shifted by random numbers of features along each axis longer than one."""
    rank = max(leaf.ndim for leaf in leaves)
    shifts = jax.random.randint(key, (rank,), -jitter, jitter + 1)

    def shifted(leaf: Array) -> Array:
        axes = [a for a in range(leaf.ndim) if leaf.shape[a] > 1]
        return jnp.roll(leaf, [shifts[a] for a in axes], axes)  # type: ignore[misc]

    return list(map(shifted, leaves))


def _fine(mask: Array, leaf: Array) -> Array:
    """Interpolate a coarse mask to the shape of its leaf."""
    return jax.image.resize(mask, leaf.shape, "linear")


def _coarse(shape: tuple[int, ...], coarseness: int | Sequence[int]) -> tuple[int, ...]:
    """Return the shape of the coarse mask of a leaf."""
    factors = tuple(coarseness) if isinstance(coarseness, (tuple, list)) else (coarseness,)
    for factor in factors:
        check_count("coarseness", factor)
    if len(factors) > len(shape):
        raise ValueError(
            f"`coarseness` must name at most the {len(shape)} axes of x's shape {shape}, got "
            f"{factors}."
        )
    padded = factors + (1,) * (len(shape) - len(factors))
    return tuple(math.ceil(size / factor) for size, factor in zip(shape, padded, strict=True))
