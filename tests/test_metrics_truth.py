"""Metrics of attributions alone and against the true features, on cases worked out by hand."""

import functools

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.metrics import (
    auc,
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
)

import jaxattn as ja
from jaxattn import metrics

TRUTH_METRICS = [
    metrics.aup,
    metrics.aur,
    metrics.auroc,
    metrics.auprc,
    metrics.information,
    metrics.entropy,
    metrics.pointing_game,
    metrics.relevance_mass,
    metrics.relevance_rank,
    functools.partial(metrics.top_k_intersection, k=2),
]
POOLED = [
    m
    for m in TRUTH_METRICS
    if hasattr(m, "__name__")
    and m.__name__ in ("aup", "aur", "auroc", "auprc", "information", "entropy")
]
ALONE = [metrics.sparseness, metrics.complexity, metrics.effective_complexity]
# The values that are compared with other libraries.
VALUES = np.sin(np.arange(1, 25)).reshape(2, 4, 3).astype(np.float32)
TRUE = (np.cos(3.0 * np.arange(24)) > 0.3).reshape(2, 4, 3)


def name(metric):
    return getattr(getattr(metric, "func", metric), "__name__", None)


def log2(x):
    return abs(np.log2(x + 1e-5))


#: Values, truth, and what they should be: normalised they are 0, 1/4, 1/2 and 1.
HAND = {
    # precision at the thresholds: 2/4, 2/3, 1/2, 1
    "aup": (2 / 4 + 2 / 3) / 2 * 0.25 + (2 / 3 + 1 / 2) / 2 * 0.25 + (1 / 2 + 1) / 2 * 0.5,
    # recall: 1, 1, 1/2, 1/2
    "aur": 0.25 + 0.75 * 0.25 + 0.5 * 0.5,
    # the true values 1/4 and 1 exceed one and two of the false ones
    "auroc": (1 / 2 + 1) / 2,
    "auprc": (2 / 3 + 1) / 2,
    "information": log2(0.75) + log2(0),
    "entropy": 0.25 * log2(0.25) + 0.75 * log2(0.75) + log2(1),
    "pointing_game": 1,
    "relevance_mass": (0 + 6) / (2 + 6),
    "relevance_rank": 1 / 2,
    "top_k_intersection": 1 / 2,
}


@pytest.mark.parametrize("metric", TRUTH_METRICS, ids=name)
def test_truth_closed_form(metric):
    values = np.array([[-2.0, 0, 2, 6]], np.float32)
    truth = np.array([[False, True, False, True]])
    np.testing.assert_allclose(metric(values, truth), [HAND[name(metric)]], rtol=1e-5)
    np.testing.assert_allclose(
        metric(values, truth.astype(np.float32)), [HAND[name(metric)]], rtol=1e-5
    )


@pytest.mark.slow
def test_areas_equal_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    values = rng.integers(-3, 4, size=(200, 4, 5)).astype(np.float32)  # with ties
    values[4:] = rng.normal(size=(196, 4, 5))
    truth = rng.random((200, 4, 5)) < 0.3
    got = {m.__name__: np.asarray(m(values, truth)) for m in POOLED}
    for i in range(8):
        score, true = values[i].ravel(), truth[i].ravel()
        score = (score - score.min()) / (score.max() - score.min())
        precision, recall, thresholds = precision_recall_curve(true, score)
        want = {
            "aup": auc(thresholds, precision[:-1]),
            "aur": auc(thresholds, recall[:-1]),
            "auroc": roc_auc_score(true, score),
            "auprc": average_precision_score(true, score),
        }
        for metric, number in want.items():
            np.testing.assert_allclose(got[metric][i], number, rtol=1e-5)


#: Of time-interpret 0.3, for VALUES and TRUE: pooled, and for each example. It divides by the
#: range plus 1e-5.
PEER = {
    "aup": (0.4089884, [0.4977409, 0.3148555]),
    "aur": (0.5273951, [0.6613059, 0.4390904]),
    "auroc": (0.5, [0.6, 0.3714286]),
    "auprc": (0.4293269, [0.5109091, 0.4119408]),
    "information": (15.8091202, [9.3755207, 6.4335995]),
    "entropy": (5.8818846, [3.0310504, 2.8508344]),
}


