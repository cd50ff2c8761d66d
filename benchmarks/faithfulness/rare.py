"""Rare-Feature and Rare-Time: series of which few cells matter, and a function that reads these.

A series has 50 steps and 50 features, each feature an autoregressive process of its own. The
function returns, at each step, the sum of the squares of the salient cells:

* Rare-Feature: five random features of each series, at steps 12 to 37.
* Rare-Time: five consecutive steps of each series, at features 12 to 37.

A mask that is exactly the truth has an area of 0.525 under precision, by the trapezoid between the
thresholds 0 and 1, and of 1 under recall. The first area is high only for values in between.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from scipy.signal import lfilter

import jaxattn as ja

Task: TypeAlias = Literal["feature", "time"]

SERIES, STEPS, FEATURES, SUBSET = 100, 50, 50, 5
#: The range of the steps, or of the features, that are not few.
WIDE = slice(STEPS // 4, 3 * STEPS // 4)
AUTOREGRESSION, AVERAGE = [2, 0.5, 0.2, 0.1], [2]

#: The options of trained masks.
MASKS: dict[str, dict[str, Any]] = {
    "dynamask": {
        "area": (0.01, 0.02, 0.03, 0.035, 0.04, 0.045, 0.05),
        "tolerance": 1e-3,
        "num_steps": 200,
    },
    "extremal_mask": {"mask_weight": 1e-3, "replacement_weight": 10.0, "num_steps": 500},
}


class Rare(NamedTuple):
    """Series (N, T, D), and which cells are salient, 0 or 1."""

    x: np.ndarray
    salient: np.ndarray


def rare(task: Task, seed: int, number: int = SERIES) -> Rare:
    """Draw the series of a task."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(number, STEPS, FEATURES))
    x = lfilter(AVERAGE, AUTOREGRESSION, noise, axis=1).astype(np.float32)
    salient = np.zeros(x.shape, np.float32)
    for cells in salient:
        if task == "feature":
            cells[WIDE, rng.permutation(FEATURES)[:SUBSET]] = 1
        else:
            start = rng.integers(0, STEPS - SUBSET + 1)
            cells[start : start + SUBSET, WIDE] = 1
    return Rare(x, salient)


def energy(x: jax.Array, salient: jax.Array) -> jax.Array:
    """Return the sum of the squares of the salient features at each step."""
    return (salient * jnp.square(x)).sum(-1)


def mask_areas(method: str, task: Task, seed: int, number: int = SERIES) -> tuple[float, float]:
    """Compute the areas under precision and recall of a trained mask."""
    series = rare(task, seed, number)
    key = jax.random.key(seed)
    masks = ja.explain(
        getattr(ja, method), energy, series.x, args=(series.salient,), key=key, **MASKS[method]
    )
    return areas(np.asarray(masks.values), series.salient)


def areas(values: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Compute the areas under precision and under recall (AUP, AUR) over the threshold.

    All cells of all series are pooled, and the values scaled to [0, 1]. The thresholds are the
    different values; a cell is selected if its value is at least the threshold.
    """
    flat, true = np.ravel(values).astype(float), np.ravel(truth) > 0.5
    flat = (flat - flat.min()) / np.ptp(flat)
    order = np.argsort(-flat, kind="stable")
    hits = np.cumsum(true[order])
    last = np.flatnonzero(np.append(np.diff(flat[order]) != 0, True))  # of each value
    thresholds, hits = flat[order][last], hits[last]
    precision, recall = hits / (last + 1), hits / true.sum()
    rising = slice(None, None, -1)
    return tuple(
        float(np.trapezoid(each[rising], thresholds[rising])) for each in (precision, recall)
    )
