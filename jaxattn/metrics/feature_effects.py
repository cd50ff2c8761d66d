"""Attributions against the effect of each single feature on the score."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Scalar, Target, check_count
from jaxattn.engine.batch import chunked_map
from jaxattn.engine.explain import explain
from jaxattn.engine.method import method
from jaxattn.engine.numbers import check_number
from jaxattn.engine.perturb import broadcast_baseline, is_floating
from jaxattn.engine.target import Score, scored
from jaxattn.metrics.direction import metric
from jaxattn.metrics.rankings import (
    correlation,
    flat,
    mean_ranks,
    replaced,
    values_like,
    widened,
)


@metric(better="higher", low=-1, high=1)
def faithfulness_estimate(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    args: tuple[Any, ...] = (),
    baseline: PyTree[ArrayLike] = 0.0,
    score: Score = "logit",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " B"]:
    """Compute the faithfulness estimate: the correlation of attributions with effects.

    Each feature is replaced alone. The result is Pearson's correlation over the features between
    the attribution and the decrease of the score. Higher is better, from -1 to 1. Further arguments
    and errors are those of `comprehensiveness`.

    Cost: n + 2 evaluations of `fn` per example of n features. Deterministic.

    Args:
        fn: as for `comprehensiveness`.
        xs: as for `comprehensiveness`.
        targets: as for `comprehensiveness`.
        attribution: as for `comprehensiveness`.
        args: as for `comprehensiveness`.
        baseline: as for `comprehensiveness`.
        score: as for `comprehensiveness`.
        batch_size: as for `comprehensiveness`.
        mesh: as for `comprehensiveness`.

    Returns:
        one number per example; NaN if the attribution or the effects are constant.

    Reference:
        Alvarez-Melis and Jaakkola 2018, Towards robust interpretability with self-explaining neural
        networks, arXiv:1806.07538.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> xs, values = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([[3.0, 2.0, 0.0]])
        >>> print(ja.metrics.faithfulness_estimate(jnp.sum, xs, None, values).round(3))
        [-1.]
    """
    values = values_like(attribution, xs)
    effects = explain(
        _effects,
        fn,
        xs,
        targets,
        args=args,
        batch_size=batch_size,
        mesh=mesh,
        baseline=baseline,
        score=score,
    ).values
    return correlation(jax.vmap(flat)(values), effects[:, 0])


@metric(better="higher", low=-1, high=1)
def monotonicity_correlation(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    key: RandomKey,
    args: tuple[Any, ...] = (),
    num_samples: int = 10,
    score: Score = "logit",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " B"]:
    """Compute the monotonicity correlation: whether larger attributions belong to larger effects.

    Each feature is replaced alone, by uniform draws between the lowest and the highest feature of
    its array; if all are equal to v, between v - m and v + m for m = max(|v|, 1). The result is
    Spearman's rank correlation over the features between the magnitude of
    the attribution and the mean squared change of the score. Higher is better, from -1 to 1.
    Further arguments and errors are those of `comprehensiveness`.

    Cost: `n * num_samples + 2` evaluations of `fn` per example of n features. Draws: `key` is
    required.

    Args:
        fn: as for `comprehensiveness`.
        xs: as for `comprehensiveness`.
        targets: as for `comprehensiveness`.
        attribution: as for `comprehensiveness`.
        key: a random key, such as `jax.random.key(0)`. Example i draws with `fold_in(key, i)`.
        args: as for `comprehensiveness`.
        num_samples: the number of replacements of each feature.
        score: as for `comprehensiveness`.
        batch_size: as for `comprehensiveness`.
        mesh: as for `comprehensiveness`.

    Returns:
        one number per example; NaN if the magnitudes or the effects are constant.

    Raises:
        TypeError: if `num_samples` is not an int, or for integer inputs.
        ValueError: for fewer than one sample.

    Reference:
        Nguyen and Martinez 2020, On quantitative aspects of model interpretability,
        arXiv:2007.07584.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] + 3 * x[1] + 9 * x[2]
        >>> xs, values = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([[1.0, -2.0, 4.0]])
        >>> metric, key = ja.metrics.monotonicity_correlation, jax.random.key(0)
        >>> print(metric(fn, xs, None, values, key=key).round(3))
        [1.]
    """
    values = jax.vmap(flat)(values_like(attribution, xs))
    options: dict[str, Any] = {"num_samples": check_count("num_samples", num_samples)}
    options |= {"score": score}
    options |= {"args": args, "key": key, "batch_size": batch_size, "mesh": mesh}
    effects = explain(_effects, fn, xs, targets, **options).values
    rank = jax.vmap(mean_ranks)
    return correlation(rank(jnp.abs(values)), rank(jnp.square(effects).mean(1)))


@metric(better="lower", low=0)
def non_sensitivity(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    key: RandomKey,
    args: tuple[Any, ...] = (),
    num_samples: int = 10,
    tolerance: ArrayLike = 1e-5,
    score: Score = "logit",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " B"]:
    """Compute non-sensitivity: how many features have an attribution but no effect, or the reverse.

    Each feature is replaced alone, by uniform draws between the lowest and the highest feature of
    its array; if all are equal to v, between v - m and v + m for m = max(|v|, 1). It has no
    effect if no draw changes the score. Lower is better: 0 if exactly the features without an
    effect have an attribution of zero, and at most the number of features. Further arguments and
    errors are those of `comprehensiveness`.

    Cost: `n * num_samples + 2` evaluations of `fn` per example of n features. Draws: `key` is
    required.

    Args:
        fn: as for `comprehensiveness`.
        xs: as for `comprehensiveness`.
        targets: as for `comprehensiveness`.
        attribution: as for `comprehensiveness`.
        key: a random key, such as `jax.random.key(0)`. Example i draws with `fold_in(key, i)`.
        args: as for `comprehensiveness`.
        num_samples: the number of replacements of each feature.
        tolerance: the largest magnitude of an attribution, and the largest change of the score,
            that counts as zero.
        score: as for `comprehensiveness`.
        batch_size: as for `comprehensiveness`.
        mesh: as for `comprehensiveness`.

    Returns:
        the number of features for each example.

    Raises:
        TypeError: if `num_samples` is not an int, or for integer inputs.
        ValueError: for fewer than one sample or a negative tolerance.

    Reference:
        Nguyen and Martinez 2020, On quantitative aspects of model interpretability,
        arXiv:2007.07584.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] + 3 * x[1]
        >>> xs, values = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([[1.0, 0.0, 1.0]])
        >>> print(ja.metrics.non_sensitivity(fn, xs, None, values, key=jax.random.key(0)))
        [2.]
    """
    values = jax.vmap(flat)(values_like(attribution, xs))
    check_number("tolerance", tolerance)
    options: dict[str, Any] = {"num_samples": check_count("num_samples", num_samples)}
    options |= {"score": score}
    options |= {"args": args, "key": key, "batch_size": batch_size, "mesh": mesh}
    effects = explain(_effects, fn, xs, targets, **options).values
    no_effect = (jnp.abs(effects) <= jnp.asarray(tolerance, effects.dtype)).all(1)
    no_value = jnp.abs(values) <= jnp.asarray(tolerance, values.dtype)
    return (no_effect != no_value).sum(1).astype(values.dtype)


@method(
    draws=True,
    evaluations=lambda x, output, o: (
        sum(leaf.size for leaf in jax.tree.leaves(x)) * o.get("num_samples", 1) + 1
    ),
)
def _effects(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    baseline: PyTree[ArrayLike] | None = None,
    num_samples: int = 1,
    score: Score,
) -> Attribution:
    """Compute the decrease of the score for each replacement of each feature.

    The values have the shape (samples, features). Without a baseline, replacements are drawn.
    """
    if baseline is None and key is None:
        raise ValueError("`key` is missing: features are drawn, give key=jax.random.key(0).")
    features = sum(leaf.size for leaf in jax.tree.leaves(x))
    score_of = scored(fn, target, args, score=score)
    numbers = jnp.arange(features, dtype=jnp.int32)

    def replacement(sample: Int[Array, ""]) -> Inputs:
        if baseline is not None:
            return broadcast_baseline(baseline, x)
        assert key is not None
        return _drawn(jax.random.fold_in(key, sample), x)

    def score_with(number: Int[Array, ""]) -> Scalar:
        """Return the score with one feature replaced; -1 replaces none."""
        sample, feature = number // features, jnp.where(number < 0, -1, number % features)
        return widened(score_of(replaced(x, replacement(sample), numbers == feature))[0])

    # The unperturbed score is from the same program: rounding differs between programs.
    every = jnp.arange(-1, features * num_samples, dtype=jnp.int32)
    scores = chunked_map(score_with, every, batch_size)
    effects = (scores[0] - scores[1:]).reshape(num_samples, features)
    return Attribution(effects, fn(x, *args))


def _drawn(key: RandomKey, x: Inputs) -> Inputs:
    """Draw features uniformly between the lowest and the highest of each array.

    Equal features are drawn from a range around them, since no draw would change them otherwise.
    """
    leaves, treedef = jax.tree.flatten(x)

    def draw(key: RandomKey, leaf: Array) -> Array:
        if not is_floating(leaf):
            raise TypeError(
                f"`xs` must hold floating-point numbers to draw them, got {leaf.dtype}."
            )
        if leaf.size == 0:
            return leaf
        low, high = leaf.min(), leaf.max()
        reach = jnp.where(high > low, 0, jnp.maximum(jnp.abs(low), 1))
        low, high = low - reach, high + reach
        return low + (high - low) * jax.random.uniform(key, leaf.shape, leaf.dtype)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(treedef, list(map(draw, keys, leaves)))
