"""Chunks of a vmapped axis inside one compiled program: how many evaluations are in flight."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

#: Evaluations in flight where neither the caller nor the engine chose. On a CPU the cost of a row
#: is lowest near this many; beyond it the intermediates fall out of the caches.
DEFAULT = 256


def balanced(count: int, limit: int | None) -> tuple[int, int]:
    """The fewest chunks of at most `limit`, and the smallest size with which they cover `count`."""
    count = max(1, count)
    chunks = -(-count // max(1, min(limit or DEFAULT, count)))
    return chunks, -(-count // chunks)


def _split(xs: Any, batch_size: int | None) -> tuple[Any, int, int, int]:
    count = jax.tree.leaves(xs)[0].shape[0]
    chunks, size = balanced(count, batch_size)
    # Chunks are balanced, so repeating the last item to fill them wastes fewer rows than chunks.
    rows = jnp.minimum(jnp.arange(chunks * size), count - 1).reshape(chunks, size)
    return jax.tree.map(lambda leaf: leaf[rows], xs), count, chunks, size


def chunked_map(f: Callable[[Any], Any], xs: Any, batch_size: int | None) -> Any:
    """`jax.vmap(f)(xs)` with at most `batch_size` members in flight."""
    count = jax.tree.leaves(xs)[0].shape[0]
    if count == 0 or balanced(count, batch_size)[0] == 1:
        return jax.vmap(f)(xs)
    parts, count, chunks, size = _split(xs, batch_size)
    ys = jax.lax.map(jax.vmap(f), parts)
    return jax.tree.map(lambda leaf: leaf.reshape(chunks * size, *leaf.shape[2:])[:count], ys)


def chunked_sum(
    f: Callable[[Any], Any], xs: Any, batch_size: int | None, divisor: float = 1
) -> Any:
    """The sum over the leading axis of `jax.vmap(f)(xs)`, of which only a chunk ever exists.

    Half precision is summed, and divided by `divisor`, in float32.
    """
    count = jax.tree.leaves(xs)[0].shape[0]
    if balanced(count, batch_size)[0] == 1:

        def reduced(leaf: Any) -> Any:
            return (leaf.sum(0, dtype=wide(leaf.dtype)) / divisor).astype(leaf.dtype)

        return jax.tree.map(reduced, jax.vmap(f)(xs))
    parts, count, chunks, size = _split(xs, batch_size)
    valid = (jnp.arange(chunks * size) < count).reshape(chunks, size)

    def add(total: Any, chunk: Any) -> tuple[Any, None]:
        members, mask = chunk

        def accumulate(sum_: Any, leaf: Any) -> Any:
            valid = mask.reshape(-1, *[1] * (leaf.ndim - 1))
            return sum_ + jnp.where(valid, leaf, 0).sum(0, dtype=sum_.dtype)

        return jax.tree.map(accumulate, total, jax.vmap(f)(members)), None

    shapes = jax.eval_shape(
        lambda part: jax.vmap(f)(part), jax.tree.map(lambda leaf: leaf[0], parts)
    )
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], wide(leaf.dtype)), shapes)
    total, _ = jax.lax.scan(add, zeros, (parts, valid))
    return jax.tree.map(lambda leaf, like: (leaf / divisor).astype(like.dtype), total, shapes)


def wide(dtype: Any) -> Any:
    """The dtype in which to sum: in half precision a sum overflows, or stops growing."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.float32 if narrow else dtype
