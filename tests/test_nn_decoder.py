"""Tests of the attention decoder against a NumPy loop, of its masks, dtypes and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads
from parameters import with_random_parameters

import jaxattn as ja
from jaxattn import nn

T, M, N, K = 5, 3, 4, 2
STEPS = 6


def make(dtype=jnp.float32, **options):
    """Return a decoder with nonzero biases."""
    return with_random_parameters(
        lambda: nn.AttentionDecoder(M, N, K, param_dtype=dtype, rngs=nnx.Rngs(0), **options)
    )


def inputs(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def softmax(e):
    return np.exp(e) / np.exp(e).sum()


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def loop(weights, h, steps, teacher=None, uniform=False):
    """Evaluate the published equations with one alignment score at a time."""
    w = {name: np.asarray(array, np.float64) for name, array in weights._asdict().items()}
    s, y = np.tanh(h[0] @ w["W_s"]), np.zeros(K)
    logits, alphas = [], []
    for t in range(steps):
        e = [w["V_a"] @ np.tanh(s @ w["W_a"] + h_j @ w["U_a"] + w["b_a"]) for h_j in h]
        alpha = np.full(len(h), 1 / len(h)) if uniform else softmax(np.array(e))
        c = sum(a * h_j for a, h_j in zip(alpha, h, strict=True))
        r = sigmoid(y @ w["W_r"] + s @ w["U_r"] + c @ w["C_r"] + w["b_r"])
        z = sigmoid(y @ w["W_z"] + s @ w["U_z"] + c @ w["C_z"] + w["b_z"])
        proposed = np.tanh(y @ w["W_p"] + (r * s) @ w["U_p"] + c @ w["C_p"] + w["b_p"])
        logits.append(y @ w["W_o"] + s @ w["U_o"] + c @ w["C_o"] + w["b_o"])
        alphas.append(alpha)
        s = (1 - z) * s + z * proposed
        y = softmax(logits[-1]) if teacher is None else teacher[t]
    return np.array(logits), np.array(alphas)


def test_one_step_by_hand():
    # One feature, one unit and two labels: all products are scalar.
    one = {"W_a": 2.0, "U_a": -1.0, "W_s": 0.5, "U_r": 0.3, "C_r": -0.2, "U_z": -0.4, "C_z": 0.6}
    one |= {"U_p": 0.8, "C_p": 0.7}
    weights = nn.DecoderWeights(**(
        {name: jnp.full((1, 1), value) for name, value in one.items()}
        | {"V_a": jnp.array([1.5]), "b_a": jnp.array([0.1])}
        | {"b_r": jnp.array([0.2]), "b_z": jnp.array([-0.3]), "b_p": jnp.array([0.05])}
        | {"W_r": jnp.array([[0.4], [-0.5]]), "W_z": jnp.array([[0.9], [0.1]])}
        | {"W_p": jnp.array([[-0.6], [0.2]]), "W_o": jnp.array([[0.3, -0.1], [0.7, 0.2]])}
        | {"U_o": jnp.array([[1.1, -0.9]]), "C_o": jnp.array([[0.5, 0.4]])}
        | {"b_o": jnp.array([0.25, -0.15])}
    ))  # fmt: skip
    state = nn.DecoderState(jnp.array([0.5]), jnp.array([0.75, 0.25]))
    after, (logits, alpha) = nn.attention_decoder_step(weights, state, jnp.array([[1.0], [-2.0]]))
    # e = 1.5 tanh(1 - h + 0.1)
    left, right = np.exp(1.5 * np.tanh(0.1)), np.exp(1.5 * np.tanh(3.1))
    np.testing.assert_allclose(alpha, [left / (left + right), right / (left + right)], rtol=1e-6)
    c = (left - 2 * right) / (left + right)
    r = sigmoid(0.3 - 0.125 + 0.15 - 0.2 * c + 0.2)
    z = sigmoid(0.675 + 0.025 - 0.2 + 0.6 * c - 0.3)
    proposed = np.tanh(-0.45 + 0.05 + 0.8 * r * 0.5 + 0.7 * c + 0.05)
    np.testing.assert_allclose(after.hidden, [(1 - z) * 0.5 + z * proposed], rtol=1e-6)
    by_hand = [0.225 + 0.175 + 0.55 + 0.5 * c + 0.25, -0.075 + 0.05 - 0.45 + 0.4 * c - 0.15]
    np.testing.assert_allclose(logits, by_hand, rtol=1e-6)
    np.testing.assert_allclose(after.label, softmax(np.array(by_hand)), rtol=1e-6)


@pytest.mark.parametrize("forced", [False, True])
def test_equals_published_equations(forced, x64):
    layer, h = make(jnp.float64), inputs(T, M, dtype=np.float64)
    teacher = np.eye(K)[[1, 0, 0, 1, 1, 0]] if forced else None
    logits, alphas = loop(layer.weights(), h, STEPS, teacher)
    got = layer(h, output_length=STEPS, teacher=teacher)
    np.testing.assert_allclose(got.logits, logits, rtol=0, atol=1e-12)
    np.testing.assert_allclose(got.weights, alphas, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        got.probabilities, np.array([softmax(row) for row in logits]), rtol=0, atol=1e-12
    )


def test_weight_names_and_shapes_are_published():
    layer = nn.AttentionDecoder(M, N, K, rngs=nnx.Rngs(0))
    shapes = {name: array.shape for name, array in layer.weights()._asdict().items()}
    gates = [{f"W_{g}": (K, N), f"U_{g}": (N, N), f"C_{g}": (M, N), f"b_{g}": (N,)} for g in "rzp"]
    alignment = {"W_a": (N, N), "U_a": (M, N), "b_a": (N,), "V_a": (N,), "W_s": (M, N)}
    output = {"W_o": (K, K), "U_o": (N, K), "C_o": (M, K), "b_o": (K,)}
    assert shapes == alignment | output | gates[0] | gates[1] | gates[2]
    assert set(nnx.to_pure_dict(nnx.state(layer))) == set(shapes)
    for name, array in layer.weights()._asdict().items():
        assert np.any(array) != name.startswith("b_")
    for name in ("U_r", "U_z", "U_p"):
        u = np.asarray(getattr(layer, name)[...])
        np.testing.assert_allclose(u @ u.T, np.eye(N), rtol=0, atol=1e-6)


def test_output_length_defaults_to_input_length():
    layer, h = make(), inputs(T, M)
    got = layer(h)
    assert got.logits.shape == (T, K) and got.weights.shape == (T, T)
    np.testing.assert_allclose(got.weights.sum(-1), np.ones(T), rtol=0, atol=1e-6)
    longer = layer(h, output_length=T + 3)
    assert longer.weights.shape == (T + 3, T)
    np.testing.assert_allclose(longer.logits[:T], got.logits, rtol=0, atol=1e-6)
    assert layer(h, teacher=np.zeros((2, K), np.int32)).logits.shape == (2, K)


@pytest.mark.slow
@pytest.mark.parametrize("places", [[0, 1, 2], [2, 3, 4], [1, 3]])
@pytest.mark.representatives("places1")
def test_masked_steps_are_ignored(places):
    layer, h = make(), inputs(T, M)
    mask = np.isin(np.arange(T), places)
    garbage = np.array([0, np.nan, np.inf, 1e30], np.float32)
    hs = np.where(mask[:, None], h, garbage[:, None, None])

    def loss(layer, h):
        got = layer(h, mask)
        return (got.logits**2).sum() + (got.weights**2).sum(), got

    both = nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, got), (of_weights, of_h) = nnx.jit(nnx.vmap(both, in_axes=(None, 0)))(layer, hs)
    for leaf in jax.tree.leaves((got, of_weights, of_h)):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
    assert np.isfinite(of_h).all() and (of_h[:, mask] != 0).all()
    np.testing.assert_array_equal(of_h[:, ~mask], 0)
    np.testing.assert_array_equal(got.weights[..., ~mask], 0)
    alone = layer(h[mask], output_length=T)
    np.testing.assert_allclose(got.logits[0], alone.logits, rtol=0, atol=1e-6)
    np.testing.assert_allclose(got.weights[0][:, mask], alone.weights, rtol=0, atol=1e-6)


def test_fully_masked_weights_are_zero():
    layer, h = make(), np.full((T, M), np.nan, np.float32)

    def total(layer, h):
        got = layer(h, np.zeros(T, bool))
        return got.logits.sum() + got.weights.sum(), got

    (_, got), slopes = nnx.value_and_grad(total, argnums=(0, 1), has_aux=True)(layer, h)
    np.testing.assert_array_equal(got.weights, 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((got, slopes)))
    # The context is zero, whatever the annotations.
    expected, _ = loop(layer.weights(), np.zeros((1, M)), T)
    np.testing.assert_allclose(got.logits, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_batch_axes_equal_vmap():
    layer, h = make(), inputs(2, 3, T, M)
    mask = np.arange(T) < np.array([[5, 2, 1], [3, 4, 5]])[..., None]
    teacher = np.eye(K, dtype=np.float32)[np.random.default_rng(1).integers(K, size=(2, 3, 4))]
    batched = layer(h, mask, teacher=teacher)
    assert batched.logits.shape == (2, 3, 4, K) and batched.weights.shape == (2, 3, 4, T)
    for i in np.ndindex(2, 3):
        single = layer(h[i], mask[i], teacher=teacher[i])
        for a, b in zip(batched, single, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=0, atol=1e-6)
    every = layer(h, mask[0, 1])  # one mask for all
    np.testing.assert_allclose(
        every.weights[1, 2], layer(h[1, 2], mask[0, 1]).weights, rtol=0, atol=1e-6
    )


def test_attention_is_captured_and_replaced_by_name(x64):
    layer, h = make(jnp.float64, name="look"), inputs(T, M, dtype=np.float64)
    got, captured = ja.capture(layer, "look")(h)
    np.testing.assert_array_equal(captured["look"], got.weights)
    uniform = ja.intervene(layer, {"look": np.full(T, 1 / T)})(h)
    expected, _ = loop(layer.weights(), h, T, uniform=True)
    np.testing.assert_allclose(uniform.logits, expected, rtol=0, atol=1e-12)
    assert np.abs(uniform.logits - got.logits).max() > 1e-3


@pytest.mark.slow
def test_gradients_equal_finite_differences(x64):
    graph, params = nnx.split(make(jnp.float64))

    @jax.jit
    def score(params, h):
        logits, weights = nnx.merge(graph, params)(h, np.arange(T) < 4)
        return (logits * jnp.cos(logits)).sum() + (weights**2).sum()

    h = inputs(T, M, dtype=np.float64)
    check_grads(score, (nnx.as_pure(params), h), order=1, modes=["fwd", "rev"])


@pytest.mark.parametrize(
    ("param_dtype", "h_dtype", "expected"),
    [
        ("float32", "int8", "float32"),
        ("bfloat16", "int32", "bfloat16"),
        ("float32", "float64", "float64"),
    ],
)
@pytest.mark.representatives("bfloat16-int32-bfloat16")
def test_dtype_is_promoted_from_weights_and_annotations(param_dtype, h_dtype, expected, x64):
    layer = make(param_dtype)
    h = jnp.asarray(np.arange(T * M).reshape(T, M) % 3, h_dtype)
    assert {p.dtype for p in jax.tree.leaves(nnx.state(layer))} == {jnp.dtype(param_dtype)}
    got = layer(h, np.arange(T) < 4, teacher=np.eye(K)[[0, 1]].astype(np.float32))
    assert got.logits.dtype == got.weights.dtype == expected
    assert layer(h).probabilities.dtype == expected


def test_eager_calls_compile_once(caplog):
    with jax.log_compiles():
        for seed in range(3):
            make()(inputs(2, 7, M) + seed, np.arange(7) < 5 + seed)
    compiled = [r for r in caplog.records if "Compiling" in r.message and "_decode" in r.message]
    assert len(compiled) == 1


H = np.zeros((2, T, M), np.float32)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            ValueError,
            r"`annotations` must have shape \(\.\.\., T_in, 3\) .*, got \(3,\)",
            lambda m: m(H[0, 0]),
        ),
        (ValueError, r"`annotations` must have .*, got \(2, 5, 2\)", lambda m: m(H[..., :2])),
        (ValueError, r"`annotations` must have .*, got \(2, 0, 3\)", lambda m: m(H[:, :0])),
        (TypeError, "`annotations` must be real numbers, got dtype complex64", lambda m: m(H + 1j)),
        (
            ValueError,
            r"`mask` must broadcast to shape \(2, 5\), got \(3,\)",
            lambda m: m(H, np.ones(3, bool)),
        ),
        (TypeError, "`mask` must be boolean", lambda m: m(H, np.ones(T, np.float32))),
        (ValueError, "`output_length` must be at least 1, got 0", lambda m: m(H, output_length=0)),
        (
            ValueError,
            r"`teacher` must have shape \(2, T_out, 2\), got \(2, 4, 3\)",
            lambda m: m(H, teacher=np.zeros((2, 4, 3), np.float32)),
        ),
        (
            ValueError,
            r"`teacher` must have shape \(2, 3, 2\), got \(2, 4, 2\)",
            lambda m: m(H, output_length=3, teacher=np.zeros((2, 4, 2), np.float32)),
        ),
        (ValueError, "`teacher` must have .*, got \\(2,\\)", lambda m: m(H, teacher=np.zeros(2))),
        (
            ValueError,
            "`output_length` must be at least 1, got 0",
            lambda m: m(H, teacher=np.zeros((2, 0, K), np.float32)),
        ),
        (TypeError, "`teacher` must be real", lambda m: m(H, teacher=np.zeros((2, 4, K), bool))),
    ],
)
def test_wrong_arguments(error, message, call):
    with pytest.raises(error, match=message):
        call(make())


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "`in_features` must be at least 1, got 0", {"in_features": 0}),
        (ValueError, "`hidden_features` must be at least 1, got -1", {"hidden_features": -1}),
        (ValueError, "`num_classes` must be at least 1, got 0", {"num_classes": 0}),
        (TypeError, "`param_dtype` must be floating, got int32", {"param_dtype": "int32"}),
    ],
)
def test_wrong_settings(error, message, options):
    defaults = {"in_features": M, "hidden_features": N, "num_classes": K, "rngs": nnx.Rngs(0)}
    with pytest.raises(error, match=message):
        nn.AttentionDecoder(**defaults | options)


# The encoder-decoder network.


@pytest.fixture(scope="module")
def translator():
    with jax.enable_x64(True):
        model = ja.models.Translator(
            M, 3, K, decoder_features=N, output_length=4, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
        )
        yield model


@pytest.mark.slow
def test_translator_composes_encoder_and_decoder(translator, x64):
    x = inputs(2, T, M, dtype=np.float64)
    lengths = np.array([5, 3])
    logits = translator(x, lengths)
    assert logits.shape == (2, 4, K)
    for i, n in enumerate(lengths):
        read = np.asarray(translator.encoder(x[i, :n]).outputs)
        expected, alphas = loop(translator.decoder.weights(), read, 4)
        np.testing.assert_allclose(logits[i], expected, rtol=0, atol=1e-12)
        _, captured = ja.capture(translator, "attention")(x[i], n)
        np.testing.assert_allclose(captured["attention"][:, :n], alphas, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(captured["attention"][:, n:], 0)
    assert ja.models.Translator(M, 3, K, rngs=nnx.Rngs(0))(x.astype("float32")).shape == (2, T, K)
    forced = translator(x, teacher=np.zeros((2, 4, K)))
    np.testing.assert_array_equal(forced[:, 0], translator(x)[:, 0])
    assert not np.allclose(forced[:, 1], translator(x)[:, 1])


TARGETS = np.array([[0, 1], [2, 0], [3, 1]])


@pytest.mark.parametrize(
    "options", [{}, {"attention": "attnlrp", "products": "half"}, {"gates": "half"}]
)
@pytest.mark.slow
def test_output_label_relevance_is_conserved(translator, options, x64):
    x = inputs(3, T, M, dtype=np.float64)
    found = ja.explain(
        ja.lrp, translator, x, TARGETS, args=(np.array([5, 4, 2]),), conserve_bias=True, **options
    )
    scores = np.asarray(found.output)[np.arange(3), *TARGETS.T]
    total = found.values.sum((1, 2)) + found.info["absorbed"]
    np.testing.assert_allclose(total, scores, rtol=0, atol=1e-12)
    assert np.abs(found.values[0]).min() > 0
    np.testing.assert_array_equal(found.values[2, 2:], 0)


@pytest.mark.slow
def test_integrated_gradients_are_complete_for_each_label(translator, x64):
    x = inputs(3, T, M, dtype=np.float64)
    found = ja.explain(ja.integrated_gradients, translator, x, TARGETS, num_steps=200)
    change = translator(x) - translator(np.zeros_like(x))
    expected = np.asarray(change)[np.arange(3), *TARGETS.T]
    np.testing.assert_allclose(found.values.sum((1, 2)), expected, rtol=1e-3)


@pytest.mark.slow
def test_wrong_translator_settings():
    with pytest.raises(ValueError, match="`output_length` must be at least 1, got 0"):
        ja.models.Translator(M, 3, K, output_length=0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="`hidden_features` must be at least 1, got 0"):
        ja.models.Translator(M, 0, K, rngs=nnx.Rngs(0))
