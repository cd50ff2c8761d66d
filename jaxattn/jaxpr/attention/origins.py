"""The origin of an axis: positions of an input, or features that parameters add."""

import enum

from jaxattn.jaxpr.attention.axis_sources import source_axes
from jaxattn.jaxpr.attention.sites import AxisOf, Site
from jaxattn.jaxpr.flat import Step, Var, is_elementwise


class Origin(enum.Flag):
    """Where the elements along an axis come from."""

    #: The elements are not known to differ, or the step behind them is not known.
    UNKNOWN = 0
    #: An axis of an input, or the steps of a loop.
    INPUT = enum.auto()
    #: An axis of the parameters of a layer, such as the features of a dense layer.
    PARAMETER = enum.auto()


def origin(of: AxisOf, deep: bool, visited: set[tuple[Var, int]] | None = None) -> Origin:
    """Return the origin of an axis of a value that depends on the input.

    Values that do not depend on the input, such as biases and masks, are left out where they are
    added to, or multiplied by, values that do.

    Args:
        of: the axis.
        deep: whether an axis of a product is followed into the operand. Otherwise it is that of
            positions if the operand depends on the input.
        visited: what has been visited.
    """
    visited = set() if visited is None else visited
    site, var, axis = of
    if not isinstance(var, Var) or not var.shape or (var, axis) in visited:
        return Origin.UNKNOWN
    visited.add((var, axis))
    if not site.depends(var):
        return Origin.PARAMETER
    step = site.structure.producers.get(var)
    if step is None:
        operand = site.operand_of(var, axis)
        return Origin.INPUT if operand is None else origin(operand, deep, visited)
    found = Origin.UNKNOWN
    for source in _sources(site, step, var, axis):
        if isinstance(source, Origin):
            found |= source
        elif step.name == "dot_general" and not deep:
            found |= Origin.INPUT if site.depends(source.atom) else Origin.PARAMETER
        else:
            found |= origin(source, deep, visited)
    return found


def _sources(site: Site, step: Step, var: Var, axis: int) -> list[AxisOf | Origin]:
    """Return the axes that an axis of a step's output comes from, or their origin."""
    if step.name in ("scan", "cond"):
        return _sources_in_bodies(site, step, step.outputs.index(var), axis)
    if step.name == "dot_general":
        return _sources_of_product(site, step, axis)
    if step.name == "conv_general_dilated":
        numbers = step.eqn.params["dimension_numbers"]
        position = numbers.out_spec.index(axis)
        if position == 1:
            return [Origin.PARAMETER]
        return [AxisOf(site, step.inputs[0], numbers.lhs_spec[position])]
    if step.name == "gather":
        numbers = step.eqn.params["dimension_numbers"]
        if axis in numbers.offset_dims:
            return [Origin.UNKNOWN]
        batch = [i for i in range(len(var.shape)) if i not in numbers.offset_dims]
        return [AxisOf(site, step.inputs[1], batch.index(axis))]
    if is_elementwise(step) or step.name in ("concatenate", "dynamic_update_slice", "scatter"):
        return [
            AxisOf(site, atom, axis)
            for atom in step.variables
            if site.depends(atom) and len(atom.shape) == len(var.shape)
        ]
    axes = source_axes(step, axis)
    return [] if axes is None else [AxisOf(site, step.inputs[0], i) for i in axes]


def _sources_of_product(site: Site, step: Step, axis: int) -> list[AxisOf | Origin]:
    _, batch = step.eqn.params["dimension_numbers"]
    if axis < len(batch[0]):
        if not all(map(site.depends, step.inputs)):  # each position has parameters of its own
            return [Origin.PARAMETER]
        return [
            AxisOf(site, atom, int(axes[axis]))
            for atom, axes in zip(step.inputs, batch, strict=True)
        ]
    free_axis = axis - len(batch[0])
    for position, atom in enumerate(step.inputs):
        free = free_axes(step, position)
        if free_axis < len(free):
            return [AxisOf(site, atom, free[free_axis])]
        free_axis -= len(free)
    return []


def free_axes(product: Step, position: int) -> list[int]:
    """Return the axes of an operand that a `dot_general` neither contracts nor batches."""
    contracted, batch = product.eqn.params["dimension_numbers"]
    used = {int(axis) for axes in (contracted, batch) for axis in axes[position]}
    return [i for i in range(len(product.inputs[position].aval.shape)) if i not in used]


def _sources_in_bodies(site: Site, step: Step, position: int, axis: int) -> list[AxisOf | Origin]:
    bodies = site.inside(step)
    if not bodies:
        return []
    if step.name == "scan" and position >= step.counts[1]:
        if axis == 0:
            return [Origin.INPUT]
        axis -= 1
    found: list[AxisOf | Origin] = [
        AxisOf(body, body.structure.flat.outputs[position], axis)
        for body in bodies
        if body.depends(body.structure.flat.outputs[position])
    ]
    return found
