"""Run a function for many coalitions of rows of its input, which share the states of loops.

Each row of the input, such as a time step, has one of two values: the present and the absent one.
The state of a loop after some rows depends on which of these rows were present. Coalitions that
agree so far share a run, so the runs form a tree. It is given in segments: each continues runs of
the segment before it, and its number of runs is known before tracing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int, PyTree

from jaxattn.jaxpr.flat import Atom, Step, Var, is_elementwise
from jaxattn.jaxpr.flops import count_equations
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.reuse.extent_rules import Restricted, propagate
from jaxattn.jaxpr.reuse.extents import UNCHANGED, Rows
from jaxattn.jaxpr.reuse.loop_split import BodySplit, LoopPlan, ScanBody, split_body
from jaxattn.jaxpr.reuse.rerun import run_clean_loop
from jaxattn.jaxpr.reuse.reuse_plan import Traced
from jaxattn.jaxpr.reuse.step_values import AnyArray, Values, read, rows_of, run_steps


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
    """

    body: ScanBody
    split: BodySplit
    direction: int
    flipped: bool


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
                case SharedLoop(_, split, direction, _):
                    late = count_equations([s.eqn for s in split.late])
                    total += late * self.rows * self._share(sizes, direction) + 2 * whole
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
    return SharedLoop(body, split_body(body, changed, [False] * n_carry), own, flipped)


def _output_kinds(step: Step, how: How) -> list[Kind | None]:
    match how:
        case RowwiseStep(kind):
            return [kind] * len(step.outputs)
        case SharedLoop(body, split, direction, flipped):
            carries: list[Kind | None] = [
                PER_COALITION if changes else None for changes in split.carry_changes
            ]
            stacked = PerRow(0, flipped, direction)
            ys = body.flat.outputs[len(carries) :]
            return [*carries, *[stacked if y in split.changed else None for y in ys]]
        case _:
            return [PER_COALITION] * len(step.outputs)


class _Pair(NamedTuple):
    """A value per row that depends on its row alone: with all rows present, and with none."""

    present: ArrayLike
    absent: ArrayLike


#: A value of one kind: a pair, its runs in each segment, or one value for each coalition.
_Value: TypeAlias = _Pair | list[AnyArray] | AnyArray


def run_tree(
    plan: TreePlan, x: AnyArray, absent: AnyArray, trees: Trees, constants: Sequence[AnyArray]
) -> PyTree:
    """Return the outputs of a function for coalitions of the rows of its input, stacked.

    Args:
        plan: the plan of the runs.
        x: the input with all rows present.
        absent: the input with no row present.
        trees: the coalitions.
        constants: the arrays that the function closes over.
    """
    flat = plan.traced.flat
    run = _TreeRun(plan, trees)
    run.clean.update(flat.constants)
    run.clean.update(zip(flat.constants, constants, strict=False))  # before those of calls
    run.values[flat.inputs[0]] = _Pair(x, absent)
    for step in flat.steps:
        if step not in plan.steps:
            run.clean.update(
                zip(step.outputs, bind(step.eqn, read(step.inputs, run.clean)), strict=True)
            )
            continue
        for out, value in zip(step.outputs, run.compute(step), strict=True):
            if out in plan.kinds:
                run.values[out] = value
            else:
                run.clean[out] = value  # type: ignore[assignment]
    outputs = [run.per_coalition(out) for out in flat.outputs]
    return jax.tree.unflatten(plan.traced.treedef, outputs)


