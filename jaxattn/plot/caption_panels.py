"""Where a network looked, word by word."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from numpy.typing import ArrayLike

from jaxattn.plot import lettering, pictures, style

# Nothing over what is read, and the darker the less it is.
SPOTLIGHT = LinearSegmentedColormap.from_list("spotlight", [(0, 0, 0, 0.85), (0, 0, 0, 0)])


def captions(
    image: ArrayLike,
    words: Sequence[str],
    weights: ArrayLike,
    *,
    grid: tuple[int, int] | None = None,
    upsample: int = 16,
    blur: float | None = None,
    cells: Sequence[Any] | None = None,
    wrong: Sequence[bool] | None = None,
    title: str | None = None,
    columns: int | None = None,
    ax: np.ndarray | None = None,
) -> np.ndarray:
    """Draw a picture, and then for each word of its caption what was read of it.

    What was read most stands in full light, the rest in shadow; each panel has its own scale.

    Args:
        image: The picture, `(H, W)`, `(H, W, 1)` or `(H, W, 3)`, as `image` takes it.
        words: The T words.
        weights: How much was read of each place, `(T, h, w)`, or `(T, L)` with L = h w.
        grid: (h, w), for weights `(T, L)`; by default a square.
        upsample: How many pixels wide a place becomes.
        blur: The standard deviation, in these pixels, of the Gaussian that smooths the map; by
            default a quarter of `upsample`.
        cells: For each word the places `(h, w)` of what it names, True there, which are outlined;
            None for a word that names nothing.
        wrong: Whether each word is wrong: its title says so.
        title: The title of the picture itself.
        columns: How many panels beside one another; by default all.
        ax: An array `(T + 1,)` of Axes to draw on.

    Returns:
        The Axes, `(T + 1,)`: the first has the picture; `images[1]` of the others is the map.

    Raises:
        ValueError: for a wrong rank, lengths that differ, a grid that does not fit, weights that
            are negative or not finite, an `upsample` below 1, a negative `blur`.
        TypeError: for words that are not strings.
    """
    picture = pictures.as_picture("image", image)
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"words must be strings, got {word!r}")
    found = _on_grid(style.real("weights", weights), grid)
    for name, given in {"weights": found, "cells": cells, "wrong": wrong}.items():
        style.same_length(name, given, len(words), "words")
    if found.min() < 0:
        raise ValueError(f"weights must not be negative, got {found.min():.3g}")
    if upsample < 1:
        raise ValueError(f"upsample must be at least 1, got {upsample}")
    blur = upsample / 4 if blur is None else float(blur)
    if not 0 <= blur < np.inf:
        raise ValueError(f"blur must be at least 0, got {blur}")
    axes = pictures.picture_panels(ax, len(words) + 1, columns or len(words) + 1, titled=True)
    height, width = picture.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    for i, panel in enumerate(axes):
        pictures.overlay(panel, picture, None, Normalize())
        if i == 0:
            panel.set_title(title or "", fontsize="medium", **lettering.look([title or ""]))
            continue
        heat = blurred(np.kron(found[i - 1], np.ones((upsample, upsample))), blur)
        norm = Normalize(0, heat.max() or 1)
        panel.imshow(heat, cmap=SPOTLIGHT, norm=norm, extent=extent, interpolation="bilinear")
        panel.set(xlim=extent[:2], ylim=extent[2:])
        if cells is not None and cells[i - 1] is not None:
            panel.add_collection(_outline(cells[i - 1], found.shape[1:], height, width))
        mistaken = wrong is not None and bool(wrong[i - 1])
        word = lettering.shown(words[i - 1])
        panel.set_title(
            f"✗ {word}" if mistaken else word, fontsize="medium", **lettering.look([word]),
            color=style.HIGHLIGHT if mistaken else "black",
            fontweight="bold" if mistaken else "normal",
        )  # fmt: skip
    return axes


def blurred(heat: np.ndarray, sigma: float) -> np.ndarray:
    """A map (h, w) under a Gaussian; what would leave at an edge is reflected there."""
    if sigma == 0:
        return heat
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for _ in range(2):  # down the columns of the map, then of its transpose
        padded = np.pad(heat, ((reach, reach), (0, 0)), mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=0)
        heat = (windows @ kernel).T
    return heat


def _on_grid(weights: np.ndarray, grid: tuple[int, int] | None) -> np.ndarray:
    if weights.ndim == 3:
        if grid is not None and tuple(grid) != weights.shape[1:]:
            raise ValueError(f"grid must be {weights.shape[1:]}, as the weights are, got {grid}")
        return weights
    if weights.ndim != 2:
        raise ValueError(f"weights must have shape (T, h, w) or (T, L), got {weights.shape}")
    side = round(weights.shape[1] ** 0.5)
    height, width = (side, side) if grid is None else grid
    if height * width != weights.shape[1]:
        raise ValueError(f"grid must have {weights.shape[1]} places, got {height} x {width}")
    return weights.reshape(-1, height, width)


def _outline(cells: Any, grid: tuple[int, ...], height: int, width: int) -> LineCollection:
    """The edges between True cells and others."""
    marked = np.asarray(cells)
    if marked.dtype != bool or marked.shape != grid:
        raise ValueError(
            f"cells must be boolean of shape {grid}, got {marked.dtype} {marked.shape}"
        )
    ends = (style.borders(marked) + 0.5) * (width / grid[1], height / grid[0]) - 0.5
    # Orange is seen in light and in shadow.
    return LineCollection(list(ends), colors=style.PALETTE[4], linewidths=1.6)
