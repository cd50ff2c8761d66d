"""What a layer makes of inputs: its channels over time, as maps, as histograms, as points."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from numpy.typing import ArrayLike

from jaxattn.plot import style

Scale = Literal["auto"] | Sequence[float | int] | None
_ZERO: dict[str, Any] = {"color": style.HIGHLIGHT, "linewidth": 0.8, "zorder": 1}


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
) -> np.ndarray:
    """Draw each channel of a layer over time in a small panel of its own, a curve a sample.

    With free axes the shapes of the curves can be seen; with equal ones, their sizes.

    Args:
        x: The channels over time, `(T, C)`, or of N samples, `(N, T, C)`. NaN leaves a gap: after
            the end of a sample, for one.
        ax: An array `(C,)` of Axes to draw on.
        equal_axes: Whether all panels have the same scale.
        zero_line: Whether to draw a line at zero; by default where the axes are equal.
        rows: How many panels below one another.
        columns: How many beside one another; by default a grid somewhat wider than high.
        channel_axis: Where the channels are in `x`.
        max_steps: How many time steps to show.
        channel_names: C names; their indices by default.
        sample_names: N names, for a legend.
        title: The title.
        xlabel: What the steps are.

    Returns:
        The Axes, `(C,)`: the first N lines of each are the samples.

    Raises:
        ValueError: for a wrong rank, a grid with fewer cells than channels, names that are too few
            or too many, infinite values, or a panel without any.
    """
    found = _channels(x, channel_axis, (2, 3))
    found = found[None] if found.ndim == 2 else found
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    found = found[:, :max_steps]
    count = found.shape[-1]
    style.same_length("channel_names", channel_names, count, "channels")
    style.same_length("sample_names", sample_names, len(found), "samples")
    axes, bottom = _grid(ax, count, rows, columns, "channels", (1.6, 1.15))
    for c, panel in enumerate(axes):
        for n, curve in enumerate(found[..., c]):
            colour = style.PALETTE[n % len(style.PALETTE)]
            name = None if sample_names is None else sample_names[n]
            panel.plot(curve, color=colour, linewidth=1, label=name)
        panel.set_xlim(0, max(found.shape[1] - 1, 1))
        if equal_axes if zero_line is None else zero_line:
            panel.axhline(0, **_ZERO)
    _finish(axes, bottom, channel_names, xlabel, title, same_x=True, same_y=equal_axes)
    if sample_names is not None:
        lines, _ = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(
            lines, sample_names, loc="outside lower center", ncols=len(lines), frameon=False
        )
    return axes


def features_2d(
    x: ArrayLike,
    *,
    ax: Any = None,
    norm: Scale = None,
    cmap: str | Colormap = style.DIVERGING,
    rows: int | None = None,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    xlabel: str = "channel",
    ylabel: str = "time step",
    colorbar: bool = True,
    label: str = "value",
) -> Any:
    """Draw a layer's features as a heat map, one a sample.

    Args:
        x: What to draw, `(R, C)`, rows downwards: time steps and channels, or queries and what they
            attend to; or of N samples, `(N, R, C)`.
        ax: Where to draw: one Axes, or an array `(N,)` of them.
        norm: The ends of the colour scale, the same in all panels: None for the least and the
            largest value; "auto" for the largest magnitude in both directions, so that zero has the
            middle colour; or `(min, max)`.
        cmap: The colour map.
        rows: How many panels below one another.
        columns: How many beside one another; by default a grid somewhat wider than high.
        titles: A title for each sample.
        xlabel: What the columns are.
        ylabel: What the rows are.
        colorbar: Whether to add a colour bar.
        label: What the colour bar says.

    Returns:
        The Axes, or an array `(N,)` of them for several samples; `ax.images[0]` holds the values.

    Raises:
        ValueError: for a wrong rank, a grid with fewer cells than samples, titles that are too few
            or too many, or values that are not finite.
    """
    found = style.real("x", x)
    if found.ndim not in (2, 3):
        raise ValueError(f"x must have shape (R, C) or (N, R, C), got {found.shape}")
    several = found.ndim == 3
    found = found if several else found[None]
    scale = _scale(norm, found)
    style.same_length("titles", titles, len(found), "samples")
    given = ax if several or ax is None else np.array([ax], dtype=object)
    axes, _ = _grid(given, len(found), rows, columns, "samples", (4.2, 3.4))
    for n, panel in enumerate(axes):
        panel.imshow(found[n], cmap=cmap, norm=scale, aspect="auto", interpolation="nearest")
        panel.set(xlabel=xlabel, ylabel=ylabel)
        panel.spines[:].set_visible(False)
        if titles is not None:
            panel.set_title(titles[n], fontsize="medium")
    if colorbar:
        bar = axes[0].figure.colorbar(ScalarMappable(scale, cmap), ax=axes.tolist(), label=label)
        bar.outline.set_visible(False)
        bar.formatter.set_powerlimits((-2, 3))
    return axes if several else axes[0]


def features_hist(
    x: ArrayLike,
    *,
    ax: Any = None,
    bins: int = 30,
    equal_axes: bool = False,
    zero_line: bool = True,
    rows: int | None = None,
    columns: int | None = None,
    channel_axis: int = -1,
    channel_names: Sequence[str] | None = None,
    title: str | None = None,
    xlabel: str = "value",
) -> Any:
    """Draw how the values of each channel of a layer are spread, over time and samples.

    Args:
        x: The values: `(n,)` for a single histogram; `(T, C)` or `(N, T, C)` for one a channel.
            NaN is left out.
        ax: Where to draw: one Axes for `(n,)`, an array `(C,)` of them otherwise.
        bins: How many bars, over the range of the channel, or of all with `equal_axes`.
        equal_axes: Whether all panels have the same bins and the same scale.
        zero_line: Whether to draw a line at zero where zero is in the range.
        rows: How many panels below one another.
        columns: How many beside one another; by default a grid somewhat wider than high.
        channel_axis: Where the channels are in `x`.
        channel_names: C names; their indices by default.
        title: The title.
        xlabel: What the values are.

    Returns:
        The Axes, or an array `(C,)` of them; the patches are the bars.

    Raises:
        ValueError: for a wrong rank, fewer bins than one, a grid with fewer cells than channels,
            names that are too few or too many, infinite values, or a channel without any.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    found = _channels(x, channel_axis, (1, 2, 3))
    several = found.ndim > 1
    columned = found.reshape(-1, found.shape[-1] if several else 1)
    parts = [part[~np.isnan(part)] for part in columned.T]
    style.same_length("channel_names", channel_names, len(parts), "channels")
    given = ax if several or ax is None else np.array([ax], dtype=object)
    size = (1.6, 1.15) if several else (5.0, 3.0)
    axes, bottom = _grid(given, len(parts), rows, columns, "channels", size)
    limits = (min(p.min() for p in parts), max(p.max() for p in parts)) if equal_axes else None
    for panel, values in zip(axes, parts, strict=True):
        panel.hist(values, bins=bins, range=limits, color=style.PALETTE[0])
        if zero_line and values.min() <= 0 <= values.max():
            panel.axvline(0, **_ZERO)
    names = [""] if not several and channel_names is None else channel_names
    _finish(axes, bottom, names, xlabel, title, same_x=equal_axes, same_y=equal_axes)
    for panel in axes[:: len(axes) if bottom is None else bottom]:
        panel.set_ylabel("count", fontsize="small" if several else None)
    return axes if several else axes[0]


