"""Background sets: examples that stand for the data, as an option of a method."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxattn._static import is_array


def check_background(background: PyTree, x: PyTree) -> PyTree:
    """Return a background set as arrays of the dtypes of `x`.

    Args:
        background: the option, a pytree like `x` with a leading axis of examples.
        x: one example.

    Raises:
        TypeError: for a background that does not hold arrays, or no integers where `x` does.
        ValueError: for a missing background, another structure or other shapes, a single example
            without the leading axis, or no examples.
    """
    background_size(background, x)
    return jax.tree.map(lambda set_, leaf: jnp.asarray(set_).astype(leaf.dtype), background, x)


def background_size(background: PyTree, x: PyTree) -> int:
    """Check a background set, and return the number of its examples.

    Args:
        background: as for `check_background`.
        x: one example, abstract or not.
    """
    if background is None:
        raise ValueError(
            "`background` is missing: pass a set of examples like x, with a leading axis."
        )
    leaves, sets = jax.tree.leaves(x), jax.tree.leaves(background)
    treedef: Any = jax.tree.structure(x)
    structure: Any = jax.tree.structure(background)
    if structure != treedef:
        hint = "; for a list of examples pass np.stack(background)" if len(leaves) == 1 else ""
        raise ValueError(f"`background` must be a pytree like x, {treedef}, got {structure}{hint}.")
    for set_, leaf in zip(sets, leaves, strict=True):
        _check_leaf(set_, leaf)
    sizes = [set_.shape[0] for set_ in sets]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"`background` must have leading axes of one length, that of its examples, got {sizes}."
        )
    return int(sizes[0])


def _check_leaf(set_: Any, leaf: Any) -> None:
    if not is_array(set_):
        raise TypeError(f"`background` must hold arrays, got {set_!r}.")
    if set_.shape == leaf.shape:
        raise ValueError(
            f"`background` must have a leading axis of examples before {leaf.shape}, the shape of "
            f"x, got {set_.shape}: pass background[None] for a set of one example."
        )
    if set_.ndim == 0 or set_.shape[1:] != leaf.shape:
        raise ValueError(
            f"`background` must have the shape (N, {', '.join(map(str, leaf.shape))}), that of x "
            f"with a leading axis of N examples, got {set_.shape}."
        )
    if set_.shape[0] == 0:
        raise ValueError(f"`background` must hold at least one example, got {set_.shape}.")
    exact = not jnp.issubdtype(leaf.dtype, jnp.inexact)
    if exact and jnp.issubdtype(set_.dtype, jnp.inexact):
        raise TypeError(f"`background` must hold integers like x, {leaf.dtype}, got {set_.dtype}.")
    if jnp.iscomplexobj(set_) and not jnp.iscomplexobj(leaf):
        raise TypeError(f"`background` must be real like x, {leaf.dtype}, got {set_.dtype}.")
