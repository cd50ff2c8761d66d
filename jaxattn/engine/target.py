"""Which number of an output is explained: from a target to a scalar."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxattn._static import is_array, is_concrete
from jaxattn._types import Target
from jaxattn.jaxpr.readout import ends_in_softmax

#: What of an output is explained: an entry of it, or of its softmax or log-softmax.
Score: TypeAlias = Literal["logit", "probability", "log_probability"]

MISSING_HINT = "if fn takes only batches, wrap it in jaxattn.unbatched"


def scored(
    fn: Callable[..., Any], target: Target, args: tuple[Any, ...], *, score: Score = "logit"
) -> Callable[[PyTree], tuple[Array, PyTree]]:
    """Return the function from an input to the explained scalar and the whole output of `fn`.

    Args:
        fn: maps an input and `args` to an output.
        target: which entry of the output is explained.
        args: further inputs of `fn`.
        score: `"logit"` for an entry of the output itself; `"probability"` or `"log_probability"`
            for an entry of its softmax or log-softmax over the last axis.

    Raises:
        ValueError: for an unknown `score`; for a softmax over fewer than two entries, which is
            constant; or for a softmax of the output of a softmax or sigmoid.
    """
    if not isinstance(score, str) or score not in get_args(Score):
        choices = '"logit", "probability" or "log_probability"'
        raise ValueError(f"`score` must be {choices}, got {score!r}.")
    checked = score == "logit"

    def score_of(x: PyTree) -> tuple[Array, PyTree]:
        nonlocal checked
        if not checked and ends_in_softmax(fn, x, *args):
            raise ValueError(
                '`score` must be "logit" where fn already ends in a softmax or a sigmoid, got '
                f"{score!r}."
            )
        checked = True
        output = fn(x, *args)
        return select(output if score == "logit" else _normalised(output, score), target), output

    return score_of


def _normalised(output: PyTree, score: Score) -> Array:
    """Return the softmax or log-softmax of the output over its last axis."""
    leaves = jax.tree.leaves(output)
    if len(leaves) != 1:
        raise ValueError(
            f'`score` must be "logit" where fn returns {len(leaves)} arrays, and target a callable '
            f"such as lambda out: out[0][3], got {score!r}."
        )
    (logits,) = leaves
    if logits.shape[-1:] in ((), (1,)):
        raise ValueError(
            '`score` must be "logit" where the last axis of the output has fewer than two entries, '
            f"got {score!r} and shape {logits.shape}."
        )
    return (jax.nn.softmax if score == "probability" else jax.nn.log_softmax)(logits, -1)


def select(output: Any, target: Target) -> Array:
    """The scalar of an output that a target names.

    Raises:
        ValueError: if the target does not fit the output's shape.
        TypeError: if the scalar is not a real floating number.
    """
    if callable(target):
        given = target(output)
        if not hasattr(given, "shape") and not isinstance(given, (int, float)):
            raise ValueError(
                f"target must give one number of the output, got {type(given).__name__}"
            )
        picked = jnp.asarray(given)
        if picked.size != 1:
            raise ValueError(
                f"target must give one number of the output, got an array of shape {picked.shape}"
            )
        picked = picked.reshape(())
    else:
        leaf = single_output(output, "target")
        check_target(leaf.shape, target)
        picked = leaf.reshape(()) if target is None else leaf[index(target)]
    if not jnp.issubdtype(picked.dtype, jnp.floating):
        raise TypeError(f"fn must answer real floating numbers, got {picked.dtype}")
    return picked


def single_output(output: Any, argument: str) -> Any:
    """The one array of an output, or a `ValueError` that says what to do about several."""
    leaves = jax.tree.leaves(output)
    if len(leaves) != 1:
        raise ValueError(
            f"{argument} must be a callable where fn answers {len(leaves)} arrays, "
            "such as lambda out: out[0][3]"
        )
    return leaves[0]


def index(target: Target) -> tuple[Any, ...]:
    """One index into an output, as a tuple with an entry for each axis."""
    if isinstance(target, (tuple, list)):
        return tuple(target)
    if not is_array(target) or target.ndim == 0:
        return (target,)
    return tuple(target[i] for i in range(target.shape[0]))


def check_target(shape: tuple[int, ...], target: Target) -> None:
    """Refuses a target of one example that does not fit the output's shape."""
    if target is None:
        if np.prod(shape) != 1:
            raise ValueError(
                f"target is missing: fn answers shape {shape}, which of these numbers is to be "
                f"explained? Give an int, a tuple of {len(shape)}, or a callable; {MISSING_HINT}"
            )
        return
    batch_indices(target if is_array(target) else np.asarray(target), shape, batch=None)


def batch_indices(target: Any, shape: tuple[int, ...], batch: int | None) -> Any:
    """Checks targets against the output's shape and lays them out as indices.

    Args:
        target: an array of one index, or of one for each of `batch` examples.
        shape: the output's shape for one example.
        batch: how many examples, or `None` for one.

    Returns:
        integers of shape (rank,), or (batch, rank).

    Raises:
        TypeError: for targets that are not integers.
        ValueError: for a wrong number of them, or one that lies outside of the output.
    """
    rank, lead = len(shape), () if batch is None else (batch,)
    if target.size == 0:  # numpy makes floats of ()
        target = target.astype(np.int32)
    if not jnp.issubdtype(target.dtype, jnp.integer):
        raise TypeError(f"target must hold integers, got {target.dtype}")
    if rank == 0 and target.shape != (*lead, 0):
        raise ValueError(
            f"target must be None or () where fn answers a single number of shape (), got {target}"
        )
    wanted = [(*lead, rank)] + [lead] * (rank == 1)
    if target.shape not in wanted:
        raise ValueError(
            f"target has shape {target.shape}; an output of shape {shape} wants "
            + " or ".join(map(str, wanted))
            + f"; {MISSING_HINT}"
        )
    target = target.reshape(*lead, rank)
    if is_concrete(target):
        target = np.asarray(target)
        outside = (target < 0) | (target >= np.asarray(shape, dtype=np.int64))
        if outside.any():
            bad = target[outside.any(-1)][0] if batch is not None else target
            raise ValueError(
                f"target {tuple(map(int, bad))} is out of range for fn's output of shape {shape}"
            )
        target = target.astype(np.int32)
    return target
