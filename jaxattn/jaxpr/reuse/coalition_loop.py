"""A scan for coalitions of rows, along the tree of the runs that they share."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree

from jaxattn.jaxpr.flat import Atom, Step, Var
from jaxattn.jaxpr.reuse.coalition_plan import Segment, SharedLoop
from jaxattn.jaxpr.reuse.coalition_runs import Pair, Run, SharedValues
from jaxattn.jaxpr.reuse.extents import Rows
from jaxattn.jaxpr.reuse.loop_split import LoopPlan
from jaxattn.jaxpr.reuse.rerun import run_clean_loop
from jaxattn.jaxpr.reuse.step_values import AnyArray, read, rows_of, run_steps


class TreeLoop:
    """A scan along a tree, after all segments but the last.

    Attributes:
        carry: the carries that change after these segments, stacked over runs.
    """

    def __init__(self, tree: SharedValues, step: Step, shared: SharedLoop) -> None:
        self.tree, self.step, self.shared = tree, step, shared
        self.body, self.split = shared.body, shared.split
        n_consts, n_carry = step.counts
        self._read_clean()
        outs = self.body.flat.outputs
        self.ys = list(dict.fromkeys(y for y in outs[n_carry:] if y in self.split.changed))
        changes = list(zip(self.body.carries, outs, self.split.carry_changes, strict=False))
        self.changed = [(v, out) for v, out, changed in changes if changed]
        self._find_sources()
        first = read(step.inputs[n_consts : n_consts + n_carry], tree.clean)
        self.carry = [
            jnp.asarray(value)[None]
            for value, (_, _, changed) in zip(first, changes, strict=True)
            if changed
        ]
        parts = [
            self._segment(s, seg) for s, seg in enumerate(tree.trees.of(shared.direction)[:-1])
        ]
        for out, y in zip(step.outputs[n_carry:], outs[n_carry:], strict=True):
            if y in self.split.changed:
                tree.values[out] = [rows[self.ys.index(y)] for rows in parts]

    def _read_clean(self) -> None:
        """Compute what is the same for all coalitions."""
        tree, step, n_carry = self.tree, self.step, self.step.counts[1]
        plan = LoopPlan(self.body, self.split, [False] * n_carry, [], None, [], [])
        # Nothing that is kept depends on an operand that changes.
        operands = [
            jnp.zeros(atom.aval.shape, atom.aval.dtype)
            if tree.kind(atom)
            else read([atom], tree.clean)[0]
            for atom in step.inputs
        ]
        self.clean = run_clean_loop(plan, operands, linear=False)
        changes = [
            *self.split.carry_changes,
            *[y in self.split.changed for y in self.body.flat.outputs[n_carry:]],
        ]
        for out, value, changed in zip(step.outputs, self.clean.outputs, changes, strict=True):
            if not changed:
                tree.clean[out] = value

    def _find_sources(self) -> None:
        """Find what the steps of the body read of each row, by how it depends on the run.

        The early steps are computed once for all rows present, and once for none, where that
        decides their values.
        """
        body, split, tree = self.body, self.split, self.tree
        atoms = dict(zip(body.xs, self.step.inputs[sum(self.step.counts) :], strict=True))
        changed = {v: a for v, a in atoms.items() if isinstance(a, Var) and tree.kind(a)}
        inputs = [v for v in (*body.carries, *body.xs) if v in split.early_variables]
        self.common: dict[Var, AnyArray] = {}
        self.pairs: dict[Var, Pair] = {}
        self.own: dict[Var, Atom] = {}
        self.steps = list(split.late)
        if not self.shared.repeats_early:
            values = {v: tree.values[atom] for v, atom in changed.items()}
            pairs = {v: value for v, value in values.items() if isinstance(value, Pair)}
            wanted = [*split.frontier, *(y for y in self.ys if y in split.early_variables)]
            wanted = list(dict.fromkeys(v for v in wanted if isinstance(v, Var)))
            versions = [
                self._early(inputs, wanted, {v: pair[i] for v, pair in pairs.items()})
                for i in (0, 1)
            ]
            for v, shown, hidden in zip(wanted, *versions, strict=True):
                if v in split.changed:
                    self.pairs[v] = Pair(shown, hidden)
                else:
                    self.common[v] = shown
            return
        self.steps = [*split.early, *split.late]
        for v in inputs:
            if v in changed:
                self.own[v] = changed[v]
            else:
                self.common[v] = self.clean.by_row[v]

    def _early(
        self, inputs: Sequence[Var], wanted: Sequence[Var], version: dict[Var, ArrayLike]
    ) -> list[AnyArray]:
        """Return results of the early steps for all rows, with all present or with none."""

        def at_row(row: PyTree) -> PyTree:
            values = {**self.clean.fixed, **dict(zip(inputs, row, strict=True))}
            return read(wanted, run_steps(self.split.early, values))

        rows: list[AnyArray] = jax.vmap(at_row)(
            [version.get(v, self.clean.by_row[v]) for v in inputs]
        )
        return rows

    def _segment(self, s: int, segment: Segment) -> list[AnyArray]:
        """Compute the runs of a segment; return its rows of `ys`, stacked over runs."""
        before = self.carry

        own = self.tree.own(list(self.own.values()), s)

        def of_run(run: tuple[Array, Array, list[AnyArray]]) -> PyTree:
            present, parent, rows = run
            by_variable = dict(zip(own, rows, strict=True))
            return self.run(Run(self.tree, segment, present, by_variable), parent, before)

        runs = segment.present, segment.parents, list(own.values())
        self.carry, rows = self.tree.over_runs(of_run, runs)
        return rows

    def last(self, run: Run, parent: Int[Array, ""]) -> tuple[list[AnyArray], list[AnyArray]]:
        """Compute a run of the last segment; return the carries that change, and rows of `ys`."""
        return self.run(run, parent, self.carry)

    def run(
        self, run: Run, parent: Int[Array, ""], before: Sequence[AnyArray]
    ) -> tuple[list[AnyArray], list[AnyArray]]:
        """Compute a run from the carries of the run that it continues.

        Args:
            run: the run.
            parent: the run of the segment before it that it continues.
            before: the carries after that segment.

        Returns:
            the carries that change, and the rows of `ys`.
        """
        lo, hi = self.tree.rows_of(run.segment, self.shared.flipped)
        cut = Rows(0, lo, hi)

        def advance(carry: PyTree, row: PyTree) -> tuple[PyTree, PyTree]:
            present, common, pairs, own = row
            values = {**self.clean.fixed, **dict(zip(self.common, common, strict=True))}
            for v, pair in zip(self.pairs, pairs, strict=True):
                values[v] = jnp.where(present, *pair)
            values |= dict(zip(self.own, own, strict=True))
            values |= dict(zip([v for v, _ in self.changed], carry, strict=True))
            run_steps(self.steps, values)
            return read([out for _, out in self.changed], values), read(self.ys, values)

        xs = (
            run.shown(self.shared.flipped),
            [rows_of(rows, cut) for rows in self.common.values()],
            [tuple(rows_of(version, cut) for version in pair) for pair in self.pairs.values()],
            [run.part(atom) for atom in self.own.values()],
        )
        result: tuple[list[AnyArray], list[AnyArray]] = jax.lax.scan(
            advance,
            [carry[parent] for carry in before],
            xs,
            length=hi - lo,
            reverse=self.body.reverse,
            unroll=min(self.step.eqn.params["unroll"], hi - lo),
        )
        return result
