"""Random networks, each from a seed."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from blocks import random_block
from draws import Draw
from forms import PLAIN


class Network(NamedTuple):
    """A random network and an example.

    Attributes:
        seed: which it is.
        name: its blocks, for the message of a failure.
        apply: a function of the forms of operations and of x (T, D); returns (K,) or (T, K).
        x: the input (T, D).
        baseline: another input (T, D).
        target: the index of the output that is explained.
    """

    seed: int
    name: str
    apply: Callable
    x: np.ndarray
    baseline: np.ndarray
    target: tuple[int, ...]

    def __call__(self, x):
        """Compute the network."""
        return self.apply(PLAIN, x)

    def score(self, x):
        """Compute the output that is explained."""
        return self(x)[self.target]


def _readout(draw, classes):
    """Return a name and the map of (T, D) to the output."""
    head = draw.dense(outputs=classes)
    flat = draw.dense(inputs=draw.length * draw.width, outputs=classes)
    return draw.pick(
        mean=lambda x: head(x.mean(0)),
        last=lambda x: head(x[-1]),
        maximum=lambda x: head(x.max(0)),
        sum=lambda x: head(x).sum(0),
        flat=lambda x: flat(x.ravel()),
        every_step=head,
    )


def random_network(seed):
    """Return the network of a seed: one to three blocks and a readout."""
    rng = np.random.default_rng(seed)
    draw = Draw(rng, int(rng.integers(5, 10)), int(rng.integers(3, 7)))
    blocks = [random_block(draw, nested=True) for _ in range(rng.integers(1, 4))]
    classes = 2
    readout_name, readout = _readout(draw, classes)

    def apply(forms, x):
        for block in blocks:
            x = block.apply(forms, x)
        return readout(x)

    x, baseline = (jnp.asarray(rng.normal(size=(draw.length, draw.width))) for _ in range(2))
    target = (int(rng.integers(classes)),)
    if readout_name == "every_step":
        target = (int(rng.integers(draw.length)), *target)
    names = " > ".join([*(block.name for block in blocks), readout_name])
    return Network(seed, f"({draw.length}, {draw.width}): {names}", apply, x, baseline, target)