def features_0d(
    x: ArrayLike,
    *,
    ax: Axes | None = None,
    zero_line: bool = True,
    sample_names: Sequence[str] | None = None,
    title: str | None = None,
    xlabel: str = "channel",
    ylabel: str = "value",
) -> Axes:
    """Draw one value a channel as points, a colour a sample.

    Args:
        x: The values, `(C,)`, or of N samples, `(N, C)`.
        ax: Where to draw; a new figure by default.
        zero_line: Whether to draw a line at zero.
        sample_names: N names, for a legend.
        title: The title.
        xlabel: What the channels are.
        ylabel: What the values are.

    Returns:
        The Axes: each of its collections holds the points of a sample.

    Raises:
        ValueError: for a wrong rank, names that are too few or too many, or values that are not
            finite.
    """
    found = style.real("x", x)
    if found.ndim not in (1, 2):
        raise ValueError(f"x must have shape (C,) or (N, C), got {found.shape}")
    found = np.atleast_2d(found)
    style.same_length("sample_names", sample_names, len(found), "samples")
    [ax] = style.panels(ax, (), 1, 1, figsize=(8, 2.8), layout="constrained").reshape(1)
    for n, values in enumerate(found):
        ax.scatter(
            np.arange(len(values)), values, s=16, color=style.PALETTE[n % len(style.PALETTE)],
            label=None if sample_names is None else sample_names[n], zorder=3,
        )  # fmt: skip
    if zero_line:
        ax.axhline(0, **_ZERO)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    if title is not None:
        ax.set_title(title)
    if sample_names is not None:
        ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def _channels(x: ArrayLike, axis: int, ranks: tuple[int, ...]) -> np.ndarray:
    """Checked values, the channels last; NaN may be among them, but no channel of NaN alone."""
    found = np.asarray(x)
    if found.dtype.kind == "f":
        gaps = np.isnan(found)
        found = np.where(gaps, np.nan, style.real("x", np.where(gaps, 0, found)))
    else:
        found = style.real("x", x)
    if found.ndim not in ranks:
        shapes = {1: "(n,)", 2: "(T, C)", 3: "(N, T, C)"}
        wanted = " or ".join(shapes[rank] for rank in ranks)
        raise ValueError(f"x must have shape {wanted}, got {found.shape}")
    if not -found.ndim <= axis < found.ndim:
        raise ValueError(f"channel_axis must be an axis of x of shape {found.shape}, got {axis}")
    found = np.moveaxis(found, axis, -1)
    empty = np.isnan(found).all(tuple(range(found.ndim - 1)) if found.ndim > 1 else None)
    if empty.any():
        raise ValueError(f"x must have a number in each channel, got NaN alone in {empty.sum()}")
    return found


