"""Test explanations of recurrent models of every library."""

import equinox as eqx
import flax.linen as linen
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxattn as ja

B, T, D, H, K = 3, 5, 2, 4, 3
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
Y = np.array([2, 0, 1])


class NnxModel(nnx.Module):
    """RNN with dropout and batch normalisation, which change their own state."""

    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.LSTMCell(D, H, rngs=rngs))
        self.norm = nnx.BatchNorm(H, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(H, K, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(self.norm(self.rnn(x)[-1])))


class LinenModel(linen.Module):
    width: int = H

    @linen.compact
    def __call__(self, x):
        return linen.Dense(K)(linen.RNN(linen.GRUCell(self.width))(x)[-1])


class EquinoxModel(eqx.Module):
    cell: eqx.nn.LSTMCell
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key):
        self.cell = eqx.nn.LSTMCell(D, H, key=key)
        self.dropout = eqx.nn.Dropout(0.5)
        self.head = eqx.nn.Linear(H, K, key=key)

    def __call__(self, x):
        zero = jnp.zeros(H), jnp.zeros(H)
        (h, _), _ = jax.lax.scan(lambda carry, x: (self.cell(x, carry), None), zero, x)
        return self.head(self.dropout(h))


def haiku_model(x):
    core = hk.GRU(H)
    outputs, _ = hk.dynamic_unroll(core, x, core.initial_state(None))
    return hk.Linear(K)(outputs[-1])


def keras_model(last="softmax", units=K):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.layers.Input((T, D)),
            keras.layers.Bidirectional(keras.layers.LSTM(H)),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(units, activation=last),
        ]
    )


@pytest.fixture(scope="module", autouse=True)
def plain_promotion():
    """The other libraries rely on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each model with a reference function of one example."""
    linen_model, key = LinenModel(), jax.random.key(0)
    params = linen_model.init(key, X[0])
    jaxattn_model = ja.models.SequenceClassifier(D, H, K, bidirectional=True, rngs=nnx.Rngs(0))
    nnx_model = NnxModel(nnx.Rngs(0))
    for _ in range(3):  # running statistics that differ from those of a batch
        nnx_model.norm(jnp.asarray(X[:, 0].repeat(2, 1)))
    haiku = hk.without_apply_rng(hk.transform(haiku_model))
    haiku_params = haiku.init(key, X[0])
    equinox_model = EquinoxModel(key)
    model = keras_model()
    path = tmp_path_factory.mktemp("keras") / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)

    def nnx_reference(x):
        graphdef, state = nnx.split(nnx_model)
        merged = nnx.merge(graphdef, nnx.as_pure(state))
        merged.eval()
        return merged(x)

    def keras_reference(x):
        return model(x[None], training=False)[0]

    weights = {"w": jnp.ones((D, K)) * jnp.arange(1.0, K + 1)}
    return {
        "function": (
            lambda x: jnp.tanh(x @ weights["w"]).sum(0),
            lambda x: jnp.tanh(x @ weights["w"]).sum(0),
        ),
        "jitted": (jax.jit(lambda x: x.sum(0) @ weights["w"]), lambda x: x.sum(0) @ weights["w"]),
        "jaxattn": (jaxattn_model, jaxattn_model),
        "nnx": (nnx_model, nnx_reference),
        "nnx method": (nnx_model.__call__, nnx_reference),
        "linen": (Partial(linen_model.apply, params), lambda x: linen_model.apply(params, x)),
        "haiku": (Partial(haiku.apply, haiku_params), lambda x: haiku.apply(haiku_params, x)),
        "equinox": (equinox_model, eqx.nn.inference_mode(equinox_model)),
        "keras": (model, keras_reference),
        "keras loaded": (loaded, keras_reference),
        "unbatched": (ja.unbatched(jax.vmap(jaxattn_model)), jaxattn_model),
    }


