"""Run a loop once without changes, and again for several changes from where each begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jaxattn.jaxpr.flat import Atom, Var
from jaxattn.jaxpr.reuse.extents import UNCHANGED, PerRun, Rows, Unchanged, Whole
from jaxattn.jaxpr.reuse.loop_schedule import OwnRows, Schedule, Segment, schedule_runs
from jaxattn.jaxpr.reuse.loop_split import LoopPlan, Span
from jaxattn.jaxpr.reuse.step_values import (
    AnyArray,
    Parts,
    RunValues,
    Stacked,
    Values,
    clean_where,
    read,
    run_steps,
    splice,
)


@dataclass(frozen=True)
class CleanLoop:
    """The run of a loop without changes.

    Attributes:
        outputs: the outputs of the scan.
        fixed: what is the same in every time step.
        by_row: what each time step reads, carries, and computes for late steps; stacked by row.
    """

    outputs: Sequence[AnyArray]
    fixed: Values
    by_row: Mapping[Var, AnyArray]


def run_clean_loop(plan: LoopPlan, operands: Sequence[ArrayLike], *, linear: bool) -> CleanLoop:
    """Run a loop without changes.

    Args:
        plan: what of the loop changes.
        operands: the operands of the scan.
        linear: whether all that may change is zero, as in a linear function of zero.
    """
    body, split, (n_consts, n_carry) = plan.body, plan.split, plan.body.step.counts
    consts, init = operands[:n_consts], operands[n_consts : n_consts + n_carry]
    xs = operands[n_consts + n_carry :]
    fixed: Values = {**body.flat.constants, **dict(zip(body.consts, consts, strict=True))}
    run_steps(split.fixed, fixed)
    zeros = split.changed if linear else set()
    left_out = {*split.fixed, *(s for s in body.flat.steps if zeros & set(s.outputs))}
    steps = [step for step in body.flat.steps if step not in left_out]
    kept = [v for v in split.frontier if v not in body.flat.inputs and v not in zeros]

    def advance(carry: PyTree, row: PyTree) -> tuple[PyTree, PyTree]:
        values = {**fixed, **dict(zip(body.xs, row, strict=True))}
        values |= dict(zip(body.carries, carry, strict=True))
        run_steps(steps, values)
        outputs = [
            jnp.zeros(out.aval.shape, out.aval.dtype) if out in zeros else read([out], values)[0]
            for out in body.flat.outputs
        ]
        return outputs[:n_carry], (outputs[n_carry:], carry, read(kept, values))

    last, (ys, carry, computed) = jax.lax.scan(
        advance,
        list(init),
        list(xs),
        length=body.length,
        reverse=body.reverse,
        unroll=body.step.eqn.params["unroll"],
    )
    by_row = dict(zip([*body.carries, *kept, *body.xs], [*carry, *computed, *xs], strict=True))
    outputs = [*last, *ys]
    if linear:  # plain zeros outside of the loop, so that it need not run for them
        for v in dict.fromkeys([*body.carries, *split.frontier]):  # in order: programs are compared
            if v in zeros:
                by_row[v] = jnp.zeros((body.length, *v.shape), v.aval.dtype)
        outputs = [
            jnp.zeros_like(value) if out in zeros else value
            for value, out in zip(outputs, body.flat.outputs, strict=True)
        ]
    return CleanLoop(outputs, fixed, by_row)


@dataclass(frozen=True)
class LoopChanges:
    """The operands of a loop in the changed runs.

    Attributes:
        initial: the first values of each carry that starts changed, stacked over runs.
        rows: for each run, by input of the body, its changed rows in that run's window.
        same: for each run whether it reads the same as the clean run; `None` if that is not known.
    """

    initial: Sequence[AnyArray]
    rows: Sequence[Mapping[Var, ArrayLike]]
    same: Sequence[jax.Array | bool | None]


def rerun_loop(
    plan: LoopPlan, clean: CleanLoop, changes: LoopChanges, is_read: Sequence[bool]
) -> list[RunValues]:
    """Run a loop for all changes.

    Args:
        plan: what of the loop changes.
        clean: the run without changes.
        changes: what the loop reads in the changed runs.
        is_read: for each output whether it is read. Rows of others are not computed.

    Returns:
        the outputs of the scan.
    """
    return _Runner(plan, clean, changes).outputs(is_read)


@dataclass(frozen=True)
class _LateValues:
    """The results of the late steps.

    Attributes:
        carries: by run, the last values of the carries that change.
        rows: by output, its changed rows in each run.
    """

    carries: Mapping[int, Sequence[AnyArray]]
    rows: Mapping[Atom, Sequence[AnyArray | None]]


@dataclass(frozen=True)
class _Runner:
    """Executes the schedule of a loop."""

    plan: LoopPlan
    clean: CleanLoop
    changes: LoopChanges

    def outputs(self, is_read: Sequence[bool]) -> list[RunValues]:
        plan, split = self.plan, self.plan.split
        outs, n_carry = plan.body.flat.outputs, len(split.carry_changes)
        stacked = zip(outs[n_carry:], is_read[n_carry:], strict=True)
        ys = list(dict.fromkeys(out for out, is_read in stacked if is_read))
        late = self._run(schedule_runs(plan), [y for y in ys if y in split.late_variables])
        early_ys = [y for y in ys if y in split.early_variables and y in split.changed]
        early = [self._early_rows(early_ys, run) for run in range(plan.number)]
        values: list[RunValues] = []
        for i, (out, extents) in enumerate(zip(outs, plan.extents, strict=True)):
            if isinstance(extents, Unchanged):
                values.append(UNCHANGED)
            elif isinstance(extents, Whole):
                values.append(self._last_carry(i, late))
            else:
                rows = late.rows.get(out) or [by_output.get(out) for by_output in early]
                values.append(self._rows_or_clean(i, extents, rows))
        return values

    def _last_carry(self, i: int, late: _LateValues) -> Stacked:
        """Return the last values of a carry; the clean ones in runs that read the same."""
        clean, position = self.clean.outputs[i], sum(self.plan.split.carry_changes[:i])
        last = [
            late.carries[run][position] if run in late.carries else clean
            for run in range(self.plan.number)
        ]
        stacked, same = jnp.stack(last), self.changes.same
        if all(is_same is None for is_same in same):
            return Stacked(stacked)
        known = jnp.stack([jnp.asarray(False if s is None else s) for s in same])
        return Stacked(clean_where(known.reshape(-1, *[1] * jnp.ndim(clean)), clean, stacked))

    def _rows_or_clean(self, i: int, extents: PerRun, rows: Sequence[AnyArray | None]) -> Parts:
        """Return the changed rows of an output; the clean ones in runs that read the same."""
        parts = []
        for extent, same, value in zip(extents.runs, self.changes.same, rows, strict=True):
            if value is not None and same is not None and isinstance(extent, Rows):
                value = clean_where(same, self.clean.outputs[i][extent.lo : extent.hi], value)
            parts.append(value)
        return Parts(parts)

    def _early_rows(self, ys: Sequence[Atom], run: int) -> dict[Atom, AnyArray]:
        """Compute some outputs of the early steps from the changed rows, all rows at once."""
        plan, window = self.plan, self.plan.windows[run]
        if window is None or not ys:
            return {}
        inputs = self._early_inputs()

        def at_row(row: PyTree) -> PyTree:
            values = {**self.clean.fixed, **dict(zip(inputs, row, strict=True))}
            return read(ys, run_steps(plan.split.early, values))

        rows = [self._input_rows(run, v, window) for v in inputs]
        return dict(zip(ys, jax.vmap(at_row)(rows), strict=True))

    def _run(self, schedule: Schedule, ys: Sequence[Atom]) -> _LateValues:
        """Execute a schedule; `ys` are the outputs whose rows are kept."""
        number = self.plan.number
        parts: list[list[list[AnyArray]]] = [[] for _ in range(number)]
        carry = self._first_carry(schedule)
        if schedule.windows is not None:
            carry = self._run_segment(schedule.windows, carry, ys, parts)
        joined: list[AnyArray] = []
        for segment in schedule.tail:
            end = len(segment.runs)
            new = [c[end - segment.joining : end] for c in carry]
            joined = [jnp.concatenate(c) for c in zip(joined, new, strict=True)] if joined else new
            joined = self._run_segment(segment, joined, ys, parts)
        active = len(schedule.tail[-1].runs) if schedule.tail else 0
        carries = {
            run: [c[i] for c in (joined if i < active else carry)]
            for i, run in enumerate(schedule.runs)
        }
        order = -1 if self.plan.body.reverse else 1
        rows = {
            y: [
                jnp.concatenate([part[i] for part in parts[run][::order]]) if parts[run] else None
                for run in range(number)
            ]
            for i, y in enumerate(ys)
        }
        return _LateValues(carries, rows)

    def _first_carry(self, schedule: Schedule) -> list[AnyArray]:
        """Return the changed carries of the scheduled runs at their starts, stacked."""
        plan, initial = self.plan, iter(self.changes.initial)
        if not schedule.runs:
            return []
        carries = []
        for v, changes, starts_changed in zip(
            plan.body.carries, plan.split.carry_changes, plan.starts_changed, strict=True
        ):
            if starts_changed:
                carries.append(next(initial)[jnp.asarray(schedule.runs)])
            elif changes:
                rows = [plan.body.rows(Span(t, t + 1)).lo for t in schedule.starts]
                carries.append(jnp.stack([self.clean.by_row[v][row] for row in rows]))
        return carries

    def _run_segment(
        self,
        segment: Segment,
        carry: list[AnyArray],
        ys: Sequence[Atom],
        parts: list[list[list[AnyArray]]],
    ) -> list[AnyArray]:
        """Run a segment from the stacked carries of its runs, and add its rows to `parts`."""
        body, split, fixed = self.plan.body, self.plan.split, self.clean.fixed
        carry_outputs = zip(body.carries, body.flat.outputs, split.carry_changes, strict=False)
        changed = [(v, out) for v, out, changes in carry_outputs if changes]
        rows: Sequence[ArrayLike]
        if isinstance(segment.rows, OwnRows):
            steps = [step for step in body.flat.steps if step not in split.fixed]
            inputs, each, axis = self._early_inputs(), segment.rows.spans, 0
            spans = list(zip(segment.runs, each, strict=True))
            rows = [jnp.stack([self._input_rows(g, v, s) for g, s in spans], 1) for v in inputs]
        else:
            steps, inputs, axis = list(split.late), list(split.frontier), None
            cut = body.rows(segment.rows.span)
            rows = [self.clean.by_row[v][cut.lo : cut.hi] for v in inputs]

        def advance(carry: PyTree, row: PyTree) -> tuple[PyTree, PyTree]:
            values = {**fixed, **dict(zip(inputs, row, strict=True))}
            values |= dict(zip([v for v, _ in changed], carry, strict=True))
            run_steps(steps, values)
            return read([out for _, out in changed], values), read(ys, values)

        last: list[AnyArray]
        last, stacked = jax.lax.scan(
            jax.vmap(advance, in_axes=(0, axis)),
            carry,
            rows,
            length=segment.length,
            reverse=body.reverse,
            unroll=min(body.step.eqn.params["unroll"], segment.length),
        )
        for i, run in enumerate(segment.runs):
            parts[run].append([y[:, i] for y in stacked])
        return last

    def _early_inputs(self) -> list[Var]:
        """Return the inputs of the body that do not wait for a changed carry."""
        body, early = self.plan.body, self.plan.split.early_variables
        return [v for v in (*body.carries, *body.xs) if v in early]

    def _input_rows(self, run: int, v: Var, span: Span) -> ArrayLike:
        """Return what some time steps of a run read of an input of the body."""
        body, window, clean = self.plan.body, self.plan.windows[run], self.clean.by_row[v]
        rows = body.rows(span)
        if window is None or v not in self.changes.rows[run]:
            return clean[rows.lo : rows.hi]
        return splice(clean, self.changes.rows[run][v], body.rows(window), rows)
