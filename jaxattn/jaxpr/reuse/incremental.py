"""Run a function once without changes, then for several changes of its input at once.

Only what changes is computed, as a `ReusePlan` states. A step without a propagation rule is
computed whole, so the results are those of whole runs up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jaxattn.jaxpr.flat import Atom, Step, Var
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.reuse.extent_rules import Restricted
from jaxattn.jaxpr.reuse.extents import (
    WHOLE,
    Count,
    Rows,
    RunExtent,
    Unchanged,
    Whole,
    in_run,
)
from jaxattn.jaxpr.reuse.loop_split import LoopPlan
from jaxattn.jaxpr.reuse.rerun import CleanLoop, LoopChanges, rerun_loop, run_clean_loop
from jaxattn.jaxpr.reuse.reuse_plan import RestrictedRuns, ReusePlan
from jaxattn.jaxpr.reuse.step_values import (
    AnyArray,
    Parts,
    RunValues,
    Stacked,
    Values,
    are_identical,
    clean_where,
    read,
    rows_of,
    splice,
)


@dataclass(frozen=True)
class CleanRun:
    """The run of a function without changes.

    Attributes:
        values: what its steps computed.
        loops: the runs of its loops that changes reach.
    """

    values: Values
    loops: dict[Step, CleanLoop]


def run_clean(
    plan: ReusePlan, x: AnyArray, constants: Sequence[AnyArray] | None = None
) -> CleanRun:
    """Run a function without changes. Of a linear one, what may change is zero.

    Args:
        plan: the plan of the function's changed runs.
        x: its input.
        constants: the arrays that it closes over, if others than it was traced with.
    """
    flat = plan.traced.flat
    values: Values = {**flat.constants, flat.inputs[0]: x}
    if constants is not None:
        values.update(zip(flat.constants, constants, strict=False))  # before those of calls
    loops: dict[Step, CleanLoop] = {}
    for step in flat.steps:
        how = plan.steps.get(step)
        outputs: Sequence[ArrayLike]
        if isinstance(how, LoopPlan):
            operands = read(step.inputs, values)
            loops[step] = run_clean_loop(how, operands, linear=plan.linear)
            outputs = loops[step].outputs
        elif plan.linear and any(plan.changes(out) for out in step.outputs):
            outputs = [jnp.zeros(out.shape, out.aval.dtype) for out in step.outputs]
        else:
            outputs = bind(step.eqn, read(step.inputs, values))
        values.update(zip(step.outputs, outputs, strict=True))
    return CleanRun(values, loops)


def run_changed(plan: ReusePlan, clean: CleanRun, parts: Sequence[AnyArray | None]) -> PyTree:
    """Return the outputs of the changed runs, stacked.

    Args:
        plan: the plan of the runs.
        clean: the run without changes.
        parts: the changed rows of the input, or the count, in each run; `None` if it is unchanged.
    """
    runs = _ChangedRuns.of(plan, clean, parts)
    outputs = [runs.stacked(out) for out in plan.traced.flat.outputs]
    return jax.tree.unflatten(plan.traced.treedef, outputs)


def changed_output_rows(
    plan: ReusePlan, clean: CleanRun, parts: Sequence[AnyArray | None]
) -> list[ArrayLike]:
    """Return the rows of the single output that change, for each run.

    They are those of `plan.output_extents()`. In a run that leaves the output unchanged, and where
    all of it may change, the whole output is returned. The arguments are those of `run_changed`.
    """
    (out,) = plan.traced.flat.outputs
    runs = _ChangedRuns.of(plan, clean, parts)
    values = runs.values.get(out) if isinstance(out, Var) else None
    if isinstance(values, Parts):
        return [runs.clean_value(out) if part is None else part for part in values.runs]
    return list(runs.stacked(out))


@dataclass
class _ChangedRuns:
    """The values of the changed runs, by variable."""

    plan: ReusePlan
    clean: CleanRun
    values: dict[Var, RunValues] = field(default_factory=dict)

    @classmethod
    def of(
        cls, plan: ReusePlan, clean: CleanRun, parts: Sequence[AnyArray | None]
    ) -> "_ChangedRuns":
        """Compute all values that change."""
        flat, runs = plan.traced.flat, cls(plan, clean)
        runs.values[flat.inputs[0]] = Parts(list(parts))
        for step in flat.steps:
            if any(plan.changes(out) for out in step.outputs):
                runs.values.update(zip(step.outputs, runs.compute(step), strict=True))
        return runs

    def compute(self, step: Step) -> Sequence[RunValues]:
        """Compute the outputs of a step."""
        match self.plan.steps[step]:
            case LoopPlan() as loop:
                return self._loop(step, loop)
            case RestrictedRuns(runs):
                parts = [self._restricted(step, how, run) for run, how in enumerate(runs)]
                return [Parts(list(of_output)) for of_output in zip(*parts, strict=True)]
            case Whole():
                return self._whole(step)

    def clean_value(self, atom: Atom) -> ArrayLike:
        """Return a value of the run without changes."""
        return read([atom], self.clean.values)[0]

    def stacked(self, atom: Atom) -> AnyArray:
        """Return a value in all runs, stacked."""
        clean, number = self.clean_value(atom), self.plan.number
        if not isinstance(atom, Var) or not self.plan.changes(atom):
            return jnp.broadcast_to(clean, (number, *jnp.shape(clean)))
        values = self.values[atom]
        if isinstance(values, Stacked):
            return values.value
        return jnp.stack([self._cut(atom, run, WHOLE) for run in range(number)])

    def _extent(self, atom: Atom, run: int) -> RunExtent:
        """Return the extent of a value that is computed in part."""
        extents = self.plan.extents_of(atom)
        assert not isinstance(extents, Whole)
        return in_run(extents, run)

    def _cut(self, atom: Atom, run: int, cut: Rows | Whole) -> ArrayLike:
        """Return some rows of a value in a run."""
        clean, extent = self.clean_value(atom), self._extent(atom, run)
        if isinstance(extent, Unchanged) or not isinstance(atom, Var):
            return rows_of(clean, cut)
        values = self.values[atom]
        part = values.runs[run] if isinstance(values, Parts) else None
        assert part is not None
        if isinstance(extent, Count):
            return part
        if isinstance(cut, Whole):
            cut = Rows(extent.axis, 0, jnp.shape(clean)[extent.axis])
        return splice(clean, part, extent, cut)

    def _reads_same(
        self,
        atoms: Sequence[Atom],
        cuts: Sequence[Rows | Whole],
        values: Sequence[ArrayLike],
        run: int,
    ) -> jax.Array | bool:
        """Return whether the rows that a run reads equal those of the run without changes."""
        same: jax.Array | bool = True
        for atom, cut, value in zip(atoms, cuts, values, strict=True):
            if not isinstance(self._extent(atom, run), Unchanged):
                assert isinstance(value, jax.Array | np.ndarray)  # it was computed
                same &= are_identical(value, rows_of(self.clean_value(atom), cut))
        return same

    def _restricted(self, step: Step, how: Restricted, run: int) -> list[AnyArray | None]:
        """Compute the affected rows of a step in a run."""
        if not how.changes:
            return [None] * len(step.outputs)
        cuts = zip(step.inputs, how.cuts, strict=True)
        operands = [self._cut(atom, run, cut) for atom, cut in cuts]
        outputs = bind(step.eqn, operands, **how.params)
        if step.name == "dot_general" and not self.plan.linear:
            (extent,) = how.outputs
            assert isinstance(extent, Rows)
            clean = rows_of(self.clean_value(step.outputs[0]), extent)
            same = self._reads_same(step.inputs, how.cuts, operands, run)
            outputs = [clean_where(same, clean, outputs[0])]
        if how.trim is not None:
            rows = how.trim
            outputs = [
                jax.lax.slice_in_dim(out, rows.lo, rows.hi, axis=rows.axis) for out in outputs
            ]
        return list(outputs)

    def _whole(self, step: Step) -> list[Stacked]:
        """Compute all of a step, in all runs at once."""
        changes = [self.plan.changes(atom) for atom in step.inputs]
        operands = [
            self.stacked(atom) if does else self.clean_value(atom)
            for atom, does in zip(step.inputs, changes, strict=True)
        ]
        axes = [0 if does else None for does in changes]
        compute = jax.vmap(lambda *inputs: list(bind(step.eqn, inputs)), in_axes=axes)
        return [Stacked(value) for value in compute(*operands)]

    def _loop(self, step: Step, loop: LoopPlan) -> list[RunValues]:
        """Run a loop from where the changes begin."""
        n_consts, n_carry = step.counts
        stop = n_consts + n_carry
        carries = [atom for atom in step.inputs[n_consts:stop] if self.plan.changes(atom)]
        initial = [self.stacked(atom) for atom in carries]
        xs = [
            (v, atom)
            for v, atom in zip(loop.body.xs, step.inputs[stop:], strict=True)
            if self.plan.changes(atom)
        ]
        cuts = [None if window is None else loop.body.rows(window) for window in loop.windows]
        rows = [
            {} if cut is None else {v: self._cut(atom, run, cut) for v, atom in xs}
            for run, cut in enumerate(cuts)
        ]
        is_read = [out in self.plan.variables_read for out in step.outputs]
        same: list[jax.Array | bool | None] = [None] * loop.number
        if not self.plan.linear and not initial:
            atoms = [atom for _, atom in xs]
            for run, cut in enumerate(cuts):
                if cut is not None:
                    values = list(rows[run].values())
                    same[run] = self._reads_same(atoms, [cut] * len(atoms), values, run)
        changes = LoopChanges(initial, rows, same)
        return rerun_loop(loop, self.clean.loops[step], changes, is_read)
