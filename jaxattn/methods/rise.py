"""RISE: random smooth masks, weighted by the score of the masked input."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_count
from jaxattn.engine.batch import chunked_sum, wide
from jaxattn.engine.method import method
from jaxattn.engine.options import as_tuples
from jaxattn.engine.perturb import broadcast_baseline, floating_leaves, is_floating, leaves_like
from jaxattn.engine.target import scored

#: The number of mask entries of one leaf along the first axis, or along each of the first axes.
Grid: TypeAlias = int | np.integer | np.ndarray | Sequence[int | np.integer]


@method(
    evaluations=lambda x, output, o: check_count("num_samples", o.get("num_samples", 512)) + 1,
    sizes=("grid",),
    numbers={"probability": "in (0, 1)"},
    backward=False,
    draws=True,
)
def rise(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    num_samples: int = 512,
    grid: PyTree[Grid] = 7,
    probability: ArrayLike = 0.5,
    baseline: PyTree[ArrayLike] = 0.0,
) -> Attribution:
    """Compute RISE: the mean score of the input under random masks that keep a feature.

    Each mask is a coarse grid of zeros and ones that is interpolated linearly to the size of the
    input and shifted at random. A feature gets the mean of f(m x + (1 - m) baseline) m, divided by
    the expectation of m.

    Cost: `num_samples + 1` evaluations of `fn`. Draws masks: `key` is required.

    Args:
        num_samples: the number of masks.
        grid: the number of entries of a mask along each axis, at most the size of the axis. An int
            is the number along the first axis; axes that are not named share one mask:
            `grid=(7, 7)` for an image, `grid=7` for a series. For a pytree, one for all leaves or a
            pytree like `x`. Axes that are shorter get an entry for each feature.
        probability: the probability that an entry of the grid keeps the input.
        baseline: the values where the mask is 0: a number or an array that broadcasts to `x`, or a
            pytree of these with the structure of `x`.

    Returns:
        values of the shape of `x`, in units of the output; a constant `fn` gives that constant, up
        to sampling. Integer leaves are never masked and get zeros.

    Raises:
        TypeError: if no leaf of `x` is floating, or for a grid that does not hold ints.
        ValueError: without a key, for fewer than one sample, a grid with more axes than `x` or
            below 1, or a probability outside (0, 1).

    Reference:
        Petsiuk et al. 2018, RISE, arXiv:1806.07421.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0]
        >>> x, key = jnp.ones(4), jax.random.key(0)
        >>> values = ja.rise(fn, x, key=key, grid=4, num_samples=1000).values
        >>> print(values[0] > values[1:].max())
        True
    """
    count = check_count("num_samples", num_samples)
    if key is None:
        raise ValueError("`key` is missing: rise draws masks, give key=jax.random.key(0).")
    floating_leaves(x, "a mask")
    leaves, treedef = jax.tree.flatten(x)
    shapes = [
        _grid(leaf.shape, grid) if is_floating(leaf) else ()
        for leaf, grid in zip(leaves, _grids(x, grid), strict=True)
    ]
    replacements = jax.tree.leaves(broadcast_baseline(baseline, x, keep_integers=True))
    score_of = scored(fn, target, args)
    score, output = score_of(x)

    def weighted_masks(key: RandomKey) -> list[Array]:
        drawn = jax.random.uniform(key, (sum(map(_numbers, shapes)),), jnp.float32)
        parts = jnp.split(drawn, np.cumsum(list(map(_numbers, shapes)))[:-1])
        masks = [
            _mask(part, leaf.shape, shape, jnp.asarray(probability, jnp.float32))
            if is_floating(leaf)
            else None
            for part, leaf, shape in zip(parts, leaves, shapes, strict=True)
        ]
        masked = [
            leaf if mask is None else new + mask.astype(leaf.dtype) * (leaf - new)
            for leaf, new, mask in zip(leaves, replacements, masks, strict=True)
        ]
        of_mask = score_of(jax.tree.unflatten(treedef, masked))[0]
        chance = jnp.asarray(probability, wide(of_mask.dtype))
        weight = of_mask.astype(chance.dtype) / chance
        return [
            jnp.zeros((1,) * leaf.ndim, weight.dtype)
            if m is None
            else weight * m.astype(chance.dtype)
            for leaf, m in zip(leaves, masks, strict=True)
        ]

    sums = chunked_sum(weighted_masks, jax.random.split(key, count), batch_size, count)
    values = [
        jnp.broadcast_to(total.astype(score.dtype), leaf.shape)
        for total, leaf in zip(sums, leaves, strict=True)
    ]
    return Attribution(jax.tree.unflatten(treedef, values), output)


def _grids(x: PyTree, grid: PyTree) -> list[Any]:
    """Return the grid of each leaf of `x`."""

    def is_one(value: object) -> bool:
        if isinstance(value, (tuple, list)):
            return all(isinstance(v, int | float | np.integer) for v in value)
        return isinstance(value, int | float | np.integer)

    return leaves_like(x, as_tuples(grid), "grid", is_one)


def _grid(shape: tuple[int, ...], grid: Any) -> tuple[int, ...]:
    """Return the entries of a mask along each of its axes, which are the first ones of a leaf."""
    sizes = tuple(grid) if isinstance(grid, (tuple, list)) else (grid,) * min(1, len(shape))
    if len(sizes) > len(shape):
        raise ValueError(
            f"`grid` must have at most as many axes as x, of shape {shape}, got {sizes}."
        )
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int | np.integer):
            raise TypeError(f"`grid` must hold ints, got {size!r}.")
        if size < 1:
            raise ValueError(f"`grid` must be at least 1 along each axis, got {sizes}.")
    return tuple(min(int(size), length) for size, length in zip(sizes, shape, strict=False))


def _numbers(grid: tuple[int, ...]) -> int:
    """Return how many random numbers a mask takes: one per entry, and one per axis."""
    return math.prod(size + 2 for size in grid) + len(grid)


def _mask(
    drawn: Float[Array, " numbers"],
    shape: tuple[int, ...],
    grid: tuple[int, ...],
    probability: Float[Array, ""],
) -> Float[Array, "..."]:
    """Return a mask along the first axes of a shape, of size 1 along the others.

    The grid is interpolated from a random place within its first cell on. It has two more entries
    along each axis, so that the last feature lies between two entries, too.

    Args:
        drawn: uniform random numbers.
        shape: the shape of a leaf.
        grid: the number of entries along each of the first axes.
        probability: the probability that an entry is 1.
    """
    entries = drawn[len(grid) :].reshape([size + 2 for size in grid]) < probability
    mask = entries.astype(drawn.dtype)
    for axis, size in enumerate(grid):
        width = -(-shape[axis] // size)
        start = jnp.floor(drawn[axis] * width)
        place = (start + jnp.arange(shape[axis], dtype=jnp.int32).astype(mask.dtype)) / width
        entry = jnp.arange(size + 2, dtype=jnp.int32).astype(mask.dtype)
        weights = jnp.maximum(1 - jnp.abs(place[:, None] - entry[None]), 0)
        along = jnp.tensordot(weights, mask, ((1,), (axis,)), precision=jax.lax.Precision.HIGHEST)
        mask = jnp.moveaxis(along, 0, axis)
    return mask.reshape(mask.shape + (1,) * (len(shape) - len(grid)))
