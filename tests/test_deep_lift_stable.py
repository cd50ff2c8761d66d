"""Test DeepLIFT where slopes are huge, and where masks and branches differ between the runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja

FEATURES, LENGTH = 4, 3


def draw(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)


def check_sum(fn, x, baseline=0.0, rtol=1e-3, **options):
    """Check that values sum to the difference, which is not small."""
    x = jnp.asarray(x)
    baseline = jnp.broadcast_to(jnp.asarray(baseline, x.dtype), x.shape)
    attribution = ja.deep_lift(fn, x, baseline=baseline, **options)
    difference = fn(x) - fn(baseline)
    assert abs(difference) > 1e-2
    error = abs(attribution.values.sum() - difference)
    assert error < rtol * abs(difference)
    assert abs(attribution.info["delta"]) < rtol * abs(difference)
    return attribution.values


def mean(x):
    return x.mean(-1, keepdims=True)


def of_root(x, scale):
    return x * (jax.lax.rsqrt(mean(x * x) + 1e-6) * scale)


def layer_norm(x, scale):
    return of_root(x - mean(x), scale)


def of_factored(x, scale):
    """Multiply the mean by the scale, too, as Keras does."""
    inverse = jax.lax.rsqrt(jnp.maximum(mean(x * x) - mean(x) ** 2, 0) + 1e-6) * scale
    return x * inverse - mean(x) * inverse


NORMS = {
    "rms": of_root,
    "layer": layer_norm,
    "factored": of_factored,
    "quotient": lambda x, scale: (x - mean(x)) / jnp.sqrt(mean((x - mean(x)) ** 2) + 1e-6) * scale,
    "std": lambda x, scale: (x - mean(x)) / (x.std(-1, keepdims=True) + 1e-5) * scale,
    "reciprocal": lambda x, scale: x * jnp.reciprocal(jnp.sqrt(mean(x**2) + 1e-6)) * scale,
    "power": lambda x, scale: x * (mean(x**2) + 1e-6) ** -0.5 * scale,
    "unit": lambda x, scale: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6),
    "clipped": lambda x, scale: x * jnp.minimum(jax.lax.rsqrt((x**2).sum(-1, keepdims=True)), 1e6),
    "absolute": lambda x, scale: x / (jnp.abs(x).sum(-1, keepdims=True) + 1e-6),
}


def language_model(norm, blocks, dtype=np.float32):
    weights = [[draw(4, 4, seed=6 * b + i).astype(dtype) for i in range(6)] for b in range(blocks)]
    scale = (1 + 0.1 * draw(1, 4, seed=50)).astype(dtype)
    head = draw(4, seed=51).astype(dtype)
    causal = np.tril(np.ones((LENGTH, LENGTH), bool))

    def fn(embedded):
        h = embedded
        for query, key, value, out, up, down in weights:
            z = norm(h, scale)
            scores = jnp.where(causal, (z @ query) @ (z @ key).T, -jnp.inf)
            h = h + jax.nn.softmax(scores) @ (z @ value) @ out
            h = h + jax.nn.silu(norm(h, scale) @ up) @ down
        return norm(h, scale)[-1] @ head

    return fn


@pytest.mark.slow
@pytest.mark.representatives("factored")
@pytest.mark.parametrize("norm", NORMS)
def test_language_model_with_the_zero_baseline(norm):
    """At a constant baseline the inverse root of a norm is a thousand times that at the input."""
    values = check_sum(language_model(NORMS[norm], 2), draw(LENGTH, FEATURES, seed=60))
    assert abs(values).max() < 20


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("multiplier", ["rescale", "reveal_cancel"])
def test_language_model_is_exact_in_float64(norm, multiplier):
    with jax.enable_x64(True):
        x = draw(LENGTH, FEATURES, seed=60).astype(np.float64)
        fn = language_model(NORMS[norm], 2, np.float64)
        check_sum(fn, x, rtol=1e-10, multiplier=multiplier)


@pytest.mark.slow
def test_norm_near_the_baseline_is_the_gradient():
    with jax.enable_x64(True):
        x, step = draw(4).astype(float), 1e-6 * draw(4, seed=1).astype(float)
        fn = lambda x: layer_norm(x, 1.0) @ np.arange(4.0)  # noqa: E731
        values = ja.deep_lift(fn, x + step, baseline=jnp.asarray(x)).values
        np.testing.assert_allclose(values, jax.grad(fn)(x) * step, rtol=0, atol=2e-11)


def test_norm_of_the_zero_baseline_by_hand():
    """With y0 = 0 it is 2 / s (x - y (x . x) / (2 n s)) = x / s for s >> s0."""
    x = draw(4)
    values = ja.deep_lift(lambda x: of_root(x, 1.0)[2], jnp.asarray(x)).values
    scale = np.sqrt((x**2).mean() + 1e-6)
    unit = np.eye(4)[2]
    np.testing.assert_allclose(values, x / scale * (2 * unit - x * x[2] / (x**2).sum()), atol=5e-3)


@pytest.mark.parametrize("size", [1, 40, 1000])
@pytest.mark.parametrize("fn", [jax.nn.softmax, jax.nn.log_softmax])
def test_softmax_of_large_logits(fn, size):
    """Elements that are equal in both runs get nothing more than others, and nothing overflows."""
    z, z0 = size * draw(6), size * draw(6, seed=1)
    check_sum(lambda z: fn(z) @ np.arange(6.0, dtype=np.float32) ** 2, z, z0, rtol=1e-4)


def test_softmax_by_hand():
    """The multipliers are the derivative at the logarithmic means of the weights."""
    with jax.enable_x64(True):
        z, z0, c = np.array([1.0, 0.5, -1.0]), np.array([0.0, 2.0, -2.0]), np.array([3.0, 1.0, -2])
        s, s0 = np.exp(z) / np.exp(z).sum(), np.exp(z0) / np.exp(z0).sum()
        means = (s - s0) / (np.log(s) - np.log(s0))
        multipliers = means * (c - (means @ c) / means.sum())
        values = ja.deep_lift(lambda z: jax.nn.softmax(z) @ c, z, baseline=jnp.asarray(z0)).values
        np.testing.assert_allclose(values, multipliers * (z - z0), rtol=1e-10)
        np.testing.assert_allclose(values.sum(), c @ (s - s0), rtol=1e-10)
        shifted = ja.deep_lift(lambda z: jax.nn.softmax(z) @ c, z + 7, baseline=jnp.asarray(z0))
        np.testing.assert_allclose(shifted.values, multipliers * (z + 7 - z0), rtol=1e-10)


W, U = draw(3, 4, seed=2), draw(4, 4, seed=3)


def masked_loop(x):
    h = jnp.zeros(4)
    for row in x:
        h = jnp.where(jnp.any(row != -1.0), jnp.tanh(row @ W + h @ U), h)
    return h.sum()


def masked_scan(x):
    def step(h, inputs):
        row, shown = inputs
        h = jnp.where(shown, jnp.tanh(row @ W + h @ U), h)
        return h, None

    return jax.lax.scan(step, jnp.zeros(4), (x, jnp.any(x != -1.0, -1)))[0].sum()


def padded(seed, length):
    return np.concatenate([draw(length, 3, seed=seed), np.full((4 - length, 3), -1, np.float32)])


@pytest.mark.slow
@pytest.mark.representatives("masked_scan")
@pytest.mark.parametrize("fn", [masked_loop, masked_scan])
def test_mask_that_both_runs_share(fn):
    """The values are those of the function of the unmasked rows."""
    x, baseline = padded(4, 2), padded(5, 2)
    values = check_sum(fn, x, baseline)
    rows = ja.deep_lift(fn, jnp.asarray(x[:2]), baseline=jnp.asarray(baseline[:2])).values
    np.testing.assert_allclose(values[:2], rows, atol=1e-6)
    np.testing.assert_array_equal(values[2:], 0)


def shares(x):
    mask = jnp.any(x != -1.0, -1)
    shown = mask.astype(jnp.float32)[:, None]
    return (jnp.tanh(x @ W) * shown).sum() / mask.sum().astype(jnp.float32)


def hidden_logits(x):
    return jax.nn.softmax(jnp.where(x[:, 0] > 0, x[:, 1], -jnp.inf)) @ np.arange(4.0, dtype="f4")


@pytest.mark.slow
@pytest.mark.representatives("masked_loop", "shares")
@pytest.mark.parametrize("fn", [masked_loop, masked_scan, shares])
def test_mask_that_differs(fn):
    """The change by the mask belongs to what the mask compares."""
    check_sum(fn, padded(4, 2), padded(5, 3))


def test_mask_of_infinite_logits_that_differs():
    check_sum(
        hidden_logits, [[1.0, 2], [-1, 3], [2, 0], [1, 1]], [[1.0, 0], [1, 1], [-2, 0], [1, 2]]
    )


def test_change_by_a_mask_by_hand():
    """where(x0 > 0, 2 x1, 3 x2): each case in one half of the orders, and the mask the rest."""
    fn = lambda x: jnp.where(x[:1] > 0, 2 * x[1:2], 3 * x[2:])[0]  # noqa: E731
    values = ja.deep_lift(fn, jnp.array([1.0, 5.0, 7.0]), baseline=jnp.array([-1.0, 1.0, 2.0]))
    # Mask alone: 2 * 5 - 3 * 7 at the input, 2 * 1 - 3 * 2 at the baseline.
    np.testing.assert_allclose(values.values, [(-11 - 4) / 2, 4.0, 7.5])


def branches(x):
    return jax.lax.cond(x.sum() > 0, lambda x: (x**2).sum(), lambda x: jnp.sin(x).sum() + 3, x)


@pytest.mark.parametrize("baseline", [0.5, -1.0])
def test_branch_that_depends_on_the_input(baseline):
    values = check_sum(branches, [1.0, 2.0, 0.5], baseline)
    if baseline == 0.5:  # both runs take the first
        np.testing.assert_allclose(values, [0.75, 3.75, 0])


CHOICES = {
    "sort": lambda x: jnp.sort(x) @ np.arange(3.0, dtype="f4") ** 2,
    "top_k": lambda x: jax.lax.top_k(x, 2)[0] @ np.array([2.0, 1.0], "f4"),
    "routing": lambda x: (lambda v, i: v @ jnp.asarray(W)[:, 0][i])(*jax.lax.top_k(x, 2)),
    "gather": lambda x: 3 * x[jnp.argmax(x)],
    "slice": lambda x: jax.lax.dynamic_slice(x**2, (jnp.argmax(x),), (1,))[0],
}


@pytest.mark.representatives("sort", "routing")
@pytest.mark.parametrize("choice", CHOICES)
def test_choice_that_both_runs_share(choice):
    x = np.array([0.3, -2.0, 1.5], np.float32)
    values = check_sum(CHOICES[choice], x, 2 * x)
    slope = jax.grad(lambda x: CHOICES[choice](1.5 * x))(jnp.asarray(x)) / 1.5
    np.testing.assert_allclose(values, slope * -x, rtol=1e-5)


@pytest.mark.parametrize("choice", ["sort", "gather"])
def test_choice_among_equal_elements_of_the_baseline(choice):
    check_sum(CHOICES[choice], np.array([0.3, -2.0, 1.5], np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 5])
@pytest.mark.parametrize("penalty", [1e4, 1e9])
def test_mask_that_covers_all_keys_of_the_baseline(penalty, rows):
    """A large number is subtracted from all logits of the baseline, in float32."""
    x = draw(5, 3).astype(np.float32)
    x[rows:] = 0
    head = draw(15).astype(np.float32)

    def attend(x):
        shown = jnp.any(x != 0, -1)
        logits = x @ x.T - penalty * (1 - shown.astype(x.dtype))[None]
        return (jax.nn.softmax(logits) @ x).ravel() @ head

    found = ja.deep_lift(attend, x)
    np.testing.assert_allclose(found.values.sum(), attend(x) - attend(0 * x), rtol=1e-4)


def test_logaddexp():
    check_sum(lambda x: jax.nn.softplus(jnp.logaddexp(x[0], x[1])), [1.0, -2.0], [0.5, 3.0])


def keras_model(keras, layer):
    """Return a model with one kind of layer."""
    inputs, layers = keras.Input((4, 3)), keras.layers
    if layer == "attention":
        h = layers.Attention()([6.0 * inputs, 6.0 * inputs])
    elif layer == "masked at the baseline":
        h = layers.Masking(0.0)(inputs)
        h = layers.Attention()([h, h])
    elif layer == "masked":
        shown = keras.ops.any(keras.ops.not_equal(inputs, -1.0), -1)
        h = layers.Attention()([3.0 * inputs, inputs], mask=[shown, shown])
    elif layer == "norms":
        h = layers.UnitNormalization()(layers.LayerNormalization()(inputs))
        h = layers.BatchNormalization()(layers.RMSNormalization()(h))
    else:
        h = layers.LSTM(3, return_sequences=True)(layers.Masking(-1.0)(inputs))
    return keras.Model(inputs, layers.Dense(1)(layers.Flatten()(h)))


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["attention", "masked", "masked at the baseline", "norms", "rnn"])
def test_keras(layer):
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        model = keras_model(keras, layer)
    shared = layer in ("masked", "rnn")
    baseline = padded(5, 2) if shared else 0.0
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        # At a constant row, a unit norm behind a layer norm is not continuous.
        x = padded(4, 2) if shared else draw(4, 3)
        check_sum(lambda x: model(x[None])[0, 0], x, baseline)
