"""Reductions of the values of an attribution over axes, or over spans of one axis."""

import operator
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

#: How several values become one: their sum, mean, Euclidean norm or largest magnitude.
Reduction: TypeAlias = Literal["sum", "mean", "l2", "absmax"]


def reduced(
    values: Array,
    axis: int | Sequence[int],
    reduction: Reduction,
    spans: Sequence[tuple[int, int]] | None,
) -> Array:
    """Reduce values over axes, or over each span of one axis; see `jaxattn.Attribution.reduce`.

    Raises:
        TypeError: for an axis that is not an int.
        ValueError: for an axis that the values do not have, an unknown reduction, several axes
            with spans, or a span that is empty or exceeds the axis.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f'`reduction` must be "sum", "mean", "l2" or "absmax", got {reduction!r}.')
    values = jnp.asarray(values)
    try:
        axes = tuple(map(operator.index, axis if isinstance(axis, Sequence) else (axis,)))
    except TypeError as error:
        raise TypeError(f"`axis` must be an int or several, got {axis!r}.") from error
    if not axes or any(not -values.ndim <= one < values.ndim for one in axes):
        raise ValueError(
            f"`axis` must hold axes of the values, of shape {values.shape}, got {axis}."
        )
    if spans is None:
        return _REDUCTIONS[reduction](values, axes)
    if len(axes) != 1:
        raise ValueError(f"`axis` must be one axis with spans, got {axis}.")
    return _over_spans(values, axes[0], reduction, spans)


def _l2(values: Array, axes: tuple[int, ...]) -> Array:
    # The largest magnitude is factored out: its square may overflow. So may a half-precision sum.
    largest = jnp.max(jnp.abs(values), axes, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1)
    squares = jnp.square(values / scale)
    total = jnp.sum(squares, axes, dtype=jnp.float32 if squares.dtype.itemsize < 4 else None)
    return jnp.sqrt(total).astype(squares.dtype) * jnp.squeeze(scale, axes)


_REDUCTIONS: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
    "sum": jnp.sum,
    "mean": jnp.mean,
    "l2": _l2,
    "absmax": lambda values, axes: jnp.max(jnp.abs(values), axes),
}


def _over_spans(
    values: Array, axis: int, reduction: Reduction, spans: Sequence[tuple[int, int]]
) -> Array:
    """Reduce each span of an axis."""
    length = values.shape[axis]
    are_pairs = isinstance(spans, (Sequence, np.ndarray)) and {
        np.shape(pair) for pair in spans
    } == {(2,)}
    if not are_pairs or np.asarray(spans).dtype.kind not in "iu":
        raise ValueError(f"`spans` must be pairs of ints, got {spans!r}.")
    pairs = np.asarray(spans)
    if (pairs[:, 0] < 0).any() or (pairs[:, 0] >= pairs[:, 1]).any() or pairs.max() > length:
        raise ValueError(
            f"`spans` must not be empty and lie within the axis, of length {length}, got {spans!r}."
        )
    # All spans get the length of the longest: zeros change no sum and no magnitude.
    sizes = pairs[:, 1] - pairs[:, 0]
    offsets = np.arange(sizes.max())
    taken = jnp.moveaxis(values, axis, -1)[..., np.minimum(pairs[:, :1] + offsets, length - 1)]
    inside = np.broadcast_to(offsets < sizes[:, None], taken.shape)
    if reduction == "mean":
        found = jnp.mean(taken, -1, where=inside)
    else:
        found = _REDUCTIONS[reduction](jnp.where(inside, taken, 0), (taken.ndim - 1,))
    return jnp.moveaxis(found, -1, axis)
