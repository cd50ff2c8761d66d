"""What inputs are replaced by, and where: baselines and sliding windows."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxattn._static import is_concrete
from jaxattn._types import Inputs
from jaxattn.engine.batch import wide


def is_floating(leaf: Any) -> bool:
    """Whether an array holds real floating numbers, which alone have a gradient."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def floating_leaves(x: Inputs, purpose: str) -> tuple[list[Any], Callable[..., Inputs]]:
    """Parts the floating leaves of `x` from the others.

    Args:
        x: the input.
        purpose: what floating numbers are wanted for.

    Returns:
        the floating leaves, and a function that puts as many new ones in their places; of the other
        leaves it makes what its second argument says, by default the leaf itself.

    Raises:
        TypeError: if there are none.
    """
    leaves, treedef = jax.tree.flatten(x)
    floating = [leaf for leaf in leaves if is_floating(leaf)]
    if not floating or any(jnp.iscomplexobj(leaf) for leaf in leaves):
        raise TypeError(
            f"x must hold floating numbers for {purpose}, got "
            f"{', '.join(str(leaf.dtype) for leaf in leaves)}: explain a named "
            'intermediate instead, such as at="embedding", or use jaxattn.occlusion'
        )

    def merge(new: Sequence[Any], other: Callable[[Any], Any] = lambda leaf: leaf) -> Inputs:
        rest = iter(new)
        merged = [next(rest) if is_floating(leaf) else other(leaf) for leaf in leaves]
        return jax.tree.unflatten(treedef, merged)

    return floating, merge


def broadcast_baseline(baseline: PyTree[Any], x: Inputs, *, keep_integers: bool = False) -> Inputs:
    """The baseline in the structure, shape and dtype of `x`.

    Args:
        baseline: a number or an array for every leaf of `x`, or a pytree like `x` of such.
        x: the input.
        keep_integers: whether integer leaves stay what they are in `x`.

    Raises:
        ValueError: if the baseline does not broadcast to `x`, has another structure, or does not
            fit an integer's range.
        TypeError: if an integer input would lose the baseline's fraction.
    """
    leaves, treedef = jax.tree.flatten(x)
    given = leaves_like(x, baseline, "baseline", lambda value: jax.tree_util.all_leaves([value]))
    filled = [
        leaf if keep_integers and not is_floating(leaf) else _broadcast(value, leaf)
        for value, leaf in zip(given, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, filled)


def leaves_like(x: Any, value: Any, name: str, is_one: Callable[[Any], bool]) -> list[Any]:
    """An option's value for each leaf of `x`: one for all, or a pytree like `x` of such.

    Args:
        x: the input.
        value: the option's value.
        name: the option.
        is_one: whether something is a value for one leaf.

    Raises:
        ValueError: if the value has another structure.
    """
    treedef: Any = jax.tree.structure(x)
    if is_one(value):
        return [value] * treedef.num_leaves
    leaves, given = jax.tree.flatten(value, is_leaf=is_one)
    if given != treedef or not all(map(is_one, leaves)):
        raise ValueError(f"{name} must be one for all of x, or like x {treedef}, got {value!r}")
    return leaves


def _broadcast(baseline: Any, x: Any) -> Array:
    try:
        value = jnp.asarray(baseline)
    except TypeError as error:
        raise TypeError(f"baseline must be numbers, got {baseline!r}") from error
    try:
        fits = np.broadcast_shapes(value.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"baseline has shape {value.shape}, which does not broadcast to {x.shape}")
    whole = isinstance(baseline, int) or (isinstance(baseline, float) and baseline.is_integer())
    exact = jnp.issubdtype(x.dtype, jnp.integer) or jnp.issubdtype(x.dtype, jnp.bool_)
    if exact and jnp.issubdtype(value.dtype, jnp.inexact) and not whole:
        raise TypeError(f"baseline has dtype {value.dtype}, x has {x.dtype}: give integers")
    if jnp.iscomplexobj(value) and not jnp.iscomplexobj(x):
        raise TypeError(f"baseline has dtype {value.dtype}, x has {x.dtype}: give real numbers")
    _check_range(baseline, x.dtype)
    value = value.astype(x.dtype)
    return jnp.broadcast_to(value.reshape((1,) * (x.ndim - value.ndim) + value.shape), x.shape)


def check_baseline(baseline: PyTree[Any], x: Any) -> None:
    """Refuses numbers that do not fit integers of `x`, which a cast would wrap in silence.

    Args:
        baseline: as for `broadcast_baseline`, not yet traced.
        x: the input, abstract or not.
    """
    values = leaves_like(x, baseline, "baseline", lambda v: jax.tree_util.all_leaves([v]))
    for value, leaf in zip(values, jax.tree.leaves(x), strict=True):
        _check_range(value, leaf.dtype)


def _check_range(baseline: Any, dtype: Any) -> None:
    exact = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)
    if not (exact and is_concrete(baseline) and np.size(baseline)):
        return
    limits = None if jnp.issubdtype(dtype, jnp.bool_) else jnp.iinfo(dtype)
    low, high = (0, 1) if limits is None else (int(limits.min), int(limits.max))
    if np.min(baseline) < low or np.max(baseline) > high:
        raise ValueError(f"baseline {baseline} does not fit x's {dtype}, [{low}, {high}]")


