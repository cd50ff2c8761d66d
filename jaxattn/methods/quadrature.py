"""Integrals of gradients along a straight line: quadrature rules, refinement, and the line."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxattn._types import Inputs, Scalar, check_count
from jaxattn.engine.batch import chunked_sum, chunked_total, varying_as, wide
from jaxattn.engine.perturb import is_floating
from jaxattn.jaxpr.reuse.affine_prefix import AffinePrefix

QuadratureRule: TypeAlias = Literal["midpoint", "gauss_legendre"]

#: What to do about integrals along a path that do not converge.
MORE_STEPS = (
    'Increase `num_steps`, or pass num_steps="auto". Where neither helps, the target jumps on the '
    "way from the baseline: choose another `baseline`, or use deep_lift."
)
#: The points of `num_steps="auto"` that are added at a time, and the most in total.
_CHUNK = 32
_MOST = {"midpoint": 2592, "gauss_legendre": 1024}


class Quadrature(NamedTuple):
    """A quadrature rule on [0, 1]: nodes, and weights that sum to 1."""

    nodes: Float[Array, "..."]
    weights: Float[Array, "..."]

    @classmethod
    def of(cls, rule: QuadratureRule, num_steps: int) -> "Quadrature":
        """Return the rule of a name with `num_steps` nodes.

        Raises:
            ValueError: for fewer than one step or an unknown rule.
        """
        return cls(*map(jnp.asarray, _points(rule, check_count("num_steps", num_steps))))


def _points(rule: QuadratureRule, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes and weights of a quadrature rule."""
    if rule == "midpoint":
        return (np.arange(num_steps) + 0.5) / num_steps, np.full(num_steps, 1 / num_steps)
    if rule == "gauss_legendre":
        points, masses = np.polynomial.legendre.leggauss(num_steps)
        return (points + 1) / 2, masses / 2
    raise ValueError(f'`quadrature` must be "midpoint" or "gauss_legendre", got {rule!r}.')


def path_integral(
    f: Callable[[Scalar], PyTree], quadrature: Quadrature, batch_size: int | None
) -> PyTree:
    """Integrate a pytree `f(alpha)` over alpha from 0 to 1."""

    def term(one: Quadrature) -> PyTree:
        values = f(one.nodes)
        return jax.tree.map(lambda value: one.weights.astype(value.dtype) * value, values)

    return chunked_sum(term, quadrature, batch_size)


def straight_line(start: Inputs, x: Inputs) -> Callable[[Scalar], Inputs]:
    """Return the map from alpha to the point between `start` (0) and `x` (1).

    Integer leaves stay at `start`, which has the structure and the shapes of `x`.
    """

    def step(leaf: Array, first: Array) -> Array:
        return leaf - first if is_floating(leaf) else jnp.zeros_like(leaf)

    steps = jax.tree.map(step, x, start)

    def point(alpha: Scalar) -> Inputs:
        def between(first: Array, step: Array) -> Array:
            return first + alpha.astype(step.dtype) * step if is_floating(step) else first

        return jax.tree.map(between, start, steps)

    return point


