"""Attributions of time series."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import AutoMinorLocator
from numpy.typing import ArrayLike

from jaxattn.plot import style
from jaxattn.plot.style import ColorMap, ColorScale, Panels, Values


def series(
    x: ArrayLike,
    values: Values,
    *,
    ax: Axes | np.ndarray | None = None,
    time: ArrayLike | None = None,
    sampling_rate: float | None = None,
    limit: float | None = None,
    cmap: ColorMap | None = None,
    title: str | None = None,
    colorbar: bool = True,
    label: str = "attribution",
    ylabel: str = "amplitude",
    channel_names: Sequence[str] | None = None,
    paper: bool = False,
) -> Axes | Panels:
    """Draw a time series as a thin line on a band coloured by its attribution.

    Args:
        x: Series of shape `(T,)` or `(T, D)`; channels are drawn below one another.
        values: Attribution of the same shape.
        ax: Axes to draw on, or an array `(D,)` of them for D > 1 channels; a new figure by default.
        time: Time of each step, shape `(T,)`.
        sampling_rate: Steps per second, instead of `time`; the axis is then in seconds.
        limit: End of the colour scale; the largest magnitude by default.
        cmap: Colour map; see `jaxattn.plot` for the default.
        title: Title of the figure.
        colorbar: Whether to add a colour bar.
        label: Label of the colour bar.
        ylabel: Quantity and unit of `x`.
        channel_names: D names.
        paper: Whether to draw a grid like that of ECG paper.

    Returns:
        The Axes; for D > 1 channels the panels, shape `(D,)`. The only collection of each holds
        the values, one segment per step.

    Raises:
        ValueError: If a shape does not fit, a value is not finite, `limit` or `sampling_rate` is
            not positive, or both `time` and `sampling_rate` are given.
        TypeError: If an array does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> ax = ja.plot.series(np.sin(np.arange(9)), np.arange(9), sampling_rate=100.0)
        >>> ax.get_xlabel()
        'time (s)'
    """
    trace = channels("x", x)
    heat = matching("values", values, trace)
    axis = time_axis(len(trace), time, sampling_rate)
    scale = style.color_scale([heat], limit, cmap)
    count = trace.shape[1]
    style.same_length("channel_names", channel_names, count, "channels")
    shape = (count,) if count > 1 else ()
    axes = stacked_panels(ax, shape, count, 1, height=1.5 if count > 1 else 2.6)
    names = [f"channel {d}" for d in range(count)] if channel_names is None else channel_names
    for d, panel in enumerate(axes.flat):
        band(panel, axis.steps, trace[:, d], heat[:, d], scale)
        if paper:
            _paper(panel)
        panel.set_ylabel(ylabel if count == 1 and channel_names is None else names[d])
    axes.flat[-1].set_xlabel(axis.label)
    if title is not None:
        axes.flat[0].set_title(title)
    if colorbar:
        style.colorbar(axes, scale, [heat], label, aspect=20.0, pad=0.01)
    return axes if count > 1 else axes.item()


def band(
    ax: Axes, time: np.ndarray, trace: np.ndarray, heat: np.ndarray, scale: ColorScale
) -> None:
    """Draw one channel: a broad band coloured by `heat`, and the trace as a thin line on it."""
    points = np.column_stack([time, trace])
    # The segment of a step runs between the middles to its neighbours, through its own point.
    middles = np.concatenate([points[:1], (points[:-1] + points[1:]) / 2, points[-1:]])
    segments = np.stack([middles[:-1], points, middles[1:]], axis=1)
    ax.add_collection(
        LineCollection(
            list(segments),
            array=heat,
            cmap=scale.cmap,
            norm=scale.norm,
            linewidths=6,
            capstyle="butt",
            joinstyle="round",
            zorder=2,
        )
    )
    ax.plot(time, trace, color=style.INK, linewidth=0.8, zorder=3)
    ax.margins(x=0.01, y=0.12)
    ax.spines[["top", "right"]].set_visible(False)


def _paper(ax: Axes) -> None:
    """Draw a grid like that of ECG paper."""
    ax.xaxis.set_minor_locator(AutoMinorLocator(5))
    ax.yaxis.set_minor_locator(AutoMinorLocator(5))
    ax.grid(which="major", color="#f0c8c0", linewidth=0.7)
    ax.grid(which="minor", color="#f8e4e0", linewidth=0.4)
    ax.tick_params(which="minor", length=0)
    ax.set_axisbelow(True)


def traces(
    x: np.ndarray,
    values: Sequence[np.ndarray],
    titles: Sequence[str],
    scales: Sequence[ColorScale],
    *,
    ax: np.ndarray | None = None,
    sampling_rate: float | None = None,
) -> Panels:
    """Draw one series with several attributions below one another on one time axis.

    Args:
        x: Series of shape `(T,)` or `(T, D)`.
        values: P attributions of the same shape.
        titles: P titles.
        scales: P colour scales.
        ax: Array of Axes to draw on, shaped as returned.
        sampling_rate: Steps per second.

    Returns:
        The panels, shape `(P,)`; for D > 1 channels `(P, D)`.
    """
    trace = channels("x", x)
    heats = [matching("values", heat, trace) for heat in values]
    axis = time_axis(len(trace), None, sampling_rate)
    rows, columns = len(heats), trace.shape[1]
    shape = (rows,) if columns == 1 else (rows, columns)
    axes = stacked_panels(ax, shape, rows, columns, height=1.5)
    grid = axes.reshape(rows, columns)
    for row, heat, title, scale in zip(grid, heats, titles, scales, strict=True):
        for d, panel in enumerate(row):
            band(panel, axis.steps, trace[:, d], heat[:, d], scale)
        row[0].set_title(title, loc="left", fontsize="medium")
    for panel in grid[-1]:
        panel.set_xlabel(axis.label)
    return axes


def stacked_panels(
    ax: Axes | np.ndarray | None,
    shape: tuple[int, ...],
    rows: int,
    columns: int,
    *,
    height: float,
    sharey: Literal["none", "row"] = "none",
) -> Panels:
    """Return Axes for traces, which share their time axis."""
    size = (max(8.0, 3.2 * columns + 0.8), height * rows + 0.5)
    return style.panels(ax, shape, rows, columns, figsize=size, sharex=True, sharey=sharey)


def channels(name: str, x: Values) -> np.ndarray:
    """Return a series `(T,)` or `(T, D)` as `(T, D)`."""
    trace = style.real(name, x)
    if trace.ndim not in (1, 2):
        raise ValueError(f"`{name}` must be one series, (T,) or (T, D), got shape {trace.shape}.")
    return trace.reshape(len(trace), -1)


def matching(name: str, values: Values, trace: np.ndarray) -> np.ndarray:
    """Return the attribution of a series as `(T, D)`."""
    heat = style.real(name, values)
    if heat.ndim not in (1, 2) or heat.reshape(len(heat), -1).shape != trace.shape:
        raise ValueError(
            f"`{name}` must have the shape of x, {trace.shape}, got shape {heat.shape}."
        )
    return heat.reshape(trace.shape)


@dataclasses.dataclass(frozen=True)
class TimeAxis:
    """The time of each step, shape `(T,)`, and the label of the axis."""

    steps: np.ndarray
    label: str


def time_axis(count: int, time: ArrayLike | None, sampling_rate: float | None) -> TimeAxis:
    """Return the time axis of a series of `count` steps."""
    if sampling_rate is not None:
        if time is not None:
            raise ValueError("`time` and `sampling_rate` exclude each other, got both.")
        if not (np.isfinite(sampling_rate) and sampling_rate > 0):
            raise ValueError(f"`sampling_rate` must be a positive number, got {sampling_rate}.")
        return TimeAxis(np.arange(count) / sampling_rate, "time (s)")
    if time is None:
        return TimeAxis(np.arange(count, dtype=float), "time step")
    steps = style.real("time", time)
    if steps.shape != (count,):
        raise ValueError(f"`time` must have shape ({count},), got {steps.shape}.")
    return TimeAxis(steps, "time")
