"""Attention matrices of input and output tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from jaxattn.plot import lettering, style
from jaxattn.plot.style import AttributionLike, ColorMap, Panels, Values


def attention(
    weights: Values,
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    *,
    marks: ArrayLike | None = None,
    values: bool = False,
    limit: float | None = None,
    title: str | None = None,
    xlabel: str | None = "input",
    ylabel: str | None = "output",
    label: str = "attention",
    cmap: ColorMap | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw an attention matrix, inputs across and outputs down.

    Args:
        weights: Weights of shape `(T_out, T_in)`, or of shape `(T_in,)` for one row.
        columns: T_in input tokens.
        rows: T_out output tokens.
        marks: Booleans of shape `(T_out, T_in)`, True at entries to be outlined, such as those of
            a known alignment.
        values: Whether to write each weight into its cell.
        limit: End of the colour scale; the largest magnitude by default.
        title: Title of the panel.
        xlabel: Label of the inputs.
        ylabel: Label of the outputs.
        label: Label of the colour bar.
        cmap: Colour map; see `jaxattn.plot` for the default.
        ax: Axes to draw on; a new figure by default.

    Returns:
        The Axes.

    Raises:
        ValueError: If a shape does not fit, a value is not finite, or `limit` is not positive.
        TypeError: If a token is not a string, or `weights` does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> ax = ja.plot.attention(np.eye(3), columns=["un", "deux", "trois"])
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['un', 'deux', 'trois']
    """
    table = np.atleast_2d(style.real("weights", weights))
    if table.ndim != 2:
        raise ValueError(
            f"`weights` must have shape (T_out, T_in), got {table.shape}; attention_heads draws "
            "those of several heads or layers."
        )
    outlined = _check_marks(marks, table.shape)
    scale = style.color_scale([table], limit, cmap)
    down, across = table.shape
    cell = 0.45 if values else 0.26
    width, height = np.clip(cell * across, 3, 16) + 1.6, np.clip(cell * down, 0.6, 12) + 1
    axes = style.panel(ax, (float(width), float(height)))
    picture = axes.imshow(table, norm=scale.norm, cmap=scale.cmap, aspect="auto")
    _name_ticks(axes, columns, rows, table.shape)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if title is not None:
        axes.set_title(title, fontsize="medium", parse_math=False)
    lines = LineCollection(
        list(style.borders(outlined)), zorder=3, colors=style.HIGHLIGHT, linewidths=1.2,
        clip_on=False,
    )  # fmt: skip
    axes.add_collection(lines, autolim=False)
    if values:
        _write_values(axes, table, picture)
    style.colorbar(axes, scale, [table], label)
    return axes


