"""Test capture and replacement of layers and tags in models of every library."""

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from compilation import compiles
from flax import nnx
from jax.tree_util import Partial

import jaxattn as ja

T, D = 4, 2
X = np.random.default_rng(0).normal(size=(T, D)).astype(np.float32)


def equal(got, expected, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, expected)
    assert jax.tree.structure(got) == jax.tree.structure(expected)


def intermediates(fn, *names, x=X):
    return ja.capture(fn, *names)(x)[1]


PLAIN = nnx.initializers.normal()  # orthogonal initialization is slow to compile


class Linen(linen.Module):
    """A recurrent layer, a dense layer called twice, and a head."""

    @linen.compact
    def __call__(self, x):
        x = linen.RNN(linen.LSTMCell(3, recurrent_kernel_init=PLAIN), name="rnn")(x)
        dense = linen.Dense(3, name="dense")
        return linen.Dense(2, name="head")(dense(dense(x))[-1])


@pytest.fixture(scope="module", autouse=True)
def plain_promotion():
    """The other libraries rely on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def linen_model():
    model = Linen()
    params = jax.jit(model.init)(jax.random.key(0), X)
    return params["params"], Partial(model.apply, params)


@jax.jit
def linen_layers(params):
    rnn = linen.RNN(linen.LSTMCell(3)).apply({"params": {"cell": params["LSTMCell_0"]}}, X)
    once = rnn @ params["dense"]["kernel"] + params["dense"]["bias"]
    return rnn, once, once @ params["dense"]["kernel"] + params["dense"]["bias"]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
@pytest.mark.representatives("jit")
def test_linen_layers_are_captured_by_path(linen_model, wrap):
    params, fn = linen_model
    rnn, once, twice = linen_layers(params)
    values = intermediates(wrap(fn), "Linen/rnn", "dense", "head", "ii", "rn?")
    cell = next(name for name in values if name.endswith("/ii"))
    assert cell.startswith("Linen/rnn/")
    expected = {"Linen/rnn": rnn, "Linen/dense": [once, twice], "Linen/head": fn(X)}
    equal(values, expected | {cell: X @ params["LSTMCell_0"]["ii"]["kernel"]}, 1e-5)


@pytest.mark.slow
def test_linen_layers_are_replaced_and_captured(linen_model):
    params, fn = linen_model
    rnn, once, _ = linen_layers(params)
    head = params["head"]["kernel"], params["head"]["bias"]
    changed = ja.intervene(fn, {"dense": [lambda v: -v, jnp.ones((T, 3))]})
    values = intermediates(changed, "rnn", "dense", "Linen")
    output = jnp.ones(3) @ head[0] + head[1]
    expected = {"Linen/rnn": rnn, "Linen/dense": [-once, jnp.ones((T, 3))], "Linen": output}
    equal(values, expected, 1e-5)
    gates = "Linen/rnn/*/i[ifgo]"
    assert set(intermediates(changed, gates)) == set(intermediates(fn, gates))
    assert len(intermediates(fn, gates)) == 4
    no_input = ja.intervene(fn, {gates: lambda v: 0 * v})
    equal(no_input(X), jax.jit(fn)(0 * X), 1e-6)


def test_vmapped_layer_keeps_its_path(linen_model):
    _, fn = linen_model
    batched = ja.unbatched(jax.vmap(fn))
    (once, twice) = intermediates(fn, "Linen/dense")["Linen/dense"]
    equal(intermediates(batched, "dense"), {"Linen/dense": [once[None], twice[None]]})


def test_gradient_at_a_linen_layer(linen_model):
    params, fn = linen_model
    got = ja.explain(ja.gradient, fn, X[None], 1, at="Linen/rnn")
    w = params["dense"]["kernel"] @ params["dense"]["kernel"] @ params["head"]["kernel"]
    expected = np.zeros((1, T, 3))
    expected[0, -1] = w[:, 1]
    np.testing.assert_allclose(got.values, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"at='dense' must name one array, got Linen/dense"):
        ja.gradient(fn, X, 1, at="dense")


@pytest.fixture(scope="module")
def keras_model():
    keras.utils.set_random_seed(0)
    x = keras.Input((T, D))
    h = keras.layers.Bidirectional(
        keras.layers.LSTM(3, return_sequences=True, name="lstm"), name="both"
    )(x)
    h, weights = keras.layers.MultiHeadAttention(1, 3, name="attention")(
        h, h, return_attention_scores=True
    )
    h = keras.layers.GlobalAveragePooling1D(name="mean")(h)
    score = keras.layers.Dense(2, activation="softmax", name="dense")(h)
    return keras.Model(x, [score, weights])


@pytest.mark.slow
def test_keras_layers_are_captured_by_path(keras_model):
    names = ["both", "forward_lstm", "both/backward_lstm", "attention", "mean", "dense", "*/query"]
    (score, weights), values = ja.capture(keras_model, *names)(X)

    def reference(layer, *inputs):
        return np.asarray(keras_model.get_layer(layer)(*inputs))

    both = reference("both", X[None])
    attended = keras_model.get_layer("attention")(both, both)
    query = keras_model.get_layer("attention").query_dense(both)
    expected = {
        "both": both,
        "both/forward_lstm": both[..., :3],
        "both/backward_lstm": both[:, ::-1, 3:],
        "attention": (weights[None], attended),
        "attention/query": query,
        "mean": np.asarray(attended).mean(1),
        "dense": score[None],
    }
    equal(values, jax.tree.map(jnp.asarray, expected), 1e-5)


@pytest.mark.slow
def test_keras_layers_are_replaced(keras_model):
    def swapped(value):
        weights, output = value
        return weights, 0 * output

    score, _ = ja.intervene(keras_model, {"attention": swapped})(X)
    expected = jax.nn.softmax(keras_model.get_layer("dense").bias.value)
    np.testing.assert_allclose(score, expected, rtol=1e-6)
    uniform = ja.intervene(keras_model, {"attention/softmax": jnp.full((1, 1, T, T), 1 / T)})
    values = intermediates(uniform, "attention/value", "attention")
    mean = values["attention/value"].mean(1, keepdims=True).repeat(T, 1)
    layer = keras_model.get_layer("attention")
    equal(values["attention"][1], jnp.asarray(layer.output_dense(mean)), 1e-5)
    cut = ja.intervene(keras_model, {"both/backward_lstm": jnp.zeros((1, T, 3))})
    equal(intermediates(cut, "both")["both"][..., 3:], jnp.zeros((1, T, 3)))


def test_gradient_at_a_keras_layer(keras_model):
    got = ja.gradient(keras_model, X, lambda out: jnp.log(out[0][1] / out[0][0]), at="mean")
    kernel = keras_model.get_layer("dense").kernel.value
    np.testing.assert_allclose(got.values[0], kernel[:, 1] - kernel[:, 0], atol=1e-5)


class Nnx(nnx.Module):
    def __init__(self, scale):
        self.rnn = nnx.RNN(nnx.SimpleCell(D, 3, recurrent_kernel_init=PLAIN, rngs=nnx.Rngs(0)))
        self.scale = nnx.Param(jnp.float32(scale))

    def __call__(self, x):
        return ja.tag(self.rnn(x) * self.scale[...], "states").sum(0)


class Equinox(eqx.Module):
    cell: eqx.nn.GRUCell

    def __call__(self, x):
        def step(carry, row):
            return ja.tag(self.cell(row, carry), "state"), None

        return jax.lax.scan(step, jnp.zeros(3), x)[0]


@pytest.mark.slow
def test_tags_of_nnx_and_equinox():
    model = Nnx(2.0)
    output, values = ja.capture(model)(X)
    equal(output, values["states"].sum(0), 1e-5)
    states = nnx.jit(lambda model: 2 * model.rnn(X))(model)
    equal(values, {"states": states})
    other = Equinox(eqx.nn.GRUCell(D, 3, key=jax.random.key(0)))
    output, values = ja.capture(other)(X)
    equal(output, values["state"][-1])
    equal(values["state"][0], eqx.filter_jit(other.cell)(X[0], jnp.zeros(3)))


def changed_array(model, value):
    return ja.intervene(model, {"states": jnp.full((T, 3), value)})


def changed_function(model, value):
    return ja.intervene(model, {"states": lambda v: 0 * v + value * model.scale[...]})


def scaled(model, value):
    return ja.intervene(model, {"states": lambda v: value * v})


@pytest.mark.parametrize("change", [changed_array, changed_function])
def test_intervened_module_compiles_once_and_is_not_stale(change):
    xs = jnp.stack([X, X])
    model, values = Nnx(1.0), [jnp.float32(v) for v in (2, 3)]
    first = change(model, values[0])
    np.testing.assert_allclose(first(X), np.full(3, 2 * T))
    ja.explain(ja.saliency, first, xs, 0)
    with compiles(0):
        np.testing.assert_allclose(change(model, values[1])(X), np.full(3, 3 * T))
        got = ja.explain(ja.saliency, change(model, values[1]), xs, 0)
    np.testing.assert_allclose(got.output, np.full((2, 3), 3 * T))


def test_weights_changed_in_place_take_effect():
    model = Nnx(1.0)
    read, change = ja.capture(model, "states"), scaled(model, jnp.float32(3))
    before = read(X)[1]["states"], ja.explain(ja.gradient, change, X[None], 0).values
    model.scale[...] = jnp.float32(2)
    with compiles(0):
        after = read(X)[1]["states"], ja.explain(ja.gradient, change, X[None], 0).values
    equal(after, tuple(2 * part for part in before), 1e-5)
