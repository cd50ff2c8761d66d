"""RISE: scores under random masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja

KEY = jax.random.key(0)


def test_values_of_independent_features():
    """With one entry per feature, E[f(m x) m_i] / p is 1 for the feature itself, p for others."""
    options = {"grid": 4, "num_samples": 4000, "probability": 0.25, "key": KEY}
    got = ja.rise(lambda x: x[1], jnp.ones(4), **options).values
    error = 4 / np.sqrt(4000 * 0.25)  # four standard errors, at most
    np.testing.assert_allclose(got, [0.25, 1, 0.25, 0.25], rtol=0, atol=error)


def test_each_feature_is_kept_with_the_same_probability():
    """The values of a constant function are that constant, also at the borders."""
    got = ja.rise(
        lambda x: jnp.ones(()), jnp.ones((11, 7, 2)), grid=(3, 2), num_samples=4000, key=KEY
    )
    np.testing.assert_allclose(got.values, np.ones((11, 7, 2)), rtol=0, atol=4 / np.sqrt(4000))
    np.testing.assert_array_equal(got.values[..., 0], got.values[..., 1])


def test_masks_are_smooth_and_the_relevant_region_has_the_highest_values():
    x = jnp.ones((12, 12))
    got = ja.rise(lambda x: x[2:5, 6:9].mean(), x, grid=(4, 4), num_samples=2000, key=KEY).values
    assert np.unravel_index(int(got.argmax()), (12, 12)) in {
        (i, j) for i in (2, 3, 4) for j in (6, 7, 8)
    }
    assert got[3, 7] > got[9:, :].max() + 0.1


def test_masked_features_take_the_baseline():
    got = ja.rise(jnp.sum, jnp.ones(3), baseline=1.0, grid=3, num_samples=4000, key=KEY).values
    np.testing.assert_allclose(got, 3 * np.ones(3), rtol=0, atol=12 / np.sqrt(4000))


def test_integer_leaves_are_never_masked():
    x = {"a": jnp.ones((5, 2)), "b": jnp.arange(3)}

    def fn(x):
        return x["a"].sum() + (x["b"] == jnp.arange(3)).sum().astype(jnp.float32)

    got = ja.rise(fn, x, key=KEY, num_samples=8, grid=(2, 2))
    assert not got.values["b"].any()
    assert (got.values["a"] > 0).any()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key": None}, ValueError, "`key` is missing"),
        ({"num_samples": 0}, ValueError, "`num_samples` must be at least 1"),
        ({"probability": 1.0}, ValueError, r"`probability` must be a number and in \(0, 1\)"),
        ({"grid": (2, 2)}, ValueError, "`grid` must have at most as many axes"),
        ({"grid": 0}, ValueError, "`grid` must be at least 1"),
        ({"grid": 1.5}, TypeError, "`grid` must hold ints"),
    ],
)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        ja.rise(jnp.sum, jnp.ones(3), **{"key": KEY} | options)


def test_integers_alone_have_no_mask():
    with pytest.raises(TypeError, match="must hold floating-point numbers for a mask"):
        ja.rise(lambda x: x.astype(jnp.float32).sum(), jnp.arange(3), key=KEY)
