"""LRP through recurrences: conservation, and agreement with a loop backward through time."""

import functools
import itertools

import equinox as eqx
import flax.linen as linen
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import relevance_reference as reference
from flax import nnx
from jax.tree_util import Partial
from relevance_reference import Cell

import jaxattn as ja

T, D, H, K, TARGET = 5, 3, 4, 3, 2
CASES = {
    f"{gates}, bias {'shared' if conserve else 'absorbed'}": {
        "gates": gates,
        "conserve_bias": conserve,
        "epsilon": 0.01,
    }
    for gates, conserve in [
        ("all", True),
        ("all", False),
        ("half", False),
        ("proportional", True),
    ]
}
CONSERVE = {"conserve_bias": True}


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape) / 1.5


def array(*shape, seed):
    return jnp.asarray(draw(*shape, seed=seed))


X, H0, C0 = draw(T, D), draw(H, seed=1), draw(H, seed=2)
HEAD = draw(H, K), draw(K)


@pytest.fixture(autouse=True)
def float64_and_plain_promotion():
    """The other libraries rely on implicit promotion."""
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
        yield
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


def close(got, want, tolerance=1e-10):
    """Compare relative to the largest value, or to 1."""
    scale = max(1.0, *(np.abs(leaf).max() for leaf in jax.tree.leaves(want)))
    for g, w in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * scale)


def total(tree):
    return sum(leaf.sum() for leaf in jax.tree.leaves(tree))


def every_case(fn, x, cases=CASES):
    """Return the attributions of all cases, from one compiled program."""
    program = reference.compiled(
        lambda x: {n: ja.lrp(fn, x, TARGET, **o) for n, o in cases.items()}
    )
    return program(jax.tree.map(jnp.asarray, x))


# One LSTM of each library. Its initial states are inputs: {"x": (T, D), "h": (H,), "c": (H,)}.


def redraw(tree):
    """Replace all weights and biases by random float64 values."""
    seeds = itertools.count(10)
    return jax.tree.map(
        lambda leaf: (
            jnp.asarray(draw(*leaf.shape, seed=next(seeds))) if eqx.is_inexact_array(leaf) else leaf
        ),
        tree,
    )


def of_jaxattn():
    lstm = ja.nn.LSTM(D, H, param_dtype="float64", rngs=nnx.Rngs(0))
    nnx.update(lstm, redraw(nnx.state(lstm)))
    weights = lstm.weights()

    def fn(inputs):
        def advance(state, x):
            return ja.nn.lstm_step(weights, state, x), None

        state = ja.nn.LSTMState(inputs["h"], inputs["c"])
        return jax.lax.scan(advance, state, inputs["x"])[0].hidden @ HEAD[0] + HEAD[1]

    return fn, Cell(*weights)


def fused(kernel, recurrent, bias):
    """Return the fused weights of a cell that has a dense layer for each gate."""
    parts = [[np.asarray(f(gate)) for gate in "ifgo"] for f in (kernel, recurrent, bias)]
    return Cell(*(np.concatenate(gates, axis=-1) for gates in parts))


def of_linen():
    cell = linen.LSTMCell(H, param_dtype=jnp.float64)
    rnn = linen.RNN(cell)
    params = redraw(rnn.init(jax.random.key(0), X))

    def fn(params, inputs):
        carry = inputs["c"], inputs["h"]
        outputs = rnn.apply(params, inputs["x"], initial_carry=carry)
        return outputs[-1] @ HEAD[0] + HEAD[1]

    w = params["params"]["cell"]
    cell = fused(
        lambda g: w["i" + g]["kernel"], lambda g: w["h" + g]["kernel"], lambda g: w["h" + g]["bias"]
    )
    return Partial(fn, params), cell


class NnxModel(nnx.Module):
    def __init__(self):
        self.rnn = nnx.RNN(nnx.LSTMCell(D, H, param_dtype=jnp.float64, rngs=nnx.Rngs(0)))

    def __call__(self, inputs):
        carry = inputs["c"], inputs["h"]
        return self.rnn(inputs["x"], initial_carry=carry)[-1] @ HEAD[0] + HEAD[1]


