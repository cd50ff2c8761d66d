"""Tests of attention between sequences: NumPy loops, and properties common to all layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parameters import with_random_parameters

import jaxattn as ja
from jaxattn import nn

T_OUT, T_IN, Q, K, D, UNITS = 5, 7, 4, 3, 2, 6
MASK = np.array([1, 1, 0, 1, 1, 1, 0], bool)


def inputs(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


QUERIES, KEYS, VALUES = inputs(0, T_OUT, Q), inputs(1, T_IN, K), inputs(2, T_IN, D)


def additive(dtype="float64", **options):
    options = {"units": UNITS, "param_dtype": dtype} | options
    return with_random_parameters(
        lambda: nn.AdditiveAttention(Q, K, rngs=nnx.Rngs(0), **options), scale=1
    )


def multiplicative(score="general", dtype="float64", **options):
    options = {"units": UNITS, "param_dtype": dtype, "score": score} | options
    keys = Q if score == "dot" else K
    return with_random_parameters(
        lambda: nn.MultiplicativeAttention(Q, keys, rngs=nnx.Rngs(0), **options), scale=1
    )


def arrays(layer):
    return {name: np.asarray(getattr(layer, name)[...]) for name in layer.weight_names}


def softmax(scores):
    raised = np.exp(scores - scores.max())
    return raised / raised.sum()


def check(got, weights, values):
    np.testing.assert_allclose(got.weights, weights, rtol=0, atol=1e-13)
    np.testing.assert_allclose(got.values, np.asarray(weights) @ values, rtol=0, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("use_bias", [True, False])
def test_additive_equals_a_loop(use_bias, x64):
    layer = additive(use_bias=use_bias)
    w = arrays(layer)
    assert {name: a.shape for name, a in w.items()} == {
        "Wa": (Q, UNITS), "Ua": (K, UNITS), "Va": (UNITS, 1)
    } | ({"ba": (UNITS,)} if use_bias else {})  # fmt: skip
    rows = [
        softmax(
            np.array([np.tanh(q @ w["Wa"] + k @ w["Ua"] + w.get("ba", 0)) @ w["Va"] for k in KEYS])[
                :, 0
            ]
        )
        for q in QUERIES
    ]
    check(layer(QUERIES, KEYS, VALUES), rows, VALUES)
    check(layer(QUERIES, KEYS), rows, KEYS)


def scores_of(layer, queries, keys):
    w = arrays(layer)
    if layer.score == "dot":
        return np.array([[q @ k for k in keys] for q in queries])
    if layer.score == "general":
        return np.array([[q @ w["Wa"] @ k for k in keys] for q in queries])
    both = [[np.concatenate([q, k]) for k in keys] for q in queries]
    return (np.tanh(np.array(both) @ w["Wa"]) @ w["Va"])[..., 0]


@pytest.mark.slow
@pytest.mark.parametrize("score", ["dot", "general", "concat"])
def test_multiplicative_equals_a_loop(score, x64):
    layer = multiplicative(score)
    keys = inputs(4, T_IN, Q) if score == "dot" else KEYS
    scores = scores_of(layer, QUERIES, keys)
    check(layer(QUERIES, keys, VALUES), [softmax(row) for row in scores], VALUES)


@pytest.mark.parametrize("score", ["general", "concat"])
@pytest.mark.parametrize("mask", [None, MASK])
def test_local_monotonic_is_centred_at_query_index(score, mask, x64):
    layer = multiplicative(score, local="monotonic", window=1)
    valid = np.ones(T_IN, bool) if mask is None else mask
    scores = scores_of(layer, QUERIES, KEYS)
    want = np.zeros((T_OUT, T_IN))
    read = np.flatnonzero(valid)  # the window counts valid keys only
    for i in range(T_OUT):
        near = [j for place, j in enumerate(read) if abs(place - i) <= 1]
        want[i, near] = softmax(scores[i, near])
    check(layer(QUERIES, KEYS, VALUES, mask=mask), want, VALUES)


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("normalize", [True, False])
def test_local_predictive_equals_published_formula(normalize, mask, x64):
    layer = multiplicative(local="predictive", window=2, normalize=normalize)
    w = arrays(layer)
    valid = np.ones(T_IN, bool) if mask is None else mask
    read = np.flatnonzero(valid)
    scores = scores_of(layer, QUERIES, KEYS)
    want = np.zeros((T_OUT, T_IN))
    for i, q in enumerate(QUERIES):
        centre = len(read) / (1 + np.exp(-(np.tanh(q @ w["Wp"]) @ w["Vp"])[0]))
        places = np.arange(len(read))
        near = np.abs(places - centre) <= 2
        fading = np.exp(-((places - centre) ** 2) / (2 * (2 / 2) ** 2))[near]
        want[i, read[near]] = softmax(scores[i, read[near]]) * fading
        if normalize:
            want[i] /= want[i].sum()
    got = layer(QUERIES, KEYS, VALUES, mask=mask)
    check(got, want, VALUES)
    assert np.allclose(got.weights.sum(1), 1) == normalize


@pytest.mark.slow
def test_window_beyond_keys_has_zero_weights():
    layer = nn.MultiplicativeAttention(Q, local="monotonic", window=1, rngs=nnx.Rngs(0))
    x = inputs(0, T_OUT, Q).astype(np.float32)
    values, weights = layer(x, x[:2])
    np.testing.assert_array_equal(weights[3:], 0)
    np.testing.assert_array_equal(values[3:], 0)
    np.testing.assert_array_equal(weights[2], [0, 1])


@pytest.mark.slow
def test_cross_attention_equals_loop_in_both_directions(x64):
    layer = with_random_parameters(
        lambda: nn.CrossAttention(D, units=(UNITS, 3), param_dtype="float64", rngs=nnx.Rngs(0))
    )
    w = arrays(layer)
    assert {name: x.shape for name, x in w.items()} == {
        "W0": (D, UNITS), "b0": (UNITS,), "W1": (UNITS, 3), "b1": (3,)
    }  # fmt: skip
    a, b = inputs(0, 4, D), inputs(1, 3, D)
    mask_a, mask_b = np.array([1, 0, 1, 1], bool), np.array([1, 1, 0], bool)

    def compared(x):
        return np.maximum(np.maximum(x @ w["W0"] + w["b0"], 0) @ w["W1"] + w["b1"], 0)

    scores = np.array([[compared(x) @ compared(y) for y in b] for x in a])
    over_b, over_a = layer(a, b)
    check(over_b, [softmax(row) for row in scores], b)
    check(over_a, [softmax(row) for row in scores.T], a)
    over_b, over_a = layer(a, b, mask_a=mask_a, mask_b=mask_b)
    pairs = np.ix_(mask_a, mask_b)  # only valid queries are compared
    some = scores[pairs]
    np.testing.assert_allclose(over_b.weights[pairs], [softmax(row) for row in some], rtol=1e-12)
    np.testing.assert_allclose(over_a.weights.T[pairs], np.transpose([softmax(c) for c in some.T]))
    assert not over_b.weights[:, ~mask_b].any() and not over_a.weights[:, ~mask_a].any()
    plain = nn.CrossAttention(D, units=(), rngs=nnx.Rngs(0))(a, b)[0]
    check(plain, [softmax(row) for row in a @ b.T], b)


# Properties of all layers. `run` calls each on a pair of sequences and a mask of the second.
LAYERS = {
    "additive": additive,
    "dot": lambda dtype: multiplicative("dot", dtype),
    "general": lambda dtype: multiplicative("general", dtype),
    "concat": lambda dtype: multiplicative("concat", dtype),
    "monotonic": lambda dtype: multiplicative("general", dtype, local="monotonic", window=2),
    "predictive": lambda dtype: multiplicative("general", dtype, local="predictive", window=2),
    "cross": lambda dtype: nn.CrossAttention(K, units=(4,), param_dtype=dtype, rngs=nnx.Rngs(0)),
    "scaled": lambda dtype: nn.ScaledDotProductAttention(),
    "heads": lambda dtype: nn.MultiHeadAttention(
        K, 3, query_features=Q, param_dtype=dtype, rngs=nnx.Rngs(0)
    ),
    "self": lambda dtype: nn.SeqSelfAttention(K, param_dtype=dtype, rngs=nnx.Rngs(0)),
    "weighted": lambda dtype: nn.SeqWeightedAttention(K, param_dtype=dtype, rngs=nnx.Rngs(0)),
}
ALONE = ("self", "weighted")
QUICK = ("additive", "predictive", "heads")


def every_layer(test):
    """Run a test on all layers, of which the quick tier has three."""
    return pytest.mark.representatives(*QUICK)(pytest.mark.parametrize("kind", LAYERS)(test))


def sequences(kind, *batch, dtype=np.float32):
    queries = inputs(0, *batch, T_OUT, K if kind in ("cross", "scaled") else Q)
    keys = inputs(1, *batch, T_IN, Q if kind == "dot" else K)
    return queries.astype(dtype), keys.astype(dtype)


def run(kind, layer, queries, keys, mask=None):
    if kind in ALONE:
        return layer(keys, mask)
    if kind == "cross":
        return layer(queries, keys, mask_b=mask)[0]
    return layer(queries, keys, mask=mask)


@every_layer
@pytest.mark.representatives("heads", "predictive")
def test_masked_steps_are_ignored(kind):
    layer = LAYERS[kind]("float32")
    queries, keys = sequences(kind)
    garbage = np.array([0, np.nan, np.inf, 1e30], np.float32)
    dirty = np.where(MASK[:, None], keys, garbage[:, None, None])

    @nnx.jit
    @nnx.vmap(in_axes=(None, 0))
    def both(layer, keys):
        def loss(layer, queries, keys):
            found = run(kind, layer, queries, keys, MASK)
            return jnp.sin(found.values).sum(), found

        backward = nnx.value_and_grad(loss, argnums=(1, 2), has_aux=True)
        return backward(layer, jnp.asarray(queries), keys)

    (_, found), (of_queries, of_keys) = both(layer, dirty)
    for leaf in jax.tree.leaves((found, of_queries, of_keys)):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
    assert np.isfinite(of_queries).all() and (np.abs(of_keys[:, MASK]).max(-1) > 0).all()
    np.testing.assert_array_equal(of_keys[:, ~MASK], 0)
    np.testing.assert_array_equal(found.weights[..., ~MASK], 0)
    np.testing.assert_allclose(found.weights.sum(-1), 1, rtol=0, atol=1e-6)


@every_layer
def test_fully_masked_output_is_zero(kind):
    layer = LAYERS[kind]("float32")
    queries, keys = sequences(kind)

    def loss(queries, keys):
        found = run(kind, layer, queries, keys, np.zeros(T_IN, bool))
        return jnp.sin(found.values).sum(), found

    backward = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    slope, found = backward(queries, keys * np.nan)
    for array in jax.tree.leaves((slope, found)):
        np.testing.assert_array_equal(array, 0)


@pytest.mark.slow
@every_layer
def test_leading_axes_are_batches(kind):
    layer = LAYERS[kind]("float32")
    queries, keys = sequences(kind, 2, 3)
    mask = np.random.default_rng(0).random((2, 3, T_IN)) < 0.7
    call = nnx.jit(lambda layer, *args: run(kind, layer, *args))
    found = call(layer, queries, keys, mask)
    for i, j in np.ndindex(2, 3):
        alone = call(layer, queries[i, j], keys[i, j], mask[i, j])
        for many, one in zip(found, alone, strict=True):
            np.testing.assert_allclose(many[i, j], one, rtol=0, atol=2e-6)
    same = call(layer, queries, keys, mask[0, 0])  # a mask broadcasts
    np.testing.assert_allclose(same.weights[0, 0], found.weights[0, 0], rtol=0, atol=2e-6)


@pytest.mark.slow
@every_layer
def test_weights_are_captured_and_replaced(kind):
    layer = LAYERS[kind]("float32")
    queries, keys = sequences(kind)

    def call(keys):
        return run(kind, layer, jnp.asarray(queries), keys)

    found, seen = ja.capture(call, "attention")(keys)
    captured = seen["attention"][0] if kind == "cross" else seen["attention"]
    np.testing.assert_array_equal(captured, found.weights)
    nothing = ja.intervene(call, {"attention": lambda weights: 0 * weights})(keys)
    np.testing.assert_array_equal(nothing.values, 0)


@pytest.mark.parametrize(
    ("param_dtype", "x_dtype", "expected"),
    [
        ("float32", "int8", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "bfloat16", "float32"),
        ("float32", "float64", "float64"),
        ("float64", "float32", "float64"),
    ],
)
@pytest.mark.representatives("predictive-bfloat16-bfloat16-bfloat16")
@pytest.mark.parametrize("kind", ["predictive", "self", "cross", "heads"])
def test_dtype_is_promoted_from_weights_and_inputs(kind, param_dtype, x_dtype, expected, x64):
    layer = LAYERS[kind](param_dtype)
    assert {p.dtype for p in jax.tree.leaves(nnx.state(layer))} == {jnp.dtype(param_dtype)}
    queries, keys = (jnp.asarray(x, x_dtype) for x in sequences(kind))
    call = nnx.jit(lambda layer, queries, keys: run(kind, layer, queries, keys, MASK))
    values, weights = call(layer, queries, keys)
    assert values.dtype == weights.dtype == expected
    exact = call(layer, queries.astype("float64"), keys.astype("float64")).weights
    tolerance = {"bfloat16": 0.1, "float32": 2e-6, "float64": 0}[expected]
    np.testing.assert_allclose(weights.astype("float64"), exact, rtol=0, atol=tolerance)


def test_integers_without_weights_become_floats():
    assert nn.ScaledDotProductAttention()(np.arange(6).reshape(3, 2)).weights.dtype == "float32"


@pytest.mark.representatives("predictive")
@every_layer
def test_relevance_is_conserved(kind, x64):
    layer = LAYERS[kind]("float64")
    queries, keys = sequences(kind, dtype=np.float64)
    found = ja.lrp(
        lambda keys: (run(kind, layer, jnp.asarray(queries), keys, MASK).values ** 2).sum(),
        keys,
        conserve_bias=True,
        products="half",
    )
    total = found.values.sum() + found.info["absorbed"]
    np.testing.assert_allclose(total, found.output, rtol=0, atol=1e-8)
    np.testing.assert_array_equal(found.values[~MASK], 0)
    assert np.abs(found.values[MASK]).max(-1).min() > 0


@every_layer
def test_equal_layers_have_equal_graphs(kind):
    graphs = [nnx.split(LAYERS[kind]("float32"))[0] for _ in range(2)]
    assert graphs[0] == graphs[1] and hash(graphs[0]) == hash(graphs[1])


X = np.zeros((2, 5, Q), np.float32)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"`queries` must have shape \(\.\.\., T, 4\)", lambda m: m(X[..., :3], X)),
        (ValueError, r"`keys` must have shape \(\.\.\., T, 4\)", lambda m: m(X, X[..., :3])),
        (ValueError, r"`keys` must have leading axes \(2,\), got .*\(5, 4\)", lambda m: m(X, X[0])),
        (ValueError, "`values` must have one row per key", lambda m: m(X, X, X[:, 1:])),
        (ValueError, r"T > 0, got \(2, 0, 4\)", lambda m: m(X, X[:, :0])),
        (TypeError, "`keys` must be real numbers, got dtype bool", lambda m: m(X, X > 0)),
        (TypeError, "`mask` must be boolean", lambda m: m(X, X, mask=np.ones(5))),
        (
            ValueError,
            r"`mask` must broadcast to shape \(2, 5\), got \(2, 5, 5\)",
            lambda m: m(X, X, mask=np.ones((2, 5, 5), bool)),
        ),
    ],
)
@pytest.mark.parametrize("layer", [nn.AdditiveAttention, nn.MultiplicativeAttention])
def test_wrong_arguments(layer, error, message, call):
    with pytest.raises(error, match=message):
        call(layer(Q, rngs=nnx.Rngs(0)))


def test_wrong_pairs():
    layer = nn.CrossAttention(Q, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"`b` must have leading axes \(2,\)"):
        layer(X, X[0])
    with pytest.raises(ValueError, match=r"`a` must have shape \(\.\.\., T, 4\)"):
        layer(X[..., 1:], X)
    with pytest.raises(ValueError, match=r"`mask` must broadcast to shape \(2, 3\)"):
        layer(X, X[:, :3], mask_b=np.ones(5, bool))


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "`score` must be one of 'dot', .* got 'cosine'", {"score": "cosine"}),
        (ValueError, "`local` must be one of None, .* got 'global'", {"local": "global"}),
        (ValueError, "`window` must be at least 1, got 0", {"window": 0}),
        (ValueError, "`units` must be at least 1, got 0", {"units": 0}),
        (ValueError, "`key_features` must equal", {"score": "dot", "key_features": 3}),
        (TypeError, "`key_features` must be an integer, got '3'", {"key_features": "3"}),
        (TypeError, "`param_dtype` must be floating", {"param_dtype": "int32"}),
    ],
)
def test_wrong_settings(error, message, options):
    with pytest.raises(error, match=message):
        nn.MultiplicativeAttention(**{"query_features": Q, "rngs": nnx.Rngs(0)} | options)


def test_wrong_sizes():
    with pytest.raises(ValueError, match="`query_features` must be at least 1, got 0"):
        nn.AdditiveAttention(0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"`units\[1\]` must be at least 1, got 0"):
        nn.CrossAttention(Q, units=(3, 0), rngs=nnx.Rngs(0))
