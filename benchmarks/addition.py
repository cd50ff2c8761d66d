"""Compare attributions of an LSTM that adds two numbers: `python -m benchmarks.addition --help`.

A sequence has 4 to 10 numbers of absolute value 0.5 to 1 and two features per time step. Two of the
numbers are in the first feature, all others in the second. An LSTM of one unit and a readout of one
weight are trained to return the sum of the two. A correct attribution of a time step is the
contribution of its number: 0 for the others, and the network's output for the sum of the two
(Arras et al. 2019, Explaining and interpreting LSTMs, arXiv:1909.12114).

Properties of the trained network:
* It computes in the linear range of two tanh functions. The cell state is about a tenth of each
  number, and the readout's weight grows during the whole training.
* LRP's epsilon is an absolute number that enters at every time step. The usual 0.001 is 1% of a
  cell state of 0.1, at up to ten steps; this is most of LRP's error. An epsilon of 1e-6 removes
  it, except where the numbers cancel to less than 0.001.
* LRP-half and LRP-prop, which redistribute a part of the relevance to the gates, are included as
  rules that are expected to fail.
"""

import argparse
import operator
from collections.abc import Mapping, Sequence
from functools import partial
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

SHORTEST, LONGEST = 4, 10
GOOD = 1e-4  # mean squared error below which a network counts as trained
PARTS = 20  # of the training, each followed by a line of progress

METHODS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gradient × input": ("input_x_gradient", {}),
    "occlusion": ("occlusion", {"window": (1, 1)}),
    "integrated gradients": ("integrated_gradients", {}),
    "DeepLIFT": ("deep_lift", {}),
    "contextual decomposition": ("contextual_decomposition", {}),
    "LRP": ("lrp", {}),
    "LRP, epsilon 1e-6": ("lrp", {"epsilon": 1e-6}),
    "LRP, conserved bias": ("lrp", {"conserve_bias": True}),
    "LRP-half": ("lrp", {"gates": "half"}),
    "LRP-prop": ("lrp", {"gates": "proportional"}),
}


class Sequences(NamedTuple):
    """Sequences (B, T, 2), padded on the right; lengths (B,); steps of the two numbers (B, 2)."""

    xs: np.ndarray
    lengths: np.ndarray
    marked: np.ndarray

    @property
    def numbers(self) -> np.ndarray:
        """The two numbers (B, 2)."""
        return np.take_along_axis(self.xs[..., 0], self.marked, 1)


class Fit(NamedTuple):
    """The accuracy of a method's values at the two steps.

    Attributes:
        first: correlation of the value at the first step with its number, in percent.
        second: the same for the second step.
        squared_error: mean square of the difference between the sum of both values and the output.
    """

    first: float
    second: float
    squared_error: float


