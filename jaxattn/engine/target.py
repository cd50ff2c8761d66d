"""Targets: select the scalar of an output that is explained."""

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
        # A constant of a traced function is no array: it has not all methods of one.
        output = jax.tree.map(
            lambda leaf: jnp.asarray(leaf) if hasattr(leaf, "dtype") else leaf, fn(x, *args)
        )
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


def select(output: PyTree, target: Target) -> Array:
    """Return the scalar of an output that a target selects.

    Raises:
        ValueError: if the target does not fit the shape of the output.
        TypeError: if the scalar is not a real floating-point number.
    """
    if callable(target):
        selected = target(output)
        if not hasattr(selected, "shape") and not isinstance(selected, (int, float)):
            raise ValueError(
                f"`target` must return one number of the output, got {type(selected).__name__}."
            )
        scalar = jnp.asarray(selected)
        if scalar.size != 1:
            raise ValueError(
                f"`target` must return one number of the output, got an array of shape "
                f"{scalar.shape}."
            )
        scalar = scalar.reshape(())
    else:
        leaf = single_output(output, "target")
        check_target(leaf.shape, target)
        scalar = leaf.reshape(()) if target is None else leaf[index(target)]
    if not jnp.issubdtype(scalar.dtype, jnp.floating):
        raise TypeError(
            f"`fn` must return real floating-point numbers, got {scalar.dtype}: convert the output "
            "with astype(jnp.float32)."
        )
    return scalar


def single_output(output: PyTree, argument: str) -> PyTree:
    """Return the one array of an output.

    Raises:
        ValueError: if there are several, with what to do about it.
    """
    leaves = jax.tree.leaves(output)
    if len(leaves) != 1:
        raise ValueError(
            f"`{argument}` must be a callable if fn returns {len(leaves)} arrays, "
            "such as lambda out: out[0][3]."
        )
    return leaves[0]


def index(target: Target) -> tuple[PyTree, ...]:
    """Return one index into an output, as a tuple with an entry for each axis."""
    if isinstance(target, (tuple, list)):
        return tuple(target)
    if not is_array(target) or target.ndim == 0:
        return (target,)
    return tuple(target[i] for i in range(target.shape[0]))


def check_target(shape: tuple[int, ...], target: Target) -> None:
    """Raise an error for a target of one example that does not fit the shape of the output."""
    if target is None:
        if np.prod(shape) != 1:
            raise ValueError(
                f"`target` is missing: the output of `fn` has shape {shape}. Pass an int, a tuple "
                f"of {len(shape)} ints, or a callable; {_batch_hint(None)}"
            )
        return
    batch_indices(target if is_array(target) else np.asarray(target), shape, batch=None)


def _batch_hint(batch: int | None) -> str:
    """Return what to do if the output has an axis of examples that was not meant."""
    if batch is None:
        return f"{MISSING_HINT}, and if x is a batch, call jaxattn.explain."
    return f"{MISSING_HINT}."


def batch_indices(
    target: Array | np.ndarray | np.generic, shape: tuple[int, ...], batch: int | None
) -> Array | np.ndarray:
    """Check targets against the shape of the output, and return them as indices.

    Args:
        target: an array of one index, or of one for each of `batch` examples.
        shape: the shape of the output for one example.
        batch: the number of examples, or `None` for one.

    Returns:
        integers of shape (rank,), or (batch, rank).

    Raises:
        TypeError: for targets that are not integers.
        ValueError: for a wrong number of them, or one that is out of range.
    """
    rank, lead = len(shape), () if batch is None else (batch,)
    one_hot = target.shape == (*lead, *shape) and shape[-1:] not in ((), (1,))
    hint = "; for one-hot targets pass target.argmax(-1)" if one_hot else ""
    if target.size == 0:  # numpy makes floats of ()
        target = target.astype(np.int32)
    if not jnp.issubdtype(target.dtype, jnp.integer):
        hint = hint or "; convert class labels with target.astype(int)"
        raise TypeError(
            f"`target` must hold integers, got {target.dtype} of shape {target.shape}{hint}."
        )
    if rank == 0 and target.shape != (*lead, 0):
        raise ValueError(
            "`target` must be None or () if the output of fn is a single number of shape (), got "
            f"{target}."
        )
    shapes = [(*lead, rank)] + [lead] * (rank == 1)
    if target.shape not in shapes:
        raise ValueError(
            f"`target` must have shape {' or '.join(map(str, shapes))} for an output of shape "
            f"{shape}, got {target.shape}{hint}; {_batch_hint(batch)}"
        )
    target = target.reshape(*lead, rank)
    if is_concrete(target):
        target = np.asarray(target)
        outside = (target < 0) | (target >= np.asarray(shape, dtype=np.int64))
        if outside.any():
            bad = target[outside.any(-1)][0] if batch is not None else target
            raise ValueError(
                f"`target` {tuple(map(int, bad))} is out of range for the output of fn, of shape "
                f"{shape}."
            )
        target = target.astype(np.int32)
    return target


def target_indices(target: Target, output: PyTree, batch: int | None) -> Array | np.ndarray | None:
    """Check a target against the abstract output of one example, and return it as indices.

    Args:
        target: the target.
        output: the output.
        batch: how many examples there are, or `None` for one without a leading axis.

    Returns:
        integers of shape (rank,) or (batch, rank); `None` for a target that is no index.

    Raises:
        TypeError: for a target of a wrong kind.
        ValueError: for a target that does not fit the output.
    """
    if target is None or callable(target):
        return None
    shape = single_output(output, "target").shape
    is_index = is_array(target) or isinstance(target, (int, tuple, list, np.generic))
    if isinstance(target, bool) or not is_index:
        raise TypeError(
            "`target` must be None, an int, a tuple of ints, an integer array or a callable, got "
            f"{target!r}."
        )
    try:
        indices = target if is_array(target) else np.asarray(target)
    except ValueError as error:
        raise ValueError(
            f"`target` must have one shape for all examples, got {target!r}."
        ) from error
    if batch is None:
        return batch_indices(indices, shape, None)
    if shape == () and indices.size:
        raise ValueError(
            "`targets` must be None or () if the output of fn is a single number for one example, "
            f"got {indices}; if xs is one example, pass xs[None], that is X[:1] instead of X[0]."
        )
    if indices.ndim and not isinstance(target, tuple):
        return batch_indices(indices, shape, batch)
    return batch_indices(indices, shape, None)[None].repeat(batch, 0)
