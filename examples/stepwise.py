"""Attributions of the time steps of a series, and the network's attention."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from scipy.stats import spearmanr

import jaxattn as ja
from examples.series import Series

FRACTIONS = np.linspace(0, 1, 11)  # fractions of deleted time steps


class Explained(NamedTuple):
    """Predictions for series, and attributions of their time steps.

    Attributes:
        network: the explained network.
        probabilities: the class probabilities, (B, K).
        steps: by method, the attribution of each time step for the predicted class, (B, T).
        values: by method, the attribution of each channel and time step, (B, T, D); not for
            attention and "random".
        attention: the attention weights, (B, T, T) or (B, T).
    """

    network: ja.models.SignalClassifier
    probabilities: np.ndarray
    steps: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    attention: np.ndarray


@nnx.jit
def probabilities(model: Callable[..., Any], x: np.ndarray, lengths: np.ndarray) -> jax.Array:
    """Return the class probabilities, (B, K)."""
    return jax.nn.softmax(model(x, lengths))


def explain(model: ja.models.SignalClassifier, series: Series) -> Explained:
    """Explain the predicted classes by the network's attention and by other methods."""
    x, lengths, _ = series
    probability = np.asarray(probabilities(model, x, lengths))
    predictions = probability.argmax(1).astype(np.int32)
    methods = {
        "LRP": (ja.lrp, np.sum, {}),
        "saliency": (ja.saliency, np.linalg.norm, {}),
        # A window is a whole time step: all of its channels have the same value.
        "occlusion": (ja.occlusion, np.mean, {"window": (1, x.shape[-1])}),
    }
    _, hidden = ja.capture(model, "attention")(x, lengths)
    attention = np.asarray(hidden["attention"])
    valid = np.arange(x.shape[1]) < lengths[:, None]
    steps = {"attention": attention}
    if attention.ndim == 3:  # mean over the valid query steps
        steps["attention"] = (attention * valid[..., None]).sum(1) / lengths[:, None]
    values = {}
    for name, (method, reduce, options) in methods.items():
        attribution = ja.explain(method, model, x, predictions, args=(lengths,), **options)
        values[name] = np.asarray(attribution.values)
        steps[name] = reduce(values[name], axis=-1)
    steps["random"] = np.random.default_rng(0).normal(size=valid.shape)
    return Explained(model, probability, steps, values, attention)


def deletion(explained: Explained, series: Series, steps: np.ndarray) -> np.ndarray:
    """Return the probability of the predicted class during deletion, (B, 11).

    Time steps are deleted in descending order of `steps`. All channels of a deleted step are set
    to zero, their mean.
    """
    valid = np.arange(series.x.shape[1]) < series.lengths[:, None]
    order = np.argsort(-np.where(valid, steps, -np.inf), axis=1, kind="stable")
    ranks = np.argsort(order, axis=1)
    predictions = explained.probabilities.argmax(1)
    remaining = []
    for fraction in FRACTIONS:
        deleted = ranks < np.rint(fraction * series.lengths)[:, None]
        x = np.where(deleted[..., None], 0, series.x).astype(series.x.dtype)
        remaining.append(np.asarray(probabilities(explained.network, x, series.lengths)))
    return np.stack(remaining, 1)[np.arange(len(predictions)), :, predictions]


def agreement(explained: Explained, series: Series, name: str) -> float:
    """Return the rank correlation of a method's steps with attention, averaged over series."""
    correlations = [
        spearmanr(steps[:length], attention[:length]).statistic
        for steps, attention, length in zip(
            explained.steps[name], explained.steps["attention"], series.lengths, strict=True
        )
    ]
    return float(np.nanmean(correlations))
