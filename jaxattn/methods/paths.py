"""Paths of integrated gradients that move one time step, or visit the words of a vocabulary."""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from jaxattn._types import Inputs, Scalar, Target, check_count
from jaxattn.engine.batch import chunked_map, chunked_sum, wide
from jaxattn.engine.perturb import is_floating
from jaxattn.engine.target import select
from jaxattn.methods.prefixes import Prefixes
from jaxattn.methods.quadrature import Line, Quadrature, path_integral

#: The path from the baseline to the input.
PathName: TypeAlias = Literal["straight", "temporal", "sequential", "discretised"]

#: Puts the floating leaves of an input in their places, beside its own or others.
Merge: TypeAlias = Callable[..., Inputs]


class StepPaths(NamedTuple):
    """A straight path for each time step, along which this step alone moves.

    Attributes:
        integrate: returns the weighted sum of the gradients at some points of all paths, for each
            leaf: by the step that moves, or by all steps, with an axis of paths before them.
        scores: the target at the end of each path.
        starts: the target at its start.
        slopes_of_moved: the part of such a sum by the step that moves.
    """

    integrate: Callable[[Quadrature], list[Array]]
    scores: Float[Array, " T"]
    starts: Float[Array, " T"]
    slopes_of_moved: Callable[[list[Array]], list[Array]]

    def convergence(self, slopes: list[Array], distances: list[Array]) -> dict[str, Array]:
        """Return how far the values of the steps that move are from the differences of the target.

        Args:
            slopes: a sum that `integrate` returned.
            distances: the input minus its baseline.
        """
        dtype = self.scores.dtype
        moved = self.slopes_of_moved(slopes)
        products = [d.astype(g.dtype) * g for d, g in zip(distances, moved, strict=True)]
        rows = [part.reshape(part.shape[0], -1).sum(1).astype(dtype) for part in products]
        difference = self.scores - self.starts
        deltas = jnp.stack(rows).sum(0) - difference
        rounding = jnp.asarray(1e4 * jnp.finfo(dtype).eps, dtype)
        scale = jnp.maximum(jnp.abs(self.scores), jnp.abs(self.starts)).sum()
        size = jnp.maximum(jnp.abs(difference).sum(), rounding * scale)
        relative = jnp.abs(deltas).sum() / jnp.where(size == 0, 1, size)
        return {"delta": deltas.sum(), "relative_delta": relative, "step_delta": deltas}


class Moving(NamedTuple):
    """The floating leaves of a series, their baselines, and how many evaluations are in flight."""

    leaves: list[Array]
    starts: list[Array]
    merge: Merge
    batch_size: int | None

    @property
    def distances(self) -> list[Array]:
        """The input minus its baseline."""
        return [leaf - first for leaf, first in zip(self.leaves, self.starts, strict=True)]

    def at(self, t: Int[Array, ""], alpha: Scalar) -> list[Array]:
        """Return the leaves, with step `t` on its way from the baseline (0) to the input (1)."""

        def moved(leaf: Array, first: Array) -> Array:
            row = first[t] + alpha.astype(leaf.dtype) * (leaf[t] - first[t])
            return leaf.at[t].set(row)

        return list(map(moved, self.leaves, self.starts))


def temporal_paths(
    prefixes: Prefixes, moving: Moving, target: Target, every_pair: bool
) -> StepPaths:
    """Return the paths of temporal integrated gradients: step t moves, the function ends with it.

    Args:
        prefixes: the function, cut after any step.
        moving: the series.
        target: what is explained at each step.
        every_pair: whether gradients are taken by all steps.
    """
    if prefixes.causal is not None:
        return _causal_paths(prefixes, moving, target, every_pair)

    def score(leaves: list[Array], t: Int[Array, ""]) -> Scalar:
        return select(prefixes.output(moving.merge(leaves), t), target)

    return step_paths(score, prefixes.every_step, moving, every_pair)