class Windows(NamedTuple):
    """Windows that slide over an array: where they start along each axis, and their size."""

    starts: tuple[np.ndarray, ...]
    window: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def number(self) -> int:
        """How many windows there are."""
        return math.prod(map(len, self.starts))

    def positions(self) -> Int[np.ndarray, "windows rank"]:
        """The first cell of each window."""
        return np.array(list(itertools.product(*self.starts)), np.int32).reshape(self.number, -1)

    def mask(self, position: Int[Array, " rank"]) -> Bool[Array, "..."]:
        """Which cells the window at a position covers."""
        mask = jnp.ones(self.shape, bool)
        for axis, (size, width) in enumerate(zip(self.shape, self.window, strict=True)):
            cells = jnp.arange(size, dtype=position.dtype) - position[axis]
            inside = (cells >= 0) & (cells < width)
            mask &= inside.reshape([-1 if a == axis else 1 for a in range(len(self.shape))])
        return mask

    def mean(self, scores: Float[Array, " windows"]) -> Float[Array, "..."]:
        """The mean over the windows that cover a cell, for each cell.

        Windows are products of intervals, so the sum over all that cover a cell factors over axes.
        """
        total = scores.astype(wide(scores.dtype)).reshape([len(s) for s in self.starts])
        count = np.ones(())
        for starts, size, width in zip(self.starts, self.shape, self.window, strict=True):
            cells = np.arange(size)[:, None] - starts
            covers = (cells >= 0) & (cells < width)
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
    """Windows that together cover an array; the last along an axis may reach over its end.

    Args:
        shape: of the array.
        window: how many cells along each axis; axes that are not named are covered whole.
        stride: from one window to the next along each axis; 1 by default.

    Raises:
        ValueError: for a window or a stride that is not positive, larger than the axis, or a stride
            larger than the window, which would leave cells untested.
    """
    shape = tuple(shape)
    sizes = _per_axis("window", window, shape)
    steps = (1,) * len(sizes) if stride is None else _per_axis("stride", stride, shape)
    if len(steps) > len(sizes):
        raise ValueError(f"stride {steps} names more axes than window {sizes}")
    for axis, (width, step) in enumerate(zip(sizes, steps, strict=False)):
        if step > width:
            raise ValueError(
                f"stride {step} is larger than window {width} on axis {axis}: "
                "the cells between would not be tested"
            )
    sizes += shape[len(sizes) :]
    steps += sizes[len(steps) :]
    starts = tuple(
        np.arange(1 - (width - size) // step) * step
        for size, width, step in zip(shape, sizes, steps, strict=True)
    )
    return Windows(starts, sizes, shape)


def _per_axis(name: str, value: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    hint = ": window=None leaves that leaf alone" if name == "window" and not shape else ""
    if len(sizes) > len(shape):
        raise ValueError(f"{name} {sizes} names {len(sizes)} axes, x has shape {shape}{hint}")
    if name == "window" and not sizes:
        raise ValueError(f"window must name at least one axis, got {value!r}{hint}")
    for size, limit in zip(sizes, shape, strict=False):
        if isinstance(size, bool) or not isinstance(size, int | np.integer):
            raise TypeError(f"{name} must hold ints, got {size!r}")
        if not 1 <= size <= limit:
            raise ValueError(f"{name} {sizes} must lie between 1 and the input's shape {shape}")
    return tuple(map(int, sizes))
