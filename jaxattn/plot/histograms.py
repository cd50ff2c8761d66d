"""Histograms in rows and columns, and histograms with clipped peaks."""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from jaxattn.plot import style
from jaxattn.plot.style import Panels


def features_hist_v2(
    x: Iterable[Iterable[ArrayLike]],
    *,
    ax: np.ndarray | None = None,
    bins: int = 100,
    limits: tuple[float, float] | None = None,
    equal_axes: bool = False,
    center_zero: bool = False,
    zero_line: bool = True,
    row_names: Sequence[str] | None = None,
    column_names: Sequence[str] | None = None,
    title: str | None = None,
    xlabel: str = "value",
) -> Panels:
    """Draw a grid of histograms, such as layers downwards and kinds of weights to the right.

    Args:
        x: R rows of C arrays each, of any shapes; or one array `(R, C, ...)`. NaN is left out.
        ax: Array `(R, C)` of Axes to draw on; a new figure by default.
        bins: Number of bars.
        limits: The range of the bars, the same for all panels; by default that of the values.
        equal_axes: Whether all panels have the same bins and the same scale.
        center_zero: Whether zero is in the middle of each panel.
        zero_line: Whether to draw a line at zero in panels whose range holds zero.
        row_names: R names.
        column_names: C names.
        title: Title of the figure.
        xlabel: Label of the values.

    Returns:
        The panels, shape `(R, C)`; the patches are the bars.

    Raises:
        ValueError: If rows differ in length, an array has no finite value or infinite ones,
            `limits` is no range, a number of names does not fit, or `bins` is below 1.
        TypeError: If an array does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> x = np.random.default_rng(0).normal(size=(2, 3, 100))
        >>> ja.plot.features_hist_v2(x, column_names=["a", "b", "c"]).shape
        (2, 3)
    """
    check_bins(bins, limits)
    rows = [[_numbers(values) for values in row] for row in x]
    if not rows or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ValueError(
            f"`x` must have R rows of C arrays each, got rows of {[len(row) for row in rows]}."
        )
    shape = len(rows), len(rows[0])
    style.same_length("row_names", row_names, shape[0], "rows")
    style.same_length("column_names", column_names, shape[1], "columns")
    figsize = (2.2 * shape[1] + 0.6, 1.5 * shape[0] + 0.5)
    axes = style.panels(ax, shape, *shape, figsize=figsize)
    if equal_axes and limits is None:
        every = np.concatenate([values for row in rows for values in row])
        limits = float(every.min()), float(every.max())
    for panels, row in zip(axes, rows, strict=True):
        for panel, values in zip(panels, row, strict=True):
            panel.hist(values, bins=bins, range=limits, color=style.PALETTE[0])
            mark_zero(panel, center_zero, zero_line)
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(labelsize="xx-small")
            panel.locator_params(axis="x", nbins=4)
            panel.ticklabel_format(axis="x", scilimits=(-2, 3))
            panel.xaxis.get_offset_text().set_fontsize("xx-small")
    if equal_axes:
        top = max(panel.get_ylim()[1] for panel in axes.flat)
        for panel in axes.flat:
            panel.set_ylim(0, top)
    for panel, name in zip(axes[0], column_names or [], strict=False):
        panel.set_title(name, fontsize="small")
    for i, panel in enumerate(axes[:, 0]):
        panel.set_ylabel("count" if row_names is None else row_names[i], fontsize="small")
    for panel in axes[-1]:
        panel.set_xlabel(xlabel, fontsize="small")
    if title is not None:
        axes.figure.suptitle(title)
    return axes


def hist_clipped(
    x: ArrayLike,
    *,
    ax: Axes | None = None,
    bins: int = 100,
    limits: tuple[float, float] | None = None,
    peaks: int = 1,
    zero_line: bool = True,
    title: str | None = None,
    xlabel: str = "value",
) -> Axes:
    """Draw a histogram whose highest bars are cut off, with their counts written above them.

    A peak, such as that of weights near zero, otherwise hides all other bars.

    Args:
        x: Values of any shape. NaN is left out.
        ax: Axes to draw on; a new figure by default.
        bins: Number of bars.
        limits: The range of the bars; by default that of the values.
        peaks: Number of bars to cut off, at the height of the next lower one.
        zero_line: Whether to draw a line at zero if the range holds zero.
        title: Title of the panel.
        xlabel: Label of the values.

    Returns:
        The Axes. Its patches are the bars with their full heights, beyond the limit of the axis;
        its texts are the counts of the bars that are cut off.

    Raises:
        ValueError: If there is no finite value, a value is infinite, `bins` is below 1, `limits` is
            no range, or `peaks` does not lie between 0 and `bins` - 1.
        TypeError: If `x` does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> x = np.concatenate([np.zeros(1000), np.linspace(-1, 1, 100)])
        >>> ax = ja.plot.hist_clipped(x, bins=10)
        >>> [text.get_text() for text in ax.texts]
        ['1010']
    """
    check_bins(bins, limits)
    if not 0 <= peaks < bins:
        raise ValueError(f"`peaks` must lie between 0 and `bins` - 1 = {bins - 1}, got {peaks}.")
    values = _numbers(x)
    ax = style.panel(ax, (5.0, 3.0))
    counts, _, _ = ax.hist(values, bins=bins, range=limits, color=style.PALETTE[0])
    order = np.argsort(-np.asarray(counts), kind="stable")
    top = max(float(np.asarray(counts)[order[peaks]]), 1.0)
    ax.set_ylim(0, 1.12 * top)
    for position in order[:peaks]:
        bar = ax.patches[position - bins]  # the last ones are those of this histogram
        middle = bar.get_x() + bar.get_width() / 2
        text = f"{int(np.asarray(counts)[position])}"
        ax.annotate(
            text, (middle, 1.12 * top), (0, 2), textcoords="offset points", ha="center",
            va="bottom", fontsize="small", color=style.HIGHLIGHT, annotation_clip=False,
        )  # fmt: skip
        bar.set_facecolor(style.HIGHLIGHT)
    mark_zero(ax, False, zero_line)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set(xlabel=xlabel, ylabel="count")
    if title is not None:
        ax.set_title(title, pad=16)
    return ax


def check_bins(bins: int, limits: tuple[float, float] | None) -> None:
    """Raise ValueError if there is no bar, or `limits` is no range."""
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1, got {bins}.")
    if limits is not None and not (len(limits) == 2 and limits[0] < limits[1]):
        raise ValueError(f"`limits` must be (min, max), min below max, got {limits}.")


def _numbers(values: ArrayLike) -> np.ndarray:
    """Return the values that are not NaN, flat and in float64."""
    array = np.asarray(values)
    if array.dtype.kind == "f":
        array = array[~np.isnan(array)]
        if not array.size:
            raise ValueError("`x` must have a number in each histogram, got NaN alone or nothing.")
    return style.real("x", array).ravel()


def mark_zero(panel: Axes, center: bool, line: bool) -> None:
    """Move zero to the middle of a panel, and draw a line there if it is in the panel.

    Args:
        panel: The panel.
        center: Whether to move zero to the middle.
        line: Whether to draw the line.
    """
    low, high = panel.get_xlim()
    if center:
        largest = max(abs(low), abs(high))
        panel.set_xlim(-largest, largest)
    if line and (center or low <= 0 <= high):
        panel.axvline(0, color=style.HIGHLIGHT, linewidth=0.8, zorder=1)
