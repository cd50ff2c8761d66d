"""Tests of figures of features: drawn values, panel grids, scales and errors."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from jaxattn import plot


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def values(*shape):
    return np.random.default_rng(0).normal(size=shape)


def test_one_panel_per_channel_and_one_line_per_sample():
    x = values(3, 20, 7)
    axes = plot.features_1d(x, sample_names=["a", "b", "c"])
    assert axes.shape == (7,)
    for c, panel in enumerate(axes):
        lines = panel.get_lines()
        assert len(lines) == 3
        for n, line in enumerate(lines):
            np.testing.assert_array_equal(line.get_ydata(), x[n, :, c])
        assert panel.get_title(loc="left") == str(c)
        assert panel.get_xlim() == (0, 19)
    [legend] = axes[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
    assert len({to_hex(line.get_color()) for line in axes[0].get_lines()}) == 3


def test_y_limits_are_per_panel_or_equal():
    x = values(20, 3) * [1, 10, 100]
    free = plot.features_1d(x)
    assert [panel.get_ylim()[1] > 50 for panel in free] == [False, False, True]
    assert all(len(panel.get_lines()) == 1 for panel in free)
    equal = plot.features_1d(x, equal_axes=True)
    assert len({panel.get_ylim() for panel in equal}) == 1
    assert equal[0].get_ylim()[0] <= x.min() < x.max() <= equal[0].get_ylim()[1]
    for panel in equal:
        curve, zero = panel.get_lines()
        np.testing.assert_array_equal(zero.get_ydata(), 0)
        assert to_hex(zero.get_color()) == "#d62728"
        assert len(curve.get_ydata()) == 20
    assert len(plot.features_1d(x, zero_line=True)[0].get_lines()) == 2
    assert len(plot.features_1d(x, equal_axes=True, zero_line=False)[0].get_lines()) == 1


@pytest.mark.parametrize(
    ("options", "grid"),
    [({}, (2, 3)), ({"columns": 2}, (3, 2)), ({"rows": 1}, (1, 5)), ({"columns": 99}, (1, 5))],
)
def test_panel_grid(options, grid):
    axes = plot.features_1d(values(4, 5), **options)
    assert axes[0].get_subplotspec().get_gridspec().get_geometry() == grid
    bottom = [bool(panel.get_xlabel()) for panel in axes]
    assert (
        bottom == [False] * (5 - grid[1]) + [True] * grid[1]
    )  # only panels without one below have a label


def test_channel_axis_max_steps_and_nan():
    x = values(2, 20, 3)
    axes = plot.features_1d(np.moveaxis(x, -1, 1), channel_axis=1, max_steps=5)
    np.testing.assert_array_equal(axes[2].get_lines()[1].get_ydata(), x[1, :5, 2])
    x[0, 10:] = np.nan
    line = plot.features_1d(x, channel_names=["x", "y", "z"])[1].get_lines()[0]
    np.testing.assert_array_equal(np.isnan(line.get_ydata()), np.arange(20) >= 10)
    one = plot.features_1d(values(1, 2))  # T = 1
    assert one[0].get_lines()[0].get_ydata().shape == (1,)


def test_ax_argument():
    figure, axes = plt.subplots(1, 3)
    assert plot.features_1d(values(9, 3), ax=axes, title="mine")[2] is axes[2]
    assert axes[0].get_title() == "mine"
    assert figure.get_suptitle() == ""
    assert plot.features_2d(values(4, 5), ax=axes[0], colorbar=False) is axes[0]
    assert plot.features_hist(values(9), ax=axes[1]) is axes[1]
    assert plot.features_0d(values(9), ax=axes[2]) is axes[2]


@pytest.mark.parametrize(
    ("norm", "ends"),
    [(None, (-3.0, 1.0)), ("auto", (-3.0, 3.0)), ((-1, 5), (-1.0, 5.0))],
)
def test_features_2d_values_and_norm(norm, ends):
    x = np.array([[-3.0, 0.5, 1.0], [0.0, 0.25, 0.5]])
    panel = plot.features_2d(x, norm=norm, cmap="bwr", titles=["t"])
    [picture] = panel.images
    np.testing.assert_array_equal(picture.get_array(), x)
    assert (picture.norm.vmin, picture.norm.vmax) == ends
    if norm == "auto":
        assert to_hex(picture.cmap(picture.norm(0.0))) == "#fffefe"  # the middle of bwr
    assert panel.get_title() == "t"
    assert panel.get_ylim() == (1.5, -0.5)  # the first row on top


def test_features_2d_samples_share_one_scale():
    x = values(3, 4, 5)
    axes = plot.features_2d(x)
    assert axes.shape == (3,)
    for panel, one in zip(axes, x, strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), one)
        assert panel.images[0].norm.vmax == -panel.images[0].norm.vmin == np.abs(x).max()
    assert plot.features_2d(x, norm=None)[0].images[0].norm.vmin == x.min()
    ones = plot.features_2d(np.ones((2, 2)), norm=None)
    assert ones.images[0].norm.vmax == 2.0  # a single value is widened to a range


@pytest.mark.parametrize(
    ("x", "norm", "cmap"),
    [
        ([[-1, 2]], "auto", "RdBu_r"),
        ([[0, 2]], "auto", "Purples"),
        ([[-1, 2]], None, "RdBu_r"),
        ([[1, 2]], None, "Purples"),
        ([[1, 2]], (-2, 2), "RdBu_r"),
    ],
)
def test_features_2d_diverges_only_if_scale_contains_zero(x, norm, cmap):
    panel = plot.features_2d(x, norm=norm)
    assert panel.images[0].cmap.name == cmap
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("column", "row")


def heights(panel):
    return [bar.get_height() for bar in panel.patches]


def test_histograms_count_each_channel():
    x = values(2, 50, 4)
    x[0, 0, 0] = np.nan
    for equal in (False, True):
        axes = plot.features_hist(x, bins=10, equal_axes=equal)
        for c, panel in enumerate(axes):
            flat = x[..., c].ravel()
            flat = flat[~np.isnan(flat)]
            limits = (np.nanmin(x), np.nanmax(x)) if equal else None
            np.testing.assert_array_equal(heights(panel), np.histogram(flat, 10, limits)[0])
            assert len(panel.get_lines()) == 1  # zero
        assert (len({panel.get_ylim() for panel in axes}) == 1) == equal
    single = plot.features_hist(np.arange(1.0, 61), bins=6, title="weights")
    assert heights(single) == [10] * 6
    assert not single.get_lines()  # zero is out of range
    assert (single.get_title(), single.get_ylabel()) == ("weights", "count")


def test_features_0d_draws_points():
    x = values(2, 6)
    panel = plot.features_0d(x, sample_names=["a", "b"])
    for n, points in enumerate(panel.collections):
        np.testing.assert_array_equal(points.get_offsets(), np.stack([np.arange(6), x[n]], 1))
    np.testing.assert_array_equal(panel.get_lines()[0].get_ydata(), 0)
    assert not plot.features_0d(x[0], zero_line=False).get_lines()


def test_features_0d_draws_lines_above_64_values():
    x = values(2, 65)
    panel = plot.features_0d(x, sample_names=["a", "b"])
    for line, sample in zip(panel.get_lines(), x, strict=False):
        np.testing.assert_array_equal(line.get_ydata(), sample)
    assert not panel.collections
    assert len(plot.features_0d(x, line=False).collections) == 2
    assert plot.features_0d(x[:, :64]).collections
    assert len(plot.features_0d(x[0, :3], line=True, zero_line=False).get_lines()) == 1


X = values(4, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.features_1d(X[0]), "`x` must have shape (T, C) or (N, T, C), got (5,)"),
        (lambda: plot.features_1d(X * np.inf), "`x` must be finite"),
        (lambda: plot.features_1d(X[:0]), "`x` must not be empty"),
        (
            lambda: plot.features_1d(X, rows=2, columns=2),
            "`rows` and `columns` must hold 5 channels",
        ),
        (lambda: plot.features_1d(X, columns=0), "`columns` must be at least 1, got 0"),
        (lambda: plot.features_1d(X, max_steps=0), "`max_steps` must be at least 1, got 0"),
        (lambda: plot.features_1d(X, channel_names=["a"]), "`channel_names` must have one entry"),
        (lambda: plot.features_1d(X, sample_names=[]), "`sample_names` must have one entry"),
        (lambda: plot.features_1d(X, channel_axis=2), "`channel_axis` must be an axis of x"),
        (
            lambda: plot.features_1d(X, ax=np.array([])),
            "`ax` must be an array of Axes of shape (5,)",
        ),
        (
            lambda: plot.features_1d(np.where(np.arange(5) == 1, np.nan, X)),
            "`x` must have a number in each channel, got NaN alone in 1",
        ),
        (lambda: plot.features_2d(X[0]), "`x` must have shape (R, C) or (N, R, C), got (5,)"),
        (lambda: plot.features_2d(X * np.nan), "`x` must be finite"),
        (lambda: plot.features_2d(X, norm="log"), '`norm` must be None, "auto" or (min, max)'),
        (lambda: plot.features_2d(X, norm=(1, 0)), "`norm` must be (min, max), min below max"),
        (lambda: plot.features_2d(X, norm=(1, 2, 3)), '`norm` must be None, "auto" or (min, max)'),
        (lambda: plot.features_2d(X, titles=["a", "b"]), "`titles` must have one entry"),
        (lambda: plot.features_hist(X, bins=0), "`bins` must be at least 1, got 0"),
        (lambda: plot.features_hist(X[None, None]), "`x` must have shape (n,) or (T, C)"),
        (lambda: plot.features_0d(X[None]), "`x` must have shape (C,) or (N, C), got (1, 4, 5)"),
    ],
)
def test_invalid_inputs_raise(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
    assert not plt.get_fignums()


def test_non_real_values_raise():
    with pytest.raises(TypeError, match="`x` must be one array of real numbers"):
        plot.features_1d([["a", "b"], ["c", "d"]])
