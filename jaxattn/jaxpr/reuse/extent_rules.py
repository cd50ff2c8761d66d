"""Rules that propagate a change of some rows through one step, by primitive.

A rule returns a `Restricted` step, which computes the affected rows alone, or `Whole` if every
element may change. A primitive without a rule is computed whole.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxattn.jaxpr.flat import Number, Step, Var, has_custom_derivative, is_elementwise
from jaxattn.jaxpr.reuse.extents import (
    UNCHANGED,
    WHOLE,
    Count,
    Rows,
    RunExtent,
    Unchanged,
    Whole,
    hull,
)


@dataclass(frozen=True)
class Restricted:
    """A step that is computed for the affected rows alone.

    Attributes:
        outputs: the extent of each output.
        cuts: the rows of each operand that are read, `Whole` for all of it. Left out if no output
            changes.
        params: the parameters of the equation that are replaced.
        trim: the rows of the outputs to keep, where the step itself is computed whole.
    """

    outputs: Sequence[RunExtent]
    cuts: Sequence[Rows | Whole] = ()
    params: Mapping[str, object] = field(default_factory=dict)
    trim: Rows | None = None

    @property
    def changes(self) -> bool:
        """Return whether any output changes."""
        return any(not isinstance(extent, Unchanged) for extent in self.outputs)

    def cost(self, step: Step, flops: int) -> int:
        """Return the operations of the step, of which `flops` would compute it whole."""
        extent = self.outputs[0] if self.outputs else UNCHANGED
        if isinstance(extent, Unchanged):
            return 0
        if isinstance(extent, Count) or self.trim is not None:
            return flops
        return flops * extent.size // step.outputs[0].shape[extent.axis]


#: The positions that a change reaches of an operand, for a rule that knows no counts.
Reached: TypeAlias = Unchanged | Rows
Rule: TypeAlias = Callable[[Step, Sequence[Reached]], Restricted | Whole]
UnaryRule: TypeAlias = Callable[[Step, Rows], Restricted | Whole]

_RULES: dict[str, Rule] = {}


def propagate(
    step: Step, extents: Sequence[RunExtent], positions: Mapping[Var, int] = MappingProxyType({})
) -> Restricted | Whole:
    """Return how to compute a step in a run that changes some of its operands in part.

    Args:
        step: the step, not a loop.
        extents: the extent of each operand.
        positions: the variables that hold the position of each element, with the axis along which
            they count.

    Returns:
        the restricted step; `Whole` if every element may change, or the primitive has no rule.
    """
    if all(isinstance(extent, Unchanged) for extent in extents):
        return Restricted([UNCHANGED] * len(step.outputs))
    if any(isinstance(extent, Count) for extent in extents):
        return _of_count(step, extents, positions)
    rule = _cellwise if is_elementwise(step) else _RULES.get(step.name)
    reached = [extent for extent in extents if not isinstance(extent, Count)]
    return WHOLE if rule is None else rule(step, reached)


def _of_count(
    step: Step, extents: Sequence[RunExtent], positions: Mapping[Var, int]
) -> Restricted | Whole:
    """Propagate a count that is given another shape, or compared with positions."""
    changed = [i for i, extent in enumerate(extents) if not isinstance(extent, Unchanged)]
    count = extents[changed[0]]
    cuts = [WHOLE] * len(step.inputs)
    if not isinstance(count, Count) or len(changed) > 1:
        return WHOLE
    if step.name in ("broadcast_in_dim", "copy", "reshape", "squeeze", "convert_element_type"):
        dtype = step.outputs[0].aval.dtype
        # In fewer bits a length could wrap around.
        exact = jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits >= 32
        return Restricted([count], cuts) if exact else WHOLE
    if step.name not in ("lt", "le", "gt", "ge"):
        return WHOLE
    other = step.inputs[1 - changed[0]]
    if not isinstance(other, Var) or other not in positions:
        return WHOLE
    axis = positions[other]
    rows = Rows(axis, max(0, count.least), other.shape[axis])
    return Restricted([rows], cuts, trim=rows) if rows.size > 0 else Restricted([UNCHANGED])


def _rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of some primitives."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def _unary_rule(*names: str) -> Callable[[UnaryRule], UnaryRule]:
    """Register a rule for a change of the first operand; with any other the step is whole."""

    def register(rule: UnaryRule) -> UnaryRule:
        def of_first(step: Step, extents: Sequence[Reached]) -> Restricted | Whole:
            first, *others = extents
            if any(isinstance(extent, Rows) for extent in others) or not isinstance(first, Rows):
                return WHOLE
            return rule(step, first)

        _rule(*names)(of_first)
        return rule

    return register


def _shape(step: Step, operand: int = 0) -> tuple[int, ...]:
    return tuple(step.inputs[operand].aval.shape)


def _moved(step: Step, rows: Rows, axis: int, **params: object) -> Restricted:
    """Return a step that carries the rows of the first operand to an axis of all outputs."""
    cuts: list[Rows | Whole] = [rows, *[WHOLE] * (len(step.inputs) - 1)]
    return Restricted([rows.on(axis)] * len(step.outputs), cuts, params)


def _moved_past(step: Step, rows: Rows, removed: Sequence[int | np.integer]) -> Restricted | Whole:
    """Return a step that removes some axes, unless the rows lie on one of them."""
    if rows.axis in removed:
        return WHOLE
    return _moved(step, rows, rows.axis - sum(int(axis) < rows.axis for axis in removed))


def _replaced(values: Sequence[object], i: int, value: object) -> tuple[object, ...]:
    return (*values[:i], value, *values[i + 1 :])


def _cellwise(step: Step, extents: Sequence[Reached]) -> Restricted | Whole:
    rows = hull(extents)
    if not isinstance(rows, Rows):
        return WHOLE
    size = step.outputs[0].shape[rows.axis]
    # An operand is a scalar, or has the output's rank, with axes of size 1 that are broadcast.
    sizes = [atom.aval.shape[rows.axis] if atom.aval.shape else 0 for atom in step.inputs]
    if any(isinstance(e, Rows) and s != size for s, e in zip(sizes, extents, strict=True)):
        return WHOLE
    outputs = [rows] * len(step.outputs)
    if has_custom_derivative(step):  # its derivative rule was traced for this very shape
        return Restricted(outputs, [WHOLE] * len(step.inputs), trim=rows)
    return Restricted(outputs, [rows if s == size else WHOLE for s in sizes])


@_unary_rule("broadcast_in_dim")
def _broadcast_in_dim(step: Step, rows: Rows) -> Restricted | Whole:
    shape = list(step.eqn.params["shape"])
    axis = int(step.eqn.params["broadcast_dimensions"][rows.axis])
    if shape[axis] != _shape(step)[rows.axis]:
        return WHOLE
    shape[axis] = rows.size
    return _moved(step, rows, axis, shape=tuple(shape))


@_unary_rule("transpose")
def _transpose(step: Step, rows: Rows) -> Restricted:
    return _moved(step, rows, list(step.eqn.params["permutation"]).index(rows.axis))


@_unary_rule("rev")
def _rev(step: Step, rows: Rows) -> Restricted:
    if rows.axis not in step.eqn.params["dimensions"]:
        return _moved(step, rows, rows.axis)
    size = _shape(step)[rows.axis]
    return Restricted([Rows(rows.axis, size - rows.hi, size - rows.lo)], [rows])


@_unary_rule("reshape")
def _reshape(step: Step, rows: Rows) -> Restricted | Whole:
    if step.eqn.params["dimensions"] is not None:
        return WHOLE
    old, new = _shape(step), list(step.outputs[0].shape)
    before, size = math.prod(old[: rows.axis]), old[rows.axis]
    for axis, length in enumerate(new):
        if length == size and math.prod(new[:axis]) == before:
            new[axis] = rows.size
            return _moved(step, rows, axis, new_sizes=tuple(new))
    return WHOLE


@_unary_rule("squeeze")
def _squeeze(step: Step, rows: Rows) -> Restricted | Whole:
    return _moved_past(step, rows, step.eqn.params["dimensions"])


@_unary_rule("unstack")
def _unstack(step: Step, rows: Rows) -> Restricted | Whole:
    return _moved_past(step, rows, [step.eqn.params["axis"]])


@_unary_rule(
    *"argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum "
    "reduce_xor".split()
)
def _reduction(step: Step, rows: Rows) -> Restricted | Whole:
    return _moved_past(step, rows, step.eqn.params["axes"])


@_unary_rule("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "split")
def _along_axis(step: Step, rows: Rows) -> Restricted | Whole:
    return WHOLE if rows.axis == step.eqn.params["axis"] else _moved(step, rows, rows.axis)


@_unary_rule("tile")
def _tile(step: Step, rows: Rows) -> Restricted | Whole:
    return WHOLE if step.eqn.params["reps"][rows.axis] != 1 else _moved(step, rows, rows.axis)


@_unary_rule("slice")
def _slice(step: Step, rows: Rows) -> Restricted | Whole:
    axis, params = rows.axis, step.eqn.params
    start, limit = (int(params[name][axis]) for name in ("start_indices", "limit_indices"))
    if params["strides"] is not None and params["strides"][axis] != 1:
        return WHOLE
    cut = rows.within(start, limit)
    if cut.size <= 0:
        return Restricted([UNCHANGED])
    return Restricted(
        [cut.shifted(-start)],
        [cut],
        {
            "start_indices": _replaced(params["start_indices"], axis, 0),
            "limit_indices": _replaced(params["limit_indices"], axis, cut.size),
        },
    )


@_unary_rule("dynamic_slice")
def _dynamic_slice(step: Step, rows: Rows) -> Restricted | Whole:
    axis, sizes = rows.axis, step.eqn.params["slice_sizes"]
    index, length, size = step.inputs[1 + axis], _shape(step)[axis], int(sizes[axis])
    if size < length and not isinstance(index, Number):
        return WHOLE
    start = min(max(int(index.val), 0), length - size) if isinstance(index, Number) else 0
    cut = rows.within(start, start + size)
    if cut.size <= 0:
        return Restricted([UNCHANGED])
    # The rows that are read are all that is sliced on this axis, so any index becomes 0.
    cuts: list[Rows | Whole] = [cut, *[WHOLE] * (len(step.inputs) - 1)]
    return Restricted(
        [cut.shifted(-start)], cuts, {"slice_sizes": _replaced(sizes, axis, cut.size)}
    )


@_unary_rule("pad")
def _pad(step: Step, rows: Rows) -> Restricted | Whole:
    config = step.eqn.params["padding_config"]
    low, high, interior = map(int, config[rows.axis])
    if low < 0 or high < 0 or interior:
        return WHOLE
    params = {"padding_config": _replaced(config, rows.axis, (0, 0, 0))}
    return Restricted([rows.shifted(low)], [rows, WHOLE], params)


@_rule("concatenate")
def _concatenate(step: Step, extents: Sequence[Reached]) -> Restricted | Whole:
    along = int(step.eqn.params["dimension"])
    rows = hull(extents)
    if not isinstance(rows, Rows):
        return WHOLE
    if rows.axis != along:
        return Restricted([rows], [rows] * len(step.inputs))
    offset, reached = 0, []
    for atom, extent in zip(step.inputs, extents, strict=True):
        reached.append(extent.shifted(offset) if isinstance(extent, Rows) else extent)
        offset += atom.aval.shape[along]
    joined = hull(reached)
    if not isinstance(joined, Rows):
        return WHOLE
    return Restricted([joined], [WHOLE] * len(step.inputs), trim=joined)


@_rule("stack")
def _stack(step: Step, extents: Sequence[Reached]) -> Restricted | Whole:
    rows = hull(extents)
    if not isinstance(rows, Rows):
        return WHOLE
    axis = rows.axis + (step.eqn.params["axis"] <= rows.axis)
    return Restricted([rows.on(axis)], [rows] * len(step.inputs))


@_rule("dot_general")
def _dot_general(step: Step, extents: Sequence[Reached]) -> Restricted | Whole:
    sources = _sources(step)
    reached = []
    for i, extent in enumerate(extents):
        if isinstance(extent, Rows):
            axes = [axis for axis, source in enumerate(sources) if source[i] == extent.axis]
            if not axes:  # a contracted axis
                return WHOLE
            reached.append(extent.on(axes[0]))
    rows = hull(reached)
    if not isinstance(rows, Rows):
        return WHOLE
    cuts = [WHOLE if axis is None else rows.on(axis) for axis in sources[rows.axis]]
    return Restricted([rows], cuts)


def _sources(step: Step) -> list[tuple[int | None, int | None]]:
    """Return the axes of both operands from which each axis of a product comes."""
    contracted, batch = step.eqn.params["dimension_numbers"]
    left, right = (
        [a for a in range(len(_shape(step, i))) if a not in (*contracted[i], *batch[i])]
        for i in (0, 1)
    )
    shared = [(int(a), int(b)) for a, b in zip(*batch, strict=True)]
    return [*shared, *[(a, None) for a in left], *[(None, b) for b in right]]


@_rule("gather")
def _gather(step: Step, extents: Sequence[Reached]) -> Restricted | Whole:
    """Propagate a change of the indices' rows, as for a table of embeddings."""
    table, rows = extents
    numbers = step.eqn.params["dimension_numbers"]
    if isinstance(table, Rows) or not isinstance(rows, Rows):
        return WHOLE
    batched = getattr(numbers, "start_indices_batching_dims", ())
    if batched or rows.axis == len(_shape(step, 1)) - 1:
        return WHOLE
    of_indices = [a for a in range(len(step.outputs[0].shape)) if a not in numbers.offset_dims]
    return Restricted([rows.on(of_indices[rows.axis])], [WHOLE, rows])
