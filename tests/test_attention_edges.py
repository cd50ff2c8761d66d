"""Test edge cases of attention: order of layers, numerical range, masks, text."""

import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from flax import nnx

import jaxattn as ja
from jaxattn import nn

T, D = 3, 2
LAYERS = np.random.default_rng(0).dirichlet(np.ones(T), size=(12, T)).astype(np.float32)


@pytest.fixture(autouse=True)
def figures():
    yield
    plt.close("all")


def expected_rollout(layers):
    values = np.eye(T)
    for layer in layers.astype(np.float64):
        values = (layer + np.eye(T)) / 2 @ values
    return values


def stack(names):
    """Return a network of consecutive layers with these names."""

    def network(x):
        for name, layer in zip(names, LAYERS, strict=False):
            x = ja.tag(jnp.asarray(layer), name) @ x
        return x.sum()

    return network


def scanned(layers):
    def network(x):
        def step(x, weights):
            weights = ja.tag(weights, "attention")
            return (weights.mean(0) if weights.ndim > 2 else weights) @ x, None

        return jax.lax.scan(step, x, jnp.asarray(layers))[0].sum()

    return network


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(1).normal(size=(T, D)), jnp.float32)


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        ([f"layer_{i}" for i in range(12)], "layer_*"),  # layer_10 follows layer_9, not layer_1
        (["a", "b", "a"], ("a", "b")),
        (["a", "b", "a"], ("b", "a")),
    ],
)
def test_layers_are_in_call_order(names, asked, x):
    got = ja.attention_rollout(stack(names), x, at=asked)
    np.testing.assert_allclose(got.values, expected_rollout(LAYERS[: len(names)]), atol=1e-6)
    flow = ja.attention_flow(stack(names), x, at=asked)
    np.testing.assert_array_equal(flow.info["layers"], got.info["layers"])


def test_scan_steps_are_layers(x):
    got = ja.attention_rollout(scanned(LAYERS), x)
    np.testing.assert_allclose(got.values, expected_rollout(LAYERS), atol=1e-6)
    heads = LAYERS.reshape(6, 2, T, T)
    got = ja.attention_rollout(scanned(heads), x)
    np.testing.assert_allclose(got.values, expected_rollout(heads.mean(1)), atol=1e-6)
    assert ja.attention_flow(scanned(heads), x).info["layers"].shape == (6, T, T)


def test_scan_over_layers_with_a_preceding_layer(x):
    def network(x):
        return scanned(LAYERS[1:])(ja.tag(jnp.asarray(LAYERS[0]), "first") @ x)

    got = ja.attention_rollout(network, x, at=("attention", "first"))
    np.testing.assert_allclose(got.values, expected_rollout(LAYERS), atol=1e-6)


def test_rows_tagged_in_a_scan_form_one_layer(x):
    def network(x):
        step = lambda total, row: (total + ja.tag(row, "attention") @ x[:, 0], None)  # noqa: E731
        return jax.lax.scan(step, jnp.float32(0), jnp.asarray(LAYERS[0]))[0]

    got = ja.attention_rollout(network, x)
    np.testing.assert_allclose(got.values, expected_rollout(LAYERS[:1]), atol=1e-6)


def test_interleaved_scan_steps_raise(x):
    def network(x):
        def step(x, weights):
            return ja.tag(weights, "two") @ ja.tag(weights, "one") @ x, None

        return jax.lax.scan(step, x, jnp.asarray(LAYERS))[0].sum()

    with pytest.raises(
        ValueError, match=r"`at` must name at most one tag inside a scan, got \['two', 'one'\]"
    ):
        ja.attention_rollout(network, x, at=("one", "two"))


@pytest.mark.parametrize("method", [ja.attention_rollout, ja.attention_flow])
@pytest.mark.parametrize(
    ("residual", "error", "match"),
    [
        (-1.0, ValueError, "`residual` must be a number and finite and not negative, got -1.0"),
        (float("nan"), ValueError, "`residual` must be a number and finite"),
        ("1", TypeError, "`residual` must be a number, got '1'"),
    ],
)
def test_invalid_residual_raises(method, residual, error, match, x):
    with pytest.raises(error, match=match):
        method(stack(["attention"]), x, residual=residual)


@pytest.mark.parametrize("weight", [-5.0, np.nan])
def test_negative_or_nan_weights_raise_and_give_nan_flow_in_jit(weight, x):
    def network(x):
        return ja.tag(x.at[0, 0].set(weight), "attention").sum()

    square = jnp.full((D, D), 0.5, jnp.float32)
    with pytest.raises(ValueError, match=r"must name attention weights.*got 'attention'"):
        ja.attention_flow(network, square)
    flow = jax.jit(lambda x: ja.attention_flow(network, x).values)
    assert np.isnan(flow(square)).all()
    assert np.isnan(jax.grad(lambda x: flow(x).sum())(square)).any()


@pytest.mark.parametrize("shape", [(0, 0), (0, T, T)])
def test_empty_layers_raise(shape, x):
    def network(x):
        return x.sum() + ja.tag(jnp.zeros(shape), "attention").sum()

    with pytest.raises(ValueError, match=re.escape(f"got [{shape}]")):
        ja.attention_rollout(network, x)


def mixer(scale):
    def network(x):
        weights = ja.tag(jax.nn.softmax(x @ x.T), "attention")
        mixed = ja.tag(weights @ x * jnp.asarray(scale, x.dtype), "mixed")
        return mixed.astype(jnp.float32).sum()

    return network


