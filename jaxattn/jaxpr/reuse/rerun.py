"""Loops that start where a change begins, from what a run without the change had carried so far.

Several changed runs of one loop go side by side and share their products. First all go through
their windows, each at its own time. At the end of its window each joins those that go on to the end
of the loop, which read of the run without a change what does not wait for a carry.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn.jaxpr.flat import Atom, Number, Step, Var
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.reuse.extents import Rows
from jaxattn.jaxpr.reuse.loop_split import Loop, Span

Values = dict[Any, Any]


def run_steps(steps: Iterable[Step], values: Values) -> Values:
    """Computes steps in order; `values` holds what they read, and then what they make."""
    for step in steps:
        values.update(zip(step.outputs, bind(step.eqn, reads(step.inputs, values)), strict=True))
    return values


def reads(atoms: Iterable[Atom], values: Values) -> list[Any]:
    """The values of operands."""
    return [_number(atom) if isinstance(atom, Number) else values[atom] for atom in atoms]


def _number(number: Number) -> Any:
    """A number that is written in the program, of its dtype even where nothing else tells it."""
    typed = getattr(number.val, "dtype", None) == number.aval.dtype
    return number.val if typed else jnp.asarray(number.val, number.aval.dtype)


def is_same(new: Any, old: Any) -> Any:
    """Whether two arrays are equal in all cells, the signs of zeros included."""
    same = new == old
    if jnp.issubdtype(new.dtype, jnp.floating):
        same &= jnp.signbit(new) == jnp.signbit(old)
    return same.all()


@jax.custom_jvp
def settled(same: Any, clean: Any, value: Any) -> Any:
    """A value that is the clean one to the last bit where all that it is made of is the same.

    Rounding differs between programs, and what does not matter must score zero. The value has its
    own slope all the same.
    """
    return jnp.where(same, clean, value)


@settled.defjvp
def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
    return settled(*primals), tangents[2]


def spliced(clean: Any, changed: Any, where: Rows, wanted: Rows) -> Any:
    """Some rows of a value of which others, or some of them, have changed."""
    axis, lo, hi = where
    first, last = max(lo, wanted.lo), min(hi, wanted.hi)
    cut = jax.lax.slice_in_dim
    if first >= last:
        return cut(clean, wanted.lo, wanted.hi, axis=axis)
    pieces = [
        changed if (first, last) == (lo, hi) else cut(changed, first - lo, last - lo, axis=axis)
    ]
    if wanted.lo < first:
        pieces.insert(0, cut(clean, wanted.lo, first, axis=axis))
    if last < wanted.hi:
        pieces.append(cut(clean, last, wanted.hi, axis=axis))
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis)


@dataclasses.dataclass(frozen=True)
class Clean:
    """A run of a loop without any change.

    Attributes:
        outputs: its outputs.
        fixed: what is the same in every step.
        moving: by variable, what each step reads, carries, and makes for late steps; stacked.
    """

    outputs: list[Any]
    fixed: Values
    moving: Values


def run_clean(loop: Loop, inputs: Sequence[Any], *, zero: bool) -> Clean:
    """Runs a loop without any change.

    Args:
        loop: the loop.
        inputs: the scan's operands.
        zero: whether all that may change is known to be zero, as in a linear function of zero.
    """
    body, (n_consts, n_carry) = loop.body, loop.step.counts
    consts, init, xs = inputs[:n_consts], inputs[n_consts : n_consts + n_carry], inputs[n_consts:]
    xs = xs[n_carry:]
    fixed = {**body.constants, **dict(zip(body.inputs, consts, strict=False))}
    run_steps(loop.fixed_steps, fixed)
    known = set(loop.fixed_steps)
    if zero:
        known |= {step for step in body.steps if loop.changed & set(step.outputs)}
    steps = [step for step in body.steps if step not in known]
    skipped = loop.changed if zero else set()
    kept = [v for v in loop.frontier if v not in body.inputs and v not in skipped]

    def advance(carry: list[Any], row: list[Any]) -> Any:
        values = {**fixed, **dict(zip(loop.xs, row, strict=True))}
        values |= dict(zip(loop.carries, carry, strict=True))
        run_steps(steps, values)
        outputs = [
            jnp.zeros(out.aval.shape, out.aval.dtype) if out in skipped else reads([out], values)[0]
            for out in body.outputs
        ]
        return outputs[:n_carry], (outputs[n_carry:], carry, reads(kept, values))

    last, (ys, carry, seen) = jax.lax.scan(
        advance,
        list(init),
        list(xs),
        length=loop.length,
        reverse=loop.reverse,
        unroll=loop.step.eqn.params["unroll"],
    )
    moving = dict(zip([*loop.carries, *kept, *loop.xs], [*carry, *seen, *xs], strict=True))
    outputs = [*last, *ys]
    if zero:  # said where it is plain to see: no loop need run to find it out
        for v in dict.fromkeys([*loop.carries, *loop.frontier]):  # in order: programs are compared
            if v in loop.changed:
                moving[v] = jnp.zeros((loop.length, *v.shape), v.aval.dtype)
        outputs = [
            jnp.zeros_like(value) if out in skipped else value
            for value, out in zip(outputs, body.outputs, strict=True)
        ]
    return Clean(outputs, fixed, moving)


def rerun(
    loop: Loop,
    clean: Clean,
    initial: Sequence[Any],
    rows: Sequence[dict[Var, Any]],
    wanted: Sequence[bool],
    same: Sequence[Any],
) -> list[Any]:
    """Runs a loop for all changes.

    Args:
        loop: the loop.
        clean: the run without a change.
        initial: of each carry that starts changed, its values in all runs, stacked.
        rows: for each run, by input of the body, its changed rows in that run's window.
        wanted: which outputs are read.
        same: for each run whether it reads what the one without a change does; `None` if unknown.

    Returns:
        for each output `None` if it has not changed in any run; of a carry the last values in all
        runs, stacked; of others a list of the changed rows in each run.
    """
    return _Rerun(loop, clean, initial, rows, same).outputs(wanted)


class _Rerun:
    def __init__(
        self,
        loop: Loop,
        clean: Clean,
        initial: Sequence[Any],
        rows: Sequence[dict[Var, Any]],
        same: Sequence[Any],
    ) -> None:
        self.loop, self.clean, self.initial, self.rows = loop, clean, initial, rows
        self.same = same

    def _settle_all(self, stacked: Any, clean: Any) -> Any:
        """The last values of a carry in all runs, or what they are without a change."""
        if all(same is None for same in self.same):
            return stacked
        same = jnp.stack([jnp.asarray(False if s is None else s) for s in self.same])
        return settled(same.reshape(-1, *[1] * jnp.ndim(clean)), clean, stacked)

    def _settle(self, output: int, run: int, value: Any) -> Any:
        """The changed part of an output in a run, or what it is without a change."""
        clean, reach = self.clean.outputs[output], self.loop.extents[output]
        if value is None or self.same[run] is None:
            return value
        if reach is not ...:
            clean = clean[reach[run].lo : reach[run].hi]
        return settled(self.same[run], clean, value)

    def outputs(self, wanted: Sequence[bool]) -> list[Any]:
        loop, n_carry = self.loop, len(self.loop.moved)
        outs = loop.body.outputs
        ys = zip(outs[n_carry:], wanted[n_carry:], strict=True)
        read = list(dict.fromkeys(out for out, is_wanted in ys if is_wanted))
        late_ys = [out for out in read if out in loop.late]
        last, late = self._late(late_ys)
        early_ys = [out for out in read if out in loop.early and out in loop.changed]
        early = [self._early(early_ys, g) for g in range(loop.number)]
        found: list[Any] = []
        of_moved = 0
        for i, out in enumerate(outs):
            if i < n_carry and loop.moved[i]:
                runs = range(loop.number)
                clean = self.clean.outputs[i]
                stacked = jnp.stack([last[g][of_moved] if g in last else clean for g in runs])
                found.append(self._settle_all(stacked, clean))
                of_moved += 1
            elif i < n_carry or out not in loop.changed:
                found.append(None)
            elif out in loop.late:
                found.append(late.get(out, [None] * loop.number))
            else:
                found.append([values.get(out) for values in early])
            if i >= n_carry and found[i] is not None:
                found[i] = [self._settle(i, g, value) for g, value in enumerate(found[i])]
        return found

    def _early(self, made: Sequence[Any], run: int) -> Values:
        """What the early steps make of the changed rows, all rows at once."""
        loop, window = self.loop, self.loop.windows[run]
        if window is None or not made:
            return {}
        inputs = [v for v in (*loop.carries, *loop.xs) if v in loop.early]
        given = [self._seen(run, v, window) for v in inputs]

        def one(row: list[Any]) -> list[Any]:
            values = {**self.clean.fixed, **dict(zip(inputs, row, strict=True))}
            return reads(made, run_steps(loop.early_steps, values))

        return dict(zip(made, jax.vmap(one)(given), strict=True))

    def _late(self, ys: Sequence[Any]) -> tuple[dict[int, list[Any]], dict[Any, list[Any]]]:
        """The last carries of each run that moves, and its changed rows of some outputs."""
        loop = self.loop
        parts: dict[int, list[list[Any]]] = {g: [] for g in range(loop.number)}
        last: dict[int, list[Any]] = {}

        def collect(runs: Sequence[int], stacked: Sequence[Any]) -> None:
            for i, g in enumerate(runs):
                parts[g].append([y[:, i] for y in stacked])

        begins = {g: start for g, start in enumerate(loop.starts) if start is not None}
        waiting = sorted(begins, key=lambda g: begins[g]) if any(loop.moved) else []
        spans = {g: span for g, span in enumerate(loop.spans or []) if span is not None}
        carry = self._begin(waiting, begins) if waiting else []
        if spans and waiting:
            width = spans[waiting[0]][1] - spans[waiting[0]][0]
            carry, stacked = self._steps(carry, waiting, spans, width, ys)
            collect(waiting, stacked)
            begins = {g: spans[g][1] for g in waiting}
        own = not spans and any(window is not None for window in loop.windows)
        joined: list[Any] = []
        active: list[int] = []
        marks = sorted({*begins.values(), loop.length}) if waiting else []
        for first, end in itertools.pairwise(marks):
            taken = len(active)
            active += [g for g in waiting if begins[g] == first]
            new = [c[taken : len(active)] for c in carry]
            joined = [jnp.concatenate(c) for c in zip(joined, new, strict=True)] if joined else new
            common: Any = dict.fromkeys(active, (first, end)) if own else (first, end)
            joined, stacked = self._steps(joined, active, common, end - first, ys)
            collect(active, stacked)
        for i, g in enumerate(waiting):  # what ends with its window has joined no one
            last[g] = [c[i] for c in (joined if i < len(active) else carry)]
        order = -1 if loop.reverse else 1
        rows = {
            y: [
                jnp.concatenate([part[i] for part in parts[g][::order]]) if parts[g] else None
                for g in range(loop.number)
            ]
            for i, y in enumerate(ys)
        }
        return last, rows

    def _begin(self, runs: Sequence[int], begins: dict[int, int]) -> list[Any]:
        """What runs carry as they begin, stacked."""
        loop, changed = self.loop, iter(self.initial)
        found = []
        for v, moved, restarted in zip(loop.carries, loop.moved, loop.restarted, strict=True):
            if restarted:
                found.append(next(changed)[jnp.asarray(runs)])
            elif moved:
                at = [loop.rows(begins[g], begins[g] + 1)[0] for g in runs]
                found.append(jnp.stack([self.clean.moving[v][row] for row in at]))
        return found

    def _steps(
        self,
        carry: list[Any],
        runs: Sequence[int],
        spans: dict[int, Span] | Span,
        number: int,
        ys: Sequence[Any],
    ) -> tuple[list[Any], list[Any]]:
        """Some late steps of some runs side by side: each its own ones, or all the same ones."""
        loop, clean = self.loop, self.clean
        moved = [v for v, moves in zip(loop.carries, loop.moved, strict=True) if moves]
        after = [out for out, moves in zip(loop.body.outputs, loop.moved, strict=False) if moves]
        steps, read = loop.late_steps, loop.frontier
        if isinstance(spans, dict):  # early steps are cheaper done than kept for all runs
            each = spans
            steps = [s for s in loop.body.steps if s not in loop.fixed_steps]
            read = [v for v in (*loop.carries, *loop.xs) if v in loop.early]
            front = [jnp.stack([self._seen(g, v, each[g]) for g in runs], 1) for v in read]
        else:
            lo, hi = loop.rows(*spans)
            front = [clean.moving[v][lo:hi] for v in read]

        def one(carry: list[Any], front: list[Any]) -> tuple[list[Any], list[Any]]:
            values = {**clean.fixed, **dict(zip(read, front, strict=True))}
            values |= dict(zip(moved, carry, strict=True))
            run_steps(steps, values)
            return reads(after, values), reads(ys, values)

        advance = jax.vmap(one, in_axes=(0, 0 if isinstance(spans, dict) else None))
        unroll = min(loop.step.eqn.params["unroll"], number)
        found: tuple[list[Any], list[Any]] = jax.lax.scan(
            advance, carry, front, length=number, reverse=loop.reverse, unroll=unroll
        )
        return found

    def _seen(self, run: int, v: Var, span: Span) -> Any:
        """What some steps of a run read of an input of the body."""
        rows, window = Rows(0, *self.loop.rows(*span)), self.loop.windows[run]
        if window is None or v not in self.rows[run]:
            return self.clean.moving[v][rows.lo : rows.hi]
        changed = Rows(0, *self.loop.rows(*window))
        return spliced(self.clean.moving[v], self.rows[run][v], changed, rows)
