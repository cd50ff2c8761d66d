"""The attention of a captioning network, word by word."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from numpy.typing import ArrayLike

from jaxattn.plot import lettering, pictures, style
from jaxattn.plot.style import Panels

# Transparent at the largest weight, and darker for smaller ones.
SPOTLIGHT = LinearSegmentedColormap.from_list("spotlight", [(0, 0, 0, 0.85), (0, 0, 0, 0)])


def captions(
    image: ArrayLike,
    words: Sequence[str],
    weights: ArrayLike,
    *,
    grid: tuple[int, int] | None = None,
    upsample: int = 16,
    blur: float | None = None,
    cells: Sequence[ArrayLike | None] | None = None,
    wrong: Sequence[bool] | None = None,
    title: str | None = None,
    columns: int | None = None,
    ax: np.ndarray | None = None,
) -> Panels:
    """Draw an image, and the attention over it for each word of its caption.

    The image is unshaded at the largest weight and darker at smaller ones. Each panel has
    its own scale.

    Args:
        image: Image of shape `(H, W)`, `(H, W, 1)` or `(H, W, 3)`, as in `image`.
        words: T words.
        weights: Attention weights of shape `(T, h, w)`, or `(T, L)` with L = h w.
        grid: (h, w), for weights of shape `(T, L)`; a square by default.
        upsample: Width in pixels of the map of one place.
        blur: Standard deviation, in these pixels, of the Gaussian that smooths the map; a quarter
            of `upsample` by default.
        cells: For each word a boolean array `(h, w)`, True at the places to be outlined, such as
            those of the named object, or None.
        wrong: Whether each word is wrong, which its title shows.
        title: Title of the image.
        columns: Number of panels per row; all by default.
        ax: Array `(T + 1,)` of Axes to draw on; a new figure by default.

    Returns:
        The panels, shape `(T + 1,)`: the image, then one per word; `images[1]` of a word's panel
        is its map.

    Raises:
        ValueError: If a shape or length does not fit, a weight is negative or not finite,
            `upsample` is below 1, or `blur` is negative.
        TypeError: If a word is not a string, or an array does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> ja.plot.captions(np.ones((8, 8)), ["a", "dog"], np.ones((2, 4))).shape
        (3,)
    """
    picture = pictures.as_picture("image", image)
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"`words` must be strings, got {word!r}.")
    maps = _on_grid(style.real("weights", weights), grid)
    for name, rows in {"weights": maps, "cells": cells, "wrong": wrong}.items():
        style.same_length(name, rows, len(words), "words")
    if maps.min() < 0:
        raise ValueError(f"`weights` must not be negative, got {maps.min():.3g}.")
    if upsample < 1:
        raise ValueError(f"`upsample` must be at least 1, got {upsample}.")
    blur = upsample / 4 if blur is None else float(blur)
    if not 0 <= blur < np.inf:
        raise ValueError(f"`blur` must be at least 0, got {blur}.")
    outlines = [
        None if marked is None else _outline(marked, maps.shape[1:], picture.shape[:2])
        for marked in ([None] * len(words) if cells is None else cells)
    ]
    axes = pictures.picture_panels(ax, len(words) + 1, columns or len(words) + 1, titled=True)
    for panel in axes:
        pictures.show(panel, picture)
    axes[0].set_title(title or "", fontsize="medium", **lettering.font([title or ""]))
    for t, (panel, word, outline) in enumerate(zip(axes[1:], words, outlines, strict=True)):
        _spotlight(panel, maps[t], picture.shape[:2], upsample, blur)
        if outline is not None:
            panel.add_collection(outline)
        _write_word(panel, word, wrong is not None and bool(wrong[t]))
    return axes


def _spotlight(
    panel: Axes, weights: np.ndarray, shape: tuple[int, ...], upsample: int, blur: float
) -> None:
    """Shade an image of this shape where the weights `(h, w)` are small."""
    height, width = shape
    heat = gaussian_blur(np.kron(weights, np.ones((upsample, upsample))), blur)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    norm = Normalize(0, heat.max() or 1)
    panel.imshow(heat, cmap=SPOTLIGHT, norm=norm, extent=extent, interpolation="bilinear")
    panel.set(xlim=extent[:2], ylim=extent[2:])


def _write_word(panel: Axes, word: str, wrong: bool) -> None:
    text = lettering.visible_token(word)
    panel.set_title(
        f"✗ {text}" if wrong else text, fontsize="medium", **lettering.font([text]),
        color=style.HIGHLIGHT if wrong else "black", fontweight="bold" if wrong else "normal",
    )  # fmt: skip


def gaussian_blur(heat: np.ndarray, sigma: float) -> np.ndarray:
    """Return a map (h, w) smoothed by a Gaussian, reflected at the edges."""
    if sigma == 0:
        return heat
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for _ in range(2):  # along the columns of the map, then along those of its transpose
        padded = np.pad(heat, ((reach, reach), (0, 0)), mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=0)
        heat = (windows @ kernel).T
    return heat


def _on_grid(weights: np.ndarray, grid: tuple[int, int] | None) -> np.ndarray:
    """Return the weights as `(T, h, w)`."""
    if weights.ndim == 3:
        if grid is not None and tuple(grid) != weights.shape[1:]:
            raise ValueError(f"`grid` must be {weights.shape[1:]}, as the weights are, got {grid}.")
        return weights
    if weights.ndim != 2:
        raise ValueError(f"`weights` must have shape (T, h, w) or (T, L), got {weights.shape}.")
    side = round(weights.shape[1] ** 0.5)
    height, width = (side, side) if grid is None else grid
    if height * width != weights.shape[1]:
        raise ValueError(f"`grid` must have {weights.shape[1]} places, got {height} x {width}.")
    return weights.reshape(-1, height, width)


def _outline(cells: ArrayLike, grid: tuple[int, ...], shape: tuple[int, ...]) -> LineCollection:
    """Return the edges between True cells and others, in the pixels of an image of this shape."""
    marked = np.asarray(cells)
    if marked.dtype != bool or marked.shape != grid:
        raise ValueError(
            f"`cells` must be boolean of shape {grid}, got {marked.dtype} {marked.shape}."
        )
    height, width = shape
    ends = (style.borders(marked) + 0.5) * (width / grid[1], height / grid[0]) - 0.5
    # Orange is visible on unshaded and on dark parts.
    return LineCollection(list(ends), colors=style.PALETTE[4], linewidths=1.6)
