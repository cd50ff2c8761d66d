"""Coalitions with the weights of the Shapley kernel: enumerated, or drawn in pairs."""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxattn._types import RandomKey


class WeightedCoalitions(NamedTuple):
    """Coalitions and the weight of each in a least-squares fit.

    Attributes:
        members: which groups are present in each coalition.
        weights: the weights, up to a common factor.
    """

    members: Bool[Array, "coalitions groups"]
    weights: Float[Array, " coalitions"]


def kernel_size(number: int, num_samples: int) -> int:
    """Return how many coalitions `kernel_coalitions` and `coalitions_of_existing` return."""
    every = 2**number - 2
    if num_samples >= every:
        return every
    left = _enumerated_sizes(number, num_samples)[1]
    return num_samples - left + 2 * (left // 2)


def kernel_coalitions(key: RandomKey, number: int, num_samples: int) -> WeightedCoalitions:
    """Return at most `num_samples` of the coalitions that are neither empty nor full.

    Coalitions of small sizes, and of large ones, are few and have most of the weight. These sizes
    are enumerated as long as drawing at random would take as many samples. The others are drawn in
    complementary pairs.
    """
    sizes, left = _enumerated_sizes(number, num_samples)
    rows, weights = [np.zeros((0, number), bool)], [np.zeros(0)]
    for size in sizes:
        some = np.array(list(itertools.combinations(range(number), size)))
        rows.append(np.zeros((len(some), number), bool))
        np.put_along_axis(rows[-1], some, True, 1)
        weights.append(np.full(len(some), _total_weight(number, [size]) / len(some)))
    fixed = jnp.asarray(np.concatenate(rows))
    others = [size for size in range(1, number) if size not in sizes]
    drawn = _pairs(key, jnp.ones(number, bool), left // 2 if others else 0, len(sizes) // 2 + 1)
    of_drawn = _total_weight(number, others) / max(1, len(drawn))
    of_all = np.concatenate([*weights, np.full(len(drawn), of_drawn)])
    return WeightedCoalitions(
        jnp.concatenate([fixed, drawn]), jnp.asarray(of_all, jnp.result_type(float))
    )


def coalitions_of_existing(
    key: RandomKey, exists: Bool[Array, " groups"], num_samples: int
) -> WeightedCoalitions:
    """Return coalitions of the groups that exist, of which the number is traced.

    All are enumerated if there are at most as many as the returned number. Otherwise all are drawn
    in complementary pairs.
    """
    number = exists.shape[0]
    total = 2 * (kernel_size(number, num_samples) // 2)
    count = exists.sum(dtype=jnp.int32)
    place = jnp.clip(jnp.cumsum(exists, dtype=jnp.int32) - 1, 0, 30)
    bits = jnp.arange(1, total + 1, dtype=jnp.int32)[:, None]
    enumerated = (jnp.right_shift(bits, place[None]) & 1).astype(bool) & exists[None]
    dtype = jnp.result_type(float)
    every = jnp.left_shift(1, jnp.minimum(count, 30)) - 2
    fits = every <= total
    size, limit = enumerated.sum(1, dtype=jnp.int32), jnp.maximum(count, 2)
    # 1 / (C(count, size) size (count - size)), up to a factor, without large numbers.
    log_weights = jax.lax.lgamma(jnp.maximum(size, 1).astype(dtype))
    log_weights += jax.lax.lgamma(jnp.maximum(limit - size, 1).astype(dtype))
    log_weights -= jax.lax.lgamma(limit.astype(dtype))
    weights = jnp.where(bits[:, 0] <= every, jnp.exp(log_weights), 0)
    if total >= 2**number - 2:  # a draw takes long to compile
        return WeightedCoalitions(enumerated, weights)
    weights = jnp.where(fits, weights, 1)
    members = jnp.where(fits, enumerated, _pairs(key, exists, total // 2, 1))
    return WeightedCoalitions(members, weights)


def _total_weight(number: int, sizes: list[int]) -> float:
    """Return the Shapley kernel's weight of all coalitions of some sizes together."""
    return sum((number - 1) / (size * (number - size)) for size in sizes)


def _enumerated_sizes(number: int, num_samples: int) -> tuple[list[int], int]:
    """Return the sizes that are enumerated, and how many samples are left for the others."""
    if num_samples >= 2**number - 2:
        return list(range(1, number)), 0
    found: list[int] = []
    left = num_samples
    for size in range(1, number // 2 + 1):
        pair = sorted({size, number - size})
        rest = [s for s in range(1, number) if s not in found]
        count = len(pair) * math.comb(number, size)
        if left * _total_weight(number, pair) < count * _total_weight(number, rest):
            break
        found += pair
        left -= count
    return found, left


def _pairs(
    key: RandomKey, exists: Bool[Array, " groups"], count: int, least: int
) -> Bool[Array, "coalitions groups"]:
    """Draw pairs of a coalition and its complement, of sizes from `least` on.

    A size is drawn with the weight of all coalitions of that size, and a coalition uniformly.
    """
    number = exists.shape[0]
    if count == 0 or number < 2:
        return jnp.zeros((0, number), bool)
    size, total = jnp.arange(1, number, dtype=jnp.int32), exists.sum(dtype=jnp.int32)
    allowed = (size >= least) & (size <= total - least)
    product = (size * (total - size)).astype(jnp.float32)
    chances = jnp.cumsum(jnp.where(allowed, 1 / jnp.maximum(product, 1), 0))
    # All from one draw: each draw takes long to compile.
    numbers = jax.random.uniform(key, (count, number + 1), jnp.float32)
    index = jnp.searchsorted(chances, numbers[:, 0] * chances[-1], side="right")
    sizes: Int[Array, " pairs"] = size[jnp.minimum(index, jnp.where(allowed, size, 0).max() - 1)]
    order = jnp.where(exists[None], numbers[:, 1:], 2.0)
    place = jnp.argsort(jnp.argsort(order, 1), 1).astype(jnp.int32)
    members = (place < sizes[:, None]) & exists[None]
    return jnp.stack([members, ~members & exists[None]], 1).reshape(2 * count, number)
