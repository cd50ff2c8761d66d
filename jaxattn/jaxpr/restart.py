"""Loops that start where a change begins, from what a run without the change had carried so far.

Several changed runs of one loop go on together. Each joins when its change begins, so that no step
is run before it has to be, and those that are under way share their products.

A body is parted by what its steps depend on. What depends on constants alone is computed once.
What depends on no changed carry, such as the projection of the input, is computed anew only for
rows that have changed, all of them at once; for all other rows it is known from the clean run.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn.jaxpr.extents import Rows, hull
from jaxattn.jaxpr.flat import Atom, Flat, Number, Step, Var
from jaxattn.jaxpr.flops import count_equations
from jaxattn.jaxpr.interpreter import bind

Values = dict[Any, Any]


def run_steps(steps: Iterable[Step], values: Values) -> Values:
    """Computes steps in order; `values` holds what they read, and then what they make."""
    for step in steps:
        values.update(zip(step.outputs, bind(step.eqn, reads(step.inputs, values)), strict=True))
    return values


def reads(atoms: Iterable[Atom], values: Values) -> list[Any]:
    """The values of operands."""
    return [atom.val if isinstance(atom, Number) else values[atom] for atom in atoms]


@dataclasses.dataclass
class Clean:
    """A run of a loop without any change.

    Attributes:
        outputs: its outputs.
        fixed: what is the same in every step.
        moving: by variable, what each step reads or carries, stacked.
    """

    outputs: list[Any]
    fixed: Values
    moving: Values


class Loop:
    """How a scan is run again for several changes of what it reads.

    Attributes:
        step: the scan.
        number: how many changed runs there are.
        windows: in which steps each run reads something changed, in the order in which steps run;
            `None` if in none.
        starts: with which step each run begins; `None` if it need not run.
        extents: where each output has changed, in each run; `None` for a carry, which has changed
            as a whole.
    """

    def __init__(self, step: Step, changes: Sequence[Any], number: int) -> None:
        self.step, self.number = step, number
        self.body: Flat = step.bodies[0]
        self.length, self.reverse = step.eqn.params["length"], step.eqn.params["reverse"]
        self._consts, n_carry = step.counts
        self._xs = self._consts + n_carry
        of_init, of_xs = changes[self._consts : self._xs], changes[self._xs :]
        self.restarted = [change is not None for change in of_init]
        self._sort(of_xs)
        self.windows = [
            self._ordered(hull([change[g] for change in of_xs if change is not None]))
            for g in range(number)
        ]
        self.starts = [
            0 if any(self.restarted) else None if w is None else w[0] for w in self.windows
        ]
        self.extents = self._reach()

    @classmethod
    def of(cls, step: Step, changes: Sequence[Any], number: int) -> "Loop | None":
        """The loop, or `None` if it has to be run whole.

        Args:
            step: any step.
            changes: of each operand: `None` if it has not changed; `...` if it has changed as a
                whole; or where it has, in each run.
            number: how many runs there are.
        """
        if step.name != "scan":
            return None
        consts, carry = step.counts
        of_xs = changes[consts + carry :]
        known = [c for c in of_xs if c is not None]
        if any(c is not None for c in changes[:consts]) or any(c is ... for c in known):
            return None
        if any(rows is not None and rows.axis != 0 for c in known for rows in c):
            return None
        return cls(step, changes, number)

    def _sort(self, of_xs: Sequence[Any]) -> None:
        """Parts the body by what its steps depend on."""
        body, carries = self.body, self.body.inputs[self._consts : self._xs]
        moved = list(self.restarted)
        while True:
            before = list(moved)
            changed = {v for v, c in zip(body.inputs[self._xs :], of_xs, strict=True) if c}
            late = {v for v, m in zip(carries, moved, strict=True) if m}
            changed |= late
            early = {*body.inputs[self._consts :]} - late
            self.fixed, self.free, self.bound = [], [], []
            for step in body.steps:
                read = set(step.variables)
                if read & changed:
                    changed.update(step.outputs)
                if read & late:
                    late.update(step.outputs)
                    self.bound.append(step)
                elif read & early:
                    early.update(step.outputs)
                    self.free.append(step)
                else:
                    self.fixed.append(step)
            moved = [m or out in changed for m, out in zip(moved, body.outputs, strict=False)]
            if moved == before:
                break
        self.moved, self.changed, self.early, self.late = moved, changed, early, late
        n_carry = len(carries)
        self.next = [out for out, m in zip(body.outputs, moved, strict=False) if m]
        self.carried = [v for v, m in zip(carries, moved, strict=True) if m]
        self.late_ys = [out for out in body.outputs[n_carry:] if out in late]
        after = [atom for step in self.bound for atom in step.variables]
        after += [out for out in self.next if isinstance(out, Var)]
        #: What the steps that wait for a carry read of those that do not.
        self.frontier = [v for v in dict.fromkeys(after) if v in early]

    def _ordered(self, rows: Rows | None) -> tuple[int, int] | None:
        """An interval of rows as one of steps in the order in which they run, and back."""
        if rows is None:
            return None
        lo, hi = rows[-2:]
        return (self.length - hi, self.length - lo) if self.reverse else (lo, hi)

    def rows(self, first: int, last: int) -> tuple[int, int]:
        """The rows of some steps."""
        return (self.length - last, self.length - first) if self.reverse else (first, last)

    def _reach(self) -> list[list[Rows | None] | None]:
        found: list[list[Rows | None] | None] = []
        for i, out in enumerate(self.body.outputs):
            if i < len(self.moved):
                found.append(None)
            elif out not in self.changed:
                found.append([None] * self.number)
            elif out in self.late:
                found.append(
                    [
                        None if s is None else Rows(0, *self.rows(s, self.length))
                        for s in self.starts
                    ]
                )
            else:
                found.append(
                    [None if w is None else Rows(0, *self.rows(*w)) for w in self.windows]
                )
        return found

    @property
    def flops(self) -> int:
        """Operations of all changed runs."""
        free, bound = (
            count_equations([step.eqn for step in steps]) for steps in (self.free, self.bound)
        )
        steps = sum(self.length - start for start in self.starts if start is not None)
        return bound * steps + free * sum(w[1] - w[0] for w in self.windows if w is not None)

    def clean(self, inputs: Sequence[Any], *, zero: bool) -> Clean:
        """Runs the loop without any change.

        Args:
            inputs: the scan's operands.
            zero: whether all that may change is known to be zero, as in a linear function of zero.
        """
        body, n_carry = self.body, self._xs - self._consts
        fixed = {**body.constants, **dict(zip(body.inputs, inputs[: self._consts], strict=False))}
        run_steps(self.fixed, fixed)
        carries, xs = body.inputs[self._consts : self._xs], body.inputs[self._xs :]
        steps = [
            step
            for step in body.steps
            if step not in self.fixed and not (zero and self.changed & set(step.outputs))
        ]
        kept = [v for v in self.frontier if v not in body.inputs and not (zero and v in self.changed)]

        def read(atom: Atom, values: Values) -> Any:
            if zero and isinstance(atom, Var) and atom not in values:
                return jnp.zeros(atom.shape, atom.aval.dtype)
            return reads([atom], values)[0]

        def advance(carry: list[Any], row: list[Any]) -> Any:
            values = {**fixed, **dict(zip(carries, carry, strict=True))}
            values |= dict(zip(xs, row, strict=True))
            run_steps(steps, values)
            outputs = [read(atom, values) for atom in body.outputs]
            seen = [read(v, values) for v in kept]
            return outputs[:n_carry], (outputs[n_carry:], carry, seen)

        last, (ys, carry, seen) = jax.lax.scan(
            advance,
            list(inputs[self._consts : self._xs]),
            list(inputs[self._xs :]),
            length=self.length,
            reverse=self.reverse,
            unroll=self.step.eqn.params["unroll"],
        )
        moving = dict(zip(carries, carry, strict=True)) | dict(zip(kept, seen, strict=True))
        moving |= dict(zip(xs, inputs[self._xs :], strict=True))
        outputs = [*last, *ys]
        if zero:  # said again where it is plain to see, so that nothing runs to find it out
            for v in self.changed & {*carries, *self.frontier}:
                moving[v] = jnp.zeros((self.length, *v.shape), v.aval.dtype)
            outputs = [
                jnp.zeros_like(value) if out in self.changed else value
                for value, out in zip(outputs, body.outputs, strict=True)
            ]
        return Clean(outputs, fixed, moving)

    def run(
        self,
        clean: Clean,
        initial: Sequence[Any],
        rows: Sequence[dict[Var, Any]],
        wanted: Sequence[bool],
    ) -> list[Any]:
        """Runs the loop for all changes.

        Args:
            clean: the run without.
            initial: of each carry that starts changed, its values in all runs, stacked.
            rows: for each run, by input of the body, its changed rows in that run's window.
            wanted: which outputs are read.

        Returns:
            for each output `None` if it has not changed in any run; of a carry the last values in
            all runs, stacked; of others a list of the changed rows in each run.
        """
        early = [self._early(clean, g, rows[g]) for g in range(self.number)]
        n_carry = len(self.moved)
        ys = self.body.outputs[n_carry:]
        late_ys = [
            y
            for y in dict.fromkeys(self.late_ys)
            if any(w for w, out in zip(wanted[n_carry:], ys, strict=True) if out is y)
        ]
        last, late = self._late(clean, initial, early, late_ys)
        found: list[Any] = [None] * n_carry
        of_moved = iter(last)
        for i, moved in enumerate(self.moved):
            if moved:
                found[i] = self._filled(clean.outputs[i], next(of_moved))
        for y in ys:
            if y not in self.changed:
                found.append(None)
            elif y in self.late:
                found.append(late.get(y, [None] * self.number))
            else:
                found.append([values.get(y) for values in early])
        return found

    def _filled(self, clean: Any, last: dict[int, Any]) -> Any:
        return jnp.stack([last.get(g, clean) for g in range(self.number)])

    def _early(self, clean: Clean, run: int, rows: dict[Var, Any]) -> Values:
        """What the window of a run changes in the steps that wait for no carry, for all its rows."""
        window = self.windows[run]
        if window is None:
            return {}
        lo, hi = self.rows(*window)
        inputs = [v for v in self.body.inputs[self._consts :] if v in self.early]
        given = [rows[v] if v in rows else clean.moving[v][lo:hi] for v in inputs]
        made = [v for v in self.early if v in self.changed]

        def one(row: list[Any]) -> list[Any]:
            values = {**clean.fixed, **dict(zip(inputs, row, strict=True))}
            return reads(made, run_steps(self.free, values))

        return dict(zip(made, jax.vmap(one)(given), strict=True))

    def _late(
        self, clean: Clean, initial: Sequence[Any], early: Sequence[Values], late_ys: Sequence[Any]
    ) -> tuple[list[dict[int, Any]], dict[Any, list[Any]]]:
        """Runs the steps that wait for a carry, stage by stage; at each stage runs may join."""
        order = sorted(
            (g for g in range(self.number) if self.starts[g] is not None and self.carried),
            key=lambda g: self.starts[g],
        )
        if not order:
            return [{} for _ in self.carried], {y: [None] * self.number for y in late_ys}
        marks = {self.starts[g] for g in order}
        last_window = self.windows[order[-1]]
        if last_window is not None:
            marks.add(last_window[1])
        stages = sorted({*marks, self.length})
        active: list[int] = []
        carry: list[Any] = []
        parts: dict[Any, list[list[Any]]] = {y: [[] for _ in range(self.number)] for y in late_ys}
        for first, end in zip(stages, stages[1:], strict=False):
            joining = [g for g in order if self.starts[g] == first]
            if joining:
                new = self._begin(clean, initial, joining, first)
                carry = [jnp.concatenate(c) for c in zip(carry, new, strict=True)] if carry else new
                active += joining
            carry, ys = self._stage(clean, early, active, carry, first, end, late_ys)
            for y, stacked in zip(late_ys, ys, strict=True):
                for i, g in enumerate(active):
                    parts[y][g].append(stacked[:, i])
        joined = {
            y: [jnp.concatenate(p[:: -1 if self.reverse else 1]) if p else None for p in of_runs]
            for y, of_runs in parts.items()
        }
        return [{g: c[i] for i, g in enumerate(active)} for c in carry], joined

    def _begin(
        self, clean: Clean, initial: Sequence[Any], joining: Sequence[int], first: int
    ) -> list[Any]:
        """What runs carry that begin with a step."""
        at = self.rows(first, first + 1)[0]
        changed = iter(initial)
        new = []
        carries = self.body.inputs[self._consts : self._xs]
        for v, moved, restarted in zip(carries, self.moved, self.restarted, strict=True):
            given = next(changed) if restarted else None
            if not moved:
                continue
            if given is not None:
                new.append(jnp.stack([given[g] for g in joining]))
            else:
                now = clean.moving[v][at]
                new.append(jnp.broadcast_to(now, (len(joining), *now.shape)))
        return new

    def _stage(
        self,
        clean: Clean,
        early: Sequence[Values],
        active: Sequence[int],
        carry: list[Any],
        first: int,
        end: int,
        late_ys: Sequence[Any],
    ) -> tuple[list[Any], list[Any]]:
        """Some steps of the runs that are under way, side by side."""
        lo, hi = self.rows(first, end)
        own = [
            (w := self.windows[g]) is not None and w[0] < end and w[1] > first for g in active
        ]
        changed = [any(own) and v in self.changed for v in self.frontier]
        shared = [
            None if c and all(own) else clean.moving[v][lo:hi]
            for v, c in zip(self.frontier, changed, strict=True)
        ]
        theirs = [g for g, is_own in zip(active, own, strict=True) if is_own]
        mine = [
            jnp.stack([self._window(clean, early, g, v, lo, hi) for g in theirs], 1) if c else None
            for v, c in zip(self.frontier, changed, strict=True)
        ]

        def bound(carry: list[Any], front: list[Any]) -> tuple[list[Any], list[Any]]:
            values = {**clean.fixed, **dict(zip(self.frontier, front, strict=True))}
            values |= dict(zip(self.carried, carry, strict=True))
            run_steps(self.bound, values)
            return reads(self.next, values), reads(late_ys, values)

        def advance(carry: list[Any], now: tuple[list[Any], list[Any]]) -> Any:
            front = [
                _side_by_side(own, one, others) if c else one
                for one, others, c in zip(*now, changed, strict=True)
            ]
            axes = [0 if c else None for c in changed]
            return jax.vmap(bound, in_axes=(0, axes))(carry, front)

        return jax.lax.scan(
            advance,
            carry,
            (shared, mine),
            length=end - first,
            reverse=self.reverse,
            unroll=min(self.step.eqn.params["unroll"], end - first),
        )

    def _window(
        self, clean: Clean, early: Sequence[Values], run: int, v: Var, lo: int, hi: int
    ) -> Any:
        """Rows of a value of the frontier in a run, changed or not."""
        window = self.windows[run]
        assert window is not None
        return spliced(clean.moving[v], early[run][v], Rows(0, *self.rows(*window)), Rows(0, lo, hi))


def spliced(clean: Any, changed: Any, where: Rows, wanted: Rows) -> Any:
    """Some rows of a value that has changed in others, or in part of them."""
    axis, lo, hi = where
    first, last = max(lo, wanted.lo), min(hi, wanted.hi)
    cut = jax.lax.slice_in_dim
    if first >= last:
        return cut(clean, wanted.lo, wanted.hi, axis=axis)
    pieces = [
        cut(clean, wanted.lo, first, axis=axis) if wanted.lo < first else None,
        cut(changed, first - lo, last - lo, axis=axis) if (first, last) != (lo, hi) else changed,
        cut(clean, last, wanted.hi, axis=axis) if last < wanted.hi else None,
    ]
    pieces = [piece for piece in pieces if piece is not None]
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis)


def _side_by_side(own: Sequence[bool], shared: Any, mine: Any) -> Any:
    """A value for each run: its own, or the one that all others share."""
    if all(own):
        return mine
    pieces, taken, i = [], 0, 0
    while i < len(own):
        j = i
        while j < len(own) and own[j] == own[i]:
            j += 1
        if own[i]:
            pieces.append(mine[taken : taken + j - i])
            taken += j - i
        else:
            pieces.append(jnp.broadcast_to(shared, (j - i, *shared.shape)))
        i = j
    return jnp.concatenate(pieces)
