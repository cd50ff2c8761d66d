"""Convergence: whether values sum to the difference of a score, and a warning if they do not."""

import atexit
import warnings
from collections import deque
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxattn._static import is_concrete
from jaxattn._types import Attribution, ConvergenceWarning, Scalar

#: The largest convergence delta without a warning, relative to the difference of the score.
TOLERANCE = 0.01

#: Differences of this many units of rounding of the score count as zero.
_ROUNDING = 1e4


def convergence(total: Scalar, score: Scalar, score_start: Scalar) -> dict[str, Array]:
    """Return the convergence delta, and its magnitude relative to the difference of the score.

    Args:
        total: the sum of the values.
        score: the target at the input.
        score_start: the target at the baseline.
    """
    difference = score - score_start
    delta = total - difference
    rounding = jnp.asarray(_ROUNDING * jnp.finfo(score.dtype).eps, score.dtype)
    least = rounding * jnp.maximum(jnp.abs(score), jnp.abs(score_start))
    size = jnp.maximum(jnp.abs(difference), least)
    relative = jnp.abs(delta) / jnp.where(size == 0, 1, size)
    return {"delta": delta, "relative_delta": relative}


class _Check(NamedTuple):
    """The result of a call that is to be checked."""

    method: str
    remedy: str
    delta: jax.Array
    relative: jax.Array


#: Checks of results that an accelerator had not computed yet when their call returned.
_pending: deque[_Check] = deque()


def _is_ready(array: Any) -> bool:
    """Return whether an array has been computed; the class `jax.Array` does not declare this."""
    return bool(array.is_ready())


def check_convergence(method: str, remedy: str, result: Attribution) -> None:
    """Warn if the values of an output do not sum to the difference of its score.

    Args:
        method: the name of the method.
        remedy: advice, part of the warning.
        result: the result; without `info["relative_delta"]` it is not checked.

    A result on an accelerator is not waited for: it is checked by the next call that finds it
    complete, or at exit.
    """
    while _pending and _is_ready(_pending[0].relative):
        _warn(_pending.popleft())
    relative = result.info.get("relative_delta")
    if relative is None or not is_concrete(relative):
        return
    check = _Check(method, remedy, result.info["delta"], relative)
    on_cpu = all(device.platform == "cpu" for device in relative.devices())
    if on_cpu or _is_ready(relative):
        _warn(check)
    else:
        _pending.append(check)


@atexit.register
def _finish() -> None:
    while _pending:
        _warn(_pending.popleft())


def _warn(check: _Check) -> None:
    relative = np.ravel(check.relative)
    missed = ~(relative <= TOLERANCE)  # NaN, too
    if not missed.any():
        return
    delta = np.ravel(check.delta)
    worst = np.argmax(np.where(np.isnan(relative), np.inf, relative))
    warnings.warn(
        f"{check.method}: the values of {missed.sum()} of {missed.size} outputs do not sum to the "
        f"difference between the target at the input and at the baseline. The largest delta is "
        f"{delta[worst]:.3g}, {relative[worst]:.3g} of the difference; see info['relative_delta']. "
        f"{check.remedy}",
        ConvergenceWarning,
        stacklevel=6,
    )
