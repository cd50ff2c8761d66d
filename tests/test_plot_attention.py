"""Tests of figures of attention matrices and of token labels."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba

import jaxattn as ja
from jaxattn.plot import lettering, style

WEIGHTS = np.random.default_rng(0).dirichlet(np.ones(4), 3)
IN, OUT = ["a", " ", "$x$", "שלום"], list("bcd")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def picture(ax):
    (image,) = ax.images
    return image


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_matrix_and_token_labels():
    ax = ja.plot.attention(WEIGHTS, IN, OUT, title="read", label="weight")
    np.testing.assert_array_equal(picture(ax).get_array(), WEIGHTS)
    assert picture(ax).norm.vmin == 0
    assert picture(ax).norm.vmax == WEIGHTS.max()
    assert ticks(ax.xaxis) == ["a", "␣", "$x$", "שלום"]
    assert ticks(ax.yaxis) == OUT
    assert ax.get_title() == "read"
    assert ax.figure.axes[1].get_ylabel() == "weight"
    assert all(not label.get_parse_math() for label in ax.get_xticklabels())


def test_accepts_attributions_and_single_rows():
    found = ja.Attribution(jnp.asarray(WEIGHTS), jnp.asarray(WEIGHTS[0]))
    drawn = picture(ja.plot.attention(found)).get_array()
    np.testing.assert_allclose(drawn, WEIGHTS, rtol=1e-6)
    assert picture(ja.plot.attention(WEIGHTS[0], IN)).get_array().shape == (1, 4)


def test_signed_weights_use_diverging_colours():
    image = picture(ja.plot.attention(WEIGHTS - 0.3))
    assert image.norm.vmin == -image.norm.vmax == -np.abs(WEIGHTS - 0.3).max()
    assert image.cmap.name == style.DIVERGING


def test_adjacent_marks_share_one_outline():
    marks = np.zeros((3, 4), bool)
    marks[1:, 2:] = True
    ax = ja.plot.attention(WEIGHTS, marks=marks)
    (lines,) = [c for c in ax.collections if c.get_linewidth()[0] > 1]
    ends = {tuple(map(tuple, np.sort(segment, axis=0))) for segment in lines.get_segments()}
    left = {((1.5, y - 0.5), (1.5, y + 0.5)) for y in (1, 2)}
    top = {((x - 0.5, 0.5), (x + 0.5, 0.5)) for x in (2, 3)}
    assert len(ends) == 8
    assert left | top < ends
    np.testing.assert_allclose(lines.get_colors()[0], to_rgba(style.HIGHLIGHT))


def test_values_are_written_into_cells():
    ax = ja.plot.attention(WEIGHTS, values=True)
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written == {(j, i): f"{w:.2f}" for (i, j), w in np.ndenumerate(WEIGHTS)}


def test_small_negative_values_are_written_as_zero():
    ax = ja.plot.attention([[-0.001, 1.0]], values=True)
    assert [text.get_text() for text in ax.texts] == ["0.00", "1.00"]


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_heads_share_one_scale(shape):
    heads = np.random.default_rng(1).dirichlet(np.ones(4), (*shape, 3))
    axes = ja.plot.attention_heads(heads, IN, OUT)
    assert axes.shape == shape
    for index, ax in np.ndenumerate(axes):
        np.testing.assert_array_equal(picture(ax).get_array(), heads[index])
        assert picture(ax).norm.vmax == heads.max()
        want = f"layer {index[0]}, head {index[1]}" if len(index) == 2 else f"head {index[0]}"
        assert ax.get_title() == want


def test_ax_argument_is_used():
    _, mine = plt.subplots()
    assert ja.plot.attention(WEIGHTS, ax=mine) is mine


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" ", "␣"), ("\n", "⏎"), ("\t", "⇥"), ("two words", "two words"), ("a\nb", "a⏎b"),
        ("\x00", "<0000>"), ("é", "é"), ("مرحبا", "مرحبا"), ("$x_1$", "$x_1$"), ("", ""),
        ("\u200fא", "\u200fא"), ("\ud800", "<D800>"),
    ],
)  # fmt: skip
def test_visible_token(token, shown):
    assert lettering.visible_token(token) == shown


def test_character_without_font_is_shown_as_code_point(monkeypatch):
    monkeypatch.setattr(lettering.font_manager.fontManager, "ttflist", [])
    lettering._family.cache_clear()
    assert lettering.visible_token("5年") == "5<5E74>"
    lettering._family.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        ((np.zeros((2, 2, 2)),), {}, ValueError, r"`weights` must have shape \(T_out, T_in\)"),
        ((WEIGHTS * np.nan,), {}, ValueError, "`weights` must be finite"),
        ((WEIGHTS, ["a"]), {}, ValueError, "`columns` must have one entry for each of 4 inputs"),
        (
            (WEIGHTS, None, ["a"]),
            {},
            ValueError,
            "`rows` must have one entry for each of 3 outputs",
        ),
        ((WEIGHTS, [1, 2, 3, 4]), {}, TypeError, "`columns` must be strings, got 1"),
        ((WEIGHTS,), {"marks": np.ones(3)}, ValueError, "`marks` must have the shape of weights"),
        ((WEIGHTS,), {"limit": 0}, ValueError, "`limit` must be a positive number"),
    ],
)
def test_invalid_matrices_raise(arguments, options, error, match):
    with pytest.raises(error, match=match):
        ja.plot.attention(*arguments, **options)


def test_invalid_heads_raise():
    with pytest.raises(ValueError, match=r"`weights` must have shape \(heads, T_out, T_in\)"):
        ja.plot.attention_heads(WEIGHTS)
    with pytest.raises(ValueError, match="`titles` must have one entry for each of 1 heads"):
        ja.plot.attention_heads(WEIGHTS[None], titles=["a", "b"])
