"""Sends something back through a function, from what it answers to what it is given.

Forward the function is computed as it is, and what the way back will read is kept. Backward each
step's rule says what its operands get. Both ways are ordinary JAX code, so that the whole can be
jitted, vmapped, sharded, and differentiated as often as one likes, in both modes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxattn.jaxpr.flat import Atom, Step, Var
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.structure.graph import Structure

#: What a value is in each run of the function: at the input, and perhaps at a baseline.
Runs = tuple[Any, ...]


class Memory:
    """The values of one call of a function, in all runs, and what its loops keep."""

    def __init__(self, structure: Structure, number: int) -> None:
        self.structure, self.number = structure, number
        self.values: dict[Var, Runs] = {}
        self.loops: dict[Step, Any] = {}
        self.reads: set[Var] = set()

    def __getitem__(self, atom: Atom) -> Runs:
        if not isinstance(atom, Var):
            return (atom.val,) * self.number
        self.reads.add(atom)
        if atom not in self.values:  # on the way back through a loop
            self._compute(atom)
        return self.values[atom]

    def _compute(self, var: Var) -> None:
        step = self.structure.producers[var]
        _compute(step, self, self)


class Rules(Protocol):
    """What each step's operands get from what its outputs got.

    Attributes:
        dtype: of what is sent back, whatever precision a step in between computes in.
    """

    dtype: Any

    def __call__(
        self, structure: Structure, step: Step, memory: Memory, given: list[Any]
    ) -> Sequence[tuple[Atom, Any]]:
        """Shares out what came to the outputs; `None` where nothing did."""

    def absorb(self, given: Any) -> None:
        """Takes what comes to a value that does not depend on the input."""

    def enter(self) -> None:
        """Begins the inside of a loop or a branch."""

    def leave(self) -> Any:
        """Ends it, and answers the sum of what was absorbed there."""


def _compute(step: Step, read: Any, memory: Memory) -> None:
    """Computes a step in all runs; once where they cannot differ."""
    given = [read[atom] for atom in step.inputs]
    same = all(value is runs[0] for runs in given for value in runs)
    with jax.named_scope(step.stack):
        outputs = [
            bind(step.eqn, [runs[i] for runs in given]) for i in range(1 if same else memory.number)
        ]
    for var, *runs in zip(step.outputs, *outputs, strict=True):
        memory.values[var] = tuple(runs) * (memory.number if same else 1)


class Reverse:
    """The way back through a function with loops, under one set of rules."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        # What the way back through a loop reads, and which carried values get something there.
        self._loops: dict[Step, _Plan] = {}
        self._branches: dict[Step, list[bool]] = {}
        self._planning = False

    def __call__(
        self, structure: Structure, inputs: Sequence[Runs], seed: Callable[[list[Runs]], list[Any]]
    ) -> tuple[list[Runs], list[Any], Any]:
        """Runs a function forward and back.

        Args:
            structure: the function.
            inputs: its inputs in all runs.
            seed: what its outputs get, from their values.

        Returns:
            the outputs; what each input got, `None` for nothing; and what was absorbed.
        """

        def there_and_back(inputs: Sequence[Runs]) -> tuple[list[Runs], list[Any], Any]:
            memory = self._forward(structure, inputs)
            outputs = [memory[atom] for atom in structure.flat.outputs]
            return outputs, *self._inside(structure, memory, seed(outputs))

        self._planning = True
        jax.eval_shape(there_and_back, list(inputs))
        self._planning = False
        return there_and_back(inputs)

    def _forward(self, structure: Structure, inputs: Sequence[Runs]) -> Memory:
        memory = Memory(structure, len(inputs[0]) if inputs else 1)
        memory.values.update(zip(structure.flat.inputs, inputs, strict=True))
        for var, constant in structure.flat.constants.items():
            memory.values[var] = (constant,) * memory.number
        for step in structure.flat.steps:
            turns = step.name == "scan" and step.eqn.params["length"] > 0
            if turns and any(map(structure.is_active, step.outputs)):
                with jax.named_scope(step.stack):
                    self._forward_scan(structure, step, memory)
            else:
                _compute(step, memory, memory)
        memory.reads.clear()
        return memory

    def _backward(self, structure: Structure, memory: Memory, seeds: list[Any]) -> list[Any]:
        got: dict[Var, Any] = {}

        def give(atom: Atom, value: Any) -> None:
            if value is None:
                return
            if not structure.is_active(atom):
                self.rules.absorb(value)
            else:
                assert isinstance(atom, Var)
                value = _gathered(value.astype(self.rules.dtype), atom.shape)
                got[atom] = got[atom] + value if atom in got else value

        for atom, value in zip(structure.flat.outputs, seeds, strict=True):
            give(atom, value)
        for step in reversed(structure.flat.steps):
            given = [got.pop(var, None) for var in step.outputs]
            if all(value is None for value in given):
                continue
            with jax.named_scope(step.stack):
                shares: Sequence[tuple[Atom, Any]]
                if step.name == "scan":
                    shares = self._backward_scan(structure, step, memory, given)
                elif step.name == "cond":
                    shares = self._backward_cond(structure, step, memory, given)
                else:
                    shares = self.rules(structure, step, memory, given)
            for var, value in shares:
                give(var, value)
        return [got.get(var) for var in structure.flat.inputs]

    def _forward_scan(self, structure: Structure, step: Step, memory: Memory) -> None:
        (inner,) = structure.inner[step]
        consts, init, xs = _operands(step, [memory[atom] for atom in step.inputs])
        plan = self._loops.get(step, _NOTHING)
        loops = [inside for inside in inner.flat.steps if inside in self._loops]

        def turn(carry: Any, x: Any) -> tuple[Any, Any]:
            now = self._forward(inner, [*consts, *carry, *x])
            outputs = [now[atom] for atom in inner.flat.outputs]
            kept = [now[var] for var in plan.kept], [now.loops[inside] for inside in loops]
            return outputs[: len(init)], (outputs[len(init) :], kept)

        if self._planning:
            first = jax.tree.map(lambda x: jax.lax.index_in_dim(x, 0, keepdims=False), xs)
            memory.loops[step] = now = self._forward(inner, [*consts, *init, *first])
            outputs = [now[atom] for atom in inner.flat.outputs]
            carry, ys = outputs[: len(init)], _stacked(outputs[len(init) :], step)
        else:
            options = {name: step.eqn.params[name] for name in ("length", "reverse", "unroll")}
            carry, (ys, memory.loops[step]) = jax.lax.scan(turn, init, xs, **options)
        memory.values.update(zip(step.outputs, [*carry, *ys], strict=True))

    def _backward_scan(
        self, structure: Structure, step: Step, memory: Memory, given: list[Any]
    ) -> list[tuple[Atom, Any]]:
        (inner,) = structure.inner[step]
        of_consts, of_carry, of_xs = _operands(step, inner.flat.inputs)
        of_ys = given[len(of_carry) :]
        last = given[: len(of_carry)]
        if step.eqn.params["length"] == 0:
            init = step.inputs[len(of_consts) : len(of_consts) + len(of_carry)]
            return list(zip(init, last, strict=True))
        if self._planning:
            ys = [None if y is None else jax.lax.index_in_dim(y, 0, keepdims=False) for y in of_ys]
            before = self._loops.get(step, _NOTHING).carried or [False] * len(last)
            carried = [g is not None or known for g, known in zip(last, before, strict=True)]
            plan, got = self._plan_scan(inner, step, memory, carried, ys)
            self._loops[step] = plan
            consts, carry, xs = _operands(step, got)
            return list(zip(step.inputs, [*consts, *carry, *_stacked(xs, step)], strict=True))

        plan = self._loops[step]
        atoms = dict(zip(inner.flat.inputs, step.inputs, strict=True))
        fixed = {var: memory[atoms[var]] for var in plan.leaves if var in of_consts}
        moving = {var: memory[atoms[var]] for var in plan.leaves if var in of_xs}
        kept, records = memory.loops[step]
        loops = [inside for inside in inner.flat.steps if inside in self._loops]

        def turn(carry: Any, x: Any) -> tuple[Any, Any]:
            of_carried, of_fixed, absorbed = carry
            of_outputs, kept, records, now = x
            before = Memory(inner, memory.number)
            before.values.update({v: (c,) * memory.number for v, c in inner.flat.constants.items()})
            before.values.update(fixed)
            before.values.update(zip([*moving, *plan.kept], [*now, *kept], strict=True))
            before.loops.update(zip(loops, records, strict=True))
            carried = iter(of_carried)
            seeds = [next(carried) if flag else None for flag in plan.carried]
            got, lost = self._inside(inner, before, [*seeds, *of_outputs])
            consts, carry, xs = _operands(step, got)
            return (
                [
                    jnp.zeros(v.shape, self.rules.dtype) if g is None else g
                    for g, v, flag in zip(carry, of_carry, plan.carried, strict=True)
                    if flag
                ],
                [total + g for total, g in zip(of_fixed, _present(consts), strict=True)],
                absorbed + lost,
            ), _present(xs)

        start = (
            [
                jnp.zeros(v.shape, self.rules.dtype) if g is None else g
                for g, v, flag in zip(last, of_carry, plan.carried, strict=True)
                if flag
            ],
            [
                jnp.zeros(v.shape, self.rules.dtype)
                for v, flag in zip(of_consts, plan.consts, strict=True)
                if flag
            ],
            jnp.zeros((), self.rules.dtype),
        )
        options = {name: step.eqn.params[name] for name in ("length", "unroll")}
        (carry, consts, absorbed), xs = jax.lax.scan(
            turn,
            start,
            (of_ys, kept, records, list(moving.values())),
            reverse=not step.eqn.params["reverse"],
            **options,
        )
        self.rules.absorb(absorbed)
        flags = [*plan.consts, *plan.carried, *plan.xs]
        found = iter([*consts, *carry, *xs])
        return [(atom, next(found)) for atom, flag in zip(step.inputs, flags, strict=True) if flag]

    def _plan_scan(
        self, inner: Structure, step: Step, outer: Memory, carried: list[bool], ys: list[Any]
    ) -> tuple["_Plan", list[Any]]:
        """Finds what the way back through a loop reads, and which carried values get something."""
        memory: Memory = outer.loops[step]
        of_consts, of_carry, of_xs = _operands(step, inner.flat.inputs)
        while True:
            memory.reads = set()
            last = [
                jnp.zeros(v.shape, self.rules.dtype) if flag else None
                for v, flag in zip(of_carry, carried, strict=True)
            ]
            got, _ = self._inside(inner, memory, [*last, *ys])
            consts, carry, xs = _operands(step, got)
            found = [flag or g is not None for flag, g in zip(carried, carry, strict=True)]
            if found == carried:
                break
            carried = found
        at_hand = {*of_consts, *of_xs, *inner.flat.constants}
        order = [*inner.flat.inputs, *inner.flat.constants, *inner.producers]
        kept, leaves = [], set()
        for var in order:
            if var in memory.reads:
                below = _leaves(inner, var, at_hand)
                if below is None:
                    kept.append(var)
                else:
                    leaves |= below
        atoms = dict(zip(inner.flat.inputs, step.inputs, strict=True))
        for var in leaves & atoms.keys():
            outer[atoms[var]]  # read by the loop that this one lies in, too
        present = [[g is not None for g in part] for part in (consts, xs)]
        plan = _Plan(kept, [v for v in order if v in leaves], carried, present[0], present[1])
        shares = [
            *consts,
            *(
                g if g is not None or not f else jnp.zeros(v.shape, self.rules.dtype)
                for g, f, v in zip(carry, carried, of_carry, strict=True)
            ),
            *xs,
        ]
        return plan, shares

    def _backward_cond(
        self, structure: Structure, step: Step, memory: Memory, given: list[Any]
    ) -> list[tuple[Atom, Any]]:
        index, *values = (memory[atom] for atom in step.inputs)
        if memory.number > 1 and structure.fact(step.inputs[0]).depends_on_input:
            raise ValueError(f"{step} may take another branch at the baseline than at the input")
        flags = self._branches.get(step, [])

        def back(inner: Structure) -> Callable[..., tuple[list[Any], Any]]:
            def run(values: list[Runs], given: list[Any]) -> tuple[list[Any], Any]:
                got, absorbed = self._inside(inner, self._forward(inner, values), given)
                if not self._planning:
                    got = [
                        jnp.zeros(v.shape, self.rules.dtype) if g is None else g
                        for g, v, flag in zip(got, inner.flat.inputs, flags, strict=True)
                        if flag
                    ]
                return got, absorbed

            return run

        branches = [back(inner) for inner in structure.inner[step]]
        if self._planning:
            every = [branch(values, given)[0] for branch in branches]
            either = [
                next((g for g in gs if g is not None), None) for gs in zip(*every, strict=True)
            ]
            self._branches[step] = [g is not None for g in either]
            return list(zip(step.inputs[1:], either, strict=True))
        got, absorbed = jax.lax.switch(index[0], branches, values, given)
        self.rules.absorb(absorbed)
        operands = [atom for atom, flag in zip(step.inputs[1:], flags, strict=True) if flag]
        return list(zip(operands, got, strict=True))

    def _inside(self, inner: Structure, memory: Memory, seeds: list[Any]) -> tuple[list[Any], Any]:
        """The way back through the inside of a loop or a branch, and what was absorbed there."""
        self.rules.enter()
        got = self._backward(inner, memory, seeds)
        return got, self.rules.leave()


