"""Tests of self-attention against published values and NumPy loops."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parameters import with_random_parameters

import jaxattn as ja
from jaxattn import nn

T, D, UNITS = 6, 4, 3
both_types = pytest.mark.parametrize("attention_type", ["additive", "multiplicative"])


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape)


def make(**options):
    """Return a float64 layer with nonzero biases."""
    options = {"units": UNITS, "param_dtype": "float64"} | options
    return with_random_parameters(
        lambda: nn.SeqSelfAttention(D, rngs=nnx.Rngs(0), **options), scale=1
    )


def softmax(scores):
    raised = np.exp(scores - scores.max())
    return raised / raised.sum()


def loop(layer, x, mask=None, *, compat=False):
    """Compute attention pair by pair; excluded scores are lowered by 10000."""
    w = {name: np.asarray(getattr(layer, name)[...]) for name in layer.weight_names}
    steps = len(x)
    width = layer.attention_width
    if layer.history_only and width is None:
        width = 10**9
    rows = []
    for i in range(steps):
        scores = np.zeros(steps)
        for j in range(steps):
            if layer.attention_type == "additive":
                hidden = np.tanh(x[i] @ w["Wt"] + x[j] @ w["Wx"] + w.get("bh", 0))
                score = (hidden @ w["Wa"])[0]
            else:
                score = x[i] @ w["Wa"] @ x[j]
            score += w["ba"][0] if "ba" in w else 0
            if layer.attention_activation is not None:
                score = float(layer.attention_activation(score))
            if width is not None:
                lowest = i - (width - 1) if layer.history_only else i - width // 2
                score -= 0 if lowest <= j < lowest + width else 10000
            if mask is not None:
                apart = not mask[i] and not mask[j] if compat else not mask[j]
                score -= 10000 if apart else 0
            scores[j] = score
        rows.append(softmax(scores))
    return np.array(rows) @ x, np.array(rows)


def test_published_example():
    layer = nn.SeqSelfAttention(2, units=2, rngs=nnx.Rngs(0))
    published = {
        "Wt": [[0.1, 0.2], [0.3, 0.4]], "Wx": [[0.5, -0.5], [0.25, 0.75]],
        "bh": [0.1, -0.1], "Wa": [[1.0], [-1.0]], "ba": [0.2],
    }  # fmt: skip
    assert set(layer.weight_names) == set(published)
    for name, value in published.items():
        weight = getattr(layer, name)
        assert weight.shape == np.shape(value)
        weight[...] = jnp.array(value)
    values, weights = layer(np.array([[1, 0], [0, 1], [1, 1]], np.float32))
    np.testing.assert_allclose(weights[0], [0.542036, 0.154755, 0.303209], rtol=0, atol=5e-7)
    np.testing.assert_allclose(values[0], [0.845245, 0.457964], rtol=0, atol=5e-7)


@both_types
@pytest.mark.parametrize("history_only", [False, True])
@pytest.mark.parametrize("width", [None, 1, 2, 3, 100])
@pytest.mark.representatives(
    "None-False-additive", "3-True-additive", "3-False-multiplicative", "2-True-multiplicative"
)
def test_equals_a_loop(attention_type, width, history_only, x64):
    layer = make(
        attention_type=attention_type, attention_width=width, history_only=history_only,
        attention_activation="sigmoid" if width == 3 else None,
    )  # fmt: skip
    x = inputs(T, D)
    values, weights = loop(layer, x)
    for compat in (False, True):
        layer.compat = compat
        got = layer(x)
        np.testing.assert_allclose(got.weights, weights, rtol=0, atol=1e-14)
        np.testing.assert_allclose(got.values, values, rtol=0, atol=1e-14)
    span = T if width is None else width
    allowed = {None: T, 1: 1, 2: 2, 3: 3, 100: T}[width]
    assert (np.asarray(weights) > 0).sum(1).max() == min(span, allowed)


@both_types
def test_without_biases(attention_type, x64):
    layer = make(
        attention_type=attention_type, use_additive_bias=False, use_attention_bias=False,
        attention_activation=jnp.tanh,
    )  # fmt: skip
    assert not {"bh", "ba"} & set(layer.weight_names)
    np.testing.assert_allclose(
        layer(inputs(T, D)).weights, loop(layer, inputs(T, D))[1], atol=1e-14
    )


@both_types
@pytest.mark.parametrize("options", [{}, {"attention_width": 3}, {"history_only": True}])
def test_masked_steps_have_zero_weights(attention_type, options, x64):
    layer = make(attention_type=attention_type, **options)
    x, mask = inputs(T, D), np.array([1, 1, 0, 1, 1, 0], bool)
    dirty = np.where(mask[:, None], x, np.nan)
    values, weights = layer(dirty, mask)
    blank = np.where(mask[:, None], x, 0)
    want = loop(layer, blank, mask)
    np.testing.assert_allclose(weights, want[1], rtol=0, atol=1e-14)
    np.testing.assert_allclose(values, want[0], rtol=0, atol=1e-14)
    np.testing.assert_array_equal(weights[:, ~mask], 0)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=0, atol=1e-14)


@both_types
@pytest.mark.parametrize("width", [None, 3])
def test_compat_masks_only_pairs_of_padding(attention_type, width, x64):
    layer = make(attention_type=attention_type, attention_width=width, compat=True)
    x, mask = inputs(T, D), np.array([1, 1, 1, 0, 0, 0], bool)
    got, want = layer(x, mask), loop(layer, x, mask, compat=True)
    np.testing.assert_allclose(got.weights, want[1], rtol=0, atol=1e-11)
    np.testing.assert_allclose(got.values, want[0], rtol=0, atol=1e-11)
    assert got.weights[2, 3] > 0  # a valid step reads padding
    assert got.weights[3, 2] > 0
    # In a window of 3 the last step has padding alone, with scores as low as outside the window.
    assert (got.weights[5, 4] > 0) == (width == 3)


@pytest.mark.slow
def test_fully_masked_step_is_zero():
    layer = nn.SeqSelfAttention(D, attention_width=1, rngs=nnx.Rngs(0))
    x, mask = inputs(2, T, D).astype(np.float32), np.array([[1, 0, 1, 1, 1, 1], [0] * T], bool)
    dirty = np.where(mask[..., None], x, np.nan)
    values, weights = layer(dirty, mask)
    np.testing.assert_array_equal(weights, np.eye(T) * mask[:, None])
    np.testing.assert_array_equal(values, np.where(mask[..., None], x, 0))


@pytest.mark.slow
def test_single_step_attends_to_itself():
    x = inputs(1, D).astype(np.float32)
    for layer in (
        nn.SeqSelfAttention(D, attention_width=5, history_only=True, rngs=nnx.Rngs(0)),
        nn.ScaledDotProductAttention(),
    ):
        values, weights = layer(x)
        np.testing.assert_array_equal(weights, [[1]])
        np.testing.assert_array_equal(values, x)


@pytest.mark.slow
def test_bfloat16_is_kept():
    layer = nn.SeqSelfAttention(D, compat=True, param_dtype="bfloat16", rngs=nnx.Rngs(0))
    x = jnp.asarray(inputs(T, D), jnp.bfloat16)
    values, weights = layer(x, np.arange(T) < 4)
    assert values.dtype == weights.dtype == jnp.bfloat16
    want = loop(layer, np.asarray(x, np.float64), np.arange(T) < 4, compat=True)[1]
    np.testing.assert_allclose(weights.astype("float32"), want, rtol=0, atol=0.03)


@pytest.mark.slow
def test_attention_regularizer(x64):
    a = np.stack([softmax(row) for row in inputs(2 * T, T)]).reshape(2, T, T)
    want = sum(((w @ w.T - np.eye(T)) ** 2).sum() for w in a) / 2
    np.testing.assert_allclose(nn.attention_regularizer(jnp.array(a), 0.3), 0.3 * want)
    one = nn.attention_regularizer(jnp.array(a[0]))
    np.testing.assert_allclose(one, ((a[0] @ a[0].T - np.eye(T)) ** 2).sum())
    assert nn.attention_regularizer(jnp.eye(T)) == 0


def test_weighted_attention_equals_formula(x64):
    layer = with_random_parameters(
        lambda: nn.SeqWeightedAttention(D, param_dtype="float64", rngs=nnx.Rngs(0))
    )
    x, mask = inputs(T, D), np.array([1, 1, 0, 1, 0, 0], bool)
    assert (layer.W.shape, layer.b.shape) == ((D, 1), (1,))
    weights = softmax((x @ np.asarray(layer.W[...]))[:, 0])
    got = layer(x)
    np.testing.assert_allclose(got.weights, weights, rtol=0, atol=1e-14)
    np.testing.assert_allclose(got.values, weights @ x, rtol=0, atol=1e-14)
    few = layer(np.where(mask[:, None], x, np.nan), mask)
    np.testing.assert_allclose(few.values, layer(x[mask]).values, rtol=0, atol=1e-14)
    np.testing.assert_allclose(few.weights[mask], layer(x[mask]).weights, rtol=0, atol=1e-14)
    assert "b" not in nn.SeqWeightedAttention(D, use_bias=False, rngs=nnx.Rngs(0)).weight_names


def head(q, k, v, history_only, mask):
    scores = q @ k.T / np.sqrt(q.shape[-1])
    scores = np.where(mask[None], scores, -np.inf)
    if history_only:
        scores = np.where(np.tri(len(q), len(k), dtype=bool), scores, -np.inf)
    weights = np.stack([softmax(row) for row in scores])
    return weights @ v, weights


@pytest.mark.slow
@pytest.mark.parametrize("history_only", [False, True])
def test_scaled_dot_product_equals_formula(history_only, x64):
    layer = nn.ScaledDotProductAttention(history_only=history_only)
    q, k, v = inputs(5, D), inputs(T, D)[::-1], inputs(T, 2)
    mask = np.array([1, 1, 0, 1, 0, 0], bool)
    got = layer(q, k, np.where(mask[:, None], v, np.nan), mask=mask)
    values, weights = head(q, k, v, history_only, mask)
    np.testing.assert_allclose(got.weights, weights, rtol=0, atol=1e-14)
    np.testing.assert_allclose(got.values, values, rtol=0, atol=1e-14)
    alone = layer(k)
    np.testing.assert_allclose(alone.values, layer(k, k, k).values, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("history_only", [False, True])
@pytest.mark.representatives("False-relu", "True-None")
def test_multi_head_equals_formula(history_only, activation, x64):
    layer = with_random_parameters(
        lambda: nn.MultiHeadAttention(
            D, 2, query_features=5, key_features=3, activation=activation,
            history_only=history_only, param_dtype="float64", rngs=nnx.Rngs(0),
        )
    )  # fmt: skip
    q, k, v = inputs(5, 5), inputs(T, 3), inputs(T, D)
    mask = np.array([1, 1, 0, 1, 1, 0], bool)
    w = {name: np.asarray(getattr(layer, name)[...]) for name in layer.weight_names}
    shapes = {"Wq": (5, D), "Wk": (3, D), "Wv": (D, D), "Wo": (D, D)} | dict.fromkeys(
        ["bq", "bk", "bv", "bo"], (D,)
    )
    assert {name: weight.shape for name, weight in w.items()} == shapes

    def projected(x, part):
        x = x @ w[f"W{part}"] + w[f"b{part}"]
        return np.maximum(x, 0) if activation else x

    Q, K, V = projected(q, "q"), projected(k, "k"), projected(v, "v")
    parts = [
        head(Q[:, c : c + 2], K[:, c : c + 2], V[:, c : c + 2], history_only, mask) for c in (0, 2)
    ]
    want = projected(np.concatenate([values for values, _ in parts], 1), "o")
    got = layer(q, k, np.where(mask[:, None], v, np.nan), mask=mask)
    np.testing.assert_allclose(got.weights, [weights for _, weights in parts], rtol=0, atol=1e-13)
    np.testing.assert_allclose(got.values, want, rtol=0, atol=1e-13)


def test_all_heads_are_captured_and_replaced():
    layer = nn.MultiHeadAttention(D, 2, name="heads", rngs=nnx.Rngs(0))
    x = inputs(3, T, D).astype(np.float32)
    (values, weights), captured = ja.capture(layer, "heads")(x)
    assert captured["heads"].shape == (3, 2, T, T)
    np.testing.assert_array_equal(captured["heads"], weights)
    uniform = ja.intervene(layer, {"heads": np.full((2, T, T), 1 / T, np.float32)})(x[0])
    assert np.ptp(uniform.values, axis=0).max() < 1e-6
    assert np.ptp(values[0], axis=0).max() > 1e-2


LRP_LAYERS = {
    "additive": lambda: make(),
    "narrow": lambda: make(attention_width=3, history_only=True, attention_activation="sigmoid"),
    "multiplicative": lambda: make(attention_type="multiplicative"),
    "compat": lambda: make(compat=True),
    "weighted": lambda: nn.SeqWeightedAttention(D, param_dtype="float64", rngs=nnx.Rngs(0)),
    "scaled": lambda: nn.ScaledDotProductAttention(),
    "heads": lambda: nn.MultiHeadAttention(D, 2, param_dtype="float64", rngs=nnx.Rngs(0)),
}


@pytest.mark.representatives("weighted-cp_lrp")
@pytest.mark.parametrize("attention", ["cp_lrp", "attnlrp"])
@pytest.mark.parametrize("kind", LRP_LAYERS)
def test_relevance_is_conserved(kind, attention, x64):
    layer, x, readout = LRP_LAYERS[kind](), inputs(T, D), inputs(D)
    mask = jnp.arange(T) < 4

    def score(x):
        return (jnp.atleast_2d(layer(x, mask=mask).values) @ readout).sum()

    found = ja.lrp(score, x, attention=attention, conserve_bias=True)
    total = found.values.sum() + found.info["absorbed"]
    np.testing.assert_allclose(total, found.output, rtol=0, atol=1e-8)
    assert np.abs(found.values[:4]).min() > 0
    if kind != "compat":
        np.testing.assert_array_equal(found.values[4:], 0)


def test_cp_lrp_relevance_equals_fixed_linear_map(x64):
    layer, x, readout = make(), inputs(T, D), inputs(D)
    found = ja.lrp(lambda x: (layer(x).values @ readout).sum(), x, epsilon=0.0)
    want = np.asarray(layer(x).weights.sum(0))[:, None] * x * readout
    np.testing.assert_allclose(found.values, want, rtol=0, atol=1e-12)


X = np.zeros((2, T, D), np.float32)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            ValueError,
            r"`x` must have shape \(\.\.\., T, 4\), T > 0, got \(4,\)",
            lambda m: m(X[0, 0]),
        ),
        (ValueError, r"`x` must have shape .* got \(2, 6, 3\)", lambda m: m(X[..., :3])),
        (ValueError, r"`x` must have shape .* got \(2, 0, 4\)", lambda m: m(X[:, :0])),
        (TypeError, "`x` must be real numbers, got dtype complex64", lambda m: m(X + 1j)),
        (ValueError, r"broadcast to shape \(2, 6\), got \(5,\)", lambda m: m(X, np.ones(5, bool))),
        (ValueError, r"broadcast to shape \(2, 6\)", lambda m: m(X, np.ones((6, 2), bool))),
        (ValueError, r"broadcast to shape \(6,\)", lambda m: m(X[0], np.ones((6, 6), bool))),
        (TypeError, "`mask` must be boolean", lambda m: m(X, np.ones((2, T)))),
    ],
)
@pytest.mark.parametrize("kind", ["self", "weighted"])
def test_wrong_arguments(kind, error, message, call):
    layer = nn.SeqSelfAttention if kind == "self" else nn.SeqWeightedAttention
    with pytest.raises(error, match=message):
        call(layer(D, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "`units` must be at least 1, got 0", {"units": 0}),
        (ValueError, "`features` must be at least 1, got -1", {"features": -1}),
        (ValueError, "`attention_width` must be at least 1, got 0", {"attention_width": 0}),
        (TypeError, "`attention_width` must be an integer, got 2.5", {"attention_width": 2.5}),
        (ValueError, "`attention_type` must be one of .* got 'dot'", {"attention_type": "dot"}),
        (ValueError, "`attention_activation` must be a function", {"attention_activation": "nope"}),
        (TypeError, "`param_dtype` must be floating, got int32", {"param_dtype": "int32"}),
    ],
)
def test_wrong_settings(error, message, options):
    with pytest.raises(error, match=message):
        nn.SeqSelfAttention(**{"features": D, "rngs": nnx.Rngs(0)} | options)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("`num_heads` must divide features=4, got 3", lambda: heads(3)),
        ("`num_heads` must be at least 1, got 0", lambda: heads(0)),
        (r"`keys` must have shape \(\.\.\., T, 4\)", lambda: heads(2)(X, X[..., :3])),
        (r"`keys` must have leading axes \(2,\)", lambda: heads(2)(X, X[0])),
        ("`values` must have one row per key", lambda: heads(2)(X, X, X[:, :3])),
        (r"`keys` must have shape \(\.\.\., T, 4\)", lambda: scaled(X, X[..., :3])),
        (r"`queries` must have shape \(\.\.\., T, D\)", lambda: scaled(X[0, 0])),
        (r"`queries` must have shape \(\.\.\., T, D\)", lambda: scaled(X[0, 0, 0])),
        (r"`weights` must have shape \(\.\.\., T, T\)", lambda: nn.attention_regularizer(X)),
    ],
)
def test_wrong_queries_and_heads(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def heads(count):
    return nn.MultiHeadAttention(D, count, rngs=nnx.Rngs(0))


def scaled(*sequences):
    return nn.ScaledDotProductAttention()(*sequences)
