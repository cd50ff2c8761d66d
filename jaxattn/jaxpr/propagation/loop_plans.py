"""Plan the backward pass through loops and branches, by abstract evaluation.

A loop can only store what it is told to before it runs, and the carry of a reversed loop has a
fixed structure. So the function is walked through once without computing anything: the plans say
what the rules read in each loop, and which operands get a cotangent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from jaxattn.jaxpr.flat import Step, Var
from jaxattn.jaxpr.propagation.walk import (
    Cotangent,
    Memory,
    Rules,
    Runs,
    Visit,
    Walk,
    cotangents_of,
)
from jaxattn.jaxpr.structure.graph import Structure

T = TypeVar("T")


@dataclass(frozen=True)
class ScanOperands(Generic[T]):
    """Something for each operand of a scan, or for each input of its body."""

    consts: list[T]
    carry: list[T]
    xs: list[T]


def by_role(step: Step, values: Sequence[T]) -> ScanOperands[T]:
    """Split what belongs to a scan's operands into constants, initial carry and scanned arrays."""
    n_consts, n_carry = step.counts
    stop = n_consts + n_carry
    return ScanOperands(list(values[:n_consts]), list(values[n_consts:stop]), list(values[stop:]))


@dataclass(frozen=True)
class LoopPlan:
    """The plan of one loop.

    Attributes:
        stored: the values of the body that each step stores for the backward pass.
        consts: the body's constants that the backward pass reads.
        xs: the body's scanned inputs that the backward pass reads again.
        reached: whether each input of the body gets a cotangent.
    """

    stored: list[Var]
    consts: list[Var]
    xs: list[Var]
    reached: ScanOperands[bool]


@dataclass(frozen=True)
class BranchPlan:
    """The plan of one branch.

    Attributes:
        reached: whether each operand gets a cotangent, whichever branch is taken.
    """

    reached: list[bool]


@dataclass(frozen=True)
class Plans:
    """The plans of all loops and branches of a function that a cotangent reaches."""

    loops: dict[Step, LoopPlan] = field(default_factory=dict)
    branches: dict[Step, BranchPlan] = field(default_factory=dict)

    def loops_in(self, body: Structure) -> list[Step]:
        """Return the loops in the body of another that a cotangent reaches."""
        return [step for step in body.flat.steps if step in self.loops]


