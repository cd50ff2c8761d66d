"""Perturbations of inputs: baselines and sliding windows."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxattn._static import is_concrete
from jaxattn._types import Inputs
from jaxattn.engine.batch import wide


def is_floating(leaf: PyTree) -> bool:
    """Return whether an array holds real floating-point numbers: only these have a gradient."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def floating_leaves(x: Inputs, purpose: str) -> tuple[list[Any], Callable[..., Inputs]]:
    """Split the floating-point leaves of `x` from the others.

    Args:
        x: the input.
        purpose: what floating-point numbers are required for.

    Returns:
        the floating-point leaves, and a function that puts as many new ones in their places; its
        second argument maps the other leaves, by default to themselves.

    Raises:
        TypeError: if there are none.
    """
    leaves, treedef = jax.tree.flatten(x)
    floating = [leaf for leaf in leaves if is_floating(leaf)]
    if any(map(jnp.iscomplexobj, leaves)):
        raise TypeError(
            f"`x` must hold real numbers for {purpose}, got "
            f"{', '.join(str(leaf.dtype) for leaf in leaves)}: pass real and imaginary parts, and "
            "explain `lambda parts: fn(jax.lax.complex(*parts))`."
        )
    if not floating:
        raise TypeError(
            f"`x` must hold floating-point numbers for {purpose}, got "
            f"{', '.join(str(leaf.dtype) for leaf in leaves)}: convert an image with "
            "x.astype(np.float32); for token ids explain a floating-point intermediate, such as "
            'at="embedding", or use jaxattn.occlusion.'
        )

    def merge(new: Sequence[Any], other: Callable[[PyTree], PyTree] = lambda leaf: leaf) -> Inputs:
        rest = iter(new)
        merged = [next(rest) if is_floating(leaf) else other(leaf) for leaf in leaves]
        return jax.tree.unflatten(treedef, merged)

    return floating, merge


def broadcast_baseline(
    baseline: PyTree, x: PyTree, *, keep_integers: bool = False, name: str = "baseline"
) -> Inputs:
    """Return the baseline in the structure, shape and dtype of `x`.

    Args:
        baseline: a number or an array for every leaf of `x`, or a pytree like `x` of such.
        x: the input, abstract or not; integers that are kept are returned as they are.
        keep_integers: whether integer leaves stay what they are in `x`.
        name: the name of the option, for errors.

    Raises:
        ValueError: if the baseline does not broadcast to `x`, has another structure, or does not
            fit an integer's range.
        TypeError: if an integer input would lose the baseline's fraction.
    """
    leaves, treedef = jax.tree.flatten(x)
    values = leaves_like(x, baseline, name, lambda value: jax.tree_util.all_leaves([value]))
    filled = [
        leaf if keep_integers and not is_floating(leaf) else _broadcast(value, leaf, name)
        for value, leaf in zip(values, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, filled)


def leaves_like(x: PyTree, value: PyTree, name: str, is_one: Callable[[PyTree], bool]) -> list[Any]:
    """Return the value of an option for each leaf of `x`.

    Args:
        x: the input.
        value: one value for all leaves, or a pytree like `x` of such values.
        name: the name of the option.
        is_one: whether a pytree is the value of one leaf.

    Raises:
        ValueError: if the value has another structure.
    """
    treedef: Any = jax.tree.structure(x)
    if is_one(value):
        return [value] * treedef.num_leaves
    leaves, structure = jax.tree.flatten(value, is_leaf=is_one)
    if structure != treedef or not all(map(is_one, leaves)):
        raise ValueError(
            f"`{name}` must be one for all of x, or a pytree like x, {treedef}, got {value!r}."
        )
    return leaves


def _broadcast(baseline: ArrayLike, x: Any, name: str) -> Array:
    try:
        value = jnp.asarray(baseline)
    except TypeError as error:
        raise TypeError(f"`{name}` must be numbers, got {baseline!r}.") from error
    try:
        fits = np.broadcast_shapes(value.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"`{name}` must broadcast to the shape {x.shape} of x, got shape {value.shape}."
        )
    whole = isinstance(baseline, int) or (isinstance(baseline, float) and baseline.is_integer())
    exact = jnp.issubdtype(x.dtype, jnp.integer) or jnp.issubdtype(x.dtype, jnp.bool_)
    if exact and jnp.issubdtype(value.dtype, jnp.inexact) and not whole:
        raise TypeError(f"`{name}` must hold integers like x, {x.dtype}, got {value.dtype}.")
    if jnp.iscomplexobj(value) and not jnp.iscomplexobj(x):
        raise TypeError(f"`{name}` must be real like x, {x.dtype}, got {value.dtype}.")
    _check_range(baseline, x.dtype)
    value = value.astype(x.dtype)
    return jnp.broadcast_to(value.reshape((1,) * (x.ndim - value.ndim) + value.shape), x.shape)


def check_baseline(baseline: PyTree, x: PyTree) -> None:
    """Raise an error for numbers that do not fit integers of `x`: a cast would wrap them.

    Args:
        baseline: as for `broadcast_baseline`, not yet traced.
        x: the input, abstract or not.
    """
    values = leaves_like(x, baseline, "baseline", lambda v: jax.tree_util.all_leaves([v]))
    for value, leaf in zip(values, jax.tree.leaves(x), strict=True):
        _check_range(value, leaf.dtype)


def _check_range(baseline: ArrayLike, dtype: DTypeLike) -> None:
    exact = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)
    if not (exact and is_concrete(baseline) and np.size(baseline)):
        return
    limits = None if jnp.issubdtype(dtype, jnp.bool_) else jnp.iinfo(dtype)
    low, high = (0, 1) if limits is None else (int(limits.min), int(limits.max))
    if np.min(baseline) < low or np.max(baseline) > high:
        raise ValueError(
            f"`baseline` must lie in [{low}, {high}], the range of {dtype} of x, got {baseline}."
        )