@dataclass
class _TreeRun:
    """The values of the runs, by variable."""

    plan: TreePlan
    trees: Trees
    clean: Values = field(default_factory=dict)
    values: dict[Var, _Value] = field(default_factory=dict)

    def compute(self, step: Step) -> Sequence[_Value]:
        """Compute the outputs of a step."""
        match self.plan.steps[step]:
            case RowwiseStep(kind) if kind.direction == 0:
                versions = [
                    bind(step.eqn, [self._version(atom, i) for atom in step.inputs]) for i in (0, 1)
                ]
                return [_Pair(*pair) for pair in zip(*versions, strict=True)]
            case RowwiseStep(kind):
                return self._rowwise(step, kind)
            case SharedLoop() as loop:
                return _LoopRun(self, step, loop).outputs()
            case _:
                operands = [
                    self.per_coalition(a) if self.kind(a) else read([a], self.clean)[0]
                    for a in step.inputs
                ]
                axes = [0 if self.kind(a) else None for a in step.inputs]
                call = jax.vmap(lambda *inputs: list(bind(step.eqn, inputs)), in_axes=axes)
                stacked: list[AnyArray] = call(*operands)
                return stacked

    def kind(self, atom: Atom) -> Kind | None:
        """Return what a value depends on, `None` if it is the same for all coalitions."""
        return self.plan.kinds.get(atom) if isinstance(atom, Var) else None

    def _version(self, atom: Atom, i: int) -> ArrayLike:
        """Return a value with all rows present (0), or with none (1)."""
        if self.kind(atom) is None:
            return read([atom], self.clean)[0]
        assert isinstance(atom, Var)
        pair = self.values[atom]
        assert isinstance(pair, _Pair)
        return pair[i]

    def _rowwise(self, step: Step, kind: PerRow) -> list[_Value]:
        """Compute a step for the runs of each segment."""
        kinds = [self.kind(atom) for atom in step.inputs]
        axes = [None if k is None else 0 for k in kinds]
        parts = []
        for s, segment in enumerate(self.trees.of(kind.direction)):
            how = propagate(
                step,
                [
                    Rows(k.axis, *self.rows_of(segment, k.flipped))
                    if isinstance(k, PerRow)
                    else UNCHANGED
                    for k in kinds
                ],
            )
            assert isinstance(how, Restricted)
            operands = [
                self.part(atom, kind.direction, s)
                if k
                else rows_of(read([atom], self.clean)[0], cut)
                for atom, k, cut in zip(step.inputs, kinds, how.cuts, strict=True)
            ]
            call = jax.vmap(
                lambda *inputs, how=how: list(bind(step.eqn, inputs, **how.params)), in_axes=axes
            )
            parts.append(call(*operands))
        return [list(of_output) for of_output in zip(*parts, strict=True)]

    def part(self, atom: Atom, direction: int, s: int) -> AnyArray:
        """Return the rows of a value in the runs of one segment."""
        assert isinstance(atom, Var)
        kind, value = self.kind(atom), self.values[atom]
        assert isinstance(kind, PerRow)
        if isinstance(value, list):
            return value[s]
        assert isinstance(value, _Pair)
        segment = self.trees.of(direction)[s]
        rows = Rows(kind.axis, *self.rows_of(segment, kind.flipped))
        shown = segment.present[:, ::-1] if kind.flipped else segment.present
        return _select(shown, kind.axis, *(rows_of(v, rows) for v in value))

    def rows_of(self, segment: Segment, flipped: bool) -> tuple[int, int]:
        """Return the rows of a value that belong to a segment."""
        if flipped:
            return self.plan.rows - segment.hi, self.plan.rows - segment.lo
        return segment.lo, segment.hi

    def per_coalition(self, atom: Atom) -> AnyArray:
        """Return a value for each coalition, stacked."""
        kind = self.kind(atom)
        if not isinstance(atom, Var) or kind is None:
            value = read([atom], self.clean)[0]
            return jnp.broadcast_to(value, (self.trees.present.shape[0], *jnp.shape(value)))
        value = self.values[atom]
        if not isinstance(kind, PerRow):
            assert not isinstance(value, (_Pair, list))
            return value
        if isinstance(value, _Pair):
            present = self.trees.present[:, ::-1] if kind.flipped else self.trees.present
            return _select(present, kind.axis, *value)
        assert isinstance(value, list)
        segments = self.trees.of(kind.direction)
        runs: Array | None = None
        pieces: list[AnyArray] = []
        for segment, part in zip(reversed(segments), reversed(value), strict=True):
            pieces.append(part if runs is None else part[runs])
            runs = segment.parents if runs is None else segment.parents[runs]
        if (kind.direction == 1) ^ kind.flipped:  # they were collected from the last segment on
            pieces.reverse()
        return jnp.concatenate(pieces, kind.axis + 1)


