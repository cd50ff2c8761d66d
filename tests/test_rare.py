"""The rare-feature benchmark: its series, its measure, and trained masks on it."""

import numpy as np
import pytest

from benchmarks.faithfulness.rare import FEATURES, STEPS, SUBSET, areas, energy, mask_areas, rare


def test_areas_under_precision_and_recall_by_hand():
    """Precision is 1/2, 2/3, 1, 1 and recall 1, 1, 1, 1/2 at the thresholds 0, 0.2, 0.5, 1."""
    got = areas(np.array([[1.0, 2.0], [3.0, 1.4]]), np.array([[0, 1], [1, 0]]))
    precision = 0.2 * (1 / 2 + 2 / 3) / 2 + 0.3 * (2 / 3 + 1) / 2 + 0.5
    np.testing.assert_allclose(got, (precision, 0.2 + 0.3 + 0.5 * 0.75))


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
@pytest.mark.optimized
@pytest.mark.parametrize("task", ["feature", "time"])
@pytest.mark.parametrize(
    "method, precision, recall", [("dynamask", 0.93, 0.65), ("extremal_mask", 0.99, 0.9)]
)
def test_trained_masks_find_the_salient_cells(method, precision, recall, task):
    got = mask_areas(method, task, seed=0)
    assert got[0] >= precision
    assert got[1] >= recall
