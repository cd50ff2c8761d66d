"""The series that a loop runs over, followed back to the values that it is computed from."""

from dataclasses import dataclass

from jaxattn.jaxpr.flat import Atom, Flat, Step, Var
from jaxattn.jaxpr.structure.axes import KEEPING

#: Steps that treat all time steps alike, if their other operands do not vary in time.
_STEPWISE = frozenset("add add_any sub mul div neg".split())


@dataclass(frozen=True)
class Series:
    """A value with an axis of time steps.

    Attributes:
        var: the value.
        axis: its axis of time steps.
        flipped: whether a loop over this axis runs from its end to its beginning.
        feature_axis: the axis that a projection contracts; `None` if there is no projection.
    """

    var: Var
    axis: int = 0
    flipped: bool = False
    feature_axis: int | None = None


def follow(flat: Flat, var: Var, varying: set[Var]) -> Series:
    """Follow the operand of a scan back to the value that it lays out or is a projection of.

    Args:
        flat: the function.
        var: the operand, with time steps along its first axis.
        varying: the values that depend on the input.
    """
    producers = {output: step for step in flat.steps for output in step.outputs}
    series = Series(var)
    while True:
        step = producers.get(series.var)
        before = None if step is None else _before(step, series, varying, producers)
        if before is None:
            return series
        series = before


def _before(
    step: Step, series: Series, varying: set[Var], producers: dict[Var, Step]
) -> Series | None:
    """Return the series in the operand of a step; `None` if the step does something else."""
    operands = [v for v in step.variables if v in varying]
    if len(operands) != 1 or not operands[0].is_floating:
        return None
    (operand,) = operands
    if step.name == "rev":
        flips = series.axis in step.eqn.params["dimensions"]
        return Series(operand, series.axis, series.flipped ^ flips, series.feature_axis)
    if step.name == "dot_general":
        return _projected(step, operand, series)
    axis = _axis_before(step, operand, series.axis, producers)
    if axis is None or (step.name in _STEPWISE and series.feature_axis is not None):
        return None
    feature = series.feature_axis
    if feature is not None:
        feature = _axis_before(step, operand, feature, producers)
        if feature is None:
            return None
    return Series(operand, axis, series.flipped, feature)


def _axis_before(step: Step, operand: Var, axis: int, producers: dict[Var, Step]) -> int | None:
    """Return the axis of an operand that an axis of the output is."""
    params = step.eqn.params
    if step.name in _STEPWISE:
        others = [a for a in step.inputs if a is not operand]
        if step.name == "div" and step.inputs[0] is not operand:
            return None
        same = operand.shape == step.outputs[0].shape
        constant = all(_is_equal_along(a, axis, producers) for a in others)
        return axis if same and constant else None
    if step.name not in KEEPING:
        return None
    if step.name == "transpose":
        return int(params["permutation"][axis])
    if step.name == "broadcast_in_dim":
        kept = list(params["broadcast_dimensions"])
        return kept.index(axis) if axis in kept else None
    if operand.shape == step.outputs[0].shape:
        return axis
    return _among_longer(step.outputs[0].shape, operand.shape, axis)


def _is_equal_along(atom: Atom, axis: int, producers: dict[Var, Step]) -> bool:
    """Return whether a value is a number, or has the same elements at all positions of an axis."""
    shape = atom.aval.shape
    if not shape or shape[axis] == 1:
        return True
    step = producers.get(atom) if isinstance(atom, Var) else None
    if step is None or step.name != "broadcast_in_dim":
        return False
    kept = list(step.eqn.params["broadcast_dimensions"])
    return axis not in kept or step.inputs[0].aval.shape[kept.index(axis)] == 1


def _among_longer(after: tuple[int, ...], before: tuple[int, ...], axis: int) -> int | None:
    """Return where an axis was before axes of one element were added or removed."""
    wide = [i for i, n in enumerate(after) if n > 1]
    wide_before = [i for i, n in enumerate(before) if n > 1]
    if [after[i] for i in wide] != [before[i] for i in wide_before]:
        return None
    if axis in wide:
        return wide_before[wide.index(axis)]
    return axis if len(before) > axis and before[axis] == 1 else None


def _projected(step: Step, operand: Var, series: Series) -> Series | None:
    """Return the series behind a product with weights, which contracts one axis."""
    if series.feature_axis is not None:
        return None
    (left, right), (batch, _) = step.eqn.params["dimension_numbers"]
    is_left = step.inputs[0] is operand
    contracted = left if is_left else right
    if len(contracted) != 1 or batch:
        return None
    free = [axis for axis in range(len(operand.shape)) if axis not in contracted]
    offset = 0 if is_left else len(step.outputs[0].shape) - len(free)
    position = series.axis - offset
    if not 0 <= position < len(free):
        return None
    return Series(operand, free[position], series.flipped, int(contracted[0]))
