"""Attributions of several methods beside one another."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from jaxattn.plot import pictures, style, time_series
from jaxattn.plot.style import Batch, ColorMap, ColorScale, Panels, Values

#: The score of a method: a number, or text.
Score: TypeAlias = float | int | str


def comparison(
    x: ArrayLike,
    values: Mapping[str, Values],
    *,
    kind: str = "auto",
    scores: Mapping[str, Score] | None = None,
    score_label: str | None = None,
    normalize: bool = True,
    columns: int | None = None,
    ax: np.ndarray | None = None,
    cmap: ColorMap | None = None,
    label: str | None = None,
    sampling_rate: float | None = None,
) -> Panels:
    """Draw the attributions of several methods for one input.

    Images are drawn beside one another, the input first, and series below one another. Methods
    with negative values have a diverging colour scale, the others a sequential one; each scale has
    its own colour bar.

    Args:
        x: Image, or series of shape `(T,)` or `(T, D)`.
        values: M attributions, by the name of the method.
        kind: "image", "series", or "auto": a series if `x` has shape `(T,)` or `(T, 1)`.
        scores: Numbers or texts for some of the methods, written at their panels.
        score_label: Label of the scores, written once: below the input, or before the first score.
        normalize: Whether each attribution is divided by its largest magnitude. If False, all
            share the scale of the largest value.
        columns: Number of images per row; at most six by default.
        ax: Array of Axes to draw on, shaped as returned; a new figure by default.
        cmap: One colour map, and one range of values, for all methods; see `jaxattn.plot`.
        label: Label of the colour bar.
        sampling_rate: Steps per second of a series.

    Returns:
        The panels, shape `(1 + M,)` for images, `(M,)` for a series, `(M, D)` for a series of D > 1
        channels.

    Raises:
        ValueError: As `image` and `series`; if there are no methods, scores of methods that are
            not in `values`, or a `score_label` without scores.
        TypeError: If an array does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> methods = {"gradient": np.eye(8) - 0.5, "saliency": np.eye(8)}
        >>> panels = ja.plot.comparison(np.ones((8, 8)), methods, scores={"gradient": 0.25})
        >>> [panel.get_title() for panel in panels]
        ['input', 'gradient', 'saliency']
    """
    series = style.is_series(kind, np.shape(x))
    _check_scores(scores, score_label, values)
    batches = {name: [attribution] for name, attribution in values.items()}
    compared = _check_inputs({"x": x}, batches, series, normalize, cmap)
    [example], [heats], scales = compared.inputs, compared.heats, compared.scales
    if series:
        axes = time_series.traces(
            example, list(heats.values()), list(heats), list(scales.values()), ax=ax,
            sampling_rate=sampling_rate,
        )  # fmt: skip
        last = axes.reshape(len(heats), -1)[:, -1]
    else:
        count = 1 + len(heats)
        axes = last = pictures.picture_panels(
            ax, count, 6 if columns is None else columns, titled=True
        )
        pictures.show(axes[0], example)
        for panel, (name, heat) in zip(axes[1:], heats.items(), strict=True):
            pictures.overlay(panel, example, heat, scales[name])
        for panel, title in zip(axes, ["input", *heats], strict=True):
            panel.set_title(title, fontsize="medium")
    _write_scores(last, values, scores or {}, score_label, series)
    _colorbars(axes, compared, label or _label(normalize))
    return axes


def comparison_grid(
    xs: Batch,
    values: Mapping[str, Batch],
    *,
    kind: str = "auto",
    titles: Sequence[str] | None = None,
    scores: Mapping[str, Sequence[Score]] | None = None,
    score_label: str | None = None,
    normalize: bool = True,
    ax: np.ndarray | None = None,
    cmap: ColorMap | None = None,
    label: str | None = None,
    sampling_rate: float | None = None,
) -> Panels:
    """Draw the attributions of several methods for several inputs, one row per input.

    Each method has a column. Methods with negative values have a diverging colour scale, the
    others a sequential one; each scale has its own colour bar.

    Args:
        xs: B images, or B series of shape `(T,)` or `(T, 1)`, as an array or a sequence.
        values: For each of M methods B attributions: a batched `Attribution`, an array or a
            sequence.
        kind: "image", "series", or "auto", as in `comparison`.
        titles: B titles.
        scores: For some of the methods B numbers or texts, written at their panels.
        score_label: Label of the scores, written once, as in `comparison`.
        normalize: Whether the attribution of each panel is divided by its largest magnitude.
        ax: Array of Axes to draw on, shaped as returned; a new figure by default.
        cmap: One colour map, and one range of values, for all methods; see `jaxattn.plot`.
        label: Label of the colour bar.
        sampling_rate: Steps per second of the series.

    Returns:
        The panels, shape `(B, 1 + M)` for images, the inputs first, and `(B, M)` for series.

    Raises:
        ValueError: As `comparison`; if lengths differ, or the series have several channels.
        TypeError: If an array does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> values = np.random.default_rng(0).normal(size=(2, 8, 8))
        >>> ja.plot.comparison_grid(np.ones((2, 8, 8)), {"gradient": values}).shape
        (2, 2)
    """
    examples = style.examples("xs", xs)
    batches = {name: style.examples(f"values[{name!r}]", v) for name, v in values.items()}
    _check_scores(scores, score_label, values)
    for name, rows in {
        "titles": titles,
        **{f"values[{method!r}]": batch for method, batch in batches.items()},
        **{f"scores[{method!r}]": row for method, row in (scores or {}).items()},
    }.items():
        style.same_length(name, rows, len(examples), "inputs")
    series = style.is_series(kind, np.asarray(examples[0]).shape)
    named = {f"xs[{b}]": x for b, x in enumerate(examples)}
    compared = _check_inputs(named, batches, series, normalize, cmap)
    if series:
        axes = _series_grid(compared, ax, sampling_rate)
    else:
        axes = _image_grid(compared, ax, scored=bool(scores))
    for b, panels in enumerate(axes):
        if titles is not None:
            panels[0].set_ylabel(titles[b])
        texts = {name: row[b] for name, row in (scores or {}).items()}
        _write_scores(panels, values, texts, score_label if b == 0 else None, series)
    _colorbars(axes, compared, label or _label(normalize))
    return axes


@dataclasses.dataclass(frozen=True)
class _Compared:
    """Checked inputs, the attributions of each input by method, and a colour scale per method."""

    inputs: list[np.ndarray]
    heats: list[dict[str, np.ndarray]]
    scales: dict[str, ColorScale]


def _check_inputs(
    xs: Mapping[str, Values],
    values: Mapping[str, Sequence[Values]],
    series: bool,
    normalize: bool,
    cmap: ColorMap | None,
) -> _Compared:
    """Check the inputs, by the name of the argument, and their attributions, by method."""
    if not values:
        raise ValueError("`values` must hold at least one method's attribution, got none.")
    as_input = time_series.channels if series else pictures.as_picture
    as_heat = time_series.matching if series else pictures.as_heat
    inputs = [as_input(name, x) for name, x in xs.items()]
    heats = [
        {name: as_heat(f"values[{name!r}]", batch[b], x) for name, batch in values.items()}
        for b, x in enumerate(inputs)
    ]
    if normalize:
        heats = [{name: h / style.largest(h) for name, h in row.items()} for row in heats]
    columns = {name: [row[name] for row in heats] for name in values}
    everything = [heat for column in columns.values() for heat in column]
    shared = style.color_scale(everything, None, cmap)
    scales = {
        name: shared if cmap else style.color_scale(column, shared.limit)
        for name, column in columns.items()
    }
    return _Compared(inputs, heats, scales)


def _series_grid(compared: _Compared, ax: np.ndarray | None, sampling_rate: float | None) -> Panels:
    """Draw a row of traces for each input, a column for each method."""
    inputs, scales = compared.inputs, compared.scales
    if any(x.shape != (len(inputs[0]), 1) for x in inputs):
        raise ValueError(
            f"`xs` must be series of one shape, (T,), got {[x.shape for x in inputs]}."
        )
    axis = time_series.time_axis(len(inputs[0]), None, sampling_rate)
    shape = len(inputs), len(scales)
    axes = time_series.stacked_panels(ax, shape, *shape, height=1.5, sharey="row")
    for panels, x, heats in zip(axes, inputs, compared.heats, strict=True):
        for panel, (name, heat) in zip(panels, heats.items(), strict=True):
            time_series.band(panel, axis.steps, x[:, 0], heat[:, 0], scales[name])
    for panel, name in zip(axes[0], scales, strict=True):
        panel.set_title(name, loc="left", fontsize="medium")
    for panel in axes[-1]:
        panel.set_xlabel(axis.label)
    return axes


def _image_grid(compared: _Compared, ax: np.ndarray | None, scored: bool) -> Panels:
    """Draw a row of images for each input: the input, then a column for each method."""
    scales = compared.scales
    rows, columns = len(compared.inputs), 1 + len(scales)
    size = (1.6 * columns + 1.2, (1.6 + 0.25 * scored) * rows + 0.4)
    axes = style.panels(ax, (rows, columns), rows, columns, figsize=size, layout="compressed")
    for panels, picture, heats in zip(axes, compared.inputs, compared.heats, strict=True):
        pictures.show(panels[0], picture)
        for panel, (name, heat) in zip(panels[1:], heats.items(), strict=True):
            pictures.overlay(panel, picture, heat, scales[name])
    for panel, name in zip(axes[0], ["input", *scales], strict=True):
        panel.set_title(name, fontsize="medium")
    return axes


def _check_scores(
    scores: Mapping[str, Score] | Mapping[str, Sequence[Score]] | None,
    score_label: str | None,
    values: Mapping[str, Values] | Mapping[str, Batch],
) -> None:
    if unknown := set(scores or ()) - set(values):
        raise ValueError(f"`scores` must be of methods in `values`, got {sorted(unknown)}.")
    if score_label is not None and not scores:
        raise ValueError(f"`score_label` must come with `scores`, got {score_label!r} alone.")


def _write_scores(
    panels: np.ndarray,
    methods: Mapping[str, Values] | Mapping[str, Batch],
    scores: Mapping[str, Score],
    label: str | None,
    series: bool,
) -> None:
    """Write the scores of one input at its panels: below images, above series on the right."""
    if not series and label is not None:
        _write_below(panels[0], textwrap.fill(label, 22))
    for method, panel in zip(methods, panels[-len(methods) :], strict=True):
        if method not in scores:
            continue
        score = scores[method]
        text = score if isinstance(score, str) else f"{float(score):.3g}"
        if not series:
            _write_below(panel, text)
        else:
            text = f"{label}: {text}" if label else text
            panel.set_title(text, loc="right", fontsize="small", color=style.INK)
            label = None


def _write_below(panel: Axes, text: str) -> None:
    panel.set_xlabel(text, fontsize="small", color=style.INK)


def _colorbars(axes: Panels, compared: _Compared, label: str) -> None:
    """Add a colour bar for the signed and one for the non-negative attributions."""
    groups: dict[bool, list[str]] = {}
    for name, scale in compared.scales.items():
        groups.setdefault(scale.signed, []).append(name)
    for signed, names in sorted(groups.items()):
        heats = [row[name] for row in compared.heats for name in names]
        kind = "" if len(groups) == 1 else ", signed" if signed else ", non-negative"
        # Two short lines fit beside a single row of panels.
        text = textwrap.fill(label + kind, 28, break_on_hyphens=False)
        style.colorbar(axes, compared.scales[names[0]], heats, text)


def _label(normalize: bool) -> str:
    return "attribution / largest magnitude of its panel" if normalize else "attribution"
