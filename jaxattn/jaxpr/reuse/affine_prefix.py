"""A function parted where it stops being affine in its input.

The first projection of a network takes a straight line to a straight line. What moves along one
need not be projected at each of its points, and the slopes at all of them go back through it as one
sum.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from jaxattn.jaxpr.flat import Atom, Flat, Number, Step, Var, flatten, is_replayable
from jaxattn.jaxpr.reuse.rerun import Values, reads, run_steps
from jaxattn.jaxpr.structure.primitive_classes import CONTRACTING, LAYOUT, SUMMING

_MOVING = LAYOUT - {"reduce_precision"} | SUMMING | {"add", "add_any", "neg", "sub"}


class Front:
    """Parts `fn` in two: `fn(*x) == rest(affine(*x), at)`, where `at` answers what it is given.

    The affine part ends with its last contractions, those in the body of a scan over the input
    included: there they are made of all rows at once.
    """

    def __init__(self, flat: Flat, treedef: Any) -> None:
        """See `of`."""
        self._flat, self._treedef = flat, treedef
        self._loops: dict[Step, _Loop] = {}
        touched, affine = {*flat.inputs}, {*flat.inputs}
        before, straight = _sorted(flat.steps, touched, affine)
        for step in flat.steps:
            if step.name == "scan" and touched & {*step.variables}:
                loop = _Loop(step, touched, affine)
                if loop.made:
                    self._loops[step] = loop
        loops = self._loops.values()
        self._steps = _leading(straight, [v for loop in loops for v in loop.reads])
        chosen = {*before, *self._steps}
        self._rest = [step for step in flat.steps if step not in chosen]
        read = [a for step in self._rest if step not in self._loops for a in step.inputs]
        read += [a for loop in loops for a in loop.keeps] + flat.outputs
        made = {*flat.inputs, *(out for step in self._steps for out in step.outputs)}
        self._made = [v for v in dict.fromkeys(read) if v in made]
        self._known = run_steps(before, dict(flat.constants))

    @classmethod
    def of(cls, fn: Callable[..., Any], x: Sequence[Any]) -> "Front | None":
        """Parts a function of some arrays, abstract or not; `None` where nothing is gained.

        That is where no contraction is affine in `x`, or `fn` prints or calls back.
        """
        trace = jax.make_jaxpr(lambda *x: fn(*x), return_shape=True)
        closed, output = trace(*x)
        # What has a derivative rule, or is to be computed twice to save memory, stays as it is.
        flat = flatten(closed, opened=("jit", "closed_call", "core_call"))
        if not is_replayable(flat):
            return None
        front = cls(flat, jax.tree.structure(output))
        return front if front._steps or front._loops else None

    def affine(self, *x: Any) -> list[Any]:
        """The affine part: what the rest reads of it."""
        values = {**self._known, **dict(zip(self._flat.inputs, x, strict=True))}
        run_steps(self._steps, values)
        rows = [row for loop in self._loops.values() for row in loop.affine(values)]
        return reads(self._made, values) + rows

    def rest(self, made: Sequence[Any], at: Callable[[Any], Any]) -> Any:
        """The rest.

        Args:
            made: for each value that `affine` answers a pytree of arrays of its shape.
            at: makes of such a pytree the value itself; inside of a scan of the row that is read.
        """
        whole, rows = made[: len(self._made)], iter(made[len(self._made) :])
        of_loops = {loop: [next(rows) for _ in loop.made] for loop in self._loops.values()}
        values = {**self._known, **dict(zip(self._made, map(at, whole), strict=True))}
        for step in self._rest:
            if step in self._loops:
                loop = self._loops[step]
                outputs = loop.rest(values, of_loops[loop], at)
                values.update(zip(step.outputs, outputs, strict=True))
            else:
                run_steps([step], values)
        return jax.tree.unflatten(self._treedef, reads(self._flat.outputs, values))


class _Loop:
    """A scan whose body contracts rows of the input before anything else happens to them.

    Attributes:
        made: what the affine part of the body makes for the rest of it.
        reads: the operands that the affine part reads.
        keeps: the operands that the rest reads.
    """

    def __init__(self, step: Step, touched: set[Var], affine: set[Var]) -> None:
        self.step, self.body = step, step.bodies[0]
        n_consts, n_carry = step.counts
        inputs, operands = self.body.inputs, dict(zip(self.body.inputs, step.inputs, strict=True))
        self._consts, rows = inputs[:n_consts], inputs[n_consts + n_carry :]
        self._carries = inputs[n_consts : n_consts + n_carry]
        moving = {v for v in inputs if operands[v] in touched} | {*self._carries}
        along = {v for v in rows if operands[v] in affine}
        ahead, straight = _sorted(self.body.steps, moving, along)
        chosen = _leading(straight, [])
        # What the input does not touch is computed for both parts.
        self._front = [one for one in self.body.steps if one in {*ahead, *chosen}]
        self._rest = [one for one in self.body.steps if one not in chosen]
        in_front = {v for one in self._front for v in one.variables}
        behind = {*self.body.outputs, *(atom for one in self._rest for atom in one.inputs)}
        self.made = [out for one in chosen for out in one.outputs if out in behind]
        self._in_front = [v for v in rows if v in in_front]
        self._behind = [v for v in rows if v in behind]
        self._operands = operands
        self.reads = [operands[v] for v in inputs if v in in_front]
        self.keeps = [operands[v] for v in [*self._consts, *self._carries, *self._behind]]

    def _fixed(self, values: Values) -> Values:
        """What is the same in each step, of what is known by now."""
        operands = {v: self._operands[v] for v in self._consts}
        known = [v for v, a in operands.items() if isinstance(a, Number) or a in values]
        return self.body.constants | dict(zip(known, self._given(known, values), strict=True))

    def _given(self, inputs: Sequence[Var], values: Values) -> list[Any]:
        """The operands for some inputs of the body."""
        return reads([self._operands[v] for v in inputs], values)

    def affine(self, values: Values) -> list[Any]:
        """What the affine part makes of all rows."""
        fixed = self._fixed(values)

        def one(row: list[Any]) -> list[Any]:
            now = fixed | dict(zip(self._in_front, row, strict=True))
            return reads(self.made, run_steps(self._front, now))

        return list(jax.vmap(one)(self._given(self._in_front, values)))

    def rest(self, values: Values, made: Sequence[Any], at: Callable[[Any], Any]) -> list[Any]:
        """All outputs of the scan, from what the affine part has made."""
        fixed, n_carry = self._fixed(values), len(self._carries)

        def advance(carry: list[Any], row: tuple[list[Any], list[Any]]) -> Any:
            now = fixed | dict(zip(self._carries, carry, strict=True))
            now |= dict(zip(self._behind, row[0], strict=True))
            now |= dict(zip(self.made, map(at, row[1]), strict=True))
            outputs = reads(self.body.outputs, run_steps(self._rest, now))
            return outputs[:n_carry], outputs[n_carry:]

        init, rows = self._given(self._carries, values), self._given(self._behind, values)
        options = {name: self.step.eqn.params[name] for name in ("length", "reverse", "unroll")}
        last, ys = jax.lax.scan(advance, init, (rows, list(made)), **options)
        return [*last, *ys]


def _sorted(
    steps: Sequence[Step], touched: set[Var], affine: set[Var]
) -> tuple[list[Step], list[Step]]:
    """The steps that the input does not touch, and those that are affine in it.

    Args:
        steps: in order.
        touched: the values that depend on the input; those that steps make are added.
        affine: the values that are affine in it, likewise.
    """
    before: list[Step] = []
    straight: list[Step] = []
    for step in steps:
        if not touched & {*step.variables}:
            before.append(step)
            continue
        touched.update(step.outputs)
        if _is_affine(step, touched, affine):
            affine.update(step.outputs)
            straight.append(step)
    return before, straight


def _is_affine(step: Step, touched: set[Var], affine: set[Var]) -> bool:
    """Whether a step is affine, without rounding, in operands that are affine in the input."""
    moving = [atom in touched for atom in step.inputs]
    operands = [atom for atom, moves in zip(step.inputs, moving, strict=True) if moves]
    dtypes = {atom.aval.dtype for atom in [*operands, *step.outputs]}
    if any(atom not in affine for atom in operands) or len(dtypes) > 1:
        return False
    if step.name == "mul" or step.name in CONTRACTING:
        return sum(moving) == 1
    return step.name in _MOVING or (step.name == "div" and not moving[1])


def _leading(steps: Sequence[Step], wanted: Iterable[Atom]) -> list[Step]:
    """The contractions among some steps, what makes a wanted value, and all that lead there."""
    needed = {*wanted}
    found = []
    for step in reversed(steps):
        if step.name in CONTRACTING or needed & {*step.outputs}:
            needed.update(step.variables)
            found.append(step)
    return found[::-1]
