"""The weights of recurrent layers by gate, or their gradients: histograms and heat maps."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import ArrayLike

from jaxattn.plot import style
from jaxattn.plot.style import ColorMap, Panels

#: The colour of NaN in heat maps, and of infinite entries.
NOT_FINITE = "black"
_PARTS = ("kernel", "recurrent", "bias")


@runtime_checkable
class GatesLike(Protocol):
    """Values by gate, such as `jaxattn.introspect.LSTMGates`."""

    def items(self) -> Iterable[tuple[str, ArrayLike]]:
        """Iterate over the names of the gates and their values."""


@runtime_checkable
class WeightsLike(Protocol):
    """An object with the fields of `jaxattn.introspect.Weights` that are drawn."""

    @property
    def kernel(self) -> GatesLike:
        """The weights of the input, by gate."""

    @property
    def recurrent(self) -> GatesLike:
        """The weights of the hidden state, by gate."""

    @property
    def bias(self) -> GatesLike:
        """The biases, by gate."""

    @property
    def layer(self) -> str:
        """The name of the layer."""


@dataclasses.dataclass(frozen=True)
class _Row:
    """One part of the weights of one layer.

    Attributes:
        layer: the name of the layer.
        part: "kernel", "recurrent" or "bias".
        gates: the values by gate, in float64; NaN and infinity are kept.
    """

    layer: str
    part: str
    gates: dict[str, np.ndarray]

    @property
    def finite(self) -> np.ndarray:
        """All finite values."""
        values = np.concatenate([gate.ravel() for gate in self.gates.values()])
        return values[np.isfinite(values)]


def rnn_heatmap(
    weights: WeightsLike | Sequence[WeightsLike],
    *,
    parts: Sequence[str] = _PARTS,
    ax: np.ndarray | None = None,
    limit: float | None = None,
    cmap: ColorMap | None = None,
    colorbar: bool = True,
    title: str | None = None,
    label: str = "weight",
) -> Panels:
    """Draw the weights of a recurrent layer as heat maps, one per gate.

    Args:
        weights: Weights by gate, as `jaxattn.introspect.weights` returns them, or their gradients;
            a sequence for several layers, such as both directions of one.
        parts: Which of "kernel", "recurrent" and "bias", one row of panels for each.
        ax: Array of Axes to draw on, of the shape of the result; a new figure by default.
        limit: The magnitude at the ends of the colour scales; by default the largest of each row.
        cmap: Colour map; by default diverging, with white at zero.
        colorbar: Whether to add a colour bar to each row.
        title: Title of the figure.
        label: Label of the colour bars.

    Returns:
        The panels, shape `(layers * parts, gates)`, the parts of each layer in succession;
        `images[0]` of each holds the values, a bias as one row. NaN and infinite entries are black,
        and their numbers are in the title of the panel.

    Raises:
        ValueError: If a part is unknown, a shape does not fit, no value of a row is finite, or
            `limit` is not positive.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> lstm = ja.nn.LSTM(3, 4, rngs=nnx.Rngs(0))
        >>> weights = ja.introspect.weights(lstm, jnp.ones((5, 3)))
        >>> ja.plot.rnn_heatmap(weights).shape
        (3, 4)
    """
    rows = _rows(weights, parts)
    heights = [0.35 if row.part == "bias" else 1.0 for row in rows]
    axes = _grid(ax, rows, (2.4, 2.1), heights)
    for row, panels in zip(rows, axes, strict=True):
        largest = style.largest(row.finite) if limit is None else limit
        if not (np.isfinite(largest) and largest > 0):
            raise ValueError(f"`limit` must be a positive number, got {limit}.")
        scale = Normalize(-largest, largest)
        colours = mpl.colormaps.get_cmap(cmap or style.DIVERGING).with_extremes(bad=NOT_FINITE)
        for panel, values in zip(panels, row.gates.values(), strict=True):
            shown = np.ma.masked_invalid(np.atleast_2d(values))
            panel.imshow(shown, cmap=colours, norm=scale, aspect="auto", interpolation="nearest")
            panel.spines[:].set_visible(False)
            panel.tick_params(labelsize="xx-small")
            panel.locator_params(integer=True, nbins=4)
            if len(shown) == 1:
                panel.set_yticks([] if row.part == "bias" else [0])
        panels[0].set_ylabel({"kernel": "input", "recurrent": "hidden unit"}.get(row.part, ""))
        if colorbar:
            mappable = ScalarMappable(scale, colours)
            bar = panels[0].figure.colorbar(mappable, ax=panels.tolist(), label=label, pad=0.02)
            style.finish_bar(bar)
    _finish(axes, rows, "unit of the gate", title)
    return axes


def rnn_histogram(
    weights: WeightsLike | Sequence[WeightsLike],
    *,
    parts: Sequence[str] = _PARTS,
    ax: np.ndarray | None = None,
    bins: int = 50,
    equal_axes: bool = True,
    zero_line: bool = True,
    title: str | None = None,
    xlabel: str = "weight",
) -> Panels:
    """Draw histograms of the weights of a recurrent layer, one per gate.

    Args:
        weights: Weights by gate, as `jaxattn.introspect.weights` returns them, or their gradients;
            a sequence for several layers, such as both directions of one.
        parts: Which of "kernel", "recurrent" and "bias", one row of panels for each.
        ax: Array of Axes to draw on, of the shape of the result; a new figure by default.
        bins: Number of bars.
        equal_axes: Whether the panels of a row have the same bins and the same scale.
        zero_line: Whether to draw a line at zero in panels whose range holds zero.
        title: Title of the figure.
        xlabel: Label of the values.

    Returns:
        The panels, shape `(layers * parts, gates)`, the parts of each layer in succession; the
        patches are the bars. NaN and infinite entries are left out, and their numbers are in the
        title of the panel.

    Raises:
        ValueError: If a part is unknown, a shape does not fit, no value of a row is finite, or
            `bins` is below 1.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> gru = ja.nn.GRU(3, 4, rngs=nnx.Rngs(0))
        >>> weights = ja.introspect.weights(gru, jnp.ones((5, 3)))
        >>> ja.plot.rnn_histogram(weights, parts=["kernel", "recurrent"]).shape
        (2, 3)
    """
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1, got {bins}.")
    rows = _rows(weights, parts)
    axes = _grid(ax, rows, (2.2, 1.5), [1.0] * len(rows))
    for row, panels in zip(rows, axes, strict=True):
        limits = (float(row.finite.min()), float(row.finite.max())) if equal_axes else None
        for panel, values in zip(panels, row.gates.values(), strict=True):
            finite = values[np.isfinite(values)]
            panel.hist(finite, bins=bins, range=limits, color=style.PALETTE[0])
            low, high = panel.get_xlim()
            if zero_line and low <= 0 <= high:
                panel.axvline(0, color=style.HIGHLIGHT, linewidth=0.8, zorder=1)
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(labelsize="xx-small")
            panel.locator_params(axis="x", nbins=4)
            panel.ticklabel_format(axis="x", scilimits=(-2, 3))
            panel.xaxis.get_offset_text().set_fontsize("xx-small")
        if equal_axes:
            top = max(panel.get_ylim()[1] for panel in panels)
            for panel in panels:
                panel.set_ylim(0, top)
        panels[0].set_ylabel("count", fontsize="small")
    _finish(axes, rows, xlabel, title)
    return axes


def _rows(weights: WeightsLike | Sequence[WeightsLike], parts: Sequence[str]) -> list[_Row]:
    """Return a row for each part of each layer."""
    layers = [weights] if isinstance(weights, WeightsLike) else list(weights)
    unknown = [part for part in parts if part not in _PARTS]
    if unknown or not parts or isinstance(parts, str):
        raise ValueError(f"`parts` must be some of {list(_PARTS)}, got {parts!r}.")
    if not layers:
        raise ValueError("`weights` must hold at least one layer, got none.")
    rows = []
    for layer in layers:
        for part in parts:
            gates = {name: _numbers(values) for name, values in getattr(layer, part).items()}
            rows.append(_Row(layer.layer, part, gates))
    names = {tuple(row.gates) for row in rows}
    if len(names) > 1:
        raise ValueError(f"`weights` must have the same gates in all layers, got {sorted(names)}.")
    for row in rows:
        if not row.finite.size:
            raise ValueError(
                f"`weights` must have a finite value in the {row.part} of {row.layer!r}, got NaN "
                "or infinity alone."
            )
    return rows


def _numbers(values: ArrayLike) -> np.ndarray:
    """Return one array of real numbers in float64; NaN and infinity are kept."""
    array = np.asarray(values).astype(np.float64)
    if array.ndim not in (1, 2):
        raise ValueError(
            f"`weights` must be those of one layer, of shape (D, H) or (H,), got {array.shape}."
        )
    return array


def _grid(
    ax: np.ndarray | None, rows: Sequence[_Row], size: tuple[float, float], heights: list[float]
) -> Panels:
    count = len(rows[0].gates)
    figsize = (size[0] * count + 0.8, size[1] * sum(heights) + 0.35 * len(rows) + 0.5)
    shape = len(rows), count
    return style.panels(ax, shape, *shape, figsize=figsize, height_ratios=heights)


def _finish(axes: Panels, rows: Sequence[_Row], xlabel: str, title: str | None) -> None:
    """Label the panels, with the numbers of entries that are not finite."""
    several = len({row.layer for row in rows}) > 1
    for row, panels in zip(rows, axes, strict=True):
        for panel, (gate, values) in zip(panels, row.gates.items(), strict=True):
            counts = {"NaN": np.isnan(values).sum(), "inf": np.isinf(values).sum()}
            flaws = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            name = f"{row.part}, {gate}" + (f": {flaws}" if flaws else "")
            colour = style.HIGHLIGHT if flaws else style.INK
            panel.set_title(name, loc="left", fontsize="x-small", pad=2, color=colour)
        if several and row.part == rows[0].part:
            panels[0].annotate(
                row.layer, (0, 1), (0, 14), xycoords="axes fraction", textcoords="offset points",
                fontsize="small", fontweight="bold",
            )  # fmt: skip
    for panel in axes[-1]:
        panel.set_xlabel(xlabel, fontsize="x-small")
    if title is not None:
        axes.figure.suptitle(title)