NAMES = [
    "function",
    "jitted",
    "jaxattn",
    "nnx",
    "nnx method",
    "linen",
    "haiku",
    "equinox",
    "keras",
    "keras loaded",
    "unbatched",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.representatives("nnx", "unbatched")
def test_gradient_equals_the_reference(models, name):
    fn, reference = models[name]
    got = ja.explain(ja.gradient, fn, X, Y)
    for i in range(B):
        expected = jax.grad(lambda x, i=i: reference(x)[Y[i]])(jnp.asarray(X[i]))
        np.testing.assert_allclose(got.values[i], expected, rtol=1e-5, atol=1e-6)
        output = reference(jnp.asarray(X[i]))
        np.testing.assert_allclose(got.output[i], output, rtol=1e-5, atol=1e-6)
        one = ja.gradient(fn, X[i], int(Y[i]))
        # A batch may add float32 products in another order.
        np.testing.assert_allclose(one.values, got.values[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.representatives("nnx", "unbatched")
def test_occlusion_of_every_library(models, name):
    fn, reference = models[name]
    got = ja.explain(ja.occlusion, fn, X, Y, window=T).values
    difference = [
        reference(jnp.asarray(x))[y] - reference(jnp.zeros((T, D)))[y]
        for x, y in zip(X, Y, strict=True)
    ]
    np.testing.assert_allclose(
        got, np.broadcast_to(np.reshape(difference, (B, 1, 1)), X.shape), atol=1e-6
    )


def test_keras_weights_set_in_place_take_effect():
    model = keras_model()
    before = ja.explain(ja.gradient, model, X, Y).values
    model.set_weights([2 * w for w in model.get_weights()])
    after = ja.explain(ja.gradient, model, X, Y).values
    assert abs(after - before).max() > 1e-3


def test_without_softmax_of_keras_explains_the_logit():
    model = keras_model()
    linear = keras_model(last=None)
    linear.set_weights(model.get_weights())
    got = ja.explain(ja.gradient, ja.without_softmax(model), X, Y)
    expected = ja.explain(ja.gradient, linear, X, Y)
    np.testing.assert_allclose(got.values, expected.values, atol=1e-7)
    np.testing.assert_allclose(got.output, expected.output, atol=1e-6)


def test_without_softmax_of_a_sigmoid_explains_both_classes():
    model = keras_model("sigmoid", 1)
    linear = keras_model(None, 1)
    linear.set_weights(model.get_weights())
    z = ja.explain(ja.gradient, linear, X)
    got = ja.explain(ja.gradient, ja.without_softmax(model), X, np.array([0, 1, 0]))
    np.testing.assert_allclose(got.output, np.hstack([-z.output, z.output]), atol=1e-6)
    sign = np.reshape([-1, 1, -1], (3, 1, 1))
    np.testing.assert_allclose(got.values, sign * z.values, atol=1e-7)


W = jnp.asarray(np.random.default_rng(1).normal(size=(T * D, K)), jnp.float32)


@pytest.mark.parametrize(
    "ending",
    [
        jax.nn.softmax,
        jax.jit(jax.nn.softmax),
        lambda z: jnp.exp(z) / jnp.exp(z).sum(),
        lambda z: jax.nn.softmax(z[None], axis=-1)[0],
        lambda z: jax.jit(lambda z: jax.jit(jax.nn.softmax)(z))(z),
        jax.nn.sigmoid,
    ],
)
def test_without_softmax_of_any_function(ending):
    fn = ja.without_softmax(lambda x: ending(x.ravel() @ W))
    got = ja.explain(ja.gradient, fn, X, Y)
    np.testing.assert_allclose(got.output, X.reshape(B, -1) @ W, rtol=1e-5)
    np.testing.assert_allclose(got.values, W.T[Y].reshape(X.shape), rtol=1e-5)


def test_without_softmax_of_logits_raises():
    with pytest.raises(ValueError, match="ends in a softmax or a sigmoid, not in `dot_general`"):
        ja.explain(ja.gradient, ja.without_softmax(lambda x: x.ravel() @ W), X, Y)
    with pytest.raises(ValueError, match="not in `tanh`"):
        ja.explain(ja.gradient, ja.without_softmax(lambda x: jnp.tanh(x.ravel() @ W)), X, Y)


def test_batch_only_model_raises_and_mentions_unbatched():
    def batch_only(xs):
        return jnp.einsum("btd,dk->bk", xs, jnp.ones((D, K)))

    with pytest.raises(ValueError, match=r"of shape \(5, 2\), which fn does not accept.*unbatched"):
        ja.explain(ja.gradient, batch_only, X, Y)
    got = ja.explain(ja.gradient, ja.unbatched(batch_only), X, Y)
    np.testing.assert_array_equal(got.values, np.ones_like(X))


def test_closure_over_a_module_equals_the_module(models):
    model, _ = models["nnx"]
    got = ja.explain(ja.gradient, lambda x: model(x), X, Y)
    expected = ja.explain(ja.gradient, model, X, Y)
    np.testing.assert_allclose(got.values, expected.values, atol=1e-6)


def test_exceptions_of_fn_propagate():
    def broken(x):
        raise RuntimeError("the user's own mistake")

    with pytest.raises(RuntimeError, match="own mistake"):
        ja.gradient(broken, X[0], 0)


@pytest.mark.parametrize("fn", [3, None, "model"])
def test_non_callable_fn_raises(fn):
    with pytest.raises(TypeError, match="`fn` must be callable, got"):
        ja.gradient(fn, X[0], 0)
    with pytest.raises(TypeError, match="`fn` must be callable, got"):
        ja.unbatched(fn)


def test_without_softmax_with_a_tag_named_softmax():
    fn = ja.without_softmax(lambda x: jax.nn.softmax(ja.tag(x.ravel() @ W, "attention_softmax")))
    np.testing.assert_allclose(ja.saliency(fn, X[0], 1).output, X[0].ravel() @ W, rtol=1e-5)


def test_unbatched_keras_model_equals_the_model():
    model = keras_model()
    got = ja.explain(ja.gradient, ja.unbatched(model), X, Y)
    expected = ja.explain(ja.gradient, model, X, Y)
    np.testing.assert_allclose(got.values, expected.values, rtol=1e-5, atol=1e-7)