def attention_heads(
    weights: Values | Mapping[str, ArrayLike],
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    *,
    titles: Sequence[str] | None = None,
    limit: float | None = None,
    label: str = "attention",
    cmap: ColorMap | None = None,
    ax: np.ndarray | None = None,
) -> Panels:
    """Draw the attention matrices of several heads, or of the heads of several layers.

    Args:
        weights: Weights of shape `(heads, T_out, T_in)`, drawn side by side, or
            `(layers, heads, T_out, T_in)`, a row per layer; or these layers by name, as
            `jaxattn.attention` returns them, each of shape `(heads, T_out, T_in)`.
        columns: T_in input tokens.
        rows: T_out output tokens.
        titles: Title of each panel, row by row; by default the name or index of the layer, and the
            index of the head.
        limit: End of the colour scale of all panels; the largest magnitude by default.
        label: Label of the colour bar.
        cmap: Colour map; see `jaxattn.plot` for the default.
        ax: Array of Axes to draw on, shaped as returned; a new figure by default.

    Returns:
        The panels, shape `(heads,)` or `(layers, heads)`.

    Raises:
        ValueError: As `attention`; if there is not one title per panel.
        TypeError: If a token is not a string, or `weights` does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> ja.plot.attention_heads(np.ones((2, 4, 5, 5))).shape
        (2, 4)
    """
    values = weights.values if isinstance(weights, AttributionLike) else weights
    layers = list(values) if isinstance(values, Mapping) else None
    arrays: Any = list(values.values()) if isinstance(values, Mapping) else values
    tables = style.real("weights", arrays)
    if tables.ndim not in (3, 4) or (layers is not None and tables.ndim != 4):
        raise ValueError(
            "`weights` must have shape (heads, T_out, T_in) or (layers, heads, T_out, T_in), "
            f"got {tables.shape}."
        )
    shape, (down, across) = tables.shape[:-2], tables.shape[-2:]
    heads = shape[-1]
    style.same_length("titles", titles, int(np.prod(shape)), "heads")
    scale = style.color_scale([tables], limit, cmap)
    # Without layers, heads are drawn in lines of at most four.
    lines, width = (shape[0], heads) if len(shape) == 2 else (-(-heads // 4), min(heads, 4))
    size = (
        width * float(np.clip(0.2 * across, 2, 5)) + 1.2,
        lines * (float(np.clip(0.2 * down, 1.8, 4.5)) + 0.4) + 0.3,
    )
    axes = style.panels(ax, shape, lines, width, figsize=size)
    for place, (index, panel) in enumerate(np.ndenumerate(axes)):
        panel.imshow(tables[index], norm=scale.norm, cmap=scale.cmap, aspect="auto")
        _name_ticks(panel, columns, rows, (down, across))
        layer = f"layer {index[0]}" if layers is None else layers[index[0]]
        default = f"{layer}, head {index[1]}" if len(index) == 2 else f"head {index[0]}"
        title = default if titles is None else titles[place]
        panel.set_title(title, fontsize="medium", parse_math=False)
        # Only the outer panels have tokens.
        panel.tick_params(labelbottom=place + width >= axes.size, labelleft=place % width == 0)
    style.colorbar(axes, scale, [tables], label)
    return axes


def _check_marks(marks: ArrayLike | None, shape: tuple[int, ...]) -> np.ndarray:
    if marks is None:
        return np.zeros(shape, bool)
    outlined = np.asarray(marks, dtype=bool)
    if outlined.shape != shape:
        raise ValueError(f"`marks` must have the shape of weights, {shape}, got {outlined.shape}.")
    return outlined


def _name_ticks(
    axes: Axes,
    columns: Sequence[str] | None,
    rows: Sequence[str] | None,
    shape: tuple[int, ...],
) -> None:
    """Write tokens at both axes; those of more than two letters are upright below."""
    for name, tokens, axis, count in (
        ("rows", rows, axes.yaxis, shape[0]),
        ("columns", columns, axes.xaxis, shape[1]),
    ):
        if tokens is None:
            axis.set_major_locator(MaxNLocator(integer=True))
            continue
        if not hasattr(tokens, "__len__"):
            raise TypeError(f"`{name}` must be a sequence of strings, got {tokens!r}.")
        style.same_length(name, tokens, count, "inputs" if name == "columns" else "outputs")
        for token in tokens:
            if not isinstance(token, str):
                raise TypeError(f"`{name}` must be strings, got {token!r}.")
        texts = [lettering.visible_token(token) for token in tokens]
        rotation = 90 if name == "columns" and max(map(len, texts)) > 2 else 0
        axis.set_ticks(np.arange(count), texts, rotation=rotation, **lettering.font(texts))
        axis.set_tick_params(length=0, labelsize="small")


def _write_values(axes: Axes, table: np.ndarray, picture: AxesImage) -> None:
    """Write each number into its cell, black on pale and white on dark colours."""
    for (i, j), value in np.ndenumerate(table):
        ground = np.asarray(picture.to_rgba(value))[:3]
        ink = "black" if ground @ (0.299, 0.587, 0.114) > 0.5 else "white"
        text = f"{value:z.2f}"  # without negative zeros
        axes.text(j, i, text, ha="center", va="center", color=ink, fontsize="x-small")
