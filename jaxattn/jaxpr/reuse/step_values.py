"""Compute steps from values by variable, and put changed rows between unchanged ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxattn.jaxpr.flat import Atom, Number, Step, Var
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.reuse.extents import Rows, Unchanged, Whole

#: An array, traced or a constant of the trace.
AnyArray: TypeAlias = jax.Array | np.ndarray
#: What a program computes, by variable. An input of a body may be a literal: JAX's Python scalars.
Values: TypeAlias = dict[Var, ArrayLike]


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


def read(atoms: Iterable[Atom], values: Values) -> list[ArrayLike]:
    """Return the values of variables and literals."""
    return [_literal(atom) if isinstance(atom, Number) else values[atom] for atom in atoms]


def _literal(number: Number) -> ArrayLike:
    """Return a literal with its dtype, which a plain Python scalar does not have.

    JAX's own Python scalars have one, and are weakly typed: they are returned as they are.
    """
    typed = getattr(number.val, "dtype", None) == number.aval.dtype
    value: ArrayLike = number.val if typed else jnp.asarray(number.val, number.aval.dtype)
    return value


def are_identical(new: AnyArray, old: ArrayLike) -> jax.Array:
    """Return whether two arrays are equal in all elements, the signs of zeros included."""
    same = new == old
    if jnp.issubdtype(new.dtype, jnp.floating):
        same &= jnp.signbit(new) == jnp.signbit(old)
    return same.all()


@jax.custom_jvp
def clean_where(same: ArrayLike, clean: ArrayLike, value: AnyArray) -> AnyArray:
    """Return `clean` where a run reads the same as the clean run, and `value` elsewhere.

    Rounding differs between programs, and a change without effect must score exactly zero. The
    tangent is that of `value` everywhere.
    """
    return jnp.where(same, clean, value)


@clean_where.defjvp
def _(
    primals: tuple[ArrayLike, ArrayLike, AnyArray], tangents: tuple[AnyArray, AnyArray, AnyArray]
) -> tuple[AnyArray, AnyArray]:
    return clean_where(*primals), tangents[2]


def rows_of(value: ArrayLike, cut: Rows | Whole) -> ArrayLike:
    """Return some rows of a value, or all of it."""
    return value if isinstance(cut, Whole) else slice_rows(value, cut)


def slice_rows(value: ArrayLike, cut: Rows) -> jax.Array:
    """Return the rows of a value that `cut` selects."""
    assert isinstance(value, jax.Array | np.ndarray)  # a literal has no axes
    return jax.lax.slice_in_dim(value, cut.lo, cut.hi, axis=cut.axis)


def splice(clean: ArrayLike, changed: ArrayLike, reached: Rows, cut: Rows) -> ArrayLike:
    """Return some rows of a value of which other rows have changed.

    Args:
        clean: the whole value without the change.
        changed: the rows that have changed.
        reached: which rows these are.
        cut: the rows to return, of the same axis.
    """
    axis, inside = reached.axis, cut.within(reached.lo, reached.hi)
    if inside.size <= 0:
        return slice_rows(clean, cut)
    pieces = [changed if inside == reached else slice_rows(changed, inside.shifted(-reached.lo))]
    if cut.lo < inside.lo:
        pieces.insert(0, slice_rows(clean, Rows(axis, cut.lo, inside.lo)))
    if inside.hi < cut.hi:
        pieces.append(slice_rows(clean, Rows(axis, inside.hi, cut.hi)))
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis)
