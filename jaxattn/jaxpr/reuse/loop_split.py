"""Which steps of a loop a change of its input reaches, and what each part of its body waits for."""

from collections.abc import Sequence
from typing import Any

from jaxattn.jaxpr.flat import Atom, Flat, Step, Var
from jaxattn.jaxpr.flops import count_equations
from jaxattn.jaxpr.reuse.extents import Rows, hull

#: Steps of a loop in the order in which they run: from, and up to.
Span = tuple[int, int]


class Loop:
    """How a scan is run again for several changes of what it reads.

    A body is parted by what its steps depend on. What depends on constants alone is `fixed`. What
    waits for no changed carry, such as the projection of the input, is `early`; it differs from the
    run without a change in the rows alone that have changed. The rest is `late`.

    Attributes:
        step: the scan.
        number: how many changed runs there are.
        body, length, reverse: the scan's.
        carries, xs: the inputs of its body.
        changed: the variables of its body that a change reaches.
        fixed_steps, early_steps, late_steps: the steps of its body.
        early, late: what these make, and what they read of the carries and the rows.
        moved: which carries change.
        restarted: which carries start changed.
        frontier: what the late steps read of the early ones.
        windows: where each run reads something changed; `None` where it does nowhere.
        spans: the same, stretched to one length, if windows are short; otherwise `None`.
        starts: with which step each run begins; `None` if it need not run.
        extents: where each output has changed, in each run; `...` for a whole carry.
    """

    def __init__(self, step: Step, changes: Sequence[Any], number: int) -> None:
        self.step, self.number = step, number
        self.body: Flat = step.bodies[0]
        self.length: int = step.eqn.params["length"]
        self.reverse: bool = step.eqn.params["reverse"]
        n_consts, n_carry = step.counts
        stop = n_consts + n_carry
        self.carries, self.xs = self.body.inputs[n_consts:stop], self.body.inputs[stop:]
        self.restarted = [change is not None for change in changes[n_consts:stop]]
        of_xs = [change for change in changes[stop:] if change is not None]
        self._sort({v for v, c in zip(self.xs, changes[stop:], strict=True) if c is not None})
        self.windows = [self._ordered(hull([change[g] for change in of_xs])) for g in range(number)]
        self.spans = self._stretched()
        self.starts = [
            0 if any(self.restarted) else None if w is None else w[0]
            for w in self.spans or self.windows
        ]
        self.extents = [self._reach(i, out) for i, out in enumerate(self.body.outputs)]

    @classmethod
    def of(cls, step: Step, changes: Sequence[Any], number: int) -> "Loop | None":
        """The loop, or `None` if it has to be run whole.

        Args:
            step: any step.
            changes: of each operand: `None` if it has not changed; `...` if it has changed as a
                whole; or where it has, in each run.
            number: how many runs there are.
        """
        if step.name != "scan" or step.eqn.params["length"] == 0:
            return None
        n_consts, n_carry = step.counts
        of_xs = [change for change in changes[n_consts + n_carry :] if change is not None]
        if any(change is not None for change in changes[:n_consts]) or any(c is ... for c in of_xs):
            return None
        of_runs = [rows for change in of_xs for rows in change if rows is not None]
        if any(not isinstance(rows, Rows) or rows.axis != 0 for rows in of_runs):
            return None
        return cls(step, changes, number)

    def rows(self, first: int, end: int) -> Span:
        """The rows that some steps read; and the steps that read some rows."""
        return (self.length - end, self.length - first) if self.reverse else (first, end)

    @property
    def flops(self) -> int:
        """Operations of all changed runs."""
        early, late = (
            count_equations([step.eqn for step in steps])
            for steps in (self.early_steps, self.late_steps)
        )
        steps = sum(self.length - start for start in self.starts if start is not None)
        return late * steps + early * sum(w[1] - w[0] for w in self.windows if w is not None)

    def _sort(self, changed_xs: set[Var]) -> None:
        moved = list(self.restarted)
        while True:
            late = {v for v, moves in zip(self.carries, moved, strict=True) if moves}
            changed = changed_xs | late
            early = {*self.carries, *self.xs} - late
            fixed_steps, early_steps, late_steps = [], [], []
            for step in self.body.steps:
                read = set(step.variables)
                if read & changed:
                    changed.update(step.outputs)
                if read & late:
                    late.update(step.outputs)
                    late_steps.append(step)
                elif read & early:
                    early.update(step.outputs)
                    early_steps.append(step)
                else:
                    fixed_steps.append(step)
            after = [m or out in changed for m, out in zip(moved, self.body.outputs, strict=False)]
            if after == moved:
                break
            moved = after
        self.moved, self.changed, self.early, self.late = moved, changed, early, late
        self.fixed_steps, self.early_steps, self.late_steps = fixed_steps, early_steps, late_steps
        waiting: list[Atom] = [atom for step in late_steps for atom in step.variables]
        waiting += [out for out, m in zip(self.body.outputs, moved, strict=False) if m]
        self.frontier = [v for v in dict.fromkeys(waiting) if isinstance(v, Var) and v in early]

    def _ordered(self, rows: Rows | None) -> Span | None:
        return None if rows is None else self.rows(rows.lo, rows.hi)

    def _stretched(self) -> list[Span | None] | None:
        found = [w for w in self.windows if w is not None]
        if any(self.restarted) or not found:
            return None
        width = max(end - first for first, end in found)
        if 2 * width > self.length or 4 * sum(e - f for f, e in found) < 3 * width * len(found):
            return None
        firsts = [None if w is None else min(w[0], self.length - width) for w in self.windows]
        return [None if first is None else (first, first + width) for first in firsts]

    def _reach(self, i: int, out: Atom) -> Any:
        if i < len(self.moved):
            return ... if self.moved[i] else None
        if out not in self.changed:
            return None
        if out in self.late:
            spans = [None if start is None else (start, self.length) for start in self.starts]
        else:
            spans = list(self.windows)
        return [None if span is None else Rows(0, *self.rows(*span)) for span in spans]