@pytest.mark.parametrize(
    ("scale", "dtype", "atol"),
    [
        (1e-12, "float32", 1e-6),
        (1e15, "float32", 1e-6),
        (100, "float16", 4e-3),
        (1, "bfloat16", 3e-2),
    ],
)
def test_cosine_distances_are_scale_invariant(scale, dtype, atol, x):
    """The squares of these representations overflow or underflow in their dtype."""
    x = x.astype(dtype)
    got = ja.value_zeroing(mixer(scale), x, of="mixed").values
    assert got.dtype == dtype
    exact = np.asarray(x, np.float64)
    weights = np.exp(exact @ exact.T)
    weights /= weights.sum(-1, keepdims=True)
    before = weights @ exact
    for j in range(T):
        after = np.delete(weights, j, axis=1) @ np.delete(exact, j, axis=0)
        norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        np.testing.assert_allclose(got[:, j], 1 - (before * after).sum(1) / norms, atol=atol)
    assert got.min() >= 0


@pytest.mark.parametrize("of", [3, ["mixed"]])
def test_of_must_be_a_string(of, x):
    with pytest.raises(TypeError, match="`of` must be the name"):
        ja.value_zeroing(mixer(1), x, of=of)


def test_of_must_name_floating_vectors(x):
    def network(x):
        weights = ja.tag(jax.nn.softmax(x), "attention")
        return ja.tag((weights > 0.5).astype(jnp.int32), "rounded").sum().astype(x.dtype)

    with pytest.raises(TypeError, match="`of` must name floating vectors, got 'rounded' of int32"):
        ja.value_zeroing(network, x, of="rounded")


LAYER = {
    "self": lambda: nn.SeqSelfAttention(D, rngs=nnx.Rngs(0)),
    "weighted": lambda: nn.SeqWeightedAttention(D, rngs=nnx.Rngs(0)),
    "feed forward": lambda: nn.FeedForwardAttention(D, rngs=nnx.Rngs(0)),
    "decoder": lambda: nn.AttentionDecoder(D, 4, 3, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("kind", LAYER)
@pytest.mark.parametrize("shape", [(T, 1), (1, 1), (1,), ()])
@pytest.mark.representatives("shape0-self", "shape1-self", "shape2-weighted", "shape3-feed forward")
def test_mask_must_have_an_entry_for_each_step(kind, shape, x):
    """(T, 1) broadcasts to T sequences of T steps, and would mask whole sequences."""
    batch = jnp.stack([x] * T)
    message = f"`mask` must have shape (3, 3), one entry per step, got {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        LAYER[kind]()(batch, np.ones(shape, bool))
    one_for_all = LAYER[kind]()(batch, np.array([[True, True, False]])).weights
    each = LAYER[kind]()(batch, np.array([[True, True, False]] * T)).weights
    np.testing.assert_array_equal(one_for_all, each)


@pytest.mark.parametrize(
    "make",
    [
        lambda size: nn.FeedForwardAttention(size, rngs=nnx.Rngs(0)),
        lambda size: nn.AttentionDecoder(size, 4, 3, rngs=nnx.Rngs(0)),
    ],
)
@pytest.mark.parametrize("size", [2.5, "2"])
def test_sizes_must_be_integers(make, size):
    with pytest.raises(TypeError, match="features` must be an integer, got"):
        make(size)


def test_output_length_must_be_an_integer(x):
    with pytest.raises(TypeError, match=r"`output_length` must be an integer, got 2\.5"):
        LAYER["decoder"]()(x, output_length=2.5)


@pytest.mark.slow
@pytest.mark.parametrize("place", [-1, 4])
@pytest.mark.representatives("4")
def test_traced_out_of_range_id_gives_nan(place):
    """Methods and `jit` trace the ids; -1, a common padding id, is not the last character."""
    model = ja.models.CharacterClassifier(
        4, embedding_features=2, hidden_features=3, rngs=nnx.Rngs(0)
    )
    ids = np.array([[place, 1, 2]])
    assert np.isnan(ja.explain(ja.saliency, model, ids, at="embedding").output).all()
    hidden = ja.explain(ja.attention, model, ids, args=(np.array([2]),), at="attention_vec")
    np.testing.assert_allclose(hidden.output[0], model(np.array([1, 2])), rtol=1e-6)


def test_head_titles_are_not_parsed_as_math():
    title = r"costs $5 and $\6"
    (axes,) = ja.plot.attention_heads(LAYERS[:1], titles=[title])
    axes.figure.draw_without_rendering()
    assert axes.get_title() == title


def test_columns_must_be_a_sequence():
    with pytest.raises(TypeError, match="`columns` must be a sequence of strings, got"):
        ja.plot.attention(LAYERS[0], columns=iter("abc"))


def test_words_must_be_ordered():
    for words in ({"a", "b"}, 5, None):
        with pytest.raises(TypeError, match="`words` must be a string or a sequence of strings"):
            ja.plot.text(words, [1, 2])


def test_unencodable_label_is_written_as_replacement_character(tmp_path):
    ja.plot.text("ab", {"\ud800": [1, 2]}).save(tmp_path / "page.html")
    assert "\ufffd" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_local_window_is_exact_in_bfloat16():
    """bfloat16 represents no integer between 256 and 258."""
    layer = nn.MultiplicativeAttention(
        2, score="dot", local="monotonic", window=1, param_dtype="bfloat16", rngs=nnx.Rngs(0)
    )
    read = layer(jnp.zeros((600, 2), jnp.bfloat16), jnp.zeros((600, 2), jnp.bfloat16)).weights > 0
    expected = np.abs(np.arange(600)[:, None] - np.arange(600)) <= 1
    np.testing.assert_array_equal(read, expected)
