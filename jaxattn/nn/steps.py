"""One time step of one example: pure functions of weights, state and input."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class LSTMWeights(NamedTuple):
    """Weights of one direction of an LSTM layer.

    The columns hold the gates in the order input, forget, cell, output, H columns each. There are
    no peepholes.
    """

    kernel: Float[Array, "D 4*H"]
    recurrent: Float[Array, "H 4*H"]
    bias: Float[Array, " 4*H"]


class GRUWeights(NamedTuple):
    """Weights of one direction of a GRU layer.

    The columns hold the gates in the order reset, update, new, H columns each. Only the new gate
    has a `recurrent_bias`; for the others it would be redundant with `bias`.
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
    """The state of an LSTM: the hidden state, which is also its output, and the cell."""

    hidden: Float[Array, " H"]
    cell: Float[Array, " H"]


def lstm_step(weights: LSTMWeights, state: LSTMState, x: Float[Array, " D"]) -> LSTMState:
    r"""Advance an LSTM by one time step.

    The gates are $i, f, o = \sigma(x W + h U + b)$ and $g = \tanh(x W + h U + b)$, each with its
    own columns of the weights. The next state is $c' = f \odot c + i \odot g$ and
    $h' = o \odot \tanh c'$.

    Args:
        weights: Kernel `(D, 4H)`, recurrent kernel `(H, 4H)` and bias `(4H,)`.
        state: Hidden state `(H,)` and cell `(H,)` of the previous step.
        x: Input `(D,)` of one example; vectorise with `jax.vmap`.

    Returns:
        The next state; its `hidden` is the output.

    Reference:
        Hochreiter and Schmidhuber 1997, Long short-term memory; Gers, Schmidhuber and Cummins 2000,
        Learning to forget: continual prediction with LSTM.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> weights = ja.nn.LSTM(3, 4, rngs=nnx.Rngs(0)).weights()
        >>> state = ja.nn.LSTMState(jnp.zeros(4), jnp.zeros(4))
        >>> ja.nn.lstm_step(weights, state, jnp.ones(3)).hidden.shape
        (4,)
    """
    gates = _affine(weights.kernel, weights.recurrent, weights.bias, state.hidden, x)
    return _lstm_update(gates, state.cell)


def gru_step(
    weights: GRUWeights, hidden: Float[Array, " H"], x: Float[Array, " D"]
) -> Float[Array, " H"]:
    r"""Advance a GRU by one time step.

    The gates are $r, u = \sigma(x W + h U + b)$, each with its own columns of the weights. With the
    recurrent bias $d$, $n = \tanh(x W_n + b_n + r \odot (h U_n + d))$, and the next state is
    $h' = (1 - u) \odot n + u \odot h$. The reset gate applies after the recurrent product, as in
    PyTorch and in Keras with `reset_after=True`.

    Args:
        weights: Kernel `(D, 3H)`, recurrent kernel `(H, 3H)`, bias `(3H,)` and recurrent bias
            `(H,)`.
        hidden: Hidden state `(H,)` of the previous step.
        x: Input `(D,)` of one example; vectorise with `jax.vmap`.

    Returns:
        The next hidden state `(H,)`, which is also the output.

    Reference:
        Cho et al. 2014, Learning phrase representations using RNN encoder-decoder for statistical
        machine translation, arXiv:1406.1078.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> weights = ja.nn.GRU(3, 4, rngs=nnx.Rngs(0)).weights()
        >>> ja.nn.gru_step(weights, jnp.zeros(4), jnp.ones(3)).shape
        (4,)
    """
    split = 2 * hidden.size
    kernel, new_kernel = jnp.split(weights.kernel, [split], axis=1)
    recurrent, new_recurrent = jnp.split(weights.recurrent, [split], axis=1)
    bias, new_bias = jnp.split(weights.bias, [split])
    gates = _affine(kernel, recurrent, bias, hidden, x)
    recurrent_new = hidden @ new_recurrent + weights.recurrent_bias
    return _gru_update(gates, x @ new_kernel + new_bias, recurrent_new, hidden)


