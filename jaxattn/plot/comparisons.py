"""Several methods' attributions of the same inputs."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Colormap
from numpy.typing import ArrayLike

from jaxattn.plot import pictures, style, time_series


def comparison(
    x: ArrayLike,
    values: Mapping[str, Any],
    *,
    kind: str = "auto",
    scores: Mapping[str, float | str] | None = None,
    score_label: str | None = None,
    normalize: bool = True,
    columns: int | None = None,
    ax: np.ndarray | None = None,
    cmap: str | Colormap = style.DIVERGING,
    label: str | None = None,
    sampling_rate: float | None = None,
) -> np.ndarray:
    """Draw what several methods say about one input.

    Images stand beside one another, the input first; series below one another on one time axis.

    Args:
        x: The input: an image, or a series `(T,)` or `(T, D)`.
        values: An attribution for each method's name.
        kind: "image", "series", or "auto": a series if `x` has shape `(T,)` or `(T, 1)`.
        scores: A number or a text for some of the methods, written at their panels.
        score_label: What the scores are, written once: below the input, or before the first score.
        normalize: Whether each attribution is divided by its largest magnitude, as methods differ
            in scale; if not, all share the scale of the largest value.
        columns: How many pictures beside one another; by default up to six.
        ax: An array of Axes to draw on, shaped as returned.
        cmap: A diverging colour map.
        label: What the colour bar says.
        sampling_rate: Steps a second, of a series.

    Returns:
        The Axes: `(1 + M,)` for images, `(M,)` for series, `(M, D)` for several channels.

    Raises:
        ValueError: as `image` and `series`, for no methods, scores of unknown ones, or a
            `score_label` without scores.
    """
    series = style.is_series(kind, np.shape(x))
    _known(scores, score_label, values)
    every = {name: [v] for name, v in values.items()}
    [shown], [heats] = _checked({"x": x}, every, series, normalize)
    norm = style.symmetric(None, *heats)
    if series:
        axes = time_series.traces(
            shown, heats, list(values), norm, ax=ax, cmap=cmap,
            sampling_rate=sampling_rate,
        )  # fmt: skip
    else:
        count = 1 + len(heats)
        axes = pictures.picture_panels(ax, count, 6 if columns is None else columns, titled=True)
        for panel, heat, title in zip(axes, [None, *heats], ["input", *values], strict=True):
            pictures.overlay(panel, shown, heat, norm, cmap=cmap)
            panel.set_title(title, fontsize="medium")
    last = axes.reshape(len(heats), -1)[:, -1] if series else axes
    _write(last, values, scores or {}, score_label, series)
    style.colorbar(axes, norm, heats, label or _label(normalize), cmap, aspect=30, pad=0.02)
    return axes


def comparison_grid(
    xs: Any,
    values: Mapping[str, Any],
    *,
    kind: str = "auto",
    titles: Sequence[str] | None = None,
    scores: Mapping[str, Sequence[float | str]] | None = None,
    score_label: str | None = None,
    normalize: bool = True,
    ax: np.ndarray | None = None,
    cmap: str | Colormap = style.DIVERGING,
    label: str | None = None,
    sampling_rate: float | None = None,
) -> np.ndarray:
    """Draw what several methods say about several inputs: a row for each input, a column a method.

    Args:
        xs: B images, or B series `(T,)` or `(T, 1)`, as an array or a sequence.
        values: For each method's name B attributions: a batched `Attribution`, an array, or a
            sequence.
        kind: "image", "series", or "auto", as in `comparison`.
        titles: A title for each row.
        scores: For some of the methods B numbers or texts, written at their panels.
        score_label: What the scores are, written once, as in `comparison`.
        normalize: Whether each panel is divided by its largest magnitude.
        ax: An array of Axes to draw on, shaped as returned.
        cmap: A diverging colour map.
        label: What the colour bar says.
        sampling_rate: Steps a second, of series.

    Returns:
        The Axes: `(B, 1 + M)` for images, the input first, and `(B, M)` for series.

    Raises:
        ValueError: as `comparison`, for series of several channels, or if lengths differ.
    """
    every = style.examples("xs", xs)
    batches = {name: style.examples(f"values[{name!r}]", v) for name, v in values.items()}
    for name, batch in batches.items():
        style.same_length(f"values[{name!r}]", batch, len(every), "inputs")
    style.same_length("titles", titles, len(every), "inputs")
    _known(scores, score_label, values)
    for name, row in (scores or {}).items():
        style.same_length(f"scores[{name!r}]", row, len(every), "inputs")
    series = style.is_series(kind, np.shape(every[0]))
    named = {f"xs[{b}]": x for b, x in enumerate(every)}
    inputs, heats = _checked(named, batches, series, normalize)
    if series and any(x.shape != (len(inputs[0]), 1) for x in inputs):
        raise ValueError(f"xs must be series of one shape, (T,), got {[x.shape for x in inputs]}")
    flat = [heat for row in heats for heat in row]
    norm = style.symmetric(None, *flat)
    rows, columns = len(inputs), len(values) + (not series)
    if series:
        steps, time_label = time_series.time_axis(len(inputs[0]), None, sampling_rate)
        axes = time_series.stacked_panels(
            ax, (rows, columns), rows, columns, height=1.5, sharey="row"
        )
    else:
        size = (1.6 * columns + 1.2, (1.6 + 0.25 * bool(scores)) * rows + 0.4)
        axes = style.panels(ax, (rows, columns), rows, columns, figsize=size, layout="compressed")
    for b, panels in enumerate(axes):
        if not series:
            pictures.overlay(panels[0], inputs[b], None, norm)
        for panel, heat in zip(panels[-len(values) :], heats[b], strict=True):
            if series:
                time_series.band(panel, steps, inputs[b][:, 0], heat[:, 0], norm, cmap=cmap)
            else:
                pictures.overlay(panel, inputs[b], heat, norm, cmap=cmap)
        if titles is not None:
            panels[0].set_ylabel(titles[b])
        texts = {name: row[b] for name, row in (scores or {}).items()}
        _write(panels, values, texts, score_label if b == 0 else None, series)
    names = list(values) if series else ["input", *values]
    for panel, name in zip(axes[0], names, strict=True):
        panel.set_title(name, loc="left" if series else "center", fontsize="medium")
    if series:
        for panel in axes[-1]:
            panel.set_xlabel(time_label)
    style.colorbar(axes, norm, flat, label or _label(normalize), cmap, aspect=30, pad=0.02)
    return axes


def _checked(
    xs: Mapping[str, Any], values: Mapping[str, list], series: bool, normalize: bool
) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """The inputs as drawn, and for each a row of attributions, one a method."""
    if not values:
        raise ValueError("values must hold at least one method's attribution, got none")
    as_input = time_series.channels if series else pictures.as_picture
    as_values = time_series.matching if series else pictures.as_heat
    inputs = [as_input(name, x) for name, x in xs.items()]
    rows = [
        [as_values(f"values[{name!r}]", batch[b], x) for name, batch in values.items()]
        for b, x in enumerate(inputs)
    ]
    if normalize:
        rows = [[heat / style.largest(heat) for heat in row] for row in rows]
    return inputs, rows


def _known(
    scores: Mapping[str, Any] | None, score_label: str | None, values: Mapping[str, Any]
) -> None:
    if unknown := set(scores or ()) - set(values):
        raise ValueError(f"scores must be of methods in values, got {sorted(unknown)}")
    if score_label is not None and not scores:
        raise ValueError(f"score_label must come with scores, got {score_label!r} alone")


def _write(
    panels: np.ndarray,
    values: Mapping[str, Any],
    scores: Mapping[str, float | str],
    label: str | None,
    series: bool,
) -> None:
    """Write one input's scores at its panels, one a method; images have the input's panel first."""
    font: dict[str, Any] = {"fontsize": "small", "color": style.INK}
    if not series and label is not None:
        panels[0].set_xlabel(textwrap.fill(label, 22), **font)
    for name, panel in zip(values, panels[-len(values) :], strict=True):
        if name not in scores:
            continue
        score = scores[name]
        text = score if isinstance(score, str) else f"{float(score):.3g}"
        if not series:
            panel.set_xlabel(text, **font)
        else:
            panel.set_title(f"{label}: {text}" if label else text, loc="right", **font)
            label = None


def _label(normalize: bool) -> str:
    return "attribution / largest magnitude of its panel" if normalize else "attribution"