def of_nnx():
    model = NnxModel()
    cell = model.rnn.cell
    nnx.update(cell, redraw(nnx.state(cell, nnx.Param)))
    names = {"i": "ii", "f": "if_", "g": "ig", "o": "io"}
    return model, fused(
        lambda g: getattr(cell, names[g]).kernel[...],
        lambda g: getattr(cell, "h" + g).kernel[...],
        lambda g: getattr(cell, "h" + g).bias[...],
    )


class EquinoxModel(eqx.Module):
    cell: eqx.nn.LSTMCell

    def __call__(self, inputs):
        state = inputs["h"], inputs["c"]
        (h, _), _ = jax.lax.scan(lambda s, x: (self.cell(x, s), None), state, inputs["x"])
        return h @ HEAD[0] + HEAD[1]


def of_equinox():
    model = redraw(EquinoxModel(eqx.nn.LSTMCell(D, H, key=jax.random.key(0))))
    cell = model.cell
    return model, Cell(*map(np.asarray, (cell.weight_ih.T, cell.weight_hh.T, cell.bias)))


def of_haiku():
    def forward(inputs):
        state = hk.LSTMState(inputs["h"], inputs["c"])
        outputs, _ = hk.dynamic_unroll(hk.LSTM(H), inputs["x"], state)
        return outputs[-1] @ HEAD[0] + HEAD[1]

    model = hk.without_apply_rng(hk.transform(forward))
    params = redraw(model.init(jax.random.key(0), {"x": X, "h": H0, "c": C0}))

    def reordered(array):
        i, g, f, o = np.split(np.asarray(array), 4, axis=-1)
        return np.concatenate([i, f, g, o], axis=-1)

    kernel, recurrent = np.split(reordered(params["lstm/linear"]["w"]), [D])
    bias = reordered(params["lstm/linear"]["b"]) + np.repeat([0, 1, 0, 0], H)  # haiku adds 1 to f
    return Partial(model.apply, params), Cell(kernel, recurrent, bias)


def of_keras():
    shapes = {"x": (T, D), "h": (H,), "c": (H,)}
    inputs = {name: keras.layers.Input(shape, name=name) for name, shape in shapes.items()}
    lstm = keras.layers.LSTM(H, activation=jnp.tanh)  # Keras' tanh rounds to float32
    hidden = lstm(inputs["x"], initial_state=[inputs["h"], inputs["c"]])
    model = keras.Model(inputs, keras.layers.Dense(K)(hidden))
    model.set_weights([*redraw(model.get_weights()[:3]), *HEAD])
    return model, Cell(*model.get_weights()[:3])


LIBRARIES = {
    "jaxattn": of_jaxattn,
    "linen": of_linen,
    "nnx": of_nnx,
    "equinox": of_equinox,
    "haiku": of_haiku,
    "keras": of_keras,
}


@pytest.mark.representatives("nnx")
@pytest.mark.parametrize("library", LIBRARIES)
def test_lstm_of_every_library_matches_the_loop_backward_through_time(library):
    fn, cell = LIBRARIES[library]()
    x = {"x": X, "h": H0, "c": C0}
    got = every_case(fn, x)
    score = got[next(iter(CASES))].output[TARGET]
    hidden = reference.run_lstm(cell, X, H0, C0)[0]
    close(score, (hidden[-1] @ HEAD[0] + HEAD[1])[TARGET], 1e-12)
    for name, options in CASES.items():
        linear = {key: value for key, value in options.items() if key != "gates"}
        above = np.zeros((T, H))
        above[-1] = reference.redistribute(*HEAD, hidden[-1], np.eye(K)[TARGET] * score, **linear)
        parts = reference.lstm_relevance(cell, X, above, H0, C0, **options)
        want = dict(zip("xhc", parts, strict=True))
        close(got[name].values, want)
        absorbed = 0.0 if options["conserve_bias"] else score - total(want)
        close(got[name].info["absorbed"], absorbed)


