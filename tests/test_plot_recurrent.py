"""Tests of figures of recurrent layers: the numbers on the axes equal the arrays."""

import dataclasses
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from jaxattn import plot
from jaxattn.introspect import GRUGates, LSTMGates, MemoryReach, Weights

LSTM = ("input", "forget", "cell", "output")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def lstm_weights(layer="rnn_0", seed=0):
    parts = [
        LSTMGates(*draw(4, *shape, seed=seed + i)) for i, shape in enumerate([(3, 5), (5, 5), (5,)])
    ]
    return Weights(*parts, None, layer, "forward")


def gru_weights():
    parts = [GRUGates(*draw(3, *shape, seed=i)) for i, shape in enumerate([(3, 5), (5, 5), (5,)])]
    return Weights(*parts, draw(5), "gru", "forward")


@pytest.mark.parametrize(
    "weights", [gru_weights(), pytest.param(lstm_weights(), marks=pytest.mark.slow)]
)
def test_heat_maps_hold_the_weights_by_gate(weights):
    axes = plot.rnn_heatmap(weights)
    assert axes.shape == (3, len(list(weights.kernel.items())))
    for row, part in zip(axes, ("kernel", "recurrent", "bias"), strict=True):
        gates = dict(getattr(weights, part).items())
        largest = max(abs(values).max() for values in gates.values())
        for panel, (gate, values) in zip(row, gates.items(), strict=True):
            [picture] = panel.images
            np.testing.assert_array_equal(picture.get_array(), np.atleast_2d(values))
            assert picture.get_clim() == (-largest, largest)
            assert panel.get_title(loc="left") == f"{part}, {gate}"
            assert picture.origin == "upper"


@pytest.mark.slow
def test_both_directions_and_single_parts():
    both = lstm_weights("rnn_0/forward"), lstm_weights("rnn_0/backward", seed=9)
    axes = plot.rnn_heatmap(both, parts=["recurrent", "bias"], limit=2.0)
    assert axes.shape == (4, 4)
    np.testing.assert_array_equal(axes[2, 1].images[0].get_array(), both[1].recurrent.forget)
    np.testing.assert_array_equal(axes[1, 3].images[0].get_array()[0], both[0].bias.output)
    assert axes[0, 0].images[0].get_clim() == (-2.0, 2.0)
    assert [text.get_text() for text in axes[2, 0].texts] == ["rnn_0/backward"]
    assert not plot.rnn_heatmap(lstm_weights())[0, 0].texts


def test_non_finite_weights_are_black_and_counted():
    weights = lstm_weights()
    weights.kernel.forget[0, 1] = np.nan
    weights.kernel.forget[2, 2] = np.inf
    weights.kernel.forget[1, 2] = -np.inf
    panel = plot.rnn_heatmap(weights)[0, 1]
    [picture] = panel.images
    shown = picture.get_array()
    assert np.argwhere(np.ma.getmaskarray(shown)).tolist() == [[0, 1], [1, 2], [2, 2]]
    np.testing.assert_array_equal(shown.compressed(), weights.kernel.forget[~shown.mask])
    assert to_hex(picture.cmap(np.ma.masked)) == "#000000"
    assert panel.get_title(loc="left") == "kernel, forget: 1 NaN, 2 inf"
    histogram = plot.rnn_histogram(weights)[0, 1]
    assert histogram.get_title(loc="left") == "kernel, forget: 1 NaN, 2 inf"
    assert sum(bar.get_height() for bar in histogram.patches) == 12


