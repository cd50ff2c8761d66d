"""Shapley values: exact, and sampled over permutations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.tree_util import Partial

import jaxattn as ja

N = 4
KEY = jax.random.key(0)
tables = st.lists(st.integers(-20, 20), min_size=2**N, max_size=2**N).map(
    lambda numbers: np.array(numbers, np.float32)
)


def lookup(table, x):
    """Return an arbitrary function of which features are present: one number per coalition."""
    bits = (x > 0.5).astype(jnp.int32)
    return table[(bits * 2 ** jnp.arange(N, dtype=jnp.int32)).sum()]


def exact(table):
    return np.asarray(ja.shapley_values(Partial(lookup, jnp.asarray(table)), jnp.ones(N)).values)


def by_permutations(table):
    """Return the mean marginal contributions over all orders."""
    total = np.zeros(N)
    orders = list(itertools.permutations(range(N)))
    for order in orders:
        present = 0
        for group in order:
            total[group] += table[present | 1 << group] - table[present]
            present |= 1 << group
    return total / len(orders)


def network(x):
    """Return a function with interactions of all orders."""
    rng = np.random.default_rng(0)
    mixed = x @ jnp.asarray(rng.normal(size=(8, 6)), x.dtype)
    return 5 * jnp.tanh(mixed) @ jnp.asarray(rng.normal(size=6), x.dtype)


def features():
    return jnp.asarray(np.random.default_rng(1).normal(size=8), jnp.float32)


@pytest.mark.parametrize(("x", "want"), [((2.0, -2.0), (0, -2)), ((4.0, 2.0), (1, 1))])
def test_minimum_of_two_numbers(x, want):
    np.testing.assert_array_equal(ja.shapley_values(jnp.min, jnp.array(x)).values, want)


@settings(max_examples=30, deadline=None)
@given(tables)
def test_values_are_means_over_all_orders_and_sum_to_the_difference(table):
    got = exact(table)
    np.testing.assert_allclose(got, by_permutations(table), rtol=0, atol=1e-4)
    np.testing.assert_allclose(got.sum(), table[-1] - table[0], rtol=0, atol=1e-4)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(tables, tables)
def test_linearity(one, other):
    np.testing.assert_allclose(
        exact(one + 2 * other), exact(one) + 2 * exact(other), rtol=0, atol=1e-4
    )


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(tables)
def test_features_without_influence_are_exactly_zero(table):
    without = table[np.arange(2**N) & ~2]  # feature 1 changes nothing
    assert exact(without)[1] == 0


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(tables)
def test_symmetric_features_have_equal_values(table):
    coalitions = np.arange(2**N)
    swapped = coalitions & ~3 | (coalitions & 1) << 1 | (coalitions & 2) >> 1
    got = exact(table + table[swapped])
    np.testing.assert_allclose(got[0], got[1], rtol=0, atol=1e-4)


def test_values_of_groups_over_several_leaves():
    """Groups are shared by the leaves; the product of sums a b splits between both."""
    x = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, 4.0])}
    groups = {"a": np.array([0, 1]), "b": np.array([1, 1])}
    got = ja.shapley_values(lambda x: x["a"].sum() * x["b"].sum(), x, groups=groups)
    # Alone: 0 and 2 * 7; together 21.
    np.testing.assert_allclose(got.info["groups"], [(0 + 7) / 2, (14 + 21) / 2])
    np.testing.assert_allclose(got.values["b"], [17.5, 17.5])


def test_groups_per_example():
    """Of an example that lacks a group, the values are those of its own groups."""
    xs, groups = jnp.stack([features()] * 2), np.stack([np.arange(8) % 4, np.arange(8) % 3])
    got = ja.explain(ja.shapley_values, network, xs, groups=groups)
    for i, number in enumerate((4, 3)):
        one = ja.shapley_values(network, xs[i], groups=groups[i])
        np.testing.assert_allclose(got.values[i], one.values, rtol=0, atol=1e-5)
        np.testing.assert_allclose(got.info["groups"][i, :number], one.info["groups"], atol=1e-5)
    assert got.info["groups"][1, 3] == 0


def test_a_baseline_equal_to_the_input_gives_zeros():
    x = features()
    for method in (ja.shapley_values, ja.shapley_value_sampling):
        assert not method(network, x, baseline=x, key=KEY).values.any()


@pytest.mark.parametrize("antithetic", [False, True])
def test_samples_lie_within_four_standard_errors_and_sum_exactly(antithetic):
    x = features()
    want = ja.shapley_values(network, x).values
    options = {"num_samples": 64, "antithetic": antithetic, "key": KEY}
    got = ja.shapley_value_sampling(network, x, **options)
    assert (abs(got.values - want) < 4 * got.info["standard_error"]).all()
    difference = network(x) - network(0 * x)
    np.testing.assert_allclose(got.info["groups"].sum(), difference, rtol=0, atol=1e-5)
    np.testing.assert_allclose(got.info["baseline_score"], network(0 * x), rtol=0, atol=1e-6)
    few = ja.shapley_value_sampling(network, x, num_samples=2, antithetic=antithetic, key=KEY)
    np.testing.assert_allclose(few.values.sum(), difference, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_antithetic_pairs_lower_the_variance():
    """Pairs are exact for interactions of two features; here those of three are small."""
    x, slopes = features(), jnp.linspace(-1, 1, 8)

    def fn(x):
        return (x @ slopes) ** 2 + 0.1 * (x @ slopes) ** 3

    want = ja.shapley_values(fn, x).values
    keys = jax.random.split(KEY, 100)

    def errors(antithetic):
        def sample(key):
            return ja.shapley_value_sampling(fn, x, key=key, num_samples=8, antithetic=antithetic)

        got = jax.vmap(sample)(keys)
        return jnp.square(got.values - want[None]).mean(), jnp.square(
            got.info["standard_error"]
        ).mean()

    plain, paired = errors(False), errors(True)
    assert paired[0] < 0.1 * plain[0]
    for actual, estimated in (plain, paired):
        np.testing.assert_allclose(estimated, actual, rtol=0.3)


def test_interactions_of_two_features_are_exact_with_one_pair():
    x = jnp.array([2.0, 3.0, 1.0])
    got = ja.shapley_value_sampling(lambda x: x[0] * x[1] - x[1] * x[2], x, num_samples=2, key=KEY)
    np.testing.assert_allclose(got.values, [3, 1.5, -1.5])
    assert np.isnan(got.info["standard_error"]).all()


def test_errors():
    with pytest.raises(ValueError, match=r"at most 16 groups .* got 17: use .*shapley_value_sampl"):
        ja.shapley_values(jnp.sum, jnp.ones(17))
    with pytest.raises(ValueError, match="`key` is missing"):
        ja.shapley_value_sampling(jnp.sum, jnp.ones(3))
    with pytest.raises(ValueError, match="`num_samples` must be even with antithetic=True"):
        ja.shapley_value_sampling(jnp.sum, jnp.ones(3), key=KEY, num_samples=3)
    with pytest.raises(ValueError, match="`num_samples` must be at least 1, got 0"):
        ja.shapley_value_sampling(jnp.sum, jnp.ones(3), key=KEY, num_samples=0)
    with pytest.raises(TypeError, match="`antithetic` must be a bool"):
        ja.shapley_value_sampling(jnp.sum, jnp.ones(3), key=KEY, antithetic="yes")
