"""How far a change of some rows of a value reaches, one step of a program after the other."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxattn.jaxpr.flat import Number, Step, Var, has_custom_derivative, is_elementwise


class Rows(NamedTuple):
    """A change that can be seen on [lo, hi) of one axis only."""

    axis: int
    lo: int
    hi: int


class Count(NamedTuple):
    """An integer, one in all cells, that where it has changed was and is at least so large.

    The length of the valid part of a series is one: steps below both the old length and the new
    one lie before either.
    """

    least: int


class Local(NamedTuple):
    """How a step is computed where something has changed, and nowhere else.

    Attributes:
        outputs: where each output has changed; `None` where it has not.
        cuts: which rows of each operand are read; `None` for all of it.
        params: the equation's parameters that are other ones then.
        trim: which rows of the outputs count, where the step has to be computed whole.
    """

    outputs: list[Any]
    cuts: list[Rows | None]
    params: dict[str, Any] = {}
    trim: Rows | None = None


def hull(changes: Sequence[Rows | None]) -> Rows | None:
    """The smallest interval around all changes; `None` if they lie on different axes."""
    found = [rows for rows in changes if rows is not None]
    if len({rows.axis for rows in found}) != 1:
        return None
    return Rows(found[0].axis, min(r.lo for r in found), max(r.hi for r in found))


def local(
    step: Step, changes: Sequence[Any], positions: Mapping[Var, int] = MappingProxyType({})
) -> Local | None:
    """How to compute a step of which some operands have changed in part.

    Args:
        step: the step, no loop.
        changes: where each operand has changed; `None` where it has not.
        positions: the variables that hold the position of each cell, and along which axis.

    Returns:
        how, or `None` if all of it has to be computed: because every cell may have changed, or
        because the primitive is not known here.
    """
    if any(isinstance(change, Count) for change in changes):
        return _counted(step, changes, positions)
    rule = _cellwise if is_elementwise(step) else _RULES.get(step.name)
    return None if rule is None else rule(step, changes)


def _counted(step: Step, changes: Sequence[Any], positions: Mapping[Var, int]) -> Local | None:
    """A count that is given another shape, or compared with the positions of cells."""
    count = next(change for change in changes if change is not None)
    whole: list[Rows | None] = [None] * len(step.inputs)
    if step.name in ("broadcast_in_dim", "copy", "reshape", "squeeze", "convert_element_type"):
        after = step.outputs[0].aval.dtype
        # In fewer bits a length could wrap around.
        holds = jnp.issubdtype(after, jnp.integer) and jnp.iinfo(after).bits >= 32
        return Local([count], whole) if holds else None
    if step.name not in ("lt", "le", "gt", "ge") or len([c for c in changes if c]) != 1:
        return None
    other = step.inputs[changes[0] is not None]
    if not isinstance(other, Var) or other not in positions:
        return None
    axis = positions[other]
    lo, hi = max(0, count.least), other.shape[axis]
    rows = Rows(axis, lo, hi) if lo < hi else None
    return Local([rows], whole, trim=rows)


def _shape(step: Step, i: int = 0) -> tuple[int, ...]:
    return tuple(step.inputs[i].aval.shape)


def _cellwise(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    whole = hull(changes)
    if whole is None:
        return None
    size = step.outputs[0].shape[whole.axis]
    # An operand is a number, or of the output's rank, with axes of size 1 that are stretched.
    sizes = [a.aval.shape[whole.axis] if a.aval.shape else 0 for a in step.inputs]
    if any(c is not None and s != size for s, c in zip(sizes, changes, strict=True)):
        return None
    outputs: list[Rows | None] = [whole] * len(step.outputs)
    if has_custom_derivative(step):  # its own derivative rule was traced for this very shape
        return Local(outputs, [None] * len(step.inputs), trim=whole)
    return Local(outputs, [whole if s == size else None for s in sizes])


def _only(changes: Sequence[Rows | None]) -> Rows | None:
    """The change of the first operand, if no other operand has changed."""
    return changes[0] if all(rows is None for rows in changes[1:]) else None


def _moved(
    step: Step, changes: Sequence[Rows | None], axis: int | None, **params: Any
) -> Local | None:
    """The rows of the first operand come out on another axis."""
    rows = _only(changes)
    if rows is None or axis is None:
        return None
    cuts = [rows, *[None] * (len(step.inputs) - 1)]
    return Local([Rows(axis, rows.lo, rows.hi)] * len(step.outputs), cuts, params)


def _broadcast_in_dim(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    rows = _only(changes)
    if rows is None:
        return None
    shape = list(step.eqn.params["shape"])
    axis = int(step.eqn.params["broadcast_dimensions"][rows.axis])
    if shape[axis] != _shape(step)[rows.axis]:
        return None
    shape[axis] = rows.hi - rows.lo
    return _moved(step, changes, axis, shape=tuple(shape))


def _transpose(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    rows = _only(changes)
    order = step.eqn.params["permutation"]
    return rows and _moved(step, changes, list(order).index(rows.axis))


def _rev(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    rows = _only(changes)
    if rows is None or rows.axis not in step.eqn.params["dimensions"]:
        return rows and _moved(step, changes, rows.axis)
    size = _shape(step)[rows.axis]
    return Local([Rows(rows.axis, size - rows.hi, size - rows.lo)], [rows])


def _reshape(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    rows, old, new = _only(changes), _shape(step), list(step.outputs[0].shape)
    if rows is None or step.eqn.params["dimensions"] is not None:
        return None
    before, size = math.prod(old[: rows.axis]), old[rows.axis]
    for axis, length in enumerate(new):
        if length == size and math.prod(new[:axis]) == before:
            new[axis] = rows.hi - rows.lo
            return _moved(step, changes, axis, new_sizes=tuple(new))
    return None


def _without(axis: int, axes: Sequence[Any]) -> int | None:
    """Where an axis lies once some others are gone; `None` if it is one of them."""
    return None if axis in axes else axis - sum(int(a) < axis for a in axes)


def _squeeze(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    rows = _only(changes)
    return rows and _moved(step, changes, _without(rows.axis, step.eqn.params["dimensions"]))


def _reduced(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    rows = _only(changes)
    return rows and _moved(step, changes, _without(rows.axis, step.eqn.params["axes"]))


def _accumulated(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    rows = _only(changes)
    along = step.eqn.params["axis"]
    return rows and _moved(step, changes, None if rows.axis == along else rows.axis)


def _part(step: Step, rows: Rows, start: int, size: int) -> tuple[Rows | None, Rows]:
    """Where [start, start + size) of an operand has changed: in the part, and in the operand."""
    lo, hi = max(rows.lo, start), min(rows.hi, start + size)
    return (Rows(rows.axis, lo - start, hi - start) if lo < hi else None), Rows(rows.axis, lo, hi)


def _replaced(values: Sequence[Any], i: int, value: Any) -> tuple[Any, ...]:
    return (*values[:i], value, *values[i + 1 :])


def _slice(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    rows, params = changes[0], step.eqn.params
    if rows is None:
        return None
    axis, strides = rows.axis, params["strides"]
    start, limit = (int(params[name][axis]) for name in ("start_indices", "limit_indices"))
    if strides is not None and strides[axis] != 1:
        return None
    inner, cut = _part(step, rows, start, limit - start)
    if inner is None:
        return Local([None], [])
    return Local(
        [inner],
        [cut],
        {
            "start_indices": _replaced(params["start_indices"], axis, 0),
            "limit_indices": _replaced(params["limit_indices"], axis, cut.hi - cut.lo),
        },
    )


def _dynamic_slice(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    rows, sizes = _only(changes), step.eqn.params["slice_sizes"]
    if rows is None:
        return None
    axis, index = rows.axis, step.inputs[1 + rows.axis]
    length, size = _shape(step)[axis], int(sizes[axis])
    if size < length and not isinstance(index, Number):
        return None
    start = min(max(int(index.val), 0), length - size) if isinstance(index, Number) else 0
    inner, cut = _part(step, rows, start, size)
    if inner is None:
        return Local([None], [])
    # The rows that are read are all that is sliced on this axis, so any index becomes 0.
    cuts = [cut, *[None] * (len(step.inputs) - 1)]
    return Local([inner], cuts, {"slice_sizes": _replaced(sizes, axis, cut.hi - cut.lo)})


def _split(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    rows, params = changes[0], step.eqn.params
    return rows and _moved(step, changes, None if rows.axis == params["axis"] else rows.axis)


def _concatenate(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    along = int(step.eqn.params["dimension"])
    whole = hull(changes)
    if whole is None:
        return None
    if whole.axis != along:
        return Local([whole], [whole] * len(step.inputs))
    begin, out = 0, []
    for atom, rows in zip(step.inputs, changes, strict=True):
        out.append(rows and Rows(along, rows.lo + begin, rows.hi + begin))
        begin += atom.aval.shape[along]
    joined = hull(out)
    return Local([joined], [None] * len(step.inputs), trim=joined)


def _stack(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    whole = hull(changes)
    if whole is None:
        return None
    after = whole.axis + (step.eqn.params["axis"] <= whole.axis)
    return Local([whole._replace(axis=after)], [whole] * len(step.inputs))


def _unstack(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    rows = _only(changes)
    return rows and _moved(step, changes, _without(rows.axis, [step.eqn.params["axis"]]))


def _tile(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    rows = _only(changes)
    repeats = rows is not None and step.eqn.params["reps"][rows.axis] != 1
    return rows and _moved(step, changes, None if repeats else rows.axis)


def _pad(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    rows, config = _only(changes), step.eqn.params["padding_config"]
    if rows is None:
        return None
    low, high, interior = map(int, config[rows.axis])
    if low < 0 or high < 0 or interior:
        return None
    return Local(
        [Rows(rows.axis, rows.lo + low, rows.hi + low)],
        [rows, None],
        {"padding_config": _replaced(config, rows.axis, (0, 0, 0))},
    )


def _dot_general(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    contracted, batch = step.eqn.params["dimension_numbers"]
    free = [
        [a for a in range(len(_shape(step, i))) if a not in (*contracted[i], *batch[i])]
        for i in (0, 1)
    ]
    after = len(batch[0]), len(batch[0]) + len(free[0])
    out: list[Rows | None] = []
    cuts: list[Rows | None] = []
    for i, rows in enumerate(changes):
        if rows is None:
            continue
        if rows.axis in contracted[i]:
            return None
        if rows.axis in free[i]:
            out.append(Rows(after[i] + free[i].index(rows.axis), rows.lo, rows.hi))
        else:
            out.append(Rows(list(batch[i]).index(rows.axis), rows.lo, rows.hi))
    whole = hull(out)
    if whole is None:
        return None
    for i in (0, 1):
        if whole.axis < len(batch[0]):
            cuts.append(Rows(batch[i][whole.axis], whole.lo, whole.hi))
        elif 0 <= whole.axis - after[i] < len(free[i]):
            cuts.append(Rows(free[i][whole.axis - after[i]], whole.lo, whole.hi))
        elif changes[i] is not None:
            return None
        else:
            cuts.append(None)
    return Local([whole], cuts)


def _gather(step: Step, changes: Sequence[Rows | None]) -> Local | None:
    """Rows of the indices, as in a table of embeddings."""
    table, rows = changes
    numbers = step.eqn.params["dimension_numbers"]
    batching = getattr(numbers, "start_indices_batching_dims", ())
    if table is not None or rows is None or batching or rows.axis == len(_shape(step, 1)) - 1:
        return None
    of_indices = [a for a in range(len(step.outputs[0].shape)) if a not in numbers.offset_dims]
    return Local([Rows(of_indices[rows.axis], rows.lo, rows.hi)], [None, rows])


_RULES: dict[str, Callable[[Step, Sequence[Rows | None]], Local | None]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
    "unstack": _unstack,
    **dict.fromkeys(
        "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum "
        "reduce_xor".split(),
        _reduced,
    ),
    **dict.fromkeys("cumlogsumexp cummax cummin cumprod cumsum".split(), _accumulated),
}
