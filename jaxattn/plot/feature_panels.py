"""Grids of small panels, one per channel or sample of a layer."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from jaxattn.plot import style
from jaxattn.plot.style import Panels


@dataclasses.dataclass(frozen=True)
class FeatureGrid:
    """Panels, shape `(count,)`, and the number per row; None if the Axes are the caller's."""

    axes: Panels
    columns: int | None


def feature_grid(
    ax: Axes | np.ndarray | None,
    count: int,
    things: str,
    size: tuple[float, float],
    *,
    rows: int | None,
    columns: int | None,
) -> FeatureGrid:
    """Return `ax`, or the panels of a new figure.

    Args:
        ax: Array `(count,)` of Axes; None for a new figure.
        count: Number of panels.
        things: Plural noun for the content of a panel, for error messages.
        size: Width and height of a panel in inches, if there is room.
        rows: Number of panels per column.
        columns: Number of panels per row; by default the grid is slightly wider than high.

    Returns:
        The panels.

    Raises:
        ValueError: If `ax` has another shape, or the grid has fewer cells than `count`.
    """
    for name, number in {"rows": rows, "columns": columns}.items():
        if number is not None and number < 1:
            raise ValueError(f"`{name}` must be at least 1, got {number}.")
    if columns is None:
        columns = math.ceil(count / rows) if rows else math.ceil(math.sqrt(1.3 * count))
    columns = min(columns, count)
    rows = math.ceil(count / columns) if rows is None else rows
    if rows * columns < count:
        raise ValueError(
            f"`rows` and `columns` must hold {count} {things}, got {rows} x {columns}."
        )
    # A page is 11 inches wide, but small text must stay readable in small panels.
    scale = min(1.0, max(0.6, 10.5 / (size[0] * columns)))
    figsize = (scale * size[0] * columns + 0.5, scale * size[1] * rows + 0.5)
    axes = style.panels(ax, (count,), rows, columns, figsize=figsize)
    return FeatureGrid(axes, columns if ax is None else None)


def finish_panels(
    grid: FeatureGrid,
    names: Sequence[str] | None,
    xlabel: str,
    title: str | None,
    *,
    same_x: bool,
    same_y: bool,
) -> None:
    """Label small panels, with equal limits and outer tick labels only on axes they share.

    Args:
        grid: The panels.
        names: Names of the panels; the indices by default.
        xlabel: Label of the x axis.
        title: Title of the figure; of the first panel if the Axes are the caller's.
        same_x: Whether all panels share the limits of the x axis.
        same_y: Whether all panels share the limits of the y axis.
    """
    axes, columns = grid.axes, grid.columns
    if same_x:
        ends = np.array([panel.get_xlim() for panel in axes])
        for panel in axes:
            panel.set_xlim(ends.min(), ends.max())
    if same_y:
        ends = np.array([panel.get_ylim() for panel in axes])
        for panel in axes:
            panel.set_ylim(ends.min(), ends.max())
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
            axes.figure.suptitle(title)