class Planner(Walk):
    """The walk that makes the plans; to be run by `jax.eval_shape`.

    It evaluates the body of a loop once and takes all branches.
    """

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self.plans = Plans()

    def forward_scan(self, structure: Structure, step: Step, memory: Memory) -> list[Runs]:
        """Evaluate the first step of a loop."""
        (body,) = structure.inner[step]
        operands = by_role(step, [memory[atom] for atom in step.inputs])
        first = jax.tree.map(lambda x: jax.lax.index_in_dim(x, 0, keepdims=False), operands.xs)
        inner = self.forward(body, [*operands.consts, *operands.carry, *first])
        memory.bodies[step] = inner
        outputs = [inner[atom] for atom in body.flat.outputs]
        n_carry = step.counts[1]
        return [*outputs[:n_carry], *_stacked(outputs[n_carry:], step)]

    def backward_scan(self, visit: Visit) -> list[Cotangent]:
        """Plan a loop, and return cotangents of the right shapes."""
        step, (body,) = visit.step, visit.structure.inner[visit.step]
        memory = visit.memory.bodies[step]
        cotangents = self._fixed_point(visit, body, memory)
        of_xs = _stacked(cotangents.xs, step)
        of_operands = [*cotangents.consts, *cotangents.carry, *of_xs]
        reached = by_role(step, [cotangent is not None for cotangent in of_operands])
        reads = _reads(step, body, memory)
        self.plans.loops[step] = LoopPlan(reads.stored, reads.consts, reads.xs, reached)
        operand_of = dict(zip(body.flat.inputs, step.inputs, strict=True))
        for var in (*reads.consts, *reads.xs):
            visit.memory[operand_of[var]]  # read by the loop around this one, too
        return cotangents_of(step.inputs, of_operands)

    def _fixed_point(
        self, visit: Visit, body: Structure, memory: Memory
    ) -> ScanOperands[Array | None]:
        """Return the cotangents of a body's inputs, once no further carry gets one."""
        step, n_carry = visit.step, visit.step.counts[1]
        of_ys = [
            None if y is None else jax.lax.index_in_dim(y, 0, keepdims=False)
            for y in visit.cotangents[n_carry:]
        ]
        reached = [cotangent is not None for cotangent in visit.cotangents[:n_carry]]
        if step in self.plans.loops:  # the loop lies in another, which is gone through again
            earlier = self.plans.loops[step].reached.carry
            reached = [now or before for now, before in zip(reached, earlier, strict=True)]
        carried = by_role(step, body.flat.inputs).carry
        while True:
            memory.reads = set()
            zeros = [
                jnp.zeros(var.shape, self.rules.dtype) if flag else None
                for var, flag in zip(carried, reached, strict=True)
            ]
            cotangents, _ = self.inside(body, memory, [*zeros, *of_ys])
            parts = by_role(step, cotangents)
            before = reached
            reached = [
                flag or cotangent is not None
                for flag, cotangent in zip(reached, parts.carry, strict=True)
            ]
            if reached == before:
                break
        carry = [
            zero if cotangent is None else cotangent
            for zero, cotangent in zip(zeros, parts.carry, strict=True)
        ]
        return replace(parts, carry=carry)

    def backward_cond(self, visit: Visit) -> list[Cotangent]:
        """Plan a branch, and return cotangents of the right shapes."""
        step = visit.step
        index, *_ = step.inputs
        _, *operands = (visit.memory[atom] for atom in step.inputs)
        of_branches = [
            self.inside(branch, self.forward(branch, operands), visit.cotangents)[0]
            for branch in visit.structure.inner[step]
        ]
        either = [
            next((cotangent for cotangent in same if cotangent is not None), None)
            for same in zip(*of_branches, strict=True)
        ]
        self.plans.branches[step] = BranchPlan([cotangent is not None for cotangent in either])
        of_index = [jnp.zeros((), self.rules.dtype)] if visit.structure.is_active(index) else [None]
        return cotangents_of(step.inputs, [*of_index, *either])


class _Reads(NamedTuple):
    """The values that the backward pass through a loop reads; see `LoopPlan`."""

    stored: list[Var]
    consts: list[Var]
    xs: list[Var]


def _reads(step: Step, body: Structure, memory: Memory) -> _Reads:
    """Return what each step of a loop stores, and what is read again or recomputed."""
    inputs = by_role(step, body.flat.inputs)
    at_hand = {*inputs.consts, *inputs.xs, *body.flat.constants}
    stored, sources = [], set()
    for var in (*body.flat.inputs, *body.flat.constants, *body.producers):
        if var in memory.reads:
            needed = _sources(body, var, at_hand)
            if needed is None:
                stored.append(var)
            else:
                sources |= needed
    return _Reads(
        stored,
        [var for var in inputs.consts if var in sources],
        [var for var in inputs.xs if var in sources],
    )


def _sources(body: Structure, var: Var, at_hand: set[Var]) -> set[Var] | None:
    """Return what a value is recomputed from without the carry; `None` if it cannot be."""
    if var in at_hand:
        return {var}
    step = body.producers.get(var)
    if step is None or step.bodies or body.facts[var].active:
        return None
    sources: set[Var] = set()
    for operand in step.variables:
        needed = _sources(body, operand, at_hand)
        if needed is None:
            return None
        sources |= needed
    return sources


def _stacked(values: PyTree, step: Step) -> PyTree:
    """Give each value a leading axis of a loop's steps."""
    length = step.eqn.params["length"]
    return jax.tree.map(lambda y: jax.lax.broadcast(y, (length,)), values)
