"""One time step of one example: pure functions of the weights, the state and the input."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class LSTMWeights(NamedTuple):
    """Weights of one direction of an LSTM layer.

    The columns hold the gates in the order input, forget, cell, output, each H wide. There are no
    peepholes.
    """

    kernel: Float[Array, "D 4*H"]
    recurrent: Float[Array, "H 4*H"]
    bias: Float[Array, " 4*H"]


class GRUWeights(NamedTuple):
    """Weights of one direction of a GRU layer.

    The columns hold the gates in the order reset, update, new, each H wide. `recurrent_bias`
    belongs to the new gate alone: in the other two it would only add to `bias`.
    """

    kernel: Float[Array, "D 3*H"]
    recurrent: Float[Array, "H 3*H"]
    bias: Float[Array, " 3*H"]
    recurrent_bias: Float[Array, " H"]


class RNNWeights(NamedTuple):
    """Weights of one direction of a simple (Elman) recurrent layer."""

    kernel: Float[Array, "D H"]
    recurrent: Float[Array, "H H"]
    bias: Float[Array, " H"]


class LSTMState(NamedTuple):
    """What an LSTM remembers: the hidden state, which is also its output, and the cell."""

    hidden: Float[Array, " H"]
    cell: Float[Array, " H"]


def lstm_step(weights: LSTMWeights, state: LSTMState, x: Float[Array, " D"]) -> LSTMState:
    r"""Advance an LSTM by one time step (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    $i, f, o = \sigma(x W + h U + b)$, $g = \tanh(x W + h U + b)$, each with its own columns;
    $c' = f \odot c + i \odot g$ and $h' = o \odot \tanh c'$.

    Args:
        weights: kernel (D, 4H), recurrent (H, 4H) and bias (4H,).
        state: hidden (H,) and cell (H,) of the step before.
        x: input (D,) of one example; `jax.vmap` gives batches.

    Returns:
        The next state; its `hidden` is the output.
    """
    gates = _affine(weights.kernel, weights.recurrent, weights.bias, state.hidden, x)
    return _lstm_update(gates, state.cell)


def gru_step(
    weights: GRUWeights, hidden: Float[Array, " H"], x: Float[Array, " D"]
) -> Float[Array, " H"]:
    r"""Advance a GRU by one time step (Cho et al. 2014).

    The reset applies after the recurrent product:
    $r, u = \sigma(x W + h U + b)$, each with its own columns; with $d$ the recurrent bias
    $n = \tanh(x W_n + b_n + r \odot (h U_n + d))$ and $h' = (1 - u) \odot n + u \odot h$. This is
    the form of PyTorch, and of Keras with `reset_after=True`.

    Args:
        weights: kernel (D, 3H), recurrent (H, 3H), bias (3H,) and recurrent_bias (H,).
        hidden: hidden state (H,) of the step before.
        x: input (D,) of one example; `jax.vmap` gives batches.

    Returns:
        The next hidden state (H,), which is also the output.
    """
    split = 2 * hidden.size
    kernel, new_kernel = jnp.split(weights.kernel, [split], axis=1)
    recurrent, new_recurrent = jnp.split(weights.recurrent, [split], axis=1)
    bias, new_bias = jnp.split(weights.bias, [split])
    gates = _affine(kernel, recurrent, bias, hidden, x)
    recalled = hidden @ new_recurrent + weights.recurrent_bias
    return _gru_update(gates, x @ new_kernel + new_bias, recalled, hidden)


def rnn_step(
    weights: RNNWeights,
    hidden: Float[Array, " H"],
    x: Float[Array, " D"],
    activation: Callable[[Array], Array] = jnp.tanh,
) -> Float[Array, " H"]:
    r"""Advance a simple recurrent network by one time step (Elman 1990).

    $h' = \phi(x W + h U + b)$.

    Args:
        weights: kernel (D, H), recurrent (H, H) and bias (H,).
        hidden: hidden state (H,) of the step before.
        x: input (D,) of one example; `jax.vmap` gives batches.
        activation: $\phi$, elementwise.

    Returns:
        The next hidden state (H,), which is also the output.
    """
    return activation(_affine(weights.kernel, weights.recurrent, weights.bias, hidden, x))


def _affine(kernel: Array, recurrent: Array, bias: Array, hidden: Array, x: Array) -> Array:
    # Two products in the step. For many rows of an LSTM on a CPU, x @ kernel ahead of the loop took
    # 2.3 times the time (its rows must be turned round, and leave the cache); one product over
    # [x, hidden] took 0.9 to 1.05, but hides from a caller what depends on x alone.
    return x @ kernel + bias + hidden @ recurrent


# The derivatives below are those of automatic differentiation, in another order: one factor for
# each number that moves, made once in the forward pass. An LSTM's reverse mode then keeps 6 values
# a unit and step (automatically 11), and its loop backward holds products and multiplications only:
# on a CPU an input gradient takes 0.65 to 0.95 of the time. Unrolling, the four gates' factors in
# one array, and tanh for the sigmoid were no faster.
@jax.custom_jvp
def _lstm_update(gates: Array, cell: Array) -> LSTMState:
    i, f, g, o = _activated(gates)
    cell = f * cell + i * g
    return LSTMState(o * jnp.tanh(cell), cell)


@_lstm_update.defjvp
def _lstm_update_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[LSTMState, LSTMState]:
    gates, old = primals
    i, f, _, o = jnp.split(jax.nn.sigmoid(gates), 4)
    # Kept apart, tanh is taken of the one gate alone: 0.95 of the time of a gradient. Without a
    # derivative, where fewer read it, that was slower.
    g = jax.lax.optimization_barrier(jnp.tanh(jnp.split(gates, 4)[2]))
    cell = f * old + i * g
    seen = jnp.tanh(cell)
    by_i, by_f, by_g = g * (i * (1 - i)), old * (f * (1 - f)), i * (1 - g * g)
    by_o, by_cell = seen * (o * (1 - o)), o * (1 - seen * seen)
    d_gates, d_old = tangents
    d_i, d_f, d_g, d_o = jnp.split(d_gates, 4)
    d_cell = f * d_old + by_i * d_i + by_f * d_f + by_g * d_g
    return LSTMState(o * seen, cell), LSTMState(by_o * d_o + by_cell * d_cell, d_cell)


def _activated(gates: Array) -> tuple[Array, ...]:
    # All gates at once, though a part of each is thrown away: XLA would put a function of a slice
    # into each loop that reads it, and compute it twice. A step takes half of the time so.
    i, f, _, o = jnp.split(jax.nn.sigmoid(gates), 4)
    return i, f, jnp.split(jnp.tanh(gates), 4)[2], o


@jax.custom_jvp
def _gru_update(gates: Array, seen: Array, recalled: Array, hidden: Array) -> Array:
    reset, update = jnp.split(jax.nn.sigmoid(gates), 2)
    new = jnp.tanh(seen + reset * recalled)
    return (1 - update) * new + update * hidden


@_gru_update.defjvp
def _gru_update_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    gates, seen, recalled, hidden = primals
    reset, update = jnp.split(jax.nn.sigmoid(gates), 2)
    new = jnp.tanh(seen + reset * recalled)
    by_update = (hidden - new) * (update * (1 - update))
    by_seen = (1 - update) * (1 - new * new)
    by_recalled = by_seen * reset
    by_reset = by_seen * recalled * (reset * (1 - reset))
    d_gates, d_seen, d_recalled, d_hidden = tangents
    d_reset, d_update = jnp.split(d_gates, 2)
    moved = by_reset * d_reset + by_update * d_update
    moved += by_seen * d_seen + by_recalled * d_recalled + update * d_hidden
    return (1 - update) * new + update * hidden, moved
