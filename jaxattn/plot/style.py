"""Types, checks, colour scales, Axes and colour bars that all plot functions share."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import ScalarFormatter
from numpy.typing import ArrayLike

DIVERGING, SEQUENTIAL = "RdBu_r", "Purples"
INK, PALE, HIGHLIGHT = "0.25", "0.7", "#d62728"
# The palette of Okabe and Ito stays distinct for colour-blind readers; black comes last.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")


@runtime_checkable
class AttributionLike(Protocol):
    """An object with the fields of `jaxattn.Attribution` that are drawn."""

    @property
    def values(self) -> ArrayLike:
        """The attributions."""

    @property
    def output(self) -> ArrayLike:
        """The output of the explained function."""


#: The values of one example: an array, or an `Attribution` that holds one.
Values: TypeAlias = ArrayLike | AttributionLike
#: The values of several examples: a batched array or `Attribution`, or a sequence of single ones.
Batch: TypeAlias = Values | Sequence[Values]
#: A colour map or its name.
ColorMap: TypeAlias = str | Colormap


class Panels(np.ndarray):
    """An array of Axes in one figure.

    It is an object array, indexed by panel as each plot function documents, and has the attribute
    `figure` that a single Axes has too.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> panels = ja.plot.images(np.ones((3, 8, 8)), np.ones((3, 8, 8)))
        >>> panels.shape, panels.figure is panels[0].figure
        ((3,), True)
    """

    @property
    def figure(self) -> Figure | SubFigure:
        """The figure that holds the Axes."""
        figure: Figure | SubFigure = self.flat[0].figure
        return figure


@dataclasses.dataclass(frozen=True)
class ColorScale:
    """The map from values to colours.

    Attributes:
        norm: The range of the values: `[-limit, limit]` if signed, otherwise `[0, limit]`.
        limit: The largest magnitude that has a colour of its own.
        signed: Whether negative values occur.
        cmap: The colour map of this range.
    """

    norm: Normalize
    limit: float
    signed: bool
    cmap: ColorMap


def color_scale(
    arrays: Sequence[np.ndarray], limit: float | None = None, cmap: ColorMap | None = None
) -> ColorScale:
    """Return the colour scale of arrays: diverging if a value is negative, otherwise sequential.

    Args:
        arrays: Arrays that share the scale.
        limit: The end of the scale; the largest magnitude by default.
        cmap: A colour map to use instead of the default ones.

    Returns:
        The colour scale.

    Raises:
        ValueError: If `limit` is not a positive number.
    """
    limit = largest(*arrays) if limit is None else float(limit)
    if not (math.isfinite(limit) and limit > 0):
        raise ValueError(f"`limit` must be a positive number, got {limit}.")
    signed = any(bool(array.min() < 0) for array in arrays)
    norm = Normalize(-limit if signed else 0.0, limit)
    return ColorScale(norm, limit, signed, cmap or (DIVERGING if signed else SEQUENTIAL))


def largest(*arrays: np.ndarray) -> float:
    """Return the largest magnitude, or 1 if all values are zero."""
    return max(float(np.abs(array).max()) for array in arrays) or 1.0


def real(name: str, array: Values) -> np.ndarray:
    """Return the argument called `name`, or the values of an `Attribution`, in finite float64."""
    values = array.values if isinstance(array, AttributionLike) else array
    try:
        converted = np.asarray(values)
    except ValueError:
        raise ValueError(f"`{name}` must be one array, got rows of different lengths.") from None
    if converted.dtype.kind in "OUScMm":
        kind = type(values).__name__ if converted.dtype.kind == "O" else converted.dtype
        raise TypeError(f"`{name}` must be one array of real numbers, got {kind}.")
    converted = converted.astype(np.float64)
    if not converted.size:
        raise ValueError(f"`{name}` must not be empty, got shape {converted.shape}.")
    if not np.isfinite(converted).all():
        count = (~np.isfinite(converted)).sum()
        raise ValueError(f"`{name}` must be finite, got {count} NaN or infinite values.")
    return converted


def examples(name: str, batch: Batch) -> list[Values]:
    """Return one array per example, from a batch `(B, ...)` or a sequence of B arrays."""
    values = batch.values if isinstance(batch, AttributionLike) else batch
    rows = (
        list(values)
        if isinstance(values, list | tuple)
        else list(np.atleast_1d(np.asarray(values)))
    )
    if not rows:
        raise ValueError(f"`{name}` must hold at least one example, got none.")
    return rows


def same_length(name: str, entries: Sequence | np.ndarray | None, count: int, of: str) -> None:
    """Raise ValueError if `entries` is not None and does not have `count` entries."""
    if entries is not None and len(entries) != count:
        raise ValueError(
            f"`{name}` must have one entry for each of {count} {of}, got {len(entries)}."
        )


def panels(
    ax: Axes | np.ndarray | None,
    shape: tuple[int, ...],
    rows: int,
    columns: int,
    *,
    figsize: tuple[float, float],
    layout: str = "constrained",
    sharex: bool = False,
    sharey: Literal["none", "row"] = "none",
    height_ratios: Sequence[float] | None = None,
) -> Panels:
    """Return `ax` as an array of Axes of this shape, or the Axes of a new figure.

    Args:
        ax: The Axes to draw on; None for a new figure.
        shape: The shape of the array.
        rows: Rows of the new figure's grid, which holds at least as many cells as `shape`.
        columns: Columns of this grid; cells that remain are removed.
        figsize: Width and height of the new figure in inches.
        layout: The layout engine of the new figure.
        sharex: Whether its Axes share one x axis.
        sharey: Which of its Axes share a y axis: "none" or "row".
        height_ratios: The relative heights of its rows; equal by default.

    Returns:
        The Axes.

    Raises:
        ValueError: If `ax` has another shape.
    """
    if ax is None:
        _, grid = plt.subplots(
            rows, columns, squeeze=False, figsize=figsize, layout=layout, sharex=sharex,
            sharey=sharey, height_ratios=height_ratios,
        )  # fmt: skip
        for spare in grid.flat[math.prod(shape) :]:
            spare.remove()
        return grid.flat[: math.prod(shape)].reshape(shape).view(Panels)
    axes = np.asarray(ax, dtype=object)
    if axes.shape != shape:
        expected = f"an array of Axes of shape {shape}" if shape else "one Axes"
        raise ValueError(f"`ax` must be {expected}, got shape {axes.shape}.")
    return axes.view(Panels)


def panel(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """Return `ax`, or the only Axes of a new figure."""
    axes: Axes = panels(ax, (), 1, 1, figsize=figsize).item()
    return axes


def borders(marked: np.ndarray) -> np.ndarray:
    """Return the lines `(n, 2 ends, x and y)` between marked elements and others."""
    padded = np.pad(marked, 1)
    upright = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])[:, ::-1] - 0.5
    level = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])[:, ::-1] - 0.5
    along_y, along_x = np.array([0, 1]), np.array([1, 0])
    return np.concatenate([
        np.stack([upright, upright + along_y], axis=1),
        np.stack([level, level + along_x], axis=1),
    ])  # fmt: skip


def colorbar(
    axes: Axes | Panels,
    scale: ColorScale,
    arrays: Sequence[np.ndarray],
    label: str,
    *,
    cax: Axes | None = None,
    aspect: float = 30.0,
    pad: float = 0.02,
) -> Colorbar:
    """Add a colour bar for `axes`; only its negative half if no value is positive.

    Args:
        axes: The Axes beside which the bar stands.
        scale: The colour scale.
        arrays: The values drawn, which determine the half and the pointed ends of the bar.
        label: The label of the bar.
        cax: The Axes for the bar itself; by default room is taken from `axes`.
        aspect: The ratio of the bar's height to its width.
        pad: The gap between `axes` and the bar, as a fraction of `axes`.

    Returns:
        The colour bar.
    """
    low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
    pointed = bool(low < -scale.limit), bool(high > scale.limit)
    ends = {
        (False, False): "neither",
        (True, False): "min",
        (False, True): "max",
        (True, True): "both",
    }
    owner = np.asarray(axes, dtype=object).flat[0].figure
    bar: Colorbar = owner.colorbar(
        ScalarMappable(scale.norm, scale.cmap),
        cax=cax,
        ax=np.asarray(axes, dtype=object).ravel().tolist() if cax is None else None,
        extend=ends[pointed],
        label=label,
        aspect=aspect,
        pad=pad,
    )
    if scale.signed and high <= 0:
        bar.ax.set_ylim(-scale.limit, 0)
    finish_bar(bar)
    return bar


def finish_bar(bar: Colorbar) -> None:
    """Set the style shared by all colour bars."""
    bar.outline.set(visible=False)
    if isinstance(bar.formatter, ScalarFormatter):
        bar.formatter.set_powerlimits((-2, 3))
    bar.ax.tick_params(labelsize="small")


def is_series(kind: str, shape: tuple[int, ...]) -> bool:
    """Return whether an input is drawn as a series: by `kind`, or if "auto" by its shape."""
    if kind not in ("auto", "image", "series"):
        raise ValueError(f'`kind` must be "auto", "image" or "series", got {kind!r}.')
    return kind == "series" or (kind == "auto" and (len(shape) == 1 or shape[1:] == (1,)))