class Adder(nnx.Module):
    """An LSTM of one unit and a readout of one weight."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.recurrent = ja.nn.LSTM(2, 1, rngs=rngs)
        self.readout = nnx.Linear(1, 1, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array, length: jax.Array | None = None) -> jax.Array:
        return self.readout(self.recurrent(x, length).state)


def draw(count: int, seed: int) -> Sequences:
    rng = np.random.default_rng(seed)
    shape, steps = (count, LONGEST), np.arange(LONGEST)
    lengths = rng.integers(SHORTEST, LONGEST + 1, count)
    valid = steps < lengths[:, None]
    marked = np.sort(np.argsort(np.where(valid, rng.random(shape), 2))[:, :2])
    added = (steps == marked[:, :1]) | (steps == marked[:, 1:])
    numbers = rng.choice([-1, 1], shape) * rng.uniform(0.5, 1, shape)
    xs = np.stack([added, valid & ~added], 2) * numbers[..., None]
    return Sequences(xs.astype(np.float32), lengths.astype(np.int32), marked)


def errors(model: nnx.Module, sequences: Sequences) -> jax.Array:
    return model(sequences.xs, sequences.lengths)[:, 0] - sequences.xs[..., 0].sum(1)


def train(num_networks: int, num_steps: int) -> list[nnx.Module]:
    """Train networks with different initial weights, all in one program."""
    graph = nnx.graphdef(Adder(rngs=nnx.Rngs(0)))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    batches = jax.tree.map(lambda a: a.reshape(1000, 64, *a.shape[1:]), draw(64_000, seed=0))

    def loss(state, sequences):
        return jnp.square(errors(nnx.merge(graph, state), sequences)).mean()

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None, None))
    def fit(carry, batches, steps):
        def step(carry, i):
            state, moments = carry
            batch = jax.tree.map(lambda a: a[i % len(a)], batches)
            updates, moments = optimizer.update(jax.grad(loss)(state, batch), moments)
            return (optax.apply_updates(state, updates), moments), None

        return jax.lax.scan(step, carry, steps)[0]

    states = [nnx.state(Adder(rngs=nnx.Rngs(seed))) for seed in range(num_networks)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    carry = stacked, jax.vmap(optimizer.init)(stacked)
    parts = np.array_split(np.arange(num_steps), min(PARTS, num_steps))
    for steps in track(parts, "parts of the training", lambda steps: f"step {steps[0]}"):
        carry = jax.block_until_ready(fit(carry, batches, jnp.asarray(steps)))
    trained = (jax.tree.map(operator.itemgetter(i), carry[0]) for i in range(num_networks))
    return [nnx.merge(graph, state) for state in trained]


def judge(name: str, model: nnx.Module, sequences: Sequences) -> Fit:
    method, options = METHODS[name]
    xs, lengths, marked = sequences
    explained = ja.explain(getattr(ja, method), model, xs, args=(lengths,), **options)
    steps = np.asarray(explained.values).reshape(*xs.shape[:2], -1).sum(2)
    values = np.take_along_axis(steps, marked, 1)
    first, second = (
        float(100 * np.corrcoef(ours, true)[0, 1])
        for ours, true in zip(values.T, sequences.numbers.T, strict=True)
    )
    return Fit(first, second, float(np.square(values.sum(1) - explained.output[:, 0]).mean()))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.addition", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--sequences", type=report.positive, default=2500, help="number of sequences to explain"
    )
    parser.add_argument(
        "--networks", type=report.positive, default=16, help="number of networks to train"
    )
    parser.add_argument(
        "--steps", type=report.positive, default=20000, help="steps of their training"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the numbers")
    arguments = parser.parse_args(argv)
    report.check_file(parser, "--json", arguments.json)
    sequences = draw(arguments.sequences, seed=1)
    networks = train(arguments.networks, arguments.steps)
    losses = [float(jnp.square(errors(network, sequences)).mean()) for network in networks]
    good = [network for network, loss in zip(networks, losses, strict=True) if loss < GOOD]
    if not good:
        parser.error(
            f"no network learnt to add: the smallest error is {min(losses):.2g}; try more --steps"
        )
    scores = {
        name: [judge(name, network, sequences) for network in good]
        for name in track(METHODS, "methods")
    }
    report.table(
        f"Two of {SHORTEST} to {LONGEST} numbers added, {arguments.sequences:,} sequences",
        (
            "method",
            "first number,\ncorrelation (%)",
            "second number,\ncorrelation (%)",
            "sum of both - output,\nmean square",
        ),
        [
            (
                name,
                *(f"{mean:.3f} ± {spread:.3f}" for mean, spread in zip(mean, std, strict=True)),
                f"{error:.1e}",
            )
            for name, fits in scores.items()
            for (*mean, error), (*std, _) in [(np.mean(fits, 0), np.std(fits, 0))]
        ],
        f"mean ± standard deviation over {len(good)} of {len(networks)} networks: "
        f"those with a mean squared error below {GOOD:g}",
    )
    report.write(
        arguments.json,
        {
            "sequences": arguments.sequences,
            "losses": losses,
            "methods": {name: [fit._asdict() for fit in fits] for name, fits in scores.items()},
        },
    )


if __name__ == "__main__":
    main()
