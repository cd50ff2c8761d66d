"""Metrics that compare attributions with the effects of random changes of the input."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.tree_util import Partial

import jaxattn as ja
from jaxattn import metrics

KEY = jax.random.key(0)
WEIGHTS = jnp.array([1.0, -2, 4, 0.5])
XS = jnp.array([[1.0, 2, -1, 3], [0.5, -1, 2, 1]])
TERMS = np.asarray(XS) * np.asarray(WEIGHTS)
EFFECTS = [
    metrics.faithfulness_estimate,
    functools.partial(metrics.monotonicity_correlation, key=KEY),
    functools.partial(metrics.faithfulness_correlation, key=KEY, num_samples=40),
    functools.partial(metrics.sensitivity_n, key=KEY, num_samples=20),
    functools.partial(metrics.infidelity, key=KEY, num_samples=50),
    functools.partial(metrics.non_sensitivity, key=KEY, num_samples=3),
]


def name(metric):
    return getattr(getattr(metric, "func", metric), "__name__", None)


def linear(x):
    return x @ WEIGHTS


def quadratic(x):
    return x @ WEIGHTS + (x**2).sum()


def test_faithfulness_estimate_closed_form():
    values = jnp.array([[3.0, 1, 2, 0], [1.0, 0, 0, 1]])
    got = metrics.faithfulness_estimate(quadratic, XS, None, values, baseline=1.0)
    effects = TERMS + np.asarray(XS) ** 2 - np.asarray(WEIGHTS) - 1
    want = [np.corrcoef(v, e)[0, 1] for v, e in zip(values, effects, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_monotonicity_correlation_of_known_effects():
    """The effects have the order of the weights, which differ more than the mean squared draws."""
    weights = jnp.array([1.0, -5, 25, 0.1])
    values = jnp.array([[1.0, 2, 3, 0], [0.5, -3, 0, 1]])
    got = metrics.monotonicity_correlation(lambda x: x @ weights, XS, None, values, key=KEY)
    want = [scipy.stats.spearmanr(abs(v), abs(weights)).statistic for v in np.asarray(values)]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_non_sensitivity_counts_features():
    def fn(x):
        return x[0] ** 2 + 3 * x[1]

    values = jnp.array([[1.0, 1, 0, 0], [0.0, 0, 1, 1]])
    got = metrics.non_sensitivity(fn, XS, None, values, key=KEY)
    np.testing.assert_array_equal(got, [0, 4])
    got = metrics.non_sensitivity(fn, XS, None, values / 10, key=KEY, tolerance=0.2)
    np.testing.assert_array_equal(got, [2, 2])  # no attribution counts any more


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.representatives("2")
def test_faithfulness_correlation_tends_to_that_of_all_subsets(size):
    values = jnp.array([[3.0, 1, 2, 0.0]])
    got = metrics.faithfulness_correlation(
        quadratic, XS[:1], None, values, key=KEY, subset_size=size, num_samples=2000
    )
    effects = (TERMS + np.asarray(XS) ** 2)[0]
    subsets = [list(s) for s in itertools.combinations(range(4), size)]
    sums = [[v[s].sum() for s in subsets] for v in (np.asarray(values[0]), effects)]
    want = np.corrcoef(*sums)[0, 1]
    assert abs(got[0] - want) < 4 / np.sqrt(2000)


@pytest.mark.slow
def test_correlations_of_an_exact_attribution_are_one():
    exact = ja.explain(ja.input_x_gradient, linear, XS)
    for metric in EFFECTS[:1] + EFFECTS[2:4]:
        np.testing.assert_allclose(metric(linear, XS, None, exact), 1, rtol=1e-4)
        np.testing.assert_allclose(metric(linear, XS, None, -exact.values), -1, rtol=1e-4)


@pytest.mark.slow
def test_sensitivity_n_is_the_mean_over_sizes():
    values = jnp.array([[3.0, 1, 2, 0], [1.0, 0, 0, 1]])
    metric = functools.partial(metrics.sensitivity_n, quadratic, XS, None, values, key=KEY)
    together = metric(sizes=[1, 3], num_samples=2000)
    apart = [metric(sizes=[size], num_samples=2000) for size in (1, 3)]
    np.testing.assert_allclose(together, np.mean(apart, 0), atol=0.1)


def test_infidelity_closed_form():
    """The gradient of a linear function is exact; an error e has the infidelity noise^2 e^2."""
    metric = functools.partial(metrics.infidelity, linear, XS, None, key=KEY)
    gradient = jnp.tile(WEIGHTS, (2, 1))
    np.testing.assert_allclose(metric(gradient), 0, atol=1e-9)
    wrong = gradient + jnp.array([[1.0, 0, 0, 2]])
    got = metric(wrong, noise=0.5, num_samples=4000)
    np.testing.assert_allclose(got, 0.25 * 5, rtol=4 * np.sqrt(2 / 4000))
    assert (metric(3 * gradient) > 1).all()
    np.testing.assert_allclose(metric(3 * gradient, rescale=True), 0, atol=1e-9)
    zero = metric(jnp.zeros_like(XS), rescale=True)
    np.testing.assert_allclose(zero, metric(jnp.zeros_like(XS)), rtol=1e-6)


def test_infidelity_of_a_given_perturbation():
    def remove_first(key, x):
        return x * jnp.array([1.0, 0, 0, 0])

    values = jnp.array([[1.0, 5, 5, 5], [3.0, 5, 5, 5]])
    got = metrics.infidelity(
        quadratic, XS, None, values, key=KEY, perturbation=remove_first, num_samples=3
    )
    # The first feature is 1 and 0.5, its effect 2 and 0.75.
    np.testing.assert_allclose(got, [(1 - 2) ** 2, (1.5 - 0.75) ** 2], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("metric", EFFECTS, ids=name)
@pytest.mark.representatives("infidelity", "monotonicity_correlation")
def test_a_perfect_attribution_beats_a_random_one(metric):
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.normal(size=(32, 4)), jnp.float32)
    weights = jnp.array([1.0, -2, 4, 0])
    values = jnp.asarray(rng.normal(size=xs.shape), jnp.float32)
    perfect = jnp.broadcast_to(weights, xs.shape)
    if name(metric) in ("faithfulness_estimate", "faithfulness_correlation", "sensitivity_n"):
        perfect = perfect * xs
    got = [metric(lambda x: x @ weights, xs, None, v) for v in (perfect, values)]
    limits = metrics.properties(metric)
    sign = {"higher": 1, "lower": -1}[limits.better]
    assert sign * got[0].mean() > sign * got[1].mean() + 0.3
    for each in got:
        assert ((each >= limits.low) & (each <= limits.high)).all()


@pytest.mark.slow
@pytest.mark.parametrize("metric", EFFECTS, ids=name)
@pytest.mark.representatives("infidelity", "faithfulness_estimate")
def test_constant_attribution_and_constant_function(metric):
    constant = jnp.full_like(XS, 0.1)
    of_attribution = metric(linear, XS, None, constant)
    of_function = metric(lambda x: 0 * x.sum() + 3, XS, None, XS)
    if name(metric) in ("infidelity", "non_sensitivity"):
        assert np.isfinite(of_attribution).all() and np.isfinite(of_function).all()
    else:
        assert np.isnan(of_attribution).all() and np.isnan(of_function).all()


@pytest.mark.slow
def test_a_baseline_equal_to_the_input_is_undefined_for_correlations():
    for metric in (EFFECTS[0], EFFECTS[2], EFFECTS[3]):
        assert np.isnan(metric(linear, XS, None, XS, baseline=XS)).all()


@pytest.mark.slow
@pytest.mark.parametrize("metric", EFFECTS, ids=name)
@pytest.mark.representatives("infidelity")
def test_numbers_depend_on_the_key_alone(metric):
    model = Partial(lambda w, x: jnp.tanh(x @ w).sum(), jnp.outer(WEIGHTS, jnp.arange(3.0)))
    whole = metric(model, XS, None, XS**2)
    np.testing.assert_allclose(metric(model, XS, None, XS**2, batch_size=3), whole, atol=1e-5)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("data",), axis_types=auto)
    np.testing.assert_allclose(metric(model, XS, None, XS**2, mesh=mesh), whole, atol=1e-5)
    if name(metric) not in ("faithfulness_estimate", "non_sensitivity"):
        other = metric(model, XS, None, XS**2, key=jax.random.key(1))
        assert not np.allclose(other, whole, atol=1e-6) or "monotonicity" in name(metric)


@pytest.mark.slow
def test_pytrees_and_integer_leaves():
    xs = {"a": XS, "n": jnp.array([[2], [3]])}
    values = {"a": XS, "n": jnp.array([[0.0], [1.0]])}

    def fn(x):
        return linear(x["a"]) * x["n"][0].astype(jnp.float32)

    got = metrics.faithfulness_estimate(fn, xs, None, values, baseline={"a": 0.0, "n": 1})
    number = np.array([[2.0], [3]])
    score = np.asarray(XS @ WEIGHTS)[:, None]
    effects = np.concatenate([number * TERMS, score * (number - 1)], 1)
    given = np.concatenate([values["a"], values["n"]], 1)
    want = [np.corrcoef(v, e)[0, 1] for v, e in zip(given, effects, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-4)
    assert np.isfinite(metrics.infidelity(fn, xs, None, values, key=KEY)).all()
    with pytest.raises(
        TypeError, match="`xs` must hold floating-point numbers to draw them, got int32"
    ):
        metrics.non_sensitivity(fn, xs, None, values, key=KEY)


def test_equal_features_are_drawn_around_their_value():
    ones = jnp.ones((1, 3))
    np.testing.assert_array_equal(
        metrics.non_sensitivity(jnp.sum, ones, None, ones, key=KEY, num_samples=2), [0]
    )


def test_sensitivity_n_of_two_features():
    xs = jnp.array([[1.0, 2]])
    got = metrics.sensitivity_n(lambda x: x[0] + 3 * x[1], xs, None, xs, key=KEY, num_samples=8)
    np.testing.assert_allclose(got, [1], rtol=1e-6)


@pytest.mark.parametrize("metric", EFFECTS, ids=name)
def test_bad_attribution_raises(metric):
    with pytest.raises(ValueError, match=r"`attribution` must have the shape of xs, \(2, 4\)"):
        metric(linear, XS, None, XS[:, :3])
    with pytest.raises(ValueError, match="`attribution` holds 8 NaN"):
        metric(linear, XS, None, XS * np.nan)
    if name(metric) != "faithfulness_estimate":
        with pytest.raises(ValueError, match="`num_samples` must be at least"):
            metric(linear, XS, None, XS, num_samples=0)
        with pytest.raises(ValueError, match="`key` is missing"):
            metric(linear, XS, None, XS, key=None)


def test_bad_arguments_raise():
    shared = (linear, XS, None, XS)
    with pytest.raises(ValueError, match="`subset_size` must be at most the number of features, 4"):
        metrics.faithfulness_correlation(*shared, key=KEY, subset_size=5)
    with pytest.raises(ValueError, match="`sizes` must be at least 1"):
        metrics.sensitivity_n(*shared, key=KEY, sizes=[0])
    with pytest.raises(ValueError, match="`sizes` must hold at least one size"):
        metrics.sensitivity_n(*shared, key=KEY, sizes=[])
    with pytest.raises(TypeError, match="`sizes` must be a list of ints, got 2"):
        metrics.sensitivity_n(*shared, key=KEY, sizes=2)
    for noise in ("a", None):
        with pytest.raises(TypeError, match=f"`noise` must be a number, got {noise!r}"):
            metrics.infidelity(*shared, key=KEY, noise=noise)
    with pytest.raises(ValueError, match="`noise` must be a number and not negative"):
        metrics.infidelity(*shared, key=KEY, noise=-1.0)
    with pytest.raises(TypeError, match="`rescale` must be a bool"):
        metrics.infidelity(*shared, key=KEY, rescale="no")
    with pytest.raises(ValueError, match="`perturbation` must return arrays of the shape"):
        metrics.infidelity(*shared, key=KEY, perturbation=lambda key, x: x[:2])
    with pytest.raises(ValueError, match="`tolerance` must be a number and not negative"):
        metrics.non_sensitivity(*shared, key=KEY, tolerance=-1.0)
