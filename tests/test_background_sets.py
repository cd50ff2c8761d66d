"""Expected gradients, DeepSHAP and augmented occlusion: closed forms, means and invalid options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.tree_util import Partial

import jaxattn as ja

KEY = jax.random.key(1)
X = np.array([1.0, -2.0, 0.5])
SET = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [-1.0, 0.5, 2.0]])
W = np.sin(np.arange(12) * 1.7 + 0.3).reshape(3, 4)
READOUT = np.sin(np.arange(8) * 0.9 + 0.3).reshape(4, 2)


def dense(x):
    return jax.nn.relu(x @ W + 0.1) @ READOUT


def squares(x):
    return (x**2).sum()


def close(got, want, atol=1e-12):
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def test_expected_gradients_of_a_linear_function_are_exact(x64):
    def fn(x):
        return 2 * x[0] - 3 * x[1]

    got = ja.expected_gradients(fn, X, background=SET[1:2], key=KEY, num_samples=3)
    close(got.values, [0, 9, 0])
    close(got.info["standard_error"], 0, 0)
    close(got.info["delta"], 0)


def test_expected_gradients_are_the_mean_of_integrated_gradients(x64):
    """The gradient of a square is integrated to x^2 - b^2, whatever the point of the line."""
    got = ja.expected_gradients(squares, X, background=SET, key=KEY, num_samples=2000)
    error = got.info["standard_error"]
    assert (abs(got.values - (X**2 - (SET**2).mean(0))) < 4 * error).all()
    # For a uniform point of a line of length d from b, the standard deviation of one sample.
    one = SET[1:2]
    got = ja.expected_gradients(squares, X, background=one, key=KEY, num_samples=2000)
    want = 2 * (X - one[0]) ** 2 / np.sqrt(12) / np.sqrt(2000)
    np.testing.assert_allclose(got.info["standard_error"], want, rtol=0.1)


def test_expected_gradients_agree_with_captum(x64):
    """GradientShap with 200,000 samples."""
    want = np.array([0.22453934, -2.012072997, -0.504517416])
    got = ja.expected_gradients(dense, X, 1, background=SET, key=KEY, num_samples=4000)
    assert (abs(got.values - want) < 4 * got.info["standard_error"] + 0.01).all()
    assert (got.info["standard_error"] < 0.05).all()


def test_noise_on_the_input_keeps_the_expectation_of_a_linear_function(x64):
    options = {"background": SET[:1], "key": KEY, "num_samples": 500}
    got = ja.expected_gradients(lambda x: 3 * x.sum(), X, noise=0.1, **options)
    error = got.info["standard_error"]
    np.testing.assert_allclose(error, 0.3 / np.sqrt(500), rtol=0.2)
    assert (abs(got.values - 3 * X) < 4 * error).all()


def test_one_sample_has_no_standard_error():
    options = {"background": np.float32(SET), "key": KEY}
    got = ja.expected_gradients(squares, np.float32(X), num_samples=1, **options)
    assert np.isnan(got.info["standard_error"]).all()
    assert np.isfinite(got.values).all()


def test_deep_shap_agrees_with_captum(x64):
    got = ja.deep_shap(dense, X, 1, background=SET)
    close(got.values, [0.2243393541917135, -2.0137709357135574, -0.5040681939539567])
    close(got.values.sum(), dense(X)[1] - dense(SET)[:, 1].mean())
    close(got.info["delta"], 0)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_deep_shap_of_random_networks_is_complete(seed):
    rng = np.random.default_rng(seed)
    shapes = ((3, 4), (4, 4), (4,), (3,), (5, 3))
    first, second, last, x, background = (rng.normal(size=shape) for shape in shapes)

    def fn(weights, x):
        return jnp.tanh(jax.nn.relu(x @ weights[0]) @ weights[1]) @ weights[2]

    weights = [first, second, last]
    with jax.enable_x64(True):
        got = ja.deep_shap(Partial(fn, weights), x, background=background)
        close(got.values.sum(), fn(weights, x) - fn(weights, background).mean(), 1e-9)
        none = ja.deep_shap(Partial(fn, weights), x, background=np.stack([x] * 5))
    close(none.values, 0, 0)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_deep_shap_is_the_mean_of_deep_lift(batch_size, x64):
    def fn(x):
        return jnp.tanh(x["series"] @ W).sum() * x["scale"].astype(float)

    xs = {"series": np.stack([X, -X]), "scale": np.array([2, 3])}
    background = {"series": SET, "scale": np.zeros(3, int)}
    got = ja.explain(ja.deep_shap, fn, xs, background=background, batch_size=batch_size)
    lifts = [
        ja.explain(ja.deep_lift, fn, xs, baseline={"series": row, "scale": 0}).values["series"]
        for row in SET
    ]
    close(got.values["series"], np.mean(lifts, 0))
    close(got.values["scale"], 0, 0)


def test_background_of_a_named_intermediate(x64):
    def fn(x):
        return jax.nn.relu(ja.tag(x @ W + 0.1, "layer")) @ READOUT

    got = ja.deep_shap(fn, X, 1, at="layer", background=SET @ W + 0.1)
    want = (np.maximum(X @ W + 0.1, 0) - np.maximum(SET @ W + 0.1, 0).mean(0)) * READOUT[:, 1]
    close(got.values, want)


def test_augmented_occlusion_of_one_example_is_occlusion(x64):
    options = {"window": 2, "stride": 1}
    got = ja.augmented_occlusion(dense, X, 1, background=SET[2:], key=KEY, **options)
    close(got.values, ja.occlusion(dense, X, 1, baseline=SET[2], **options).values)


@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_augmented_occlusion_averages_over_drawn_examples(batch_size, x64):
    """With replacements of 0 and 1, the value of feature i is its weight times (x_i - share)."""
    weights = np.array([1.0, 10.0, 100.0])
    got = ja.augmented_occlusion(
        lambda x: (x * weights).sum(),
        X,
        background=np.array([[0.0] * 3, [1.0] * 3]),
        key=KEY,
        num_samples=20,
        batch_size=batch_size,
    )
    shares = X - got.values / weights
    close(shares, shares[0])  # all windows take the same examples
    close(20 * shares[0], round(20 * float(shares[0])), 1e-9)
    assert 0.1 < shares[0] < 0.9


def test_augmented_occlusion_of_token_ids():
    table = jnp.array([0.0, 1.0, 5.0])
    got = ja.augmented_occlusion(
        lambda ids: table[ids].sum(), np.array([2, 1, 0]), background=np.array([[0, 0, 2]]), key=KEY
    )
    close(got.values, [5, 1, -5])


DRAWING = [ja.expected_gradients, ja.augmented_occlusion]


@pytest.mark.parametrize("method", [*DRAWING, ja.deep_shap])
def test_invalid_backgrounds_raise(method):
    x = np.float32(X)
    for batched in (False, True):
        call = (ja.explain, method, dense, x[None]) if batched else (method, dense, x)
        with pytest.raises(ValueError, match="`background` is missing"):
            call[0](*call[1:], 1, key=KEY)
        with pytest.raises(
            ValueError, match=r"a leading axis .* got \(3,\): pass background\[None"
        ):
            call[0](*call[1:], 1, background=x, key=KEY)
    with pytest.raises(ValueError, match="`background` holds 3 NaN"):
        method(dense, x, 1, background=np.full((1, 3), np.nan, np.float32), key=KEY)


@pytest.mark.parametrize("method", DRAWING)
def test_invalid_samples_and_keys_raise(method):
    x, background = np.float32(X), np.float32(SET)
    with pytest.raises(ValueError, match=f"`key` is missing: {method.__name__}"):
        method(squares, x, background=background)
    with pytest.raises(ValueError, match="`num_samples` must be at least 1, got 0"):
        method(squares, x, background=background, key=KEY, num_samples=0)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (-0.1, "`noise` must be a number and not negative, got -0.1"),
        (np.ones(2), r"one number, got shape \(2,\)"),
    ],
)
def test_invalid_noise_raises(noise, message):
    with pytest.raises(ValueError, match=message):
        ja.expected_gradients(squares, np.float32(X), background=SET, key=KEY, noise=noise)
