"""Values of an attribution, checked and flattened over all leaves, and their order."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from jaxattn._types import Attribution, Inputs
from jaxattn.engine.batch import wide
from jaxattn.engine.inputs import check_finite_numbers


def values_of(attribution: Attribution | PyTree[ArrayLike]) -> PyTree[Array]:
    """Return the values of an attribution of at least one example, all of them finite.

    Raises:
        ValueError: for no examples, no features, or values that are not finite.
    """
    values = attribution.values if isinstance(attribution, Attribution) else attribution
    leaves = jax.tree.leaves(values)
    if any(isinstance(leaf, str) for leaf in leaves):
        raise TypeError(f"`attribution` must hold arrays of numbers, got {values!r:.60}.")
    if leaves and all(isinstance(leaf, (int, float)) for leaf in leaves):
        raise TypeError(
            "`attribution` must hold arrays, got nested lists of numbers: pass numpy.asarray of "
            "them."
        )
    check_finite_numbers("attribution", values, optional=False)
    values = jax.tree.map(jnp.asarray, values)
    leaves = jax.tree.leaves(values)
    if not leaves or any(leaf.ndim == 0 or leaf.shape[0] == 0 for leaf in leaves):
        raise ValueError(
            "`attribution` must have a leading axis of at least one example, got shapes "
            f"{[leaf.shape for leaf in leaves]}."
        )
    if len({leaf.shape[0] for leaf in leaves}) > 1 or not sum(leaf[0].size for leaf in leaves):
        raise ValueError(
            "`attribution` must hold features of as many examples in each array, got shapes "
            f"{[leaf.shape for leaf in leaves]}."
        )
    return values


def values_like(attribution: Attribution | PyTree[ArrayLike], xs: Inputs) -> PyTree[ArrayLike]:
    """Return the values of an attribution, once their shape and numbers are checked."""
    values = attribution.values if isinstance(attribution, Attribution) else attribution
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (values, xs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"`attribution` must have the shape of xs, {shapes[1]}, got {shapes[0]}; sum values of "
            "an intermediate (at=) over the axes that xs does not have."
        )
    check_finite_numbers("attribution", values, optional=False)
    return values


def features_of(values: PyTree[Any]) -> int:
    """Return the number of features of one example of a batch, at least one."""
    features = sum(math.prod(jnp.shape(leaf)[1:]) for leaf in jax.tree.leaves(values))
    if not features:
        raise ValueError("`xs` must hold at least one feature, got none.")
    return features


def flat(tree: PyTree[Array | np.ndarray]) -> Float[Array, " n"]:
    """Return the elements of all leaves as one floating-point array, of at least 32 bits."""
    leaves = jax.tree.leaves(tree)
    dtypes = [wide(leaf.dtype) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    dtype = max(dtypes, key=lambda d: jnp.finfo(d).bits, default=jnp.result_type(float))
    return jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in leaves])


def unflat(flat: Array, like: PyTree[Array | np.ndarray]) -> PyTree[Array]:
    """Return the elements of a flat array in the structure and the shapes of a pytree."""
    leaves, treedef = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = jnp.split(flat, ends[:-1])
    return jax.tree.unflatten(
        treedef, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )


def ranks(values: Float[Array, " n"]) -> Int[Array, " n"]:
    """Return the place of each value in the order from the highest; ties keep their order."""
    order = jnp.argsort(values, descending=True, stable=True)
    places = jnp.arange(values.size, dtype=jnp.int32)
    return jnp.zeros(values.size, jnp.int32).at[order].set(places)


def replaced(x: Inputs, by: Inputs, mask: Array) -> Inputs:
    """Return the input with the features of a flat mask replaced."""
    return jax.tree.map(lambda m, a, b: jnp.where(m, b, a), unflat(mask, x), x, by)


def widened(number: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return numbers in the dtype in which to subtract and square: at least 32 bits."""
    return number.astype(wide(number.dtype))


def scaled(values: Float[Array, "*n m"]) -> Float[Array, "*n m"]:
    """Divide by the largest magnitude of the last axis: squares neither overflow nor vanish."""
    largest = jnp.abs(values).max(-1, keepdims=True)
    return values / jnp.where(largest > 0, largest, 1)


def norm(values: Float[Array, "*n m"]) -> Float[Array, "*n"]:
    """Return the Euclidean norm over the last axis."""
    return jnp.abs(values).max(-1) * jnp.linalg.norm(scaled(values), axis=-1)


def correlation(a: Float[Array, "*n m"], b: Float[Array, "*n m"]) -> Float[Array, "*n"]:
    """Return Pearson's correlation over the last axis; NaN if either is constant up to rounding."""

    def centred(values: Array) -> tuple[Array, Array]:
        rest = values - values.mean(-1, keepdims=True)
        size, norm = (jnp.linalg.norm(v, axis=-1) for v in (values, rest))
        constant = norm <= 16 * jnp.finfo(values.dtype).eps * size
        return rest, jnp.where(constant, jnp.nan, norm)

    (a, of_a), (b, of_b) = centred(scaled(a)), centred(scaled(b.astype(a.dtype)))
    return jnp.clip((a * b).sum(-1) / (of_a * of_b), -1, 1)


def mean_ranks(values: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return the rank of each value from the lowest, ties sharing their mean."""
    ordered = jnp.sort(values)
    below, up_to = (jnp.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (below + up_to).astype(values.dtype) / 2
