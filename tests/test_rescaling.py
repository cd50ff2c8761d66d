"""Temporal saliency rescaling: the two factors, and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja

T, D = 5, 3
pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(T, D)))


def close(got, want, atol=1e-12):
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def mixed(x):
    weights = jnp.arange(T * D * 1.0).reshape(T, D) / 10
    return jnp.tanh(weights * x).sum() ** 2


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.representatives("4")
def test_values_equal_those_of_single_inputs(batch_size, x):
    slope = jax.jit(jax.grad(mixed))
    baseline = np.array([0.5, 0.0, -1.0])

    def change(masked):
        return np.abs(slope(x) - slope(jnp.asarray(masked))).sum()

    by_time, by_feature, clean = np.zeros(T), np.zeros((T, D)), np.asarray(x)
    for t in range(T):
        masked = clean.copy()
        masked[t] = baseline
        by_time[t] = change(masked)
        for i in range(D):
            masked = clean.copy()
            masked[t, i] = baseline[i]
            by_feature[t, i] = change(masked)
    got = ja.temporal_saliency_rescaling(mixed, x, baseline=baseline, batch_size=batch_size)
    close(got.info["time_relevance"], by_time)
    close(got.info["feature_relevance"], by_feature)
    kept = by_time * (by_time > by_time.mean())
    assert 0 < (kept == 0).sum() < T
    close(got.values, kept[:, None] * by_feature)


def test_only_steps_that_matter_have_values(x):
    """Two steps are read; their slopes depend on the input."""
    got = ja.temporal_saliency_rescaling(lambda x: (x[1] ** 2).sum() + (x[3] ** 2).sum(), x)
    close(got.values[jnp.array([0, 2, 4])], 0, 0)
    for t in (1, 3):
        total = 2 * np.abs(x[t]).sum()
        if got.values[t].any():
            close(got.values[t], total * 2 * np.abs(x[t]))
    assert got.values.any()


@pytest.mark.slow
def test_padding_has_no_value_and_no_part_in_the_mean():
    def fn(x, length):
        return jnp.where(jnp.arange(4, dtype=length.dtype) < length, x[:, 0] ** 2, 0).sum()

    x = jnp.array([[1.0], [2.0], [3.0], [9.0]])
    method = ja.temporal_saliency_rescaling
    got = ja.explain(method, fn, x[None], args=(jnp.array([3]),), length_arg=0).values[0]
    close(got[:, 0], [0, 0, 36, 0])  # the mean of 2, 4 and 6 is 4; with padding it would be 3
    got = ja.explain(method, fn, x[None], args=(jnp.array([3]),)).values[0]
    close(got[:, 0], [0, 16, 36, 0])


def test_options_and_draws_of_the_method(x):
    options = {"method": ja.smooth_grad, "num_samples": 3, "key": jax.random.key(0)}
    got = ja.temporal_saliency_rescaling(lambda x: 3 * x.sum(), x, relative=False, **options)
    close(got.values, 0, 1e-12)  # all inputs share the draws


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_steps": 3}, TypeError, "temporal_saliency_rescaling has no option 'num_steps'"),
        ({"method": None}, TypeError, "`method` must be callable, got NoneType"),
        ({"length_arg": 0}, ValueError, "`length_arg` must be left out without args"),
    ],
)
def test_wrong_options(options, error, message, x):
    with pytest.raises(error, match=message):
        ja.temporal_saliency_rescaling(mixed, x, **options)