def stacked(num_layers, bidirectional):
    model = ja.models.SequenceClassifier(
        D,
        H,
        K,
        num_layers=num_layers,
        bidirectional=bidirectional,
        param_dtype="float64",
        rngs=nnx.Rngs(0),
    )
    nnx.update(model, redraw(nnx.state(model)))
    sides = (False, True)[: 1 + bidirectional]
    layers = [
        [Cell(*map(np.asarray, model.recurrent.weights(i, backward=b))) for b in sides]
        for i in range(num_layers)
    ]
    return model, layers, (np.asarray(model.head.kernel[...]), np.asarray(model.head.bias[...]))


def keras_bidirectional():
    """A bidirectional Keras classifier that ends with a softmax."""
    layers = [
        keras.layers.Bidirectional(keras.layers.LSTM(H)),
        keras.layers.Dense(K, activation="softmax"),
    ]
    model = keras.Sequential([keras.layers.Input((T, D)), *layers])
    weights = list(map(np.asarray, redraw(model.get_weights())))
    model.set_weights(weights)
    cells = [Cell(*weights[:3]), Cell(*weights[3:6])]
    return ja.without_softmax(model), [cells], tuple(weights[6:])


CLASSIFIERS = {
    "one": lambda: stacked(1, False),
    "bidirectional": lambda: stacked(1, True),
    "stacked, bidirectional": lambda: stacked(2, True),
    "keras": keras_bidirectional,
}


@pytest.mark.parametrize("name", list(CLASSIFIERS)[1:])
@pytest.mark.slow
def test_stacked_and_bidirectional_layers(name):
    fn, layers, head = CLASSIFIERS[name]()
    got = every_case(fn, X)
    tolerance = 1e-6 if name == "keras" else 1e-10  # Keras' tanh rounds to float32
    for case, options in CASES.items():
        if name == "keras" and options["gates"] == "proportional":
            continue  # small denominators amplify rounding errors
        score, want, of_states = reference.lstm_classifier(layers, head, X, TARGET, **options)
        close(got[case].output[TARGET], score, tolerance)
        close(got[case].values, want, tolerance)
        absorbed = of_states if options["conserve_bias"] else score - want.sum()
        close(got[case].info["absorbed"], absorbed, tolerance)
        if options["conserve_bias"]:
            assert abs(of_states) > 1e-4
            close(want.sum() + of_states, score, 1e-8)
            close(
                got[case].values.sum() + got[case].info["absorbed"], got[case].output[TARGET], 1e-8
            )


@pytest.mark.slow
def test_padding_receives_no_relevance():
    model, layers, head = CLASSIFIERS["bidirectional"]()
    rows = np.concatenate([X, np.full((2, D), 7.0)])
    found = reference.compiled(
        lambda x, length: ja.lrp(model, x, TARGET, args=(length,), **CONSERVE)
    )(rows, T)
    _, want, of_states = reference.lstm_classifier(layers, head, X, TARGET, **CONSERVE)
    close(found.values[:T], want)
    close(found.info["absorbed"], of_states)
    assert not found.values[T:].any()


@pytest.mark.slow
def test_relevance_of_an_embedding():
    """The relevance of a token is that of its embedding."""
    model, layers, head = CLASSIFIERS["one"]()
    table, ids = jnp.asarray(draw(9, D)), jnp.array([3, 1, 4, 1, 5])
    fn = lambda ids: model(ja.tag(table[ids], "embedding"))  # noqa: E731
    found = reference.compiled(lambda ids: ja.lrp(fn, ids, TARGET, at="embedding"))(ids)
    close(found.values, reference.lstm_classifier(layers, head, table[ids], TARGET)[1])


# Conservation, with the initial states as inputs.


def lstm(name, x, states):
    state = ja.nn.LSTMState(*states)
    weights = ja.nn.LSTMWeights(
        array(x.shape[-1], 4 * H, seed=name), array(H, 4 * H, seed=name), array(4 * H, seed=name)
    )

    def advance(state, row):
        state = ja.nn.lstm_step(weights, state, row)
        return state, state.hidden

    return jax.lax.scan(advance, state, x)[1]


