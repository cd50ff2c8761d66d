"""Changes of an input in groups that begin near each other, so that they share what comes before.

Each group is one of the runs of `jaxattn.jaxpr.reuse.changed_runs`, which go side by side and join
one after the other; a column is one change of each group. Where the groups begin is known before
tracing, so all is one straight program: it can be compiled for an accelerator, differentiated and
vectorised.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int, Integer

from jaxattn.engine.batch import chunked_map
from jaxattn.jaxpr.flat import is_replayable, opens_rules
from jaxattn.jaxpr.reuse.changed_runs import Reuse, Traced
from jaxattn.jaxpr.reuse.extents import Count, Rows
from jaxattn.jaxpr.reuse.rerun import is_same, settled

#: More groups begin later on average, which saves at most a share of 1 / groups, and take longer
#: to compile: each is a loop of its own.
MOST = 16
#: With half as many groups there are half as many loops to compile. They are enough if they leave
#: no more than so many times the operations.
MUCH_MORE = 1.1
#: The share of the operations that must be saved for it to be worth while.
LEAST_SAVED = 0.05


class Groups(NamedTuple):
    """Changes by group.

    Attributes:
        rows: the rows that hold all changes of a group.
        members: which change each column has of each group; the last may occur again.
    """

    rows: list[Rows]
    members: Int[np.ndarray, "columns groups"]

    @property
    def places(self) -> Int[np.ndarray, " changes"]:
        """Where each change lies in `members`, flattened."""
        places = np.zeros(self.members.max() + 1, np.int64)
        places[self.members.ravel()] = np.arange(self.members.size)
        return places


def grouped(
    axis: int, begin: Int[np.ndarray, " N"], end: Int[np.ndarray, " N"], most: int
) -> Groups:
    """Parts changes into at most `most` groups of one size, by where they begin.

    Args:
        axis: along which they begin and end.
        begin: the first row of each.
        end: one past the last.
        most: how many groups there may be.
    """
    order = np.argsort(begin, kind="stable")
    groups = min(most, len(np.unique(begin)))
    size = -(-len(order) // groups)
    filled = order[np.minimum(np.arange(size * -(-len(order) // size)), len(order) - 1)]
    parts = filled.reshape(-1, size)
    rows = [Rows(axis, int(begin[p].min()), int(end[p].max())) for p in parts]
    return Groups(rows, parts.T)


class Grouped(NamedTuple):
    """Groups, what they share of a function, and the operations that this saves."""

    groups: Groups
    reuse: Reuse
    saved: int

    def scores(
        self,
        x: Any,
        changed: Callable[[Any, Any, Any], Any],
        given: Any,
        options: Any,
        batch_size: int | None,
    ) -> tuple[Array, Array]:
        """What the function answers for each change, and without one.

        Args:
            x: the input.
            changed: makes of the input, `given` and the options of one change the changed input.
            given: arrays that all changes read.
            options: of all changes, each leaf with a leading axis.
            batch_size: how many changed runs are in flight.

        Returns:
            for each change its score, and the score without any as the same program finds it.
        """
        traced = self.reuse.traced

        def plain(constants: list[Any], x: Any, given: Any, options: Any) -> tuple[Array, Array]:
            def score(option: Any) -> Array:
                answer: Array = traced.run(constants, changed(x, given, option))[0]
                return answer

            scores = chunked_map(score, options, batch_size)
            return scores, jnp.broadcast_to(traced.run(constants, x)[0], scores.shape)

        def shared(constants: list[Any], x: Any, given: Any, options: Any) -> tuple[Array, Array]:
            return self._shared(constants, x, partial(changed, x, given), options, batch_size)

        scores = _with_derivative_of(plain, shared) if opens_rules(traced.flat) else shared
        found: tuple[Array, Array] = scores(traced.constants, x, given, options)
        return found

    def _shared(
        self,
        constants: list[Any],
        x: Any,
        changed: Callable[[Any], Any],
        options: Any,
        batch_size: int | None,
    ) -> tuple[Array, Array]:
        rows, members = self.groups
        unchanged = self.reuse.clean(x, constants)
        clean = [jax.lax.slice_in_dim(x, r.lo, r.hi, axis=r.axis) for r in rows]

        def column(chosen: Any) -> Any:
            each = [jax.tree.map(lambda leaf, g=g: leaf[g], chosen) for g in range(len(rows))]
            cut = [
                jax.lax.slice_in_dim(changed(one), r.lo, r.hi, axis=r.axis)
                for one, r in zip(each, rows, strict=True)
            ]
            scores = self.reuse.run(unchanged, [*cut, None])[0]
            # A change that changes nothing scores as none to the last bit, though it has a slope.
            same = [is_same(new, old) for new, old in zip(cut, clean, strict=True)]
            return settled(jnp.stack([*same, jnp.asarray(True)]), scores[-1], scores)

        columns = jax.tree.map(lambda leaf: leaf[members], options)
        size = batch_size and max(1, batch_size // (len(rows) + 1))
        scores = chunked_map(column, columns, size)
        # Rounding differs between programs: the score of the input goes by the same one.
        mine, none = scores[:, :-1].ravel(), jnp.repeat(scores[:, -1], len(rows))
        places = self.groups.places
        return mine[places], none[places]


def _with_derivative_of(plain: Callable[..., Any], f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` with the derivative of `plain`, which has the same values.

    Reuse opens derivative rules of more than single cells, and would differentiate what is inside.
    Neither may close over what is traced: the rule is looked at when that trace has long ended.
    """

    @jax.custom_jvp
    def call(*inputs: Any) -> Any:
        return f(*inputs)

    # A rule for derivatives may refuse a slope, even 0, of what it closes over.
    @partial(call.defjvp, symbolic_zeros=True)
    def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
        leaves, treedef = jax.tree.flatten(primals)
        slopes = dict(enumerate(jax.tree.leaves(tangents)))
        moving = {i: t for i, t in slopes.items() if not isinstance(t, SymbolicZero)}

        def of_moving(new: dict[int, Any]) -> Any:
            mixed = [new.get(i, leaf) for i, leaf in enumerate(leaves)]
            return plain(*jax.tree.unflatten(treedef, mixed))

        return call(*primals), jax.jvp(of_moving, ({i: leaves[i] for i in moving},), (moving,))[1]

    return call


