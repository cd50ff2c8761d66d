"""Split a function where it stops being affine in its input: an affine prefix and a remainder.

The first projection of a network maps a straight line to a straight line. Points along a line need
not be projected one by one, and the gradients at all of them go back through the prefix as one sum.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jaxattn.jaxpr.flat import Atom, Flat, Number, Step, Var, flatten, is_replayable
from jaxattn.jaxpr.reuse.step_values import Values, read, run_steps
from jaxattn.jaxpr.structure.primitive_classes import CONTRACTING, LAYOUT, SUMMING

_LINEAR = LAYOUT - {"reduce_precision"} | SUMMING | {"add", "add_any", "neg", "sub"}

#: Returns a value of the prefix, from what stands for it; in a scan from a row of that.
Point: TypeAlias = Callable[[PyTree], jax.Array]


@dataclass(frozen=True)
class AffinePrefix:
    """A function as `fn(*x) == remainder(affine(*x), at)`, where `at` is the identity.

    The affine part ends with its last contractions. Those in the body of a scan over the input
    belong to it, and are computed for all rows at once.

    Attributes:
        flat: the function.
        treedef: the structure of its output.
        constant_values: the values that do not depend on the input.
        affine_steps: the steps of the affine part.
        remainder_steps: the other steps that depend on the input.
        loops: the scans with an affine part of their own.
        outputs: the values of the affine part that the remainder reads, loops apart.
    """

    flat: Flat
    treedef: jax.tree_util.PyTreeDef
    constant_values: Values
    affine_steps: Sequence[Step]
    remainder_steps: Sequence[Step]
    loops: "Mapping[Step, LoopPrefix]"
    outputs: Sequence[Var]

    @classmethod
    def of(cls, fn: Callable[..., PyTree], x: Sequence[ArrayLike]) -> "AffinePrefix | None":
        """Split a function of some arrays, abstract or not; `None` where nothing is gained.

        That is where no contraction is affine in `x`, or `fn` prints or calls back.
        """
        trace = jax.make_jaxpr(lambda *x: fn(*x), return_shape=True)
        closed, output = trace(*x)
        # Custom derivative rules and rematerialised parts stay as they are.
        flat = flatten(closed, opened=("jit", "closed_call", "core_call"))
        if not is_replayable(flat):
            return None
        prefix = cls._split(flat, jax.tree.structure(output))
        return prefix if prefix.affine_steps or prefix.loops else None

    @classmethod
    def _split(cls, flat: Flat, treedef: jax.tree_util.PyTreeDef) -> "AffinePrefix":
        steps = _classify(flat.steps, {*flat.inputs}, {*flat.inputs})
        scans = [s for s in flat.steps if s.name == "scan" and steps.dependent & {*s.variables}]
        splits = {step: LoopPrefix.of(step, steps.dependent, steps.affine) for step in scans}
        loops = {step: loop for step, loop in splits.items() if loop.outputs}
        affine = _up_to_contractions(
            steps.affine_steps, [v for loop in loops.values() for v in loop.affine_operands]
        )
        chosen = {*steps.independent_steps, *affine}
        remainder = [step for step in flat.steps if step not in chosen]
        operands = [a for step in remainder if step not in loops for a in step.inputs]
        operands += [a for loop in loops.values() for a in loop.remainder_operands]
        computed = {*flat.inputs, *(out for step in affine for out in step.outputs)}
        outputs = [
            v
            for v in dict.fromkeys([*operands, *flat.outputs])
            if isinstance(v, Var) and v in computed
        ]
        values = run_steps(steps.independent_steps, dict(flat.constants))
        return cls(flat, treedef, values, affine, remainder, loops, outputs)

    def affine(self, *x: ArrayLike) -> list[ArrayLike]:
        """Return the values of the affine part that the remainder reads."""
        values = {**self.constant_values, **dict(zip(self.flat.inputs, x, strict=True))}
        run_steps(self.affine_steps, values)
        rows = [row for loop in self.loops.values() for row in loop.affine(values)]
        return read(self.outputs, values) + rows

    def remainder(self, prefix: Sequence[PyTree], at: Point) -> PyTree:
        """Return the output of the function from the values of the affine part.

        Args:
            prefix: for each value that `affine` returns a pytree of arrays of its shape.
            at: returns the value itself from such a pytree; in a scan, the row from rows.
        """
        whole, rows = prefix[: len(self.outputs)], iter(prefix[len(self.outputs) :])
        of_loops = {step: [next(rows) for _ in loop.outputs] for step, loop in self.loops.items()}
        values = {**self.constant_values, **dict(zip(self.outputs, map(at, whole), strict=True))}
        for step in self.remainder_steps:
            if step in self.loops:
                outputs = self.loops[step].remainder(values, of_loops[step], at)
                values.update(zip(step.outputs, outputs, strict=True))
            else:
                run_steps([step], values)
        return jax.tree.unflatten(self.treedef, read(self.flat.outputs, values))


@dataclass(frozen=True)
class LoopPrefix:
    """A scan whose body contracts rows of the input before anything else happens to them.

    Attributes:
        step: the scan.
        consts: the inputs of the body that are the same in every time step.
        carries: the inputs that are carried.
        affine_rows: the rows that the affine part reads.
        remainder_rows: the rows that the remainder reads.
        affine_steps: the steps of the affine part, and those that do not depend on the input.
        remainder_steps: the steps of the remainder, and again those.
        outputs: the values of the affine part that the remainder reads.
        operands: the operand of each input of the body.
    """

    step: Step
    consts: Sequence[Var]
    carries: Sequence[Var]
    affine_rows: Sequence[Var]
    remainder_rows: Sequence[Var]
    affine_steps: Sequence[Step]
    remainder_steps: Sequence[Step]
    outputs: Sequence[Var]
    operands: Mapping[Var, Atom]

    @classmethod
    def of(cls, step: Step, dependent: set[Var], affine: set[Var]) -> "LoopPrefix":
        """Split the body of a scan.

        Args:
            step: the scan.
            dependent: the values that depend on the input of the function.
            affine: those that are affine in it.
        """
        (body, *_), (n_consts, n_carry) = step.bodies, step.counts
        operands = dict(zip(body.inputs, step.inputs, strict=True))
        consts, rows = body.inputs[:n_consts], body.inputs[n_consts + n_carry :]
        carries = body.inputs[n_consts : n_consts + n_carry]
        steps = _classify(
            body.steps,
            {v for v in body.inputs if operands[v] in dependent} | {*carries},
            {v for v in rows if operands[v] in affine},
        )
        contracted = _up_to_contractions(steps.affine_steps, [])
        # What does not depend on the input is computed for both parts.
        affine_steps = [s for s in body.steps if s in {*steps.independent_steps, *contracted}]
        remainder_steps = [s for s in body.steps if s not in contracted]
        in_affine = {v for s in affine_steps for v in s.variables}
        in_remainder = {*body.outputs, *(atom for s in remainder_steps for atom in s.inputs)}
        return cls(
            step,
            consts,
            carries,
            affine_rows=[v for v in rows if v in in_affine],
            remainder_rows=[v for v in rows if v in in_remainder],
            affine_steps=affine_steps,
            remainder_steps=remainder_steps,
            outputs=[out for s in contracted for out in s.outputs if out in in_remainder],
            operands=operands,
        )

    @property
    def affine_operands(self) -> list[Atom]:
        """The operands that the affine part reads."""
        inside = {v for step in self.affine_steps for v in step.variables}
        return [atom for v, atom in self.operands.items() if v in inside]

    @property
    def remainder_operands(self) -> list[Atom]:
        """The operands that the remainder reads."""
        return [self.operands[v] for v in [*self.consts, *self.carries, *self.remainder_rows]]

    def _fixed(self, values: Values) -> Values:
        """Return what is the same in every time step, of the values computed so far."""
        operands = {v: self.operands[v] for v in self.consts}
        known = [v for v, a in operands.items() if isinstance(a, Number) or a in values]
        (body, *_) = self.step.bodies
        return body.constants | dict(zip(known, self._read(known, values), strict=True))

    def _read(self, inputs: Sequence[Var], values: Values) -> list[ArrayLike]:
        """Return the operands of some inputs of the body."""
        return read([self.operands[v] for v in inputs], values)

    def affine(self, values: Values) -> list[ArrayLike]:
        """Return the values of the affine part for all rows."""
        fixed = self._fixed(values)

        def at_row(row: PyTree) -> PyTree:
            inside = fixed | dict(zip(self.affine_rows, row, strict=True))
            return read(self.outputs, run_steps(self.affine_steps, inside))

        return list(jax.vmap(at_row)(self._read(self.affine_rows, values)))

    def remainder(self, values: Values, prefix: Sequence[PyTree], at: Point) -> list[ArrayLike]:
        """Return all outputs of the scan from the values of the affine part."""
        fixed, n_carry = self._fixed(values), len(self.carries)
        (body, *_) = self.step.bodies

        def advance(carry: PyTree, row: PyTree) -> tuple[PyTree, PyTree]:
            inside = fixed | dict(zip(self.carries, carry, strict=True))
            inside |= dict(zip(self.remainder_rows, row[0], strict=True))
            inside |= dict(zip(self.outputs, map(at, row[1]), strict=True))
            outputs = read(body.outputs, run_steps(self.remainder_steps, inside))
            return outputs[:n_carry], outputs[n_carry:]

        init, rows = self._read(self.carries, values), self._read(self.remainder_rows, values)
        options = {name: self.step.eqn.params[name] for name in ("length", "reverse", "unroll")}
        last, ys = jax.lax.scan(advance, init, (rows, list(prefix)), **options)
        return [*last, *ys]


@dataclass(frozen=True)
class _Classified:
    """Steps and values, by how they depend on the input.

    Attributes:
        independent_steps: the steps that do not depend on it.
        affine_steps: those that are affine in it.
        dependent: the values that depend on it.
        affine: those that are affine in it.
    """

    independent_steps: Sequence[Step]
    affine_steps: Sequence[Step]
    dependent: set[Var]
    affine: set[Var]


def _classify(steps: Sequence[Step], dependent: set[Var], affine: set[Var]) -> _Classified:
    """Classify steps, given the values ahead of them that depend on the input."""
    dependent, affine = {*dependent}, {*affine}
    independent_steps, affine_steps = [], []
    for step in steps:
        if not dependent & {*step.variables}:
            independent_steps.append(step)
            continue
        dependent.update(step.outputs)
        if _is_affine(step, dependent, affine):
            affine.update(step.outputs)
            affine_steps.append(step)
    return _Classified(independent_steps, affine_steps, dependent, affine)


def _is_affine(step: Step, dependent: set[Var], affine: set[Var]) -> bool:
    """Return whether a step is affine, without rounding, in operands that are so."""
    depends = [atom in dependent for atom in step.inputs]
    operands = [atom for atom, does in zip(step.inputs, depends, strict=True) if does]
    dtypes = {atom.aval.dtype for atom in [*operands, *step.outputs]}
    if any(atom not in affine for atom in operands) or len(dtypes) > 1:
        return False
    if step.name == "mul" or step.name in CONTRACTING:
        return sum(depends) == 1
    return step.name in _LINEAR or (step.name == "div" and not depends[1])


def _up_to_contractions(steps: Sequence[Step], values: Iterable[Atom]) -> list[Step]:
    """Return the contractions among some steps, the steps that make some values, and theirs."""
    needed = {*values}
    chosen = []
    for step in reversed(steps):
        if step.name in CONTRACTING or needed & {*step.outputs}:
            needed.update(step.variables)
            chosen.append(step)
    return chosen[::-1]
