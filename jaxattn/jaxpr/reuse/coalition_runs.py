"""Values that coalitions of rows share, and runs that compute rows of more values from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, PyTree

from jaxattn.jaxpr.flat import Atom, Step, Var
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.reuse.coalition_plan import Kind, PerRow, Segment, TreePlan, Trees
from jaxattn.jaxpr.reuse.extent_rules import Restricted, propagate
from jaxattn.jaxpr.reuse.extents import UNCHANGED, Rows
from jaxattn.jaxpr.reuse.step_values import AnyArray, Values, read, rows_of


class OverRuns(Protocol):
    """Compute a function for each of several runs, of which some are in flight at once."""

    def __call__(self, f: Callable[[PyTree], PyTree], runs: PyTree, /) -> PyTree:
        """Compute `jax.vmap(f)(runs)`."""


class Pair(NamedTuple):
    """A value per row that depends on its row alone: with all rows present, and with none."""

    present: ArrayLike
    absent: ArrayLike


#: A value per row: a pair, or its rows in the runs of each segment but the last, stacked over runs.
RowValue: TypeAlias = Pair | list[AnyArray]


@dataclass
class SharedValues:
    """The values that coalitions share, by variable.

    Attributes:
        plan: the plan of the runs.
        trees: the coalitions.
        over_runs: computes runs.
        clean: the values that do not depend on the coalition.
        values: the values of rows.
    """

    plan: TreePlan
    trees: Trees
    over_runs: OverRuns
    clean: Values = field(default_factory=dict)
    values: dict[Var, RowValue] = field(default_factory=dict)

    def own(self, atoms: Sequence[Atom], s: int) -> dict[Var, AnyArray]:
        """Return the rows of those values that differ between the runs of a segment."""
        values = {v: self.values.get(v) for v in atoms if isinstance(v, Var)}
        return {v: value[s] for v, value in values.items() if isinstance(value, list)}

    def kind(self, atom: Atom) -> Kind | None:
        """Return what a value depends on, `None` if it is the same for all coalitions."""
        return self.plan.kinds.get(atom) if isinstance(atom, Var) else None

    def rows_of(self, segment: Segment, flipped: bool) -> tuple[int, int]:
        """Return the rows of a value that belong to a segment."""
        if flipped:
            return self.plan.rows - segment.hi, self.plan.rows - segment.lo
        return segment.lo, segment.hi


def select_rows(
    present: Bool[Array, " rows"], axis: int, shown: ArrayLike, hidden: ArrayLike
) -> AnyArray:
    """Return rows of one of two arrays, by which rows are present."""
    mask = present.reshape([-1 if a == axis else 1 for a in range(jnp.ndim(shown))])
    return jnp.where(mask, jnp.asarray(shown), jnp.asarray(hidden))


class Run(NamedTuple):
    """One run of a segment.

    Attributes:
        tree: the values that coalitions share.
        segment: the segment.
        present: the rows of the segment that are present.
        own: the rows of the values that differ between runs.
    """

    tree: SharedValues
    segment: Segment
    present: Bool[Array, " rows"]
    own: dict[Var, AnyArray]

    def part(self, atom: Atom) -> AnyArray:
        """Return the rows of a value."""
        assert isinstance(atom, Var)
        if atom in self.own:
            return self.own[atom]
        kind, pair = self.tree.kind(atom), self.tree.values[atom]
        assert isinstance(kind, PerRow)
        assert isinstance(pair, Pair)
        rows = Rows(kind.axis, *self.tree.rows_of(self.segment, kind.flipped))
        return select_rows(self.shown(kind.flipped), kind.axis, *(rows_of(v, rows) for v in pair))

    def shown(self, flipped: bool) -> Bool[Array, " rows"]:
        """Return which rows are present, in the order of a value."""
        return self.present[::-1] if flipped else self.present

    def rowwise(self, step: Step) -> list[AnyArray]:
        """Compute a step for the rows of the segment."""
        kinds = [self.tree.kind(atom) for atom in step.inputs]
        extents = [
            Rows(k.axis, *self.tree.rows_of(self.segment, k.flipped))
            if isinstance(k, PerRow)
            else UNCHANGED
            for k in kinds
        ]
        how = propagate(step, extents)
        assert isinstance(how, Restricted)
        operands = [
            self.part(atom) if k else rows_of(read([atom], self.tree.clean)[0], cut)
            for atom, k, cut in zip(step.inputs, kinds, how.cuts, strict=True)
        ]
        return list(bind(step.eqn, operands, **how.params))
