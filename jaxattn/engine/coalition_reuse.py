"""Coalitions of windows of rows, such as time steps, that share the states of loops."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxattn.engine.batch import DEFAULT, chunked_map, wide
from jaxattn.engine.coalitions import Game
from jaxattn.engine.window_groups import LEAST_SAVED, with_derivative_of
from jaxattn.jaxpr.flat import is_replayable, opens_rules
from jaxattn.jaxpr.reuse.coalition_plan import Segment, TreePlan, Trees, plan_tree
from jaxattn.jaxpr.reuse.coalition_tree import run_tree
from jaxattn.jaxpr.reuse.reuse_plan import Traced
from jaxattn.jaxpr.reuse.step_values import AnyArray

#: The segments of a chain of nested coalitions. More save little, and each is a loop to compile.
_SEGMENTS = 8

#: A sixteenth of all rows that are computed are few.
_FEW = 16


class WindowGame(NamedTuple):
    """A game whose groups are windows of whole rows of its input.

    Attributes:
        game: the game.
        plan: how its function is run.
        axis: the axis of the rows.
        order: the groups by the position of their windows.
        edges: the first row of each window in that order, and the number of rows.
    """

    game: Game
    plan: TreePlan
    axis: int
    order: Int[np.ndarray, " windows"]
    edges: Int[np.ndarray, " edges"]

    @property
    def number(self) -> int:
        """The number of windows."""
        return len(self.order)

    def along_permutations(
        self, places: Int[Array, "samples groups"], batch_size: int | None
    ) -> Float[Array, "samples coalitions"] | None:
        """Return the scores of the first 0, 1, ... groups of permutations.

        `None` if too little is saved.
        """
        size = self.number + 1
        bounds = _chain_bounds(self.number)
        counts = [(a, b, b + 1) for a, b in itertools.pairwise(bounds)]
        if not self._pays(lambda direction: counts, size):
            return None

        def trees(places: Int[Array, " windows"]) -> Trees:
            ranks = jnp.arange(size, dtype=jnp.int32)
            present = (places[None] < ranks[:, None])[:, self._window_of_row]
            chains = [self._chain(places, bounds, direction) for direction in (1, -1)]
            return Trees(present, *chains)

        at_once = max(1, (batch_size or DEFAULT) // size)
        return self._scores(trees, places[:, self.order], at_once, batch_size)

    def of_members(
        self, members: Bool[Array, "coalitions groups"], batch_size: int | None
    ) -> Float[Array, " coalitions"] | None:
        """Return the scores of coalitions; `None` if too little is saved."""
        count = members.shape[0]
        lengths = np.diff(self.edges).tolist()
        bounds = {way: _prefix_bounds(lengths[::way], count) for way in (1, -1)}

        def counts(direction: int) -> list[tuple[int, int, int]]:
            spans = list(itertools.pairwise(bounds[direction]))
            return [(a, b, 2**b if b < self.number else count) for a, b in spans]

        if not self._pays(counts, count):
            return None

        def trees(members: Bool[Array, "coalitions windows"]) -> Trees:
            both = [self._prefixes(members, bounds[direction], direction) for direction in (1, -1)]
            return Trees(members[:, self._window_of_row], *both)

        return self._scores(trees, members[None, :, self.order], 1, batch_size)[0]

    @property
    def _window_of_row(self) -> Int[np.ndarray, " rows"]:
        return np.repeat(np.arange(self.number, dtype=np.int32), np.diff(self.edges))

    def _pays(
        self, counts: Callable[[int], Sequence[tuple[int, int, int]]], coalitions: int
    ) -> bool:
        """Return whether runs along trees save enough.

        Args:
            counts: from a direction to the first window of each segment, one past the last, and its
                runs.
            coalitions: the number of coalitions.
        """

        def sizes(direction: int) -> list[tuple[int, int]]:
            spans = [(*self._rows(a, b, direction), runs) for a, b, runs in counts(direction)]
            return [(hi - lo, runs) for lo, hi, runs in spans]

        plain = self.plan.traced.flops * coalitions
        return self.plan.flops(sizes, coalitions) < (1 - LEAST_SAVED) * plain

    def _rows(self, a: int, b: int, direction: int) -> tuple[int, int]:
        """Return the rows of windows [a, b), counted in a direction."""
        first, last = (a, b) if direction == 1 else (self.number - b, self.number - a)
        return int(self.edges[first]), int(self.edges[last])

    def _segment(
        self, span: tuple[int, int], direction: int, present: Array, parents: Array
    ) -> Segment:
        """Return a segment.

        Args:
            span: its windows, counted in the direction.
            direction: 1 or -1.
            present: which of them are present in each run, in that order.
            parents: the run that each run continues.
        """
        lo, hi = self._rows(*span, direction)
        first = span[0] if direction == 1 else self.number - span[1]
        in_order = present if direction == 1 else present[:, ::-1]
        return Segment(lo, hi, in_order[:, self._window_of_row[lo:hi] - first], parents)

    def _chain(
        self, places: Int[Array, " windows"], bounds: Sequence[int], direction: int
    ) -> list[Segment]:
        """Return the tree of the nested coalitions of one permutation.

        Up to window b, run j of b + 1 has the first j of these windows in their order.
        """
        segments = []
        for a, b in itertools.pairwise(bounds):
            first = places[::direction][:b]
            # Counts instead of `argsort`: a sort takes long to compile.
            rank = (first[None] < first[:, None]).sum(1, dtype=jnp.int32)
            chosen = rank[None] < jnp.arange(b + 1, dtype=jnp.int32)[:, None]
            parents = chosen[:, :a].sum(1, dtype=jnp.int32)
            segments.append(self._segment((a, b), direction, chosen[:, a:], parents))
        return segments

    def _prefixes(
        self, members: Bool[Array, "coalitions windows"], bounds: Sequence[int], direction: int
    ) -> list[Segment]:
        """Return the tree of coalitions: a run for each possible prefix, then one for each."""
        ordered, segments = members[:, ::direction], []
        for a, b in itertools.pairwise(bounds):
            if b < self.number:
                runs = np.arange(2**b, dtype=np.int32)
                present = jnp.asarray((runs[:, None] >> np.arange(a, b)) & 1 == 1)
                parents = jnp.asarray(runs & (2**a - 1))
            else:
                present = ordered[:, a:b]
                bits = ordered[:, :a].astype(jnp.int32) << np.arange(a, dtype=np.int32)[None]
                parents = bits.sum(1, dtype=jnp.int32)
            segments.append(self._segment((a, b), direction, present, parents))
        return segments

    def _scores(
        self,
        trees: Callable[[Array], Trees],
        options: Array,
        at_once: int,
        batch_size: int | None,
    ) -> Float[Array, "options coalitions"]:
        """Return the scores of the coalitions that each of several options makes.

        Args:
            trees: from an option to its coalitions.
            options: the options.
            at_once: how many options are in flight.
            batch_size: the evaluations in flight.
        """
        traced = self.plan.traced
        (x,), (replacement,) = map(jax.tree.leaves, (self.game.x, self.game.replacement))
        of_each = max(1, (batch_size or DEFAULT) // at_once)

        def reused(constants: list[AnyArray], x: Array, absent: Array, options: Array) -> Array:
            def of_option(option: Array) -> Array:
                over_runs = functools.partial(chunked_map, batch_size=of_each)
                scores: Array = run_tree(self.plan, x, absent, trees(option), constants, over_runs)[
                    0
                ]
                return scores

            scores: Array = chunked_map(of_option, options, at_once)
            return scores

        def whole(constants: list[AnyArray], x: Array, absent: Array, options: Array) -> Array:
            def of_option(option: Array) -> Array:
                def score(present: Bool[Array, " rows"]) -> Array:
                    shape = [-1 if a == self.axis else 1 for a in range(x.ndim)]
                    mixed = jnp.where(present.reshape(shape), x, absent)
                    one: Array = traced.run(constants, mixed)[0]
                    return one

                scores: Array = chunked_map(score, trees(option).present, of_each)
                return scores

            scores: Array = chunked_map(of_option, options, at_once)
            return scores

        call = with_derivative_of(whole, reused) if opens_rules(traced.flat) else reused
        scores: Array = call(traced.constants, x, replacement, options)
        return scores.astype(wide(scores.dtype))


def scores_of_members(
    game: Game, members: Bool[Array, "coalitions groups"], batch_size: int | None, reuse: bool
) -> Float[Array, " coalitions"]:
    """Return the scores of coalitions; with `reuse` they share the states of loops if that pays."""
    windows = window_game(game) if reuse else None
    scores = None if windows is None else windows.of_members(members, batch_size)
    return game.score_of_members(members, batch_size) if scores is None else scores


def window_game(game: Game) -> WindowGame | None:
    """Return a game whose groups are windows of whole rows; `None` if they are not, or no loop."""
    for intervals in game.groups.intervals:
        begin = intervals.begin
        if len(np.unique(begin)) == game.groups.number > 1:
            windows = game_of_rows(game, intervals.axis, begin)
            if windows is not None:
                return windows
    return None


def game_of_rows(game: Game, axis: int, begin: Int[np.ndarray, " groups"]) -> WindowGame | None:
    """Return a game of windows that begin at some rows; `None` if no loop can be shared."""
    (leaf,), treedef = jax.tree.flatten(game.x)
    traced = Traced.of(lambda x: game.score_of(jax.tree.unflatten(treedef, [x])), leaf)
    plan = plan_tree(traced, axis) if is_replayable(traced.flat) else None
    if plan is None or not plan.has_loops:
        return None
    order = np.argsort(begin)
    return WindowGame(game, plan, axis, order, np.append(begin[order], leaf.shape[axis]))


def _chain_bounds(number: int) -> list[int]:
    """Return the windows at which the segments of a chain begin, and the number of windows."""
    segments = min(_SEGMENTS, number)
    return [-(-number * i // segments) for i in range(segments + 1)]


def _prefix_bounds(lengths: Sequence[int], coalitions: int) -> list[int]:
    """Return the same for any coalitions: as long as there are fewer prefixes than coalitions.

    A segment has two windows where its runs are few beside all others: a loop for each window
    would save little more, and take longer to compile.

    Args:
        lengths: the rows of each window.
        coalitions: the number of coalitions.
    """
    deep = min(len(lengths) - 1, max(0, (coalitions - 1).bit_length() - 1))
    rows = [2 ** (i + 1) * length for i, length in enumerate(lengths[:deep])]
    least = sum(rows) + coalitions * sum(lengths[deep:])
    bounds = [0]
    while bounds[-1] < deep:
        two = bounds[-1] + 1 < deep and rows[bounds[-1]] * _FEW <= least
        bounds.append(bounds[-1] + 1 + two)
    return [*bounds, len(lengths)]
