"""Do the methods find the numbers that were added? (`python -m benchmarks.addition`)

A sequence of 4 to 10 numbers, of absolute value 0.5 to 1, stands in two columns: two of the numbers
in the first, all others in the second. An LSTM of a single unit and one weight after it learn the
sum of the two. An explanation should give each step what its number brought in: 0 to the others,
and to the two, together, the network's output (Arras et al. 2019, Explaining and interpreting
LSTMs, arXiv:1909.12114).

What to know of the network:
* It adds by smallness. Through two tanh it is exact only as far as those are straight, so the cell
  holds about a tenth of each number, and the weight after it grows as long as it trains.
* LRP's epsilon is an absolute number and enters at every step: the usual 0.001 is 1% of a cell's
  0.1, up to ten times over, and that leak is most of LRP's error. A millionth leaves next to none,
  but for numbers that cancel to less than a thousandth and leave the cell as empty.
* LRP by half and LRP in proportion, which give the gates a part, are there to fail.
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
from rich.progress import track

import jaxattn as ja
from benchmarks import report

SHORTEST, LONGEST = 4, 10
GOOD = 1e-4  # a mean squared error below which a network is taken to have learnt to add

METHODS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gradient × input": ("input_x_gradient", {}),
    "occlusion": ("occlusion", {"window": (1, 1)}),
    "integrated gradients": ("integrated_gradients", {}),
    "DeepLIFT": ("deep_lift", {}),
    "contextual decomposition": ("contextual_decomposition", {}),
    "LRP": ("lrp", {}),
    "LRP, epsilon 1e-6": ("lrp", {"epsilon": 1e-6}),
    "LRP, shared biases": ("lrp", {"conserve_bias": True}),
    "LRP, half": ("lrp", {"gates": "half"}),
    "LRP, proportional": ("lrp", {"gates": "proportional"}),
}


class Sequences(NamedTuple):
    """Sequences (B, T, 2), padded on the right, lengths (B,), and where the two are (B, 2)."""

    xs: np.ndarray
    lengths: np.ndarray
    marked: np.ndarray

    @property
    def numbers(self) -> np.ndarray:
        """The two numbers, (B, 2)."""
        return np.take_along_axis(self.xs[..., 0], self.marked, 1)


class Fit(NamedTuple):
    """How a method's values at the two steps fit.

    Their correlations with the two numbers, in percent, and the mean square of what their sum
    differs by from the output.
    """

    first: float
    second: float
    squared_error: float


class Adder(nnx.Module):
    """An LSTM of one unit and one weight after it."""

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
    """Networks that differ in the weights they start from, trained side by side."""
    graph = nnx.graphdef(Adder(rngs=nnx.Rngs(0)))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    batches = jax.tree.map(lambda a: a.reshape(1000, 64, *a.shape[1:]), draw(64_000, seed=0))

    def loss(state, sequences):
        return jnp.square(errors(nnx.merge(graph, state), sequences)).mean()

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def fit(state, batches):
        def step(carry, i):
            state, moments = carry
            batch = jax.tree.map(lambda a: a[i % len(a)], batches)
            updates, moments = optimizer.update(jax.grad(loss)(state, batch), moments)
            return (optax.apply_updates(state, updates), moments), None

        return jax.lax.scan(step, (state, optimizer.init(state)), jnp.arange(num_steps))[0][0]

    states = [nnx.state(Adder(rngs=nnx.Rngs(seed))) for seed in range(num_networks)]
    fitted = fit(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), batches)
    each = (jax.tree.map(operator.itemgetter(i), fitted) for i in range(num_networks))
    return [nnx.merge(graph, state) for state in each]


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
    parser.add_argument("--sequences", type=report.positive, default=2500, help="to explain")
    parser.add_argument("--networks", type=report.positive, default=16, help="to train")
    parser.add_argument("--steps", type=report.positive, default=20000, help="of their training")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the numbers")
    arguments = parser.parse_args(argv)
    report.check_file(parser, "--json", arguments.json)
    sequences = draw(arguments.sequences, seed=1)
    networks = train(arguments.networks, arguments.steps)
    losses = [float(jnp.square(errors(network, sequences)).mean()) for network in networks]
    good = [network for network, loss in zip(networks, losses, strict=True) if loss < GOOD]
    if not good:
        parser.error(f"no network learnt to add: the least error is {min(losses):.2g}; try --steps")
    scores = {
        name: [judge(name, network, sequences) for network in good]
        for name in track(METHODS, "explaining", transient=True)
    }
    report.table(
        f"Two of {SHORTEST} to {LONGEST} numbers added, {arguments.sequences:,} sequences",
        (
            "method",
            "first number,\ncorrelation (%)",
            "second number,\ncorrelation (%)",
            "their sum less the output,\nmean square",
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
        f"those that learnt to add to a mean square of {GOOD:g}",
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
