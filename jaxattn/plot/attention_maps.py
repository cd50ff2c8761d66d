"""Attention matrices: which input tokens each output token reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.ticker import MaxNLocator

from jaxattn.plot import lettering, style


def attention(
    weights: Any,
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    *,
    marks: Any = None,
    values: bool = False,
    limit: float | None = None,
    title: str | None = None,
    xlabel: str | None = "input",
    ylabel: str | None = "output",
    label: str = "attention",
    cmap: str | Colormap | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw which inputs, across, each output, down, attends to.

    Args:
        weights: `(T_out, T_in)`, or an `Attribution` of that shape; `(T_in,)` is drawn as one row.
            Weights that are somewhere negative get a colour scale that diverges from zero.
        columns: T_in input tokens.
        rows: T_out output tokens.
        marks: `(T_out, T_in)`, true at cells to be outlined, such as those of a known alignment.
        values: Whether each cell's number is written into it.
        limit: Where the colours end; by default the largest magnitude.
        title: What stands above.
        xlabel: What the inputs are.
        ylabel: What the outputs are.
        label: What the colour bar says.
        cmap: A colour map; sequential from zero, or diverging where a weight is negative.
        ax: The Axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: for weights of another rank, tokens or marks that do not fit them, values that
            are not finite.
        TypeError: for tokens that are not strings.
    """
    table = np.atleast_2d(style.real("weights", weights))
    if table.ndim != 2:
        raise ValueError(
            f"weights must have shape (T_out, T_in), got {table.shape}; attention_heads draws "
            "those of several heads or layers"
        )
    outlined = _marked(marks, table.shape)
    norm = _scale(limit, table)
    down, across = table.shape
    cell = 0.45 if values else 0.26
    size = (np.clip(cell * across, 3, 16) + 1.6, np.clip(cell * down, 0.6, 12) + 1)
    axes: Axes = style.panels(ax, (), 1, 1, figsize=tuple(size), layout="constrained").item()
    chosen = cmap or (style.DIVERGING if norm.vmin else style.SEQUENTIAL)
    picture = axes.imshow(table, norm=norm, cmap=chosen, aspect="auto")
    _name_ticks(axes, columns, rows, table.shape)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if title is not None:
        axes.set_title(title, fontsize="medium", parse_math=False)
    edges = {"colors": style.HIGHLIGHT, "linewidths": 1.2, "clip_on": False}
    lines = LineCollection(list(style.borders(outlined)), zorder=3, **edges)
    axes.add_collection(lines, autolim=False)
    if values:
        _write_values(axes, table, picture)
    style.colorbar(axes, norm, [table], label, chosen, aspect=30, pad=0.02)
    return axes


def attention_heads(
    weights: Any,
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    *,
    titles: Sequence[str] | None = None,
    limit: float | None = None,
    label: str = "attention",
    cmap: str | Colormap | None = None,
    ax: np.ndarray | None = None,
) -> np.ndarray:
    """Draw the attention matrices of several heads, or of the heads of several layers.

    Args:
        weights: `(heads, T_out, T_in)`, drawn side by side; or `(layers, heads, T_out, T_in)`, a
            row for each layer.
        columns: T_in input tokens.
        rows: T_out output tokens.
        titles: A title for each panel, row by row; by default the head's number, and the layer's.
        limit: Where the colours end, for all panels; by default the largest magnitude.
        label: What the colour bar says.
        cmap: A colour map, as for `attention`.
        ax: An array of Axes to draw on, shaped as returned.

    Returns:
        The Axes, `(heads,)` or `(layers, heads)`.

    Raises:
        ValueError: as `attention`, and for titles that are not one for each panel.
        TypeError: for tokens that are not strings.
    """
    tables = style.real("weights", weights)
    if tables.ndim not in (3, 4):
        raise ValueError(
            "weights must have shape (heads, T_out, T_in) or (layers, heads, T_out, T_in), "
            f"got {tables.shape}"
        )
    shape, (down, across) = tables.shape[:-2], tables.shape[-2:]
    heads = shape[-1]
    style.same_length("titles", titles, int(np.prod(shape)), "heads")
    norm = _scale(limit, tables)
    # A row of heads is broken into lines of at most four.
    lines, width = (shape[0], heads) if len(shape) == 2 else (-(-heads // 4), min(heads, 4))
    size = (
        width * np.clip(0.2 * across, 2, 5) + 1.2,
        lines * (np.clip(0.2 * down, 1.8, 4.5) + 0.4) + 0.3,
    )
    axes = style.panels(ax, shape, lines, width, figsize=size, layout="constrained")
    chosen = cmap or (style.DIVERGING if norm.vmin else style.SEQUENTIAL)
    for place, (index, panel) in enumerate(np.ndenumerate(axes)):
        panel.imshow(tables[index], norm=norm, cmap=chosen, aspect="auto")
        _name_ticks(panel, columns, rows, (down, across))
        named = f"layer {index[0]}, head {index[1]}" if len(index) == 2 else f"head {index[0]}"
        title = named if titles is None else titles[place]
        panel.set_title(title, fontsize="medium", parse_math=False)
        # Tokens are named once at each side.
        panel.tick_params(labelbottom=place + width >= axes.size, labelleft=place % width == 0)
    style.colorbar(axes, norm, [tables], label, chosen, aspect=30, pad=0.02)
    return axes


def _scale(limit: float | None, table: np.ndarray) -> Normalize:
    """From zero, or, where a weight is negative, on both sides of it."""
    norm = style.symmetric(limit, table)
    return norm if table.min() < 0 else Normalize(0, norm.vmax)


def _marked(marks: Any, shape: tuple[int, ...]) -> np.ndarray:
    if marks is None:
        return np.zeros(shape, bool)
    found = np.asarray(marks, dtype=bool)
    if found.shape != shape:
        raise ValueError(f"marks must have the shape of weights, {shape}, got {found.shape}")
    return found


def _name_ticks(
    axes: Axes,
    columns: Sequence[str] | None,
    rows: Sequence[str] | None,
    shape: tuple[int, ...],
) -> None:
    """Put tokens on both axes; those of more than two letters stand upright below."""
    for name, tokens, axis, count in (
        ("rows", rows, axes.yaxis, shape[0]),
        ("columns", columns, axes.xaxis, shape[1]),
    ):
        if tokens is None:
            axis.set_major_locator(MaxNLocator(integer=True))
            continue
        if not hasattr(tokens, "__len__"):
            raise TypeError(f"{name} must be a sequence of strings, got {tokens!r}")
        style.same_length(name, tokens, count, "inputs" if name == "columns" else "outputs")
        if wrong := [token for token in tokens if not isinstance(token, str)]:
            raise TypeError(f"{name} must be strings, got {wrong[0]!r}")
        shapes = [lettering.shown(token) for token in tokens]
        upright = 90 if name == "columns" and max(map(len, shapes)) > 2 else 0
        axis.set_ticks(np.arange(count), shapes, rotation=upright, **lettering.look(shapes))
        axis.set_tick_params(length=0, labelsize="small")


def _write_values(axes: Axes, table: np.ndarray, picture: Any) -> None:
    for (i, j), value in np.ndenumerate(table):
        ground = np.asarray(picture.to_rgba(value))[:3]
        ink = "black" if ground @ (0.299, 0.587, 0.114) > 0.5 else "white"
        axes.text(
            j, i, f"{value:.2f}", ha="center", va="center", color=ink, fontsize="x-small"
        )  # fmt: skip
