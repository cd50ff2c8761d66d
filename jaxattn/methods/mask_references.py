"""Perturbations by a mask: features fade to a baseline or an average, or are blurred."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxattn._types import Inputs, check_count
from jaxattn.engine.perturb import broadcast_baseline, floating_leaves

#: How a feature is perturbed where its mask is below 1.
Perturbation: TypeAlias = Literal[
    "fade_baseline", "fade_moving_average", "fade_blur", "gaussian_blur"
]
#: A number for the first axis, or one for each axis that is named; `None` for the whole first axis.
PerAxis: TypeAlias = float | Sequence[float] | None
#: Maps masks, one for each floating-point leaf of the input, to perturbed leaves.
Perturb: TypeAlias = Callable[[list[Array]], list[Array]]

#: Gaussian weights are cut off at this many standard deviations, where they are 3e-4 of the middle.
_REACH = 4


def perturbation(
    name: Perturbation, x: Inputs, baseline: PyTree[ArrayLike], window: PerAxis, sigma: PerAxis
) -> Perturb:
    """Return the function from masks in [0, 1] to the perturbed floating-point leaves of `x`.

    Args:
        name: `"fade_baseline"` for m x + (1 - m) x0 with the baseline x0, `"fade_moving_average"`
            and `"fade_blur"` for a moving average or a blurred x as x0, and `"gaussian_blur"` for a
            Gaussian blur of width sigma (1 - m) at each feature, along the first axis.
        x: the input.
        baseline: a number, an array that broadcasts to `x`, or a pytree like `x` of these.
        window: the length of the moving average along each axis, in features.
        sigma: the width of the blur along each axis, in features.

    Raises:
        ValueError: for an unknown name, or a window or a width that does not fit `x`.
    """
    if name not in get_args(Perturbation):
        choices = ", ".join(f'"{choice}"' for choice in get_args(Perturbation))
        raise ValueError(f"`perturbation` must be one of {choices}, got {name!r}.")
    leaves, _ = floating_leaves(x, "a mask")
    if name == "gaussian_blur":
        blurs = [_local_blur(leaf, sigma) for leaf in leaves]
        return lambda masks: [blur(m) for blur, m in zip(blurs, masks, strict=True)]
    if name == "fade_baseline":
        start = broadcast_baseline(baseline, x, keep_integers=True)
        references, _ = floating_leaves(start, "a mask")
    elif name == "fade_moving_average":
        references = [moving_average(leaf, window) for leaf in leaves]
    else:
        references = [gaussian_blur(leaf, sigma) for leaf in leaves]

    def faded(masks: list[Array]) -> list[Array]:
        return [
            fade(mask, leaf, reference)
            for mask, leaf, reference in zip(masks, leaves, references, strict=True)
        ]

    return faded


def fade(mask: Array, leaf: Array, reference: Array) -> Array:
    """Return the leaf where the mask is 1, and the reference where it is 0, in the leaf's dtype."""
    mask = mask.astype(leaf.dtype)
    return mask * leaf + (1 - mask) * reference


def moving_average(leaf: Float[Array, "..."], window: PerAxis) -> Float[Array, "..."]:
    """Compute the mean over a window around each feature; at the ends, over the part inside."""
    if window is None:
        whole = leaf.mean(0, keepdims=True) if leaf.ndim else leaf
        return jnp.broadcast_to(whole, leaf.shape)
    sizes = tuple(
        min(check_count("window", size), 2 * length - 1)
        for size, length in zip(_per_axis("window", window, leaf, 1), leaf.shape, strict=True)
    )
    padding = [((size - 1) // 2, size // 2) for size in sizes]

    def total(values: Array) -> Array:
        zero = np.zeros((), values.dtype)
        ones = (1,) * values.ndim
        return jax.lax.reduce_window(values, zero, jax.lax.add, sizes, ones, padding)

    return total(leaf) / total(jnp.ones_like(leaf))


def gaussian_blur(leaf: Float[Array, "..."], sigma: PerAxis) -> Float[Array, "..."]:
    """Compute the Gaussian blur of a width along each axis; at the ends, of the part inside."""
    for axis, width in enumerate(_widths(sigma, leaf)):
        if width:
            moved = jnp.moveaxis(leaf, axis, 0)
            leaf = jnp.moveaxis(_local_blur(moved, width)(jnp.zeros_like(moved)), 0, axis)
    return leaf


def _local_blur(leaf: Float[Array, "..."], sigma: PerAxis) -> Callable[[Array], Array]:
    """Return the function from a mask m to the blur of width sigma (1 - m) along the first axis."""
    widths = _widths(sigma, leaf)
    if any(widths[1:]):
        raise ValueError(
            f'`sigma` must be one number for the perturbation "gaussian_blur", which blurs along '
            f"the first axis, got {sigma!r}."
        )
    if not leaf.ndim:
        return lambda mask: leaf
    length, width = leaf.shape[0], widths[0]
    reach = min(math.ceil(_REACH * width), length - 1)
    offsets = np.arange(-reach, reach + 1)
    places = np.arange(length)[:, None] + offsets
    column = (length, len(offsets)) + (1,) * (leaf.ndim - 1)
    inside = jnp.asarray((places >= 0) & (places < length), leaf.dtype).reshape(column)
    neighbours = leaf[np.clip(places, 0, length - 1)]
    squares = jnp.asarray(-(offsets**2) / 2, leaf.dtype).reshape(column[1:])

    def blurred(mask: Array) -> Array:
        # The last term keeps the gradient finite at width 0, where all weight is in the middle.
        variance = jnp.square(width * (1 - mask.astype(leaf.dtype))) + jnp.asarray(1e-3, leaf.dtype)
        weights = inside * jnp.exp(squares[None] / variance[:, None])
        return (weights * neighbours).sum(1) / weights.sum(1)

    return blurred


def _widths(sigma: PerAxis, leaf: Array) -> tuple[float, ...]:
    """Return the width along each axis of a leaf."""
    widths = _per_axis("sigma", sigma, leaf, 0)
    for width in widths:
        if isinstance(width, bool) or not isinstance(width, int | float | np.number):
            raise TypeError(f"`sigma` must hold numbers, got {sigma!r}.")
        if not 0 <= width < math.inf or sigma == 0:
            raise ValueError(f"`sigma` must be positive, got {sigma!r}.")
    return tuple(map(float, widths))


def _per_axis(name: str, value: PerAxis, leaf: Array, rest: float) -> tuple[Any, ...]:
    """Return the number for each axis of a leaf; axes that are not named have `rest`."""
    named = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not leaf.ndim:
        return ()
    if len(named) > leaf.ndim:
        raise ValueError(
            f"`{name}` must have at most as many axes as x, of shape {leaf.shape}, got {value!r}."
        )
    return (*named, *[rest] * (leaf.ndim - len(named)))
