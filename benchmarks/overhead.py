"""Measure the time of a compiled call beside that of hand-written JAX, for small networks.

    python -m benchmarks.overhead

prints a table in Markdown: milliseconds of one saliency, for a network as an NNX module, as a
closure over it, and as a `Partial` over a function that applies a linen module; of one example, and
of a batch of one. The networks are so small that most of the time is overhead.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial

import jaxattn as ja


class Block(nnx.Module):
    """A transformer block with dropout."""

    def __init__(self, size: int, rngs: nnx.Rngs):
        self.first, self.second = (nnx.LayerNorm(size, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(4, size, decode=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.up = nnx.Linear(size, 2 * size, rngs=rngs)
        self.down = nnx.Linear(2 * size, size, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.dropout(self.attention(self.first(x)))
        return x + self.down(jax.nn.gelu(self.up(self.second(x))))


class Transformer(nnx.Module):
    """A classifier of twelve blocks."""

    def __init__(self, size: int, outputs: int, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(size, rngs) for _ in range(12)])
        self.head = nnx.Linear(size, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(0))


class LinenLSTM(linen.Module):
    """A classifier by the last output of an LSTM."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(3)(linen.RNN(linen.LSTMCell(16))(x)[-1])


class LinenTransformer(linen.Module):
    """A classifier of twelve blocks."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(12):
            x = x + linen.MultiHeadDotProductAttention(4)(linen.LayerNorm()(x))
            x = x + linen.Dense(16)(jax.nn.gelu(linen.Dense(32)(linen.LayerNorm()(x))))
        return linen.Dense(3)(x.mean(0))


class Network(NamedTuple):
    """A network in two libraries, and the shape of an example."""

    module: nnx.Module
    linen: linen.Module
    shape: tuple[int, int]


def networks() -> dict[str, Network]:
    """Return the networks by name."""
    lstm = ja.models.SequenceClassifier(4, 16, 3, rngs=nnx.Rngs(0))
    return {
        "LSTM": Network(lstm, LinenLSTM(), (12, 4)),
        "transformer": Network(Transformer(16, 3, nnx.Rngs(0)), LinenTransformer(), (8, 16)),
    }


def milliseconds(call: Callable[[], Any], calls: int) -> float:
    """Return the median time of a call that is compiled."""
    times = []
    for _ in range(calls + 3):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times[3:]))


def row(network: Network, calls: int) -> list[str]:
    """Return the times of a network: hand-written, and in each form."""
    x = np.random.default_rng(0).normal(size=network.shape).astype(np.float32)
    graph, state = nnx.split(network.module)
    state = nnx.as_pure(state)

    @jax.jit
    def by_hand(state: Any, x: jax.Array) -> jax.Array:
        def score(x: jax.Array) -> jax.Array:
            module = nnx.merge(graph, state)
            module.eval()
            return module(x)[1]

        return jnp.abs(jax.grad(score)(x))

    module, layers = network.module, network.linen
    params = layers.init(jax.random.key(0), x)
    forms = (
        module,
        lambda x: module(x),
        Partial(lambda params, x: layers.apply(params, x), params),
    )
    cells = [f"{milliseconds(lambda: by_hand(state, x), calls):.2f}"]
    for fn in forms:
        one = milliseconds(lambda fn=fn: ja.saliency(fn, x, 1), calls)
        batch = milliseconds(lambda fn=fn: ja.explain(ja.saliency, fn, x[None], 1), calls)
        cells.append(f"{one:.1f}, {batch:.1f}")
    return cells


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=21, help="calls of which the median is taken")
    calls = parser.parse_args().calls
    print("| network | hand-written | NNX module | closure over it | `Partial` over a function |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name, network in networks().items():
        print("|", " | ".join([name, *row(network, calls)]), "|", flush=True)


if __name__ == "__main__":
    main()
