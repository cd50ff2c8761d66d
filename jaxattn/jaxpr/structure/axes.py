"""Axes of values that correspond to axes of a later value, through steps that keep elements."""

from typing import TypeAlias

import jax.numpy as jnp

from jaxattn.jaxpr.flat import Atom, Step

#: Primitives that return the elements of their one operand, perhaps in more axes.
KEEPING = frozenset(
    "broadcast_in_dim convert_element_type copy copy_p expand_dims name optimization_barrier "
    "reduce_precision reshape sharding_constraint squeeze transpose".split()
)

#: For each axis of a value, the axis of a later value; -1 for an axis that the later one lacks.
Axes: TypeAlias = tuple[int, ...]


def axes_of_operand(operand: Atom, axes: Axes) -> Axes:
    """Return the axes of an operand of an elementwise step; a scalar has none."""
    return axes if operand.aval.shape else ()


def axes_before(step: Step, axes: Axes) -> Axes | None:
    """Return what the axes of a step's operand correspond to, given those of its output.

    `None` is returned if the step changes elements, or divides or joins axes.
    """
    operand, output = step.inputs[0].aval, step.outputs[0].aval
    if step.name == "broadcast_in_dim":
        return tuple(axes[axis] for axis in step.eqn.params["broadcast_dimensions"])
    if step.name == "transpose":
        order = step.eqn.params["permutation"]
        return tuple(axes[order.index(axis)] for axis in range(len(order)))
    if step.name == "convert_element_type":
        rounds = jnp.issubdtype(operand.dtype, jnp.floating) and not jnp.issubdtype(
            output.dtype, jnp.floating
        )
        return None if rounds else axes
    if operand.shape == output.shape:
        return axes
    wide = [axis for axis, size in zip(axes, output.shape, strict=True) if size > 1]
    if [n for n in operand.shape if n > 1] != [n for n in output.shape if n > 1]:
        return None
    remaining = iter(wide)
    return tuple(next(remaining) if size > 1 else -1 for size in operand.shape)