@pytest.mark.parametrize("equal", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_histograms_count_the_weights_by_gate(equal):
    weights = lstm_weights()
    axes = plot.rnn_histogram(weights, bins=7, equal_axes=equal)
    assert axes.shape == (3, 4)
    for row, part in zip(axes, ("kernel", "recurrent", "bias"), strict=True):
        gates = dict(getattr(weights, part).items())
        every = np.concatenate([values.ravel() for values in gates.values()])
        limits = (every.min(), every.max()) if equal else None
        for panel, values in zip(row, gates.values(), strict=True):
            heights = [bar.get_height() for bar in panel.patches]
            np.testing.assert_array_equal(heights, np.histogram(values, 7, limits)[0])
            assert panel.get_yscale() == "linear"
        assert (len({panel.get_ylim() for panel in row}) == 1) or not equal


@pytest.mark.slow
def test_grid_of_histograms():
    x = [[draw(3, 4), draw(9, seed=1)], [draw(2, 2, 5, seed=2), draw(30, seed=3)]]
    x[0][0][0, 0] = np.nan
    axes = plot.features_hist_v2(x, bins=6, row_names=["a", "b"], column_names=["c", "d"])
    for panels, row in zip(axes, x, strict=True):
        for panel, values in zip(panels, row, strict=True):
            heights = [bar.get_height() for bar in panel.patches]
            np.testing.assert_array_equal(heights, np.histogram(values[~np.isnan(values)], 6)[0])
    assert [panel.get_title() for panel in axes[0]] == ["c", "d"]
    assert [panel.get_ylabel() for panel in axes[:, 0]] == ["a", "b"]
    equal = plot.features_hist_v2(x, bins=6, equal_axes=True)
    assert len({panel.get_ylim() for panel in equal.flat}) == 1
    every = np.concatenate([values.ravel() for row in x for values in row])
    limits = np.nanmin(every), np.nanmax(every)
    heights = [bar.get_height() for bar in equal[1, 1].patches]
    np.testing.assert_array_equal(heights, np.histogram(x[1][1], 6, limits)[0])
    middle = plot.features_hist_v2(np.abs(draw(1, 1, 20)), center_zero=True)[0, 0]
    low, high = middle.get_xlim()
    assert low == -high
    given = plot.features_hist_v2(x, bins=5, limits=(-1, 1))[0, 1]
    heights = [bar.get_height() for bar in given.patches]
    np.testing.assert_array_equal(heights, np.histogram(x[0][1], 5, (-1, 1))[0])


def test_clipped_peaks_are_annotated():
    x = np.concatenate([np.zeros(500), np.full(200, 1.0), np.linspace(-1, 1, 60)])
    panel = plot.hist_clipped(x, bins=8, peaks=2)
    counts = np.histogram(x, 8)[0]
    np.testing.assert_array_equal([bar.get_height() for bar in panel.patches], counts)
    highest = sorted(counts, reverse=True)
    assert [text.get_text() for text in panel.texts] == [str(n) for n in highest[:2]]
    assert highest[2] < panel.get_ylim()[1] < highest[1]
    for text, height in zip(panel.texts, highest, strict=False):
        [bar] = [bar for bar in panel.patches if bar.get_height() == height]
        assert text.xy[0] == bar.get_x() + bar.get_width() / 2
    whole = plot.hist_clipped(x, bins=8, peaks=0)
    assert not whole.texts
    assert whole.get_ylim()[1] > highest[0]


def test_reversed_half_of_features():
    x = draw(2, 7, 6)
    panels = plot.features_2d(x, reverse_half=True, max_steps=4)
    expected = np.concatenate([x[..., :3], x[:, ::-1, 3:]], axis=-1)[:, :4]
    for panel, values in zip(panels, expected, strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), values)
    turned = plot.features_2d(x[0].T, channel_axis=-2, reverse_half=True, max_steps=4)
    np.testing.assert_array_equal(turned.images[0].get_array(), expected[0].T)


@pytest.mark.slow
def test_limits_and_centre_of_histograms():
    x = np.abs(draw(50, 2)) + 0.1
    for panel, values in zip(plot.features_hist(x, bins=4, limits=(0, 1)), x.T, strict=True):
        heights = [bar.get_height() for bar in panel.patches]
        np.testing.assert_array_equal(heights, np.histogram(values, 4, (0, 1))[0])
        assert len(panel.get_lines()) == 1  # zero is within the limits
    low, high = plot.features_hist(x, center_zero=True)[0].get_xlim()
    assert low == -high


def test_gates_over_time():
    gates = LSTMGates(*(np.abs(draw(4, 6, 3)).clip(0, 1)))
    gates = dataclasses.replace(gates, cell=np.tanh(draw(6, 3)))
    axes = plot.gate_activations(gates)
    assert [panel.get_title(loc="left") for panel in axes] == list(LSTM)
    for panel, (gate, values) in zip(axes, gates.items(), strict=True):
        [picture] = panel.images
        np.testing.assert_array_equal(picture.get_array(), values.T)
        assert picture.get_clim() == ((-1.0, 1.0) if gate == "cell" else (0.0, 1.0))
        assert tuple(picture.get_extent()) == (-0.5, 5.5, 2.5, -0.5)
    timed = plot.gate_activations({"update": gates.input}, time=(2.0, 12.0), colorbar=False)
    assert tuple(timed[0].images[0].get_extent()) == (1.0, 13.0, 2.5, -0.5)
    assert plot.gate_activations(gates, limit=3.0)[0].images[0].get_clim() == (0.0, 3.0)
    small = plot.gate_activations({"update": 1e-3 * draw(6, 3)})[0].images[0]
    assert small.get_clim()[1] == np.abs(1e-3 * draw(6, 3)).max()


