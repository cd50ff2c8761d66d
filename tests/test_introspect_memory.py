"""Test derivatives of states with respect to earlier states, and what is computed from them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from recurrent_models import CASES, QUICK, D, H, T, other_libraries, series

import jaxattn as ja
from jaxattn import introspect

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module", autouse=True)
def plain_promotion():
    """The other libraries rely on implicit promotion."""
    with other_libraries():
        yield


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def tiers(names):
    return [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name)
        for name in names
    ]


def advance(cell, weights, state, x):
    """One step of the layers of `jaxattn.nn` and NNX."""
    if isinstance(cell, nnx.RNN):
        return cell.cell(state, x)[0]
    return cell._step()(weights, state, x)


@pytest.mark.parametrize(
    "name", tiers(["jaxattn lstm", "jaxattn gru", "nnx lstm", "nnx optimized", "nnx gru",
                   "jaxattn relu"])
)  # fmt: skip
def test_state_jacobians_are_those_of_sub_sequences(name):
    case, x = CASES[name](), series()
    layer = case.model.rnn
    weights = layer.weights() if isinstance(layer, ja.nn.recurrent.Recurrent) else None
    found = introspect.state_jacobians(case.model, x, reduction=None)
    states = introspect.states(case.model, x)
    is_lstm = states.cell is not None
    cell_first = isinstance(layer, nnx.RNN)

    def later(hidden, cell, rows):
        state = hidden
        if is_lstm:
            state = (cell, hidden) if cell_first else ja.nn.LSTMState(hidden, cell)
        for row in rows:
            state = advance(layer, weights, state, row)
        return tuple(state) if is_lstm else (state,)

    jacobian = jax.jit(jax.jacrev(later, (0, 1) if is_lstm else 0))

    close(found.hidden[2, 2], jnp.eye(H))
    close(found.hidden[1, 3], 0)
    for s, t in ((0, 3), (1, 4)):
        cell = states.cell[s] if is_lstm else None
        expected = jacobian(states.hidden[s], cell, x[s + 1 : t + 1])
        if not is_lstm:
            close(found.hidden[t, s], expected[0])
            continue
        close(found.hidden[t, s], expected[int(cell_first)][0])
        close(found.cell[t, s], expected[1 - int(cell_first)][1])


def rotation(scale, angle=0.3):
    """A simple RNN of two units whose state is rotated and scaled at each step."""
    layer = ja.nn.RNN(1, 2, activation="relu", param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    turn = jnp.array([[jnp.cos(angle), jnp.sin(angle)], [-jnp.sin(angle), jnp.cos(angle)]])
    layer.cells[0]["recurrent"][...] = scale * turn
    layer.cells[0]["bias"][...] = jnp.full(2, 10.0)  # all ReLUs are active
    return layer


def test_spectra_of_a_rotation():
    x = jnp.zeros((6, 1))
    lags = np.tril(np.arange(6)[:, None] - np.arange(6))
    expected = np.tril(0.5**lags)
    for reduction, factor in (("spectral", 1), ("norm", np.sqrt(2))):
        found = introspect.state_jacobians(rotation(0.5), x, reduction=reduction).hidden
        close(found, factor * expected)
    spectra = introspect.state_jacobians(rotation(0.5), x, reduction="singular_values").hidden
    close(spectra, np.stack([expected] * 2, -1))


@pytest.mark.parametrize(("fraction", "steps"), [(0.3, 3), (0.01, np.inf), (0.9, 2)])
def test_memory_reach_of_a_rotation(fraction, steps):
    reach = introspect.memory_reach(rotation(0.5), jnp.zeros((6, 1)), fraction=fraction)
    close(reach.norms, np.sqrt(2) * 0.5 ** np.arange(6))
    assert float(reach.steps) == steps


@pytest.mark.slow
def test_backward_layer_depends_on_later_steps():
    forward, both = (
        ja.nn.GRU(D, H, bidirectional=b, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        for b in (False, True)
    )
    for name in ("kernel", "recurrent", "bias", "recurrent_bias"):
        both.cells[1][name][...] = forward.cells[0][name][...]
    x, layer = series(), "rnn_0/backward"
    mirrored = introspect.state_jacobians(forward, x[::-1]).hidden[::-1, ::-1]
    close(introspect.state_jacobians(both, x, layer=layer).hidden, mirrored)
    expected = introspect.memory_reach(forward, x[::-1])
    close(introspect.memory_reach(both, x, layer=layer).norms, expected.norms)


def test_half_life_of_constant_gates():
    lstm = ja.nn.LSTM(1, 3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    keep = jnp.array([0.5, 0.9, 0.99])
    lstm.cells[0]["kernel"][...] = jnp.zeros((1, 12))
    lstm.cells[0]["recurrent"][...] = jnp.zeros((3, 12))
    logits = jnp.log(keep / (1 - keep))
    lstm.cells[0]["bias"][...] = jnp.zeros(12).at[3:6].set(logits)
    expected = np.log(2) / -np.log(keep)
    close(introspect.half_life(lstm, jnp.ones((4, 1))), expected)
    gru = ja.nn.GRU(1, 3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    gru.cells[0]["kernel"][...] = jnp.zeros((1, 9))
    gru.cells[0]["recurrent"][...] = jnp.zeros((3, 9))
    gru.cells[0]["bias"][...] = jnp.zeros(9).at[3:6].set(logits)
    close(introspect.half_life(gru, jnp.ones((4, 1))), expected)


@pytest.mark.slow
def test_half_life_where_the_update_gate_replaces_the_state():
    case = CASES["haiku gru"]()
    update = introspect.gates(case.model, series()).activation.update
    expected = np.log(2) / -np.log(1 - update).mean(0)
    close(introspect.half_life(case.model, series()), expected)


def test_cells_of_an_unknown_kind_have_states_and_jacobians():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2)))

    def minimal(x):
        """A gate that also resets, as in the minimal gated unit."""

        def step(h, row):
            f = jax.nn.sigmoid(row + h @ kernel)
            n = jnp.tanh(row + (f * h) @ kernel)
            h = (1 - f) * h + f * n
            return h, h

        return jax.lax.scan(step, jnp.zeros(2), x)[1]

    x = series()
    assert [info.kind for info in introspect.layers(minimal, x)] == ["unknown"]
    states = introspect.states(minimal, x)
    assert states.hidden is None
    close(states.carries[0], minimal(x))
    found = introspect.state_jacobians(minimal, x, reduction=None)
    assert found.hidden is None

    def last(h):
        f = jax.nn.sigmoid(x[4] + h @ kernel)
        return (1 - f) * h + f * jnp.tanh(x[4] + (f * h) @ kernel)

    close(found.state[4, 3], jax.jacrev(last)(states.carries[0][3]))
    with pytest.raises(ValueError, match="`layer` 'rnn_0' must be an LSTM, a GRU or a simple"):
        introspect.gates(minimal, x)


LSTM_LAYER = ja.nn.LSTM(D, H, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: introspect.state_jacobians(LSTM_LAYER, x, reduction="l1"),
            '`reduction` must be "norm", "spectral", "singular_values" or None, got \'l1\'',
        ),
        (
            lambda x: introspect.memory_reach(LSTM_LAYER, x, fraction=1),
            "`fraction` must lie between 0 and 1, got 1",
        ),
        (
            lambda x: introspect.memory_reach(LSTM_LAYER, x, state="carry"),
            '`state` must be "hidden" or "cell", got \'carry\'',
        ),
        (
            lambda x: introspect.memory_reach(ja.nn.GRU(D, H, rngs=nnx.Rngs(0)), x, state="cell"),
            "`state` must be \"hidden\" for 'rnn_0', which has no cell state",
        ),
        (
            lambda x: introspect.half_life(ja.nn.RNN(D, H, rngs=nnx.Rngs(0)), x),
            "`layer` 'rnn_0' must be an LSTM or a GRU",
        ),
    ],
)
def test_invalid_arguments_raise(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(jnp.ones((T, D), jnp.float32))
