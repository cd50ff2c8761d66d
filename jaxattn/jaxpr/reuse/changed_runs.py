"""What a change of the input leaves as it was is not computed again.

The function is run once as it is. Then each step of its program is asked how far a change reaches
(`extents`), loops start where it begins (`restart`), and only what has changed is computed, for
several changes side by side. A step that is not understood is computed whole: never a wrong number.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from jaxattn.jaxpr.flat import Atom, Flat, Step, Var, flatten
from jaxattn.jaxpr.flops import count_equations
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.reuse.extents import Count, Local, Rows, local
from jaxattn.jaxpr.reuse.loop_split import Loop
from jaxattn.jaxpr.reuse.rerun import Clean, is_same, reads, rerun, run_clean, settled, spliced


class Traced(NamedTuple):
    """A function of one array as a flat program, and as it was traced."""

    flat: Flat
    closed: jex.ClosedJaxpr
    treedef: Any

    @classmethod
    def of(cls, fn: Callable[[Any], Any], x: Any) -> "Traced":
        """Traces `fn` at an array, abstract or not."""
        # JAX remembers the trace of a function that it has seen: it must not know this one.
        fresh = jax.make_jaxpr(lambda x: fn(x), return_shape=True)
        closed, output = fresh(x)
        return cls(flatten(closed), closed, jax.tree.structure(output))

    @property
    def flops(self) -> int:
        """Operations of one run."""
        return count_equations([step.eqn for step in self.flat.steps])

    @property
    def constants(self) -> list[Any]:
        """The arrays that the function closes over."""
        return list(self.closed.consts)

    def run(self, constants: Sequence[Any], x: Any) -> Any:
        """The function itself, given the arrays that it closes over."""
        flat = jex.jaxpr_as_fun(jex.ClosedJaxpr(self.closed.jaxpr, constants))(x)
        return jax.tree.unflatten(self.treedef, flat)


class Reuse:
    """Runs of a function, each with other rows of its input changed.

    Attributes:
        number: how many runs go side by side.
        flops: operations of all of them together, one run without a change included.
    """

    def __init__(
        self, traced: Traced, changes: Sequence[Rows | Count | None], *, linear: bool = False
    ) -> None:
        """Finds out what there is to compute.

        Args:
            traced: the function.
            changes: which rows of the input change, in each run; a `Count` for an input that is
                one; `None` for a run that changes nothing, with which others can be compared to
                the last bit.
            linear: whether the function is linear in its input, and the input zero where it does
                not change.
        """
        self.traced, self.number, self.linear = traced, len(changes), linear
        flat = traced.flat
        # Where a value has changed: in each run; or, with `...`, as a whole; or, absent, not.
        self._extents: dict[Var, Any] = {flat.inputs[0]: list(changes)}
        self._locals: dict[Step, list[Local | None]] = {}
        self._loops: dict[Step, Loop] = {}
        self._read = {v for step in flat.steps for v in step.variables}
        self._read |= {out for out in flat.outputs if isinstance(out, Var)}
        self.flops = 0 if linear else traced.flops
        self._positions = {
            step.outputs[0]: step.eqn.params["dimension"]
            for step in flat.steps
            if step.name == "iota"
        }
        for step in flat.steps:
            self._follow(step)

    def _of(self, atom: Atom) -> Any:
        return self._extents.get(atom) if isinstance(atom, Var) else None

    def _follow(self, step: Step) -> None:
        changes = [self._of(atom) for atom in step.inputs]
        if all(change is None for change in changes):
            return
        cost = count_equations([step.eqn])
        loop = Loop.of(step, changes, self.number)
        if loop is not None:
            self._loops[step] = loop
            self.flops += loop.flops
            for out, reach in zip(step.outputs, loop.extents, strict=True):
                self._set(out, reach)
            return
        if ... not in changes:
            found = [self._local(step, changes, g) for g in range(self.number)]
            if all(f is not None for f in found):
                self._locals[step] = found
                for i, out in enumerate(step.outputs):
                    self._set(out, [how.outputs[i] for how in found if how is not None])
                self.flops += sum(_part_of(cost, step, how) for how in found if how is not None)
                return
        self.flops += cost * self.number
        for out in step.outputs:
            self._extents[out] = ...

    def _set(self, out: Var, reach: Any) -> None:
        if reach is ... or (reach is not None and any(rows is not None for rows in reach)):
            self._extents[out] = reach

    def _local(self, step: Step, changes: Sequence[Any], run: int) -> Local | None:
        mine = [None if change is None else change[run] for change in changes]
        if all(rows is None for rows in mine):
            return Local([None] * len(step.outputs), [])
        return local(step, mine, self._positions)

    def clean(self, x: Any, constants: Sequence[Any] | None = None) -> "Unchanged":
        """Runs the function without any change; of a linear one only what is not zero.

        Args:
            x: its input.
            constants: what it closes over, if other than what it was traced with.
        """
        flat = self.traced.flat
        values: dict[Any, Any] = {**flat.constants, flat.inputs[0]: x}
        if constants is not None:
            values.update(zip(flat.constants, constants, strict=False))  # before those of calls
        loops: dict[Step, Clean] = {}
        for step in flat.steps:
            zero = self.linear and any(self._of(out) is not None for out in step.outputs)
            outputs: Sequence[Any]
            if step in self._loops:
                inputs = reads(step.inputs, values)
                loops[step] = run_clean(self._loops[step], inputs, zero=self.linear)
                outputs = loops[step].outputs
            elif zero:
                outputs = [jnp.zeros(out.shape, out.aval.dtype) for out in step.outputs]
            else:
                outputs = bind(step.eqn, reads(step.inputs, values))
            values.update(zip(step.outputs, outputs, strict=True))
        return Unchanged(values, loops)

    def run(self, unchanged: "Unchanged", rows: Sequence[Any]) -> Any:
        """What the function answers in all runs, stacked.

        Args:
            unchanged: the run without a change.
            rows: the changed rows of the input in each run; `None` where nothing changes.
        """
        flat = self.traced.flat
        changed = self._run(unchanged, rows)
        outputs = [changed.whole(out) for out in flat.outputs]
        return jax.tree.unflatten(self.traced.treedef, outputs)

    def reach(self) -> list[Rows | None]:
        """Which rows of the one output change in each run; `None` where all of it may."""
        (out,) = self.traced.flat.outputs
        reach = self._of(out)
        return [None] * self.number if reach is None or reach is ... else list(reach)

    def rows(self, unchanged: "Unchanged", rows: Sequence[Any]) -> list[Any]:
        """The rows of the one output that change in each run, and as many as `reach` says."""
        (out,) = self.traced.flat.outputs
        changed = self._run(unchanged, rows)
        if self._of(out) in (None, ...):
            return list(changed.whole(out))
        return [changed.read(out) if value is None else value for value in changed.values[out]]

    def _run(self, unchanged: "Unchanged", rows: Sequence[Any]) -> "_Changed":
        flat = self.traced.flat
        changed = _Changed(self, unchanged)
        changed.values[flat.inputs[0]] = list(rows)
        for step in flat.steps:
            if all(self._of(out) is None for out in step.outputs):
                continue
            outputs: Sequence[Any]
            if step in self._loops:
                outputs = changed.loop(step, self._loops[step], unchanged.loops[step])
            elif step in self._locals:
                found = [changed.in_part(step, how, g) for g, how in enumerate(self._locals[step])]
                outputs = [list(of_runs) for of_runs in zip(*found, strict=True)]
            else:
                outputs = changed.in_whole(step)
            changed.values.update(zip(step.outputs, outputs, strict=True))
        return changed


def _part_of(cost: int, step: Step, how: Local) -> int:
    """What of the cost of a step is left where it is computed in part."""
    rows = how.outputs[0] if how.outputs else None
    if rows is None:
        return 0
    if how.trim is not None or isinstance(rows, Count):
        return cost
    return cost * (rows.hi - rows.lo) // step.outputs[0].shape[rows.axis]


class Unchanged(NamedTuple):
    """All that was computed without a change."""

    values: dict[Any, Any]
    loops: dict[Step, Clean]


class _Changed:
    """What has changed: a list of rows for each run, or the whole value of all runs, stacked."""

    def __init__(self, reuse: Reuse, unchanged: Unchanged) -> None:
        self.reuse, self.clean = reuse, unchanged.values
        self.values: dict[Any, Any] = {}

    def read(self, atom: Atom) -> Any:
        """The value of an operand without a change."""
        return reads([atom], self.clean)[0]

    def whole(self, atom: Atom) -> Any:
        """The whole value of an operand in all runs, stacked."""
        reach, clean = self.reuse._of(atom), self.read(atom)
        if reach is ...:
            return self.values[atom]
        if reach is None:
            return jnp.broadcast_to(clean, (self.reuse.number, *jnp.shape(clean)))
        return jnp.stack(
            [clean if rows is None else self._cut(atom, g, None) for g, rows in enumerate(reach)]
        )

    def _cut(self, atom: Atom, run: int, wanted: Rows | None) -> Any:
        """Some rows of an operand in a run."""
        reach, clean = self.reuse._of(atom), self.read(atom)
        rows = reach[run] if reach else None
        if rows is None:
            return self._unchanged(atom, wanted)
        if isinstance(rows, Count):
            return self.values[atom][run]
        wanted = wanted or Rows(rows.axis, 0, clean.shape[rows.axis])
        return spliced(clean, self.values[atom][run], rows, wanted)

    def _unchanged(self, atom: Atom, wanted: Rows | None) -> Any:
        """Some rows of an operand without a change."""
        clean = self.read(atom)
        if wanted is None:
            return clean
        return jax.lax.slice_in_dim(clean, wanted.lo, wanted.hi, axis=wanted.axis)

    def _are_same(
        self, atoms: Sequence[Atom], cuts: Sequence[Rows | None], values: Sequence[Any], run: int
    ) -> Any:
        """Whether the rows that a run reads are what they are without a change."""
        same: Any = True
        for atom, rows, value in zip(atoms, cuts, values, strict=True):
            reach = self.reuse._of(atom)
            if reach is not None and reach[run] is not None:
                same &= is_same(value, self._unchanged(atom, rows))
        return same

    def in_part(self, step: Step, how: Local | None, run: int) -> list[Any]:
        assert how is not None
        if all(rows is None for rows in how.outputs):
            return [None] * len(step.outputs)
        operands = [
            self._cut(atom, run, wanted) for atom, wanted in zip(step.inputs, how.cuts, strict=True)
        ]
        outputs = bind(step.eqn, operands, **how.params)
        if step.name == "dot_general" and not self.reuse.linear:
            (reach,) = how.outputs
            clean = self._unchanged(step.outputs[0], reach)
            same = self._are_same(step.inputs, how.cuts, operands, run)
            outputs = [settled(same, clean, outputs[0])]
        if how.trim is not None:
            axis, lo, hi = how.trim
            outputs = [jax.lax.slice_in_dim(out, lo, hi, axis=axis) for out in outputs]
        return list(outputs)

    def in_whole(self, step: Step) -> Sequence[Any]:
        """All of a step, in all runs at once."""
        moving = [self.reuse._of(atom) is not None for atom in step.inputs]
        operands = [
            self.whole(atom) if moves else self.read(atom)
            for atom, moves in zip(step.inputs, moving, strict=True)
        ]
        axes = [0 if moves else None for moves in moving]
        return jax.vmap(lambda *inputs: list(bind(step.eqn, inputs)), in_axes=axes)(*operands)

    def loop(self, step: Step, loop: Loop, clean: Clean) -> list[Any]:
        n_consts, n_carry = step.counts
        stop = n_consts + n_carry
        initial = [
            self.whole(atom)
            for atom in step.inputs[n_consts:stop]
            if self.reuse._of(atom) is not None
        ]
        rows: list[dict[Var, Any]] = []
        for g, window in enumerate(loop.windows):
            rows.append({})
            for atom, v in zip(step.inputs[stop:], loop.xs, strict=True):
                if window is not None and self.reuse._of(atom) is not None:
                    rows[-1][v] = self._cut(atom, g, Rows(0, *loop.rows(*window)))
        wanted = [out in self.reuse._read for out in step.outputs]
        same: list[Any] = [None] * loop.number
        if not self.reuse.linear and not initial:
            for g, window in enumerate(loop.windows):
                if window is not None:
                    of_window = Rows(0, *loop.rows(*window))
                    atoms = [
                        a for a, v in zip(step.inputs[stop:], loop.xs, strict=True) if v in rows[g]
                    ]
                    cuts, values = [of_window] * len(atoms), list(rows[g].values())
                    same[g] = self._are_same(atoms, cuts, values, g)
        return rerun(loop, clean, initial, rows, wanted, same)
