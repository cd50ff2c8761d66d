"""A small recurrent network that makes replacements of features, trained together with a mask."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._types import RandomKey
from jaxattn.engine.batch import wide


class Gated(NamedTuple):
    """The weights of a GRU in both directions, in the order forward, backward.

    Attributes:
        kernel: of the input; update gate, reset gate and candidate side by side.
        recurrent: of the state.
        bias: of the input.
        candidate_bias: of the state's part in the candidate.
    """

    kernel: Float[Array, "2 features gates"]
    recurrent: Float[Array, "2 units gates"]
    bias: Float[Array, "2 gates"]
    candidate_bias: Float[Array, "2 units"]

    def __call__(self, rows: Float[Array, "steps features"]) -> Float[Array, "steps states"]:
        """Return the states of both directions at each step."""
        units = self.recurrent.shape[1]
        seen = jnp.stack([rows, rows[::-1]])
        projected = jnp.matmul(seen, self.kernel) + self.bias[:, None]

        def advance(state: Array, row: Array) -> tuple[Array, Array]:
            own = jnp.matmul(state[:, None], self.recurrent)[:, 0]
            gates = jax.nn.sigmoid(row[:, : 2 * units] + own[:, : 2 * units])
            update, reset = gates[:, :units], gates[:, units:]
            own_part = own[:, 2 * units :] + self.candidate_bias
            candidate = jnp.tanh(row[:, 2 * units :] + reset * own_part)
            state = candidate + update * (state - candidate)
            return state, state

        start = jnp.zeros((2, units), rows.dtype)
        _, states = jax.lax.scan(advance, start, jnp.moveaxis(projected, 1, 0))
        return jnp.concatenate([states[:, 0], states[::-1, 1]], -1)


class ReplacementNetwork(NamedTuple):
    """A bidirectional GRU and a linear layer from its states to features of the input.

    The first axis of the input is time; further axes are features.
    """

    gated: Gated
    readout: Float[Array, "states features"]
    bias: Float[Array, " features"]

    @classmethod
    def of(cls, leaf: Array, units: int, key: RandomKey) -> "ReplacementNetwork":
        """Draw a network for an input of the shape of `leaf`."""
        features = rows_of(leaf).shape[1]
        dtype = wide(leaf.dtype)
        keys = iter(jax.random.split(key, 4))

        def uniform(*shape: int) -> Array:
            bound = units**-0.5
            return jax.random.uniform(next(keys), shape, dtype, -bound, bound)

        gated = Gated(
            uniform(2, features, 3 * units),
            uniform(2, units, 3 * units),
            uniform(2, 3 * units),
            uniform(2, units),
        )
        return cls(gated, jnp.zeros((2 * units, features), dtype), jnp.zeros(features, dtype))

    def __call__(self, leaf: Array) -> Array:
        """Return replacements of all features, in the shape and dtype of the input."""
        rows = rows_of(leaf).astype(self.readout.dtype)
        replaced = self.gated(rows) @ self.readout + self.bias[None]
        return replaced.astype(leaf.dtype).reshape(leaf.shape)


def rows_of(leaf: Array) -> Array:
    """Return the steps of an input with their features in one axis."""
    return leaf.reshape(leaf.shape[0] if leaf.ndim else 1, -1)
