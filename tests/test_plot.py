"""Tests of figures: drawn values, scales, labels, the `ax` argument and errors."""

import ast
import io
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import jaxattn as ja
from jaxattn import plot

RNG = np.random.default_rng(0)
PICTURE = RNG.uniform(size=(5, 6)).astype(np.float32)
PICTURES = RNG.uniform(size=(3, 5, 6)).astype(np.float32)
HEAT = RNG.normal(size=(5, 6)).astype(np.float32)
HEATS = RNG.normal(size=(3, 5, 6)).astype(np.float32)
TRACE, TRACE_HEAT = RNG.normal(size=(2, 7)).astype(np.float32)
CHANNELS, CHANNELS_HEAT = RNG.normal(size=(2, 7, 2)).astype(np.float32)
TRACE_HEATS = RNG.normal(size=(3, 7)).astype(np.float32)
CHANNELS_HEATS = RNG.normal(size=(3, 7, 2)).astype(np.float32)
LOWER = np.tril(RNG.uniform(1, 2, size=(4, 4))).astype(np.float32)
SCORES = RNG.uniform(size=(7, 3)).astype(np.float32)
FRACTIONS = np.linspace(0, 1, 7, dtype=np.float32)

# A function, its arguments (optional input, values) and the shape of the Axes it returns.
CASES = {
    "attention": (plot.attention, (HEAT,), ()),
    "attention_heads": (plot.attention_heads, (HEATS,), (3,)),
    "image": (plot.image, (PICTURE, HEAT), ()),
    "images": (plot.images, (PICTURES, HEATS), (3,)),
    "window image": (lambda x, v, **k: plot.window(x, v, (2, 3), **k), (PICTURE, HEAT), ()),
    "window series": (lambda x, v, **k: plot.window(x, v, 3, **k), (TRACE, TRACE_HEAT), ()),
    "window channels": (
        lambda x, v, **k: plot.window(x, v, 3, **k),
        (CHANNELS, CHANNELS_HEAT),
        (2,),
    ),
    "jacobian image": (plot.jacobian, (PICTURE, HEATS), (3,)),
    "jacobian series": (plot.jacobian, (TRACE, TRACE_HEATS), (3,)),
    "jacobian channels": (
        lambda x, v, **k: plot.jacobian(x, v, kind="series", **k),
        (CHANNELS, CHANNELS_HEATS),
        (3, 2),
    ),
    "temporal_jacobian": (plot.temporal_jacobian, (LOWER,), ()),
    "temporal_jacobian log": (
        lambda v, **k: plot.temporal_jacobian(v, log=True, **k),
        (LOWER,),
        (),
    ),
    "series": (plot.series, (TRACE, TRACE_HEAT), ()),
    "series channels": (plot.series, (CHANNELS, CHANNELS_HEAT), (2,)),
    "comparison image": (
        lambda x, v, **k: plot.comparison(x, {"a": v, "b": v}, **k),
        (PICTURE, HEAT),
        (3,),
    ),
    "comparison series": (
        lambda x, v, **k: plot.comparison(x, {"a": v, "b": v}, **k),
        (TRACE, TRACE_HEAT),
        (2,),
    ),
    "comparison channels": (
        lambda x, v, **k: plot.comparison(x, {"a": v, "b": v}, kind="series", **k),
        (CHANNELS, CHANNELS_HEAT),
        (2, 2),
    ),
    "comparison_grid image": (
        lambda x, v, **k: plot.comparison_grid(x, {"a": v, "b": v}, **k),
        (PICTURES, HEATS),
        (3, 3),
    ),
    "comparison_grid series": (
        lambda x, v, **k: plot.comparison_grid(x, {"a": v, "b": v}, **k),
        (TRACE_HEATS, TRACE_HEATS),
        (3, 2),
    ),
    "score_over_time": (plot.score_over_time, (SCORES,), ()),
    "score_over_time input": (
        lambda x, v, **k: plot.score_over_time(v, x=x, **k),
        (CHANNELS, SCORES),
        (),
    ),
    "curve": (lambda x, v, **k: plot.curve(x, {"a": v}, **k), (FRACTIONS, SCORES.T), ()),
}
every_case = pytest.mark.parametrize(("draw", "arrays", "shape"), CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def leave_pyplot_alone(monkeypatch):
    """Fail if a test shows a figure or changes rcParams."""
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show was called"))
    before = mpl.rcParams.copy()
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == dict(before)


def numbers(axes):
    """Return all arrays, limits and coordinates drawn in the panels."""
    found = []
    for ax in np.ravel(axes):
        found += [artist.get_array() for artist in [*ax.images, *ax.collections]]
        found += [[a.norm.vmin, a.norm.vmax] for a in ax.images]
        found += [line.get_xydata() for line in ax.lines]
        found += [patch.get_bbox().bounds for patch in ax.patches]
    return [np.asarray(f, float) for f in found if f is not None]


DRAWN = {}


def drawn_alone(draw, arrays):
    """Return the numbers of a new figure, cached for all tests."""
    case = (draw, id(arrays))
    if case not in DRAWN:
        DRAWN[case] = numbers(draw(*arrays))
    return DRAWN[case]


def bars(figure):
    """Return the colour bars of a figure, inset or not."""
    inset = [child for ax in figure.axes for child in ax.child_axes]
    return [ax for ax in figure.axes if ax.get_label() == "<colorbar>"] + inset


def test_every_public_function_is_covered():
    # Panels and Text are classes. The other functions have test files of their own.
    others = """Panels Text text captions glimpses features_0d features_1d features_2d features_hist
        features_hist_v2 hist_clipped rnn_heatmap rnn_histogram gate_activations state_trajectories
        memory_reach"""
    assert {name.split()[0] for name in CASES} == set(plot.__all__) - set(others.split())


def test_imports_nothing_but_numpy_and_matplotlib():
    allowed = {"jaxattn.plot", "numpy", "matplotlib", "jaxtyping", *sys.stdlib_module_names}
    for path in Path(plot.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                names = [node.module]
            for name in names:
                own = name.startswith("jaxattn.plot")
                assert own or name.partition(".")[0] in allowed, f"{path.name}: {name}"


GATES = {"update": np.eye(3), "new": -np.eye(3)}
WEIGHTS = types.SimpleNamespace(kernel=GATES, recurrent=GATES, bias=GATES, layer="gru")
REACH = types.SimpleNamespace(norms=np.ones(4), steps=2.0)

# Functions tested in other files; here only the type of their results is tested.
OTHERS = {
    "captions": (lambda: plot.captions(PICTURE, ["a", "b"], np.ones((2, 4))), (3,)),
    "features_0d": (lambda: plot.features_0d(TRACE), ()),
    "features_1d": (lambda: plot.features_1d(CHANNELS), (2,)),
    "features_2d": (lambda: plot.features_2d(CHANNELS), ()),
    "features_2d samples": (lambda: plot.features_2d(PICTURES), (3,)),
    "features_hist": (lambda: plot.features_hist(TRACE), ()),
    "features_hist channels": (lambda: plot.features_hist(CHANNELS), (2,)),
    "features_hist_v2": (lambda: plot.features_hist_v2([[TRACE, TRACE]]), (1, 2)),
    "gate_activations": (lambda: plot.gate_activations(GATES), (2,)),
    "hist_clipped": (lambda: plot.hist_clipped(TRACE), ()),
    "memory_reach": (lambda: plot.memory_reach(REACH), ()),
    "rnn_heatmap": (lambda: plot.rnn_heatmap(WEIGHTS), (3, 2)),
    "rnn_histogram": (lambda: plot.rnn_histogram(WEIGHTS), (3, 2)),
    "state_trajectories": (lambda: plot.state_trajectories(CHANNELS), ()),
    "glimpses": (lambda: plot.glimpses(PICTURE, [[0, 0], [0.5, 0.5]], 2), ()),
    "text": (lambda: plot.text("abc", [1, 2, 3]).draw(), ()),
}
RESULTS = OTHERS | {
    name: (lambda draw=draw, arrays=arrays: draw(*arrays), shape)
    for name, (draw, arrays, shape) in CASES.items()
}


def test_result_type_test_covers_every_public_function():
    assert {name.split()[0] for name in RESULTS} == set(plot.__all__) - {"Panels", "Text"}


@pytest.mark.representatives(
    "captions",
    "features_1d",
    "features_2d",
    "features_hist",
    "text",
    "attention_heads",
    "image",
    "jacobian channels",
    "series",
    "curve",
)
@pytest.mark.parametrize(("draw", "shape"), RESULTS.values(), ids=RESULTS)
def test_results_are_axes_or_panels_of_one_new_figure(draw, shape):
    before = set(plt.get_fignums())
    drawn = draw()
    assert isinstance(drawn, plot.Panels if shape else Axes)
    assert np.shape(drawn) == shape
    assert all(isinstance(ax, Axes) and ax.figure is drawn.figure for ax in np.ravel(drawn))
    assert set(plt.get_fignums()) - before == {drawn.figure.number}
    picture = io.BytesIO()
    drawn.figure.savefig(picture, dpi=20)
    assert picture.getvalue().startswith(b"\x89PNG")


@every_case
@pytest.mark.representatives(
    "comparison_grid image", "jacobian series", "series", "image", "attention", "curve"
)
def test_ax_argument_is_used_without_new_figure(draw, arrays, shape):
    figure = mpl.figure.Figure()
    own = figure.subplots(*(shape or (1, 1)), squeeze=False).reshape(shape)
    own = own if shape else own.item()
    axes = draw(*arrays, ax=own)
    assert np.array_equal(axes, own)
    assert not plt.get_fignums()
    for ours, theirs in zip(numbers(axes), drawn_alone(draw, arrays), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@every_case
def test_axes_of_other_shape_raise(draw, arrays, shape):
    with pytest.raises(ValueError, match=r"^`ax` must be"):
        draw(*arrays, ax=np.full((*shape, 4), None))
    assert not plt.get_fignums()


@every_case
@pytest.mark.representatives(
    "comparison_grid series",
    "jacobian image",
    "series",
    "image",
    "attention",
    "curve",
    "window image",
    "score_over_time",
)
def test_accepts_jax_arrays_and_attributions(draw, arrays, shape):
    *x, values = arrays
    want = drawn_alone(draw, arrays)
    values = jnp.asarray(values)
    for found in (values, ja.Attribution(values, jnp.zeros(len(values)))):
        axes = draw(*map(jnp.asarray, x), found)
        for ours, theirs in zip(numbers(axes), want, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@every_case
@pytest.mark.representatives(
    "jacobian series",
    "comparison image",
    "series channels",
    "image",
    "temporal_jacobian log",
    "attention",
    "curve",
    "score_over_time",
)
def test_zeros_can_be_drawn(draw, arrays, shape):
    *x, values = arrays
    axes = draw(*x, np.zeros_like(values))
    np.ravel(axes)[0].figure.draw_without_rendering()
    shown = numbers(axes)
    assert shown and all(np.isfinite(each).all() for each in shown)
    # The scale of all zeros is not degenerate.
    scales = [(a.norm.vmin, a.norm.vmax) for ax in np.ravel(axes) for a in ax.images]
    assert all(low < high for low, high in scales)


@every_case
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_raise(draw, arrays, shape, bad):
    for i, array in enumerate(arrays):
        broken = array.copy()
        broken.flat[3] = bad
        with pytest.raises(ValueError, match=r"^`\w+(\[.*\])?` must be finite, got 1 NaN or inf"):
            draw(*arrays[:i], broken, *arrays[i + 1 :])
    assert not plt.get_fignums()


def test_image_draws_input_and_attribution():
    ax = plot.image(PICTURE, HEAT)
    below, above = ax.images
    np.testing.assert_array_equal(below.get_array(), PICTURE)
    np.testing.assert_array_equal(above.get_array(), HEAT)
    largest = float(np.abs(HEAT).max())
    assert (above.norm.vmin, above.norm.vmax) == (-largest, largest)
    np.testing.assert_allclose(above.get_alpha(), 0.9 * np.sqrt(np.abs(HEAT) / largest), rtol=1e-6)
    [bar] = bars(ax.figure)
    assert bar.get_ylim() == (-largest, largest)


def test_limit_sets_colour_scale():
    above = plot.image(PICTURE, HEAT, limit=0.5).images[1]
    assert (above.norm.vmin, above.norm.vmax) == (-0.5, 0.5)
    assert above.get_alpha().max() == 0.9  # saturated, not beyond


@pytest.mark.parametrize(("sign", "wanted"), [(1, (0, 2)), (-1, (-2, 0))])
def test_colour_bar_range_is_the_sign_present(sign, wanted):
    ax = plot.image(PICTURE, sign * np.abs(HEAT), limit=2.0)
    assert bars(ax.figure)[0].get_ylim() == wanted


@pytest.mark.parametrize("sign", [1, -1])
def test_scales_are_sequential_if_unsigned_and_diverging_if_signed(sign):
    def scale(artist):
        return artist.cmap.name, artist.norm.vmin, artist.norm.vmax

    heat, trace = sign * np.abs(HEAT), sign * np.abs(TRACE_HEAT)
    want = ("Purples", 0) if sign == 1 else ("RdBu_r", -1)
    image = plot.image(PICTURE, heat / np.abs(heat).max())
    series = plot.series(TRACE, trace / np.abs(trace).max())
    [several] = plot.images([PICTURE], [heat], shared_scale=False)
    for artist in (image.images[1], several.images[1], series.collections[0]):
        assert scale(artist) == (*want, 1)
    assert plot.image(PICTURE, heat, cmap="magma").images[1].cmap.name == "magma"


def test_signed_and_unsigned_methods_have_separate_scales():
    methods = {"signed": HEATS, "unsigned": np.abs(HEATS)}
    grid = plot.comparison_grid(PICTURES, methods)
    panels = plot.comparison(PICTURE, {name: heats[0] for name, heats in methods.items()})
    for row in (*grid, panels):
        signed, unsigned = (panel.images[1] for panel in row[1:])
        assert (signed.cmap.name, signed.norm.vmin, signed.norm.vmax) == ("RdBu_r", -1, 1)
        assert (unsigned.cmap.name, unsigned.norm.vmin, unsigned.norm.vmax) == ("Purples", 0, 1)
    for axes in (grid, panels):
        texts = [bar.get_ylabel().replace("\n", " ") for bar in bars(axes.figure)]
        labels = sorted(text.rpartition(",")[2].strip().replace("- ", "-") for text in texts)
        assert labels == ["non-negative", "signed"]
    [_, *shared] = plot.comparison(PICTURE, {"a": HEAT, "b": np.abs(HEAT)}, cmap="bwr")
    assert {(panel.images[1].cmap.name, panel.images[1].norm.vmin) for panel in shared} == {
        ("bwr", -1)
    }


def test_image_sums_channels():
    colours = RNG.uniform(size=(5, 6, 3))
    values = RNG.normal(size=(5, 6, 3))
    below, above = plot.image(colours, values).images
    np.testing.assert_array_equal(below.get_array(), colours)
    np.testing.assert_array_equal(above.get_array(), values.sum(-1))
    whole = plot.image((255 * colours).astype(np.uint8), values).images[0]
    np.testing.assert_array_equal(whole.get_array(), (255 * colours).astype(np.uint8) / 255)
    stretched = plot.image(4 * colours - 2, values).images[0].get_array()
    assert (stretched.min(), stretched.max()) == (0, 1)


def test_images_share_one_scale():
    axes = plot.images(PICTURES, HEATS, titles=["a", "b", "c"])
    largest = float(np.abs(HEATS).max())
    for ax, picture, heat in zip(axes, PICTURES, HEATS, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), picture)
        np.testing.assert_array_equal(ax.images[1].get_array(), heat)
        assert ax.images[1].norm.vmax == largest == -ax.images[1].norm.vmin
    assert [ax.get_title() for ax in axes] == ["a", "b", "c"]
    assert len(bars(axes[0].figure)) == 1


def test_images_with_separate_scales():
    axes = plot.images(PICTURES, HEATS, shared_scale=False)
    for ax, heat in zip(axes, HEATS, strict=True):
        shown = ax.images[1]
        np.testing.assert_allclose(shown.get_array(), heat / np.abs(heat).max(), rtol=1e-6)
        assert (shown.norm.vmin, shown.norm.vmax) == (-1, 1)


@pytest.mark.parametrize("shape", [(7,), (7, 1)])
def test_series_colours_are_the_values(shape):
    ax = plot.series(TRACE.reshape(shape), TRACE_HEAT.reshape(shape), sampling_rate=10.0)
    [band], [line] = ax.collections, ax.lines
    np.testing.assert_array_equal(band.get_array(), TRACE_HEAT)
    np.testing.assert_array_equal(line.get_xydata(), np.stack([np.arange(7) / 10, TRACE], 1))
    # The middle point of a segment is its step; its ends lie halfway to the neighbours.
    np.testing.assert_array_equal([s[1] for s in band.get_segments()], line.get_xydata())
    largest = float(np.abs(TRACE_HEAT).max())
    assert (band.norm.vmin, band.norm.vmax) == (-largest, largest)
    assert ax.get_xlabel() == "time (s)"


def test_channels_share_one_scale():
    axes = plot.series(CHANNELS, CHANNELS_HEAT, channel_names=["I", "II"])
    for d, ax in enumerate(axes):
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), CHANNELS[:, d])
        np.testing.assert_array_equal(ax.collections[0].get_array(), CHANNELS_HEAT[:, d])
        assert ax.collections[0].norm.vmax == np.abs(CHANNELS_HEAT).max()
    assert [ax.get_ylabel() for ax in axes] == ["I", "II"]


def test_ax_argument_keeps_tick_labels():
    upper, _ = mpl.figure.Figure().subplots(2, 1)
    plot.series(TRACE, TRACE_HEAT, ax=upper)
    assert upper.xaxis.get_tick_params()["labelbottom"]


@pytest.mark.parametrize("corner", [(0, 0), (1, 2), (3, 3)])
def test_window_marks_planted_square(corner):
    row, column = corner
    values = np.full((5, 6), 0.1)
    values[row : row + 2, column : column + 3] += 1
    box = plot.window(PICTURE, values, (2, 3)).patches[-1]
    assert isinstance(box, Rectangle)
    assert box.get_bbox().bounds == (column - 0.5, row - 0.5, 3, 2)


@pytest.mark.parametrize("start", [0, 2, 4])
@pytest.mark.parametrize("rate", [None, 4.0])
def test_window_marks_planted_span(start, rate):
    values = np.full((7, 2), 0.1)
    values[start : start + 3, 1] += 1
    for ax in plot.window(CHANNELS, values, (3,), sampling_rate=rate):
        left, _, width, _ = ax.patches[-1].get_bbox().bounds
        assert (left, width) == ((start - 0.5) / (rate or 1), 3 / (rate or 1))


def test_window_ties_select_the_first():
    box = plot.window(np.zeros((9, 9)), np.full((9, 9), 0.1), (3, 3)).patches[-1]
    assert box.get_xy() == (-0.5, -0.5)


@pytest.mark.parametrize("outputs", [None, [0.5, 2, 0]])
def test_jacobian_draws_one_panel_per_class(outputs):
    found = HEATS if outputs else ja.Attribution(jnp.asarray(HEATS), jnp.array([0.5, 2, 0]))
    axes = plot.jacobian(PICTURE, found, outputs=outputs, class_names=list("abc"))
    for ax, heat in zip(axes, HEATS, strict=True):
        np.testing.assert_array_equal(ax.images[1].get_array(), heat)
        assert ax.images[1].norm.vmax == np.abs(HEATS).max()
    assert [ax.get_title() for ax in axes] == ["a: 0.5", "b: 2", "c: 0"]


def test_jacobian_highlights_one_class():
    axes = plot.jacobian(TRACE, TRACE_HEATS, highlight=1)
    assert [ax.title.get_fontweight() == "bold" for ax in axes] == [False, True, False]
    for ax, heat in zip(axes, TRACE_HEATS, strict=True):
        np.testing.assert_array_equal(ax.collections[0].get_array(), heat)


def test_temporal_jacobian_reduces_outputs_and_channels():
    every = RNG.normal(size=(4, 3, 4, 2))
    shown = plot.temporal_jacobian(every).images[0]
    want = np.linalg.norm(every, axis=(1, 3))
    np.testing.assert_allclose(shown.get_array(), want, rtol=1e-12)
    assert (shown.norm.vmin, shown.norm.vmax) == (0, want.max())
    assert not np.ma.getmaskarray(shown.get_array()).any()


@pytest.mark.parametrize("log", [False, True])
def test_temporal_jacobian_masks_zero_future(log):
    norms = LOWER.copy()
    norms[3, 0] = 0
    shown = plot.temporal_jacobian(norms, log=log).images[0]
    hidden = np.triu(np.ones((4, 4), bool), 1)
    hidden[3, 0] = log  # zero has no logarithm
    np.testing.assert_array_equal(np.ma.getmaskarray(shown.get_array()), hidden)
    np.testing.assert_array_equal(shown.get_array()[~hidden], norms[~hidden])
    assert shown.norm.vmin == norms[~hidden].min()


def test_comparison_normalizes_by_largest_magnitude():
    methods = {"a": HEATS[0], "b": 1000 * HEATS[1]}
    first, *rest = plot.comparison(PICTURE, methods)
    np.testing.assert_array_equal(first.images[0].get_array(), PICTURE)
    for ax, heat in zip(rest, methods.values(), strict=True):
        assert ax.images[1].norm.vmax == 1
        np.testing.assert_allclose(ax.images[1].get_array(), heat / np.abs(heat).max(), rtol=1e-6)
    assert [ax.get_title() for ax in [first, *rest]] == ["input", "a", "b"]


def test_comparison_on_one_scale():
    methods = {"a": TRACE_HEATS[0], "b": 1000 * TRACE_HEATS[1]}
    for ax, heat in zip(
        plot.comparison(TRACE, methods, normalize=False), methods.values(), strict=True
    ):
        [band] = ax.collections
        np.testing.assert_array_equal(band.get_array(), heat)
        assert band.norm.vmax == np.abs(methods["b"]).max()


def texts(axes, series):
    return [ax.get_title("right") if series else ax.get_xlabel() for ax in np.ravel(axes)]


def test_comparison_labels_scores_once():
    scores, label = {"b": 0.1234, "c": "best"}, "deletion"
    pictures = plot.comparison(
        PICTURE, dict(zip("abc", HEATS, strict=True)), scores=scores, score_label=label
    )
    assert texts(pictures, False) == ["deletion", "", "0.123", "best"]
    traces = plot.comparison(
        TRACE, dict(zip("abc", TRACE_HEATS, strict=True)), scores=scores, score_label=label
    )
    assert texts(traces, True) == ["", "deletion: 0.123", "best"]


def test_comparison_grid_labels_scores_once():
    scores = {"b": [1.0, 2.0, 3.0]}
    grid = plot.comparison_grid(
        PICTURES, {"a": HEATS, "b": HEATS}, scores=scores, score_label="fall of the logit"
    )
    assert texts(grid[:, 0], False) == ["fall of the logit", "", ""]
    assert texts(grid[:, 2], False) == ["1", "2", "3"]
    grid = plot.comparison_grid(
        TRACE_HEATS, {"a": TRACE_HEATS, "b": TRACE_HEATS}, scores=scores, score_label="fall"
    )
    assert texts(grid[:, 1], True) == ["fall: 1", "2", "3"]


def test_comparison_grid_rows_are_inputs_and_columns_methods():
    grid = plot.comparison_grid(PICTURES, {"a": HEATS, "b": list(-HEATS)}, normalize=False)
    for b, (first, a, b_) in enumerate(grid):
        np.testing.assert_array_equal(first.images[0].get_array(), PICTURES[b])
        np.testing.assert_array_equal(a.images[1].get_array(), HEATS[b])
        np.testing.assert_array_equal(b_.images[1].get_array(), -HEATS[b])
        assert a.images[1].norm.vmax == b_.images[1].norm.vmax == np.abs(HEATS).max()


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_score_over_time_draws_one_line_per_class(direction):
    ax = plot.score_over_time(
        SCORES, x=CHANNELS, time=2 * np.arange(7), direction=direction, class_names=list("abc")
    )
    for k, line in enumerate(ax.lines):
        np.testing.assert_array_equal(line.get_xdata(), 2 * np.arange(7))
        np.testing.assert_array_equal(line.get_ydata(), SCORES[:, k])
    assert len({line.get_color() for line in ax.lines}) == 3
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "c"]
    assert {"forward": "up to", "backward": "from"}[direction] in ax.get_xlabel()
    behind = ax.figure.axes[1]
    np.testing.assert_array_equal(behind.collections[0].get_array(), CHANNELS.T)