def _select(
    present: Bool[Array, "runs rows"], axis: int, shown: ArrayLike, hidden: ArrayLike
) -> AnyArray:
    """Return rows of one of two arrays, for each run by which rows are present."""
    rank = jnp.ndim(shown)
    mask = present.reshape(
        present.shape[0], *[1] * axis, present.shape[1], *[1] * (rank - axis - 1)
    )
    return jnp.where(mask, jnp.asarray(shown)[None], jnp.asarray(hidden)[None])


class _LoopRun:
    """A scan that is run along a tree."""

    def __init__(self, run: _TreeRun, step: Step, loop: SharedLoop) -> None:
        self.run, self.step, self.loop = run, step, loop
        self.body, self.split = loop.body, loop.split
        plan = LoopPlan(self.body, self.split, [False] * step.counts[1], [], None, [], [])
        operands = [
            self._first_version(atom) if run.kind(atom) else read([atom], run.clean)[0]
            for atom in step.inputs
        ]
        self.clean = run_clean_loop(plan, operands, linear=False)
        self.atoms = dict(zip(self.body.xs, step.inputs[sum(step.counts) :], strict=True))

    def _first_version(self, atom: Atom) -> AnyArray:
        """Return a value with all rows present; of one with runs, those of the first."""
        assert isinstance(atom, Var)
        value, kind = self.run.values[atom], self.run.kind(atom)
        assert isinstance(kind, PerRow)
        if isinstance(value, _Pair):
            return jnp.asarray(value.present)
        assert isinstance(value, list)
        pieces = [part[0] for part in value]
        if (kind.direction == -1) ^ kind.flipped:
            pieces.reverse()
        return jnp.concatenate(pieces, kind.axis)

    def outputs(self) -> list[_Value]:
        """Return the outputs of the scan."""
        split, n_carry = self.split, self.step.counts[1]
        outs = self.body.flat.outputs
        ys = list(dict.fromkeys(y for y in outs[n_carry:] if y in split.changed))
        carries, rows = self._run(ys)
        last = iter(carries)
        values: list[_Value] = []
        for i, out in enumerate(outs):
            if i < n_carry and split.carry_changes[i]:
                values.append(next(last))
            elif i >= n_carry and out in split.changed:
                values.append(rows[ys.index(out)])
            else:
                values.append(self.clean.outputs[i])
        return values

    def _run(self, ys: Sequence[Atom]) -> tuple[list[AnyArray], list[list[AnyArray]]]:
        """Return the last carries that change, and for each output its rows in each segment."""
        body, split, run = self.body, self.split, self.run
        pairs = all(
            isinstance(run.values[a], _Pair)
            for a in self.atoms.values()
            if isinstance(a, Var) and run.kind(a)
        )
        inputs = [v for v in (*body.carries, *body.xs) if v in split.early_variables]
        steps = list(split.late) if pairs else [*split.early, *split.late]
        sources: dict[Var, _Pair | list[AnyArray] | AnyArray] = {}
        if pairs:
            wanted = [*split.frontier, *(y for y in ys if y in split.early_variables)]
            sources = self._early_pairs(inputs, list(dict.fromkeys(wanted)))
        else:
            for v in inputs:
                atom = self.atoms.get(v)
                is_changed = isinstance(atom, Var) and run.kind(atom) is not None
                sources[v] = run.values[atom] if is_changed else self.clean.by_row[v]  # type: ignore[index]
        changed = [
            (v, out)
            for v, out, changes in zip(
                body.carries, body.flat.outputs, split.carry_changes, strict=False
            )
            if changes
        ]
        operands = read(self.step.inputs[self.step.counts[0] : sum(self.step.counts)], run.clean)
        carry: list[AnyArray] = [
            jnp.asarray(value)[None]
            for value, changes in zip(operands, split.carry_changes, strict=True)
            if changes
        ]
        parts: list[list[AnyArray]] = [[] for _ in ys]
        for s, segment in enumerate(run.trees.of(self.loop.direction)):
            carry = [c[segment.parents] for c in carry]
            carry, rows = self._segment(s, segment, carry, sources, steps, changed, ys)
            for of_output, new in zip(parts, rows, strict=True):
                of_output.append(jnp.moveaxis(new, 0, 1))
        return carry, parts

    def _early_pairs(
        self, inputs: Sequence[Var], wanted: Sequence[Atom]
    ) -> dict[Var, _Pair | list[AnyArray] | AnyArray]:
        """Return what late steps read of each row, with all rows present and with none."""

        def at_row(row: PyTree) -> PyTree:
            values = {**self.clean.fixed, **dict(zip(inputs, row, strict=True))}
            return read(wanted, run_steps(self.split.early, values))

        found = []
        for i in (0, 1):
            rows = []
            for v in inputs:
                atom = self.atoms.get(v)
                if isinstance(atom, Var) and self.run.kind(atom) is not None:
                    pair = self.run.values[atom]
                    assert isinstance(pair, _Pair)
                    rows.append(pair[i])
                else:
                    rows.append(self.clean.by_row[v])
            found.append(jax.vmap(at_row)(rows))
        return {
            v: _Pair(shown, hidden) if v in self.split.changed else shown
            for v, shown, hidden in zip(wanted, *found, strict=True)
            if isinstance(v, Var)
        }

    def _segment(
        self,
        s: int,
        segment: Segment,
        carry: list[AnyArray],
        sources: Mapping[Var, _Pair | list[AnyArray] | AnyArray],
        steps: Sequence[Step],
        changed: Sequence[tuple[Var, Atom]],
        ys: Sequence[Atom],
    ) -> tuple[list[AnyArray], list[AnyArray]]:
        """Run all runs of a segment, from their carries; return the carries, and rows by output."""
        flipped = self.loop.flipped
        lo, hi = self.run.rows_of(segment, flipped)
        present = (segment.present[:, ::-1] if flipped else segment.present).T
        cut = Rows(0, lo, hi)
        common, pairs, own = (
            [(v, x) for v, x in sources.items() if kind_of(x) == kind] for kind in range(3)
        )
        names = [[v for v, _ in group] for group in (common, pairs, own)]

        def advance(carry: PyTree, shared: PyTree, mine: PyTree) -> tuple[PyTree, PyTree]:
            (of_all, versions), (present, of_runs) = shared, mine
            values = {**self.clean.fixed, **dict(zip(names[0], of_all, strict=True))}
            for v, pair in zip(names[1], versions, strict=True):
                values[v] = jnp.where(present, *pair)
            values |= dict(zip(names[2], of_runs, strict=True))
            values |= dict(zip([v for v, _ in changed], carry, strict=True))
            run_steps(steps, values)
            return read([out for _, out in changed], values), read(ys, values)

        every = jax.vmap(advance, in_axes=(0, None, 0))
        shared = (
            [rows_of(x, cut) for _, x in common],
            [tuple(rows_of(version, cut) for version in x) for _, x in pairs],
        )
        mine = present, [jnp.moveaxis(x[s], 0, 1) for _, x in own]
        last: list[AnyArray]
        last, rows = jax.lax.scan(
            lambda carry, row: every(carry, *row),
            carry,
            (shared, mine),
            length=hi - lo,
            reverse=self.body.reverse,
            unroll=min(self.step.eqn.params["unroll"], hi - lo),
        )
        return last, rows


def kind_of(source: "_Pair | list[AnyArray] | AnyArray") -> int:
    """Return 0 for rows that all runs read, 1 for a pair of versions, 2 for rows of each run."""
    return 1 if isinstance(source, _Pair) else 2 if isinstance(source, list) else 0
