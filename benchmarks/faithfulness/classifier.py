"""A recurrent classifier of the steps of State, and the salience that methods find in it.

A method explains the probability of each step by the series up to it, and the values of the last
step of this prefix count, as in `ja.time_forward`. Masks compare the probabilities of all steps.

The methods of one step at a time take the sum of all probabilities, each a function of its own step
given the state before it: one call gives the same values as one call for every prefix.
"""

import functools
import warnings
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import jaxattn as ja
from benchmarks.faithfulness.runs import RANDOM, Run, options_of_run, random_values
from benchmarks.faithfulness.state import FEATURES, Markov, markov
from benchmarks.progress import track
from jaxattn.jaxpr.reuse.causal_steps import CausalSteps

UNITS, SERIES, EPOCHS, BATCH = 200, 800, 8, 16
#: The same of a quick run.
QUICK_UNITS, QUICK_SERIES = 32, 200
#: Functions of `jaxattn.metrics`.
MEASURES = "aup", "aur", "auroc", "auprc"

#: Methods that move the whole prefix; of the sum of all probabilities, with the derivatives by the
#: own step of each.
OF_DERIVATIVES: dict[str, dict[str, Any]] = {
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {"num_steps": 24},
    "deep_lift": {},
    "expected_gradients": {"num_samples": 64},
}
#: Methods that replace one step; of the sum of all probabilities, given the unchanged past.
OF_REPLACED: dict[str, dict[str, Any]] = {
    "occlusion": {"window": (1, 1), "reuse": False},
    "augmented_occlusion": {"window": (1, 1), "num_samples": 10, "reuse": False},
}
#: Methods on every prefix.
OF_PREFIXES: dict[str, dict[str, Any]] = {
    "lime": {"num_samples": 512, "batch_size": 512},
}
#: Methods of all steps together.
OF_ALL: dict[str, dict[str, Any]] = {
    "fit": {"per_step": True},
    "dynamask": {
        "area": (0.3, 0.33, 0.36),
        "perturbation": "fade_baseline",
        "num_steps": 100,
    },
    "extremal_mask": {"mask_weight": 1e-3, "num_steps": 150},
    "contra_mask": {"mask_weight": 0.05, "num_steps": 100},
}
METHODS = {**OF_DERIVATIVES, **OF_REPLACED, **OF_PREFIXES, **OF_ALL, RANDOM: {}}
#: A negative importance is less than none.
SIGNED = ("fit",)
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

    The learning rate falls to zero: without this, or with few large batches, the classifier is as
    accurate, but it knows the hidden state less well, and every method finds less.
    """
    model = Classifier(units, rngs=nnx.Rngs(seed))
    graph, state = nnx.split(model)
    batches = len(series.x) // BATCH
    rate = optax.cosine_onecycle_schedule(batches * epochs, 5e-3, pct_start=0.2)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))

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
            for chosen in order[: batches * BATCH].reshape(batches, BATCH):
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
        num_epochs=5 if quick else 20,
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
    """Compute the values that a method gives to all features of all steps, most without a sign."""
    if method == RANDOM:
        return np.abs(random_values(series.x.shape, seed))
    options = {"key": jax.random.key(seed), **options_of_run(METHODS[method], quick)}
    if method in WITH_BACKGROUND:
        options["background"] = background(method, seed)
    if method == "fit":
        options["generator"] = generator(seed, quick)
    found = explained(method, classifier(seed, quick), series.x, **options)
    return found if method in SIGNED else np.abs(found)


def background(method: str, seed: int) -> np.ndarray:
    """Return other series; half of those of expected gradients are zeros."""
    x = markov(seed + 3_000, BACKGROUND).x
    return np.concatenate([x, 0 * x]) if method == "expected_gradients" else x


def explained(method: str, model: Any, x: np.ndarray, **options: Any) -> np.ndarray:
    """Compute the values that a method gives to a function of series, by its own way."""
    chosen, fn = getattr(ja, method), jax.tree_util.Partial(probabilities, model)
    if method in OF_DERIVATIVES:
        fn = jax.tree_util.Partial(derivable, model)
    elif method in OF_REPLACED:
        fn, options = jax.tree_util.Partial(given_past, model), {"args": (x,), **options}
    elif method in OF_PREFIXES:
        options |= {"method": chosen, "per_step": True, "targets": itself}
        chosen = ja.time_forward
    elif method == "fit":  # it makes distributions of logits
        fn = model
    with warnings.catch_warnings():
        # Derivatives by earlier steps are left out, so the values have another sum.
        warnings.simplefilter("ignore", ja.ConvergenceWarning)
        return np.asarray(ja.explain(chosen, fn, x, **options).values)


def probabilities(model: Any, x: jax.Array) -> jax.Array:
    """Return the probability of label 1 at each step."""
    return jax.nn.sigmoid(model(x))


def itself(output: jax.Array) -> jax.Array:
    """Return the output, as a target: it is meant that a probability is explained."""
    return output


def given_past(model: Any, x: jax.Array, past: jax.Array) -> jax.Array:
    """Return the sum of the probabilities of all steps, each for its own row of x after a past."""
    steps = CausalSteps.of(model, x)
    assert steps is not None
    outputs, _ = steps.advance(x, steps.states(past))
    return jax.nn.sigmoid(outputs).sum()


def derivable(model: Any, x: jax.Array) -> jax.Array:
    """Return the sum of all probabilities, with the derivative of each by its own row alone."""
    return given_past(model, x, jax.lax.stop_gradient(x))
