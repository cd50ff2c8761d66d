"""Scores while features or regions are replaced one after the other, as one number."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxattn._types import Attribution, Inputs, Target, check_count
from jaxattn.engine.explain import explain
from jaxattn.engine.perturb import sliding_windows
from jaxattn.engine.target import Score
from jaxattn.metrics.direction import metric
from jaxattn.metrics.rankings import features_of, flat, values_like
from jaxattn.metrics.replacements import channel_mean
from jaxattn.metrics.score_curves import Curve, WholeGroups, scores_after, whole_groups


@metric(better="lower")
def pixel_flipping(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    args: tuple[Any, ...] = (),
    baseline: PyTree[ArrayLike] = 0.0,
    features_per_step: int = 1,
    score: Score = "probability",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Curve:
    """Compute the curve of pixel flipping: the score while features are replaced one by one.

    Features are replaced from the highest attribution to the lowest, as in `deletion`, which
    divides them into a number of steps instead. Lower areas are better: the features with the
    highest attributions are those that the network needs. For a probability the area lies between 0
    and 1. Further arguments and errors are those of `deletion`.

    Cost: `ceil(n / features_per_step) + 2` evaluations of `fn` per example of n features.
    Deterministic.

    Args:
        fn: as for `deletion`.
        xs: as for `deletion`.
        targets: as for `deletion`.
        attribution: as for `deletion`.
        args: as for `deletion`.
        baseline: as for `deletion`.
        features_per_step: how many features are replaced in each step; the last has the rest.
        score: as for `deletion`.
        batch_size: as for `deletion`.
        mesh: as for `deletion`.

    Returns:
        a `Curve`.

    Reference:
        Bach et al. 2015, On pixel-wise explanations for non-linear classifier decisions by
        layer-wise relevance propagation.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> xs, values = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([[0.0, 1.0, 2.0]])
        >>> print(ja.metrics.pixel_flipping(jnp.sum, xs, None, values, score="logit").scores)
        [[7. 3. 1. 0.]]
    """
    size = check_count("features_per_step", features_per_step)
    values = values_like(attribution, xs)
    features = features_of(values)
    counts = np.minimum(np.arange(0, features + size, size), features)
    scores = explain(
        scores_after,
        fn,
        xs,
        targets,
        args=args,
        batch_size=batch_size,
        mesh=mesh,
        ranking=values,
        baseline=baseline,
        counts=counts,
        score=score,
        insert=False,
    ).values
    fractions = counts / features
    auc = jnp.trapezoid(scores, jnp.asarray(fractions, scores.dtype)[None], axis=1)
    return Curve(scores, fractions, auc)


@metric(better="higher")
def region_perturbation(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    window: int | Sequence[int],
    args: tuple[Any, ...] = (),
    baseline: PyTree[ArrayLike] = 0.0,
    num_steps: int | None = None,
    score: Score = "probability",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " B"]:
    """Compute the area over the perturbation curve (AOPC) of regions, most relevant first (MoRF).

    The input is divided into windows, which are replaced one after the other, from the highest sum
    of attributions on. The result is the mean decrease of the score over all steps, the first of
    which has no window replaced. Higher is better: the regions with the highest attributions are
    needed. For a probability it lies between -1 and 1. Further arguments and errors are those of
    `comprehensiveness`.

    Cost: `num_steps + 2` evaluations of `fn` per example. Deterministic.

    Args:
        fn: as for `comprehensiveness`.
        xs: as for `comprehensiveness`.
        targets: as for `comprehensiveness`.
        attribution: as for `comprehensiveness`.
        window: the size of the windows along each axis, as for `jaxattn.occlusion`: `window=8` has
            8 time steps with all channels, `window=(4, 4)` is a square of an image. The last along
            an axis has the rest.
        args: as for `comprehensiveness`.
        baseline: as for `comprehensiveness`. The authors use noise, `uniform_noise(xs, key)`.
        num_steps: how many windows are replaced; by default all.
        score: as for `comprehensiveness`.
        batch_size: as for `comprehensiveness`.
        mesh: as for `comprehensiveness`.

    Returns:
        one number per example, in units of the score.

    Raises:
        TypeError: for a window that does not hold ints.
        ValueError: for a window that does not fit `xs` or covers all of it, or fewer than one step.

    Reference:
        Samek et al. 2017, Evaluating the visualization of what a deep neural network has learned,
        arXiv:1509.06321.

    Examples:
        The windows are replaced in the order of their sums: the scores are 12, 3 and 0.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> xs = jnp.array([[1.0, 2.0, 3.0, 6.0]])
        >>> found = ja.metrics.region_perturbation(jnp.sum, xs, None, xs, window=2, score="logit")
        >>> print(found)
        [7.]
    """
    grouping = _window_groups(xs, window)
    steps = grouping.number if num_steps is None else check_count("num_steps", num_steps)
    scores = explain(
        scores_after,
        fn,
        xs,
        targets,
        args=args,
        batch_size=batch_size,
        mesh=mesh,
        ranking=values_like(attribution, xs),
        baseline=baseline,
        counts=np.arange(min(steps, grouping.number) + 1),
        score=score,
        insert=False,
        groups=grouping.ids,
        num_groups=grouping.number,
        of_group="sum",
    ).values
    return (scores[:, :1] - scores).mean(1)


@metric(better="higher", high=1)
def irof(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    groups: PyTree[ArrayLike],
    args: tuple[Any, ...] = (),
    baseline: PyTree[ArrayLike] | None = None,
    score: Score = "probability",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " B"]:
    """Compute iterative removal of features (IROF): the area over the curve of segments.

    Segments are replaced one after the other, from the highest mean attribution on. The curve is
    the score divided by that of the input; the result is 1 minus the area under it, where the
    fraction of segments runs from 0 to 1. Higher is better, at most 1 if the score is positive.
    Further arguments and errors are those of `comprehensiveness`.

    Cost: one evaluation of `fn` per group, and two more, per example. Deterministic.

    Args:
        fn: as for `comprehensiveness`.
        xs: as for `comprehensiveness`.
        targets: as for `comprehensiveness`.
        attribution: as for `comprehensiveness`.
        groups: the segments: integers that broadcast to an example, with a leading axis of length B
            if they differ between examples, or a pytree of these. Features of equal numbers form a
            segment. An example need not have all of them.
        args: as for `comprehensiveness`.
        baseline: as for `comprehensiveness`; by default `channel_mean(xs)`.
        score: as for `comprehensiveness`.
        batch_size: as for `comprehensiveness`.
        mesh: as for `comprehensiveness`.

    Returns:
        one number per example.

    Raises:
        TypeError: for groups that are not integers.
        ValueError: for groups that do not fit `xs`, or a single group.

    Reference:
        Rieger and Hansen 2020, IROF: a low resource evaluation metric for explanation methods,
        arXiv:2003.08747.

    Examples:
        The scores relative to the first are 1, 0.3 and 0.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> xs, groups = jnp.array([[1.0, 2.0, 3.0, 4.0]]), jnp.array([0, 0, 1, 1])
        >>> options = {"baseline": 0.0, "score": "logit"}
        >>> print(ja.metrics.irof(jnp.sum, xs, None, xs, groups=groups, **options))
        [0.6]
    """
    grouping = whole_groups(groups, xs)
    found = explain(
        scores_after,
        fn,
        xs,
        targets,
        args=args,
        batch_size=batch_size,
        mesh=mesh,
        ranking=values_like(attribution, xs),
        baseline=channel_mean(xs) if baseline is None else baseline,
        counts=np.arange(grouping.number + 1),
        score=score,
        insert=False,
        groups=grouping.ids,
        num_groups=grouping.number,
        of_group="mean",
    )
    # An example that does not have all groups has the end of its curve repeated, of no width.
    scores, number = found.values, found.info["groups"][:, None]
    steps = jnp.arange(grouping.number + 1, dtype=number.dtype)[None]
    fractions = jnp.minimum(steps, number).astype(scores.dtype) / number.astype(scores.dtype)
    return 1 - jnp.trapezoid(scores / scores[:, :1], fractions, axis=1)


@metric(better="higher", low=0, high=1)
def monotonicity(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    args: tuple[Any, ...] = (),
    baseline: PyTree[ArrayLike] = 0.0,
    features_per_step: int = 1,
    score: Score = "probability",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " B"]:
    """Compute monotonicity: whether the score never falls while features are added.

    Beginning with the baseline, features get their values back in the order from the lowest
    attribution to the highest. Higher is better: 1 if no step lowers the score, and 0 otherwise.
    Further arguments and errors are those of `pixel_flipping`.

    Cost: `ceil(n / features_per_step) + 2` evaluations of `fn` per example of n features.
    Deterministic.

    Returns:
        0 or 1 for each example.

    Reference:
        Arya et al. 2019, One explanation does not fit all: a toolkit and taxonomy of AI
        explainability techniques, arXiv:1909.03012.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> xs = jnp.array([[1.0, 2.0, 3.0], [1.0, -2.0, 3.0]])
        >>> print(ja.metrics.monotonicity(jnp.sum, xs, None, xs, score="logit"))
        [1. 0.]
    """
    # The deletion of the features with the baseline as the input: the lowest values come first.
    reverse = jax.tree.map(
        lambda leaf: -flat(jnp.asarray(leaf)).reshape(jnp.shape(leaf)), values_like(attribution, xs)
    )
    size = check_count("features_per_step", features_per_step)
    features = features_of(reverse)
    scores = explain(
        scores_after,
        fn,
        xs,
        targets,
        args=args,
        batch_size=batch_size,
        mesh=mesh,
        ranking=reverse,
        baseline=baseline,
        counts=np.minimum(np.arange(0, features + size, size), features),
        score=score,
        insert=True,
    ).values
    return (jnp.diff(scores, axis=1) >= 0).all(1).astype(scores.dtype)


def _window_groups(xs: Inputs, window: int | Sequence[int]) -> WholeGroups:
    """Return the windows that divide each leaf, as groups."""
    leaves, treedef = jax.tree.flatten(xs)
    ids: list[np.ndarray] = []
    number = 0
    for leaf in leaves:
        windows = sliding_windows(jnp.shape(leaf)[1:], window, None)
        places = [
            np.arange(size) // width
            for size, width in zip(windows.shape, windows.window, strict=True)
        ]
        counts = [int(place[-1]) + 1 for place in places]
        ids.append(np.ravel_multi_index(np.ix_(*places), counts) + number)
        number += math.prod(counts)
    if number < 2:
        raise ValueError(f"`window` must not cover all of xs, got {window!r}.")
    return whole_groups(jax.tree.unflatten(treedef, ids), xs)
