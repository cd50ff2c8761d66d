"""Localisation: whether the largest attributions lie inside of a mask."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree, Shaped

from jaxattn._types import Attribution, check_count
from jaxattn.metrics.direction import metric
from jaxattn.metrics.rankings import ranks
from jaxattn.metrics.truth import Features, features


@metric(better="higher", low=0, high=1)
def pointing_game(
    attribution: Attribution | PyTree[ArrayLike], truth: PyTree[Shaped[ArrayLike, "..."]]
) -> Float[Array, " B"]:
    """Compute the pointing game: whether the feature of the largest value is a true one.

    Higher is better: 1 for a hit, 0 for a miss, so that the mean is a hit rate. Of equal values the
    first counts.

    Args:
        attribution: an `Attribution` of a batch, or values with a leading axis of length B. The
            features of all leaves count together. For a mask over the pixels of an image, first
            reduce the channels, with `attribution.reduce(-1)`.
        truth: the mask: booleans, or numbers 0 and 1, in the structure and shape of the values.

    Returns:
        0 or 1 for each example.

    Raises:
        ValueError: if `truth` has another shape than the values or holds other numbers, or the
            values are not finite.

    Reference:
        Zhang et al. 2018, Top-down neural attention by excitation backprop, arXiv:1608.00507.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> values = jnp.array([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]])
        >>> print(ja.metrics.pointing_game(values, jnp.array([[0, 1, 1], [0, 1, 1]])))
        [1. 0.]
    """
    values, truth = features(attribution, truth)
    best = values.argmax(1, keepdims=True)
    return jnp.take_along_axis(truth, best, 1)[:, 0].astype(values.dtype)


@metric(better="higher", low=0, high=1)
def relevance_mass(
    attribution: Attribution | PyTree[ArrayLike], truth: PyTree[Shaped[ArrayLike, "..."]]
) -> Float[Array, " B"]:
    """Compute the relevance mass accuracy: the share of the positive values on true features.

    Higher is better, from 0 to 1. Negative values count as 0. Arguments and errors are those of
    `pointing_game`.

    Returns:
        one number per example; NaN if no value is positive.

    Reference:
        Arras et al. 2022, CLEVR-XAI: a benchmark dataset for the ground truth evaluation of neural
        network explanations, arXiv:2003.07258.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> values = jnp.array([[1.0, 2.0, -3.0, 1.0]])
        >>> print(ja.metrics.relevance_mass(values, jnp.array([[0, 1, 1, 0]])))
        [0.5]
    """
    values, truth = features(attribution, truth)
    positive = jnp.maximum(values, 0)
    return jnp.sum(positive, 1, where=truth) / positive.sum(1)


@metric(better="higher", low=0, high=1)
def relevance_rank(
    attribution: Attribution | PyTree[ArrayLike], truth: PyTree[Shaped[ArrayLike, "..."]]
) -> Float[Array, " B"]:
    """Compute the relevance rank accuracy: how many of the K largest values are true features.

    K is the number of true features of the example. Higher is better, from 0 to 1; the expectation
    of a random attribution is the share of true features. Of equal values the first count.
    Arguments and errors are those of `pointing_game`.

    Returns:
        one number per example, a share of K; NaN if no feature is true.

    Reference:
        Arras et al. 2022, CLEVR-XAI: a benchmark dataset for the ground truth evaluation of neural
        network explanations, arXiv:2003.07258.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> values = jnp.array([[4.0, 3.0, 2.0, 1.0]])
        >>> print(ja.metrics.relevance_rank(values, jnp.array([[1, 0, 1, 0]])))
        [0.5]
    """
    values, truth = features(attribution, truth)
    true = truth.sum(1)
    return _hits(Features(values, truth), true) / true.astype(values.dtype)


@metric(better="higher", low=0, high=1)
def top_k_intersection(
    attribution: Attribution | PyTree[ArrayLike],
    truth: PyTree[Shaped[ArrayLike, "..."]],
    *,
    k: int,
) -> Float[Array, " B"]:
    """Compute the top-k intersection: the share of the k largest values that are true features.

    Higher is better, from 0 to 1; the largest value that can be reached is the number of true
    features divided by k. Of equal values the first count. Further arguments and errors are those
    of `pointing_game`.

    Args:
        attribution: as for `pointing_game`.
        truth: as for `pointing_game`.
        k: the number of features, at least 1 and at most all.

    Returns:
        one number per example.

    Raises:
        TypeError: if `k` is not an int.
        ValueError: if `k` is less than 1 or more than the number of features.

    Reference:
        Theiner et al. 2022, Interpretable semantic photo geolocation, arXiv:2104.14995.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> values = jnp.array([[4.0, 3.0, 2.0, 1.0]])
        >>> print(ja.metrics.top_k_intersection(values, jnp.array([[1, 0, 1, 0]]), k=2))
        [0.5]
    """
    examples = features(attribution, truth)
    batch, number = examples.values.shape
    if check_count("k", k) > number:
        raise ValueError(f"`k` must be at most the number of features, {number}, got {k}.")
    return _hits(examples, jnp.full(batch, k)) / k


@jax.jit
def _hits(examples: Features, numbers: Array) -> Float[Array, " B"]:
    """Return how many of a number of largest values are true features, for each example."""
    inside = jax.vmap(ranks)(examples.values) < numbers[:, None].astype(jnp.int32)
    return (inside & examples.truth).sum(1).astype(examples.values.dtype)
