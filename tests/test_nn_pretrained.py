"""Tests of layers with weights of PyTorch and Keras against their equations and outputs."""

import math

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx

from jaxattn import nn

T, D, H = 4, 3, 2
LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
every_cell = pytest.mark.parametrize("cell", LAYERS)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def state_dict(cell, num_layers=1, bidirectional=False, bias=True, prefix="", width=D):
    rng = np.random.default_rng(0)
    rows, arrays = GATES[cell] * H, {}
    for layer in range(num_layers):
        fed = width if layer == 0 else H * (1 + bidirectional)
        for direction in ("", "_reverse")[: 1 + bidirectional]:
            shapes = {"weight_ih": (rows, fed), "weight_hh": (rows, H)}
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)} if bias else {}
            for name, shape in shapes.items():
                arrays[f"{prefix}{name}_l{layer}{direction}"] = rng.normal(size=shape)
    return arrays


def torch_reference(cell, weights, x, num_layers=1, bidirectional=False):
    """Evaluate PyTorch's documented equations of nn.LSTM, nn.GRU and nn.RNN for one example."""
    for layer in range(num_layers):
        sides = []
        for direction in ("", "_reverse")[: 1 + bidirectional]:
            rows = GATES[cell] * H
            w_i, w_h = (weights[f"weight_{k}_l{layer}{direction}"] for k in ("ih", "hh"))
            b_i, b_h = (
                weights.get(f"bias_{k}_l{layer}{direction}", np.zeros(rows)) for k in ("ih", "hh")
            )
            h, c, outputs = np.zeros(H), np.zeros(H), []
            for x_t in x[::-1] if direction else x:
                a, b = np.split(w_i @ x_t + b_i, GATES[cell]), np.split(w_h @ h + b_h, GATES[cell])
                if cell == "lstm":
                    i, f, g, o = (p + q for p, q in zip(a, b, strict=True))
                    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                    h = sigmoid(o) * np.tanh(c)
                elif cell == "gru":
                    r, z = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1])
                    n = np.tanh(a[2] + r * b[2])
                    h = (1 - z) * n + z * h
                else:
                    h = np.tanh(a[0] + b[0])
                outputs.append(h)
            sides.append(np.array(outputs[::-1] if direction else outputs))
        x = np.concatenate(sides, axis=1)
    return x


@every_cell
@pytest.mark.parametrize(
    "form",
    [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}],
    ids=["one", "stacked both ways", "no bias"],
)
def test_torch_layout(cell, form, x64):
    weights = state_dict(cell, prefix="encoder.rnn.", **form)
    weights["head.weight"] = weights["encoder.head.weight"] = np.zeros(7)
    form = {name: value for name, value in form.items() if name != "bias"}
    layer = LAYERS[cell](D, H, param_dtype="float64", rngs=nnx.Rngs(0), **form)
    assert nn.from_torch(layer, weights, "encoder.rnn.") is layer
    x = np.random.default_rng(1).normal(size=(T, D))
    bare = {name.removeprefix("encoder.rnn."): value for name, value in weights.items()}
    want = torch_reference(cell, bare, x, **form)
    np.testing.assert_allclose(layer(x).outputs, want, rtol=0, atol=1e-12)


def test_lstm_by_hand():
    """One unit with different weights in each gate: i .1, f .2, g .3, o .4 and so on."""
    weights = {
        "weight_ih_l0": np.array([[0.1], [0.2], [0.3], [0.4]]),
        "weight_hh_l0": np.array([[0.5], [-0.6], [0.7], [-0.8]]),
        "bias_ih_l0": np.array([0.01, 0.02, 0.03, 0.04]),
        "bias_hh_l0": np.array([0.5, -0.25, 0.125, 1.0]),
    }
    h = c = 0.0
    for x in (1.0, -2.0):
        i = 1 / (1 + math.exp(-(0.1 * x + 0.5 * h + 0.51)))
        f = 1 / (1 + math.exp(-(0.2 * x - 0.6 * h - 0.23)))
        g = math.tanh(0.3 * x + 0.7 * h + 0.155)
        o = 1 / (1 + math.exp(-(0.4 * x - 0.8 * h + 1.04)))
        c = f * c + i * g
        h = o * math.tanh(c)
    x = np.array([[1.0], [-2.0]], np.float32)
    layer = nn.from_torch(nn.LSTM(1, 1, rngs=nnx.Rngs(0)), weights)
    np.testing.assert_allclose(layer(x).state, [h], rtol=0, atol=1e-6)
    keras_order = [
        weights["weight_ih_l0"].T,
        weights["weight_hh_l0"].T,
        weights["bias_ih_l0"] + weights["bias_hh_l0"],
    ]
    layer = nn.from_keras(nn.LSTM(1, 1, rngs=nnx.Rngs(0)), keras_order)
    np.testing.assert_allclose(layer(x).state, [h], rtol=0, atol=1e-6)