class Windows(NamedTuple):
    """Windows that slide over an array: their starts along each axis, and their size."""

    starts: tuple[np.ndarray, ...]
    window: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def number(self) -> int:
        """The number of windows."""
        return math.prod(map(len, self.starts))

    def positions(self) -> Int[np.ndarray, "windows rank"]:
        """Return the first element of each window."""
        return np.array(list(itertools.product(*self.starts)), np.int32).reshape(self.number, -1)

    def mask(self, position: Int[Array, " rank"]) -> Bool[Array, "..."]:
        """Return which elements the window at a position covers."""
        mask = jnp.ones(self.shape, bool)
        for axis, (size, width) in enumerate(zip(self.shape, self.window, strict=True)):
            offsets = jnp.arange(size, dtype=position.dtype) - position[axis]
            inside = (offsets >= 0) & (offsets < width)
            mask &= inside.reshape([-1 if a == axis else 1 for a in range(len(self.shape))])
        return mask

    def mean(self, scores: Float[Array, " windows"]) -> Float[Array, "..."]:
        """Return the mean over the windows that cover an element, for each element.

        Windows are products of intervals, so the sum over all that cover an element factors over
        axes.
        """
        total = scores.astype(wide(scores.dtype)).reshape([len(s) for s in self.starts])
        count = np.ones(())
        for starts, size, width in zip(self.starts, self.shape, self.window, strict=True):
            offsets = np.arange(size)[:, None] - starts
            covers = (offsets >= 0) & (offsets < width)
            total = jnp.tensordot(
                total, covers.astype(total.dtype), ((0,), (1,)), precision=jax.lax.Precision.HIGHEST
            )
            count = np.multiply.outer(count, covers.sum(1))
        return (total / count.astype(total.dtype)).astype(scores.dtype)


def sliding_windows(
    shape: Sequence[int],
    window: int | np.integer | Sequence[int],
    stride: int | np.integer | Sequence[int] | None,
) -> Windows:
    """Return windows that together cover an array; the last along an axis may exceed its end.

    Args:
        shape: of the array.
        window: its extent along each axis; it covers further axes whole.
        stride: the step from one window to the next along each axis; 1 by default.

    Raises:
        ValueError: for a window or a stride that is not positive, larger than the axis, or a stride
            larger than the window, which would leave elements out.
    """
    shape = tuple(shape)
    sizes = _per_axis("window", window, shape)
    steps = (1,) * len(sizes) if stride is None else _per_axis("stride", stride, shape)
    if len(steps) > len(sizes):
        raise ValueError(f"`stride` must have at most as many axes as window {sizes}, got {steps}.")
    for axis, (width, step) in enumerate(zip(sizes, steps, strict=False)):
        if step > width:
            raise ValueError(
                f"`stride` must be at most the window, {width} on axis {axis}, got {step}: the "
                "elements between would be left out."
            )
    sizes += shape[len(sizes) :]
    steps += sizes[len(steps) :]
    starts = tuple(
        np.arange(1 - (width - size) // step) * step
        for size, width, step in zip(shape, sizes, steps, strict=True)
    )
    return Windows(starts, sizes, shape)


def _per_axis(name: str, value: object, shape: tuple[int, ...]) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    hint = ": window=None leaves that leaf unchanged" if name == "window" and not shape else ""
    if len(sizes) > len(shape):
        raise ValueError(
            f"`{name}` must have at most as many axes as x, of shape {shape}, got {sizes}{hint}."
        )
    if name == "window" and not sizes:
        raise ValueError(f"`window` must have at least one axis, got {value!r}{hint}.")
    for size, limit in zip(sizes, shape, strict=False):
        if isinstance(size, bool) or not isinstance(size, int | np.integer):
            raise TypeError(f"`{name}` must hold ints, got {size!r}.")
        if not 1 <= size <= limit:
            raise ValueError(
                f"`{name}` must be at least 1 and at most the input's shape {shape}, got {sizes}."
            )
    return tuple(map(int, sizes))
