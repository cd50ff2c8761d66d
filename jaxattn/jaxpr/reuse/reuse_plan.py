"""Plan to run a function for several changes of its input, and to compute what changes only."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex
from jaxtyping import PyTree

from jaxattn.jaxpr.flat import Atom, Flat, Step, Var, flatten
from jaxattn.jaxpr.flops import count_equations
from jaxattn.jaxpr.reuse.extent_rules import Restricted, propagate
from jaxattn.jaxpr.reuse.extents import (
    UNCHANGED,
    WHOLE,
    Extents,
    PerRun,
    RunExtent,
    Unchanged,
    Whole,
    in_run,
    per_run,
)
from jaxattn.jaxpr.reuse.loop_split import LoopPlan, plan_loop
from jaxattn.jaxpr.reuse.step_values import AnyArray


@dataclass(frozen=True)
class Traced:
    """A function of one array, or a pytree of arrays, as the program to which it traces.

    Attributes:
        flat: the program as a list of steps.
        closed: the program as it was traced.
        treedef: the structure of the output.
    """

    flat: Flat
    closed: jex.ClosedJaxpr
    treedef: jax.tree_util.PyTreeDef

    @classmethod
    def of(cls, fn: Callable[[Any], PyTree], x: PyTree) -> "Traced":
        """Trace `fn` at arrays, abstract or not."""
        # JAX caches the trace of a function by its identity; this one may have changed since.
        fresh = jax.make_jaxpr(lambda x: fn(x), return_shape=True)
        closed, output = fresh(x)
        return cls(flatten(closed), closed, jax.tree.structure(output))

    @property
    def flops(self) -> int:
        """The operations of one run."""
        return count_equations([step.eqn for step in self.flat.steps])

    @property
    def constants(self) -> list[AnyArray]:
        """The arrays that the function closes over."""
        return list(self.closed.consts)

    def run(self, constants: Sequence[AnyArray], x: AnyArray) -> PyTree:
        """Run the function, given the arrays that it closes over."""
        flat = jex.jaxpr_as_fun(jex.ClosedJaxpr(self.closed.jaxpr, constants))(x)
        return jax.tree.unflatten(self.treedef, flat)


@dataclass(frozen=True)
class RestrictedRuns:
    """A step that is restricted to its affected rows, in each changed run."""

    runs: Sequence[Restricted]


#: How a step with changed operands is computed: a loop from where the changes begin, other steps
#: for the affected rows, or all of it.
StepPlan: TypeAlias = LoopPlan | RestrictedRuns | Whole


@dataclass(frozen=True)
class ReusePlan:
    """Plan of several runs of a function, each with other rows of its input changed.

    Attributes:
        traced: the function.
        number: how many changed runs go side by side.
        linear: whether the function is linear in its input, and the input zero where it does not
            change.
        extents: the extents of the values that change.
        steps: how the steps are computed of which any operand changes.
        flops: the operations of all runs together, with one run without changes.
    """

    traced: Traced
    number: int
    linear: bool
    extents: Mapping[Var, PerRun | Whole]
    steps: Mapping[Step, StepPlan]
    flops: int

    @functools.cached_property
    def variables_read(self) -> frozenset[Var]:
        """The variables that a step reads, or the function returns."""
        flat = self.traced.flat
        operands = [v for step in flat.steps for v in step.variables]
        return frozenset([*operands, *(out for out in flat.outputs if isinstance(out, Var))])

    def extents_of(self, atom: Atom) -> Extents:
        """Return the extents of a value."""
        return self.extents.get(atom, UNCHANGED) if isinstance(atom, Var) else UNCHANGED

    def changes(self, atom: Atom) -> bool:
        """Return whether a value changes in any run."""
        return isinstance(atom, Var) and atom in self.extents

    def output_extents(self) -> list[RunExtent | Whole]:
        """Return the extent of the single output in each run."""
        (out,) = self.traced.flat.outputs
        extents = self.extents_of(out)
        if isinstance(extents, Whole):
            return [extents] * self.number
        return [in_run(extents, run) for run in range(self.number)]


def plan_reuse(traced: Traced, extents: Sequence[RunExtent], *, linear: bool = False) -> ReusePlan:
    """Plan the runs of a function that change its input in part.

    Args:
        traced: the function.
        extents: what changes of the input in each run; a `Count` for an input that is one.
            A run that leaves it unchanged computes the clean output by the same program, with
            which other runs can be compared to the last bit.
        linear: whether the function is linear in its input, and the input zero where it does not
            change.
    """
    flat, number = traced.flat, len(extents)
    iotas = [step for step in flat.steps if step.name == "iota"]
    positions = {step.outputs[0]: int(step.eqn.params["dimension"]) for step in iotas}
    reached: dict[Var, PerRun | Whole] = {}
    _set_extents(reached, flat.inputs, [per_run(extents)])
    steps: dict[Step, StepPlan] = {}
    flops = 0 if linear else traced.flops
    for step in flat.steps:
        operands = [
            reached.get(atom, UNCHANGED) if isinstance(atom, Var) else UNCHANGED
            for atom in step.inputs
        ]
        if all(isinstance(e, Unchanged) for e in operands):
            continue
        plan = steps[step] = _plan_step(step, operands, number, positions)
        _set_extents(reached, step.outputs, _output_extents(step, plan))
        flops += _flops(step, plan, number)
    return ReusePlan(traced, number, linear, reached, steps, flops)


def _set_extents(
    reached: dict[Var, PerRun | Whole], variables: Sequence[Var], extents: Sequence[Extents]
) -> None:
    """Store the extents of the variables that change."""
    for v, extent in zip(variables, extents, strict=True):
        if not isinstance(extent, Unchanged):
            reached[v] = extent


def _plan_step(
    step: Step, operands: Sequence[Extents], number: int, positions: Mapping[Var, int]
) -> StepPlan:
    loop = plan_loop(step, operands, number)
    if isinstance(loop, LoopPlan):
        return loop
    in_part = [extents for extents in operands if not isinstance(extents, Whole)]
    if len(in_part) < len(operands):
        return WHOLE
    runs = []
    for run in range(number):
        how = propagate(step, [in_run(extents, run) for extents in in_part], positions)
        if isinstance(how, Whole):
            return WHOLE
        runs.append(how)
    return RestrictedRuns(runs)


def _output_extents(step: Step, plan: StepPlan) -> Sequence[Extents]:
    match plan:
        case LoopPlan():
            return plan.extents
        case RestrictedRuns():
            of_runs = zip(*(how.outputs for how in plan.runs), strict=True)
            return [per_run(extents) for extents in of_runs]
        case Whole():
            return [WHOLE] * len(step.outputs)


def _flops(step: Step, plan: StepPlan, number: int) -> int:
    """Return the operations of a step in all changed runs."""
    whole = count_equations([step.eqn])
    match plan:
        case LoopPlan():
            return plan.flops
        case RestrictedRuns():
            return sum(how.cost(step, whole) for how in plan.runs)
        case Whole():
            return whole * number
