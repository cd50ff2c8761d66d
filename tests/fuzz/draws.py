"""Random choices and weights, and what a block of a network is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Block(NamedTuple):
    """A part of a network.

    Attributes:
        name: what it is, for the message of a failure.
        apply: a function of the forms of operations and of x (T, D), which returns (T, D).
    """

    name: str
    apply: Callable[..., Any]


class Draw(NamedTuple):
    """A source of random choices and weights for series of shape (T, D)."""

    rng: np.random.Generator
    length: int
    width: int

    def weight(self, *shape):
        """Return a weight (..., I, J) that preserves the size of its input."""
        return jnp.asarray(self.rng.normal(size=shape) / np.sqrt(shape[-2]))

    def bias(self, *shape):
        return jnp.asarray(0.3 * self.rng.normal(size=shape))

    def dense(self, inputs=None, outputs=None):
        """Return an affine map of the last axis, with a bias or without."""
        inputs, outputs = inputs or self.width, outputs or self.width
        weight, bias = self.weight(inputs, outputs), self.bias(outputs)
        if self.rng.random() < 0.3:
            return lambda x: x @ weight
        return lambda x: x @ weight + bias.reshape((1,) * (x.ndim - 1) + (-1,))

    def pick(self, **choices):
        """Return the name and the value of one of several choices."""
        name = str(self.rng.choice(list(choices)))
        return name, choices[name]


ACTIVATIONS = {
    "tanh": jnp.tanh, "relu": jax.nn.relu, "gelu": jax.nn.gelu, "silu": jax.nn.silu,
    "elu": jax.nn.elu, "leaky_relu": jax.nn.leaky_relu, "softplus": jax.nn.softplus,
    "exact_gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "squared_relu": lambda z: jax.nn.relu(z) ** 2,
    "mish": lambda z: z * jnp.tanh(jax.nn.softplus(z)), "sin": jnp.sin,
    "clipped": lambda z: jnp.clip(z, -1.0, 2.0), "soft_sign": jax.nn.soft_sign,
}  # fmt: skip
GATES = {
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "half_tanh": lambda z: 0.5 * jnp.tanh(z) + 0.5,
    "written_out": lambda z: 1 / (1 + jnp.exp(-z)),
    "clip": lambda z: jnp.clip(0.2 * z + 0.5, 0.0, 1.0),
}


def _exponentials(z, axis):
    return jnp.exp(z - z.max(axis, keepdims=True))


SOFTMAXES = {
    "softmax": jax.nn.softmax,
    "log_softmax": lambda z, axis: jnp.exp(jax.nn.log_softmax(z, axis)),
    "shifted": lambda z, axis: (
        _exponentials(z, axis) / _exponentials(z, axis).sum(axis, keepdims=True)
    ),
    "unshifted": lambda z, axis: jnp.exp(z) / jnp.exp(z).sum(axis, keepdims=True),
    "with_epsilon": lambda z, axis: jnp.exp(z) / (jnp.exp(z).sum(axis, keepdims=True) + 1e-7),
}