def _grid(
    ax: Any,
    count: int,
    rows: int | None,
    columns: int | None,
    things: str,
    size: tuple[float, float],
) -> tuple[np.ndarray, int | None]:
    """Axes `(count,)`, and how many stand beside one another; None if they were given."""
    for name, given in {"rows": rows, "columns": columns}.items():
        if given is not None and given < 1:
            raise ValueError(f"{name} must be at least 1, got {given}")
    if columns is None:
        columns = math.ceil(count / rows) if rows else math.ceil(math.sqrt(1.3 * count))
    columns = min(columns, count)
    rows = math.ceil(count / columns) if rows is None else rows
    if rows * columns < count:
        raise ValueError(f"rows and columns must hold {count} {things}, got {rows} x {columns}")
    # A page has room for 11 inches; small letters must not shrink with the panels.
    scale = min(1.0, max(0.6, 10.5 / (size[0] * columns)))
    figsize = (scale * size[0] * columns + 0.5, scale * size[1] * rows + 0.5)
    axes = style.panels(ax, (count,), rows, columns, figsize=figsize, layout="constrained")
    return axes, columns if ax is None else None


def _finish(
    axes: np.ndarray,
    columns: int | None,
    names: Sequence[str] | None,
    xlabel: str,
    title: str | None,
    *,
    same_x: bool,
    same_y: bool,
) -> None:
    """Label small panels, and give them the same limits and fewer numbers where they share them."""
    for which, same in {"x": same_x, "y": same_y}.items():
        if same:
            ends = np.array([getattr(panel, f"get_{which}lim")() for panel in axes])
            for panel in axes:
                getattr(panel, f"set_{which}lim")(ends.min(), ends.max())
    small = len(axes) > 1
    for c, panel in enumerate(axes):
        name = str(c) if names is None else names[c]
        panel.set_title(name, loc="left", fontsize="x-small", pad=2)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize="xx-small" if small else None, pad=1.5)
        panel.locator_params(nbins=3 if small else 8)
        last = columns is None or c >= len(axes) - columns
        if last:
            panel.set_xlabel(xlabel, fontsize="x-small" if small else None)
        panel.tick_params(labelbottom=last or not same_x)
        panel.tick_params(labelleft=columns is None or not c % columns or not same_y)
    if title is not None:
        if columns is None or not small:
            axes[0].set_title(title)
        else:
            axes[0].figure.suptitle(title)


def _scale(norm: Scale, found: np.ndarray) -> Normalize:
    """The colour scale that `norm` asks for."""
    if norm is None:
        low, high = float(found.min()), float(found.max())
        return Normalize(low, high if high > low else low + 1)
    if isinstance(norm, str):
        if norm != "auto":
            raise ValueError(f'norm must be None, "auto" or (min, max), got {norm!r}')
        return style.symmetric(None, found)
    try:
        low, high = map(float, norm)
    except (TypeError, ValueError):
        raise ValueError(f'norm must be None, "auto" or (min, max), got {norm!r}') from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"norm must be (min, max), min below max, got {norm}")
    return Normalize(low, high)
