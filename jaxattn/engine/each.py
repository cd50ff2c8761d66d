"""Many targets at once: a method is vectorised over them, and shares what depends on none."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from jaxattn._static import is_array
from jaxattn._types import Attribution, Target
from jaxattn.engine.batch import map_on_device
from jaxattn.engine.target import batch_indices, single_output

#: What `each` takes: integers, nested sequences of them, or a callable.
Indices: TypeAlias = Int[Array | np.ndarray, "..."] | Sequence[Any] | Callable[[Any], Array] | None


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["indices"], meta_fields=["select"]
)
@dataclasses.dataclass(frozen=True)
class Each:
    """Several targets, as `each` returns them.

    Attributes:
        indices: an index for each target; `None` for all entries of an array with one axis.
        select: returns that array of an output; `None` for the output itself.
    """

    indices: Any
    select: Callable[[PyTree], Array] | None = None

    def target(self, index: Int[Array, " rank"]) -> Target:
        """Return the target of one index."""
        select = self.select
        return index if select is None else lambda output: select(output)[index[0]]


def each(indices: Indices = None, /) -> Each:
    """Make a target of many: a method explains each of them, and computes once what they share.

    Any method and `jaxattn.explain` take the result as their target. Values and `info` get a
    leading axis of targets, under `jaxattn.explain` behind that of examples; `output` does not.
    They equal those of one call for each target with the same key. Evaluations of `fn`, random
    draws and perturbations do not depend on the target, and take place once.

    Cost: that of one target for methods without a backward pass, such as `jaxattn.occlusion`.
    Otherwise one backward pass for each target, or all coalitions for `jaxattn.time_shap`, whose
    groups depend on the target; each counts as an evaluation for `batch_size`, and
    where fewer than all targets fit, the shared work is repeated for each chunk of targets.

    Args:
        indices: integers of shape (K, rank) for an output with `rank` axes, or of shape (K,) for an
            output with one: K indices for all examples. Under `jaxattn.explain`, (B, K, rank) or
            (B, K), for each example its own. Without indices, all entries of an output with one
            axis. A callable from the output to an array with one axis: all entries of that.

    Raises:
        TypeError: for indices that are not integers.
        ValueError: for no indices, or a single one without an axis of targets.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> def fn(x):
        ...     return jnp.stack([x[0] * x[1], x[0] - x[1], x[1] ** 2])
        >>> ja.gradient(fn, jnp.array([2.0, 3.0]), ja.each([0, 2])).values
        Array([[3., 2.],
               [0., 6.]], dtype=float32)
    """
    if indices is None:
        return Each(None)
    if callable(indices):
        return Each(None, indices)
    array: Any = indices
    if not is_array(indices):
        try:
            array = np.asarray(indices)
        except ValueError as error:
            raise ValueError(
                f"`indices` must have one length for all targets, got {indices!r}."
            ) from error
    if array.ndim == 0:
        raise ValueError(
            f"`indices` must have an axis of targets, got {indices}: pass a list, or an int as the "
            "target itself."
        )
    if array.size == 0:
        raise ValueError(
            f"`indices` must hold at least one target, got an array of shape {array.shape}."
        )
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"`indices` must hold integers, got {array.dtype}.")
    return Each(array)


def checked_targets(target: Each, output: PyTree, batch: int | None) -> Each:
    """Check several targets against the abstract output of one example.

    Args:
        target: the targets.
        output: the output.
        batch: the number of examples, or `None` for one without a leading axis.

    Returns:
        the targets with indices of shape (K, rank), or (batch, K, rank).

    Raises:
        TypeError: for a selected array that is not floating.
        ValueError: for targets that do not fit the output.
    """
    indices, shape = target.indices, _selected(target, output).shape
    if not shape:
        raise ValueError(
            "`target` must be None or () if the output of fn is a single number, got ja.each: it "
            "takes an output with axes."
        )
    if indices is None:
        if len(shape) != 1 or shape[0] == 0:
            raise ValueError(
                f"`indices` of ja.each must have shape (K, {len(shape)}) for an output of shape "
                f"{shape}, got None, which takes all entries of an output with one axis."
            )
        indices = np.arange(shape[0])
    if batch is not None and indices.ndim > (1 if len(shape) == 1 else 2):
        if indices.shape[0] != batch:
            raise ValueError(
                f"`indices` of ja.each must have one row for each of {batch} examples, or be of "
                f"shape {'(K,)' if len(shape) == 1 else (('K', len(shape)))} for all of them, got "
                f"shape {indices.shape}."
            )
        number = batch * indices.shape[1]
        flat = batch_indices(indices.reshape(number, *indices.shape[2:]), shape, number)
        return dataclasses.replace(target, indices=flat.reshape(batch, -1, len(shape)))
    checked = batch_indices(indices, shape, indices.shape[0])
    if batch is not None:
        checked = checked[None].repeat(batch, 0)
    return dataclasses.replace(target, indices=checked)


def _selected(target: Each, output: PyTree) -> Any:
    """Return the abstract array whose entries are the targets."""
    if target.select is None:
        return single_output(output, "target")
    selected = jax.eval_shape(target.select, output)
    if not hasattr(selected, "shape") or len(selected.shape) != 1:
        got = getattr(selected, "shape", type(selected).__name__)
        raise ValueError(
            f"`indices` of ja.each must return an array with one axis if it is a callable, got "
            f"{got}."
        )
    return selected


def over_targets(
    one: Callable[[Target, int | None], Attribution],
    target: Target,
    batch_size: int | None,
    *,
    backward: bool,
) -> Attribution:
    """Run a method for one target, or vectorised over several that are checked.

    Args:
        one: runs the method for a target, with a number of evaluations in flight.
        target: one target, or `Each`.
        batch_size: the evaluations in flight, for all targets.
        backward: whether each target takes evaluations of its own, as a backward pass does.
    """
    if not isinstance(target, Each):
        return one(target, batch_size)
    indices: Any = target.indices
    at_once = number = indices.shape[0]
    if backward and batch_size is not None:
        at_once = min(number, batch_size)
        batch_size //= at_once
    found = map_on_device(lambda index: one(target.target(index), batch_size), indices, at_once)
    # The output depends on no target: XLA computes it once.
    return dataclasses.replace(found, output=jax.tree.map(lambda leaf: leaf[0], found.output))
