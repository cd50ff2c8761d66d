"""The features of a layer: over time, as heat maps, as histograms and as points."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import ArrayLike

from jaxattn.plot import style
from jaxattn.plot.feature_panels import feature_grid, finish_panels
from jaxattn.plot.histograms import check_bins, mark_zero
from jaxattn.plot.style import ColorMap, Panels, Values

Range = Literal["auto"] | Sequence[float | int] | None
#: `features_0d` connects more values than this by a line.
MOST_POINTS = 64


def features_1d(
    x: ArrayLike,
    *,
    ax: np.ndarray | None = None,
    equal_axes: bool = False,
    zero_line: bool | None = None,
    rows: int | None = None,
    columns: int | None = None,
    channel_axis: int = -1,
    max_steps: int | None = None,
    channel_names: Sequence[str] | None = None,
    sample_names: Sequence[str] | None = None,
    title: str | None = None,
    xlabel: str = "time step",
) -> Panels:
    """Draw each channel of a layer over time in its own panel, one curve per sample.

    Args:
        x: Channels over time, shape `(T, C)`, or those of N samples, shape `(N, T, C)`. NaN leaves
            a gap, such as after the end of a sample.
        ax: Array `(C,)` of Axes to draw on; a new figure by default.
        equal_axes: Whether all panels have the same scale.
        zero_line: Whether to draw a line at zero; by default if the axes are equal.
        rows: Number of panels per column.
        columns: Number of panels per row; by default the grid is slightly wider than high.
        channel_axis: Axis of the channels in `x`.
        max_steps: Number of time steps to draw; all by default.
        channel_names: C names; the indices by default.
        sample_names: N names for a legend.
        title: Title of the figure.
        xlabel: Label of the time steps.

    Returns:
        The panels, shape `(C,)`; the first N lines of each are the samples.

    Raises:
        ValueError: If a shape or length does not fit, a value is infinite, a channel holds NaN
            only, or the grid has fewer cells than channels.
        TypeError: If `x` does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> ja.plot.features_1d(np.random.default_rng(0).normal(size=(20, 6))).shape
        (6,)
    """
    samples = _channels_last(x, channel_axis, (2, 3))
    samples = samples[None] if samples.ndim == 2 else samples
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")
    samples = samples[:, :max_steps]
    count = samples.shape[-1]
    style.same_length("channel_names", channel_names, count, "channels")
    style.same_length("sample_names", sample_names, len(samples), "samples")
    grid = feature_grid(ax, count, "channels", (1.6, 1.15), rows=rows, columns=columns)
    for c, panel in enumerate(grid.axes):
        for n, curve in enumerate(samples[..., c]):
            colour = style.PALETTE[n % len(style.PALETTE)]
            name = None if sample_names is None else sample_names[n]
            panel.plot(curve, color=colour, linewidth=1, label=name)
        panel.set_xlim(0, max(samples.shape[1] - 1, 1))
        if equal_axes if zero_line is None else zero_line:
            panel.axhline(0, color=style.HIGHLIGHT, linewidth=0.8, zorder=1)
    finish_panels(grid, channel_names, xlabel, title, same_x=True, same_y=equal_axes)
    if sample_names is not None:
        lines, _ = grid.axes[0].get_legend_handles_labels()
        grid.axes.figure.legend(
            lines, sample_names, loc="outside lower center", ncols=len(lines), frameon=False
        )
    return grid.axes


def features_2d(
    x: Values,
    *,
    ax: Axes | np.ndarray | None = None,
    norm: Range = "auto",
    cmap: ColorMap | None = None,
    rows: int | None = None,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    xlabel: str = "column",
    ylabel: str = "row",
    channel_axis: int = -1,
    max_steps: int | None = None,
    reverse_half: bool = False,
    colorbar: bool = True,
    label: str = "value",
) -> Axes | Panels:
    """Draw features of a layer as a heat map, one per sample.

    Args:
        x: Features of shape `(R, C)`, rows downwards, such as time steps and channels, or queries
            and keys; or those of N samples, shape `(N, R, C)`.
        ax: Axes to draw on, or an array `(N,)` of them for N samples; a new figure by default.
        norm: Range of the colours in all panels. "auto": from zero to the largest value, or if a
            value is negative to the largest magnitude on both sides of zero. None: from the least
            to the largest value. Otherwise `(min, max)`.
        cmap: Colour map; by default diverging if the range extends to both sides of zero, otherwise
            sequential.
        rows: Number of panels per column.
        columns: Number of panels per row; by default the grid is slightly wider than high.
        titles: N titles.
        xlabel: Label of the columns.
        ylabel: Label of the rows.
        channel_axis: Which of the last two axes holds channels, for the two options below; -1 for
            channels to the right, -2 for channels downwards. The other one holds time steps.
        max_steps: Number of time steps to draw; all by default.
        reverse_half: Whether to reverse the second half of the channels in time, such as the
            backward half of a bidirectional layer whose outputs are in the order of computation.
        colorbar: Whether to add a colour bar.
        label: Label of the colour bar.

    Returns:
        The Axes, or for N samples the panels, shape `(N,)`; `images[0]` of each holds the values.

    Raises:
        ValueError: If a shape or length does not fit, a value is not finite, `norm` is not a range,
            the grid has fewer cells than samples, or `reverse_half` is used for an odd number of
            channels.
        TypeError: If `x` does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> ax = ja.plot.features_2d(np.eye(4), xlabel="key", ylabel="query")
        >>> ax.images[0].get_clim()
        (0.0, 1.0)
    """
    maps = style.real("x", x)
    if maps.ndim not in (2, 3):
        raise ValueError(f"`x` must have shape (R, C) or (N, R, C), got {maps.shape}.")
    several = maps.ndim == 3
    maps = maps if several else maps[None]
    maps = _in_time(maps, channel_axis, max_steps, reverse_half)
    low, high = _range(norm, maps)
    scale = Normalize(low, high)
    colours = cmap or (style.DIVERGING if low < 0 < high else style.SEQUENTIAL)
    style.same_length("titles", titles, len(maps), "samples")
    place = _as_array(ax, several)
    axes = feature_grid(place, len(maps), "samples", (4.2, 3.4), rows=rows, columns=columns).axes
    for n, panel in enumerate(axes):
        panel.imshow(maps[n], cmap=colours, norm=scale, aspect="auto", interpolation="nearest")
        panel.set(xlabel=xlabel, ylabel=ylabel)
        panel.spines[:].set_visible(False)
        if titles is not None:
            panel.set_title(titles[n], fontsize="medium")
    if colorbar:
        mappable = ScalarMappable(scale, colours)
        style.finish_bar(axes.figure.colorbar(mappable, ax=axes.tolist(), label=label))
    return axes if several else axes[0]


def features_hist(
    x: ArrayLike,
    *,
    ax: Axes | np.ndarray | None = None,
    bins: int = 30,
    limits: tuple[float, float] | None = None,
    equal_axes: bool = False,
    center_zero: bool = False,
    zero_line: bool = True,
    rows: int | None = None,
    columns: int | None = None,
    channel_axis: int = -1,
    channel_names: Sequence[str] | None = None,
    title: str | None = None,
    xlabel: str = "value",
) -> Axes | Panels:
    """Draw a histogram of the values of each channel over time and samples.

    Args:
        x: Values of shape `(n,)` for one histogram, or of shape `(T, C)` or `(N, T, C)` for one
            per channel. NaN is left out.
        ax: Axes to draw on for `(n,)`, otherwise an array `(C,)` of them; a new figure by default.
        bins: Number of bars over the range of a channel, or over that of all if `equal_axes`.
        limits: The range of the bars, the same for all channels; by default that of the values.
        equal_axes: Whether all panels have the same bins and the same scale.
        center_zero: Whether zero is in the middle of each panel.
        zero_line: Whether to draw a line at zero in panels whose range holds zero.
        rows: Number of panels per column.
        columns: Number of panels per row; by default the grid is slightly wider than high.
        channel_axis: Axis of the channels in `x`.
        channel_names: C names; the indices by default.
        title: Title of the figure.
        xlabel: Label of the values.

    Returns:
        The Axes, or the panels, shape `(C,)`; the patches are the bars.

    Raises:
        ValueError: If a shape or length does not fit, a value is infinite, a channel holds NaN
            only, `bins` is below 1, `limits` is no range, or the grid has fewer cells than
            channels.
        TypeError: If `x` does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> ax = ja.plot.features_hist(np.arange(60), bins=6)
        >>> len(ax.patches)
        6
    """
    check_bins(bins, limits)
    values = _channels_last(x, channel_axis, (1, 2, 3))
    several = values.ndim > 1
    by_channel = values.reshape(-1, values.shape[-1] if several else 1).T
    channels = [channel[~np.isnan(channel)] for channel in by_channel]
    style.same_length("channel_names", channel_names, len(channels), "channels")
    size = (1.6, 1.15) if several else (5.0, 3.0)
    place = _as_array(ax, several)
    grid = feature_grid(place, len(channels), "channels", size, rows=rows, columns=columns)
    if equal_axes and limits is None:
        limits = float(np.nanmin(values)), float(np.nanmax(values))
    for panel, channel in zip(grid.axes, channels, strict=True):
        panel.hist(channel, bins=bins, range=limits, color=style.PALETTE[0])
        low, high = limits or (float(channel.min()), float(channel.max()))
        mark_zero(panel, center_zero, zero_line and low <= 0 <= high)
    names = [""] if not several and channel_names is None else channel_names
    finish_panels(grid, names, xlabel, title, same_x=equal_axes, same_y=equal_axes)
    for panel in grid.axes[:: grid.columns or len(grid.axes)]:
        panel.set_ylabel("count", fontsize="small" if several else None)
    return grid.axes if several else grid.axes[0]


def features_0d(
    x: Values,
    *,
    ax: Axes | None = None,
    line: bool | None = None,
    zero_line: bool = True,
    sample_names: Sequence[str] | None = None,
    title: str | None = None,
    xlabel: str = "channel",
    ylabel: str = "value",
) -> Axes:
    """Draw one value per channel, one colour per sample.

    Args:
        x: Values of shape `(C,)`, or those of N samples, shape `(N, C)`.
        ax: Axes to draw on; a new figure by default.
        line: Whether to connect the values by a line instead of drawing points; by default if C
            is above 64.
        zero_line: Whether to draw a line at zero.
        sample_names: N names for a legend.
        title: Title of the panel.
        xlabel: Label of the channels.
        ylabel: Label of the values.

    Returns:
        The Axes; each of its collections holds the points of a sample, or each of its first N
        lines its values.

    Raises:
        ValueError: If a shape or length does not fit, or a value is not finite.
        TypeError: If `x` does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> ax = ja.plot.features_0d(np.sin(np.arange(240)), xlabel="time step")
        >>> len(ax.lines[0].get_ydata())
        240
    """
    samples = style.real("x", x)
    if samples.ndim not in (1, 2):
        raise ValueError(f"`x` must have shape (C,) or (N, C), got {samples.shape}.")
    samples = np.atleast_2d(samples)
    style.same_length("sample_names", sample_names, len(samples), "samples")
    ax = style.panel(ax, (8.0, 2.8))
    channels = np.arange(samples.shape[1])
    for n, values in enumerate(samples):
        colour = style.PALETTE[n % len(style.PALETTE)]
        name = None if sample_names is None else sample_names[n]
        if len(channels) > MOST_POINTS if line is None else line:
            ax.plot(channels, values, linewidth=1, color=colour, label=name, zorder=3)
        else:
            ax.scatter(channels, values, s=16, color=colour, label=name, zorder=3)
    if zero_line:
        ax.axhline(0, color=style.HIGHLIGHT, linewidth=0.8, zorder=1)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    if title is not None:
        ax.set_title(title)
    if sample_names is not None:
        ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def _channels_last(x: ArrayLike, axis: int, ranks: tuple[int, ...]) -> np.ndarray:
    """Return the values with channels last; NaN is allowed, but not in all of a channel."""
    values = np.asarray(x)
    if values.dtype.kind == "f":
        gaps = np.isnan(values)
        values = np.where(gaps, np.nan, style.real("x", np.where(gaps, 0, values)))
    else:
        values = style.real("x", x)
    if values.ndim not in ranks:
        shapes = {1: "(n,)", 2: "(T, C)", 3: "(N, T, C)"}
        expected = " or ".join(shapes[rank] for rank in ranks)
        raise ValueError(f"`x` must have shape {expected}, got {values.shape}.")
    if not -values.ndim <= axis < values.ndim:
        raise ValueError(
            f"`channel_axis` must be an axis of x of shape {values.shape}, got {axis}."
        )
    values = np.moveaxis(values, axis, -1)
    empty = np.isnan(values).all(tuple(range(values.ndim - 1)) if values.ndim > 1 else None)
    if empty.any():
        raise ValueError(
            f"`x` must have a number in each channel, got NaN alone in {empty.sum()} of them."
        )
    return values


def _in_time(
    maps: np.ndarray, channel_axis: int, max_steps: int | None, reverse_half: bool
) -> np.ndarray:
    """Return the first time steps of maps `(N, R, C)`, half of the channels reversed in time."""
    if channel_axis not in (-1, -2):
        raise ValueError(f"`channel_axis` must be -1 or -2, got {channel_axis}.")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")
    series = np.moveaxis(maps, channel_axis, -1)
    half, odd = divmod(series.shape[-1], 2)
    if reverse_half:
        if odd:
            raise ValueError(
                "`reverse_half` must be False for an odd number of channels, got "
                f"{series.shape[-1]} channels."
            )
        series = np.concatenate([series[..., :half], series[:, ::-1, half:]], axis=-1)
    return np.moveaxis(series[:, :max_steps], -1, channel_axis)


def _as_array(ax: Axes | np.ndarray | None, several: bool) -> Axes | np.ndarray | None:
    """Return Axes as an array `(1,)` if a single panel is to be drawn."""
    return ax if several or ax is None else np.array([ax], dtype=object)


def _range(norm: Range, values: np.ndarray) -> tuple[float, float]:
    """Return the least and the largest value that have colours of their own."""
    if norm is None:
        low, high = float(values.min()), float(values.max())
        return low, high if high > low else low + 1
    message = f'`norm` must be None, "auto" or (min, max), got {norm!r}.'
    if isinstance(norm, str):
        if norm != "auto":
            raise ValueError(message)
        scale = style.color_scale([values])
        return -scale.limit if scale.signed else 0.0, scale.limit
    try:
        low, high = map(float, norm)
    except (TypeError, ValueError):
        raise ValueError(message) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"`norm` must be (min, max), min below max, got {norm}.")
    return low, high