def best_grouping(
    score_of: Callable[[Any], tuple[Any, Any]],
    x: Any,
    spans: Sequence[tuple[np.ndarray, np.ndarray]],
    batch_size: int | None,
) -> Grouped | None:
    """The grouping of changes along one axis that saves most; `None` if none saves enough.

    Args:
        score_of: from the input to the score and the output.
        x: the input.
        spans: for each axis of the input the first row of each change, and one past the last.
        batch_size: how many changed runs are in flight.
    """
    traced = Traced.of(score_of, x)
    if not is_replayable(traced.flat):  # what it does is done as often as the changes ask for
        return None
    most = MOST if batch_size is None else max(1, min(MOST, batch_size - 1))
    found = []
    for axis, (begin, end) in enumerate(spans):
        if len(np.unique(begin)) == 1:
            continue
        both = [_grouping(traced, axis, begin, end, groups) for groups in (most, -(-most // 2))]
        plain = traced.flops * (len(begin) + 1)
        left, left_of_fewer = (plain - one.saved for one in both)
        one = both[left_of_fewer <= MUCH_MORE * left]
        if one.saved > LEAST_SAVED * plain:
            found.append(one)
    return max(found, key=lambda one: one.saved, default=None)


def _grouping(traced: Traced, axis: int, begin: np.ndarray, end: np.ndarray, most: int) -> Grouped:
    groups = grouped(axis, begin, end, most)
    reuse = Reuse(traced, [*groups.rows, None])
    once = reuse.flops - traced.flops
    saved = traced.flops * len(begin) - len(groups.members) * once
    return Grouped(groups, reuse, saved)


def prefix_scores(
    score_of: Callable[[Any], Array],
    length: Integer[Array, ""],
    most_of_each: Int[np.ndarray, " N"],
    lengths: Integer[Array, " N"],
    batch_size: int | None,
) -> Float[Array, " N"] | None:
    """What a function of a length answers for shorter ones; `None` if nothing is to be shared.

    Args:
        score_of: from the length of the valid part of a series to a score.
        length: the whole length.
        most_of_each: how long each shorter part is, or the whole if that is not so long.
        lengths: the same, with that minimum taken.
        batch_size: how many runs are in flight.
    """
    traced = Traced.of(score_of, length)
    if not is_replayable(traced.flat):
        return None
    most = MOST if batch_size is None else min(MOST, batch_size)
    groups = grouped(0, most_of_each, most_of_each, most)
    reuse = Reuse(traced, [Count(rows.lo) for rows in groups.rows])
    plain = traced.flops * len(most_of_each)
    once = reuse.flops - traced.flops
    if traced.flops + len(groups.members) * once > (1 - LEAST_SAVED) * plain:
        return None
    size = batch_size and max(1, batch_size // len(groups.rows))

    def each(constants: list[Any], length: Array, lengths: Array) -> Array:
        answers: Array = chunked_map(partial(traced.run, constants), lengths, batch_size)
        return answers

    def shared(constants: list[Any], length: Array, lengths: Array) -> Array:
        unchanged = reuse.clean(length, constants)

        def column(chosen: Any) -> Any:
            return reuse.run(unchanged, [chosen[g] for g in range(len(groups.rows))])

        return chunked_map(column, lengths[groups.members], size).ravel()[groups.places]

    scores = _with_derivative_of(each, shared) if opens_rules(traced.flat) else shared
    found: Array = scores(traced.constants, length, lengths)
    return found