def evaluations(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    """Return the number of points on the path, of the first chunk for `num_steps="auto"`."""
    num_steps = options.get("num_steps", 64)
    if isinstance(num_steps, str):
        return _CHUNK
    return check_count("num_steps", num_steps)


class _Refinement(NamedTuple):
    """The points of a quadrature with more and more of them, in chunks of one size.

    Attributes:
        points: the nodes and weights of each chunk.
        keep: the factor of the sum so far; 0 where points are not reused.
        steps: the number of points that the sum stands for after a chunk; 0 if it is incomplete.
    """

    points: Quadrature
    keep: Float[Array, " chunks"]
    steps: Int[Array, " chunks"]

    @classmethod
    def of(cls, rule: QuadratureRule) -> "_Refinement":
        """Return the points of a rule: the midpoint rule contains that of a third of its points."""
        nodes: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        keep: list[float] = []
        steps: list[int] = []
        nested = rule == "midpoint"
        number = _CHUNK
        while number <= _MOST[rule]:
            of_nodes, of_weights = _points(rule, number)
            new = np.arange(number) % 3 != 1 if nested and keep else np.ones(number, bool)
            chunks = int(new.sum()) // _CHUNK
            nodes.append(of_nodes[new].reshape(chunks, _CHUNK))
            weights.append(of_weights[new].reshape(chunks, _CHUNK))
            keep += [1 / 3 if nested and keep else 0.0, *[1.0] * (chunks - 1)]
            steps += [*[0] * (chunks - 1), number]
            number *= 3 if nested else 2
        points = Quadrature(*(jnp.asarray(np.concatenate(each)) for each in (nodes, weights)))
        return cls(points, jnp.asarray(keep), jnp.asarray(steps, jnp.int32))


class _Refined(NamedTuple):
    """The state of a refinement: the next chunk, the sum so far, its points, whether it is done."""

    chunk: Array
    total: PyTree
    steps: Array
    done: Array


def integral(
    integrate: Callable[[Quadrature], PyTree],
    converged: Callable[[PyTree], dict[str, Array]],
    rule: QuadratureRule,
    num_steps: int | Literal["auto"],
    tolerance: ArrayLike,
) -> tuple[PyTree, Array]:
    """Integrate with a number of points, or with as many as an error requires.

    Args:
        integrate: returns the weighted sum over some points.
        converged: returns the `relative_delta` of such a sum.
        rule: the quadrature.
        num_steps: the number of points, or `"auto"`.
        tolerance: the largest error for `"auto"`.

    Returns:
        the integral, and the number of points.

    Raises:
        ValueError: for another `num_steps`, an unknown rule, or a tolerance that is not positive.
    """
    if not isinstance(num_steps, str):
        nodes = Quadrature.of(rule, num_steps)
        return integrate(nodes), jnp.asarray(num_steps, jnp.int32)
    if num_steps != "auto":
        raise ValueError(f'`num_steps` must be an int or "auto", got {num_steps!r}.')
    if isinstance(tolerance, int | float) and not tolerance > 0:
        raise ValueError(f"`tolerance` must be positive, got {tolerance}.")
    _points(rule, 1)  # checks its name
    refinement = _Refinement.of(rule)

    def points(chunk: Array) -> Quadrature:
        return Quadrature(refinement.points.nodes[chunk], refinement.points.weights[chunk])

    def advance(state: _Refined) -> _Refined:
        factor, steps = refinement.keep[state.chunk], refinement.steps[state.chunk]
        part = integrate(points(state.chunk))
        total = jax.tree.map(lambda a, b: factor.astype(a.dtype) * a + b, state.total, part)
        error = converged(total)["relative_delta"]
        done = (steps > 0) & (error <= jnp.asarray(tolerance, error.dtype))
        return _Refined(state.chunk + 1, total, jnp.maximum(steps, state.steps), done)

    def goes_on(state: _Refined) -> Array:
        return ~state.done & (state.chunk < len(refinement.keep))

    shapes = jax.eval_shape(integrate, points(jnp.asarray(0)))
    total = jax.tree.map(lambda s: varying_as(s, jnp.zeros(s.shape, s.dtype)), shapes)
    like = jax.tree.leaves(shapes)[0]
    zero, no = (varying_as(like, jnp.asarray(value)) for value in (jnp.int32(0), False))
    end = jax.lax.while_loop(goes_on, advance, _Refined(zero, total, zero, no))
    return end.total, end.steps


class Line(NamedTuple):
    """The gradient of a score along a straight line, in the space where it is integrated.

    Attributes:
        along: the direction of the line in that space.
        integrate: returns the weighted sum of gradients at some points, at most a number at a time.
        to_input: maps such a sum to the gradient by the input.
    """

    along: list[Array]
    integrate: Callable[[Quadrature, int | None], list[Array]]
    to_input: Callable[[list[Array]], list[Array]]

    @classmethod
    def of(cls, score: Callable[..., Scalar], start: list[Array], distance: list[Array]) -> "Line":
        """Return the line of a score of some arrays.

        Args:
            score: a function of the arrays.
            start: where the line starts.
            distance: from there to the end of the line.
        """
        # From the baseline on nothing may vary over devices.
        prefix = AffinePrefix.of(score, distance)
        if prefix is not None:
            return _line_behind(prefix, start, distance)

        def gradient(alpha: Scalar) -> list[Array]:
            point = [f + alpha.astype(d.dtype) * d for f, d in zip(start, distance, strict=True)]
            return jax.grad(lambda leaves: score(*leaves))(point)

        return cls(distance, functools.partial(path_integral, gradient), lambda means: means)


class _Segment(NamedTuple):
    """A line in the image of an affine prefix, and an offset that is differentiated."""

    start: Array
    along: Array
    offset: Array


def _line_behind(prefix: AffinePrefix, start: list[Array], distance: list[Array]) -> Line:
    """Return the line of a function with an affine prefix.

    The prefix maps the line to a straight line, and its transpose maps the mean gradient behind it
    back to the input: neither is computed at each node.
    """
    first, push = jax.linearize(prefix.affine, *start)
    along = push(*distance)

    def total(nodes: Quadrature, valid: Bool[Array | np.ndarray, " nodes"]) -> list[Array]:
        def weighted_scores(offsets: list[Array]) -> Scalar:
            segments = [_Segment(*parts) for parts in zip(first, along, offsets, strict=True)]

            def one(alpha: Scalar, weight: Scalar) -> Scalar:
                def at(segment: _Segment) -> Array:
                    start, along, offset = segment
                    point = start + alpha.astype(start.dtype) * along
                    return (point.astype(offset.dtype) + offset).astype(start.dtype)

                value = prefix.remainder(segments, at)
                return weight.astype(value.dtype) * value

            return jax.vmap(one)(nodes.nodes, jnp.where(valid, nodes.weights, 0)).sum()

        # One gradient for all nodes: the cotangents are summed before they are propagated back.
        return jax.grad(weighted_scores)(
            [jnp.zeros(leaf.shape, wide(leaf.dtype)) for leaf in first]
        )

    def to_input(means: list[Array]) -> list[Array]:
        means = [mean.astype(leaf.dtype) for mean, leaf in zip(means, first, strict=True)]
        return list(jax.linear_transpose(push, *start)(means))

    return Line(list(along), functools.partial(chunked_total, total), to_input)