def gru(name, x, states):
    weights = ja.nn.GRUWeights(
        array(x.shape[-1], 3 * H, seed=name),
        array(H, 3 * H, seed=name),
        array(3 * H, seed=name),
        array(H, seed=name),
    )

    def advance(h, row):
        h = ja.nn.gru_step(weights, h, row)
        return h, h

    return jax.lax.scan(advance, states[0], x)[1]


def gru_reset_before(name, x, states):
    """The GRU of the paper, and of Keras with reset_after=False."""
    kernel, recurrent, bias = (
        np.split(draw(*s, 3 * H, seed=name), 3, axis=-1) for s in [(x.shape[-1],), (H,), ()]
    )

    def advance(h, row):
        r = jax.nn.sigmoid(row @ kernel[0] + h @ recurrent[0] + bias[0])
        z = jax.nn.sigmoid(row @ kernel[1] + h @ recurrent[1] + bias[1])
        n = jnp.tanh(row @ kernel[2] + (r * h) @ recurrent[2] + bias[2])
        h = z * h + (1 - z) * n
        return h, h

    return jax.lax.scan(advance, states[0], x)[1]


def both_ways(layer, name, x, states):
    backward = layer(name + 1, x[::-1], states[::-1])[::-1]
    return jnp.concatenate([layer(name, x, states), backward], axis=1)


def readout(x):
    return x @ draw(x.shape[-1], K) + draw(K)


def dense(name, x, width):
    return x @ draw(x.shape[-1], width, seed=name) + draw(width, seed=name)


def pooled(x):
    """Additive attention over the rows of x."""
    weights = jax.nn.softmax(jnp.tanh(dense(40, x, H)) @ draw(H, seed=41))
    return weights @ x


def self_attention(x):
    q, k, v = (dense(name, x, H) for name in (50, 51, 52))
    return x + jax.nn.softmax(q @ k.T / np.sqrt(H)) @ v


def decoder(x, states):
    """Each step attends to all rows of x with its hidden state."""

    def advance(s, _):
        scores = jnp.tanh(dense(60, s, H)[None] + dense(61, x, H)) @ draw(H, seed=62)
        context = jax.nn.softmax(scores) @ x
        s = jnp.tanh(dense(63, jnp.concatenate([context, s]), H))
        return s, s

    return jax.lax.scan(advance, states[1], None, length=3)[1]


MODELS = {
    "lstm": lambda x, s: readout(lstm(20, x, s)[-1]),
    "gru": lambda x, s: readout(gru(20, x, s)[-1]),
    "gru, reset before": lambda x, s: readout(gru_reset_before(20, x, s)[-1]),
    "bilstm": lambda x, s: readout(both_ways(lstm, 20, x, s)[-1]),
    "stacked": lambda x, s: readout(gru(21, both_ways(lstm, 22, x, s), s).mean(0)),
    "attention": lambda x, s: readout(pooled(both_ways(lstm, 20, x, s))),
    "self-attention": lambda x, s: readout(pooled(self_attention(gru(20, x, s)))),
    "decoder": lambda x, s: readout(decoder(lstm(20, x, s), s)[-1]),
}


ATTENTIVE = ("attention", "self-attention", "decoder")


@pytest.mark.representatives("bilstm", "decoder")
@pytest.mark.parametrize("name", MODELS)
def test_relevance_is_conserved(name):
    """Initial states receive relevance as inputs, and absorb the same relevance as constants."""
    fn = MODELS[name]
    x, states = jnp.asarray(X), (jnp.asarray(H0), jnp.asarray(C0))
    gates = ("all",) if name in ATTENTIVE else ("all", "half")

    @reference.compiled
    def explain(x, states):
        whole = [
            ja.lrp(lambda inputs: fn(*inputs), (x, states), TARGET, gates=gate, **CONSERVE)
            for gate in gates
        ]
        return whole, ja.lrp(lambda x: fn(x, states), x, TARGET, **CONSERVE)

    whole, alone = explain(x, states)
    for found in whole:
        assert jnp.abs(found.values[0]).max() > 1e-3
        assert abs(total(found.values[1])) > 1e-3
        close(total(found.values), found.output[TARGET], 1e-8)
        close(found.info["absorbed"], 0.0, 1e-8)
    of_x, of_states = whole[0].values
    close(alone.values, of_x)
    close(alone.info["absorbed"], total(of_states), 1e-8)


