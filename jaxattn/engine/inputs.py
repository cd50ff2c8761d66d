"""Checks of the inputs: arrays of finite numbers, a random key, a baseline that fits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jaxattn._static import is_array, is_concrete
from jaxattn.engine.perturb import check_baseline

#: Numbers that one core tests in a tenth of a millisecond.
_FEW = 2**18

#: What JAX takes for an array.
NUMBERS = jax.Array, np.ndarray, np.generic, int, float, complex

#: Python's own numbers.
_PLAIN = bool, int, float, complex

#: Beyond it a Python number may be infinite as an array.
_LARGEST = float(np.finfo(np.float32).max)


def check_inputs(name: str, x: PyTree, args: object, key: object) -> None:
    """Raise an error for inputs that are not arrays, and for a key that is none.

    Args:
        name: `"x"`, or `"xs"` for a batch.
        x: the input.
        args: further inputs of `fn`.
        key: a random key or `None`.
    """
    if not isinstance(args, (tuple, list)):
        raise TypeError(
            f"`args` must be a tuple of further inputs of fn, got {type(args).__name__}."
        )
    if not jax.tree.leaves(x):
        raise ValueError(f"`{name}` must hold at least one array, got an empty pytree: {x!r}.")
    _check_arrays(name, x)
    for i, argument in enumerate(args):
        _check_arrays(f"args[{i}]", argument)
    if key is not None:
        check_key(key)


def _check_arrays(name: str, x: PyTree) -> None:
    leaves = jax.tree.leaves(x)
    if leaves and type(leaves[0]) in _PLAIN and _is_listed(x):
        raise TypeError(
            f"`{name}` must hold arrays, got a list of numbers, each of which would be an input of "
            f"its own: pass an array, such as np.array({name})."
        )
    for leaf in leaves:
        if not isinstance(leaf, NUMBERS):
            raise TypeError(f"`{name}` must hold arrays, got {type(leaf).__name__} {leaf!r}.")
        if isinstance(leaf, np.ma.MaskedArray):
            raise TypeError(f"`{name}` must hold plain arrays, got a masked one: fill it first.")
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "biufcV":
            raise TypeError(f"`{name}` must hold numbers, got an array of dtype {leaf.dtype}.")


def _is_listed(x: PyTree) -> bool:
    """Return whether all that a pytree holds are lists of Python numbers, at whatever depth."""

    def is_list(node: object) -> bool:
        return isinstance(node, list)

    def is_listed(node: object) -> bool:
        if isinstance(node, list | tuple):
            return type(node) in (list, tuple) and all(map(is_listed, node))
        return type(node) in _PLAIN

    return all(is_list(n) and is_listed(n) for n in jax.tree.leaves(x, is_leaf=is_list))


def check_baseline_option(options: dict[str, Any], explained: PyTree, check_finite: bool) -> None:
    """Raise an error for a baseline that does not fit what is explained, or is not finite.

    A background set is checked for finite numbers only: methods check the rest.
    """
    background = options.get("background")
    if check_finite and background is not None and all(map(is_array, jax.tree.leaves(background))):
        check_finite_numbers("background", background)
    baseline = options.get("baseline")
    if baseline is None or isinstance(baseline, str):
        return
    check_baseline(baseline, explained)
    plain = isinstance(baseline, (int, float)) and abs(baseline) <= _LARGEST
    if check_finite and not plain:
        check_finite_numbers("baseline", baseline)


def check_key(key: object) -> None:
    """Raise an error for what is not a random key."""
    if not _is_key(key):
        raise TypeError(f"`key` must be a random key such as jax.random.key(0), got {key!r}.")


def _is_key(key: object) -> bool:
    if not isinstance(key, jax.Array | np.ndarray):
        return False
    if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key.ndim == 0
    return key.ndim == 1 and key.dtype == np.uint32


def check_finite_numbers(name: str, xs: PyTree, *, optional: bool = True) -> None:
    """Raise an error for NaN and infinity, which would make attributions NaN in silence.

    Args:
        name: the name of the argument.
        xs: its value.
        optional: whether the caller has an option `check_finite`.
    """
    # Arrays may be concrete inside of a trace too. A number that overflows in the dtype that JAX
    # casts it to counts as infinite.
    with jax.ensure_compile_time_eval(), np.errstate(over="ignore"):
        leaves = [x for x in jax.tree.leaves(xs) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
        if all(map(is_concrete, leaves)) and not _all_finite(leaves):
            count = sum(int((~jnp.isfinite(leaf)).sum()) for leaf in leaves)
            remedy = "; check_finite=False skips this check." if optional else "."
            raise ValueError(
                f"`{name}` holds {count} NaN or infinite numbers as {jnp.result_type(leaves[0])}"
                + remedy
            )


def _all_finite(leaves: list[Any]) -> bool:
    if all(map(_is_near, leaves)):
        return all(np.isfinite(_as_in_jax(leaf)).all() for leaf in leaves)
    return bool(_all_finite_on_device(leaves))


def _is_near(leaf: ArrayLike) -> bool:
    """Return whether numpy tests an array faster than the device that holds it."""
    if isinstance(leaf, jax.Array) and [d.platform for d in leaf.devices()] != ["cpu"]:
        return False
    return np.size(leaf) <= _FEW and jnp.result_type(leaf).kind in "fc"  # the dtypes of numpy


def _as_in_jax(leaf: ArrayLike) -> jax.Array | np.ndarray:
    """Return numbers in the dtype that JAX will give them: float64 is often float32 there."""
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf, jnp.result_type(leaf))


@jax.jit
def _all_finite_on_device(leaves: list[jax.Array]) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))
