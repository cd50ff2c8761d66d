"""Axes of arrays, followed through the steps that lay arrays out."""

from collections.abc import Iterable, Sequence

from jaxattn.jaxpr.flat import Step

#: Primitives whose output has the axes of the first operand.
SAME_AXES = frozenset(
    "concatenate copy cummax cummin cumsum dynamic_slice dynamic_update_slice name "
    "optimization_barrier pad reduce_precision reduce_window_max reduce_window_sum rev "
    "scatter scatter-add sharding_constraint slice sort split".split()
)


def source_axes(step: Step, axis: int) -> tuple[int, ...] | None:
    """Return the axes of the first operand that an axis of the output consists of.

    Args:
        step: a step that lays out its operand, or reduces it.
        axis: an axis of its output.

    Returns:
        The axes; none for a new one. `None` if the step is of another kind.
    """
    params, shape = step.eqn.params, step.inputs[0].aval.shape
    if step.name in SAME_AXES:
        return (axis,)
    if step.name == "transpose":
        return (int(params["permutation"][axis]),)
    if step.name == "broadcast_in_dim":
        kept = [int(i) for i in params["broadcast_dimensions"]]
        same = axis in kept and shape[kept.index(axis)] == step.outputs[0].shape[axis]
        return (kept.index(axis),) if same else ()
    if step.name == "squeeze":
        return (_without(map(int, params["dimensions"]), len(shape))[axis],)
    if step.name.startswith(("reduce_", "argm")) and "axes" in params:
        return (_without(map(int, params["axes"]), len(shape))[axis],)
    if step.name == "reshape":
        return _overlapping(step.outputs[0].shape, shape, axis)
    return None


def target_axis(step: Step, axis: int) -> int | None:
    """Return the axis of the output that an axis of the first operand becomes, or a part of.

    Args:
        step: a step that lays out its operand.
        axis: an axis of the operand, of more than one element.

    Returns:
        The axis; `None` if there is none, or several, or the step is of another kind.
    """
    rank = len(step.outputs[0].shape)
    found = [i for i in range(rank) if axis in (source_axes(step, i) or ())]
    return found[0] if len(found) == 1 else None


def _without(removed: Iterable[int], rank: int) -> list[int]:
    """Return the axes of an operand that are left."""
    gone = {axis % rank for axis in removed}
    return [axis for axis in range(rank) if axis not in gone]


def _overlapping(shape: Sequence[int], other: Sequence[int], axis: int) -> tuple[int, ...]:
    """Return the axes of another shape, of as many elements, that overlap with an axis."""
    start, end = _extent(shape, axis)
    overlapping = []
    for i, size in enumerate(other):
        low, high = _extent(other, i)
        # From the slowest axis to the fastest: an axis spans the products of sizes between.
        if size > 1 and low < end and start < high:
            overlapping.append(i)
    return tuple(overlapping)


def _extent(shape: Sequence[int], axis: int) -> tuple[int, int]:
    """Return the products of the sizes before an axis, and up to its end."""
    before = 1
    for size in shape[:axis]:
        before *= size
    return before, before * shape[axis]
