"""Learned masks: the smallest perturbation that destroys the target, found by optimisation."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Scalar, Target, check_count
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline, floating_leaves
from jaxattn.engine.target import Score, scored

#: Shifts of the input along each axis.
Shifts: TypeAlias = Int[Array, " rank"]


def total_variation(mask: Float[Array, "..."], beta: ArrayLike) -> Float[Array, ""]:
    """Compute the sum over all axes of |difference of neighbours|^beta."""
    total = jnp.zeros((), mask.dtype)
    for axis in range(mask.ndim):
        # The square keeps the gradient finite at 0 for beta below 2.
        squares = jnp.square(jnp.diff(mask, axis=axis))
        differs = squares > 0
        total += jnp.where(differs, jnp.where(differs, squares, 1) ** (beta / 2), 0).sum()
    return total


@method(
    draws=True,
    evaluations=lambda x, output, o: check_count("num_steps", o.get("num_steps", 300)) + 2,
    in_flight=lambda x, output, options: 1,
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
) -> Attribution:
    """Learn the smallest smooth mask whose deletion destroys the target (meaningful perturbation).

    Minimises f(m x + (1 - m) x0) + l1 sum |1 - m| + tv TV(m) over a mask m in [0, 1], where x0 is
    the baseline and TV(m) the sum of |difference of neighbours|^tv_beta. The mask keeps a feature
    where it is 1 and deletes it where it is 0. Integer leaves are never deleted.

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

    Returns:
        values 1 - m of the shape of `x`, in [0, 1]. `info["losses"]`, of shape (num_steps,), is the
        objective before each step, `info["score"]` the score of the masked input.

    Raises:
        TypeError: if no leaf of `x` is floating, or `optimizer` is not one of optax's.
        ValueError: if the target does not fit the output, the baseline does not broadcast to `x`,
            an option is out of range, or `key` is missing for a positive `jitter`.

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
    if isinstance(initial, (int, float)) and not 0 <= initial <= 1:
        raise ValueError(f"`initial` must lie in [0, 1], got {initial}.")
    check_count("jitter", jitter, 0)
    if jitter and key is None:
        raise ValueError(f"`key` is missing: jitter={jitter} draws, give key=jax.random.key(0).")
    floating, merge = floating_leaves(x, "a mask")
    replacements, _ = floating_leaves(broadcast_baseline(baseline, x, keep_integers=True), "a mask")
    optimizer = optax.adam(0.1) if optimizer is None else optimizer
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "`optimizer` must be an optax.GradientTransformation, such as optax.adam(0.1), got "
            f"{optimizer!r}."
        )
    mixture = _Mixture(floating, replacements)
    score_of = scored(fn, target, args, score=score)

    def objective(masks: list[Array], shifts: Shifts | None) -> Scalar:
        value, _ = score_of(merge(mixture(masks, shifts)))
        for mask, leaf in zip(masks, floating, strict=True):
            fine = _fine(mask, leaf)
            penalty = l1 * jnp.abs(1 - fine).sum() + tv * total_variation(fine, tv_beta)
            value += penalty.astype(value.dtype)
        return value

    def step(
        state: tuple[list[Array], PyTree], step_key: RandomKey | None
    ) -> tuple[tuple[list[Array], PyTree], Scalar]:
        masks, moments = state
        shifts = None
        if jitter:
            assert step_key is not None  # checked with the options
            rank = max(leaf.ndim for leaf in floating)
            shifts = jax.random.randint(step_key, (rank,), -jitter, jitter + 1)
        loss, slope = jax.value_and_grad(objective)(masks, shifts)
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by its step count
            updates, moments = optimizer.update(slope, moments, masks)
        masks = jax.tree.map(lambda m, u: jnp.clip(m + u, 0, 1), masks, updates)
        return (masks, moments), loss

    masks = [jnp.full(_coarse(leaf.shape, coarseness), initial, leaf.dtype) for leaf in floating]
    keys = None if key is None else jax.random.split(key, num_steps)
    (masks, _), losses = jax.lax.scan(step, (masks, optimizer.init(masks)), keys, length=num_steps)
    deleted = [1 - _fine(mask, leaf) for mask, leaf in zip(masks, floating, strict=True)]
    values = merge(deleted, lambda leaf: jnp.zeros(leaf.shape, losses.dtype))
    final, _ = score_of(merge(mixture(masks)))
    return Attribution(values, fn(x, *args), {"losses": losses, "score": final})


class _Mixture(NamedTuple):
    """The floating leaves of an input, and what deleted features become."""

    leaves: list[Array]
    replacements: list[Array]

    def __call__(self, masks: list[Array], shifts: Shifts | None = None) -> list[Array]:
        """Return the masked leaves, shifted if `shifts` are given."""

        def masked(mask: Array, leaf: Array, replacement: Array) -> Array:
            m = _fine(mask, leaf)
            mixed = m * leaf + (1 - m) * replacement
            axes = [a for a in range(leaf.ndim) if leaf.shape[a] > 1]
            if shifts is None:
                return mixed
            return jnp.roll(mixed, [shifts[a] for a in axes], axes)  # type: ignore[misc]

        return list(map(masked, masks, self.leaves, self.replacements))


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