@pytest.mark.parametrize("metric", POOLED, ids=name)
@pytest.mark.representatives("entropy")
def test_truth_equals_time_interpret(metric):
    pooled, each = PEER[metric.__name__]
    np.testing.assert_allclose(metric(VALUES, TRUE, pooled=True), pooled, rtol=2e-4)
    np.testing.assert_allclose(metric(VALUES, TRUE), each, rtol=2e-4)


@pytest.mark.parametrize("metric", POOLED, ids=name)
@pytest.mark.representatives("aup")
def test_pooled_normalises_each_example(metric):
    values, truth = VALUES * np.array([1, 100]).reshape(2, 1, 1), TRUE
    together = metric(values.astype(np.float32), truth, pooled=True)
    assert together.shape == ()
    flat = np.stack([(v - v.min()) / (v.max() - v.min()) for v in VALUES]).reshape(1, -1)
    # The whole range occurs in each example, so that normalising again changes nothing.
    np.testing.assert_allclose(together, metric(flat, truth.reshape(1, -1))[0], rtol=1e-5)


@pytest.mark.parametrize("metric", TRUTH_METRICS, ids=name)
@pytest.mark.representatives("auroc", "information", "pointing_game")
def test_a_perfect_attribution_beats_a_random_one(metric):
    rng = np.random.default_rng(1)
    truth = np.zeros((200, 20), bool)
    truth[:, :5] = True
    perfect = metric(truth.astype(np.float32), truth)
    drawn = metric(rng.random((200, 20), np.float32), truth)
    better = metrics.properties(metric).better
    assert better in ("higher", "lower")
    sign = 1 if better == "higher" else -1
    assert (sign * perfect).mean() > (sign * drawn).mean() + 0.2
    if name(metric) == "auroc":
        assert abs(drawn.mean() - 0.5) < 0.03


@pytest.mark.parametrize("metric", [*TRUTH_METRICS, *ALONE], ids=name)
@pytest.mark.representatives("aup", "relevance_mass", "sparseness")
@settings(max_examples=20, deadline=None)
@given(
    values=hnp.arrays(np.float32, (3, 7), elements=st.floats(-4, 4, width=16)),
    truth=hnp.arrays(bool, (3, 7)),
)
def test_numbers_lie_in_the_declared_range(metric, values, truth):
    found = metric(values) if metric in ALONE else metric(values, truth)
    assert found.shape == (3,)
    limits = metrics.properties(metric)
    found = np.asarray(found)[~np.isnan(found)]
    assert ((found >= limits.low - 1e-6) & (found <= limits.high + 1e-6)).all()


@pytest.mark.parametrize("metric", [metrics.auroc, metrics.auprc], ids=name)
def test_small_differences_count_for_the_order(metric):
    got = metric(np.float32([[-1000, 1e-5, 2e-5]]), np.array([[0, 0, 1]]))
    np.testing.assert_array_equal(got, [1])


@pytest.mark.parametrize("truth", [True, False])
def test_truth_of_one_kind(truth):
    marks = np.full((1, 4), truth)
    values = np.array([[1.0, 2, 3, 4]], np.float32)
    got = {name(m): float(m(values, marks)[0]) for m in TRUTH_METRICS}
    assert np.isnan(got["auroc"])
    if truth:
        want = {"aup": 1, "auprc": 1, "pointing_game": 1, "relevance_mass": 1, "relevance_rank": 1}
    else:
        want = {"aup": 0, "information": 0, "entropy": 0, "pointing_game": 0, "relevance_mass": 0}
        want |= dict.fromkeys(["aur", "auprc", "relevance_rank"], np.nan)
    np.testing.assert_array_equal([got[key] for key in want], list(want.values()))


