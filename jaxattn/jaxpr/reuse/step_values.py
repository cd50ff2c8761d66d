"""Compute steps from values by variable, and put changed rows between unchanged ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.jaxpr.flat import Atom, Number, Step, Var
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.reuse.extents import Rows, Unchanged, Whole

#: An array, traced or a constant of the trace.
AnyArray: TypeAlias = jax.Array | np.ndarray
#: What a program computes, by variable. Constants of the trace are NumPy arrays.
Values: TypeAlias = dict[Var, AnyArray]


@dataclass(frozen=True)
class Stacked:
    """A value that changes as a whole, in all changed runs.

    Attributes:
        value: the values, of shape (runs, *shape).
    """

    value: AnyArray


@dataclass(frozen=True)
class Parts:
    """A value that changes in part.

    Attributes:
        runs: the changed rows, or the count, in each run; `None` in a run that leaves it unchanged.
    """

    runs: Sequence[AnyArray | None]


#: A value in all changed runs.
RunValues: TypeAlias = Unchanged | Parts | Stacked


def run_steps(steps: Iterable[Step], values: Values) -> Values:
    """Compute steps in order.

    Args:
        steps: the steps.
        values: the values that the steps read; their outputs are added.

    Returns:
        the same dictionary.
    """
    for step in steps:
        values.update(zip(step.outputs, bind(step.eqn, read(step.inputs, values)), strict=True))
    return values


def read(atoms: Iterable[Atom], values: Values) -> list[AnyArray]:
    """Return the values of variables and literals."""
    return [_literal(atom) if isinstance(atom, Number) else values[atom] for atom in atoms]


def _literal(number: Number) -> AnyArray:
    """Return a literal with its dtype, which a Python scalar does not have."""
    value, dtype = number.val, number.aval.dtype
    if isinstance(value, jax.Array | np.ndarray) and value.dtype == dtype:
        return value
    return jnp.asarray(value, dtype)


def are_identical(new: AnyArray, old: AnyArray) -> jax.Array:
    """Return whether two arrays are equal in all elements, the signs of zeros included."""
    same = new == old
    if jnp.issubdtype(new.dtype, jnp.floating):
        same &= jnp.signbit(new) == jnp.signbit(old)
    return same.all()


@jax.custom_jvp
def clean_where(same: AnyArray | bool, clean: AnyArray, value: AnyArray) -> AnyArray:
    """Return `clean` where a run reads the same as the clean run, and `value` elsewhere.

    Rounding differs between programs, and a change without effect must score exactly zero. The
    tangent is that of `value` everywhere.
    """
    return jnp.where(same, clean, value)


@clean_where.defjvp
def _(
    primals: tuple[AnyArray, AnyArray, AnyArray], tangents: tuple[AnyArray, AnyArray, AnyArray]
) -> tuple[AnyArray, AnyArray]:
    return clean_where(*primals), tangents[2]


def rows_of(value: AnyArray, cut: Rows | Whole) -> AnyArray:
    """Return some rows of a value, or all of it."""
    if isinstance(cut, Whole):
        return value
    return jax.lax.slice_in_dim(value, cut.lo, cut.hi, axis=cut.axis)


def splice(clean: AnyArray, changed: AnyArray, reached: Rows, cut: Rows) -> AnyArray:
    """Return some rows of a value of which other rows have changed.

    Args:
        clean: the whole value without the change.
        changed: the rows that have changed.
        reached: which rows these are.
        cut: the rows to return, of the same axis.
    """
    axis, inside = reached.axis, cut.within(reached.lo, reached.hi)
    if inside.size <= 0:
        return jax.lax.slice_in_dim(clean, cut.lo, cut.hi, axis=axis)
    pieces = [changed if inside == reached else rows_of(changed, inside.shifted(-reached.lo))]
    if cut.lo < inside.lo:
        pieces.insert(0, rows_of(clean, Rows(axis, cut.lo, inside.lo)))
    if inside.hi < cut.hi:
        pieces.append(rows_of(clean, Rows(axis, inside.hi, cut.hi)))
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis)