def test_trajectories_are_principal_components():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(5, 5)))[0][:2]
    plane = rng.normal(size=(2, 8, 2)) * [3.0, 0.5]
    plane -= plane.mean((0, 1))
    states = plane @ directions + rng.normal(size=5)
    panel = plot.state_trajectories(states, sample_names=["a", "b"])
    drawn = np.stack([line.get_xydata() for line in panel.get_lines()])
    # Distances in the plane are those of the states, which lie in a plane.
    flat, original = drawn.reshape(-1, 2), states.reshape(-1, 5)
    np.testing.assert_allclose(
        np.linalg.norm(flat[:, None] - flat, axis=-1),
        np.linalg.norm(original[:, None] - original, axis=-1),
        atol=1e-10,
    )
    covariance = np.cov(flat.T)
    assert abs(covariance[0, 1]) < 1e-10
    share = covariance[0, 0] / np.trace(covariance)
    assert panel.get_xlabel() == f"component 1 ({share:.0%} of variance)"
    shared = plot.state_trajectories(states, sample_names=["a", "a"])
    assert len({line.get_color() for line in shared.get_lines()}) == 1
    assert [text.get_text() for text in shared.get_legend().get_texts()] == ["a"]
    starts = panel.collections[0].get_offsets(), panel.collections[1].get_offsets()
    np.testing.assert_array_equal(starts, [[drawn[0, 0]], [drawn[0, -1]]])


def test_memory_reach_has_a_logarithmic_axis_of_lines():
    norms = 0.5 ** np.arange(6)
    one = MemoryReach(norms, np.array(4.0), "rnn")
    panel = plot.memory_reach(one)
    norm, end = panel.get_lines()
    np.testing.assert_array_equal(norm.get_xydata(), np.stack([np.arange(1, 6), norms[1:]], 1))
    assert set(end.get_xdata()) == {4.0}
    assert panel.get_yscale() == "log"
    assert not panel.patches
    endless = dataclasses.replace(one, steps=np.array(np.inf))
    panel = plot.memory_reach({"a": one, "b": endless})
    assert len(panel.get_lines()) == 3
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["a", "b"]


WEIGHTS = lstm_weights()
REACH = MemoryReach(np.ones(1), np.array(1.0), "rnn")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.rnn_heatmap(WEIGHTS, parts=["kernels"]), "`parts` must be some of ['kernel'"),
        (lambda: plot.rnn_heatmap([]), "`weights` must hold at least one layer"),
        (lambda: plot.rnn_heatmap([WEIGHTS, gru_weights()]), "`weights` must have the same gates"),
        (lambda: plot.rnn_heatmap(WEIGHTS, limit=0.0), "`limit` must be a positive number, got 0"),
        (lambda: plot.rnn_histogram(WEIGHTS, bins=0), "`bins` must be at least 1, got 0"),
        (
            lambda: plot.rnn_histogram(
                dataclasses.replace(WEIGHTS, bias=LSTMGates(*np.full((4, 5), np.nan)))
            ),
            "`weights` must have a finite value in the bias of 'rnn_0'",
        ),
        (
            lambda: plot.rnn_heatmap(
                dataclasses.replace(WEIGHTS, bias=LSTMGates(*np.zeros((4, 2, 2, 5))))
            ),
            "`weights` must be those of one layer, of shape (D, H) or (H,), got (2, 2, 5)",
        ),
        (lambda: plot.features_hist_v2([[draw(3)], []]), "`x` must have R rows of C arrays each"),
        (lambda: plot.features_hist_v2([[np.full(3, np.nan)]]), "`x` must have a number in each"),
        (lambda: plot.features_hist_v2([[draw(3)]], limits=(1, 0)), "`limits` must be (min, max)"),
        (lambda: plot.features_hist_v2([[draw(3)]], row_names=[]), "`row_names` must have one"),
        (lambda: plot.hist_clipped(draw(9), bins=3, peaks=3), "`peaks` must lie between 0 and"),
        (lambda: plot.features_2d(draw(4, 3), reverse_half=True), "`reverse_half` must be False"),
        (lambda: plot.features_2d(draw(4, 3), max_steps=0), "`max_steps` must be at least 1, got"),
        (lambda: plot.features_2d(draw(4, 3), channel_axis=0), "`channel_axis` must be -1 or -2"),
        (lambda: plot.features_hist(draw(9), limits=(1, 1)), "`limits` must be (min, max)"),
        (lambda: plot.gate_activations({"update": draw(3)}), "`gates` must have shape (T, H)"),
        (lambda: plot.gate_activations({"new": draw(3, 2) * np.nan}), "`gates` must be finite"),
        (lambda: plot.state_trajectories(draw(5, 1)), "`states` must have shape (T, H) or"),
        (lambda: plot.state_trajectories(draw(5, 2), sample_names=[]), "`sample_names` must have"),
        (lambda: plot.memory_reach(REACH), "`reach` must have norms of shape (T,), T of at least"),
    ],
)
def test_invalid_inputs_raise(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
