"""The measurements of a run of the benchmark, and the random attribution for comparison."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

#: The name of the control, which stands beside the methods.
RANDOM = "random"
#: The gradient steps of masks in a quick run, at most.
QUICK_MASK_STEPS = 50


class Run(NamedTuple):
    """The size of a run.

    Attributes:
        seeds: the seeds of the data and of the networks.
        number: of examples of each seed.
        quick: whether networks are trained briefly, and methods with few steps.
    """

    seeds: tuple[int, ...]
    number: int
    quick: bool


def random_values(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Draw an attribution that does not depend on the function: independent normal numbers."""
    return np.random.default_rng(seed + 5_000).normal(size=shape)


def options_of_run(options: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    """Return the options of a method, with few steps if the run is quick."""
    if not quick or "num_steps" not in options:
        return dict(options)
    return {**options, "num_steps": min(options["num_steps"], QUICK_MASK_STEPS)}
