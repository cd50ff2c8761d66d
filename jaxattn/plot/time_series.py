"""Attributions along time series."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.ticker import AutoMinorLocator
from numpy.typing import ArrayLike

from jaxattn.plot import style


def series(
    x: ArrayLike,
    values: Any,
    *,
    ax: Axes | np.ndarray | None = None,
    time: ArrayLike | None = None,
    sampling_rate: float | None = None,
    limit: float | None = None,
    cmap: str | Colormap = style.DIVERGING,
    title: str | None = None,
    colorbar: bool = True,
    label: str = "attribution",
    ylabel: str = "amplitude",
    channel_names: Sequence[str] | None = None,
    paper: bool = False,
) -> Any:
    """Draw a time series as a thin line, in a band coloured by its attribution.

    Args:
        x: The series, `(T,)` or `(T, D)`: one panel a channel, one below another.
        values: Its attribution, of the same shape.
        ax: Where to draw: one Axes, or an array `(D,)` of them for several channels.
        time: The time of each step, `(T,)`.
        sampling_rate: Steps a second, instead of `time`; the axis is then in seconds.
        limit: The colours run from `-limit` to `limit`; by default the largest magnitude.
        cmap: A diverging colour map.
        title: The title.
        colorbar: Whether to add a colour bar.
        label: What the colour bar says.
        ylabel: What `x` measures, with its unit.
        channel_names: D names.
        paper: Whether to draw a grid like that of ECG paper.

    Returns:
        The Axes, or an array `(D,)` of them for several channels. A panel's only collection holds
        the values, one segment a step.

    Raises:
        ValueError: for a wrong rank, shapes that differ, or values that are not finite.
    """
    trace = channels("x", x)
    heat = matching("values", values, trace)
    steps, time_label = time_axis(len(trace), time, sampling_rate)
    norm = style.symmetric(limit, heat)
    count = trace.shape[1]
    style.same_length("channel_names", channel_names, count, "channels")
    shape = (count,) if count > 1 else ()
    axes = stacked_panels(ax, shape, count, 1, height=1.5 if count > 1 else 2.6)
    names = [f"channel {d}" for d in range(count)] if channel_names is None else channel_names
    for d, panel in enumerate(axes.flat):
        band(panel, steps, trace[:, d], heat[:, d], norm, cmap=cmap, paper=paper)
        panel.set_ylabel(ylabel if count == 1 and channel_names is None else names[d])
    axes.flat[-1].set_xlabel(time_label)
    if title is not None:
        axes.flat[0].set_title(title)
    if colorbar:
        style.colorbar(axes, norm, [heat], label, cmap, aspect=20, pad=0.01)
    return axes if count > 1 else axes.item()


def band(
    ax: Axes,
    time: np.ndarray,
    trace: np.ndarray,
    heat: np.ndarray,
    norm: Normalize,
    *,
    cmap: str | Colormap = style.DIVERGING,
    paper: bool = False,
) -> None:
    """Draw one channel: a broad band coloured by `heat`, the trace as a thin line on it."""
    points = np.column_stack([time, trace])
    # A step's segment runs from halfway to its neighbours through its own point.
    halves = np.concatenate([points[:1], (points[:-1] + points[1:]) / 2, points[-1:]])
    segments = np.stack([halves[:-1], points, halves[1:]], axis=1)
    ax.add_collection(
        LineCollection(
            list(segments),
            array=heat,
            cmap=cmap,
            norm=norm,
            linewidths=6,
            capstyle="butt",
            joinstyle="round",
            zorder=2,
        )
    )
    ax.plot(time, trace, color=style.INK, linewidth=0.8, zorder=3)
    ax.margins(x=0.01, y=0.12)
    ax.spines[["top", "right"]].set_visible(False)
    if paper:
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
    norm: Normalize,
    *,
    ax: Any = None,
    cmap: str | Colormap = style.DIVERGING,
    sampling_rate: float | None = None,
) -> np.ndarray:
    """Draw titled panels (P,) below one another, on one time axis; (P, D) with channels."""
    trace = channels("x", x)
    heats = [matching("values", heat, trace) for heat in values]
    steps, time_label = time_axis(len(trace), None, sampling_rate)
    rows, columns = len(heats), trace.shape[1]
    shape = (rows,) if columns == 1 else (rows, columns)
    axes = stacked_panels(ax, shape, rows, columns, height=1.5)
    grid = axes.reshape(rows, columns)
    for row, heat, title in zip(grid, heats, titles, strict=True):
        for d, panel in enumerate(row):
            band(panel, steps, trace[:, d], heat[:, d], norm, cmap=cmap)
        row[0].set_title(title, loc="left", fontsize="medium")
    for panel in grid[-1]:
        panel.set_xlabel(time_label)
    return axes


def stacked_panels(
    ax: Any, shape: tuple[int, ...], rows: int, columns: int, *, height: float, sharey: str = "none"
) -> np.ndarray:
    """Axes for traces, which share their time axis."""
    size = (max(8.0, 3.2 * columns + 0.8), height * rows + 0.5)
    return style.panels(
        ax, shape, rows, columns, figsize=size, layout="constrained", sharex=True, sharey=sharey
    )


def channels(name: str, x: Any) -> np.ndarray:
    """A series `(T,)` or `(T, D)` as `(T, D)`."""
    found = style.real(name, x)
    if found.ndim not in (1, 2):
        raise ValueError(f"{name} must be one series, (T,) or (T, D), got shape {found.shape}")
    return found.reshape(len(found), -1)


def matching(name: str, values: Any, trace: np.ndarray) -> np.ndarray:
    """The attribution of a series as `(T, D)`."""
    found = style.real(name, values)
    if found.ndim not in (1, 2) or found.reshape(len(found), -1).shape != trace.shape:
        raise ValueError(f"{name} must have the shape of x, {trace.shape}, got shape {found.shape}")
    return found.reshape(trace.shape)


def time_axis(
    count: int, time: ArrayLike | None, sampling_rate: float | None
) -> tuple[np.ndarray, str]:
    """The time of each step, and what the axis says."""
    if sampling_rate is not None:
        if time is not None:
            raise ValueError("time and sampling_rate exclude each other, got both")
        if not (np.isfinite(sampling_rate) and sampling_rate > 0):
            raise ValueError(f"sampling_rate must be a positive number, got {sampling_rate}")
        return np.arange(count) / sampling_rate, "time (s)"
    if time is None:
        return np.arange(count, dtype=float), "time step"
    steps = style.real("time", time)
    if steps.shape != (count,):
        raise ValueError(f"time must have shape ({count},), got {steps.shape}")
    return steps, "time"
