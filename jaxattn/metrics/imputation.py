"""Remove and debias (ROAD): features are removed by noisy linear imputation."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from jaxattn._types import Attribution, Inputs, RandomKey, Scalar, Target
from jaxattn.engine.batch import chunked_map, wide
from jaxattn.engine.explain import explain
from jaxattn.engine.method import method
from jaxattn.engine.numbers import check_number
from jaxattn.engine.perturb import floating_leaves, is_floating
from jaxattn.engine.target import Score, scored
from jaxattn.metrics.direction import metric
from jaxattn.metrics.rankings import features_of, flat, ranks, unflat, values_like, widened
from jaxattn.metrics.top_features import Fractions, top_counts


@metric(better="lower")
def road(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    key: RandomKey,
    args: tuple[Any, ...] = (),
    fraction: Fractions = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    noise: ArrayLike = 0.01,
    axes: Sequence[int] | None = None,
    score: Score = "probability",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " B"]:
    """Compute remove and debias (ROAD): the score after the top features are imputed.

    Each removed feature becomes the weighted mean of its neighbours, which may be removed as well,
    plus Gaussian noise: the shape of the removed region tells the network less than that of a
    constant replacement. Lower is better: the features with the highest attributions are needed.
    For a probability it lies between 0 and 1. Further arguments and errors are those of
    `comprehensiveness`.

    Cost: one evaluation of `fn` per fraction, and one more, per example, and one solution of a
    sparse linear system per fraction, by conjugate gradients. Draws noise: `key` is required.

    Args:
        fn: as for `comprehensiveness`.
        xs: as for `comprehensiveness`; floating-point numbers.
        targets: as for `comprehensiveness`.
        attribution: as for `comprehensiveness`.
        key: a random key, such as `jax.random.key(0)`. Example i draws with `fold_in(key, i)`.
        args: as for `comprehensiveness`.
        fraction: the fraction of the features that is removed, in (0, 1], or several. At least one
            feature stays.
        noise: the standard deviation of the noise, in units of `xs`.
        axes: the axes of an example along which features are neighbours; a diagonal neighbour in
            the plane has half the weight. By default all but the last, which holds channels; pass
            (0, 1) for an image without an axis of channels. Where a whole channel is removed, it is
            0.
        score: as for `comprehensiveness`.
        batch_size: as for `comprehensiveness`.
        mesh: as for `comprehensiveness`.

    Returns:
        the mean score over the fractions, for each example.

    Raises:
        TypeError: for integers.
        ValueError: for negative noise, a missing key, or axes that an example does not have.

    Reference:
        Rong et al. 2022, A consistent and efficient evaluation strategy for attribution methods,
        arXiv:2202.00449.

    Examples:
        The removed value 9 becomes 2, the mean of its neighbours.

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> xs = jnp.array([[1.0, 9.0, 3.0, 5.0]])
        >>> options = {"fraction": 0.25, "noise": 0.0, "score": "logit", "key": jax.random.key(0)}
        >>> print(ja.metrics.road(jnp.sum, xs, None, xs, **options).round().astype(int))
        [11]
    """
    values = values_like(attribution, xs)
    features = features_of(values)
    check_number("noise", noise)
    if axes is not None and (np.ndim(axes) != 1 or len(set(axes)) < len(axes)):
        raise ValueError(f"`axes` must be different axes of an example, got {axes!r}.")
    counts = [min(count, features - 1) for count in top_counts(fraction, features)]
    scores = explain(
        _scores_imputed,
        fn,
        xs,
        targets,
        args=args,
        key=key,
        batch_size=batch_size,
        mesh=mesh,
        ranking=values,
        counts=np.asarray(counts, np.int32),
        noise=jnp.asarray(noise),
        axes=None if axes is None else tuple(axes),
        score=score,
    ).values
    return scores.mean(1)


@method(draws=True, evaluations=lambda x, output, o: len(o["counts"]), per_example=("ranking",))
def _scores_imputed(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    ranking: PyTree[Shaped[Array | np.ndarray, "..."]],
    counts: Int[Array | np.ndarray, " fractions"],
    noise: Shaped[Array | np.ndarray, ""],
    axes: tuple[int, ...] | None,
    score: Score,
) -> Attribution:
    """Compute the scores of one example after numbers of top features are imputed."""
    if key is None:
        raise ValueError("`key` is missing: road draws noise, give key=jax.random.key(0).")
    floating_leaves(x, "imputation")
    dtypes = [str(leaf.dtype) for leaf in jax.tree.leaves(x) if not is_floating(leaf)]
    if dtypes:
        raise TypeError(
            f"`xs` must hold floating-point numbers for imputation, got {', '.join(dtypes)}."
        )
    places = ranks(flat(ranking))
    score_of = scored(fn, target, args, score=score)

    def score_without(drawn: tuple[RandomKey, Int[Array, ""]]) -> Scalar:
        key, count = drawn
        removed, treedef = jax.tree.flatten(unflat(places < count, x))
        keys = jax.random.split(key, len(removed))
        filled = [
            _imputed(
                leaf,
                mask,
                jax.random.normal(one, leaf.shape, leaf.dtype) * noise.astype(leaf.dtype),
                axes,
            )
            for leaf, mask, one in zip(jax.tree.leaves(x), removed, keys, strict=True)
        ]
        return widened(score_of(jax.tree.unflatten(treedef, filled))[0])

    drawn = jax.random.split(key, len(counts)), jnp.asarray(counts)
    return Attribution(chunked_map(score_without, drawn, batch_size), fn(x, *args))


def _imputed(
    leaf: Float[Array, "..."],
    removed: Bool[Array, "..."],
    noise: Float[Array, "..."],
    axes: tuple[int, ...] | None,
) -> Float[Array, "..."]:
    """Return an array whose removed elements are the weighted means of their neighbours."""
    along = axes if axes is not None else tuple(range(leaf.ndim - 1)) or (0,)
    if not along or not set(along) <= set(range(leaf.ndim)):
        raise ValueError(f"`axes` must be axes of an example of shape {leaf.shape}, got {axes}.")
    if leaf.size == 0:
        return leaf
    values = leaf.astype(wide(leaf.dtype))
    total = _neighbours(jnp.ones_like(values), along)

    def equations(unknown: Array) -> Array:
        """Apply the symmetric, positive definite matrix of the removed elements."""
        of_removed = total * unknown - _neighbours(jnp.where(removed, unknown, 0), along)
        return jnp.where(removed, of_removed, unknown)

    kept = jnp.where(removed, 0, values)
    known = jnp.where(removed, _neighbours(kept, along), 0)
    solution = _solved(equations, known, leaf.size)
    return jnp.where(removed, solution.astype(leaf.dtype) + noise, leaf)


class _Iterate(NamedTuple):
    """The state of the method of conjugate gradients; `error` is the squared norm of `residual`."""

    solution: Array
    residual: Array
    direction: Array
    error: Scalar
    steps: Array


def _solved(matrix: Callable[[Array], Array], known: Array, most: int) -> Array:
    """Solve linear equations of a symmetric, positive definite matrix by conjugate gradients.

    The initial state depends on `known` throughout, as a `shard_map` that tracks which values vary
    over devices requires.
    """

    def goes_on(state: _Iterate) -> Array:
        return (state.error > 1e-12 * jnp.sum(known * known)) & (state.steps < most)

    def advance(state: _Iterate) -> _Iterate:
        image = matrix(state.direction)
        step = state.error / jnp.sum(state.direction * image)
        residual = state.residual - step * image
        error = jnp.sum(residual * residual)
        direction = residual + error / state.error * state.direction
        solution = state.solution + step * state.direction
        return _Iterate(solution, residual, direction, error, state.steps + 1)

    start = _Iterate(0 * known, known, known, jnp.sum(known * known), jnp.int32(0))
    return jax.lax.while_loop(goes_on, advance, start).solution


def _neighbours(values: Float[Array, "..."], axes: Sequence[int]) -> Float[Array, "..."]:
    """Return the weighted sum of the neighbours of each element along some axes.

    An offset along m axes has the weight 1 / m.
    """
    around = jnp.pad(values, [(1, 1) if a in axes else (0, 0) for a in range(values.ndim)])
    total = jnp.zeros_like(values)
    for offset in itertools.product((0, 1, 2), repeat=len(axes)):
        distance = sum(o != 1 for o in offset)
        if distance:
            part = around
            for axis, start in zip(axes, offset, strict=True):
                part = jax.lax.slice_in_dim(part, start, start + values.shape[axis], axis=axis)
            total += part / distance
    return total
