"""Sequences of which an LSTM adds two numbers, and how exactly methods find the two.

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
* About one network in sixteen does not learn to add. Two are trained for each seed, and the better
  one is explained.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxattn as ja
from benchmarks.faithfulness.runs import RANDOM, Run, random_values
from benchmarks.progress import track

SHORTEST, LONGEST = 4, 10
GOOD = 1e-4  # mean squared error below which a network counts as trained
PARTS = 20  # of the training, each followed by a line of progress

STEPS, QUICK_STEPS = 20_000, 3_000  # of the training
ATTEMPTS = 2  # networks trained for each seed

#: Fields of `Fit`.
MEASURES = "first", "second", "squared_error"
#: For each name, a method and its options.
METHODS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "contextual_decomposition": ("contextual_decomposition", {}),
    "integrated_gradients": ("integrated_gradients", {}),
    "deep_lift": ("deep_lift", {}),
    "occlusion": ("occlusion", {"window": (1, 1)}),
    "input_x_gradient": ("input_x_gradient", {}),
    "lrp_epsilon_1e-6": ("lrp", {"epsilon": 1e-6}),
    "lrp_conserve_bias": ("lrp", {"conserve_bias": True}),
    "lrp": ("lrp", {}),
    "lrp_half": ("lrp", {"gates": "half"}),
    "lrp_proportional": ("lrp", {"gates": "proportional"}),
    RANDOM: (RANDOM, {}),
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


def train(seeds: Sequence[int], num_steps: int) -> list[nnx.Module]:
    """Train networks with different initial weights, all in one program."""
    graph = nnx.graphdef(Adder(rngs=nnx.Rngs(0)))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
    batches = jax.tree.map(lambda a: a.reshape(1000, 64, *a.shape[1:]), draw(64_000, seed=0))

    def loss(state, sequences):
        return jnp.square(errors(nnx.merge(graph, state), sequences)).mean()

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def fit(carry, batches, steps):
        def step(carry, i):
            state, moments = carry
            batch = jax.tree.map(lambda a: a[i % len(a)], batches)
            updates, moments = optimizer.update(jax.grad(loss)(state, batch), moments)
            return (optax.apply_updates(state, updates), moments), None

        return jax.lax.scan(step, carry, steps)[0]

    states = [nnx.state(Adder(rngs=nnx.Rngs(seed))) for seed in seeds]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    carry = stacked, jax.vmap(optimizer.init)(stacked)
    parts = np.array_split(np.arange(num_steps), min(PARTS, num_steps))
    for steps in track(parts, "parts of the training", lambda steps: f"step {steps[0]}"):
        carry = jax.block_until_ready(fit(carry, batches, jnp.asarray(steps)))
    trained = (jax.tree.map(operator.itemgetter(i), carry[0]) for i in range(len(seeds)))
    return [nnx.merge(graph, state) for state in trained]


@functools.cache
def adders(seeds: tuple[int, ...], quick: bool) -> dict[int, nnx.Module]:
    """Train the networks of all seeds, in one program.

    Raises:
        SystemExit: if no network of some seed has learnt to add.
    """
    attempts = [seed + 1_000 * attempt for seed in seeds for attempt in range(ATTEMPTS)]
    networks = train(attempts, QUICK_STEPS if quick else STEPS)
    test, chosen = draw(1_000, seed=1), {}
    for i, seed in enumerate(seeds):
        of_seed = networks[i * ATTEMPTS : (i + 1) * ATTEMPTS]
        chosen[seed] = min(of_seed, key=lambda network: mean_squared_error(network, test))
        error = mean_squared_error(chosen[seed], test)
        if error > GOOD and not quick:
            raise SystemExit(
                f"addition: no network of seed {seed} learnt to add: the smallest mean squared "
                f"error is {error:.2g}"
            )
    return chosen


def mean_squared_error(model: nnx.Module, sequences: Sequences) -> float:
    return float(jnp.square(errors(model, sequences)).mean())


def quality(seed: int, run: Run) -> dict[str, float]:
    """Return the error of the network that is explained."""
    network = adders(run.seeds, run.quick)[seed]
    return {"mean squared error": mean_squared_error(network, draw(1_000, seed=1))}


def measured(name: str, seed: int, run: Run) -> dict[str, float]:
    """Compute the fit of a method on new sequences."""
    network = adders(run.seeds, run.quick)[seed]
    return judge(name, network, draw(run.number, seed + 1_000), seed)._asdict()


def judge(name: str, model: nnx.Module, sequences: Sequences, seed: int = 0) -> Fit:
    method, options = METHODS[name]
    xs, lengths, marked = sequences
    if method == RANDOM:
        values, output = random_values(xs.shape, seed), model(xs, lengths)
    else:
        explained = ja.explain(getattr(ja, method), model, xs, args=(lengths,), **options)
        values, output = np.asarray(explained.values), explained.output
    steps = values.reshape(*xs.shape[:2], -1).sum(2)
    at_both = np.take_along_axis(steps, marked, 1)
    first, second = (
        float(100 * np.corrcoef(ours, true)[0, 1])
        for ours, true in zip(at_both.T, sequences.numbers.T, strict=True)
    )
    return Fit(first, second, float(np.square(at_both.sum(1) - output[:, 0]).mean()))
