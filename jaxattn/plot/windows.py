"""The most important window of an input."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from jaxattn.plot import pictures, style, time_series
from jaxattn.plot.style import Panels, Values


def window(
    x: ArrayLike,
    values: Values,
    window: int | tuple[int, ...],
    *,
    ax: Axes | np.ndarray | None = None,
    sampling_rate: float | None = None,
    title: str | None = None,
) -> Axes | Panels:
    """Mark the window with the largest sum of attributions, the first one of equal windows.

    Args:
        x: Image of shape `(H, W)` or `(H, W, C)`, or series of shape `(T,)` or `(T, D)`.
        values: Attribution of `x`; channels are summed.
        window: Size of the window: `(h, w)` for an image, an int or `(t,)` for a series.
        ax: Axes to draw on, as in `image` and `series`; a new figure by default.
        sampling_rate: Steps per second of a series.
        title: Title; by default the location of the window.

    Returns:
        The Axes or panels that `image` and `series` return. The last patch of each is the window,
        a `Rectangle` from half a pixel or step before its first to half a one after its last.

    Raises:
        ValueError: As `image` and `series`; if `window` is not a size or is larger than `x`.
        TypeError: If an array does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> ax = ja.plot.window(np.ones((4, 4)), np.eye(4), (2, 2))
        >>> ax.get_title()
        'rows 0–1, columns 0–1'
    """
    sizes = np.atleast_1d(window)
    if sizes.dtype.kind not in "iu" or sizes.shape not in ((1,), (2,)):
        raise ValueError(f"`window` must be an int, (t,) or (h, w), got {window}.")
    size = tuple(sizes.tolist())
    if len(size) == 2:
        return _on_image(x, values, size, ax, title)
    return _on_series(x, values, size, ax, sampling_rate, title)


def _on_image(
    x: ArrayLike,
    values: Values,
    size: tuple[int, ...],
    ax: Axes | np.ndarray | None,
    title: str | None,
) -> Axes:
    picture = pictures.as_picture("x", x)
    row, column = _largest_sum(pictures.as_heat("values", values, picture), size)
    panel: Axes = style.panels(ax, (), 1, 1, figsize=(3.4, 3.6)).item()
    pictures.show(panel, picture)
    box = Rectangle((column - 0.5, row - 0.5), size[1], size[0])
    box.set(facecolor="none", edgecolor=style.HIGHLIGHT, linewidth=2.5)
    panel.add_patch(box)
    last_row, last_column = row + size[0] - 1, column + size[1] - 1
    location = f"rows {row}–{last_row}, columns {column}–{last_column}"
    panel.set_title(location if title is None else title)
    return panel


def _on_series(
    x: ArrayLike,
    values: Values,
    size: tuple[int, ...],
    ax: Axes | np.ndarray | None,
    sampling_rate: float | None,
    title: str | None,
) -> Axes | Panels:
    trace = time_series.channels("x", x)
    [start] = _largest_sum(time_series.matching("values", values, trace).sum(1), size)
    steps = time_series.time_axis(len(trace), None, sampling_rate).steps
    last = start + size[0] - 1
    axes = time_series.series(
        x, np.zeros(trace.shape), ax=ax, sampling_rate=sampling_rate, colorbar=False,
        title=f"time steps {start}–{last}" if title is None else title,
    )  # fmt: skip
    half = 0.5 / (sampling_rate or 1)
    for panel in np.asarray(axes, dtype=object).flat:
        panel.axvspan(
            steps[start] - half, steps[last] + half,
            color=style.HIGHLIGHT, alpha=0.2, linewidth=0, zorder=1,
        )  # fmt: skip
    return axes


def _largest_sum(values: np.ndarray, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the first index of the window of this size with the largest sum."""
    if any(not 1 <= s <= n for s, n in zip(size, values.shape, strict=True)):
        raise ValueError(f"`window` must fit into shape {values.shape}, got {size}.")
    # Differences of cumulative sums would break ties by rounding.
    for axis, s in enumerate(size):
        values = np.lib.stride_tricks.sliding_window_view(values, s, axis).sum(-1)
    return tuple(int(i) for i in np.unravel_index(values.argmax(), values.shape))
