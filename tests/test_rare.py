"""The rare-feature benchmark: its series, its measure, and trained masks on it."""

import numpy as np
import pytest

from benchmarks.faithfulness.rare import FEATURES, STEPS, SUBSET, energy, measured, rare
from benchmarks.faithfulness.runs import Run


@pytest.mark.parametrize("task, axis", [("feature", 1), ("time", 0)])
def test_series_and_their_salient_cells(task, axis):
    series = rare(task, seed=0, number=3)
    assert series.x.shape == series.salient.shape == (3, STEPS, FEATURES)
    few = series.salient.any(axis=2 - axis)
    np.testing.assert_array_equal(few.sum(1), SUBSET)
    wide = series.salient.any(axis=1 + axis)
    np.testing.assert_array_equal(np.flatnonzero(wide[0]), np.arange(12, 37))
    np.testing.assert_allclose(
        energy(series.x[0], series.salient[0]), (series.salient * series.x**2).sum(-1)[0], rtol=1e-5
    )
    x = series.x.astype(float)
    driven = 2 * x[:, 3:] + 0.5 * x[:, 2:-1] + 0.2 * x[:, 1:-2] + 0.1 * x[:, :-3]
    np.testing.assert_allclose(np.std(driven), 2, rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["feature", "time"])
@pytest.mark.parametrize("method", ["integrated_gradients", "deep_lift", "occlusion"])
def test_methods_that_give_each_cell_its_square(method, task):
    """The published areas are 1 and 0.13."""
    got = measured(method, 1, Run((1,), 20, False), task)
    assert got["aup"] > 0.999
    np.testing.assert_allclose(got["aur"], 0.13, atol=0.01)


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize(
    "method, task, precision, recall",
    [
        ("dynamask", "feature", 0.93, 0.65),
        ("dynamask", "time", 0.93, 0.65),
        ("extremal_mask", "feature", 0.99, 0.9),
        ("extremal_mask", "time", 0.99, 0.9),
        ("contra_mask", "feature", 0.99, 0.9),
        ("contra_mask", "time", 0.85, 0.9),
    ],
)
def test_trained_masks_find_the_salient_cells(method, precision, recall, task):
    got = measured(method, 1, Run((1,), 100, False), task)
    assert got["aup"] >= precision
    assert got["aur"] >= recall
