"""Plan to run a function for many coalitions of rows of its input, which share states of loops.

Each row of the input, such as a time step, has one of two values: the present and the absent one.
The state of a loop after some rows depends on which of these rows were present. Coalitions that
agree so far share a run, so the runs form a tree. It is given in segments: each continues runs of
the segment before it, and its number of runs is known before tracing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from jaxtyping import Array, Bool, Int

from jaxattn.jaxpr.flat import Step, Var, is_elementwise
from jaxattn.jaxpr.flops import count_equations
from jaxattn.jaxpr.reuse.extent_rules import Restricted, propagate
from jaxattn.jaxpr.reuse.extents import UNCHANGED, Rows
from jaxattn.jaxpr.reuse.loop_split import BodySplit, ScanBody, split_body
from jaxattn.jaxpr.reuse.reuse_plan import Traced

#: Early steps with an eighth of the operations of late steps are cheaper to compute than to select:
#: XLA does not vectorise a fusion of the selection with what reads it.
_CHEAP = 8


class Segment(NamedTuple):
    """Some rows of the input, and the runs that differ up to its end.

    Attributes:
        lo: the first row.
        hi: one past the last row.
        present: for each run which of the rows are present.
        parents: for each run the one of the segment before that it continues.
    """

    lo: int
    hi: int
    present: Bool[Array, "runs rows"]
    parents: Int[Array, " runs"]


class Trees(NamedTuple):
    """Coalitions of rows as trees, one for each direction in which a loop may read the rows.

    Attributes:
        present: the rows that are present in each coalition.
        forward: segments with ascending rows; the runs of the last one are the coalitions.
        backward: likewise, with descending rows.
    """

    present: Bool[Array, "coalitions rows"]
    forward: Sequence[Segment]
    backward: Sequence[Segment]

    def of(self, direction: int) -> Sequence[Segment]:
        """Return the tree of a direction, 1 or -1."""
        return self.forward if direction == 1 else self.backward


@dataclass(frozen=True)
class PerRow:
    """A value of which each row depends on one row of the input, or on the state of a loop there.

    Attributes:
        axis: the axis of the rows.
        flipped: whether the rows are in the reverse order of those of the input.
        direction: that of the loop, in rows of the input; 0 for a value that depends on the row
            alone.
    """

    axis: int
    flipped: bool
    direction: int = 0


@dataclass(frozen=True)
class PerCoalition:
    """A value that may depend on all rows."""


Kind: TypeAlias = PerRow | PerCoalition
PER_COALITION = PerCoalition()


class RowwiseStep(NamedTuple):
    """A step that computes each row of its outputs from the same row of its operands."""

    kind: PerRow


class SharedLoop(NamedTuple):
    """A scan over the rows, run along a tree.

    Attributes:
        body: the scan.
        split: the steps of its body.
        direction: the order of the input's rows in which it runs.
        flipped: whether its rows are in the reverse order of those of the input.
        repeats_early: whether each run computes the early steps anew, instead of selecting one of
            two versions of their results.
    """

    body: ScanBody
    split: BodySplit
    direction: int
    flipped: bool
    repeats_early: bool


#: How a step is computed of which an operand depends on the coalition.
How: TypeAlias = RowwiseStep | SharedLoop | PerCoalition


@dataclass(frozen=True)
class TreePlan:
    """Plan of a function's runs for coalitions of the rows of its input.

    Attributes:
        traced: the function.
        rows: the number of rows.
        kinds: what the values depend on that differ between coalitions.
        steps: how the steps are computed that make them.
    """

    traced: Traced
    rows: int
    kinds: Mapping[Var, Kind]
    steps: Mapping[Step, How]

    @property
    def has_loops(self) -> bool:
        """Whether any loop shares its states."""
        return any(isinstance(how, SharedLoop) for how in self.steps.values())

    def flops(self, sizes: Callable[[int], Sequence[tuple[int, int]]], coalitions: int) -> float:
        """Return the operations of all runs.

        Args:
            sizes: from a direction to the numbers of rows and runs of each segment.
            coalitions: the number of coalitions.
        """
        total = 0.0
        for step in self.traced.flat.steps:
            whole = count_equations([step.eqn])
            match self.steps.get(step):
                case None:
                    total += whole
                case RowwiseStep(kind):
                    total += whole * self._share(sizes, kind.direction)
                case SharedLoop(_, split, direction, _, repeats_early):
                    steps = [*split.early, *split.late] if repeats_early else split.late
                    of_row = count_equations([s.eqn for s in steps])
                    total += of_row * self.rows * self._share(sizes, direction) + 2 * whole
                case _:
                    total += whole * coalitions
        return total

    def _share(self, sizes: Callable[[int], Sequence[tuple[int, int]]], direction: int) -> float:
        """Return how often a row is computed on average."""
        if direction == 0:
            return 2.0
        return sum(rows * runs for rows, runs in sizes(direction)) / self.rows


def plan_tree(traced: Traced, axis: int) -> TreePlan:
    """Plan the runs of a function for coalitions of the rows of one axis of its input."""
    flat, rows = traced.flat, traced.flat.inputs[0].shape[axis]
    kinds: dict[Var, Kind] = {flat.inputs[0]: PerRow(axis, False)}
    steps: dict[Step, How] = {}
    for step in flat.steps:
        of_operands = [kinds.get(a) if isinstance(a, Var) else None for a in step.inputs]
        if all(kind is None for kind in of_operands):
            continue
        how = steps[step] = _plan_step(step, of_operands, rows)
        for out, kind in zip(step.outputs, _output_kinds(step, how), strict=True):
            if kind is not None:
                kinds[out] = kind
    return TreePlan(traced, rows, kinds, steps)


def _plan_step(step: Step, kinds: Sequence[Kind | None], rows: int) -> How:
    by_row = [kind for kind in kinds if isinstance(kind, PerRow)]
    directions = {kind.direction for kind in by_row} - {0}
    some = [kind for kind in kinds if kind is not None]
    if len(by_row) < len(some) or len(directions) > 1 or len({k.flipped for k in by_row}) > 1:
        return PER_COALITION
    flipped, direction = by_row[0].flipped, max(directions, key=abs, default=0)
    if step.name == "scan":
        return _plan_loop(step, kinds, rows, direction, flipped) or PER_COALITION
    first, rest = (_moved(step, kinds, lo, hi) for lo, hi in ((0, 1), (1, rows)))
    if first is None or rest is None or first.axis != rest.axis:
        return PER_COALITION
    if any(out.shape[first.axis : first.axis + 1] != (rows,) for out in step.outputs):
        return PER_COALITION
    same = (first.lo, first.hi, rest.lo, rest.hi) == (0, 1, 1, rows)
    turned = (first.lo, first.hi, rest.lo, rest.hi) == (rows - 1, rows, 0, rows - 1)
    if not same and not turned:
        return PER_COALITION
    return RowwiseStep(PerRow(first.axis, flipped ^ turned, direction))


def _moved(step: Step, kinds: Sequence[Kind | None], lo: int, hi: int) -> Rows | None:
    """Return the rows of the outputs that some rows of the operands make, and they alone."""
    extents = [Rows(k.axis, lo, hi) if isinstance(k, PerRow) else UNCHANGED for k in kinds]
    how = propagate(step, extents)
    if not isinstance(how, Restricted) or len(set(how.outputs)) != 1:
        return None
    (out,) = set(how.outputs)
    if not isinstance(out, Rows):
        return None
    if how.trim is not None:
        # An elementwise step with a derivative rule is computed for whole values. The rows of runs
        # are not.
        by_run = any(isinstance(k, PerRow) and k.direction for k in kinds)
        return out if is_elementwise(step) and not by_run else None
    changed = [(c, e) for c, e in zip(how.cuts, extents, strict=True) if e != UNCHANGED]
    return out if all(cut == extent for cut, extent in changed) else None


def _plan_loop(
    step: Step, kinds: Sequence[Kind | None], rows: int, direction: int, flipped: bool
) -> SharedLoop | None:
    """Return how a scan runs along a tree; `None` if it does not read the rows one by one."""
    n_consts, n_carry = step.counts
    if any(kind is not None for kind in kinds[: n_consts + n_carry]):
        return None
    of_xs = kinds[n_consts + n_carry :]
    if any(isinstance(kind, PerRow) and kind.axis != 0 for kind in of_xs):
        return None
    body = ScanBody.of(step)
    own = (-1 if flipped else 1) * (-1 if body.reverse else 1)
    if body.length != rows or direction not in (0, own):
        return None
    changed = {v for v, kind in zip(body.xs, of_xs, strict=True) if kind is not None}
    split = split_body(body, changed, [False] * n_carry)
    early, late = (count_equations([s.eqn for s in steps]) for steps in (split.early, split.late))
    return SharedLoop(body, split, own, flipped, direction != 0 or _CHEAP * early <= late)


def _output_kinds(step: Step, how: How) -> list[Kind | None]:
    match how:
        case RowwiseStep(kind):
            return [kind] * len(step.outputs)
        case SharedLoop(body, split, direction, flipped, _):
            carries: list[Kind | None] = [
                PER_COALITION if changes else None for changes in split.carry_changes
            ]
            stacked = PerRow(0, flipped, direction)
            ys = body.flat.outputs[len(carries) :]
            return [*carries, *[stacked if y in split.changed else None for y in ys]]
        case _:
            return [PER_COALITION] * len(step.outputs)