def test_curve_draws_means_standard_errors_and_areas():
    every = np.array([[0, 1, 2], [2, 3, 4.0]])
    ax = plot.curve([0, 1, 3], {"mean": every, "one": [1, 1, 1]})
    mean, one = ax.lines
    np.testing.assert_array_equal(mean.get_xydata(), [[0, 1], [1, 2], [3, 3]])
    np.testing.assert_array_equal(one.get_ydata(), [1, 1, 1])
    [band] = ax.collections  # the standard error of two rows that differ by 2 is 1
    corners = {tuple(point) for point in np.round(band.get_paths()[0].vertices, 9)}
    assert corners == {(0, 0), (0, 2), (1, 1), (1, 3), (3, 2), (3, 4)}
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["mean (AUC 2.167)", "one (AUC 1.000)"]


ab = {"a": HEAT, "b": HEAT}
ERRORS = {
    "`x` must be one image": lambda: plot.image(PICTURE[0], HEAT[0]),
    "`x` must be one image, ": lambda: plot.image(np.ones((5, 6, 2)), HEAT),
    "`values` must fit its image": lambda: plot.image(PICTURE, HEAT.T),
    "`values` must fit its image ": lambda: plot.image(PICTURE, np.ones((5, 6, 3))),
    "`limit` must be a positive": lambda: plot.image(PICTURE, HEAT, limit=0),
    "`x` must not be empty": lambda: plot.image(np.ones((0, 6)), np.ones((0, 6))),
    "`values` must be one array": lambda: plot.image(PICTURE, [[1], [1, 2]]),
    "`xs` must hold": lambda: plot.images([], []),
    r"`xs\[1\]` must be one image": lambda: plot.images([PICTURE, PICTURE[0]], HEATS[:2]),
    "`values` must have one entry": lambda: plot.images(PICTURES, HEATS[:2]),
    r"`values\[0\]` must fit": lambda: plot.images(PICTURES, HEATS.swapaxes(1, 2)),
    "`titles` must have one entry": lambda: plot.images(PICTURES, HEATS, titles=["a"]),
    "`columns` must be at least 1": lambda: plot.images(PICTURES, HEATS, columns=0),
    "`limit` must come with shared_scale": lambda: plot.images(
        PICTURES, HEATS, shared_scale=False, limit=1
    ),
    "`x` must be one series": lambda: plot.series(HEATS, HEATS),
    "`values` must have the shape of x": lambda: plot.series(TRACE, TRACE_HEAT[:-1]),
    "`time` must have shape": lambda: plot.series(TRACE, TRACE_HEAT, time=[1, 2]),
    "`time` must be finite": lambda: plot.series(TRACE, TRACE_HEAT, time=[np.nan] * 7),
    "`time` and `sampling_rate`": lambda: plot.series(TRACE, TRACE, time=TRACE, sampling_rate=1),
    "`sampling_rate` must be": lambda: plot.series(TRACE, TRACE_HEAT, sampling_rate=-1),
    "`channel_names` must": lambda: plot.series(CHANNELS, CHANNELS_HEAT, channel_names=["I"]),
    "`window` must fit": lambda: plot.window(PICTURE, HEAT, (6, 1)),
    "`window` must fit into": lambda: plot.window(TRACE, TRACE_HEAT, 0),
    "`window` must be an int": lambda: plot.window(TRACE, TRACE_HEAT, 2.5),
    "`window` must be an int, ": lambda: plot.window(PICTURE, HEAT, (1, 1, 1)),
    "`jacobian` must have shape": lambda: plot.jacobian(PICTURE, HEAT),
    "`class_names` must have": lambda: plot.jacobian(PICTURE, HEATS, class_names=["a"]),
    "`outputs` must have shape": lambda: plot.jacobian(PICTURE, HEATS, outputs=[1, 2]),
    "`outputs` must be finite": lambda: plot.jacobian(PICTURE, HEATS, outputs=[1, 2, np.nan]),
    "`highlight` must be a class": lambda: plot.jacobian(PICTURE, HEATS, highlight=3),
    "`kind` must be": lambda: plot.jacobian(PICTURE, HEATS, kind="text"),
    r"`jacobian` must have shape \(T": lambda: plot.temporal_jacobian(np.ones((4, 2, 3, 2))),
    r"`jacobian` must have shape \(T, K": lambda: plot.temporal_jacobian(np.ones(4)),
    "`values` must hold": lambda: plot.comparison(PICTURE, {}),
    r"`values\['b'\]` must fit": lambda: plot.comparison(PICTURE, {"a": HEAT, "b": HEAT.T}),
    "`scores` must be of methods": lambda: plot.comparison(PICTURE, ab, scores={"c": 1}),
    "`score_label` must come": lambda: plot.comparison(PICTURE, ab, score_label="fall"),
    "`columns` must be": lambda: plot.comparison(PICTURE, ab, columns=0),
    r"`xs\[0\]` must be one image": lambda: plot.comparison_grid(HEAT, {"a": HEAT}, kind="image"),
    r"`values\['a'\]` must have one": lambda: plot.comparison_grid(PICTURES, {"a": HEATS[:2]}),
    r"`scores\['a'\]` must have": lambda: plot.comparison_grid(
        PICTURES, {"a": HEATS}, scores={"a": [1]}
    ),
    "`xs` must be series of one": lambda: plot.comparison_grid(
        HEATS, {"a": HEATS}, kind="series"
    ),
    "`scores` must have shape": lambda: plot.score_over_time(HEATS),
    "`direction` must be": lambda: plot.score_over_time(SCORES, direction="up"),
    "`x` must have one step": lambda: plot.score_over_time(SCORES, x=TRACE[:-1]),
    "`class_names` must": lambda: plot.score_over_time(SCORES, class_names=["a"]),
    "`fractions` must have shape": lambda: plot.curve([0, 0, 1], {"a": [1, 2, 3]}),
    "`scores` must hold": lambda: plot.curve([0, 1], {}),
    r"`scores\['a'\]` must have shape": lambda: plot.curve([0, 1], {"a": [1, 2, 3]}),
}  # fmt: skip


@pytest.mark.parametrize(("message", "call"), ERRORS.items(), ids=ERRORS)
def test_invalid_arguments_raise(message, call):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
    assert not plt.get_fignums()


@pytest.mark.parametrize("values", [1j * HEAT, HEAT.astype(str), {"a": HEAT}])
def test_non_real_values_raise(values):
    with pytest.raises(TypeError, match=r"^`values` must be one array of real numbers"):
        plot.image(PICTURE, values)