def test_gru_by_hand():
    """One unit with different weights in each gate; the reset gate scales the recurrent bias."""
    torch = {
        "weight_ih_l0": np.array([[0.1], [0.2], [0.3]]),
        "weight_hh_l0": np.array([[0.5], [-0.6], [0.7]]),
        "bias_ih_l0": np.array([0.01, 0.02, 0.03]),
        "bias_hh_l0": np.array([0.5, -0.25, 0.125]),
    }
    h = 0.0
    for x in (1.0, -2.0):
        r = 1 / (1 + math.exp(-(0.1 * x + 0.5 * h + 0.51)))
        z = 1 / (1 + math.exp(-(0.2 * x - 0.6 * h - 0.23)))
        n = math.tanh(0.3 * x + 0.03 + r * (0.7 * h + 0.125))
        h = (1 - z) * n + z * h
    x = np.array([[1.0], [-2.0]], np.float32)
    layer = nn.from_torch(nn.GRU(1, 1, rngs=nnx.Rngs(0)), torch)
    np.testing.assert_allclose(layer(x).state, [h], rtol=0, atol=1e-6)
    update_first = [
        np.array([[0.2, 0.1, 0.3]]),
        np.array([[-0.6, 0.5, 0.7]]),
        np.array([[0.02, 0.01, 0.03], [-0.25, 0.5, 0.125]]),
    ]
    layer = nn.from_keras(nn.GRU(1, 1, rngs=nnx.Rngs(0)), update_first)
    np.testing.assert_allclose(layer(x).state, [h], rtol=0, atol=1e-6)


@pytest.fixture
def standard_promotion():
    """Allow the dtype and rank promotion that Keras relies on."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
@pytest.mark.representatives("True-True-lstm")
@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("use_bias", [True, False])
def test_keras_layer(cell, bidirectional, use_bias, standard_promotion):
    keras.utils.set_random_seed(0)
    kind = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}[cell]
    theirs = kind(
        H,
        return_sequences=True,
        use_bias=use_bias,
        bias_initializer=keras.initializers.RandomNormal(stddev=1.0),
        **({"unit_forget_bias": False} if cell == "lstm" else {}),
    )
    if bidirectional:
        theirs = keras.layers.Bidirectional(theirs)
    x = np.random.default_rng(0).normal(size=(5, T, D)).astype(np.float32)
    want = theirs(x)
    ours = LAYERS[cell](D, H, bidirectional=bidirectional, rngs=nnx.Rngs(0))
    assert nn.from_keras(ours, theirs.get_weights()) is ours
    np.testing.assert_allclose(ours(x).outputs, want, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_stacked_keras_layers(standard_promotion):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Bidirectional(keras.layers.GRU(H, return_sequences=True)),
        keras.layers.Bidirectional(keras.layers.GRU(H)),
    ]
    x = np.random.default_rng(0).normal(size=(5, T, D)).astype(np.float32)
    want = layers[1](layers[0](x))
    weights = [array for layer in layers for array in layer.get_weights()]
    ours = nn.GRU(D, H, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(nn.from_keras(ours, weights)(x).state, want, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_loaded_weights_keep_layer_dtype():
    layer = nn.LSTM(D, H, param_dtype="bfloat16", rngs=nnx.Rngs(0))
    nn.from_torch(layer, state_dict("lstm"))
    assert {p.dtype for p in jax.tree.leaves(nnx.state(layer))} == {jnp.dtype("bfloat16")}


def without(name):
    return {key: value for key, value in state_dict("gru").items() if key != name}


@pytest.mark.parametrize(
    ("message", "weights"),
    [
        (r"must hold 'weight_hh_l0', of shape \(6, 2\)", without("weight_hh_l0")),
        (r"must hold 'bias_hh_l0', of shape \(6,\)", without("bias_hh_l0")),
        (r"'weight_ih_l0'\]` must have shape \(6, 3\), got \(6, 4\)", state_dict("gru", width=4)),
        (r"\['bias_hh_l1', .*, 'weight_ih_l1'\]", state_dict("gru", num_layers=2)),
        (r"\['bias_hh_l0_reverse', ", state_dict("gru", bidirectional=True)),
        (r"\['weight_hr_l0'\]", state_dict("gru") | {"weight_hr_l0": np.zeros((1, H))}),
        (
            r"`weights\[0\]`, the kernel, must have shape \(3, 6\), got \(4, 6\)",
            [np.zeros((4, 6))] * 3,
        ),
        (
            r"`weights\[2\]`, the bias of reset_after=True, must have shape \(2, 6\), got \(6,\)",
            [np.zeros((D, 6)), np.zeros((H, 6)), np.zeros(6)],
        ),
        ("for each of the layer's 1 cells, got 6 arrays", [np.zeros((D, 6))] * 6),
    ],
)
def test_wrong_weights_raise_and_leave_layer_unchanged(message, weights):
    layer = nn.GRU(D, H, rngs=nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(layer)))
    with pytest.raises(ValueError, match=message):
        (nn.from_torch if isinstance(weights, dict) else nn.from_keras)(layer, weights)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(layer)))
