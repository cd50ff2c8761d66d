"""Chunks of a vmapped axis inside one compiled program: how many evaluations are in flight.

If devices share the work of an example, each takes its part of the axis.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, PyTree

from jaxattn.jaxpr.flat import varying_axes

Result = TypeVar("Result")

#: Evaluations in flight where neither the caller nor the engine chose. On a CPU the cost of a row
#: is lowest near this many; beyond it the intermediates fall out of the caches.
DEFAULT = 256


def balanced(count: int, limit: int | None) -> tuple[int, int]:
    """Return the fewest chunks of at most `limit`, and the smallest size that covers `count`."""
    count = max(1, count)
    chunks = -(-count // max(1, min(limit or DEFAULT, count)))
    return chunks, -(-count // chunks)


class Spread(NamedTuple):
    """The axis of a mesh whose devices share the work of each example, and their number."""

    axis: str
    devices: int


_spread: ContextVar[Spread | None] = ContextVar("spread", default=None)


@contextmanager
def spread_over(spread: Spread | None) -> Iterator[None]:
    """Divide the members of the chunks inside over devices; `None` keeps them on one."""
    entered = _spread.set(spread)
    try:
        yield
    finally:
        _spread.reset(entered)


def alone(f: Callable[..., Result]) -> Callable[..., Result]:
    """Return `f` with all its chunks on the device that calls it: others may do other work."""

    def call(*inputs: PyTree) -> Result:
        with spread_over(None):
            return f(*inputs)

    return call


def _rows(xs: PyTree, rows: Array | np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[rows], xs)


def _share(count: int, spread: Spread) -> Array:
    """Return which members this device takes; the last devices get indices beyond `count`."""
    size = -(-count // spread.devices)
    return jax.lax.axis_index(spread.axis) * size + jnp.arange(size, dtype=jnp.int32)


def chunked_map(f: Callable[[PyTree], PyTree], xs: PyTree, batch_size: int | None) -> PyTree:
    """Compute `jax.vmap(f)(xs)` with at most `batch_size` members in flight on a device."""
    count, spread = _length(xs), _spread.get()
    if spread is None or count <= 1:
        return map_on_device(f, xs, batch_size)
    mine = _rows(xs, jnp.minimum(_share(count, spread), count - 1))
    ys = map_on_device(alone(f), mine, batch_size)

    def gathered(leaf: Array) -> Array:
        whole: Array = jax.lax.all_gather(leaf, spread.axis, tiled=True)
        return whole[:count]

    return jax.tree.map(gathered, ys)


def map_on_device(f: Callable[[PyTree], PyTree], xs: PyTree, batch_size: int | None) -> PyTree:
    """Compute `chunked_map`, with the members of this axis all on the device that calls it."""
    count = _length(xs)
    chunks, size = balanced(count, batch_size)
    if count == 0 or chunks == 1:
        return jax.vmap(f)(xs)
    # Chunks are balanced, so repeating the last item to fill them wastes fewer rows than chunks.
    rows = jnp.minimum(jnp.arange(chunks * size), count - 1).reshape(chunks, size)
    ys = jax.lax.map(jax.vmap(f), _rows(xs, rows))
    return jax.tree.map(lambda leaf: leaf.reshape(chunks * size, *leaf.shape[2:])[:count], ys)


def chunked_sum(
    f: Callable[[PyTree], PyTree], xs: PyTree, batch_size: int | None, divisor: int | float = 1
) -> PyTree:
    """Sum `jax.vmap(f)(xs)` over its leading axis, of which only a chunk exists at a time.

    Half precision is summed, and divided by `divisor`, in float32.
    """

    def total(members: PyTree, valid: Bool[Array | np.ndarray, " n"]) -> PyTree:
        def of_leaf(leaf: Array) -> Array:
            mask = valid.reshape(-1, *[1] * (leaf.ndim - 1))
            return jnp.where(mask, leaf, 0).sum(0, dtype=wide(leaf.dtype))

        return jax.tree.map(of_leaf, jax.vmap(f)(members))

    totals = chunked_total(total, xs, batch_size)
    one = jax.eval_shape(f, jax.tree.map(lambda leaf: leaf[0], xs))
    return jax.tree.map(lambda leaf, like: (leaf / divisor).astype(like.dtype), totals, one)


def chunked_total(
    total: Callable[[PyTree, Any], PyTree], xs: PyTree, batch_size: int | None
) -> PyTree:
    """Sum `total(members, valid)` over chunks of the leading axis.

    Args:
        total: returns a pytree in a wide dtype, the sum over the members that are valid.
        xs: the members.
        batch_size: how many members are in flight on a device.
    """
    count, spread = _length(xs), _spread.get()
    if spread is None or count <= 1:
        return _total(total, xs, np.ones(count, bool), batch_size)
    members = _share(count, spread)
    mine = _rows(xs, jnp.minimum(members, count - 1))
    of_mine = _total(alone(total), mine, members < count, batch_size)
    return jax.lax.psum(of_mine, spread.axis)


def _total(
    total: Callable[[PyTree, Any], PyTree],
    xs: PyTree,
    valid: Bool[Array | np.ndarray, " n"],
    batch_size: int | None,
) -> PyTree:
    count = _length(xs)
    chunks, size = balanced(count, batch_size)
    if chunks == 1:
        return total(xs, valid)
    rows = np.arange(chunks * size)
    padded = np.minimum(rows, count - 1)
    parts = _rows((xs, valid), padded.reshape(chunks, size))
    masks = parts[1] & (rows < count).reshape(chunks, size)

    def add(so_far: PyTree, chunk: tuple[PyTree, Array]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, so_far, total(*chunk)), None

    one = jax.eval_shape(total, *jax.tree.map(lambda leaf: leaf[0], (parts[0], masks)))
    return jax.lax.scan(add, jax.tree.map(_zeros, one), (parts[0], masks))[0]


def _zeros(struct: jax.ShapeDtypeStruct) -> Array:
    return varying_as(struct, jnp.zeros(struct.shape, struct.dtype))


def varying_as(like: PyTree, x: PyTree) -> PyTree:
    """Return an array as varying over the devices over which another does, in a `shard_map`."""
    axes = tuple(varying_axes(like))
    return jax.lax.pcast(x, axes, to="varying") if axes else x


def _length(xs: PyTree) -> int:
    count: int = jax.tree.leaves(xs)[0].shape[0]
    return count


def wide(dtype: DTypeLike) -> DTypeLike:
    """Return the dtype in which to sum: in half precision a sum overflows, or stops growing."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.float32 if narrow else dtype
