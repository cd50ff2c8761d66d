"""KernelSHAP and LIME: linear models of the score over coalitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.tree_util import Partial
from sklearn.linear_model import Lasso, Ridge

import jaxattn as ja
from jaxattn.methods.coalition_draws import (
    coalitions_of_existing,
    kernel_coalitions,
    kernel_size,
)
from jaxattn.methods.linear_fits import fit_with_penalty

N = 8
KEY = jax.random.key(0)


def network(weights, x):
    """Return a function with interactions of all orders."""
    return 5 * (jnp.tanh(x @ weights[:, :-1]) * weights[-1, -1]).sum()


def model(seed=0):
    weights = np.random.default_rng(seed).normal(size=(N, 7))
    return Partial(network, jnp.asarray(weights, jnp.result_type(float)))


def features():
    return jnp.asarray(np.random.default_rng(1).normal(size=N), jnp.result_type(float))


@pytest.mark.parametrize("num_samples", [2**N - 2, 10_000])
def test_all_coalitions_give_exact_shapley_values(num_samples, x64):
    got = ja.kernel_shap(model(), features(), num_samples=num_samples)  # no key: nothing is drawn
    want = ja.shapley_values(model(), features())
    np.testing.assert_allclose(got.values, want.values, rtol=0, atol=1e-6)
    np.testing.assert_allclose(got.info["baseline_score"], want.info["baseline_score"], atol=1e-12)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_any_samples_sum_to_the_difference_and_are_linear_in_the_function(seed, draw):
    x, key = features(), jax.random.key(draw)

    def explain(fn):
        return ja.kernel_shap(fn, x, num_samples=30, key=key).values

    one = model(seed)
    np.testing.assert_allclose(explain(one).sum(), one(x) - one(0 * x), rtol=0, atol=1e-4)
    doubled = Partial(network, one.args[0].at[-1, -1].mul(2))
    np.testing.assert_allclose(explain(doubled), 2 * explain(one), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_estimates_approach_the_exact_values():
    want = ja.shapley_values(model(), features()).values

    def explain(key):
        return ja.kernel_shap(model(), features(), num_samples=100, key=key).values

    got = jax.vmap(explain)(jax.random.split(KEY, 100))
    error = got.std(0, ddof=1) / 10
    assert (error > 0).all()
    assert (abs(got.mean(0) - want) < 4 * error + 1e-3).all()


def test_a_linear_function_is_exact_with_few_samples():
    got = ja.kernel_shap(lambda x: x @ jnp.arange(float(N)), features(), num_samples=60, key=KEY)
    np.testing.assert_allclose(got.values, features() * jnp.arange(float(N)), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_groups_that_an_example_lacks(x64):
    """The values of the other groups are exact if all their coalitions fit."""
    xs, groups = jnp.stack([features()] * 2), np.stack([np.arange(N) % 7, np.arange(N) % 5])
    got = ja.explain(ja.kernel_shap, model(), xs, groups=groups, num_samples=30, key=KEY)
    want = ja.shapley_values(model(), xs[1], groups=groups[1])
    np.testing.assert_allclose(got.info["groups"][1, :5], want.info["groups"], rtol=0, atol=1e-6)
    assert not got.info["groups"][1, 5:].any()
    difference = model()(xs[0]) - model()(0 * xs[0])
    np.testing.assert_allclose(got.info["groups"][0].sum(), difference, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_enumerated_sizes_and_complementary_pairs():
    members, weights = map(np.asarray, kernel_coalitions(KEY, 10, 101))
    assert kernel_size(10, 101) == len(members) == len(weights) == 100
    sizes = members.sum(1)
    assert len({row.tobytes() for row in members[:20]}) == 20
    np.testing.assert_array_equal(np.sort(sizes[:20]), [1] * 10 + [9] * 10)
    np.testing.assert_array_equal(members[20::2], ~members[21::2])
    assert set(sizes[20:]) <= set(range(2, 9))
    shares = [9 / (s * (10 - s)) for s in range(1, 10)]
    np.testing.assert_allclose(
        weights[:20].sum() / weights.sum(), 2 * shares[0] / sum(shares), 1e-5
    )
    many = np.asarray(kernel_coalitions(KEY, 30, 20_000).members).sum(1)
    drawn = np.bincount(many, minlength=31)[4:27]
    expected = 1 / (np.arange(4, 27) * np.arange(26, 3, -1))
    share = drawn.sum() * expected / expected.sum()
    assert (abs(drawn - share) < 6 * np.sqrt(share)).all()


@pytest.mark.slow
def test_coalitions_are_of_groups_that_exist():
    exists = jnp.array([True, False, True, True, False, True] * 3)
    members, weights = map(np.asarray, coalitions_of_existing(KEY, exists, 40))
    assert not members[:, ~np.asarray(exists)].any()
    assert ((members.sum(1) >= 1) & (members.sum(1) <= 11)).all()
    assert (weights == 1).all()
    members, weights = map(
        np.asarray, coalitions_of_existing(KEY, exists & (jnp.arange(18) < 6), 40)
    )
    assert (weights[:14] > 0).all()
    assert not weights[14:].any()
    assert len({row.tobytes() for row in members[:14]}) == 14


@pytest.mark.representatives("lasso-0.02-peer2")
@pytest.mark.parametrize(
    ("penalty", "alpha", "peer"),
    [
        ("ridge", 0.0, Ridge(0.0)),
        ("ridge", 2.0, Ridge(2.0)),
        ("lasso", 0.02, Lasso(0.02, tol=1e-12, max_iter=100_000)),
        ("lasso", 100.0, Lasso(100.0)),
    ],
)
def test_fits_equal_those_of_scikit_learn(penalty, alpha, peer, x64):
    rng = np.random.default_rng(0)
    members, weights = rng.random((60, N)) < 0.5, rng.random(60)
    scores = rng.normal(size=60) + 2 * members[:, 0]
    peer.fit(members, scores, sample_weight=weights)
    got = fit_with_penalty(*map(jnp.asarray, (members, weights, scores)), penalty, alpha)
    np.testing.assert_allclose(got.coefficients, peer.coef_, rtol=0, atol=1e-7)
    np.testing.assert_allclose(got.intercept, peer.intercept_, rtol=0, atol=1e-7)
    want = peer.score(members, scores, sample_weight=weights)
    np.testing.assert_allclose(got.r_squared, want, rtol=0, atol=1e-7)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("penalty", ["ridge", "lasso"])
def test_lime_recovers_a_linear_function(distance, penalty):
    x, slopes = features(), jnp.arange(1.0, N + 1)
    got = ja.lime(
        lambda x: x @ slopes + 3, x, key=KEY, distance=distance, penalty=penalty, alpha=0.0
    )
    np.testing.assert_allclose(got.values, x * slopes, rtol=0, atol=2e-3)
    np.testing.assert_allclose(got.info["intercept"], 3, rtol=0, atol=1e-2)
    np.testing.assert_allclose(got.info["r_squared"], 1, rtol=0, atol=1e-5)


def test_lime_weights_by_distance():
    """With a narrow kernel only the full coalition counts, so a penalised fit is flat."""
    got = ja.lime(model(), features(), key=KEY, width=1e-3)
    np.testing.assert_allclose(got.values, 0, atol=1e-5)
    np.testing.assert_allclose(got.info["intercept"], got.output, rtol=1e-5)


def test_lime_of_a_constant_function():
    got = ja.lime(lambda x: jnp.ones(()), features(), key=KEY)
    assert not got.values.any()
    assert got.info["r_squared"] == 1


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (ja.kernel_shap, {"num_samples": 10}, "`key` is missing"),
        (ja.kernel_shap, {"num_samples": 1, "key": KEY}, "`num_samples` must be at least 2"),
        (ja.lime, {}, "`key` is missing"),
        (ja.lime, {"num_samples": 0, "key": KEY}, "`num_samples` must be at least 1"),
        (ja.lime, {"distance": "l1", "key": KEY}, "`distance` must be"),
        (ja.lime, {"penalty": "l1", "key": KEY}, "`penalty` must be"),
        (ja.lime, {"width": 0.0, "key": KEY}, "`width` must be a number and positive"),
        (ja.lime, {"width": np.zeros(()), "key": KEY}, "`width` must be a number and positive"),
        (ja.lime, {"alpha": -1.0, "key": KEY}, "`alpha` must be a number and not negative"),
        (
            ja.lime,
            {"alpha": jnp.array(-1.0), "key": KEY},
            "`alpha` must be a number and not negative",
        ),
    ],
)
def test_errors(method, options, message):
    with pytest.raises(ValueError, match=message):
        method(model(), features(), **options)
