"""Extents: the part of a value that a change of the input reaches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias


@dataclass(frozen=True)
class Unchanged:
    """The value equals that of the clean run."""


@dataclass(frozen=True)
class Rows:
    """The value may differ from the clean run at positions [lo, hi) of one axis, not elsewhere.

    Attributes:
        axis: the axis.
        lo: the first position.
        hi: one past the last position.
    """

    axis: int
    lo: int
    hi: int

    @property
    def size(self) -> int:
        """The number of positions."""
        return self.hi - self.lo

    def on(self, axis: int) -> "Rows":
        """Return the same positions of another axis."""
        return replace(self, axis=axis)

    def shifted(self, offset: int) -> "Rows":
        """Return the rows `offset` positions further on."""
        return Rows(self.axis, self.lo + offset, self.hi + offset)

    def within(self, lo: int, hi: int) -> "Rows":
        """Return the rows in [lo, hi); their size is not positive if there are none."""
        return Rows(self.axis, max(self.lo, lo), min(self.hi, hi))


@dataclass(frozen=True)
class Count:
    """The value is one integer in all elements, at least `least` both before and after the change.

    The length of the valid part of a series is a count. A time step below `least` is valid with
    either length.

    Attributes:
        least: the lower bound of both integers.
    """

    least: int


@dataclass(frozen=True)
class Whole:
    """Every element may differ from the clean run."""


#: What a change reaches of a value that is computed in part, in one changed run.
RunExtent: TypeAlias = Unchanged | Rows | Count


@dataclass(frozen=True)
class PerRun:
    """The extents of a value that is computed in part, one for each changed run."""

    runs: tuple[RunExtent, ...]


#: What the changes reach of a value, in all changed runs.
Extents: TypeAlias = Unchanged | PerRun | Whole

UNCHANGED = Unchanged()
WHOLE = Whole()


def per_run(runs: Sequence[RunExtent]) -> Unchanged | PerRun:
    """Return the extents of a value, given that in each run."""
    if all(isinstance(extent, Unchanged) for extent in runs):
        return UNCHANGED
    return PerRun(tuple(runs))


def in_run(extents: Unchanged | PerRun, run: int) -> RunExtent:
    """Return the extent of a value in one run."""
    return extents.runs[run] if isinstance(extents, PerRun) else extents


def hull(extents: Sequence[RunExtent]) -> Unchanged | Rows | Whole:
    """Return the smallest extent that covers several, which holds no counts.

    It is `Whole` if they lie on different axes.
    """
    rows = [extent for extent in extents if isinstance(extent, Rows)]
    if not rows:
        return UNCHANGED
    if len({extent.axis for extent in rows}) > 1:
        return WHOLE
    return Rows(rows[0].axis, min(r.lo for r in rows), max(r.hi for r in rows))
