"""Tests of figures of glimpses: boxes in pixels, axes, colours and errors."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from jaxattn import nn, plot

IMAGE = np.random.default_rng(0).uniform(size=(20, 30)).astype(np.float32)
PATH = np.random.default_rng(1).uniform(-1, 1, (5, 2)).astype(np.float32)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def boxes(ax):
    """Return top, left, bottom and right of each box, in pixels of the image."""
    found = [(p.get_y(), p.get_x(), p.get_height(), p.get_width()) for p in ax.patches]
    return np.array([(y + 0.5, x + 0.5, y + 0.5 + h, x + 0.5 + w) for y, x, h, w in found])


def test_boxes_by_hand():
    ax = plot.glimpses(IMAGE, np.array([[0.0, 0.0], [-1.0, 1.0]]), 8, scales=2)
    np.testing.assert_array_equal(
        boxes(ax),
        [(6, 11, 14, 19), (2, 7, 18, 23), (-4, 26, 4, 34), (-8, 22, 8, 38)],
    )
    # The centre of an image of 20 x 30 pixels lies between two pixels.
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [(14.5, 9.5), (29.5, -0.5)])
    assert [text.get_text() for text in ax.texts] == ["1", "2"]
    assert [text.get_position() for text in ax.texts] == [(14.5, 9.5), (29.5, -0.5)]
    np.testing.assert_array_equal(ax.images[0].get_array(), IMAGE)
    assert ax.get_xlim() == (-0.5, 29.5) and ax.get_ylim() == (19.5, -0.5)


@pytest.mark.parametrize(("size", "scales"), [(4, 1), (5, 2), (4, 3)])
def test_boxes_equal_sensor_boxes(size, scales):
    ax = plot.glimpses(IMAGE, PATH, size, scales=scales)
    expected = nn.glimpse_boxes(PATH, IMAGE.shape, size, scales)
    np.testing.assert_array_equal(boxes(ax), np.asarray(expected).reshape(-1, 4))


def test_ax_argument_and_colours():
    _, axes = plt.subplots(1, 2)
    drawn = plot.glimpses(np.stack([IMAGE] * 3, -1), PATH, 4, ax=axes[1], title="a path")
    assert drawn is axes[1] and not axes[0].patches
    assert drawn.get_title() == "a path"
    colours = np.array([patch.get_edgecolor() for patch in drawn.patches])
    assert len(np.unique(colours, axis=0)) == len(PATH)
    assert np.all(np.diff(colours[:, :3] @ (0.2126, 0.7152, 0.0722)) > 0)


WRONG = {
    "one location": ({"locations": PATH[0]}, r"`locations` must have shape \(n, 2\), got \(2,\)"),
    "NaN": ({"locations": PATH * np.nan}, "`locations` must be finite"),
    "no size": ({"size": 0}, "`size` must be at least 1, got 0"),
    "no scales": ({"scales": 0}, "`scales` must be at least 1, got 0"),
    "too small an image": ({"size": 21}, r"at least as large as a glimpse of 21 x 21.*\(20, 30\)"),
    "a batch": ({"image": np.zeros((2, 20, 30, 3))}, "`image` must be one image"),
}


@pytest.mark.parametrize(("changed", "message"), WRONG.values(), ids=WRONG)
def test_invalid_inputs_raise(changed, message):
    options = {"image": IMAGE, "locations": PATH, "size": 4} | changed
    with pytest.raises(ValueError, match=message):
        plot.glimpses(**options)
