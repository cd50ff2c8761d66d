"""A recurrent classifier of the steps of State, and the salience that methods find in it."""

import functools
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import jaxattn as ja
from benchmarks.faithfulness.state import FEATURES, Markov, markov
from benchmarks.progress import track

UNITS, BATCH = 200, 100
#: Functions of `jaxattn.metrics`.
MEASURES = "aup", "aur", "auroc", "auprc"
#: Methods on the prefix of each step, with the logit of the label at its end.
METHODS: dict[str, dict[str, Any]] = {
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {"num_steps": 8},
}


class Classifier(nnx.Module):
    """A GRU with a logit at each step."""

    def __init__(self, units: int, *, rngs: nnx.Rngs) -> None:
        self.gru = ja.nn.GRU(FEATURES, units, rngs=rngs)
        self.linear = nnx.Linear(units, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        states, _ = self.gru(x)
        return self.linear(states)[..., 0]


def trained(series: Markov, seed: int, *, epochs: int = 6, units: int = UNITS) -> Classifier:
    """Train a classifier on the labels of all steps.

    Six epochs bring it within a percent of the accuracy of the true sigmoid.
    """
    model = Classifier(units, rngs=nnx.Rngs(seed))
    graph, state = nnx.split(model)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))

    def loss(state: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, state)(x)
        return optax.sigmoid_binary_cross_entropy(logits, labels).mean()

    @jax.jit
    def step(state: Any, moments: Any, x: jax.Array, labels: jax.Array) -> Any:
        value, slope = jax.value_and_grad(loss)(state, x, labels)
        updates, moments = optimizer.update(slope, moments, state)
        return optax.apply_updates(state, updates), moments, value

    moments = optimizer.init(state)
    rng = np.random.default_rng(seed)
    labels = series.labels.astype(np.float32)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by its step count
        for _ in track(range(epochs), "epochs of training", None):
            order = rng.permutation(len(labels))
            for chosen in np.array_split(order, max(1, len(order) // BATCH)):
                state, moments, _ = step(state, moments, series.x[chosen], labels[chosen])
    nnx.update(model, state)
    return model


@functools.cache
def classifier(seed: int) -> Classifier:
    """Return the classifier of a seed, trained on 800 series."""
    return trained(markov(seed, 800), seed)


def measured(method: str, seed: int, number: int) -> dict[str, float]:
    """Compute the measures of a method on new series, pooled over them."""
    return measures(method, classifier(seed), markov(seed + 1_000, number))


def measures(method: str, model: Classifier, series: Markov) -> dict[str, float]:
    """Compute the measures of a method on series, pooled over them."""
    explained = ja.explain(
        ja.time_forward,
        model,
        series.x,
        method=getattr(ja, method),
        per_step=True,
        **METHODS[method],
    )
    got = np.abs(np.asarray(explained.values))
    return {
        name: float(getattr(ja.metrics, name)(got, series.salient, pooled=True))
        for name in MEASURES
    }
