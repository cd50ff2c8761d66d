"""The schedule of a loop's changed runs: which runs take which time steps side by side.

Several changed runs of one loop share their products. First each goes through its own window, at
its own time steps. From the end of its window on it joins the runs that go on to the end of the
loop.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from jaxattn.jaxpr.reuse.loop_split import LoopPlan, Span


@dataclass(frozen=True)
class OwnRows:
    """Each run reads its own rows, at its own time steps, and computes the early steps anew.

    That is cheaper than to keep what the early steps make in all runs.

    Attributes:
        spans: the time steps of each run, in the order of the segment's runs; all of one length.
    """

    spans: Sequence[Span]


@dataclass(frozen=True)
class CommonRows:
    """All runs read the early values of the clean run, at the same time steps.

    Attributes:
        span: the time steps.
    """

    span: Span


@dataclass(frozen=True)
class Segment:
    """One scan over late steps of some runs side by side.

    Attributes:
        runs: the runs, in the order in which their carries are stacked.
        joining: how many of them, the last ones, take part for the first time.
        rows: what they read.
    """

    runs: Sequence[int]
    joining: int
    rows: OwnRows | CommonRows

    @property
    def length(self) -> int:
        """The number of time steps."""
        return self.rows.spans[0].size if isinstance(self.rows, OwnRows) else self.rows.span.size


@dataclass(frozen=True)
class Schedule:
    """The segments of a loop's changed runs.

    Attributes:
        runs: the runs that compute late steps, by the time step at which they start.
        starts: that time step of each of `runs`.
        windows: the segment in which all runs go through their padded windows, if they do.
        tail: the segments up to the end of the loop, in order. Runs whose window ends with the
            loop take part in none.
    """

    runs: Sequence[int]
    starts: Sequence[int]
    windows: Segment | None
    tail: Sequence[Segment]

    @property
    def segments(self) -> Sequence[Segment]:
        """All segments in order."""
        return self.tail if self.windows is None else [self.windows, *self.tail]


def schedule_runs(plan: LoopPlan) -> Schedule:
    """Return the schedule of a loop's changed runs; it is empty where no carry changes."""
    starts = {run: start for run, start in enumerate(plan.starts) if start is not None}
    if not starts or not any(plan.split.carry_changes):
        return Schedule([], [], None, [])
    runs = sorted(starts, key=lambda run: starts[run])
    windows, joins = None, starts
    if plan.padded is not None:
        padded = {run: span for run, span in enumerate(plan.padded) if span is not None}
        windows = Segment(runs, len(runs), OwnRows([padded[run] for run in runs]))
        joins = {run: padded[run].end for run in runs}
    own = windows is None and any(window is not None for window in plan.windows)
    tail, active = [], 0
    for first, end in itertools.pairwise(sorted({*joins.values(), plan.body.length})):
        joining = [run for run in runs if joins[run] == first]
        active += len(joining)
        span, together = Span(first, end), runs[:active]
        rows = OwnRows([span] * active) if own else CommonRows(span)
        tail.append(Segment(together, len(joining), rows))
    return Schedule(runs, [starts[run] for run in runs], windows, tail)
