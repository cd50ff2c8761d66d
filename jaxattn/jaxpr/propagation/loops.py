"""Run the forward and the backward pass through loops and branches, as planned.

The forward loop stores what its plan names, stacked over its steps, and a reversed loop reads it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxattn.jaxpr.flat import Step, Var
from jaxattn.jaxpr.propagation.loop_plans import LoopPlan, Plans, ScanOperands, by_role
from jaxattn.jaxpr.propagation.walk import (
    Cotangent,
    Memory,
    Rules,
    Runs,
    Stored,
    Visit,
    Walk,
    cotangents_of,
)
from jaxattn.jaxpr.structure.graph import Structure

_NOTHING_STORED = LoopPlan([], [], [], ScanOperands([], [], []))


class _Carry(NamedTuple):
    """The carry of the reversed loop.

    Attributes:
        carry: the cotangents of the carried values that get one.
        consts: the cotangents of the constants that get one, summed over the steps so far.
        absorbed: the sum of what was absorbed so far.
    """

    carry: list[Array]
    consts: list[Array]
    absorbed: Array


class _Xs(NamedTuple):
    """The operands of the reversed loop at each step.

    Attributes:
        of_ys: the cotangents of what the forward loop put out.
        stored: what it stored.
        xs: what it scanned over, as far as it is read again.
    """

    of_ys: list[Array | None]
    stored: Stored
    xs: list[Runs]


class _Branch(NamedTuple):
    """The backward pass of one branch, and its outputs in all runs.

    Attributes:
        inputs: the cotangents of the operands that get one.
        absorbed: what was absorbed inside of it.
        outputs: its outputs.
    """

    inputs: list[Array]
    absorbed: Array
    outputs: list[list[Array]]


class Runner(Walk):
    """The walk that computes, by the plans of a `Planner`."""

    def __init__(self, rules: Rules, plans: Plans) -> None:
        super().__init__(rules)
        self.plans = plans

    def forward_scan(self, structure: Structure, step: Step, memory: Memory) -> list[Runs]:
        """Run a loop and store what its plan names."""
        (body,) = structure.inner[step]
        operands = by_role(step, [memory[atom] for atom in step.inputs])
        n_carry = step.counts[1]
        plan = self.plans.loops.get(step, _NOTHING_STORED)
        loops = self.plans.loops_in(body)

        def advance(
            carry: list[Runs], xs: list[Runs]
        ) -> tuple[list[Runs], tuple[list[Runs], Stored]]:
            inner = self.forward(body, [*operands.consts, *carry, *xs])
            outputs = [inner[atom] for atom in body.flat.outputs]
            stored = Stored(
                [inner[var] for var in plan.stored], [inner.stored[loop] for loop in loops]
            )
            return outputs[:n_carry], (outputs[n_carry:], stored)

        options = {name: step.eqn.params[name] for name in ("length", "reverse", "unroll")}
        carry, (ys, stored) = jax.lax.scan(advance, operands.carry, operands.xs, **options)
        memory.stored[step] = stored
        return [*carry, *ys]

    def backward_scan(self, visit: Visit) -> list[Cotangent]:
        """Run a reversed loop."""
        step, (body,) = visit.step, visit.structure.inner[visit.step]
        plan, n_carry = self.plans.loops[step], step.counts[1]
        operand_of = dict(zip(body.flat.inputs, step.inputs, strict=True))
        consts = {var: visit.memory[operand_of[var]] for var in plan.consts}
        xs = _Xs(
            visit.cotangents[n_carry:],
            visit.memory.stored[step],
            [visit.memory[operand_of[var]] for var in plan.xs],
        )
        inputs = by_role(step, body.flat.inputs)
        start = _Carry(
            self._filled(visit.cotangents[:n_carry], inputs.carry, plan.reached.carry),
            self._filled([None] * len(inputs.consts), inputs.consts, plan.reached.consts),
            jnp.zeros((), self.rules.dtype),
        )

        def advance(carry: _Carry, xs: _Xs) -> tuple[_Carry, list[Array]]:
            memory = Memory(body, visit.memory.number)
            memory.values.update(consts)
            memory.values.update(zip(plan.xs, xs.xs, strict=True))
            memory.values.update(zip(plan.stored, xs.stored.values, strict=True))
            memory.stored.update(zip(self.plans.loops_in(body), xs.stored.loops, strict=True))
            of_carry = iter(carry.carry)
            seeds = [next(of_carry) if reached else None for reached in plan.reached.carry]
            cotangents, absorbed = self.inside(body, memory, [*seeds, *xs.of_ys])
            parts = by_role(step, cotangents)
            of_consts = [value for value in parts.consts if value is not None]
            return _Carry(
                self._filled(parts.carry, inputs.carry, plan.reached.carry),
                [total + value for total, value in zip(carry.consts, of_consts, strict=True)],
                carry.absorbed + absorbed,
            ), [value for value in parts.xs if value is not None]

        options = {name: step.eqn.params[name] for name in ("length", "unroll")}
        reverse = not step.eqn.params["reverse"]
        end, of_xs = jax.lax.scan(advance, start, xs, reverse=reverse, **options)
        self.rules.absorb(end.absorbed)
        reached = [*plan.reached.consts, *plan.reached.carry, *plan.reached.xs]
        operands = [atom for atom, flag in zip(step.inputs, reached, strict=True) if flag]
        return cotangents_of(operands, [*end.consts, *end.carry, *of_xs])

    def backward_cond(self, visit: Visit) -> list[Cotangent]:
        """Run the backward pass of the branch that was taken.

        If the runs may take different branches, return the mean over the branches of both.
        """
        step, reached = visit.step, self.plans.branches[visit.step].reached
        indices, *operands = (visit.memory[atom] for atom in step.inputs)

        def backward(branch: Structure) -> Callable[..., _Branch]:
            def run(operands: list[Runs], cotangents: list[Array | None]) -> _Branch:
                memory = self.forward(branch, operands)
                inputs, absorbed = self.inside(branch, memory, cotangents)
                outputs = [
                    [jnp.asarray(value, atom.aval.dtype) for value in memory[atom]]
                    for atom in branch.flat.outputs
                ]
                filled = self._filled(inputs, branch.flat.inputs, reached)
                return _Branch(filled, absorbed, outputs)

            return run

        branches = [backward(branch) for branch in visit.structure.inner[step]]
        differ = len(indices) > 1 and visit.structure.fact(step.inputs[0]).depends_on_input
        taken = [
            jax.lax.switch(index, branches, operands, visit.cotangents)
            for index in (indices if differ else indices[:1])
        ]
        means = jax.tree.map(lambda *values: sum(values) / len(values), *(t[:2] for t in taken))
        self.rules.absorb(means[1])
        reached_atoms = [atom for atom, flag in zip(step.inputs[1:], reached, strict=True) if flag]
        found = cotangents_of(reached_atoms, means[0])
        if visit.structure.is_active(step.inputs[0]):
            found.append(Cotangent(step.inputs[0], self._of_index(visit, indices, taken)))
        return found

    def _of_index(self, visit: Visit, indices: Runs, taken: Sequence[_Branch]) -> Array:
        """Return the cotangent of a branch's index: its effect alone, in the mean of both runs."""
        total = jnp.zeros((), self.rules.dtype)
        for cotangent, *ends in zip(visit.cotangents, *(t.outputs for t in taken), strict=True):
            if cotangent is not None:
                (a, a0), (b, b0) = ([y.astype(self.rules.dtype) for y in end] for end in ends)
                total += jnp.sum(cotangent * ((a - b) + (a0 - b0))) / 2
        first, second = (jnp.asarray(index, self.rules.dtype) for index in indices)
        difference = first - second
        return jnp.where(difference == 0, 0, total / jnp.where(difference == 0, 1, difference))

    def _filled(
        self, cotangents: Sequence[Array | None], variables: Sequence[Var], reached: Sequence[bool]
    ) -> list[Array]:
        """Return the cotangents of what the plan says is reached, with zeros for `None`."""
        return [
            jnp.zeros(var.shape, self.rules.dtype) if value is None else value
            for value, var, flag in zip(cotangents, variables, reached, strict=True)
            if flag
        ]