def rnn_step(
    weights: RNNWeights,
    hidden: Float[Array, " H"],
    x: Float[Array, " D"],
    activation: Callable[[Array], Array] = jnp.tanh,
) -> Float[Array, " H"]:
    r"""Advance a simple recurrent network by one time step.

    The next state is $h' = \phi(x W + h U + b)$.

    Args:
        weights: Kernel `(D, H)`, recurrent kernel `(H, H)` and bias `(H,)`.
        hidden: Hidden state `(H,)` of the previous step.
        x: Input `(D,)` of one example; vectorise with `jax.vmap`.
        activation: $\phi$, elementwise.

    Returns:
        The next hidden state `(H,)`, which is also the output.

    Reference:
        Elman 1990, Finding structure in time.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> weights = ja.nn.RNN(3, 4, rngs=nnx.Rngs(0)).weights()
        >>> ja.nn.rnn_step(weights, jnp.zeros(4), jnp.ones(3)).shape
        (4,)
    """
    return activation(_affine(weights.kernel, weights.recurrent, weights.bias, hidden, x))


def _affine(kernel: Array, recurrent: Array, bias: Array, hidden: Array, x: Array) -> Array:
    # Two products in the step. For many rows of an LSTM on a CPU, x @ kernel ahead of the loop took
    # 2.3 times as long, as its rows are transposed and leave the cache. One product over
    # [x, hidden] took 0.9 to 1.05 times as long, but then no step depends on x alone, which reuse
    # and relevance propagation rely on.
    return x @ kernel + bias + hidden @ recurrent


# The derivatives below are those of automatic differentiation, but computed as one factor per
# operand in the forward pass. Reverse mode of an LSTM then stores 6 values per unit and step, not
# 11, and its backward loop holds only products and multiplications: on a CPU an input gradient
# takes 0.65 to 0.95 times as long. Unrolling, the factors of all gates in one array, and tanh
# instead of the sigmoid were no faster.
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
    # The barrier restricts tanh to this gate: a gradient takes 0.95 times as long. Without a
    # derivative it was slower.
    g = jax.lax.optimization_barrier(jnp.tanh(jnp.split(gates, 4)[2]))
    cell = f * old + i * g
    squashed = jnp.tanh(cell)
    by_i, by_f, by_g = g * (i * (1 - i)), old * (f * (1 - f)), i * (1 - g * g)
    by_o, by_cell = squashed * (o * (1 - o)), o * (1 - squashed * squashed)
    d_gates, d_old = tangents
    d_i, d_f, d_g, d_o = jnp.split(d_gates, 4)
    d_cell = f * d_old + by_i * d_i + by_f * d_f + by_g * d_g
    return LSTMState(o * squashed, cell), LSTMState(by_o * d_o + by_cell * d_cell, d_cell)


def _activated(gates: Array) -> tuple[Array, ...]:
    # Both functions of all gates, though parts are discarded: XLA would fuse a function of a slice
    # into each loop that uses it, and compute it twice. A step takes half the time this way.
    i, f, _, o = jnp.split(jax.nn.sigmoid(gates), 4)
    return i, f, jnp.split(jnp.tanh(gates), 4)[2], o


@jax.custom_jvp
def _gru_update(gates: Array, input_new: Array, recurrent_new: Array, hidden: Array) -> Array:
    reset, update = jnp.split(jax.nn.sigmoid(gates), 2)
    new = jnp.tanh(input_new + reset * recurrent_new)
    return (1 - update) * new + update * hidden


@_gru_update.defjvp
def _gru_update_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    gates, input_new, recurrent_new, hidden = primals
    reset, update = jnp.split(jax.nn.sigmoid(gates), 2)
    new = jnp.tanh(input_new + reset * recurrent_new)
    by_update = (hidden - new) * (update * (1 - update))
    by_input = (1 - update) * (1 - new * new)
    by_recurrent = by_input * reset
    by_reset = by_input * recurrent_new * (reset * (1 - reset))
    d_gates, d_input, d_recurrent, d_hidden = tangents
    d_reset, d_update = jnp.split(d_gates, 2)
    tangent = by_reset * d_reset + by_update * d_update
    tangent += by_input * d_input + by_recurrent * d_recurrent + update * d_hidden
    return (1 - update) * new + update * hidden, tangent
