"""The most important window."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from jaxattn.plot import pictures, style, time_series


def window(
    x: ArrayLike,
    values: Any,
    window: int | tuple[int, ...],
    *,
    ax: Axes | np.ndarray | None = None,
    sampling_rate: float | None = None,
    title: str | None = None,
) -> Any:
    """Mark the window with the largest sum of values: the first one, if several have it.

    Args:
        x: An image, `(H, W)` or `(H, W, C)`, or a series, `(T,)` or `(T, D)`.
        values: Its attribution; channels are summed.
        window: The window's size: `(h, w)` on an image, an int or `(t,)` on a series.
        ax: Where to draw, as in `image` and `series`.
        sampling_rate: Steps a second, of a series.
        title: The title; by default where the window lies.

    Returns:
        The Axes, as `image` and `series` do. The last patch of each is the window: a `Rectangle`
        half a pixel or step beyond the centres of its first and last.

    Raises:
        ValueError: as `image` and `series`, or for a window that does not fit into `x`.
    """
    given = np.atleast_1d(window)
    if given.dtype.kind not in "iu" or given.shape not in ((1,), (2,)):
        raise ValueError(f"window must be an int, (t,) or (h, w), got {window}")
    size = tuple(given.tolist())
    if len(size) == 2:
        picture = pictures.as_picture("x", x)
        row, column = _best(pictures.as_heat("values", values, picture), size)
        [panel] = style.panels(ax, (), 1, 1, figsize=(3.4, 3.6), layout="constrained").reshape(1)
        pictures.overlay(panel, picture, None, Normalize())
        box = Rectangle((column - 0.5, row - 0.5), size[1], size[0])
        box.set(facecolor="none", edgecolor=style.HIGHLIGHT, linewidth=2.5)
        panel.add_patch(box)
        last_row, last_column = row + size[0] - 1, column + size[1] - 1
        where = f"rows {row}–{last_row}, columns {column}–{last_column}"
        panel.set_title(where if title is None else title)
        return panel
    trace = time_series.channels("x", x)
    [start] = _best(time_series.matching("values", values, trace).sum(1), size)
    time, _ = time_series.time_axis(len(trace), None, sampling_rate)
    where = f"time steps {start}–{start + size[0] - 1}"
    axes = time_series.series(
        x, np.zeros(trace.shape), ax=ax, sampling_rate=sampling_rate, colorbar=False,
        title=where if title is None else title,
    )  # fmt: skip
    half = 0.5 / (sampling_rate or 1)
    for panel in np.ravel(axes):
        panel.axvspan(
            time[start] - half, time[start + size[0] - 1] + half,
            color=style.HIGHLIGHT, alpha=0.2, linewidth=0, zorder=1,
        )  # fmt: skip
    return axes


def _best(values: np.ndarray, size: tuple[int, ...]) -> tuple[int, ...]:
    """Where the window of this size with the largest sum begins."""
    if any(not 1 <= s <= n for s, n in zip(size, values.shape, strict=True)):
        raise ValueError(f"window must fit into shape {values.shape}, got {size}")
    # Not differences of running sums: their rounding would break ties.
    for axis, s in enumerate(size):
        values = np.lib.stride_tricks.sliding_window_view(values, s, axis).sum(-1)
    return tuple(int(i) for i in np.unravel_index(values.argmax(), values.shape))