class _Plan(NamedTuple):
    """What a loop keeps of each turn for the way back, and what gets something there."""

    kept: list[Var]
    leaves: list[Var]
    carried: list[bool]
    consts: list[bool]
    xs: list[bool]


_NOTHING = _Plan([], [], [], [], [])


def _leaves(inner: Structure, var: Var, at_hand: set[Var]) -> set[Var] | None:
    """What a value can be made of again, without what a loop carries; `None` where it cannot."""
    if var in at_hand:
        return {var}
    step = inner.producers.get(var)
    if step is None or step.bodies or inner.facts[var].active:
        return None
    found: set[Var] = set()
    for operand in step.variables:
        below = _leaves(inner, operand, at_hand)
        if below is None:
            return None
        found |= below
    return found


def _gathered(value: Any, shape: tuple[int, ...]) -> Any:
    """Sums over the cells for which one cell of an operand was used again and again."""
    if value.shape == shape:
        return value
    if not shape:
        return jnp.sum(value)
    longer = tuple(i for i, (n, m) in enumerate(zip(value.shape, shape, strict=True)) if n != m)
    return jnp.sum(value, longer, keepdims=True)


def _operands(step: Step, values: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Parts the operands of a scan: constants, carried, scanned over."""
    n_consts, n_carry = step.counts
    split = n_consts + n_carry
    return list(values[:n_consts]), list(values[n_consts:split]), list(values[split:])


def _stacked(values: Any, step: Step) -> Any:
    length = step.eqn.params["length"]
    return jax.tree.map(lambda y: jax.lax.broadcast(y, (length,)), values)


def _present(values: list[Any]) -> list[Any]:
    return [value for value in values if value is not None]
