"""A recurrent classifier of the steps of State, and the salience that methods find in it.

A method explains the output of each step by the series up to it, and the values of the last step of
this prefix count, as in `ja.time_forward`. Masks compare the outputs of all steps instead.

The methods of one step at a time take the sum of all outputs, each a function of its own step given
the state before it: one call gives the same values as one call for every prefix.
"""

import functools
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import jaxattn as ja
from benchmarks.faithfulness.runs import RANDOM, Run, random_values
from benchmarks.faithfulness.state import FEATURES, Markov, markov
from benchmarks.progress import track
from jaxattn.jaxpr.reuse.causal_steps import CausalSteps

UNITS, SERIES, EPOCHS, BATCH = 200, 800, 6, 100
#: The same of a quick run.
QUICK_UNITS, QUICK_SERIES = 32, 200
#: Functions of `jaxattn.metrics`.
MEASURES = "aup", "aur", "auroc", "auprc"

#: Methods that move the whole prefix; of the sum of all outputs, whose derivative is that by the
#: own step of each.
OF_DERIVATIVES: dict[str, dict[str, Any]] = {
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {"num_steps": 24},
    "deep_lift": {},
    "expected_gradients": {"num_samples": 50},
}
#: Methods that replace one step; of the sum of all outputs, given the unchanged past.
OF_REPLACED: dict[str, dict[str, Any]] = {
    "occlusion": {"window": (1, 1)},
    "augmented_occlusion": {"window": (1, 1), "num_samples": 10},
}
#: Methods on every prefix.
OF_PREFIXES: dict[str, dict[str, Any]] = {
    "lime": {"num_samples": 512},
}
#: Methods of the outputs of all steps.
OF_ALL: dict[str, dict[str, Any]] = {
    "fit": {"per_step": True},
    "dynamask": {"area": (0.25, 0.3, 0.35), "num_steps": 200},
    "extremal_mask": {"num_steps": 300},
    "contra_mask": {"num_steps": 300},
}
METHODS = {**OF_DERIVATIVES, **OF_REPLACED, **OF_PREFIXES, **OF_ALL, RANDOM: {}}
#: Methods that take other series as a background, and how many.
WITH_BACKGROUND, BACKGROUND = ("expected_gradients", "augmented_occlusion", "contra_mask"), 50


class Classifier(nnx.Module):
    """A GRU with a logit at each step."""

    def __init__(self, units: int, *, rngs: nnx.Rngs) -> None:
        self.gru = ja.nn.GRU(FEATURES, units, rngs=rngs)
        self.linear = nnx.Linear(units, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        states, _ = self.gru(x)
        return self.linear(states)[..., 0]


def trained(series: Markov, seed: int, *, epochs: int = EPOCHS, units: int = UNITS) -> Classifier:
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
def classifier(seed: int, quick: bool) -> Classifier:
    """Return the classifier of a seed."""
    if quick:
        return trained(markov(seed, QUICK_SERIES), seed, epochs=15, units=QUICK_UNITS)
    return trained(markov(seed, SERIES), seed)


@functools.cache
def generator(seed: int, quick: bool) -> ja.models.FeatureGenerator:
    """Return a generator of the next step, trained on the series of the classifier."""
    untrained = ja.models.FeatureGenerator(
        FEATURES, hidden_features=10, latent_features=10, rngs=nnx.Rngs(seed)
    )
    return ja.models.fit_generator(
        untrained,
        markov(seed, QUICK_SERIES).x,
        key=jax.random.key(seed),
        num_epochs=20 if quick else 100,
        optimizer=optax.adam(1e-2),
    ).generator


def quality(seed: int, run: Run) -> dict[str, float]:
    """Return the accuracy of a classifier on new series."""
    new = markov(seed + 2_000, 100)
    found = np.asarray(classifier(seed, run.quick)(new.x)) > 0
    return {"accuracy": float((found == new.labels).mean())}


def measured(method: str, seed: int, run: Run) -> dict[str, float]:
    """Compute the measures of a method on new series, pooled over them."""
    series = markov(seed + 1_000, run.number)
    got = values(method, seed, run.quick, series)
    return {
        name: float(getattr(ja.metrics, name)(got, series.salient, pooled=True))
        for name in MEASURES
    }


def values(method: str, seed: int, quick: bool, series: Markov) -> np.ndarray:
    """Compute the absolute values that a method gives to all features of all steps."""
    if method == RANDOM:
        return np.abs(random_values(series.x.shape, seed))
    options = {"key": jax.random.key(seed), **METHODS[method]}
    if method in WITH_BACKGROUND:
        options["background"] = markov(seed + 3_000, BACKGROUND).x
    if method == "fit":
        options["generator"] = generator(seed, quick)
    return np.abs(explained(method, classifier(seed, quick), series.x, **options))


def explained(method: str, model: Any, x: np.ndarray, **options: Any) -> np.ndarray:
    """Compute the values that a method gives to a function of series, by its own way."""
    chosen = getattr(ja, method)
    if method in OF_DERIVATIVES:
        got = ja.explain(chosen, jax.tree_util.Partial(derivable, model), x, **options)
    elif method in OF_REPLACED:
        got = ja.explain(chosen, jax.tree_util.Partial(given_past, model), x, args=(x,), **options)
    elif method in OF_PREFIXES:
        got = ja.explain(ja.time_forward, model, x, method=chosen, per_step=True, **options)
    else:
        got = ja.explain(chosen, model, x, **options)
    return np.asarray(got.values)


def given_past(model: Any, x: jax.Array, past: jax.Array) -> jax.Array:
    """Return the sum of the outputs of all steps, each for its own row of x after a past."""
    steps = CausalSteps.of(model, x)
    assert steps is not None
    outputs, _ = steps.advance(x, steps.states(past))
    return outputs.sum()


def derivable(model: Any, x: jax.Array) -> jax.Array:
    """Return the sum of all outputs, with a derivative by the own row of each alone."""
    return given_past(model, x, jax.lax.stop_gradient(x))
