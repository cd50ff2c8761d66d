"""Run a function for coalitions of rows of its input, along trees of runs that share states.

The runs of all segments but the last are computed once. Then each coalition, or each chunk of
them, continues one of these runs through its last segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int, PyTree

from jaxattn.jaxpr.flat import Atom, Step, Var
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.reuse.coalition_loop import TreeLoop
from jaxattn.jaxpr.reuse.coalition_plan import (
    PerRow,
    RowwiseStep,
    Segment,
    SharedLoop,
    TreePlan,
    Trees,
)
from jaxattn.jaxpr.reuse.coalition_runs import OverRuns, Pair, Run, SharedValues, select_rows
from jaxattn.jaxpr.reuse.step_values import AnyArray, read


def run_tree(
    plan: TreePlan,
    x: AnyArray,
    absent: AnyArray,
    trees: Trees,
    constants: Sequence[AnyArray],
    over_runs: OverRuns,
) -> PyTree:
    """Return the outputs of a function for coalitions of the rows of its input, stacked.

    Args:
        plan: the plan of the runs.
        x: the input with all rows present.
        absent: the input with no row present.
        trees: the coalitions.
        constants: the arrays that the function closes over.
        over_runs: computes runs, and coalitions.
    """
    flat = plan.traced.flat
    tree = _Tree(plan, trees, over_runs)
    tree.clean.update(flat.constants)
    tree.clean.update(zip(flat.constants, constants, strict=False))  # before those of calls
    tree.values[flat.inputs[0]] = Pair(x, absent)
    for step in flat.steps:
        tree.compute(step)

    def of_coalition(coalition: tuple[Array, list[tuple[Array, Array]]]) -> PyTree:
        present, last = coalition
        outputs = _Coalition(tree, present, *[_Last(*run) for run in last]).outputs()
        return jax.tree.unflatten(plan.traced.treedef, outputs)

    last = [(segments[-1].present, segments[-1].parents) for segments in trees[1:]]
    return over_runs(of_coalition, (trees.present, last))


@dataclass
class _Tree(SharedValues):
    """The values that coalitions share, computed step by step.

    Attributes:
        loops: the loops, after all segments but the last.
    """

    loops: dict[Step, TreeLoop] = field(default_factory=dict)

    def compute(self, step: Step) -> None:
        """Compute a step, unless it depends on whole coalitions, for all segments but the last."""
        match self.plan.steps.get(step):
            case None:
                outputs = bind(step.eqn, read(step.inputs, self.clean))
                self.clean.update(zip(step.outputs, outputs, strict=True))
            case RowwiseStep(PerRow(direction=0)):
                versions = [
                    bind(step.eqn, [self._version(atom, i) for atom in step.inputs]) for i in (0, 1)
                ]
                self.values.update(zip(step.outputs, map(Pair, *versions), strict=True))
            case RowwiseStep(kind):
                segments = self.trees.of(kind.direction)[:-1]
                parts = [self._rowwise(step, s, segment) for s, segment in enumerate(segments)]
                for i, out in enumerate(step.outputs):
                    self.values[out] = [of_segment[i] for of_segment in parts]
            case SharedLoop() as shared:
                self.loops[step] = TreeLoop(self, step, shared)

    def _rowwise(self, step: Step, s: int, segment: Segment) -> list[AnyArray]:
        own = self.own(step.inputs, s)

        def of_run(run: tuple[Array, list[AnyArray]]) -> list[AnyArray]:
            present, rows = run
            return Run(self, segment, present, dict(zip(own, rows, strict=True))).rowwise(step)

        # Not in chunks: the rows of all runs are kept anyway. Variables cannot be keys of a pytree,
        # since they have no order.
        rows: list[AnyArray] = jax.vmap(of_run)((segment.present, list(own.values())))
        return rows

    def _version(self, atom: Atom, i: int) -> ArrayLike:
        """Return a value with all rows present (0), or with none (1)."""
        if self.kind(atom) is None:
            return read([atom], self.clean)[0]
        assert isinstance(atom, Var)
        pair = self.values[atom]
        assert isinstance(pair, Pair)
        return pair[i]


class _Last(NamedTuple):
    """The run of the last segment of a tree that makes a coalition.

    Attributes:
        present: the rows of the segment that are present.
        parent: the run of the segment before it that it continues.
    """

    present: Bool[Array, " rows"]
    parent: Int[Array, ""]


class _Coalition:
    """The values of one coalition, by variable: those that depend on all of its rows."""

    def __init__(
        self, tree: _Tree, present: Bool[Array, " rows"], forward: _Last, backward: _Last
    ) -> None:
        self.tree, self.present = tree, present
        self.parents = {1: forward.parent, -1: backward.parent}
        self.runs = {
            direction: Run(tree, tree.trees.of(direction)[-1], last.present, {})
            for direction, last in ((1, forward), (-1, backward))
        }
        self.values: dict[Var, AnyArray] = {}

    def outputs(self) -> list[ArrayLike]:
        """Return the outputs of the function."""
        for step in self.tree.plan.traced.flat.steps:
            match self.tree.plan.steps.get(step):
                case None | RowwiseStep(PerRow(direction=0)):
                    pass
                case RowwiseStep(kind):
                    run = self.runs[kind.direction]
                    run.own.update(zip(step.outputs, run.rowwise(step), strict=True))
                case SharedLoop() as shared:
                    self._loop(step, shared)
                case _:
                    outputs = bind(step.eqn, [self._whole(atom) for atom in step.inputs])
                    self.values.update(zip(step.outputs, outputs, strict=True))
        return [self._whole(out) for out in self.tree.plan.traced.flat.outputs]

    def _loop(self, step: Step, shared: SharedLoop) -> None:
        """Compute the last segment of a scan."""
        loop, n_carry = self.tree.loops[step], step.counts[1]
        run = self.runs[shared.direction]
        last, rows = loop.last(run, self.parents[shared.direction])
        changing = [
            out
            for out, changes in zip(step.outputs, shared.split.carry_changes, strict=False)
            if changes
        ]
        self.values.update(zip(changing, last, strict=True))
        ys = dict(zip(loop.ys, rows, strict=True))
        for out, y in zip(step.outputs[n_carry:], shared.body.flat.outputs[n_carry:], strict=True):
            if y in ys:
                run.own[out] = ys[y]

    def _whole(self, atom: Atom) -> ArrayLike:
        """Return a value, all rows of it."""
        kind = self.tree.kind(atom)
        if not isinstance(atom, Var) or kind is None:
            return read([atom], self.tree.clean)[0]
        if not isinstance(kind, PerRow):
            return self.values[atom]
        value = self.tree.values[atom]
        if isinstance(value, Pair):
            present = self.present[::-1] if kind.flipped else self.present
            return select_rows(present, kind.axis, *value)
        pieces = [self.runs[kind.direction].own[atom]]
        run = self.parents[kind.direction]
        before = self.tree.trees.of(kind.direction)[:-1]
        for segment, part in zip(reversed(before), reversed(value), strict=True):
            pieces.append(part[run])
            run = segment.parents[run]
        if (kind.direction == 1) ^ kind.flipped:  # they were collected from the last segment on
            pieces.reverse()
        return jnp.concatenate(pieces, kind.axis)
