"""Attributions against the true features: areas under curves, information and entropy."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from jaxattn._static import is_concrete
from jaxattn._types import Attribution, check_bool
from jaxattn.metrics.direction import metric
from jaxattn.metrics.rankings import flat, values_of

#: Added to the arguments of logarithms, so that the values 0 and 1 are finite.
_EPSILON = 1e-5


class Features(NamedTuple):
    """The features of one example or of several: their values, and which of them are true."""

    values: Float[Array, "*B n"]
    truth: Bool[Array, "*B n"]


def features(
    attribution: Attribution | PyTree[ArrayLike], truth: PyTree[Shaped[ArrayLike, "..."]]
) -> Features:
    """Return the features of each example over all leaves.

    Raises:
        ValueError: if the truth has another shape than the attribution, holds other numbers than 0
            and 1, or the attribution is not finite.
    """
    values = values_of(attribution)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (truth, values)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"`truth` must have the shape of the attribution, {shapes[1]}, got {shapes[0]}."
        )
    marks = jax.vmap(flat)(jax.tree.map(jnp.asarray, truth))
    if is_concrete(marks):
        wrong = marks[(marks != 0) & (marks != 1)]
        if wrong.size:
            raise ValueError(
                f"`truth` must hold booleans, or the numbers 0 and 1, got {float(wrong[0]):g}."
            )
    return Features(jax.vmap(flat)(values), marks == 1)


def _measured(
    examples: Features,
    measure: Callable[[Features], Array],
    pooled: bool,
    *,
    of_order: bool = False,
) -> Float[Array, "*B"]:
    """Apply a measure to the normalised features of each example, or of all examples together.

    A measure of the order of the features does not need the normalisation of a single example,
    which may round different values to equal ones.
    """
    check_bool("pooled", pooled)
    normalise = pooled or not of_order
    return _compiled(examples, measure=measure, pooled=pooled, normalise=normalise)


@functools.partial(jax.jit, static_argnames=("measure", "pooled", "normalise"))
def _compiled(
    examples: Features, *, measure: Callable[[Features], Array], pooled: bool, normalise: bool
) -> Float[Array, "*B"]:
    if not normalise:
        return jax.vmap(measure)(examples)
    values, truth = examples
    low = values.min(1, keepdims=True)
    extent = values.max(1, keepdims=True) - low
    # A constant attribution has no order: all of its features are 0.
    normalised = jnp.where(extent > 0, (values - low) / jnp.where(extent > 0, extent, 1), 0)
    if pooled:
        return measure(Features(normalised.ravel(), truth.ravel()))
    return jax.vmap(measure)(Features(normalised, truth))


class _Thresholds(NamedTuple):
    """Shares of features, with each feature's value as a threshold, in ascending order.

    Attributes:
        values: the thresholds.
        truth: which of the features are true.
        precision: the share of true features among those of at least the threshold.
        recall: the share of the true features that are at least the threshold; NaN without any.
        negatives_below: the share of the false features that are below the threshold, where those
            of equal value count half; NaN without any.
    """

    values: Float[Array, " n"]
    truth: Bool[Array, " n"]
    precision: Float[Array, " n"]
    recall: Float[Array, " n"]
    negatives_below: Float[Array, " n"]

    @classmethod
    def of(cls, example: Features) -> "_Thresholds":
        """Count the features of one example."""
        order = jnp.argsort(example.values)
        values, truth = example.values[order], example.truth[order]
        below, up_to = (jnp.searchsorted(values, values, side=side) for side in ("left", "right"))
        counts = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(truth, dtype=jnp.int32)])
        true_below, true_up_to, true = counts[below], counts[up_to], counts[-1]

        def share(count: Array, of: Array | int) -> Array:
            return count.astype(values.dtype) / jnp.asarray(of).astype(values.dtype)

        false = values.size - true
        return cls(
            values,
            truth,
            precision=share(true - true_below, values.size - below),
            recall=share(true - true_below, true),
            negatives_below=(share(below - true_below, false) + share(up_to - true_up_to, false))
            / 2,
        )

    def area(self, curve: Float[Array, " n"]) -> Float[Array, ""]:
        """Return the area under a curve over the thresholds; NaN if there is only one."""
        area = jnp.trapezoid(curve, self.values)
        return jnp.where(self.values[-1] > self.values[0], area, jnp.nan)

    def mean_of_true(self, shares: Float[Array, " n"]) -> Float[Array, ""]:
        """Return the mean over the true features; NaN without any."""
        return jnp.mean(shares, where=self.truth)


def _area_under_precision(example: Features) -> Float[Array, ""]:
    found = _Thresholds.of(example)
    return found.area(found.precision)


def _area_under_recall(example: Features) -> Float[Array, ""]:
    found = _Thresholds.of(example)
    return found.area(found.recall)


def _area_under_roc(example: Features) -> Float[Array, ""]:
    found = _Thresholds.of(example)
    return found.mean_of_true(found.negatives_below)


def _average_precision(example: Features) -> Float[Array, ""]:
    found = _Thresholds.of(example)
    return found.mean_of_true(found.precision)


def _bits(share: Float[Array, " n"]) -> Float[Array, " n"]:
    # XLA would add the two constants of 1 - v + 1e-5 first, which rounds; a maximum separates them.
    return jnp.abs(jnp.log2(jnp.maximum(share, 0) + _EPSILON))


def _information(example: Features) -> Float[Array, ""]:
    return jnp.sum(_bits(1 - example.values), where=example.truth)


def _entropy(example: Features) -> Float[Array, ""]:
    values = example.values
    terms = values * _bits(values) + (1 - values) * _bits(1 - values)
    return jnp.sum(terms, where=example.truth)


@metric(better="higher", low=0, high=1)
def aup(
    attribution: Attribution | PyTree[ArrayLike],
    truth: PyTree[Shaped[ArrayLike, "..."]],
    *,
    pooled: bool = False,
) -> Float[Array, "*B"]:
    """Compute the area under precision (AUP): precision as a function of the threshold.

    The attribution of each example is normalised to [0, 1] by its minimum and maximum; a constant
    one becomes zeros. The precision at a threshold is the share of true features among those of at
    least this value. The area is computed by the trapezoidal rule between the values that occur.
    Higher is better, from 0 to 1. Values of 1 on the true features and 0 elsewhere reach the mean
    of 1 and the share of true features.

    Args:
        attribution: an `Attribution` of a batch, or values with a leading axis of length B. The
            features of all leaves count together.
        truth: which features are true: booleans, or numbers 0 and 1, in the structure and shape of
            the values.
        pooled: whether the normalised features of all examples are measured together.

    Returns:
        one number per example, or a single one if `pooled`; NaN for a constant attribution, which
        has only one threshold, and 0 if no feature is true.

    Raises:
        ValueError: if `truth` has another shape than the values or holds other numbers, or the
            values are not finite.

    Reference:
        Crabbé and van der Schaar 2021, Explaining time series predictions with dynamic masks,
        arXiv:2106.05303.

    Examples:
        Precision is 1/2 at the threshold 0, 2/3 at 0.5 and 1 at 1.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> values = jnp.array([[0.0, 0.0, 1.0, 2.0]])
        >>> print(ja.metrics.aup(values, jnp.array([[False, True, False, True]])))
        [0.625]
    """
    return _measured(features(attribution, truth), _area_under_precision, pooled)


@metric(better="higher", low=0, high=1)
def aur(
    attribution: Attribution | PyTree[ArrayLike],
    truth: PyTree[Shaped[ArrayLike, "..."]],
    *,
    pooled: bool = False,
) -> Float[Array, "*B"]:
    """Compute the area under recall (AUR): recall as a function of the threshold.

    The recall at a threshold is the share of the true features that have at least this value.
    Higher is better, from 0 to 1: 1 if all true features have the largest value. Normalisation,
    arguments and errors are those of `aup`.

    Returns:
        one number per example, or a single one if `pooled`; NaN for a constant attribution, or if
        no feature is true.

    Reference:
        Crabbé and van der Schaar 2021, Explaining time series predictions with dynamic masks,
        arXiv:2106.05303.

    Examples:
        Recall is 1 at the threshold 0, and 1/2 at 0.5 and 1.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> values = jnp.array([[0.0, 0.0, 1.0, 2.0]])
        >>> print(ja.metrics.aur(values, jnp.array([[False, True, False, True]])))
        [0.625]
    """
    return _measured(features(attribution, truth), _area_under_recall, pooled)


@metric(better="higher", low=0, high=1)
def auroc(
    attribution: Attribution | PyTree[ArrayLike],
    truth: PyTree[Shaped[ArrayLike, "..."]],
    *,
    pooled: bool = False,
) -> Float[Array, "*B"]:
    """Compute the area under the receiver operating characteristic (AUROC).

    It is the probability that a true feature has a higher value than a false one, where equal
    values count half. Higher is better, from 0 to 1; a random or constant attribution has 0.5. With
    a mask of an object as `truth` it measures localisation. Values are normalised only if `pooled`;
    arguments and errors are those of `aup`.

    Returns:
        one number per example, or a single one if `pooled`; NaN if all or no features are true.

    Reference:
        Fawcett 2006, An introduction to ROC analysis.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> values = jnp.array([[0.0, 0.0, 1.0, 2.0]])
        >>> print(ja.metrics.auroc(values, jnp.array([[False, True, False, True]])))
        [0.625]
    """
    return _measured(features(attribution, truth), _area_under_roc, pooled, of_order=True)


@metric(better="higher", low=0, high=1)
def auprc(
    attribution: Attribution | PyTree[ArrayLike],
    truth: PyTree[Shaped[ArrayLike, "..."]],
    *,
    pooled: bool = False,
) -> Float[Array, "*B"]:
    """Compute the area under the precision-recall curve (AUPRC), the average precision.

    It is the mean, over the true features, of the precision with the feature's value as threshold.
    Higher is better, from 0 to 1; the expectation of a random attribution is about the share of
    true features. Values are normalised only if `pooled`; arguments and errors are those of `aup`.

    Returns:
        one number per example, or a single one if `pooled`; NaN if no feature is true.

    Reference:
        Davis and Goadrich 2006, The relationship between precision-recall and ROC curves.

    Examples:
        The precision is 1 for the true feature of value 2, and 1/2 for that of value 0.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> values = jnp.array([[0.0, 0.0, 1.0, 2.0]])
        >>> print(ja.metrics.auprc(values, jnp.array([[False, True, False, True]])))
        [0.75]
    """
    return _measured(features(attribution, truth), _average_precision, pooled, of_order=True)


@metric(better="higher", low=0)
def information(
    attribution: Attribution | PyTree[ArrayLike],
    truth: PyTree[Shaped[ArrayLike, "..."]],
    *,
    pooled: bool = False,
) -> Float[Array, "*B"]:
    """Compute the information of an attribution about the true features.

    It is the sum over the true features of |log2(1 - v + 1e-5)|, where v is the normalised value.
    Higher is better, from 0 to 16.6 per true feature. Normalisation, arguments and errors are those
    of `aup`.

    Returns:
        one number per example, or the sum over all examples if `pooled`, in bits; about 0 for a
        constant attribution, and 0 if no feature is true.

    Reference:
        Crabbé and van der Schaar 2021, Explaining time series predictions with dynamic masks,
        arXiv:2106.05303.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> values = jnp.array([[0.0, 0.5, 1.0]])
        >>> print(ja.metrics.information(values, jnp.array([[False, True, False]])).round(3))
        [1.]
    """
    return _measured(features(attribution, truth), _information, pooled)


@metric(better="lower", low=0)
def entropy(
    attribution: Attribution | PyTree[ArrayLike],
    truth: PyTree[Shaped[ArrayLike, "..."]],
    *,
    pooled: bool = False,
) -> Float[Array, "*B"]:
    """Compute the entropy of an attribution on the true features.

    It is the sum over the true features of v |log2(v + 1e-5)| + (1 - v) |log2(1 - v + 1e-5)|, where
    v is the normalised value. Lower is better, from 0 to 1 per true feature: the values of the true
    features are close to 0 or 1. It does not tell which of the two. Normalisation, arguments and
    errors are those of `aup`.

    Returns:
        one number per example, or the sum over all examples if `pooled`, in bits; about 0 for a
        constant attribution, and 0 if no feature is true.

    Reference:
        Crabbé and van der Schaar 2021, Explaining time series predictions with dynamic masks,
        arXiv:2106.05303.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> values = jnp.array([[0.0, 0.5, 1.0]])
        >>> print(ja.metrics.entropy(values, jnp.array([[False, True, False]])).round(3))
        [1.]
    """
    return _measured(features(attribution, truth), _entropy, pooled)