def keras_gru(reset_after):
    """Return a Keras GRU with its initial state as an input."""
    inputs = [keras.layers.Input((T, D)), keras.layers.Input((H,))]
    layer = keras.layers.GRU(H, reset_after=reset_after)
    model = keras.Model(inputs, keras.layers.Dense(K)(layer(inputs[0], initial_state=inputs[1])))
    model.set_weights(redraw(model.get_weights()))
    return model


def linen_gru():
    rnn = linen.RNN(linen.GRUCell(H, param_dtype=jnp.float64))
    params = redraw(rnn.init(jax.random.key(0), X))
    return lambda x: readout(rnn.apply(params, x[0], initial_carry=x[1])[-1])


def equinox_gru():
    cell = redraw(eqx.nn.GRUCell(D, H, key=jax.random.key(0)))
    step = lambda h, x: (cell(x, h), None)  # noqa: E731
    return lambda x: readout(jax.lax.scan(step, x[1], x[0])[0])


def haiku_gru():
    forward = lambda x: readout(hk.dynamic_unroll(hk.GRU(H), *x)[0][-1])  # noqa: E731
    model = hk.without_apply_rng(hk.transform(forward))
    return Partial(model.apply, redraw(model.init(jax.random.key(0), [X, H0])))


@pytest.mark.slow
@pytest.mark.representatives("haiku")
@pytest.mark.parametrize(
    "make",
    [
        functools.partial(keras_gru, True),
        functools.partial(keras_gru, False),
        linen_gru,
        equinox_gru,
        haiku_gru,
    ],
    ids=["keras", "keras, reset before", "linen", "equinox", "haiku"],
)
def test_gru_of_every_library_conserves_relevance(make):
    got = every_case(make(), [X, H0], {"all": CONSERVE})["all"]
    assert min(np.abs(leaf).max() for leaf in got.values) > 1e-3
    close(total(got.values), got.output[TARGET], 1e-8)
    close(got.info["absorbed"], 0.0, 1e-8)


# Attention.


def test_attention_weights_are_gates():
    """The epsilon rule redistributes the relevance of pooled outputs, with constant weights."""
    options = {"epsilon": 0.01, "conserve_bias": True}
    fn = lambda x: readout(pooled(x))  # noqa: E731
    weights = np.asarray(jax.nn.softmax(jnp.tanh(dense(40, X, H)) @ draw(H, seed=41)))
    head, context = (draw(D, K), draw(K)), weights @ X
    score = context @ head[0] + head[1]
    above = reference.redistribute(*head, context, np.eye(K)[TARGET] * score, **options)
    mix = np.einsum("t,de->tde", weights, np.eye(D)).reshape(T * D, D)
    want = reference.redistribute(mix, np.zeros(D), X.ravel(), above, **options).reshape(T, D)
    got = ja.lrp(fn, jnp.asarray(X), TARGET, **options)
    close(got.values, want)
    close(got.info["absorbed"], 0.0)


