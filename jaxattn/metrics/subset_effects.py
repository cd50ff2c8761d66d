"""Attributions against the effect of random changes of many features at once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree, Shaped

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_count
from jaxattn.engine.batch import chunked_map
from jaxattn.engine.explain import explain
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline
from jaxattn.engine.target import Score, scored
from jaxattn.metrics.direction import metric
from jaxattn.metrics.rankings import (
    correlation,
    features_of,
    flat,
    ranks,
    replaced,
    values_like,
    widened,
)


class Changes(NamedTuple):
    """Sums of attributions, and decreases of the score, for random changes of the input."""

    sums: Float[Array, "*B samples"]
    decreases: Float[Array, "*B samples"]


@metric(better="higher", low=-1, high=1)
def faithfulness_correlation(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    key: RandomKey,
    args: tuple[Any, ...] = (),
    subset_size: int | None = None,
    num_samples: int = 100,
    baseline: PyTree[ArrayLike] = 0.0,
    score: Score = "logit",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " B"]:
    """Compute the faithfulness correlation over random subsets of the features.

    Random subsets of one size are replaced. The result is Pearson's correlation over the subsets
    between the sum of the attributions of a subset and the decrease of the score. Higher is better,
    from -1 to 1. Further arguments and errors are those of `comprehensiveness`.

    Cost: `num_samples + 2` evaluations of `fn` per example. Draws subsets: `key` is required.

    Args:
        fn: as for `comprehensiveness`.
        xs: as for `comprehensiveness`.
        targets: as for `comprehensiveness`.
        attribution: as for `comprehensiveness`.
        key: a random key, such as `jax.random.key(0)`. Example i draws with `fold_in(key, i)`.
        args: as for `comprehensiveness`.
        subset_size: the number of features in each subset; by default a fifth of all, at least 1.
        num_samples: the number of subsets.
        baseline: as for `comprehensiveness`.
        score: as for `comprehensiveness`.
        batch_size: as for `comprehensiveness`.
        mesh: as for `comprehensiveness`.

    Returns:
        one number per example; NaN if the sums or the decreases are constant, as those of a
        constant attribution.

    Raises:
        TypeError: if `subset_size` or `num_samples` is not an int.
        ValueError: for a subset size below 1 or above the number of features, or fewer than two
            samples.

    Reference:
        Bhatt et al. 2020, Evaluating and aggregating feature-based model explanations,
        arXiv:2005.00631.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> xs, values = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([[1.0, 2.0, 4.0]])
        >>> metric, key = ja.metrics.faithfulness_correlation, jax.random.key(0)
        >>> print(metric(jnp.sum, xs, None, values, key=key, subset_size=2).round(3))
        [1.]
    """
    features = features_of(values_like(attribution, xs))
    size = max(1, features // 5) if subset_size is None else subset_size
    _check_sizes("subset_size", [size], features)
    found = _of_subsets(
        fn,
        xs,
        targets,
        attribution,
        args,
        key,
        [size],
        num_samples,
        baseline,
        score,
        batch_size,
        mesh,
    )
    return correlation(found.sums, found.decreases)[:, 0]


@metric(better="higher", low=-1, high=1)
def sensitivity_n(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    key: RandomKey,
    args: tuple[Any, ...] = (),
    sizes: Sequence[int] | None = None,
    num_samples: int = 100,
    baseline: PyTree[ArrayLike] = 0.0,
    score: Score = "logit",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " B"]:
    """Compute sensitivity-n, the mean faithfulness correlation over several sizes of subsets.

    For each size n, random subsets of n features are replaced; see `faithfulness_correlation`. The
    result is the mean of the correlations over the sizes. Higher is better, from -1 to 1: 1 if for
    each size the sums of attributions are a linear function of the decreases. Further arguments and
    errors are those of `comprehensiveness`.

    Cost: `len(sizes) * num_samples + 2` evaluations of `fn` per example. Draws subsets: `key` is
    required.

    Args:
        fn: as for `comprehensiveness`.
        xs: as for `comprehensiveness`.
        targets: as for `comprehensiveness`.
        attribution: as for `comprehensiveness`.
        key: a random key, such as `jax.random.key(0)`. Example i draws with `fold_in(key, i)`.
        args: as for `comprehensiveness`.
        sizes: the sizes of subsets; by default up to 10, spaced logarithmically from 1 to 0.8 times
            the number of features, and without that of all features.
        num_samples: the number of subsets of each size.
        baseline: as for `comprehensiveness`.
        score: as for `comprehensiveness`.
        batch_size: as for `comprehensiveness`.
        mesh: as for `comprehensiveness`.

    Returns:
        one number per example; NaN if the sums or the decreases of a size are constant.

    Raises:
        TypeError: if a size or `num_samples` is not an int.
        ValueError: for a size below 1 or above the number of features, no sizes, or fewer than two
            samples.

    Reference:
        Ancona et al. 2018, Towards better understanding of gradient-based attribution methods for
        deep neural networks, arXiv:1711.06104.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> xs, values = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([[1.0, 2.0, 4.0]])
        >>> metric, key = ja.metrics.sensitivity_n, jax.random.key(0)
        >>> print(metric(jnp.sum, xs, None, values, key=key, sizes=[1, 2]).round(3))
        [1.]
    """
    features = features_of(values_like(attribution, xs))
    if sizes is None:
        # All but one at most: the only subset of all features has no correlation.
        spaced = np.geomspace(1, max(1, min(0.8 * features, features - 1)), 10)
        sizes = np.unique(np.rint(spaced).astype(int)).tolist()
    _check_sizes("sizes", sizes, features)
    found = _of_subsets(
        fn,
        xs,
        targets,
        attribution,
        args,
        key,
        sizes,
        num_samples,
        baseline,
        score,
        batch_size,
        mesh,
    )
    return correlation(found.sums, found.decreases).mean(1)


def _check_sizes(name: str, sizes: Sequence[int], features: int) -> None:
    """Raise an error for sizes that are not ints between 1 and the number of features."""
    if np.ndim(sizes) != 1:
        raise TypeError(f"`{name}` must be a list of ints, got {sizes!r}.")
    if not len(sizes):
        raise ValueError(f"`{name}` must hold at least one size, got {sizes}.")
    for size in sizes:
        if check_count(name, size) > features:
            raise ValueError(
                f"`{name}` must be at most the number of features, {features}, got {size}."
            )


def _of_subsets(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    args: tuple[Any, ...],
    key: RandomKey,
    sizes: Sequence[int],
    num_samples: int,
    baseline: PyTree[ArrayLike],
    score: Score,
    batch_size: int | None,
    mesh: Mesh | None,
) -> Changes:
    """Return sums and decreases of shape (B, sizes, samples)."""
    samples = check_count("num_samples", num_samples, least=2)
    found = explain(
        _of_replacements,
        fn,
        xs,
        targets,
        args=args,
        key=key,
        batch_size=batch_size,
        mesh=mesh,
        attribution=values_like(attribution, xs),
        baseline=baseline,
        sizes=np.repeat(np.asarray(sizes, np.int32), samples),
        score=score,
    ).values
    return Changes(*(each.reshape(-1, len(sizes), samples) for each in found))


@method(
    draws=True,
    evaluations=lambda x, output, o: len(o["sizes"]) + 1,
    per_example=("baseline", "attribution"),
)
def _of_replacements(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    attribution: PyTree[Shaped[Array | np.ndarray, "..."]],
    baseline: PyTree[ArrayLike],
    sizes: Int[Array | np.ndarray, " samples"],
    score: Score,
) -> Attribution:
    """Compute the sums of attributions and the decreases for one random subset of each size."""
    if key is None:
        raise ValueError("`key` is missing: subsets are drawn, give key=jax.random.key(0).")
    values, by = flat(attribution), broadcast_baseline(baseline, x)
    score_of = scored(fn, target, args, score=score)

    def of_subset(drawn: tuple[RandomKey, Int[Array, ""]]) -> tuple[Array, Array]:
        key, size = drawn
        subset = ranks(jax.random.uniform(key, values.shape)) < size
        return jnp.sum(values, where=subset), widened(score_of(replaced(x, by, subset))[0])

    # An empty subset gives the unperturbed score: rounding differs between programs.
    every = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.asarray(sizes)])
    drawn = jax.random.split(key, len(every)), every
    sums, scores = chunked_map(of_subset, drawn, batch_size)
    return Attribution(Changes(sums[1:], scores[0] - scores[1:]), fn(x, *args))