def step_paths(
    score: Callable[[list[Array], Int[Array, ""]], Scalar],
    every_step: Int[Array, " T"],
    moving: Moving,
    every_pair: bool = False,
) -> StepPaths:
    """Return a path for each time step, of which each point is an evaluation of its own.

    Args:
        score: the target from the leaves, for the path of a step.
        every_step: the time steps.
        moving: the series.
        every_pair: whether gradients are taken by all steps.
    """

    def integrate(nodes: Quadrature) -> list[Array]:
        size, number = moving.batch_size, nodes.nodes.shape[0]

        def of_step(t: Int[Array, ""]) -> list[Array]:
            def gradient(alpha: Scalar) -> list[Array]:
                slopes = jax.grad(score)(moving.at(t, alpha), t)
                return slopes if every_pair else [slope[t] for slope in slopes]

            slopes: list[Array] = path_integral(gradient, nodes, size and min(size, number))
            return slopes

        slopes: list[Array] = chunked_map(of_step, every_step, size and max(1, size // number))
        return slopes

    def scores_at(alpha: float) -> Array:
        at = jnp.asarray(alpha, moving.leaves[0].dtype)
        scores: Array = chunked_map(
            lambda t: score(moving.at(t, at), t), every_step, moving.batch_size
        )
        return scores

    return StepPaths(integrate, scores_at(1.0), scores_at(0.0), _moved(every_pair))


def _moved(every_pair: bool) -> Callable[[list[Array]], list[Array]]:
    """Return what selects the slopes by the step that moves."""
    if not every_pair:
        return lambda slopes: slopes

    def diagonal(slope: Array) -> Array:
        steps = jnp.arange(slope.shape[0])
        return slope[steps, steps]

    return lambda slopes: list(map(diagonal, slopes))


def _causal_paths(
    prefixes: Prefixes, moving: Moving, target: Target, every_pair: bool
) -> StepPaths:
    """Return the paths of a causal function: all steps move at once, each after the past of `x`."""
    steps = prefixes.causal
    assert steps is not None
    states, treedef = jax.tree.flatten(steps.states(moving.merge(moving.leaves)))
    floating = [i for i, state in enumerate(states) if is_floating(state)]

    def targets(leaves: list[Array], changed: list[Array]) -> Float[Array, " T"]:
        """Return the target of each step from its row, and the floating states before it."""
        before = dict(zip(floating, changed, strict=True))
        all_states = [before.get(i, state) for i, state in enumerate(states)]
        outputs, _ = steps.advance(moving.merge(leaves), jax.tree.unflatten(treedef, all_states))
        scores: Array = jax.vmap(lambda output: select(output, target))(outputs)
        return scores

    past = [states[i] for i in floating]
    scores, starts = targets(moving.leaves, past), targets(moving.starts, past)
    line = Line.of(
        lambda *leaves: targets(list(leaves), past).sum(), moving.starts, moving.distances
    )

    def by_moved(nodes: Quadrature) -> list[Array]:
        return line.to_input(line.integrate(nodes, moving.batch_size))

    def by_all(nodes: Quadrature) -> list[Array]:
        def gradient(alpha: Scalar) -> tuple[list[Array], list[Array]]:
            leaves = [
                first + alpha.astype(d.dtype) * d
                for first, d in zip(moving.starts, moving.distances, strict=True)
            ]
            return jax.grad(lambda *inputs: targets(*inputs).sum(), (0, 1))(leaves, past)

        by_row, by_state = path_integral(gradient, nodes, moving.batch_size)

        def past_of(leaves: list[Array]) -> list[Array]:
            found = jax.tree.leaves(steps.states(moving.merge(leaves)))
            return [found[i] for i in floating]

        _, pull = jax.vjp(past_of, moving.leaves)

        def of_step(t: Int[Array, ""]) -> list[Array]:
            """Return the slopes of step t: the past does not move, so one product suffices."""
            (slopes,) = pull([jnp.zeros_like(slope).at[t].set(slope[t]) for slope in by_state])
            return [past.at[t].add(own[t]) for past, own in zip(slopes, by_row, strict=True)]

        slopes: list[Array] = chunked_map(of_step, prefixes.every_step, moving.batch_size)
        return slopes

    return StepPaths(by_all if every_pair else by_moved, scores, starts, _moved(every_pair))


class WordPath(NamedTuple):
    """A path of several words at once through a vocabulary.

    Attributes:
        points: the embeddings, from the words to their baseline.
        words: the entries of the vocabulary that were visited.
    """

    points: Float[Array, "points T E"]
    words: Int[Array, "visited T"]


def word_path(
    x: Float[Array, "T E"],
    baseline: Float[Array, "T E"],
    vocabulary: Float[Array, "V E"],
    num_steps: int,
    num_neighbors: int,
) -> WordPath:
    """Return the path of discretised integrated gradients, of `num_steps` segments.

    Each step visits one of the nearest neighbours of the word visited last: the one closest to a
    point between the current point and the baseline in every dimension. That point is the next of
    the path. A dimension of the neighbour that is not between them takes its share of a straight
    line.

    Args:
        x: the embeddings of the words.
        baseline: the embeddings at which the path ends.
        vocabulary: the embeddings of all words.
        num_steps: the number of segments.
        num_neighbors: how many neighbours are compared.
    """

    def of_word(word: Float[Array, " E"], end: Float[Array, " E"]) -> WordPath:
        def visit(
            state: tuple[Array, Array, Array], remaining: Array
        ) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
            point, anchor, visited = state
            distances = jnp.square(vocabulary - anchor[None]).sum(-1)
            _, near = jax.lax.top_k(-jnp.where(visited, jnp.inf, distances), num_neighbors)
            candidates = vocabulary[near]
            low, high = jnp.minimum(point, end), jnp.maximum(point, end)
            between = (candidates >= low[None]) & (candidates <= high[None])
            straight = point + (end - point) / remaining
            monotone = jnp.where(between, candidates, straight[None])
            gaps = jnp.square(candidates - monotone).sum(-1)
            # Where fewer words are left than neighbours, the visited ones come last.
            best = jnp.argmin(jnp.where(visited[near], jnp.inf, gaps))
            chosen = near[best]
            state = monotone[best], vocabulary[chosen], visited.at[chosen].set(True)
            return state, (monotone[best], chosen.astype(jnp.int32))

        visited = jnp.square(vocabulary - word[None]).sum(-1) == 0  # the word itself
        remaining = jnp.arange(num_steps, 1, -1).astype(word.dtype)
        _, (points, words) = jax.lax.scan(visit, (word, word, visited), remaining)
        return WordPath(jnp.concatenate([word[None], points, end[None]]), words)

    path = jax.vmap(of_word, out_axes=1)(x, baseline)
    return WordPath(*path)


def check_vocabulary(
    vocabulary: ArrayLike | None, x: PyTree, num_neighbors: int
) -> Float[Array, "V E"]:
    """Return the vocabulary in the dtype of the words.

    Raises:
        TypeError: if it does not hold numbers, or `num_neighbors` is not an int.
        ValueError: if it is missing or has another number of features than the words, `x` is not
            one series of embeddings, or there are fewer words than neighbours.
    """
    if vocabulary is None:
        raise ValueError(
            '`vocabulary` is missing: path="discretised" visits embeddings of words, give an array '
            "of shape (words, features)."
        )
    leaves = jax.tree.leaves(x)
    if len(leaves) != 1 or leaves[0].ndim != 2 or not is_floating(leaves[0]):
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(
            '`x` must be one array of embeddings (T, features) for path="discretised", got shapes '
            f"{shapes}."
        )
    words = jnp.asarray(vocabulary)
    if words.ndim != 2 or words.shape[1] != leaves[0].shape[1]:
        raise ValueError(
            f"`vocabulary` must have shape (words, {leaves[0].shape[1]}), got {words.shape}."
        )
    if check_count("num_neighbors", num_neighbors) > words.shape[0]:
        raise ValueError(
            f"`num_neighbors` must be at most the number of words, {words.shape[0]}, got "
            f"{num_neighbors}."
        )
    return words.astype(leaves[0].dtype)


def integral_over_points(
    gradient: Callable[[Array], Array], points: Float[Array, "points T E"], batch_size: int | None
) -> Float[Array, "T E"]:
    """Integrate a gradient along straight segments by the trapezoidal rule, from the last point.

    Args:
        gradient: maps a point to the gradient.
        points: the vertices; the integral is taken from the last to the first.
        batch_size: how many gradients are in flight.
    """
    exact = points.astype(wide(points.dtype))
    steps = exact[:-1] - exact[1:]
    none = jnp.zeros_like(steps[:1])
    weights = (jnp.concatenate([steps, none]) + jnp.concatenate([none, steps])) / 2

    def term(member: tuple[Array, Array]) -> Array:
        point, weight = member
        return weight * gradient(point).astype(weight.dtype)

    total: Array = chunked_sum(term, (points, weights), batch_size)
    return total.astype(points.dtype)
