"""Split a scan by what its steps depend on: constants, the rows of one time step, or the carry."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxattn.jaxpr.flat import Flat, Step, Var
from jaxattn.jaxpr.flops import count_equations
from jaxattn.jaxpr.reuse.extents import (
    UNCHANGED,
    WHOLE,
    Extents,
    PerRun,
    Rows,
    Unchanged,
    Whole,
    hull,
    in_run,
    per_run,
)

#: Runs first go through their windows in a scan of their own, for which the windows are padded to
#: one length, and read the early values of the clean run afterwards. If the padded windows are
#: longer than this share of the loop, few time steps are left afterwards, and the additional scan
#: does not pay.
LONGEST_WINDOW = 1 / 2
#: The windows must fill this share of the padded ones, all runs together. In the padding, early
#: steps are computed for each run, and runs near the end of the loop start earlier.
LEAST_FILLED = 3 / 4


@dataclass(frozen=True)
class Span:
    """Time steps [first, end) of a loop, in the order in which they run.

    Attributes:
        first: the first time step.
        end: one past the last.
    """

    first: int
    end: int

    @property
    def size(self) -> int:
        """The number of time steps."""
        return self.end - self.first


@dataclass(frozen=True)
class ScanBody:
    """A scan, with the inputs of its body by kind.

    Attributes:
        step: the scan.
        flat: its body.
        consts: the inputs of the body that are the same in every time step.
        carries: those that are carried.
        xs: those that are a row of an operand.
        length: the number of time steps.
        reverse: whether the first time step reads the last rows.
    """

    step: Step
    flat: Flat
    consts: Sequence[Var]
    carries: Sequence[Var]
    xs: Sequence[Var]
    length: int
    reverse: bool

    @classmethod
    def of(cls, step: Step) -> "ScanBody":
        """Return the parts of a scan."""
        (flat, *_), params = step.bodies, step.eqn.params
        n_consts, n_carry = step.counts
        inputs, stop = flat.inputs, n_consts + n_carry
        parts = inputs[:n_consts], inputs[n_consts:stop], inputs[stop:]
        return cls(step, flat, *parts, length=params["length"], reverse=params["reverse"])

    def rows(self, span: Span) -> Rows:
        """Return the rows that some time steps read, and write."""
        if self.reverse:
            return Rows(0, self.length - span.end, self.length - span.first)
        return Rows(0, span.first, span.end)

    def span(self, rows: Rows) -> Span:
        """Return the time steps that read some rows."""
        if self.reverse:
            return Span(self.length - rows.hi, self.length - rows.lo)
        return Span(rows.lo, rows.hi)


@dataclass(frozen=True)
class BodySplit:
    """The steps of a scan's body, by what they depend on.

    Fixed steps depend on constants alone. Early steps depend on no changed carry, such as the
    projection of the input: they differ from the clean run in the changed rows only. Late steps
    depend on a changed carry.

    Attributes:
        fixed: the fixed steps.
        early: the early steps.
        late: the late steps.
        carry_changes: for each carry whether it changes.
        changed: the variables that a change reaches.
        early_variables: the inputs and outputs of early steps, without the fixed ones.
        late_variables: the changed carries and the outputs of late steps.
        frontier: the early variables that late steps or changed carries read.
    """

    fixed: Sequence[Step]
    early: Sequence[Step]
    late: Sequence[Step]
    carry_changes: Sequence[bool]
    changed: set[Var]
    early_variables: set[Var]
    late_variables: set[Var]
    frontier: Sequence[Var]


def split_body(body: ScanBody, changed_xs: set[Var], starts_changed: Sequence[bool]) -> BodySplit:
    """Split the body of a scan.

    Args:
        body: the scan.
        changed_xs: the inputs of the body of which some rows change.
        starts_changed: for each carry whether its first value changes.
    """
    carry_changes = list(starts_changed)
    while True:  # until no further carry changes
        split = _split_once(body, changed_xs, carry_changes)
        after = [
            changes or out in split.changed
            for changes, out in zip(carry_changes, body.flat.outputs, strict=False)
        ]
        if after == carry_changes:
            return split
        carry_changes = after


def _split_once(body: ScanBody, changed_xs: set[Var], carry_changes: Sequence[bool]) -> BodySplit:
    """Split the body of a scan, given which carries change."""
    late = {v for v, changes in zip(body.carries, carry_changes, strict=True) if changes}
    changed = changed_xs | late
    early = {*body.carries, *body.xs} - late
    fixed_steps, early_steps, late_steps = [], [], []
    for step in body.flat.steps:
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
    waiting = [v for step in late_steps for v in step.variables]
    after = zip(body.flat.outputs, carry_changes, strict=False)
    waiting += [out for out, changes in after if changes and isinstance(out, Var)]
    frontier = [v for v in dict.fromkeys(waiting) if v in early]
    return BodySplit(
        fixed_steps, early_steps, late_steps, carry_changes, changed, early, late, frontier
    )


@dataclass(frozen=True)
class LoopPlan:
    """The parts of a scan to compute in runs that change some rows of its operands.

    Attributes:
        body: the scan.
        split: the steps of its body.
        starts_changed: for each carry whether its first value changes.
        windows: the time steps in which each run reads changed rows; `None` if it reads none.
        padded: the windows padded to one length, if they are short; otherwise `None`.
        starts: the first time step that each run computes; `None` if it computes none.
        extents: the extents of each output.
    """

    body: ScanBody
    split: BodySplit
    starts_changed: Sequence[bool]
    windows: Sequence[Span | None]
    padded: Sequence[Span | None] | None
    starts: Sequence[int | None]
    extents: Sequence[Extents]

    @property
    def number(self) -> int:
        """The number of changed runs."""
        return len(self.windows)

    @property
    def flops(self) -> int:
        """The operations of all changed runs."""
        early, late = (
            count_equations([step.eqn for step in steps])
            for steps in (self.split.early, self.split.late)
        )
        time_steps = sum(self.body.length - start for start in self.starts if start is not None)
        return late * time_steps + early * sum(w.size for w in self.windows if w is not None)


def plan_loop(step: Step, extents: Sequence[Extents], number: int) -> LoopPlan | Whole:
    """Return what of a loop is computed, or `Whole` if it has to be computed whole.

    Args:
        step: any step.
        extents: the extents of its operands.
        number: how many changed runs there are.
    """
    if step.name != "scan" or step.eqn.params["length"] == 0:
        return WHOLE
    body, (n_consts, n_carry) = ScanBody.of(step), step.counts
    of_consts = extents[:n_consts]
    of_carries, of_xs = extents[n_consts : n_consts + n_carry], extents[n_consts + n_carry :]
    by_row = [e for e in of_xs if not isinstance(e, Whole) and _is_by_row(e)]
    if any(not isinstance(e, Unchanged) for e in of_consts) or len(by_row) < len(of_xs):
        return WHOLE
    starts_changed = [not isinstance(e, Unchanged) for e in of_carries]
    changed_xs = {v for v, e in zip(body.xs, of_xs, strict=True) if not isinstance(e, Unchanged)}
    split = split_body(body, changed_xs, starts_changed)
    reached = [hull([in_run(e, run) for e in by_row]) for run in range(number)]
    windows = [body.span(rows) if isinstance(rows, Rows) else None for rows in reached]
    padded = None if any(starts_changed) else _padded(windows, body.length)
    starts = [
        0 if any(starts_changed) else None if window is None else window.first
        for window in padded or windows
    ]
    outputs = _output_extents(body, split, windows, starts)
    return LoopPlan(body, split, starts_changed, windows, padded, starts, outputs)


def _is_by_row(extents: Unchanged | PerRun) -> bool:
    """Return whether nothing but rows of the first axis changes."""
    runs = extents.runs if isinstance(extents, PerRun) else ()
    return all(isinstance(e, Unchanged) or (isinstance(e, Rows) and e.axis == 0) for e in runs)


def _padded(windows: Sequence[Span | None], length: int) -> list[Span | None] | None:
    """Return windows of one length that hold the given ones, `None` where this does not pay."""
    sizes = [window.size for window in windows if window is not None]
    if not sizes:
        return None
    size = max(sizes)
    if size > LONGEST_WINDOW * length or sum(sizes) < LEAST_FILLED * size * len(sizes):
        return None
    firsts = [None if window is None else min(window.first, length - size) for window in windows]
    return [None if first is None else Span(first, first + size) for first in firsts]


def _output_extents(
    body: ScanBody,
    split: BodySplit,
    windows: Sequence[Span | None],
    starts: Sequence[int | None],
) -> list[Extents]:
    """Return the extents of a scan's outputs: of last carries, and of stacked rows."""
    tails = [None if start is None else Span(start, body.length) for start in starts]
    extents: list[Extents] = [WHOLE if changes else UNCHANGED for changes in split.carry_changes]
    for out in body.flat.outputs[len(extents) :]:
        if out not in split.changed:
            extents.append(UNCHANGED)
            continue
        spans = tails if out in split.late_variables else windows
        rows = [UNCHANGED if span is None else body.rows(span) for span in spans]
        extents.append(per_run(rows))
    return extents
