"""Tests of the character classifier by hand, against Keras, and of its relevance."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

import jaxattn as ja
from examples.characters import keras_network
from jaxattn import nn

T, D = 6, 3
V, E, H = 9, 5, 4


@pytest.fixture(scope="module")
def layer():
    layer = nn.FeedForwardAttention(D, rngs=nnx.Rngs(0))
    layer.b[...] = jnp.array([0.3])
    return layer


@pytest.fixture(scope="module")
def model():
    model = ja.models.CharacterClassifier(
        V, embedding_features=E, hidden_features=H, rngs=nnx.Rngs(0)
    )
    model.attention.W[...] *= 5.0  # makes the attention weights non-uniform
    return model


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def ids(*shape):
    return np.random.default_rng(0).integers(0, V, shape).astype(np.int32)


def test_attention_by_hand():
    layer = nn.FeedForwardAttention(2, rngs=nnx.Rngs(0))
    layer.W[...] = jnp.array([[1.0], [-1.0]])
    layer.b[...] = jnp.array([0.5])
    values, weights = layer(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32))
    first, second = np.exp(np.tanh(1.5)), np.exp(np.tanh(-0.5))
    share = first / (first + second)
    np.testing.assert_allclose(weights, [share, 1 - share], rtol=1e-6)
    np.testing.assert_allclose(values, [share, 1 - share], rtol=1e-6)


@pytest.mark.slow
def test_weights_sum_to_one_with_bounded_ratio(layer):
    x = 100 * inputs(2, 3, T, D)
    values, weights = layer(x)
    assert values.shape == (2, 3, D)
    assert weights.shape == (2, 3, T)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    assert (weights.max(-1) / weights.min(-1) <= np.e**2 * 1.0001).all()
    alone = layer(x[1, 2])
    np.testing.assert_allclose(values[1, 2], alone.values, rtol=1e-6)
    np.testing.assert_allclose(weights[1, 2], alone.weights, rtol=1e-6)


@pytest.mark.slow
def test_masked_steps_are_ignored(layer):
    x = inputs(2, T, D)
    mask = np.array([[False, True, True, False, True, False], [False] * T])
    spoilt = np.where(mask[..., None], x, np.nan)
    values, weights = layer(spoilt, mask)
    expected = layer(x[0][mask[0]])
    np.testing.assert_allclose(values[0], expected.values, rtol=1e-6)
    np.testing.assert_allclose(weights[0][mask[0]], expected.weights, rtol=1e-6)
    assert not weights[~mask].any()
    assert not values[1].any()  # fully masked

    def loss(layer, x):
        return (layer(x, mask).values ** 2).sum()

    slopes = nnx.grad(loss, argnums=(0, 1))(layer, spoilt)
    assert all(np.isfinite(slope).all() for slope in jax.tree.leaves(slopes))
    assert not np.asarray(slopes[1])[~mask].any()
    assert np.asarray(slopes[1])[mask].all()


@pytest.mark.slow
def test_gradients_and_dtypes(layer):
    with jax.enable_x64(True):
        wide = nn.FeedForwardAttention(D, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        check_grads(wide, (inputs(T, D).astype(np.float64),), 2, modes=["rev"], rtol=1e-6)
        assert layer(inputs(T, D).astype(np.float64)).values.dtype == np.float64
    assert layer(inputs(T, D).astype(jnp.bfloat16)).values.dtype == np.float32
    assert layer(np.ones((T, D), np.int32)).weights.dtype == np.float32


def test_weights_are_captured_and_replaced_by_name():
    named = nn.FeedForwardAttention(D, name="mine", rngs=nnx.Rngs(0))
    x = inputs(T, D)
    (_, weights), captured = ja.capture(named, "mine")(x)
    np.testing.assert_array_equal(captured["mine"], weights)
    values, _ = ja.intervene(named, {"mine": np.eye(T, dtype=np.float32)[2]})(x)
    np.testing.assert_allclose(values, x[2], rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "mask", "error", "message"),
    [
        (inputs(T, D + 1), None, ValueError, "`x` must have shape (..., T, 3), T > 0, got (6, 4)"),
        (inputs(D), None, ValueError, "`x` must have shape (..., T, 3), T > 0, got (3,)"),
        (inputs(0, D), None, ValueError, "`x` must have shape (..., T, 3), T > 0, got (0, 3)"),
        (inputs(T, D) > 0, None, TypeError, "`x` must be real numbers, got dtype bool"),
        (inputs(T, D), np.ones(T), TypeError, "`mask` must be boolean"),
        (inputs(T, D), np.ones(T + 1, bool), ValueError, "`mask` must broadcast to shape (6,)"),
    ],
)
def test_invalid_attention_inputs_raise(layer, x, mask, error, message):
    with pytest.raises(error, match=re.escape(message)):
        layer(x, mask)


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match="`features` must be at least 1, got 0"):
        nn.FeedForwardAttention(0, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="`param_dtype` must be floating"):
        nn.FeedForwardAttention(2, param_dtype=jnp.int32, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="`num_characters` must be at least 1, got 0"):
        ja.models.CharacterClassifier(0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="`hidden_features` must be at least 1, got 0"):
        ja.models.CharacterClassifier(3, hidden_features=0, rngs=nnx.Rngs(0))


def test_published_sizes():
    model = ja.models.CharacterClassifier(60, rngs=nnx.Rngs(0))
    assert model.embedding.embedding.shape == (60, 100)
    assert model.gru.weights().recurrent.shape == (250, 750)
    assert model.attention.W.shape == (250, 1)
    assert model.head.kernel.shape == (250, 1)


@pytest.mark.slow
def test_equals_keras_network(model):
    """The prediction and the attention weights equal those of Keras."""
    text = ids(T)
    with jax.numpy_rank_promotion("allow"):  # Keras relies on rank promotion
        theirs = keras_network(V, T, E, H)
        chance, captured = ja.capture(theirs, "attention_vec")(text)
    table, *_, kernel, bias, last, shift = (variable.value for variable in theirs.weights)
    ours = nnx.clone(model)
    ours.embedding.embedding[...] = table
    nn.from_keras(ours.gru, theirs.get_layer("gru").get_weights())
    ours.attention.W[...], ours.attention.b[...] = kernel, bias
    ours.head.kernel[...], ours.head.bias[...] = last, shift
    own_chance, own_captured = ja.capture(ours, "attention_vec")(text)
    np.testing.assert_allclose(own_chance, chance, rtol=1e-5)
    (weights,) = captured.values()
    np.testing.assert_allclose(own_captured["attention_vec"], np.ravel(weights), rtol=1e-5)
    np.testing.assert_allclose(own_captured["attention_vec"].sum(), 1, rtol=1e-6)


@pytest.mark.slow
def test_lengths_mask_padding(model):
    text = ids(2, T)
    padded = np.concatenate([np.full((2, 3), V - 1), text], axis=1, dtype=np.int32)
    lengths = np.array([T, T], np.int32)
    np.testing.assert_allclose(model(padded, lengths), model(text), rtol=1e-6)
    _, captured = ja.capture(model, "attention_vec")(padded[0], np.int32(T))
    assert not captured["attention_vec"][:3].any()
    # Without lengths, padding is processed as any other character.
    assert (np.abs(model(padded) - model(text)) > 1e-4).all()


def test_empty_text_output_is_bias(model):
    empty = ja.capture(model, "attention_vec")(np.zeros(T, np.int32), np.int32(0))
    np.testing.assert_allclose(empty[0], jax.nn.sigmoid(model.head.bias[...]), rtol=1e-6)
    assert not empty[1]["attention_vec"].any()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.slow
def test_character_relevance_sums_to_logit(padded):
    with jax.enable_x64(True):
        model = ja.models.CharacterClassifier(
            V, embedding_features=E, hidden_features=H, param_dtype=jnp.float64, rngs=nnx.Rngs(1)
        )
        args = (np.int32(T - 2),) if padded else ()
        found = ja.lrp(
            model.logits, ids(T), args=args, at="embedding", conserve_bias=True
        )  # fmt: skip
        total = found.values.sum() + found.info["absorbed"]
        np.testing.assert_allclose(total, model.logits(ids(T), *args)[0], rtol=1e-8)
        assert found.values.shape == (T, E)
        assert not padded or not found.values[:2].any()


@pytest.mark.parametrize(
    "method", [ja.saliency, ja.input_x_gradient, ja.integrated_gradients, ja.occlusion, ja.lrp]
)
@pytest.mark.representatives("lrp")
def test_default_target_is_the_logit(model, method):
    texts = ids(2, T)
    default = ja.explain(method, model.logits, texts, at="embedding")
    found = ja.explain(
        method, ja.without_softmax(model), texts, np.ones(2, np.int32), at="embedding"
    )
    assert np.abs(default.values).sum() > 0
    np.testing.assert_allclose(default.values, found.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "lengths", "error", "message"),
    [
        (np.ones(T, np.float32), None, TypeError, "`ids` must be integers, got dtype float32"),
        (np.array([0, V], np.int32), None, ValueError, "`ids` must lie in [0, 9), got 0 to 9"),
        (np.array([-1, 2], np.int32), None, ValueError, "`ids` must lie in [0, 9), got -1 to 2"),
        (
            np.zeros((2, 0), np.int32),
            None,
            ValueError,
            "`ids` must have shape (..., T), got (2, 0)",
        ),
        (np.int32(3), None, ValueError, "`ids` must have shape (..., T), got ()"),
        (ids(T), np.int32(T + 1), ValueError, "`lengths` must lie in [0, T] = [0, 6], got 7"),
        (ids(2, T), np.array([T]), ValueError, "`lengths` must have shape (2,)"),
    ],
)
def test_invalid_model_inputs_raise(model, given, lengths, error, message):
    with pytest.raises(error, match=re.escape(message)):
        model(given, lengths)