def test_attnlrp():
    """Achtibat et al. 2024 at epsilon 0: halves in products, the Taylor rule in the softmax."""
    q, k, v = (draw(D, H, seed=name) for name in (70, 71, 72))
    head = draw(H, K)

    def fn(x):
        weights = jax.nn.softmax((x @ q) @ (x @ k).T / np.sqrt(H))
        return (weights @ (x @ v)).sum(0) @ head

    scores = (X @ q) @ (X @ k).T / np.sqrt(H)
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    out = weights @ (X @ v)
    above = out * head[:, TARGET]  # the z rule for the head and the sum; it sums to the score
    parts = np.einsum("qk,kd,qd->qkd", weights, X @ v, above / out) / 2
    of_v, of_weights = parts.sum(0), parts.sum(2)
    of_scores = scores * (of_weights - weights * of_weights.sum(1, keepdims=True))
    pairs = np.einsum("qd,kd,qk->qkd", X @ q, X @ k, of_scores / scores) / 2 / np.sqrt(H)
    above = {"q": (q, pairs.sum(1)), "k": (k, pairs.sum(0)), "v": (v, of_v)}
    want = sum(X * ((r / (X @ w)) @ w.T) for w, r in above.values())
    got = ja.lrp(fn, jnp.asarray(X), TARGET, epsilon=0.0, attention="attnlrp")
    close(got.values, want, 1e-9)


# Epsilon 0, and derivatives of relevance.

CELL = Cell(draw(D, 4 * H, seed=80), draw(H, 4 * H, seed=80), draw(4 * H, seed=80))


def classifier(weights, x):
    weights = ja.nn.LSTMWeights(*map(jnp.asarray, weights))

    def advance(state, row):
        return ja.nn.lstm_step(weights, state, row), None

    state = ja.nn.LSTMState(jnp.asarray(H0), jnp.asarray(C0))
    return jax.lax.scan(advance, state, x)[0].hidden @ HEAD[0] + HEAD[1]


def surrogate(weights, x):
    """The classifier with constant gates, and each tanh as a product with a constant."""

    def linear_tanh(u):
        return u * jax.lax.stop_gradient(jnp.tanh(u) / u)

    h, c = jnp.asarray(H0), jnp.asarray(C0)
    for row in x:
        i, f, g, o = jnp.split(row @ weights.kernel + h @ weights.recurrent + weights.bias, 4)
        i, f, o = (jax.lax.stop_gradient(jax.nn.sigmoid(z)) for z in (i, f, o))
        c = f * c + i * linear_tanh(g)
        h = o * linear_tanh(c)
    return h @ HEAD[0] + HEAD[1]


@pytest.mark.parametrize("rule", ["z", "epsilon"])
def test_epsilon_0_equals_the_gradient_of_the_surrogate(rule):
    x = jnp.asarray(X)
    got = ja.lrp(functools.partial(classifier, CELL), x, TARGET, rule=rule, epsilon=0.0)
    want = x * jax.jit(jax.grad(lambda x: surrogate(CELL, x)[TARGET]))(x)
    assert np.abs(want).max() > 0.01
    close(got.values, want, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"rule": "epsilon"},
        {"rule": "epsilon", "conserve_bias": True},
        {"rule": "alpha_beta"},
        {"gates": "half"},
    ],
    ids=str,
)
def test_second_derivatives(options):
    """The gradient of a penalty on relevance, against central differences along each weight."""

    def penalty(weights, x):
        fn = Partial(classifier, weights)
        return jnp.square(ja.lrp(fn, x, TARGET, **options).values).sum()

    weights, x = Cell(*map(jnp.asarray, CELL)), jnp.asarray(X)
    slopes = reference.compiled(jax.grad(penalty, argnums=(0, 1)))(weights, x)
    along = reference.compiled(
        lambda direction, h: penalty(*jax.tree.map(lambda a, w: a + h * w, (weights, x), direction))
    )
    directions = redraw((weights, x))
    zeros = jax.tree.map(jnp.zeros_like, directions)
    for name in ("kernel", "recurrent", "bias", "x"):
        direction = (zeros[0], directions[1])
        if name != "x":
            direction = zeros[0]._replace(**{name: getattr(directions[0], name)}), zeros[1]
        want = (along(direction, 1e-6) - along(direction, -1e-6)) / 2e-6
        assert abs(want) > 1e-6
        got = total(jax.tree.map(lambda slope, w: slope * w, slopes, direction))
        np.testing.assert_allclose(got, want, rtol=1e-5)
