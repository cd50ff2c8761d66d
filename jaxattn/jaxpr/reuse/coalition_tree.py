"""Run a function for coalitions of rows of its input, along trees of runs that share states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, PyTree

from jaxattn.jaxpr.flat import Atom, Step, Var
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.reuse.coalition_plan import (
    Kind,
    PerRow,
    RowwiseStep,
    Segment,
    SharedLoop,
    TreePlan,
    Trees,
)
from jaxattn.jaxpr.reuse.extent_rules import Restricted, propagate
from jaxattn.jaxpr.reuse.extents import UNCHANGED, Rows
from jaxattn.jaxpr.reuse.loop_split import LoopPlan
from jaxattn.jaxpr.reuse.rerun import run_clean_loop
from jaxattn.jaxpr.reuse.step_values import AnyArray, Values, read, rows_of, run_steps


class _Pair(NamedTuple):
    """A value per row that depends on its row alone: with all rows present, and with none."""

    present: ArrayLike
    absent: ArrayLike


#: A value of one kind: a pair, its runs in each segment, or one value for each coalition.
_Value: TypeAlias = _Pair | list[AnyArray] | AnyArray


def run_tree(
    plan: TreePlan, x: AnyArray, absent: AnyArray, trees: Trees, constants: Sequence[AnyArray]
) -> PyTree:
    """Return the outputs of a function for coalitions of the rows of its input, stacked.

    Args:
        plan: the plan of the runs.
        x: the input with all rows present.
        absent: the input with no row present.
        trees: the coalitions.
        constants: the arrays that the function closes over.
    """
    flat = plan.traced.flat
    run = _TreeRun(plan, trees)
    run.clean.update(flat.constants)
    run.clean.update(zip(flat.constants, constants, strict=False))  # before those of calls
    run.values[flat.inputs[0]] = _Pair(x, absent)
    for step in flat.steps:
        if step not in plan.steps:
            run.clean.update(
                zip(step.outputs, bind(step.eqn, read(step.inputs, run.clean)), strict=True)
            )
            continue
        for out, value in zip(step.outputs, run.compute(step), strict=True):
            if out in plan.kinds:
                run.values[out] = value
            else:
                run.clean[out] = value  # type: ignore[assignment]
    outputs = [run.per_coalition(out) for out in flat.outputs]
    return jax.tree.unflatten(plan.traced.treedef, outputs)


@dataclass
class _TreeRun:
    """The values of the runs, by variable."""

    plan: TreePlan
    trees: Trees
    clean: Values = field(default_factory=dict)
    values: dict[Var, _Value] = field(default_factory=dict)

    def compute(self, step: Step) -> Sequence[_Value]:
        """Compute the outputs of a step."""
        match self.plan.steps[step]:
            case RowwiseStep(kind) if kind.direction == 0:
                versions = [
                    bind(step.eqn, [self._version(atom, i) for atom in step.inputs]) for i in (0, 1)
                ]
                return [_Pair(*pair) for pair in zip(*versions, strict=True)]
            case RowwiseStep(kind):
                return self._rowwise(step, kind)
            case SharedLoop() as loop:
                return _LoopRun(self, step, loop).outputs()
            case _:
                operands = [
                    self.per_coalition(a) if self.kind(a) else read([a], self.clean)[0]
                    for a in step.inputs
                ]
                axes = [0 if self.kind(a) else None for a in step.inputs]
                call = jax.vmap(lambda *inputs: list(bind(step.eqn, inputs)), in_axes=axes)
                stacked: list[AnyArray] = call(*operands)
                return stacked

    def kind(self, atom: Atom) -> Kind | None:
        """Return what a value depends on, `None` if it is the same for all coalitions."""
        return self.plan.kinds.get(atom) if isinstance(atom, Var) else None

    def _version(self, atom: Atom, i: int) -> ArrayLike:
        """Return a value with all rows present (0), or with none (1)."""
        if self.kind(atom) is None:
            return read([atom], self.clean)[0]
        assert isinstance(atom, Var)
        pair = self.values[atom]
        assert isinstance(pair, _Pair)
        return pair[i]

    def _rowwise(self, step: Step, kind: PerRow) -> list[_Value]:
        """Compute a step for the runs of each segment."""
        kinds = [self.kind(atom) for atom in step.inputs]
        axes = [None if k is None else 0 for k in kinds]
        parts = []
        for s, segment in enumerate(self.trees.of(kind.direction)):
            how = propagate(
                step,
                [
                    Rows(k.axis, *self.rows_of(segment, k.flipped))
                    if isinstance(k, PerRow)
                    else UNCHANGED
                    for k in kinds
                ],
            )
            assert isinstance(how, Restricted)
            operands = [
                self.part(atom, kind.direction, s)
                if k
                else rows_of(read([atom], self.clean)[0], cut)
                for atom, k, cut in zip(step.inputs, kinds, how.cuts, strict=True)
            ]
            call = jax.vmap(
                lambda *inputs, how=how: list(bind(step.eqn, inputs, **how.params)), in_axes=axes
            )
            parts.append(call(*operands))
        return [list(of_output) for of_output in zip(*parts, strict=True)]

    def part(self, atom: Atom, direction: int, s: int) -> AnyArray:
        """Return the rows of a value in the runs of one segment."""
        assert isinstance(atom, Var)
        kind, value = self.kind(atom), self.values[atom]
        assert isinstance(kind, PerRow)
        if isinstance(value, list):
            return value[s]
        assert isinstance(value, _Pair)
        segment = self.trees.of(direction)[s]
        rows = Rows(kind.axis, *self.rows_of(segment, kind.flipped))
        shown = segment.present[:, ::-1] if kind.flipped else segment.present
        return _select(shown, kind.axis, *(rows_of(v, rows) for v in value))

    def rows_of(self, segment: Segment, flipped: bool) -> tuple[int, int]:
        """Return the rows of a value that belong to a segment."""
        if flipped:
            return self.plan.rows - segment.hi, self.plan.rows - segment.lo
        return segment.lo, segment.hi

    def per_coalition(self, atom: Atom) -> AnyArray:
        """Return a value for each coalition, stacked."""
        kind = self.kind(atom)
        if not isinstance(atom, Var) or kind is None:
            clean = read([atom], self.clean)[0]
            return jnp.broadcast_to(clean, (self.trees.present.shape[0], *jnp.shape(clean)))
        value = self.values[atom]
        if not isinstance(kind, PerRow):
            assert not isinstance(value, (_Pair, list))
            return value
        if isinstance(value, _Pair):
            present = self.trees.present[:, ::-1] if kind.flipped else self.trees.present
            return _select(present, kind.axis, *value)
        assert isinstance(value, list)
        segments = self.trees.of(kind.direction)
        runs: Array | None = None
        pieces: list[AnyArray] = []
        for segment, part in zip(reversed(segments), reversed(value), strict=True):
            pieces.append(part if runs is None else part[runs])
            runs = segment.parents if runs is None else segment.parents[runs]
        if (kind.direction == 1) ^ kind.flipped:  # they were collected from the last segment on
            pieces.reverse()
        return jnp.concatenate(pieces, kind.axis + 1)


def _select(
    present: Bool[Array, "runs rows"], axis: int, shown: ArrayLike, hidden: ArrayLike
) -> AnyArray:
    """Return rows of one of two arrays, for each run by which rows are present."""
    rank = jnp.ndim(shown)
    mask = present.reshape(
        present.shape[0], *[1] * axis, present.shape[1], *[1] * (rank - axis - 1)
    )
    return jnp.where(mask, jnp.asarray(shown)[None], jnp.asarray(hidden)[None])


class _LoopRun:
    """A scan that is run along a tree."""

    def __init__(self, run: _TreeRun, step: Step, loop: SharedLoop) -> None:
        self.run, self.step, self.loop = run, step, loop
        self.body, self.split = loop.body, loop.split
        plan = LoopPlan(self.body, self.split, [False] * step.counts[1], [], None, [], [])
        operands = [
            self._first_version(atom) if run.kind(atom) else read([atom], run.clean)[0]
            for atom in step.inputs
        ]
        self.clean = run_clean_loop(plan, operands, linear=False)
        self.atoms = dict(zip(self.body.xs, step.inputs[sum(step.counts) :], strict=True))

    def _first_version(self, atom: Atom) -> AnyArray:
        """Return a value with all rows present; of one with runs, those of the first."""
        assert isinstance(atom, Var)
        value, kind = self.run.values[atom], self.run.kind(atom)
        assert isinstance(kind, PerRow)
        if isinstance(value, _Pair):
            return jnp.asarray(value.present)
        assert isinstance(value, list)
        pieces = [part[0] for part in value]
        if (kind.direction == -1) ^ kind.flipped:
            pieces.reverse()
        return jnp.concatenate(pieces, kind.axis)

    def outputs(self) -> list[_Value]:
        """Return the outputs of the scan."""
        split, n_carry = self.split, self.step.counts[1]
        outs = self.body.flat.outputs
        ys = list(dict.fromkeys(y for y in outs[n_carry:] if y in split.changed))
        carries, rows = self._run(ys)
        last = iter(carries)
        values: list[_Value] = []
        for i, out in enumerate(outs):
            if i < n_carry and split.carry_changes[i]:
                values.append(next(last))
            elif i >= n_carry and out in split.changed:
                values.append(rows[ys.index(out)])
            else:
                values.append(self.clean.outputs[i])
        return values

    def _run(self, ys: Sequence[Atom]) -> tuple[list[AnyArray], list[list[AnyArray]]]:
        """Return the last carries that change, and for each output its rows in each segment."""
        body, split, run = self.body, self.split, self.run
        pairs = all(
            isinstance(run.values[a], _Pair)
            for a in self.atoms.values()
            if isinstance(a, Var) and run.kind(a)
        )
        inputs = [v for v in (*body.carries, *body.xs) if v in split.early_variables]
        steps = list(split.late) if pairs else [*split.early, *split.late]
        sources: dict[Var, _Pair | list[AnyArray] | AnyArray] = {}
        if pairs:
            wanted = [*split.frontier, *(y for y in ys if y in split.early_variables)]
            sources = self._early_pairs(inputs, list(dict.fromkeys(wanted)))
        else:
            for v in inputs:
                atom = self.atoms.get(v)
                is_changed = isinstance(atom, Var) and run.kind(atom) is not None
                sources[v] = run.values[atom] if is_changed else self.clean.by_row[v]  # type: ignore[index]
        changed = [
            (v, out)
            for v, out, changes in zip(
                body.carries, body.flat.outputs, split.carry_changes, strict=False
            )
            if changes
        ]
        operands = read(self.step.inputs[self.step.counts[0] : sum(self.step.counts)], run.clean)
        carry: list[AnyArray] = [
            jnp.asarray(value)[None]
            for value, changes in zip(operands, split.carry_changes, strict=True)
            if changes
        ]
        parts: list[list[AnyArray]] = [[] for _ in ys]
        for s, segment in enumerate(run.trees.of(self.loop.direction)):
            carry = [c[segment.parents] for c in carry]
            carry, rows = self._segment(s, segment, carry, sources, steps, changed, ys)
            for of_output, new in zip(parts, rows, strict=True):
                of_output.append(jnp.moveaxis(new, 0, 1))
        return carry, parts

    def _early_pairs(
        self, inputs: Sequence[Var], wanted: Sequence[Atom]
    ) -> dict[Var, _Pair | list[AnyArray] | AnyArray]:
        """Return what late steps read of each row, with all rows present and with none."""

        def at_row(row: PyTree) -> PyTree:
            values = {**self.clean.fixed, **dict(zip(inputs, row, strict=True))}
            return read(wanted, run_steps(self.split.early, values))

        found = []
        for i in (0, 1):
            rows = []
            for v in inputs:
                atom = self.atoms.get(v)
                if isinstance(atom, Var) and self.run.kind(atom) is not None:
                    pair = self.run.values[atom]
                    assert isinstance(pair, _Pair)
                    rows.append(pair[i])
                else:
                    rows.append(self.clean.by_row[v])
            found.append(jax.vmap(at_row)(rows))
        return {
            v: _Pair(shown, hidden) if v in self.split.changed else shown
            for v, shown, hidden in zip(wanted, *found, strict=True)
            if isinstance(v, Var)
        }

    def _segment(
        self,
        s: int,
        segment: Segment,
        carry: list[AnyArray],
        sources: Mapping[Var, Any],
        steps: Sequence[Step],
        changed: Sequence[tuple[Var, Atom]],
        ys: Sequence[Atom],
    ) -> tuple[list[AnyArray], list[AnyArray]]:
        """Run all runs of a segment, from their carries; return the carries, and rows by output."""
        flipped = self.loop.flipped
        lo, hi = self.run.rows_of(segment, flipped)
        present = (segment.present[:, ::-1] if flipped else segment.present).T
        cut = Rows(0, lo, hi)
        common, pairs, own = (
            [(v, x) for v, x in sources.items() if kind_of(x) == kind] for kind in range(3)
        )
        names = [[v for v, _ in group] for group in (common, pairs, own)]

        def advance(carry: PyTree, shared: PyTree, mine: PyTree) -> tuple[PyTree, PyTree]:
            (of_all, versions), (present, of_runs) = shared, mine
            values = {**self.clean.fixed, **dict(zip(names[0], of_all, strict=True))}
            for v, pair in zip(names[1], versions, strict=True):
                values[v] = jnp.where(present, *pair)
            values |= dict(zip(names[2], of_runs, strict=True))
            values |= dict(zip([v for v, _ in changed], carry, strict=True))
            run_steps(steps, values)
            return read([out for _, out in changed], values), read(ys, values)

        every = jax.vmap(advance, in_axes=(0, None, 0))
        shared = (
            [rows_of(x, cut) for _, x in common],
            [tuple(rows_of(version, cut) for version in x) for _, x in pairs],
        )
        mine = present, [jnp.moveaxis(x[s], 0, 1) for _, x in own]
        last: list[AnyArray]
        last, rows = jax.lax.scan(
            lambda carry, row: every(carry, *row),
            carry,
            (shared, mine),
            length=hi - lo,
            reverse=self.body.reverse,
            unroll=min(self.step.eqn.params["unroll"], hi - lo),
        )
        return last, rows


def kind_of(source: "_Pair | list[AnyArray] | AnyArray") -> int:
    """Return 0 for rows that all runs read, 1 for a pair of versions, 2 for rows of each run."""
    return 1 if isinstance(source, _Pair) else 2 if isinstance(source, list) else 0
