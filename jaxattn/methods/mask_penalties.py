"""Penalties of masks: their total variation, and their distance from an area."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxattn._static import is_concrete
from jaxattn.engine.batch import wide

#: Bisections of [0, 1]; float32 has no numbers between just below 1 that are closer.
_BISECTIONS = 24


def total_variation(mask: Float[Array, "..."], beta: ArrayLike) -> Float[Array, ""]:
    """Compute the sum over all axes of |difference of neighbours|^beta."""
    total = jnp.zeros((), mask.dtype)
    for axis in range(mask.ndim):
        # The square keeps the gradient finite at 0 for beta below 2.
        squares = jnp.square(jnp.diff(mask, axis=axis))
        differs = squares > 0
        total += jnp.where(differs, jnp.where(differs, squares, 1) ** (beta / 2), 0).sum()
    return total


def mean_of(leaves: list[Array]) -> Float[Array, ""]:
    """Compute the mean of all leaves together."""
    return jnp.concatenate([leaf.ravel().astype(wide(leaf.dtype)) for leaf in leaves]).mean()


def mean_size(leaves: list[Array]) -> Float[Array, ""]:
    """Compute the mean of the absolute values of all leaves together; its slope at 0 is 0."""
    return mean_of([jnp.sign(leaf) * leaf for leaf in leaves])


def smoothness(masks: list[Array]) -> Float[Array, ""]:
    """Compute the mean of |difference of neighbours| along the first axis of all masks."""
    steps = [jnp.diff(mask, axis=0) for mask in masks if mask.ndim and len(mask) > 1]
    return mean_size(steps) if steps else jnp.zeros((), masks[0].dtype)


def check_area(area: ArrayLike | Sequence[ArrayLike]) -> None:
    """Raise an error for areas that are not between 0 and 1."""
    if any(isinstance(leaf, str) for leaf in jax.tree.leaves(area)):
        raise TypeError(f"`area` must hold numbers between 0 and 1, got {area!r}.")
    if all(map(is_concrete, jax.tree.leaves(area))):
        areas = np.asarray(area, float)
        if not areas.size or not ((areas > 0) & (areas < 1)).all():
            raise ValueError(f"`area` must lie between 0 and 1, both excluded, got {area!r}.")


def prepare_area(x: PyTree, options: dict[str, Any]) -> dict[str, Any]:
    """Check the option `area` before arrays are traced, and return the options."""
    if options.get("area") is not None:
        check_area(options["area"])
    return options


def area_penalty(masks: list[Array], area: ArrayLike) -> Float[Array, ""]:
    """Compute the mean of (sorted(m) - r)^2, where r holds zeros, then a share `area` of ones.

    The largest features are drawn to 1 and the others to 0. The number of ones is rounded, and at
    least 1. Of equal features each is drawn to 1 in proportion to the ones among them.

    Args:
        masks: numbers in [0, 1], of all leaves together.
        area: the share of ones, which may be traced.
    """
    values = jnp.concatenate([mask.ravel() for mask in masks])
    values = values.astype(wide(values.dtype))
    ones = _largest(jax.lax.stop_gradient(values), area)
    return (ones * jnp.square(1 - values) + (1 - ones) * jnp.square(values)).mean()


def _largest(values: Float[Array, " n"], area: ArrayLike) -> Float[Array, " n"]:
    """Return 1 for the largest values, 0 for the others, and a share for equal ones in between.

    To sort takes many times as long as to bisect, and the penalty depends only on the threshold.
    """
    number = values.shape[0]
    share = jnp.asarray(area, values.dtype)
    count = jnp.clip(jnp.round(share * number), 1, number).astype(jnp.int32)

    def halve(_: Array, low_high: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = low_high
        middle = (low + high) / 2
        enough = (values >= middle).sum(dtype=jnp.int32) >= count
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    start = jnp.zeros_like(share), jnp.full_like(share, 2)
    low, high = jax.lax.fori_loop(0, _BISECTIONS + 1, halve, start)
    above, equal = values >= high, (values >= low) & (values < high)
    rest = (count - above.sum(dtype=jnp.int32)).astype(values.dtype)
    shared = rest / jnp.maximum(equal.sum(dtype=values.dtype), 1)
    return jnp.where(above, 1, jnp.where(equal, shared, 0))
