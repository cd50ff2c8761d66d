"""The State benchmark: its hidden states, series and labels."""

import jax
import numpy as np
import pytest

import jaxattn as ja
from benchmarks.faithfulness import classifier
from benchmarks.faithfulness.runs import Run
from benchmarks.faithfulness.state import (
    FEATURES,
    MEANS,
    SALIENT,
    STEPS,
    covariances,
    markov,
    one_next,
)

SERIES = 500


@pytest.fixture(scope="module")
def drawn():
    return markov(seed=0, number=SERIES)


def test_one_feature_is_salient_at_each_step(drawn):
    assert drawn.x.shape == drawn.salient.shape == (SERIES, STEPS, FEATURES)
    np.testing.assert_array_equal(drawn.salient.argmax(-1), SALIENT[drawn.states])
    np.testing.assert_array_equal(drawn.salient.sum(-1), 1)


@pytest.mark.parametrize("state", [0, 1])
def test_mean_and_covariance_of_each_state(drawn, state):
    x = drawn.x[drawn.states == state].astype(float)
    np.testing.assert_allclose(x.mean(0), MEANS[state], atol=0.02)
    want = 0.801 * np.eye(3)
    want[0, 1 + state] = want[1 + state, 0] = 0.01
    np.testing.assert_array_equal(covariances()[state], want)
    np.testing.assert_allclose(np.cov(x.T), want, atol=0.02)


def test_states_change_with_their_probabilities(drawn):
    before, after = drawn.states[:, :-1], drawn.states[:, 1:]
    np.testing.assert_allclose(drawn.states[:, 0].mean(), 0.5, atol=0.07)
    np.testing.assert_allclose(after[before == 0].mean(), 0.05, atol=0.005)
    np.testing.assert_allclose(
        one_next(np.array([0, 1, 1]), np.array([9, 0, 50])), [0.05, 0.95, 0.85]
    )
    lasted = np.zeros(SERIES, int)
    young, old = [], []
    for t in range(STEPS - 1):
        young.extend(after[(before[:, t] == 1) & (lasted < 5), t])
        old.extend(after[(before[:, t] == 1) & (lasted >= 20), t])
        lasted = np.where(after[:, t] == before[:, t], lasted + 1, 0)
    np.testing.assert_allclose(np.mean(young), 0.946, atol=0.01)
    np.testing.assert_allclose(np.mean(old), 0.89, atol=0.02)


def test_labels_follow_the_sigmoid_of_the_salient_feature(drawn):
    deciding = (drawn.salient * drawn.x).sum(-1)
    for low, high in [(-2.0, -1.5), (-0.25, 0.25), (1.5, 2.0)]:
        inside = (deciding >= low) & (deciding < high)
        want = 1 / (1 + np.exp(-deciding[inside]))
        np.testing.assert_allclose(drawn.labels[inside].mean(), want.mean(), atol=0.02)


@pytest.fixture(scope="module")
def small():
    return classifier.trained(markov(seed=1, number=200), seed=1, epochs=8, units=16)


@pytest.mark.slow
def test_a_small_classifier_learns_the_labels(small):
    new = markov(seed=2, number=50)
    assert ((np.asarray(small(new.x)) > 0) == new.labels).mean() > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("method", [*classifier.OF_DERIVATIVES, *classifier.OF_REPLACED])
@pytest.mark.representatives("integrated_gradients", "occlusion")
def test_values_of_all_steps_at_once_are_those_of_all_prefixes(method, small):
    x = markov(seed=3, number=1).x[:, :12]
    options = {"key": jax.random.key(0), **classifier.METHODS[method]}
    if method in classifier.WITH_BACKGROUND:
        options["background"] = markov(seed=4, number=5).x[:, :12]
    got = classifier.explained(method, small, x, **options)
    chosen = getattr(ja, method)
    options |= {"method": chosen, "per_step": True, "targets": classifier.itself}
    fn = jax.tree_util.Partial(classifier.probabilities, small)
    want = ja.explain(ja.time_forward, fn, x, **options)
    np.testing.assert_allclose(got, want.values, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, least", [("occlusion", 0.95), ("integrated_gradients", 0.91), ("fit", 0.45)]
)
def test_methods_find_the_salient_feature_of_each_step(method, least):
    """Published are 0.817, 0.909 and 0.463, means of five networks."""
    got = classifier.measured(method, seed=1, run=Run((1,), 5, quick=False))
    assert got["auprc"] > least
    assert got["auroc"] > 0.7
