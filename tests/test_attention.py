"""Test attention weights, gradient x attention, rollout, flow and value zeroing."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from scipy.optimize import linprog

import jaxattn as ja

T, D, HEADS, K = 4, 6, 2, 3


def weights_of(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


QUERY, KEY, VALUE = (weights_of(i, 2, HEADS, D, D // HEADS) for i in range(3))
HEAD = weights_of(5, D, K)


def transformer(x, value_scale=None):
    """Two layers of two heads; the values of each position can be scaled in each layer."""
    scales = jnp.ones((2, T)) if value_scale is None else value_scale
    for layer in range(2):
        q, k, v = (jnp.einsum("td,hde->hte", x, w[layer]) for w in (QUERY, KEY, VALUE))
        attention = ja.tag(jax.nn.softmax(jnp.einsum("hte,hse->hts", q, k)), "attention")
        mixed = jnp.einsum("hts,hse->the", attention, v * scales[layer][None, :, None])
        x = ja.tag(jnp.tanh(x + mixed.reshape(x.shape)), f"layer_{layer}")
    return x.mean(0) @ HEAD


@pytest.fixture(scope="module")
def x():
    return weights_of(9, T, D)


@pytest.fixture(scope="module")
def layers(x):
    """The attention weights of both layers, (2, HEADS, T, T)."""
    return np.stack(ja.capture(transformer, "attention")(x)[1]["attention"])


def mixing(layers, residual=1.0):
    mixed = layers.mean(1) + residual * np.eye(layers.shape[-1])
    return mixed / mixed.sum(-1, keepdims=True)


def test_attention_equals_the_captured_weights(x, layers):
    first, second = ja.attention(transformer, x).values
    np.testing.assert_array_equal(np.stack([first, second]), layers)
    np.testing.assert_allclose(layers.sum(-1), 1, rtol=1e-6)
    batch = ja.explain(ja.attention, transformer, x[None])
    np.testing.assert_allclose(batch.values[1][0], layers[1], atol=1e-6)


def two_names(x):
    """Return the values of two layers, whose weights have different tags."""
    for name in ("first", "second"):
        x = ja.tag(jax.nn.softmax(x @ x.T), name) @ x
    return x.mean(0) @ HEAD


@pytest.mark.parametrize("at", [("first", "second"), ("second", "first"), "*", None])
def test_several_names_return_a_dict(at, x):
    values = ja.attention(two_names, x, at=at).values
    assert list(values) == ["first", "second"]
    np.testing.assert_allclose(values["first"], jax.nn.softmax(x @ x.T), atol=1e-6)


def test_at_selects_weights_in_a_batch(x, layers):
    names = ("first", "second")
    batch = ja.explain(ja.attention, two_names, x[None], at=names)
    assert list(batch.values) == list(names)
    for at in (None, "attention"):
        got = ja.explain(ja.attention, transformer, x[None], at=at)
        np.testing.assert_allclose(np.concatenate(got.values), layers, atol=1e-6)


@pytest.mark.representatives(
    "attention-half", "value_zeroing-layer_0", "gradient_x_attention-layer_?"
)
@pytest.mark.parametrize("at", ["layer_0", "layer_?", "half"])
@pytest.mark.parametrize("method", [ja.attention, ja.value_zeroing, ja.gradient_x_attention])
def test_intermediates_that_hold_no_weights_raise(method, at, x):
    """Features are negative, and rows of half the weights sum to 1/2."""

    def network(x):
        half = ja.tag(jax.nn.softmax(x @ x.T) / 2, "half")
        return transformer(x + half @ x)

    with pytest.raises(ValueError, match=r"must name attention weights.*has the attention weights"):
        method(network, x, 1, at=at)


@jax.numpy_rank_promotion("allow")  # required by Keras layers
def test_heads_of_a_keras_layer():
    inputs = keras.Input((T, D))
    # Without dropout Keras calls a fused function that does not expose the weights.
    mixer = keras.layers.MultiHeadAttention(HEADS, 4, dropout=0.1, name="mixer")
    outputs = mixer(inputs, inputs)
    outputs = keras.layers.Dense(K, name="logits")(keras.layers.Flatten(name="flat")(outputs))
    model = keras.Model(inputs, outputs)
    x = weights_of(3, T, D)
    weights = ja.attention(model, x, at="mixer/softmax").values
    _, expected = mixer(x[None], x[None], return_attention_scores=True)
    np.testing.assert_allclose(weights.reshape(expected.shape), expected, atol=1e-6)
    rollout = ja.attention_rollout(model, x, at="mixer/softmax").values
    np.testing.assert_allclose(rollout, mixing(np.asarray(expected))[0], atol=1e-6)
    change = ja.value_zeroing(model, x, 1, at="mixer/softmax").values
    assert change.shape == (T,)
    assert np.abs(change).min() > 1e-4


def test_gradient_x_attention_by_hand():
    """A score v @ w with fixed values has the gradient v."""
    values = jnp.array([1.0, -2.0, 4.0])
    got = ja.gradient_x_attention(
        lambda x: ja.tag(jax.nn.softmax(x), "attention") @ values, jnp.log(jnp.array([1.0, 2, 5]))
    )
    np.testing.assert_allclose(got.values, [1 / 8, -4 / 8, 20 / 8], rtol=1e-6)
    np.testing.assert_allclose(got.output, 17 / 8, rtol=1e-6)


def test_gradient_x_attention_equals_input_x_gradient_at_the_layer(x):
    def network(x):
        return transformer(ja.tag(jax.nn.softmax(x), "mine"))

    got = ja.gradient_x_attention(network, x, 1, at="mine").values
    np.testing.assert_allclose(got, ja.input_x_gradient(network, x, 1, at="mine").values, atol=1e-6)


def test_rollout_by_hand():
    first = np.array([[1.0, 0.0], [0.5, 0.5]])
    second = np.array([[0.0, 1.0], [0.25, 0.75]])

    def network(x):
        for layer in (first, second):
            x = ja.tag(jnp.asarray(layer, x.dtype), "attention") @ x
        return x

    # With the residual: [[1, 0], [1/4, 3/4]] and [[1/2, 1/2], [1/8, 7/8]].
    got = ja.attention_rollout(network, jnp.ones(2), 0)
    np.testing.assert_allclose(got.values, [[5 / 8, 3 / 8], [11 / 32, 21 / 32]], rtol=1e-6)
    np.testing.assert_allclose(got.info["layers"][0], [[1, 0], [0.25, 0.75]], rtol=1e-6)
    without_residual = ja.attention_rollout(network, jnp.ones(2), 0, residual=0.0).values
    np.testing.assert_allclose(without_residual, second @ first, rtol=1e-6)


@pytest.mark.parametrize("heads", ["mean", "max", "min"])
def test_rollout_of_a_transformer(heads, x, layers):
    got = ja.attention_rollout(transformer, x, heads=heads).values
    mixed = getattr(layers, heads)(axis=1) + np.eye(T)
    mixed /= mixed.sum(-1, keepdims=True)
    np.testing.assert_allclose(got, mixed[1] @ mixed[0], rtol=1e-5)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-6)


def largest_flow(layers, source, sink):
    """Compute the maximum flow as a linear program, unlike the library."""
    depth, width, _ = layers.shape
    edges = [(k, i, j) for k in range(depth) for i in range(width) for j in range(width)]
    conserved = np.zeros(((depth - 1) * width, len(edges)))
    gain = np.zeros(len(edges))
    for e, (k, i, j) in enumerate(edges):
        if k < depth - 1:
            conserved[k * width + i, e] -= 1  # leaves node i above layer k
        if k > 0:
            conserved[(k - 1) * width + j, e] += 1
        if k == 0:
            gain[e] -= j == sink
    bounds = [
        (0, layers[k, i, j] if (k < depth - 1 or i == source) and (k or j == sink) else 0)
        for k, i, j in edges
    ]
    return -linprog(gain, A_eq=conserved, b_eq=np.zeros(len(conserved)), bounds=bounds).fun


def test_flow_equals_a_linear_program(x, layers):
    got = ja.attention_flow(transformer, x)
    mixed = mixing(layers.astype(np.float64))
    expected = [[largest_flow(mixed, i, j) for j in range(T)] for i in range(T)]
    np.testing.assert_allclose(got.values, expected, atol=1e-6)
    assert np.all(got.values <= mixed[1].max(-1).sum())


def test_flow_through_one_layer_equals_its_weights(x, layers):
    def one(x):
        return ja.tag(jnp.asarray(layers[0]), "mine").sum() * x.sum()

    np.testing.assert_allclose(
        ja.attention_flow(one, x, at="mine").values, mixing(layers[:1])[0], atol=1e-7
    )


def test_flow_and_rollout_with_zero_weights_in_half_precision(x):
    def none(x):
        return ja.tag(jnp.zeros((T, T), x.dtype), "attention").sum() * x.sum()

    got = ja.attention_flow(none, x.astype(jnp.bfloat16))
    assert got.values.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got.values, np.eye(T))
    assert not ja.attention_rollout(none, x, residual=0.0).values.any()


def test_value_zeroing_equals_zeroed_value_vectors(x):
    plain = transformer(x)
    one = ja.value_zeroing(transformer, x, 1).values
    for j in range(T):
        scale = jnp.ones((2, T)).at[:, j].set(0)
        np.testing.assert_allclose(one[j], plain[1] - transformer(x, scale)[1], atol=1e-6)


def test_value_zeroing_of_layer_representations(x):
    got = ja.value_zeroing(transformer, x, 1, of="layer_1").values
    assert got.shape == (T, T)
    before = np.asarray(ja.capture(transformer, "layer_1")(x)[1]["layer_1"])
    for j in range(T):
        zeroed = jnp.ones((2, T)).at[:, j].set(0)
        after = ja.capture(lambda x, s: transformer(x, s), "layer_1")(x, zeroed)[1]["layer_1"]
        norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        np.testing.assert_allclose(got[:, j], 1 - (before * after).sum(1) / norms, atol=1e-6)


def test_unattended_position_has_zero_attribution():
    def network(x):
        weights = ja.tag(
            jax.nn.softmax(jnp.where(jnp.arange(3) < 2, x[:, 0], -jnp.inf)), "attention"
        )
        return ja.tag((weights @ x)[None], "sum")[0]

    x = weights_of(1, 3, 2)
    assert ja.value_zeroing(network, x, 0).values[2] == 0
    assert ja.value_zeroing(network, x, 0, of="sum").values[0, 2] == 0


@pytest.mark.parametrize(
    ("method", "options", "error", "match"),
    [
        (ja.attention, {"at": "nothing"}, ValueError, "no intermediate 'nothing'"),
        (ja.attention, {"at": 3}, TypeError, "`at` must be"),
        (ja.attention, {"at": ()}, TypeError, "`at` must be"),
        (ja.attention, {"at": "count"}, TypeError, "'count' of type int32"),
        (ja.attention_rollout, {"at": "layer_0"}, ValueError, r"\(\.\.\., T, T\).*\(4, 6\)"),
        (ja.attention_rollout, {"heads": "sum"}, ValueError, "`heads` must be"),
        (ja.attention_flow, {"at": ("attention", "layer_0")}, ValueError, "one T in all"),
        (ja.value_zeroing, {"at": ("attention", "layer_0")}, ValueError, "equally many"),
        (
            ja.value_zeroing,
            {"of": "attention"},
            ValueError,
            "`of` must name one array.*'attention'",
        ),
        (ja.gradient_x_attention, {"at": "mine"}, ValueError, "no intermediate 'mine'"),
    ],
)
def test_invalid_names_and_options_raise(method, options, error, match, x):
    def network(x):
        return transformer(x) + ja.tag(jnp.int32(1), "count").astype(x.dtype)

    with pytest.raises(error, match=match):
        method(network, x, 1, **options)
