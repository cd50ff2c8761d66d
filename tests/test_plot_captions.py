"""Tests of figures of captions: panels, blur, outlines and errors."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxattn as ja

WORDS = ["a", "red", "seven"]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def picture(height=12, width=16):
    return np.random.default_rng(0).random((height, width, 3))


def weights(*shape):
    drawn = np.random.default_rng(1).random((3, *shape))
    return drawn / drawn.reshape(3, -1).sum(1).reshape(3, *[1] * len(shape))


def maps(axes):
    return [np.asarray(panel.images[1].get_array()) for panel in axes[1:]]


def test_panels_are_the_image_and_one_per_word():
    image = picture()
    axes = ja.plot.captions(image, WORDS, weights(3, 4), title="scene")
    assert axes.shape == (4,)
    assert [panel.get_title() for panel in axes] == ["scene", *WORDS]
    assert len(axes[0].images) == 1
    for panel in axes:
        np.testing.assert_array_equal(panel.images[0].get_array(), image)
        assert panel.get_xlim() == (-0.5, 15.5) and panel.get_ylim() == (11.5, -0.5)
    for panel in axes[1:]:
        assert panel.images[1].get_extent() == [-0.5, 15.5, 11.5, -0.5]


def test_unblurred_weights_are_blocks():
    drawn = weights(3, 4)
    for heat, want in zip(
        maps(ja.plot.captions(picture(), WORDS, drawn, blur=0.0)), drawn, strict=True
    ):
        assert heat.shape == (48, 64)
        np.testing.assert_array_equal(heat, want.repeat(16, 0).repeat(16, 1))
    small = ja.plot.captions(picture(), WORDS, drawn, upsample=2, blur=0.0)
    assert maps(small)[0].shape == (6, 8)


def test_flat_weights_are_reshaped_to_grid():
    drawn = weights(12)
    gridded = maps(ja.plot.captions(picture(), WORDS, drawn, grid=(3, 4), blur=0.0))
    np.testing.assert_array_equal(gridded[2][::16, ::16], drawn[2].reshape(3, 4))
    square = maps(ja.plot.captions(picture(), WORDS, weights(9), upsample=1, blur=0.0))
    assert square[0].shape == (3, 3)


def test_blur_is_gaussian_and_preserves_sum():
    one = np.zeros((3, 5, 5))
    one[:, 2, 2] = 1
    heat, *_ = maps(ja.plot.captions(picture(), WORDS, one, upsample=9, blur=3.0))
    # A block of 9 pixels blurred with sigma 3, at its centre and 9 pixels away from it.
    at = np.arange(-12, 13)
    kernel = np.exp(-0.5 * (at / 3.0) ** 2)
    kernel /= kernel.sum()
    centre, beside = (kernel[np.abs(at - shift) <= 4].sum() for shift in (0, 9))
    np.testing.assert_allclose(heat[22, 22], centre**2, rtol=1e-12)
    np.testing.assert_allclose(heat[22, 31], centre * beside, rtol=1e-12)
    np.testing.assert_allclose(heat[13, 31], beside**2, rtol=1e-12)
    for drawn in (one, weights(5, 5)):
        for heat, want in zip(maps(ja.plot.captions(picture(), WORDS, drawn)), drawn, strict=True):
            np.testing.assert_allclose(heat.sum(), 256 * want.sum(), rtol=1e-12)
    corner = np.zeros((3, 5, 5))
    corner[:, 0, 4] = 1
    heat, *_ = maps(ja.plot.captions(picture(), WORDS, corner))
    assert np.unravel_index(heat.argmax(), heat.shape) == (0, 79)


def test_largest_weight_is_unshaded():
    axes = ja.plot.captions(picture(), WORDS, weights(3, 4), blur=0.0)
    for panel in axes[1:]:
        shade = panel.images[1]
        drawn = np.asarray(shade.get_array())
        colours = shade.cmap(shade.norm(drawn))
        np.testing.assert_array_equal(colours[..., :3], 0)
        assert colours[..., 3][drawn == drawn.max()].max() == 0
        order = np.argsort(drawn.ravel())
        assert (np.diff(colours[..., 3].ravel()[order]) <= 0).all()
    [nothing] = ja.plot.captions(picture(), ["x"], np.zeros((1, 2, 2)), blur=0.0)[1:]
    assert nothing.images[1].norm.vmax == 1


def test_cells_are_outlined():
    cells = np.zeros((3, 4), bool)
    cells[0, 2:] = True
    axes = ja.plot.captions(picture(), WORDS, weights(3, 4), cells=[None, cells, ~cells])
    assert not axes[1].collections
    edges = {
        tuple(sorted(map(tuple, line)))
        for line in np.round(axes[2].collections[0].get_segments(), 9)
    }
    # Cells are 4 x 4 pixels, and pixel 0 begins at -0.5.
    assert edges == {
        ((7.5, -0.5), (11.5, -0.5)), ((11.5, -0.5), (15.5, -0.5)),
        ((7.5, 3.5), (11.5, 3.5)), ((11.5, 3.5), (15.5, 3.5)),
        ((7.5, -0.5), (7.5, 3.5)), ((15.5, -0.5), (15.5, 3.5)),
    }  # fmt: skip
    assert len(axes[3].collections[0].get_segments()) == 2 * 4 + 2 * 3 - 3 + 3


def test_wrong_words_have_mark_and_colour():
    axes = ja.plot.captions(picture(), WORDS, weights(2, 2), wrong=[False, False, True])
    assert [panel.get_title() for panel in axes[1:]] == ["a", "red", "✗ seven"]
    assert axes[2].title.get_color() != axes[3].title.get_color()


def test_words_are_not_parsed_as_math():
    axes = ja.plot.captions(picture(), ["$a$", " ", "b"], weights(2, 2), title="$x$")
    assert [panel.get_title() for panel in axes] == ["$x$", "$a$", "␣", "b"]
    assert not any(panel.title.get_parse_math() for panel in axes)


def test_ax_and_columns_arguments():
    _, own = plt.subplots(2, 4)
    axes = ja.plot.captions(picture(), WORDS, weights(2, 2), ax=own[1])
    assert all(a is b for a, b in zip(axes, own[1], strict=True))
    assert not own[0, 0].images
    rows = ja.plot.captions(picture(), WORDS, weights(2, 2), columns=2)
    assert rows[3].get_subplotspec().rowspan.start == 1
    assert len(rows[0].figure.axes) == 4


def test_grey_images():
    image = np.arange(6.0).reshape(2, 3, 1)
    axes = ja.plot.captions(image, ["x"], np.ones((1, 1, 1)))
    np.testing.assert_array_equal(axes[0].images[0].get_array(), image[..., 0])


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"words": WORDS[:2]},
            ValueError,
            "`weights` must have one entry for each of 2 words, got 3",
        ),
        ({"words": ["a", 1, "b"]}, TypeError, "`words` must be strings, got 1"),
        ({"weights": np.ones(4)}, ValueError, "`weights` must have shape (T, h, w) or (T, L)"),
        ({"weights": np.ones((3, 6))}, ValueError, "`grid` must have 6 places, got 2 x 2"),
        ({"weights": np.ones((3, 6)), "grid": (4, 2)}, ValueError, "`grid` must have 6 places"),
        ({"grid": (2, 3)}, ValueError, "`grid` must be (2, 2), as the weights are"),
        ({"weights": -np.ones((3, 2, 2))}, ValueError, "`weights` must not be negative, got -1"),
        ({"weights": np.full((3, 2, 2), np.nan)}, ValueError, "`weights` must be finite"),
        ({"upsample": 0}, ValueError, "`upsample` must be at least 1, got 0"),
        ({"blur": -1.0}, ValueError, "`blur` must be at least 0, got -1"),
        ({"cells": [None]}, ValueError, "`cells` must have one entry for each of 3 words, got 1"),
        (
            {"cells": [np.ones((2, 3), bool)] * 3},
            ValueError,
            "`cells` must be boolean of shape (2, 2)",
        ),
        ({"cells": [np.ones((2, 2))] * 3}, ValueError, "`cells` must be boolean of shape (2, 2)"),
        ({"wrong": [True]}, ValueError, "`wrong` must have one entry for each of 3 words, got 1"),
        ({"image": np.ones(4)}, ValueError, "`image` must be one image"),
    ],
)
def test_invalid_inputs_raise(changed, error, message):
    options = {"image": picture(), "words": WORDS, "weights": weights(2, 2)} | changed
    with pytest.raises(error, match=re.escape(message)):
        ja.plot.captions(
            options.pop("image"), options.pop("words"), options.pop("weights"), **options
        )
