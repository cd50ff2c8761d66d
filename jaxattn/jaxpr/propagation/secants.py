"""Secants: differences of a function divided by those of its operand, without loss of precision."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jaxattn.jaxpr.propagation.layer_rules import quotient

#: An elementwise function of one value.
Elementwise: TypeAlias = Callable[[Array], Array]

#: What stands for infinity where a difference is taken.
INFINITE = 1e18
#: Logits that change by more are masked in one of the runs.
_MASKED = 1e3


def mean_slopes(apply: Callable[..., Array], ends: list[list[Array]]) -> tuple[Array, Array]:
    """Return the slope by each operand at its mean, averaged over both runs of the other."""
    (a, a0), (b, b0) = ends
    half = jnp.asarray(0.5, a.dtype)

    def mean(of_run: Elementwise, of_run0: Elementwise, x: Array) -> Array:
        return half * (slope_at(of_run, x) + slope_at(of_run0, x))

    return (
        mean(lambda x: apply(x, b), lambda x: apply(x, b0), half * (a + a0)),
        mean(lambda x: apply(a, x), lambda x: apply(a0, x), half * (b + b0)),
    )


def log_softmax(z: Array, shown: Array, axes: tuple[int, ...]) -> Array:
    """Return the logarithm of a softmax over the elements that are shown."""
    z = z - jnp.max(z, axes, keepdims=True, where=shown, initial=jnp.finfo(z.dtype).min)
    return z - jnp.log(jnp.sum(jnp.exp(z), axes, keepdims=True, where=shown))


def logarithmic_mean(log: Array, log0: Array) -> Array:
    """Return the difference of two positive numbers divided by that of their logarithms."""
    distance = jnp.abs(log - log0)
    ratio = -jnp.expm1(-distance) / jnp.where(distance == 0, 1, distance)
    return jnp.exp(jnp.maximum(log, log0)) * jnp.where(distance == 0, 1, ratio)


def softmax_multipliers(
    multiplier: Array, means: Array, z: Array, z0: Array, shown: Array, axes: tuple[int, ...]
) -> Array:
    """Return the multipliers of logits: the derivative of a softmax at mean weights.

    Where a mask moves all logits of one run by a large number, their differences have lost the
    digits that count. There the multipliers of the moved logits are those of differences without
    the common part, and they take the share of the logits that did not move.

    Args:
        multiplier: those of the outputs.
        means: the logarithmic means of the weights of both runs, zero where nothing is shown.
        z: the logits.
        z0: the logits at the baseline.
        shown: which logits have a weight in either run.
        axes: the axes of the sum.
    """

    def total(x: Array) -> Array:
        return jnp.sum(x, axes, keepdims=True)

    def top(x: Array) -> Array:
        least = jnp.finfo(x.dtype).min
        return jnp.max(x, axes, keepdims=True, where=shown, initial=least)

    # Relative to the element of the largest weight, which may have nearly all of it.
    largest = means == jnp.max(means, axes, keepdims=True)
    reference = quotient(total(jnp.where(largest, multiplier, 0)), total(largest.astype(z.dtype)))
    relative = multiplier - reference
    multipliers = means * (relative - quotient(total(means * relative), total(means)))
    change, common = z - z0, top(z) - top(z0)
    moved = shown & (jnp.abs(change) > _MASKED) & (jnp.abs(common) > _MASKED)
    share = quotient(means, total(jnp.where(moved, means, 0)))
    rest = -total(jnp.where(moved, 0, multipliers))
    apart = (z - top(z)) - (z0 - top(z0))
    of_moved = quotient(multipliers * apart + share * common * rest, change)
    return jnp.where(moved, of_moved, multipliers)


def bounded(x: Array) -> Array:
    """Return a value with the infinities of masks as large numbers, which have differences.

    So have the largest numbers of a dtype, which are used in masks like infinity.
    """
    large = min(INFINITE, float(jnp.finfo(x.dtype).max) / 4)
    return jnp.clip(x, -jnp.asarray(large, x.dtype), jnp.asarray(large, x.dtype))


def slope_at(apply: Elementwise, x: Array) -> Array:
    """Return the derivative of a function."""
    # For an elementwise function the transpose equals the derivative. It is defined for custom
    # derivative rules of either kind.
    y, transpose = jax.vjp(apply, x)
    return transpose(jnp.ones_like(y))[0]


def secant(change: Array, x: Array, x0: Array, slope: Array | None) -> Array:
    """Return `change / (x - x0)`, or the slope in between where rounding would dominate.

    A function that jumps has no slope.
    """
    if slope is None:
        return quotient(change, x - x0)
    difference, limits = x - x0, jnp.finfo(x.dtype)
    size = jnp.maximum(jnp.abs(x), jnp.abs(x0))
    # Only a mask makes an infinite value.
    size = jnp.where(jnp.isfinite(size), size, 0)
    least = jnp.sqrt(limits.eps).astype(x.dtype) * size + jnp.asarray(limits.tiny, x.dtype)
    # A root's slope at zero is infinite. Times a difference of zero it must give zero.
    slope = jnp.where(jnp.isfinite(slope), slope, 0)
    return jnp.where(jnp.abs(difference) > least, quotient(change, difference), slope)
