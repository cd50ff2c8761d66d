"""Tests of the recurrent layers against a NumPy loop, of padding, gradients and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st
from jax.test_util import check_grads
from parameters import with_random_parameters

from jaxattn import nn

T, D, H = 5, 3, 4
LAYERS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *args, **options: nn.RNN(*args, activation="relu", **options),
}
every_cell = pytest.mark.parametrize("cell", LAYERS)
every_form = pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}]
)
both_paddings = pytest.mark.parametrize("padding", ["right", "left"])


def make(cell, dtype=jnp.float32, in_features=D, **options):
    """Return a layer with nonzero biases."""
    return with_random_parameters(
        lambda: LAYERS[cell](in_features, H, param_dtype=dtype, rngs=nnx.Rngs(0), **options)
    )


def inputs(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def loop(cell, w, x):
    """Run one direction over valid steps and return all hidden states and the last one."""
    kernel, recurrent, bias = (np.asarray(a) for a in w[:3])
    kernels, recurrents, biases = (
        np.split(a, a.shape[-1] // H, -1) for a in (kernel, recurrent, bias)
    )
    h, c, outputs = np.zeros(H), np.zeros(H), []
    for x_t in x:
        fed = [x_t @ k + b for k, b in zip(kernels, biases, strict=True)]
        back = [h @ r for r in recurrents]
        z = [a + b for a, b in zip(fed, back, strict=True)]
        if cell == "lstm":
            c = sigmoid(z[1]) * c + sigmoid(z[0]) * np.tanh(z[2])
            h = sigmoid(z[3]) * np.tanh(c)
        elif cell == "gru":
            new = np.tanh(fed[2] + sigmoid(z[0]) * (back[2] + np.asarray(w.recurrent_bias)))
            h = (1 - sigmoid(z[1])) * new + sigmoid(z[1]) * h
        else:
            h = np.tanh(z[0]) if cell == "tanh" else np.maximum(z[0], 0)
        outputs.append(h)
    return np.array(outputs).reshape(-1, H), h


def expected(cell, layer, x, length, padding):
    start = 0 if padding == "right" else len(x) - length
    now = x[start : start + length]
    for i in range(layer.num_layers):
        outputs, state = loop(cell, layer.weights(i), now)
        if layer.bidirectional:
            backward, first = loop(cell, layer.weights(i, backward=True), now[::-1])
            outputs = np.concatenate([outputs, backward[::-1]], -1)
            state = np.concatenate([state, first])
        now = outputs
    padded = np.zeros((len(x), outputs.shape[-1]))
    padded[start : start + length] = outputs
    return padded, state


@every_cell
@every_form
@both_paddings
@pytest.mark.representatives(
    "right-options0-lstm",
    "right-options1-tanh",
    "left-options2-lstm",
    "left-options2-gru",
)
def test_equals_a_plain_loop(cell, options, padding, x64):
    layer = make(cell, jnp.float64, **options)
    x = inputs(T + 1, T, D, dtype=np.float64)
    lengths = np.arange(T + 1)
    got = layer(x, lengths, padding=padding)
    for i, n in enumerate(lengths):
        outputs, state = expected(cell, layer, x[i], n, padding)
        np.testing.assert_allclose(got.outputs[i], outputs, rtol=0, atol=1e-12)
        np.testing.assert_allclose(got.state[i], state, rtol=0, atol=1e-12)
    full = layer(x[-1])
    np.testing.assert_allclose(full.outputs, got.outputs[-1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(full.state, got.state[-1], rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.representatives("True-lstm")
@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
def test_batch_axes_equal_vmap(cell, bidirectional):
    layer = make(cell, bidirectional=bidirectional)
    x = inputs(2, 3, T, D)
    lengths = np.array([[5, 0, 2], [1, 3, 4]])
    batched = layer(x, lengths)
    width = H * (1 + bidirectional)
    assert batched.outputs.shape == (2, 3, T, width)
    assert batched.state.shape == (2, 3, width)
    for i in range(2):
        mapped = jax.jit(jax.vmap(layer))(x[i], lengths[i])  # one traced length each
        for a, b in zip(batched, mapped, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=0, atol=1e-6)
        single = layer(x[i, 2], lengths[i, 2])
        np.testing.assert_allclose(single.state, batched.state[i, 2], rtol=0, atol=1e-6)


@pytest.mark.representatives("left-gru")
@every_cell
@both_paddings
def test_padding_is_ignored(cell, padding):
    layer = make(cell, num_layers=2, bidirectional=True)
    x, length = inputs(T, D), 3
    valid = np.asarray(nn.valid_steps(length, T, padding))
    garbage = np.array([0, np.nan, np.inf, 1e30], np.float32)
    xs = np.where(valid[:, None], x, garbage[:, None, None])

    def loss(layer, x):
        outputs, state = layer(x, length, padding=padding)
        return (outputs**2).sum() + state.sum(), (outputs, state)

    both = nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, (outputs, state)), (of_weights, of_x) = nnx.jit(nnx.vmap(both, in_axes=(None, 0)))(
        layer, xs
    )
    for leaf in jax.tree.leaves((outputs, state, of_weights, of_x)):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
    assert np.isfinite(of_x).all() and (of_x[:, valid] != 0).all()
    np.testing.assert_array_equal(of_x[:, ~valid], 0)
    np.testing.assert_array_equal(outputs[:, ~valid], 0)
    np.testing.assert_allclose(state[0], layer(x[valid]).state, rtol=0, atol=1e-6)


def test_eager_calls_compile_once(caplog):
    with jax.log_compiles():
        for seed in range(3):
            make("gru", bidirectional=True)(inputs(7, 6, D) + seed, np.full(7, seed))
    compiled = [r for r in caplog.records if "Compiling" in r.message and "_scan" in r.message]
    assert len(compiled) == 1


@every_cell
def test_length_zero_state_is_zero(cell):
    outputs, state = make(cell, bidirectional=True)(np.full((T, D), np.nan, np.float32), 0)
    assert not outputs.any() and not state.any()


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, T), min_size=3, max_size=3), st.sampled_from(["right", "left"]))
def test_outputs_are_equivariant_to_padding_side(lengths, padding):
    layer, x = _LSTM, inputs(3, T, D)
    got = _run(layer, x, np.array(lengths), padding)
    for i, n in enumerate(lengths):
        valid = np.asarray(nn.valid_steps(n, T, padding))
        other = "left" if padding == "right" else "right"
        repadded = np.full((T, D), np.nan, np.float32)
        repadded[np.asarray(nn.valid_steps(n, T, other))] = x[i, valid]
        again = _run(layer, repadded[None], np.array([n]), other)
        np.testing.assert_allclose(got.state[i], again.state[0], rtol=0, atol=1e-6)
        shifted = np.roll(again.outputs[0], n - T if other == "left" else T - n, axis=0)
        np.testing.assert_allclose(got.outputs[i], shifted, rtol=0, atol=1e-6)


_LSTM = make("lstm", bidirectional=True)
_run = nnx.jit(lambda layer, x, n, padding: layer(x, n, padding=padding), static_argnums=3)


@pytest.mark.slow
@pytest.mark.representatives("lstm")
@every_cell
def test_gradients_equal_finite_differences(cell, x64):
    layer = make(cell, jnp.float64, bidirectional=True)
    graph, params = nnx.split(layer)

    @jax.jit
    def score(params, x):
        outputs, state = nnx.merge(graph, params)(x, 4, padding="left")
        return (outputs * jnp.cos(outputs)).sum() + (state**2).sum()

    x = inputs(T, D, dtype=np.float64)
    check_grads(score, (nnx.as_pure(params), x), order=1, modes=["fwd", "rev"])


@pytest.mark.representatives("bfloat16-int32-bfloat16")
@pytest.mark.parametrize(
    ("param_dtype", "x_dtype", "expected"),
    [
        ("float32", "int8", "float32"),
        ("bfloat16", "int32", "bfloat16"),
        ("float16", "bfloat16", "float32"),
        ("float32", "float64", "float64"),
        ("float64", "float32", "float64"),
    ],
)
def test_dtype_is_promoted_from_weights_and_input(param_dtype, x_dtype, expected, x64):
    layer = make("gru", param_dtype)
    x = jnp.asarray(np.arange(T * D).reshape(T, D) % 3, x_dtype)
    assert {p.dtype for p in jax.tree.leaves(nnx.state(layer))} == {jnp.dtype(param_dtype)}
    outputs, state = layer(x, 3)
    assert outputs.dtype == state.dtype == expected
    tolerance = {"bfloat16": 0.03, "float32": 1e-6, "float64": 0}[expected]
    exact = layer(x.astype("float64"), 3).state
    np.testing.assert_allclose(state.astype("float64"), exact, rtol=0, atol=tolerance)


@pytest.mark.representatives("lstm")
@every_cell
def test_bfloat16_bidirectional(cell):
    layer = make(cell, "bfloat16", bidirectional=True)
    x = inputs(T, D)
    got = layer(x.astype(jnp.bfloat16), 3)
    assert got.outputs.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.state.astype("float32"), layer(x, 3).state, rtol=0, atol=0.05)


def test_initial_weights():
    for cell, gates in {"lstm": 4, "gru": 3, "tanh": 1}.items():
        layer = LAYERS[cell](D, H, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
        first, above = layer.weights(0, backward=True), layer.weights(1)
        assert first.kernel.shape == (D, gates * H)
        assert above.kernel.shape == (2 * H, gates * H)
        assert not np.array_equal(first.recurrent, layer.weights(0).recurrent)
        for gate in np.split(np.asarray(first.recurrent), gates, axis=1):
            np.testing.assert_allclose(gate @ gate.T, np.eye(H), rtol=0, atol=1e-6)
        limit = np.sqrt(6 / (D + H))
        assert 0.5 * limit < np.abs(first.kernel).max() <= limit
        bias = np.repeat([0, 1, 0, 0], H) if cell == "lstm" else np.zeros(gates * H)
        np.testing.assert_array_equal(first.bias, bias)


@pytest.mark.slow
def test_step_functions_equal_layers():
    x = inputs(1, D)
    w = make("lstm").weights()
    zero = jnp.zeros(H)
    state = nn.lstm_step(w, nn.LSTMState(zero, zero), jnp.asarray(x[0]))
    np.testing.assert_allclose(state.hidden, make("lstm")(x).state, rtol=0, atol=1e-7)
    i, _, g, _ = np.split(np.asarray(x[0] @ w.kernel + w.bias), 4)
    np.testing.assert_allclose(state.cell, sigmoid(i) * np.tanh(g), rtol=0, atol=1e-6)
    hidden = nn.gru_step(make("gru").weights(), zero, jnp.asarray(x[0]))
    np.testing.assert_allclose(hidden, make("gru")(x).state, rtol=0, atol=1e-7)
    hidden = nn.rnn_step(make("relu").weights(), zero, jnp.asarray(x[0]), jax.nn.relu)
    np.testing.assert_allclose(hidden, make("relu")(x).state, rtol=0, atol=1e-7)


@every_cell
def test_graph_is_hashable_and_equal_for_equal_layers(cell):
    graphs = [nnx.split(make(cell, bidirectional=True))[0] for _ in range(2)]
    assert graphs[0] == graphs[1] and hash(graphs[0]) == hash(graphs[1])
    assert graphs[0] != nnx.split(make(cell))[0]


def test_activation_is_part_of_graph():
    assert nnx.split(make("tanh"))[0] != nnx.split(make("relu"))[0]


def test_valid_steps():
    assert nn.valid_steps(2, 3).tolist() == [True, True, False]
    assert nn.valid_steps(np.array([[0], [2]]), 3, "left").tolist() == [
        [[False] * 3],
        [[False, True, True]],
    ]
    assert nn.valid_steps(np.uint8(2), 300, "left").sum() == 2


X = np.zeros((2, T, D), np.float32)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"`x` must have shape \(\.\.\., T, 3\), got \(3,\)", lambda m: m(X[0, 0])),
        (
            ValueError,
            r"`x` must have shape \(\.\.\., T, 3\), got \(2, 5, 2\)",
            lambda m: m(X[..., :2]),
        ),
        (TypeError, "`x` must be real numbers, got dtype complex64", lambda m: m(X + 1j)),
        (ValueError, r"`lengths` must have shape \(2,\)", lambda m: m(X, 3)),
        (ValueError, r"`lengths` must have shape \(\)", lambda m: m(X[0], np.array([3]))),
        (
            ValueError,
            r"`lengths` must lie in \[0, T\] = \[0, 5\], got \[6 2\]",
            lambda m: m(X, np.array([6, 2])),
        ),
        (ValueError, r"`lengths` must lie in .*, got -1", lambda m: m(X[0], -1)),
        (TypeError, "`lengths` must be integers, got dtype float32", lambda m: m(X[0], 2.0)),
        (TypeError, "`lengths` must be integers, got dtype bool", lambda m: m(X[0], True)),
        (ValueError, "`padding` must be .* got 'pre'", lambda m: m(X, padding="pre")),
        (ValueError, r"`layer` must lie in \[0, 1\), got 1", lambda m: m.weights(1)),
        (ValueError, "`backward` must be False", lambda m: m.weights(backward=True)),
    ],
)
def test_wrong_arguments(error, message, call):
    with pytest.raises(error, match=message):
        call(make("gru"))


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "`hidden_features` must be at least 1, got 0", {"hidden_features": 0}),
        (ValueError, "`num_layers` must be at least 1, got 0", {"num_layers": 0}),
        (ValueError, "`activation` must be 'tanh' or 'relu', got 'elu'", {"activation": "elu"}),
        (TypeError, "`param_dtype` must be floating, got int32", {"param_dtype": "int32"}),
    ],
)
def test_wrong_settings(error, message, options):
    with pytest.raises(error, match=message):
        nn.RNN(**{"in_features": D, "hidden_features": H, "rngs": nnx.Rngs(0)} | options)


def lstm_by_autodiff(w, state, x):
    i, f, g, o = jnp.split(x @ w.kernel + state.hidden @ w.recurrent + w.bias, 4)
    cell = jax.nn.sigmoid(f) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return nn.LSTMState(jax.nn.sigmoid(o) * jnp.tanh(cell), cell)


def gru_by_autodiff(w, hidden, x):
    of_x = jnp.split(x @ w.kernel + w.bias, 3)
    of_h = jnp.split(hidden @ w.recurrent, 3)
    reset, update = (jax.nn.sigmoid(a + b) for a, b in zip(of_x[:2], of_h[:2], strict=True))
    new = jnp.tanh(of_x[2] + reset * (of_h[2] + w.recurrent_bias))
    return (1 - update) * new + update * hidden


@pytest.mark.slow
@pytest.mark.representatives("lstm")
@pytest.mark.parametrize(
    ("cell", "step", "by_autodiff"),
    [("lstm", nn.lstm_step, lstm_by_autodiff), ("gru", nn.gru_step, gru_by_autodiff)],
)
def test_custom_derivatives_equal_autodiff(cell, step, by_autodiff, x64):
    weights = make(cell, np.float64).weights()
    draw = iter(jnp.asarray(inputs(3, H, dtype=np.float64)))
    state = nn.LSTMState(next(draw), next(draw)) if cell == "lstm" else next(draw)
    operands = weights, state, next(draw)[:D]

    def curvature(f, _):
        def energy(*operands):
            return sum((leaf**2).sum() for leaf in jax.tree.leaves(f(*operands)))

        return jax.hessian(energy, (1, 2))

    for differentiate in (jax.jacfwd, jax.jacrev, curvature):
        got, want = (jax.jit(differentiate(f, (0, 1, 2)))(*operands) for f in (step, by_autodiff))
        assert len(jax.tree.leaves(got)) == len(jax.tree.leaves(want))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("cell", "values"), [("lstm", 6), ("gru", 5)])
def test_reverse_mode_residual_count(cell, values):
    layer = make(cell)
    _, pullback = jax.vjp(lambda x: layer(x).state, inputs(T, D))
    kept = [leaf for leaf in jax.tree.leaves(pullback) if jnp.shape(leaf) == (T, H)]
    assert len(kept) == values
