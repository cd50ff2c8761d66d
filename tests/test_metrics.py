"""Deletion, insertion and completeness on functions with known curves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn.metrics import completeness, deletion, insertion

XS = jnp.array([[1.0, 2, 3, 4], [4.0, 3, 2, 1]])
ONE_BY_ONE = {"score": "logit", "num_steps": 4}


def total(x):
    return x.sum()[None]


@pytest.mark.parametrize(
    "curve, attribution, scores",
    [
        (deletion, [4, 3, 2, 1], [10, 9, 7, 4, 0]),
        (deletion, [1, 2, 3, 4], [10, 6, 3, 1, 0]),
        (deletion, [-1, 7, 0, -2], [10, 8, 5, 4, 0]),
        (deletion, [0, 0, 0, 0], [10, 9, 7, 4, 0]),
        (insertion, [1, 2, 3, 4], [0, 4, 7, 9, 10]),
        (insertion, [0, 1, 0, 1], [0, 2, 6, 7, 10]),
    ],
)
def test_curves_closed_form(curve, attribution, scores):
    """Features are replaced from the highest value to the lowest; ties keep their order."""
    got = curve(total, XS[:1], 0, jnp.array([attribution], jnp.float32), **ONE_BY_ONE)
    np.testing.assert_array_equal(got.scores, [scores])
    np.testing.assert_array_equal(got.fractions, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(got.auc, [(sum(scores) - 5) / 4], rtol=1e-6)


def test_deleted_features_take_the_baseline():
    baseline = jnp.array([[5.0, 6, 7, 8], [0.0, 0, 0, 1]])
    got = deletion(total, XS, 0, XS, baseline=baseline, **ONE_BY_ONE).scores
    np.testing.assert_array_equal(got, [[10, 14, 18, 22, 26], [10, 6, 3, 1, 1]])


@pytest.mark.parametrize("num_steps, scores", [(1, [10, 0]), (2, [10, 3, 0]), (3, [10, 6, 1, 0])])
def test_fewer_steps_than_features(num_steps, scores):
    got = deletion(total, XS, 0, XS, score="logit", num_steps=num_steps)
    np.testing.assert_array_equal(got.scores, [scores] * 2)


def test_insertion_reverses_deletion_of_the_reversed_ranking():
    values = jnp.array([[0.3, -1, 2, 0.1], [1.0, 2, -3, 0]])
    inserted = insertion(total, XS, 0, values, **ONE_BY_ONE).scores
    deleted = deletion(total, XS, 0, -values, **ONE_BY_ONE).scores
    np.testing.assert_array_equal(inserted, deleted[:, ::-1])


def test_default_score_is_a_probability():
    def fn(x):
        return jnp.stack([x.sum(), jnp.float32(1)])

    got = deletion(fn, XS, 0, XS, num_steps=4).scores
    logits = np.array([10, 6, 3, 1, 0])
    np.testing.assert_allclose(got, [1 / (1 + np.exp(1 - logits))] * 2, rtol=1e-5)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 7}, {"mesh": 2}])
@pytest.mark.parametrize("curve", [deletion, insertion])
@pytest.mark.representatives("deletion-options0")
def test_curves_are_independent_of_batch_size_and_devices(curve, options):
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 3)), jnp.float32)

    def model(x):
        return jnp.tanh(x).sum(0)

    if "mesh" in options:
        auto = (jax.sharding.AxisType.Auto,)
        options = {"mesh": jax.make_mesh((2,), ("data",), axis_types=auto)}
    whole = curve(model, xs, 1, xs**2, num_steps=6)
    parts = curve(model, xs, 1, xs**2, num_steps=6, **options)
    np.testing.assert_allclose(parts.scores, whole.scores, rtol=0, atol=1e-6)
    np.testing.assert_allclose(parts.auc, whole.auc, rtol=0, atol=1e-6)


def test_features_of_all_leaves_are_ranked_together():
    xs = {"a": jnp.array([[1.0, 8.0]]), "b": jnp.array([[[2.0], [4.0]]])}

    def fn(x):
        return x["a"].sum() + x["b"].sum()

    got = deletion(fn, xs, None, xs, **ONE_BY_ONE).scores
    np.testing.assert_array_equal(got, [[15, 7, 3, 1, 0]])


def test_targets_and_args_per_example():
    def fn(x, scale):
        return scale * jnp.stack([x.sum(), -x.sum()])

    scales = jnp.array([1.0, 10.0])
    got = deletion(fn, XS, np.array([0, 1]), XS, args=(scales,), **ONE_BY_ONE).scores
    np.testing.assert_array_equal(got, [[10, 6, 3, 1, 0], [-100, -60, -30, -10, 0]])


def test_best_ranking_of_a_linear_function_minimizes_the_area():
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    best = deletion(total, xs, 0, ja.explain(ja.input_x_gradient, total, xs), **ONE_BY_ONE).auc
    for _ in range(5):
        values = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
        assert (best <= deletion(total, xs, 0, values, **ONE_BY_ONE).auc + 1e-6).all()


def test_completeness(x64):
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)))

    def fn(x):
        return jnp.stack([jnp.sin(x).sum(), (x**3).prod()])

    options = {"baseline": 0.5, "num_steps": 20, "quadrature": "gauss_legendre"}
    complete = ja.explain(ja.integrated_gradients, fn, xs, 0, **options)
    np.testing.assert_allclose(completeness(fn, xs, 0, complete, baseline=0.5), 0, atol=1e-12)
    wrong = completeness(fn, xs, 0, complete.values + 1, baseline=0.5)
    np.testing.assert_allclose(wrong, 8, rtol=1e-12)
    zero = completeness(fn, xs, 0, jnp.zeros_like(xs), baseline=0.5)
    change = np.sin(xs).sum((1, 2)) - 8 * np.sin(0.5)
    np.testing.assert_allclose(zero, -change, rtol=1e-12)


def test_fractions_of_deleted_features():
    curve = ja.metrics.deletion(
        lambda x: x.sum(),
        np.ones((1, 3), np.float32),
        None,
        np.ones((1, 3)),
        num_steps=4,
        score="logit",
    )
    np.testing.assert_allclose(curve.fractions, np.array([0, 1, 2, 2, 3]) / 3, rtol=1e-6)
    np.testing.assert_allclose(curve.scores[0], 3 - 3 * curve.fractions, rtol=1e-6)
    np.testing.assert_allclose(curve.auc, [1.5], rtol=1e-6)


@pytest.mark.parametrize("metric", [deletion, insertion])
def test_log_probability_score(metric):
    xs = np.array([[1.0, -2.0, 0.5]], np.float32)
    curves = {
        score: metric(lambda x: 2 * x, xs, 0, xs, num_steps=3, score=score).scores
        for score in ("probability", "log_probability")
    }
    np.testing.assert_allclose(curves["log_probability"], np.log(curves["probability"]), rtol=1e-5)


@pytest.mark.slow
def test_scores_in_half_precision_do_not_overflow():
    xs = np.float16([[4e4, 0]])
    curve = deletion(jnp.max, xs, None, xs, num_steps=1, score="logit")
    np.testing.assert_allclose(curve.auc, [2e4], rtol=1e-3)
    xs = np.full((1, 100), 1000, np.float16)
    residual = completeness(lambda x: x.astype(jnp.float32).sum(), xs, None, xs)
    np.testing.assert_array_equal(residual, [0])
    xs = np.float16([[300]])
    np.testing.assert_array_equal(ja.metrics.mse(lambda x: x, xs, 0, xs), [9e4])
    xs = np.float16([[1, 2, 4]])
    weights = np.float16([1, 8, 300])
    options = {"key": jax.random.key(0)}
    got = ja.metrics.monotonicity_correlation(lambda x: x @ weights, xs, None, xs, **options)
    np.testing.assert_allclose(got, [1], rtol=1e-6)


def test_non_finite_attribution_raises():
    xs = np.ones((1, 3), np.float32)
    with pytest.raises(ValueError, match=r"`attribution` holds 3 NaN .* as float32\.$"):
        deletion(lambda x: x.sum(), xs, None, np.full((1, 3), np.nan), score="logit")


@pytest.mark.parametrize("shape, missing", [((0, 3), "example"), ((1, 0), "feature")])
def test_empty_inputs_raise(shape, missing):
    xs = np.ones(shape, np.float32)
    with pytest.raises(ValueError, match=f"`xs` must hold at least one {missing}"):
        deletion(lambda x: x.sum(), xs, None, xs, score="logit")


def test_completeness_equals_delta_with_integer_leaves():
    xs = {"a": np.ones((2, 3), np.float32), "n": np.full((2,), 3)}

    def fn(x):
        return x["a"].sum() * x["n"].astype(jnp.float32)

    found = ja.explain(ja.integrated_gradients, fn, xs)
    residual = ja.metrics.completeness(fn, xs, None, found)
    np.testing.assert_allclose(residual, found.info["delta"], atol=1e-5)
