"""What a call may be given: arrays of finite numbers, a random key, a baseline that fits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._static import is_array, is_concrete
from jaxattn.engine.perturb import check_baseline

#: Numbers that one core looks through in a tenth of a millisecond.
_FEW = 2**18

#: What JAX takes for an array.
NUMBERS = jax.Array, np.ndarray, np.generic, int, float, complex

#: Python's own numbers.
_PLAIN = bool, int, float, complex

#: Beyond it a Python number may be infinite as an array.
_LARGEST = float(np.finfo(np.float32).max)


def check_inputs(name: str, x: Any, args: Any, key: Any) -> None:
    """Refuses what is no array where arrays are wanted."""
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple of further inputs, got {type(args).__name__}")
    leaves = jax.tree.leaves(x)
    if not leaves:
        raise ValueError(f"{name} must hold at least one array, got an empty pytree: {x!r}")
    if type(leaves[0]) in _PLAIN and _is_listed(x):
        raise TypeError(
            f"{name} must hold arrays, got a list of numbers, each of which would be an input of "
            f"its own: give an array, such as np.array({name})"
        )
    for what, leaf in [(name, leaf) for leaf in leaves] + [
        ("args", a) for a in jax.tree.leaves(args)
    ]:
        if not isinstance(leaf, NUMBERS):
            raise TypeError(f"{what} must hold arrays, got {type(leaf).__name__} {leaf!r}")
        if isinstance(leaf, np.ma.MaskedArray):
            raise TypeError(f"{what} must hold plain arrays, got a masked one: fill it first")
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "biufcV":
            raise TypeError(f"{what} must hold numbers, got an array of dtype {leaf.dtype}")
    if key is not None and not _is_key(key):
        raise TypeError(f"key must be a random key such as jax.random.key(0), got {key!r}")


def _is_listed(x: Any) -> bool:
    """Whether all that a pytree holds are lists of Python numbers, at whatever depth."""

    def is_list(node: Any) -> bool:
        return isinstance(node, list)

    def is_listed(node: Any) -> bool:
        return type(node) in _PLAIN or (type(node) in (list, tuple) and all(map(is_listed, node)))

    return all(is_list(n) and is_listed(n) for n in jax.tree.leaves(x, is_leaf=is_list))


def check_baseline_option(options: dict[str, Any], explained: Any, check_finite: bool) -> None:
    """Refuses a baseline that does not fit what is explained, or is not finite."""
    baseline = options.get("baseline")
    if baseline is None or isinstance(baseline, str):
        return
    check_baseline(baseline, explained)
    plain = isinstance(baseline, (int, float)) and abs(baseline) <= _LARGEST
    if check_finite and not plain:
        check_finite_numbers("baseline", baseline)


def _is_key(key: Any) -> bool:
    if not is_array(key):
        return False
    if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key.ndim == 0
    return key.ndim == 1 and key.dtype == np.uint32


def check_finite_numbers(name: str, xs: Any) -> None:
    """Refuses NaN and infinity, which would come back as NaN attributions without a word."""
    # Numbers may be known inside of a trace too. What overflows as JAX casts it counts as infinite.
    with jax.ensure_compile_time_eval(), np.errstate(over="ignore"):
        _refuse_nan(name, xs)


def _refuse_nan(name: str, xs: Any) -> None:
    leaves = [x for x in jax.tree.leaves(xs) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    if all(map(is_concrete, leaves)) and not _all_finite(leaves):
        count = sum(int((~jnp.isfinite(leaf)).sum()) for leaf in leaves)
        raise ValueError(
            f"{name} holds {count} NaN or infinite numbers as {jnp.result_type(leaves[0])}; "
            "check_finite=False lets them pass"
        )


def _all_finite(leaves: list[Any]) -> bool:
    if all(map(_is_near, leaves)):
        return all(np.isfinite(_as_in_jax(leaf)).all() for leaf in leaves)
    return bool(_all_finite_there(leaves))


def _is_near(leaf: Any) -> bool:
    """Whether numpy can look at a few numbers faster than a device can be asked to."""
    if isinstance(leaf, jax.Array) and [d.platform for d in leaf.devices()] != ["cpu"]:
        return False
    return np.size(leaf) <= _FEW and jnp.result_type(leaf).kind in "fc"  # the dtypes of numpy


def _as_in_jax(leaf: Any) -> Any:
    """Numbers in the dtype that JAX will give them: float64 is often float32 there."""
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf, jnp.result_type(leaf))


@jax.jit
def _all_finite_there(leaves: list[Any]) -> Any:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))
