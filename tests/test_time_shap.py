"""TimeSHAP: events, features and cells with the old past pooled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxattn as ja

KEY = jax.random.key(0)
T, D = 7, 3


def recurrent(weights, x):
    """Return a score of the last hidden state of a tanh network that forgets."""

    def advance(h, row):
        return jnp.tanh(row @ weights["input"] + 0.5 * h @ weights["recurrent"]), None

    return jax.lax.scan(advance, jnp.zeros(4, x.dtype), x)[0] @ jnp.arange(1.0, 5, dtype=x.dtype)


def model():
    rng = np.random.default_rng(0)
    weights = {"input": rng.normal(size=(D, 4)), "recurrent": rng.normal(size=(4, 4)) / 2}
    return Partial(recurrent, {name: jnp.asarray(w) for name, w in weights.items()})


def series(batch=3):
    return jnp.asarray(np.random.default_rng(3).normal(size=(batch, T, D)))


def pruned_by_loop(fn, x, tolerance):
    """Return the steps in the old past, by the definition."""

    of_mask = jax.jit(lambda keep: fn(jnp.where(keep[:, None], x, 0)))

    def score(keep):
        return float(of_mask(keep))

    steps = np.arange(T)
    for t in range(T - 1, 0, -1):
        old = score(steps < t) - score(steps < 0) + score(steps >= 0) - score(steps >= t)
        if abs(old / 2) <= tolerance:
            return t
    return 0


@pytest.mark.parametrize("tolerance", [0.0, 0.1, None])
@pytest.mark.representatives("0.1")
def test_events_are_exact_shapley_values_of_the_groups(tolerance, x64):
    """`tolerance` also tells how many steps are pooled."""
    xs = series()
    got = ja.explain(ja.time_shap, model(), xs, tolerance=tolerance, num_samples=254, key=KEY)
    want = [pruned_by_loop(model(), x, -1 if tolerance is None else tolerance) for x in xs]
    np.testing.assert_array_equal(got.info["pruned"], want)
    assert max(want) < T - 1 and (tolerance != 0.1 or min(want) > 1)
    for x, pruned, values in zip(xs, want, got.values, strict=True):
        groups = np.maximum(np.arange(T) - pruned + 1, 0)[:, None]
        exact = ja.shapley_values(model(), x, groups=groups).values
        np.testing.assert_allclose(values, exact, rtol=0, atol=1e-6)
    totals = jax.vmap(model())(xs) - jax.vmap(model())(0 * xs)
    np.testing.assert_allclose(got.info["groups"].sum(1), totals, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_features_are_exact_shapley_values_of_the_groups(x64):
    x = series()[0]
    got = ja.time_shap(model(), x, level="feature", tolerance=0.1)
    pruned = int(got.info["pruned"])
    assert pruned == pruned_by_loop(model(), x, 0.1) > 1
    groups = np.where(np.arange(T)[:, None] < pruned, 0, np.arange(1, D + 1))
    want = ja.shapley_values(model(), x, groups=groups)
    np.testing.assert_allclose(got.values, want.values, rtol=0, atol=1e-6)
    np.testing.assert_allclose(got.info["groups"], want.info["groups"], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_cells_of_the_most_important_events_and_features(x64):
    x = series()[0]
    options = {"tolerance": 0.1, "num_events": 2, "num_features": 2, "key": KEY}
    got = ja.time_shap(model(), x, level="cell", **options)
    of_events = ja.time_shap(model(), x, tolerance=0.1, key=KEY).info["groups"][1:]
    of_features = ja.time_shap(model(), x, level="feature", tolerance=0.1).info["groups"][1:]
    events, features = np.asarray(got.info["events"]), np.asarray(got.info["features"])
    np.testing.assert_array_equal(events, np.sort(np.argsort(-abs(of_events))[:2]))
    np.testing.assert_array_equal(features, np.sort(np.argsort(-abs(of_features))[:2]))
    groups = np.zeros((T, D), int)
    groups[np.ix_(events, features)] = np.arange(1, 5).reshape(2, 2)
    want = ja.shapley_values(model(), x, groups=groups)
    np.testing.assert_allclose(got.values, want.values, rtol=0, atol=1e-6)
    np.testing.assert_allclose(got.info["groups"], want.info["groups"], rtol=0, atol=1e-6)


def test_max_events_pools_older_ones(x64):
    x = series()[0]
    got = ja.time_shap(model(), x, max_events=4, tolerance=0.0)
    assert got.info["pruned"] == T - 4
    want = ja.shapley_values(model(), x, groups=np.maximum(np.arange(T) - T + 5, 0)[:, None])
    np.testing.assert_allclose(got.info["groups"], want.info["groups"], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_absent_features_take_the_average_event_of_the_background_set(x64):
    x, background = series()[0], 1 + series(5)
    got = ja.time_shap(model(), x, background=background, max_events=3)
    average = np.asarray(background).mean((0, 1))
    want = ja.time_shap(model(), x, baseline=average, max_events=3)
    np.testing.assert_allclose(got.values, want.values, rtol=0, atol=1e-12)
    total = model()(x) - model()(jnp.broadcast_to(average, x.shape))
    np.testing.assert_allclose(got.info["groups"].sum(), total, rtol=0, atol=1e-9)
    assert abs(total - model()(x) + model()(0 * x)) > 0.01


@pytest.mark.slow
def test_estimates_sum_to_the_difference():
    x = series()[0].astype(jnp.float32)
    fn = jax.tree.map(lambda w: w.astype(jnp.float32), model())
    got = ja.time_shap(fn, x, num_samples=40, tolerance=None, key=KEY)
    np.testing.assert_allclose(got.info["groups"].sum(), fn(x) - fn(0 * x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "word"}, "`level` must be"),
        ({"tolerance": -1.0}, "`tolerance` must be a number and not negative"),
        (
            {"baseline": 0.0, "background": np.zeros((2, T, D), np.float32)},
            "`baseline` must be left out",
        ),
        (
            {"background": np.zeros((T, D), np.float32)},
            "`background` must have a leading axis of examples",
        ),
        ({"num_samples": 10}, "`key` is missing"),
        ({"num_samples": 1}, "`num_samples` must be at least 2"),
        ({"max_events": 0}, "`max_events` must be at least 1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ja.time_shap(lambda x: x.sum(), jnp.ones((T, D)), **options)


def test_inputs_that_are_no_series():
    with pytest.raises(ValueError, match="`x` must have a leading axis of at least two steps"):
        ja.time_shap(lambda x: x.sum(), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"`x` must have shape \(T, D\)"):
        ja.time_shap(lambda x: x.sum(), jnp.ones(4), level="feature")
    with pytest.raises(ValueError, match="`x` must be one array"):
        ja.time_shap(lambda x: x[0].sum(), [jnp.ones((4, 1)), jnp.ones(2)])


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({}, T),
        ({"max_events": 5}, 6),
        ({"level": "feature", "tolerance": None}, D),
        ({"level": "feature"}, D + 1),
        ({"level": "cell"}, 10),
        ({"level": "cell", "num_events": 1}, T),
    ],
)
def test_a_key_is_required_unless_all_coalitions_of_every_game_fit(options, number):
    def traced(num_samples):
        each = {"num_samples": num_samples, **options}
        return jax.eval_shape(lambda x: ja.time_shap(jnp.sum, x, **each).values, jnp.ones((T, D)))

    with pytest.raises(ValueError, match="`key` is missing"):
        traced(2**number - 3)
    assert traced(2**number - 2).shape == (T, D)


def test_integers_have_no_average_event():
    with pytest.raises(TypeError, match="`background` must be left out where `x` holds integers"):
        x = jnp.ones((T, D), jnp.int32)
        ja.time_shap(lambda x: x.astype(float).sum(), x, background=x[None], key=KEY)
