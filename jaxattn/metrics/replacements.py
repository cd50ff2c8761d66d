"""Replacements of features, as `baseline` of a metric or of a method: averages and noise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from jaxattn._types import Inputs, RandomKey, check_count
from jaxattn.engine.batch import wide
from jaxattn.engine.perturb import is_floating


def moving_average(xs: Inputs, window: int) -> PyTree[Shaped[Array, "..."]]:
    """Compute the moving average of series over time.

    Each feature is the mean of its values at the time steps of a window around it, which is cut at
    both ends of the series. For a window that covers all time steps it is the mean of the series.

    Args:
        xs: the examples, each leaf of shape (B, T, ...) with floating-point numbers.
        window: the number of time steps before and after each one that are averaged with it.

    Returns:
        averages in the structure and shape of `xs`.

    Raises:
        TypeError: if `window` is not an int, or for integers.
        ValueError: if `window` is less than 1, or a leaf has no axis of time.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> print(ja.metrics.moving_average(jnp.array([[0.0, 3.0, 6.0, 0.0]]), window=1))
        [[1.5 3.  3.  3. ]]
    """
    reach = check_count("window", window)

    def averaged(leaf: Array) -> Array:
        time = np.arange(leaf.shape[1])
        near = np.abs(time[:, None] - time) <= reach
        weights = jnp.asarray(near / near.sum(1, keepdims=True), wide(leaf.dtype))
        wide_leaf = leaf.astype(weights.dtype)
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("ts,bs...->bt...", weights, wide_leaf, precision=highest)

    return _each_leaf(averaged, xs, axes=2)


def channel_mean(xs: Inputs) -> PyTree[Shaped[Array, "..."]]:
    """Compute the mean of each channel of each example: over all axes but the last.

    For a series (T, D) it is the mean over time, for an image (H, W, C) the mean colour. An example
    of one axis has one mean.

    Args:
        xs: the examples, each leaf of shape (B, ..., C) with floating-point numbers.

    Returns:
        means in the structure and shape of `xs`.

    Raises:
        TypeError: for integers.
        ValueError: if a leaf has no axis beside that of the examples.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> print(ja.metrics.channel_mean(jnp.array([[[0.0, 1.0], [2.0, 5.0]]])))
        [[[1. 3.]
          [1. 3.]]]
    """

    def averaged(leaf: Array) -> Array:
        axes = tuple(range(1, leaf.ndim - 1)) or (1,)
        mean = leaf.mean(axes, keepdims=True, dtype=wide(leaf.dtype))
        return jnp.broadcast_to(mean, leaf.shape)

    return _each_leaf(averaged, xs, axes=2)


def uniform_noise(xs: Inputs, key: RandomKey) -> PyTree[Shaped[Array, "..."]]:
    """Draw uniform noise between the lowest and the highest feature of each example.

    Args:
        xs: the examples, each leaf with a leading axis of length B, with floating-point numbers.
        key: a random key, such as `jax.random.key(0)`.

    Returns:
        noise in the structure and shape of `xs`.

    Raises:
        TypeError: for integers.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxattn as ja
        >>> noise = ja.metrics.uniform_noise(jnp.array([[0.0, 1.0], [5.0, 5.0]]), jax.random.key(0))
        >>> print(noise.shape, noise[1])
        (2, 2) [5. 5.]
    """
    keys = iter(jax.random.split(key, len(jax.tree.leaves(xs))))

    def drawn(leaf: Array) -> Array:
        axes = tuple(range(1, leaf.ndim))
        low, high = leaf.min(axes, keepdims=True), leaf.max(axes, keepdims=True)
        return low + (high - low) * jax.random.uniform(next(keys), leaf.shape, leaf.dtype)

    return _each_leaf(drawn, xs, axes=1)


def _each_leaf(f: Callable[[Array], Array], xs: Inputs, axes: int) -> PyTree[Array]:
    def of_leaf(of_xs: Array | np.ndarray) -> Array:
        leaf = jnp.asarray(of_xs)
        if not is_floating(leaf):
            raise TypeError(f"`xs` must hold floating-point numbers, got {leaf.dtype}.")
        if leaf.ndim < axes:
            raise ValueError(f"`xs` must have at least {axes} axes, got shape {leaf.shape}.")
        return f(leaf).astype(leaf.dtype)

    return jax.tree.map(of_leaf, xs)
