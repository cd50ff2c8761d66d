"""The work on State that is measured by `benchmarks.speed`: methods of time series and a GRU.

The network is that of `benchmarks.faithfulness`, with the logit of the positive class at each step.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

import jaxattn as ja
from benchmarks.cells import Cell, Network, Work
from benchmarks.faithfulness.classifier import UNITS, Classifier, classifier
from benchmarks.faithfulness.state import FEATURES, STEPS, markov

STATE = Network(STEPS, FEATURES, UNITS, 1, per_step=True, gates=3)

#: tint explains one time step after the other: fewer series than 200 where it takes long.
CELLS: Mapping[str, Cell] = {
    "state-temporal-integrated": Cell(
        "integrated_gradients",
        STATE,
        8,
        {"path": "temporal", "per_step": True, "num_steps": 16},
        at_least={"tint": 50},
        tolerance=1e-3,
    ),
    "state-fit": Cell(
        "fit",
        STATE,
        8,
        {"per_step": True, "num_samples": 10},
        at_least={"tint": 50},
        tolerance=1e-3,
    ),
    # Masks in [0, 1], of which the distance is shown only: Adam divides by slopes, also tiny ones.
    "state-dynamask": Cell(
        "dynamask",
        STATE,
        200,
        {"area": (0.3,), "num_steps": 20},
        at_least={"tint": 5},
        tolerance=1.0,
    ),
    # Likewise, and jaxattn trains a network for each series, tint one for all.
    "state-extremal-mask": Cell(
        "extremal_mask",
        STATE,
        200,
        {"num_steps": 20, "mask_weight": 1.0, "replacement_weight": 1.0},
        at_least={"tint": 5},
        tolerance=1.0,
    ),
    "state-events": Cell(
        "time_shap",
        STATE,
        8,
        {"tolerance": None, "max_events": 10, "num_samples": 2**11 - 2},
        at_least={"timeshap": 10},
        tolerance=1e-3,
    ),
}


class Gaussian(NamedTuple):
    """A generator for FIT: the mean of the latent variable instead of a draw."""

    generator: ja.models.FeatureGenerator

    def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return tuple(self.generator(x))  # type: ignore[return-value]


@functools.cache
def generator(features: int, units: int) -> Gaussian:
    """Return a generator with random weights."""
    return Gaussian(ja.models.FeatureGenerator(features, hidden_features=units, rngs=nnx.Rngs(1)))


def prepare(cell: Cell) -> Work:
    """Return the classifier and series of a cell; they are the same at every call."""
    net = cell.network
    trained = net.units == UNITS
    model = classifier(0, quick=False) if trained else Classifier(net.units, rngs=nnx.Rngs(0))
    xs = markov(1_000, cell.batch).x[:, : net.steps]
    weights = {
        "forward": gru_weights(model.gru),
        "head": (np.asarray(model.linear.kernel[...]), np.asarray(model.linear.bias[...])),
    }
    options = dict(cell.options)
    targets = np.full(cell.batch, net.steps - 1) if cell.method == "time_shap" else None
    if cell.method == "fit":
        options["generator"] = generator(net.features, net.units // 2)
    if cell.method in ("dynamask", "extremal_mask"):
        options["optimizer"] = optimizer(cell)
    if getattr(ja, cell.method).traits.draws:
        options["key"] = jax.random.key(0)
    return Work(cell, model, weights, xs, targets, options)


RATE, EPSILON = 0.01, 1e-8  # of Adam


@functools.cache
def adam(epsilon: float) -> optax.GradientTransformation:
    """Return Adam; equal arguments give the same one, with which a program is not compiled anew."""
    return optax.adam(RATE, eps=epsilon)


def optimizer(cell: Cell) -> optax.GradientTransformation:
    """Return the optimiser of masks that equals torch's for the mean over all examples.

    The slopes of a mean are smaller, and Adam's steps depend on their size by epsilon alone.
    """
    return adam(EPSILON * cell.batch * len(cell.options.get("area", (0,))))


def gru_weights(gru: Any) -> tuple[np.ndarray, ...]:
    """Return kernel (D, 3H), recurrent (H, 3H), bias (3H,) and recurrent bias (H,) of a GRU."""
    cell = gru.weights()
    names = "kernel", "recurrent", "bias", "recurrent_bias"
    return tuple(np.asarray(getattr(cell, name)) for name in names)
