"""Feature ablation and permutation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja


def relus(x):
    s = x.sum()
    return jax.nn.relu(s - 10) + 3 * jax.nn.relu(s + 1) - 1


def recurrent(x):
    """Return the last hidden state of a tanh network, summed."""
    weights = jnp.linspace(-1, 1, 3 * x.shape[1]).reshape(-1, 3).astype(x.dtype)
    mixing = jnp.array([[0.5, -0.4, 0.1], [0.2, 0.6, -0.3], [-0.5, 0.1, 0.4]], x.dtype)
    carry = jnp.zeros(3, x.dtype)
    return jax.lax.scan(lambda h, r: (jnp.tanh(r @ weights + h @ mixing), None), carry, x)[0].sum()


def series():
    return jnp.asarray(np.random.default_rng(0).normal(size=(24, 2)), jnp.float32)


def test_decreases_of_a_piecewise_linear_function():
    got = ja.feature_ablation(relus, jnp.array([20.0, 50.0, 30.0]))
    np.testing.assert_array_equal(got.values, [80, 200, 120])
    assert got.output == relus(jnp.array([20.0, 50.0, 30.0]))


def test_baselines_per_example():
    xs = jnp.array([[20.0, 50.0, 30.0], [1.0, 2.0, 3.0]])
    got = ja.explain(ja.feature_ablation, jnp.sum, xs, baseline=3 * xs).values
    np.testing.assert_array_equal(got, -2 * xs)


@pytest.mark.parametrize("window", [2, (3, 1)])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_reuse_changes_no_value(window, batch_size):
    x = series()
    options = {"groups": ja.groups.windows(x.shape, window), "batch_size": batch_size}
    reused = ja.feature_ablation(recurrent, x, **options)
    plain = ja.feature_ablation(recurrent, x, reuse=False, **options)
    np.testing.assert_allclose(reused.values, plain.values, rtol=0, atol=2e-6)
    assert reused.info["flops_saved"] > 0
    assert plain.info["flops_saved"] == 0


@pytest.mark.slow
def test_ablation_of_windows_is_occlusion_without_overlap():
    x = series()
    got = ja.feature_ablation(recurrent, x, groups=ja.groups.windows(x.shape, 4), baseline=0.5)
    want = ja.occlusion(recurrent, x, window=4, stride=4, baseline=0.5)
    np.testing.assert_allclose(got.values, want.values, rtol=0, atol=2e-6)


def test_windows_that_equal_the_baseline_have_the_value_zero():
    x = series().at[8:16].set(0)
    got = ja.feature_ablation(recurrent, x, groups=ja.groups.windows(x.shape, 4))
    assert not got.info["groups"][2:4].any()
    assert got.info["groups"][np.array([0, 1, 4, 5])].all()


def test_integer_inputs():
    table = jnp.array([0.0, 10, 20, 40])
    got = ja.feature_ablation(lambda ids: table[ids].sum(), jnp.array([3, 0, 2]), baseline=1)
    np.testing.assert_array_equal(got.values, [30, -10, 10])


BACKGROUND = jnp.array([[0.0, 0.0, 0.0], [1.0, 4.0, 2.0]])


def product(x):
    return x[0] * x[1] + x[2]


def test_permutation_is_the_mean_over_the_background_set():
    x = jnp.array([3.0, 2.0, 1.0])
    got = ja.feature_permutation(product, x, background=BACKGROUND)
    np.testing.assert_allclose(got.values, [6 - 1, 6 - 6, 1 - 1])
    # The decreases are (6, 4), (6, -6), (1, -1).
    np.testing.assert_allclose(got.info["standard_error"], [1, 6, 1], rtol=1e-6)
    grouped = ja.feature_permutation(product, x, background=BACKGROUND, groups=[0, 0, 1])
    np.testing.assert_allclose(grouped.info["groups"], [7 - (1 + 5) / 2, 0])


def test_permutation_draws_from_the_background_set():
    x, options = jnp.array([3.0, 2.0, 1.0]), {"background": BACKGROUND, "key": jax.random.key(0)}
    exact = ja.feature_permutation(product, x, background=BACKGROUND).values
    drawn = ja.feature_permutation(product, x, num_samples=400, **options)
    assert (abs(drawn.values - exact) < 4 * drawn.info["standard_error"]).all()
    one = ja.feature_permutation(product, x, background=BACKGROUND[:1])
    np.testing.assert_array_equal(one.values, [6, 6, 1])
    assert np.isnan(one.info["standard_error"]).all()


@pytest.mark.parametrize(
    ("background", "message"),
    [
        (None, "`background` is missing"),
        (jnp.zeros(3), r"`background` must have a leading axis of examples before \(3,\)"),
    ],
)
def test_backgrounds_that_do_not_fit(background, message):
    with pytest.raises(ValueError, match=message):
        ja.feature_permutation(product, jnp.ones(3), background=background)


def test_draws_need_a_key_and_samples():
    with pytest.raises(ValueError, match="`key` is missing"):
        ja.feature_permutation(product, jnp.ones(3), background=BACKGROUND, num_samples=2)
    with pytest.raises(ValueError, match="`num_samples` must be at least 1"):
        ja.feature_permutation(
            product, jnp.ones(3), background=BACKGROUND, num_samples=0, key=jax.random.key(0)
        )
    with pytest.raises(TypeError, match="`reuse` must be a bool"):
        ja.feature_ablation(product, jnp.ones(3), reuse="no")


def test_groups_of_a_partial_inner_method_may_differ_between_examples():
    groups = np.array([[0, 0, 1, 1], [0, 1, 1, 1]])
    inner = functools.partial(ja.feature_ablation, groups=groups)
    options = {"key": jax.random.key(0), "num_samples": 2, "noise": 0.0}
    got = ja.explain(ja.smooth_grad, jnp.sum, jnp.ones((2, 4)), method=inner, **options)
    np.testing.assert_allclose(got.values, [[2, 2, 2, 2], [1, 3, 3, 3]])