def test_constant_attribution():
    values, truth = np.full((1, 4), 0.3, np.float32), np.array([[1, 0, 0, 0]])
    got = {name(m): float(m(values, truth)[0]) for m in TRUTH_METRICS}
    assert np.isnan([got["aup"], got["aur"]]).all()
    assert got["auroc"] == 0.5
    assert got["auprc"] == 0.25
    np.testing.assert_allclose([got["information"], got["entropy"]], 0, atol=1e-4)
    np.testing.assert_allclose(metrics.sparseness(values), 0, atol=1e-6)
    np.testing.assert_allclose(metrics.complexity(values), np.log(4), rtol=1e-5)
    zero = np.zeros((1, 4), np.float32)
    for metric in (metrics.sparseness, metrics.complexity):
        assert np.isnan(metric(zero)).all()
    assert np.isnan(metrics.relevance_mass(-values, truth)).all()
    assert float(metrics.effective_complexity(zero)[0]) == 0


def test_one_constant_example_leaves_the_pooled_area_defined():
    values = np.array([[0.0, 1, 2, 3], [5.0, 5, 5, 5]], np.float32)
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    as_zeros = values * np.array([[1], [0]], np.float32)
    found = metrics.aup(values, truth, pooled=True)
    np.testing.assert_array_equal(found, metrics.aup(as_zeros, truth, pooled=True))
    assert 0 < found < 1


def test_complexity_closed_form():
    values = np.array([[1.0, -3, 0, 0]], np.float32)
    # sorted magnitudes 0, 0, 1, 3 with weights -3, -1, 1, 3
    np.testing.assert_allclose(metrics.sparseness(values), [10 / 16], rtol=1e-6)
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    np.testing.assert_allclose(metrics.complexity(values), [entropy], rtol=1e-6)
    np.testing.assert_array_equal(metrics.effective_complexity(values), [2])
    np.testing.assert_array_equal(metrics.effective_complexity(values, tolerance=1.0), [1])


@pytest.mark.parametrize("metric", [*POOLED, metrics.relevance_rank, *ALONE], ids=name)
@pytest.mark.representatives("auprc", "relevance_rank", "sparseness")
def test_features_of_all_leaves_count_together(metric):
    values = {"a": VALUES, "b": -VALUES[:, :1]}
    truth = {"a": TRUE, "b": TRUE[:, :1]}
    together = [np.concatenate([t["a"], t["b"]], 1) for t in (values, truth)]
    if metric in ALONE:
        attribution = ja.Attribution(jax.tree.map(jnp.asarray, values), jnp.zeros(2))
        np.testing.assert_allclose(metric(attribution), metric(together[0]), rtol=1e-6)
    else:
        np.testing.assert_allclose(metric(values, truth), metric(*together), rtol=1e-6)


def test_metrics_of_traced_and_half_precision_values():
    inside = jax.jit(lambda v: metrics.auprc(v, jnp.asarray(TRUE)))(VALUES)
    np.testing.assert_allclose(inside, metrics.auprc(VALUES, TRUE), rtol=1e-6)
    half = jnp.asarray(VALUES, jnp.bfloat16)
    np.testing.assert_allclose(metrics.aup(half, TRUE), metrics.aup(VALUES, TRUE), atol=0.02)


@pytest.mark.parametrize("metric", TRUTH_METRICS, ids=name)
def test_bad_truth_raises(metric):
    with pytest.raises(ValueError, match=r"`truth` must have the shape .*\(2, 4, 3\).*\(2, 12\)"):
        metric(VALUES, TRUE.reshape(2, 12))
    with pytest.raises(ValueError, match=r"`truth` must hold booleans.* got 2"):
        metric(VALUES, 2 * TRUE)
    with pytest.raises(ValueError, match="`attribution` holds 24 NaN"):
        metric(np.full_like(VALUES, np.nan), TRUE)


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="`k` must be at most the number of features, 12, got 13"):
        metrics.top_k_intersection(VALUES, TRUE, k=13)
    with pytest.raises(ValueError, match="`k` must be at least 1"):
        metrics.top_k_intersection(VALUES, TRUE, k=0)
    with pytest.raises(TypeError, match="`pooled` must be a bool"):
        metrics.aup(VALUES, TRUE, pooled=1)
    with pytest.raises(ValueError, match="`tolerance` must be a number and not negative"):
        metrics.effective_complexity(VALUES, tolerance=-1.0)
    with pytest.raises(ValueError, match="`attribution` must have a leading axis"):
        metrics.sparseness(np.float32(1.0))
    with pytest.raises(ValueError, match="`attribution` must hold features"):
        metrics.sparseness(np.zeros((2, 0), np.float32))
