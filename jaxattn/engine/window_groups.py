"""Group changes of an input that begin near each other: a group shares what comes before it.

The groups are the runs of a `jaxattn.jaxpr.reuse.reuse_plan.ReusePlan`, which go side by side; a
column holds one change of each group. Where the groups begin is known before tracing, so the
program has no loop of unknown length. It can be compiled for an accelerator, differentiated and
vectorised.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int, Integer, PyTree

from jaxattn.engine.batch import chunked_map
from jaxattn.jaxpr.flat import is_replayable, opens_rules
from jaxattn.jaxpr.reuse import incremental
from jaxattn.jaxpr.reuse.extents import UNCHANGED, Count, Rows
from jaxattn.jaxpr.reuse.reuse_plan import ReusePlan, Traced, plan_reuse
from jaxattn.jaxpr.reuse.step_values import AnyArray, are_identical, clean_where

#: The largest number of groups. More of them begin later on average, which saves at most a share
#: of 1 / groups, and take longer to compile: each is a loop of its own.
MOST = 16
#: Half as many groups are used if they leave at most this factor of the operations: there are half
#: as many loops to compile.
MUCH_MORE = 1.1
#: The share of the operations that must be saved to pay for the additional compile time.
LEAST_SAVED = 0.05


class Groups(NamedTuple):
    """Changes by group.

    Attributes:
        rows: the rows that hold all changes of a group.
        members: the change of each group in each column; the last one may be repeated.
    """

    rows: list[Rows]
    members: Int[np.ndarray, "columns groups"]

    @property
    def places(self) -> Int[np.ndarray, " changes"]:
        """The position of each change in `members`, flattened."""
        places = np.zeros(self.members.max() + 1, np.int64)
        places[self.members.ravel()] = np.arange(self.members.size)
        return places


def grouped(
    axis: int, begin: Int[np.ndarray, " N"], end: Int[np.ndarray, " N"], most: int
) -> Groups:
    """Partition changes into groups of one size, by where they begin.

    Args:
        axis: the axis along which they begin and end.
        begin: the first row of each change.
        end: one past its last row.
        most: the largest number of groups.
    """
    order = np.argsort(begin, kind="stable")
    groups = min(most, len(np.unique(begin)))
    size = -(-len(order) // groups)
    filled = order[np.minimum(np.arange(size * -(-len(order) // size)), len(order) - 1)]
    parts = filled.reshape(-1, size)
    rows = [Rows(axis, int(begin[p].min()), int(end[p].max())) for p in parts]
    return Groups(rows, parts.T)


class Grouping(NamedTuple):
    """Groups of changes, and how a function is run for them.

    Attributes:
        groups: the groups.
        plan: the plan of the function's runs, one for each group and one without a change.
        saved: the operations saved.
    """

    groups: Groups
    plan: ReusePlan
    saved: int

    def scores(
        self,
        x: Array,
        perturb: Callable[[Array, PyTree, PyTree], Array],
        shared: PyTree,
        options: PyTree,
        batch_size: int | None,
    ) -> tuple[Array, Array]:
        """Return the score for each change, and without one.

        Args:
            x: the input.
            perturb: returns the changed input, from the input, `shared` and the options of one
                change.
            shared: arrays that all changes read.
            options: the options of all changes, each leaf with a leading axis.
            batch_size: how many changed runs are in flight.

        Returns:
            the score of each change, and for each the score without a change, as the same program
            computes it; both of shape (changes,).
        """
        traced = self.plan.traced

        def whole(
            constants: list[AnyArray], x: Array, shared: PyTree, options: PyTree
        ) -> tuple[Array, Array]:
            def score(option: PyTree) -> Array:
                changed_score: Array = traced.run(constants, perturb(x, shared, option))[0]
                return changed_score

            scores = chunked_map(score, options, batch_size)
            return scores, jnp.broadcast_to(traced.run(constants, x)[0], scores.shape)

        def reused(
            constants: list[AnyArray], x: Array, shared: PyTree, options: PyTree
        ) -> tuple[Array, Array]:
            return self._scores(constants, x, partial(perturb, x, shared), options, batch_size)

        scores = with_derivative_of(whole, reused) if opens_rules(traced.flat) else reused
        return scores(traced.constants, x, shared, options)

    def _scores(
        self,
        constants: list[AnyArray],
        x: Array,
        perturb: Callable[[PyTree], Array],
        options: PyTree,
        batch_size: int | None,
    ) -> tuple[Array, Array]:
        """Return the scores from runs of the groups side by side, a column at a time."""
        rows, members = self.groups
        clean = incremental.run_clean(self.plan, x, constants)
        old = [jax.lax.slice_in_dim(x, r.lo, r.hi, axis=r.axis) for r in rows]

        def column(chosen: PyTree) -> AnyArray:
            each = [jax.tree.map(lambda leaf, g=g: leaf[g], chosen) for g in range(len(rows))]
            new = [
                jax.lax.slice_in_dim(perturb(one), r.lo, r.hi, axis=r.axis)
                for one, r in zip(each, rows, strict=True)
            ]
            scores = incremental.run_changed(self.plan, clean, [*new, None])[0]
            # A change without effect scores as no change to the last bit, though it has a slope.
            same = [are_identical(changed, cut) for changed, cut in zip(new, old, strict=True)]
            return clean_where(jnp.stack([*same, jnp.asarray(True)]), scores[-1], scores)

        columns = jax.tree.map(lambda leaf: leaf[members], options)
        size = batch_size and max(1, batch_size // (len(rows) + 1))
        scores = chunked_map(column, columns, size)
        # Rounding differs between programs: the score of the input goes by the same one.
        changed, unchanged = scores[:, :-1].ravel(), jnp.repeat(scores[:, -1], len(rows))
        places = self.groups.places
        return changed[places], unchanged[places]


def with_derivative_of(
    plain: Callable[..., PyTree], f: Callable[..., PyTree]
) -> Callable[..., PyTree]:
    """Return `f` with the derivative of `plain`, which has the same values.

    Reuse opens derivative rules of more than single elements, and would differentiate what is
    inside. Neither function may close over tracers: the rule is evaluated after their trace ended.
    """

    @jax.custom_jvp
    def call(*inputs: PyTree) -> PyTree:
        return f(*inputs)

    # A derivative rule may refuse a tangent, even 0, of what it closes over.
    @partial(call.defjvp, symbolic_zeros=True)
    def _(primals: PyTree, tangents: PyTree) -> tuple[PyTree, PyTree]:
        leaves, treedef = jax.tree.flatten(primals)
        slopes = dict(enumerate(jax.tree.leaves(tangents)))
        moving = {i: t for i, t in slopes.items() if not isinstance(t, SymbolicZero)}

        def of_moving(new: dict[int, Array]) -> PyTree:
            mixed = [new.get(i, leaf) for i, leaf in enumerate(leaves)]
            return plain(*jax.tree.unflatten(treedef, mixed))

        return call(*primals), jax.jvp(of_moving, ({i: leaves[i] for i in moving},), (moving,))[1]

    return call


def best_grouping(
    score_of: Callable[[Array], tuple[Array, PyTree]],
    x: AnyArray,
    spans: Sequence[tuple[np.ndarray, np.ndarray]],
    batch_size: int | None,
) -> Grouping | None:
    """Return the grouping of changes along one axis that saves most; `None` if none saves enough.

    Args:
        score_of: from the input to the score and the output.
        x: the input.
        spans: for each axis of the input the first row of each change, and one past the last.
        batch_size: how many changed runs are in flight.
    """
    traced = Traced.of(score_of, x)
    if not is_replayable(traced.flat):  # effects happen as often as there are changes
        return None
    most = MOST if batch_size is None else max(1, min(MOST, batch_size - 1))
    candidates = []
    for axis, (begin, end) in enumerate(spans):
        if len(np.unique(begin)) == 1:
            continue
        many, few = (_grouping(traced, axis, begin, end, n) for n in (most, -(-most // 2)))
        plain = traced.flops * (len(begin) + 1)
        one = few if plain - few.saved <= MUCH_MORE * (plain - many.saved) else many
        if one.saved > LEAST_SAVED * plain:
            candidates.append(one)
    return max(candidates, key=lambda one: one.saved, default=None)


def _grouping(traced: Traced, axis: int, begin: np.ndarray, end: np.ndarray, most: int) -> Grouping:
    groups = grouped(axis, begin, end, most)
    plan = plan_reuse(traced, [*groups.rows, UNCHANGED])
    column = plan.flops - traced.flops
    saved = traced.flops * len(begin) - len(groups.members) * column
    return Grouping(groups, plan, saved)


def prefix_scores(
    score_of: Callable[[Array], Array],
    length: Integer[Array, ""],
    most_of_each: Int[np.ndarray, " N"],
    lengths: Integer[Array, " N"],
    batch_size: int | None,
) -> Float[Array, " N"] | None:
    """Return the scores of prefixes of a series; `None` if reuse does not save enough.

    Args:
        score_of: from the length of the valid part of a series to a score.
        length: the whole length.
        most_of_each: the length of each prefix, or the whole length if that is smaller.
        lengths: the same, with that minimum taken.
        batch_size: how many runs are in flight.
    """
    traced = Traced.of(score_of, length)
    if not is_replayable(traced.flat):
        return None
    most = MOST if batch_size is None else min(MOST, batch_size)
    groups = grouped(0, most_of_each, most_of_each, most)
    plan = plan_reuse(traced, [Count(rows.lo) for rows in groups.rows])
    plain = traced.flops * len(most_of_each)
    column_flops = plan.flops - traced.flops
    if traced.flops + len(groups.members) * column_flops > (1 - LEAST_SAVED) * plain:
        return None
    size = batch_size and max(1, batch_size // len(groups.rows))

    def whole(constants: list[AnyArray], length: Array, lengths: Array) -> Array:
        scores: Array = chunked_map(partial(traced.run, constants), lengths, batch_size)
        return scores

    def reused(constants: list[AnyArray], length: Array, lengths: Array) -> Array:
        clean = incremental.run_clean(plan, length, constants)

        def column(chosen: Array) -> Array:
            runs = range(len(groups.rows))
            scores: Array = incremental.run_changed(plan, clean, [chosen[g] for g in runs])
            return scores

        return chunked_map(column, lengths[groups.members], size).ravel()[groups.places]

    scores = with_derivative_of(whole, reused) if opens_rules(traced.flat) else reused
    result: Array = scores(traced.constants, length, lengths)
    return result
