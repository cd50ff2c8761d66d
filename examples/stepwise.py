"""What a network's attention, and other methods, say of each time step of a series."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from scipy.stats import spearmanr

import jaxattn as ja
from examples.series import Series

POINTS = np.linspace(0, 1, 11)  # shares of the time steps that are deleted


class Explained(NamedTuple):
    """What the methods say of each step of a network's test series.

    Attributes:
        network: what explains itself.
        chances: the probabilities of the classes, (B, K).
        steps: by method, what a step says for the network's answer, (B, T).
        values: by method, what a channel at a step says, (B, T, D), where the method tells.
        attention: the network's own weights, (B, T, T) or (B, T).
    """

    network: ja.models.SignalClassifier
    chances: np.ndarray
    steps: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    attention: np.ndarray


@nnx.jit
def chances(model: Callable[..., Any], x: np.ndarray, lengths: np.ndarray) -> jax.Array:
    """The probabilities of the classes, (B, K)."""
    return jax.nn.softmax(model(x, lengths))


def explain(model: ja.models.SignalClassifier, series: Series) -> Explained:
    """Explains the network's answers by its attention and by other methods."""
    x, lengths, _ = series
    answers = np.asarray(chances(model, x, lengths))
    said = answers.argmax(1).astype(np.int32)
    methods = {
        "LRP": (ja.lrp, np.sum, {}),
        "saliency": (ja.saliency, np.linalg.norm, {}),
        # A window is a whole step, and all of its channels get the same value.
        "occlusion": (ja.occlusion, np.mean, {"window": (1, x.shape[-1])}),
    }
    _, seen = ja.capture(model, "attention")(x, lengths)
    attention = np.asarray(seen["attention"])
    valid = np.arange(x.shape[1]) < lengths[:, None]
    steps = {"attention": attention}
    if attention.ndim == 3:  # what the valid steps read of a step, on average
        steps["attention"] = (attention * valid[..., None]).sum(1) / lengths[:, None]
    values = {}
    for name, (method, reduce, options) in methods.items():
        found = ja.explain(method, model, x, said, args=(lengths,), **options)
        values[name] = np.asarray(found.values)
        steps[name] = reduce(values[name], axis=-1)
    steps["random"] = np.random.default_rng(0).normal(size=valid.shape)
    return Explained(model, answers, steps, values, attention)


def deletion(explained: Explained, series: Series, steps: np.ndarray) -> np.ndarray:
    """The probability of the network's answer (B, 11) while its first steps are deleted.

    A deleted step becomes zero in all channels, which is their mean, and keeps its place.
    """
    valid = np.arange(series.x.shape[1]) < series.lengths[:, None]
    order = np.argsort(-np.where(valid, steps, -np.inf), axis=1, kind="stable")
    ranks = np.argsort(order, axis=1)
    said = explained.chances.argmax(1)
    left = []
    for share in POINTS:
        gone = ranks < np.rint(share * series.lengths)[:, None]
        x = np.where(gone[..., None], 0, series.x).astype(series.x.dtype)
        left.append(np.asarray(chances(explained.network, x, series.lengths)))
    return np.stack(left, 1)[np.arange(len(said)), :, said]


def agreement(explained: Explained, series: Series, name: str) -> float:
    """The mean rank correlation of a method's steps with the attention."""
    found = [
        spearmanr(steps[:length], attention[:length]).statistic
        for steps, attention, length in zip(
            explained.steps[name], explained.steps["attention"], series.lengths, strict=True
        )
    ]
    return float(np.nanmean(found))
