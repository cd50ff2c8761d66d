"""Scores as curves: over time, and over the fraction of the input that is deleted."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from jaxattn.plot import style, time_series
from jaxattn.plot.method_styles import line_styles
from jaxattn.plot.style import Values


@runtime_checkable
class CurveLike(Protocol):
    """An object with the field of `jaxattn.metrics.Curve` that is drawn."""

    @property
    def scores(self) -> Values:
        """The score at each fraction."""


def score_over_time(
    scores: Values,
    *,
    x: ArrayLike | None = None,
    ax: Axes | None = None,
    time: ArrayLike | None = None,
    sampling_rate: float | None = None,
    direction: str = "forward",
    class_names: Sequence[str] | None = None,
    title: str | None = None,
    ylabel: str = "score",
) -> Axes:
    """Draw the temporal output score: the output for each prefix or suffix of the input.

    Args:
        scores: Score at each time, shape `(T,)`, or of K classes, shape `(T, K)`.
        x: Input, drawn pale behind the curves on its own scale: shape `(T,)`, or `(T, D)` as an
            image with time running to the right.
        ax: Axes to draw on; a new figure by default.
        time: Time of each score, shape `(T,)`.
        sampling_rate: Steps per second, instead of `time`; the axis is then in seconds.
        direction: "forward" for prefixes that end at each time, "backward" for suffixes that start
            there.
        class_names: K names for the legend.
        title: Title of the panel.
        ylabel: Label of the scores.

    Returns:
        The Axes; its lines are the K curves.

    Raises:
        ValueError: If a shape does not fit, `direction` is unknown, or a value is not finite.
        TypeError: If an array does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> ax = ja.plot.score_over_time(np.linspace(0, 1, 9), sampling_rate=100.0)
        >>> ax.get_xlabel()
        'time (s): input read up to here'
    """
    curves = style.real("scores", scores)
    if curves.ndim not in (1, 2):
        raise ValueError(f"`scores` must have shape (T,) or (T, K), got {curves.shape}.")
    readings = {"forward": "input read up to here", "backward": "input read from here on"}
    if direction not in readings:
        raise ValueError(f'`direction` must be "forward" or "backward", got {direction!r}.')
    curves = curves.reshape(len(curves), -1)
    axis = time_series.time_axis(len(curves), time, sampling_rate)
    trace = None if x is None else time_series.channels("x", x)
    if trace is not None and len(trace) != len(curves):
        raise ValueError(
            f"`x` must have one step per score, got shapes {trace.shape} and {curves.shape}."
        )
    style.same_length("class_names", class_names, curves.shape[1], "classes")
    ax = style.panel(ax, (8.0, 2.8))
    names = [f"class {k}" for k in range(len(curves.T))] if class_names is None else class_names
    for k, curve in enumerate(curves.T):
        ax.plot(axis.steps, curve, color=style.PALETTE[k % len(style.PALETTE)], label=names[k])
    ax.set(xlabel=f"{axis.label}: {readings[direction]}", ylabel=ylabel)
    ax.margins(x=0)
    ax.spines[["top", "right"]].set_visible(False)
    if curves.min() >= 0 and curves.max() <= 1:
        ax.set_ylim(-0.03, 1.03)
    if curves.shape[1] > 1 or class_names is not None:
        ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    if title is not None:
        ax.set_title(title)
    if trace is not None:
        _draw_behind(ax, axis.steps, trace)
    return ax


def _draw_behind(ax: Axes, steps: np.ndarray, trace: np.ndarray) -> None:
    """Draw the input behind the curves, on Axes whose scale is independent of theirs."""
    behind = ax.twinx()
    behind.set(zorder=ax.get_zorder() - 1, yticks=[])
    behind.spines[:].set_visible(False)
    ax.patch.set_visible(False)
    if trace.shape[1] == 1:
        behind.plot(steps, trace[:, 0], color=style.PALE, linewidth=1)
    else:
        behind.pcolormesh(steps, np.arange(trace.shape[1]), trace.T, cmap="gray_r", alpha=0.3)
        behind.invert_yaxis()


def curve(
    fractions: ArrayLike,
    scores: Mapping[str, Values | CurveLike],
    *,
    ax: Axes | None = None,
    title: str | None = None,
    xlabel: str = "fraction of the input deleted",
    ylabel: str = "score",
) -> Axes:
    """Draw deletion or insertion curves of several methods with the areas under them.

    A method of jaxattn has the same colour and line style in every chart, by its name.

    Args:
        fractions: Fractions deleted or inserted, shape `(P,)`, increasing.
        scores: For each method's name the scores, shape `(P,)`, or those of B examples, shape
            `(B, P)`, drawn as their mean in a band of one standard error; or a
            `jaxattn.metrics.Curve`.
        ax: Axes to draw on; a new figure by default.
        title: Title of the panel.
        xlabel: Label of the fractions.
        ylabel: Label of the scores.

    Returns:
        The Axes; its lines are the curves. The legend holds the area under each curve (AUC)
        divided by the range of the fractions, which is the mean score.

    Raises:
        ValueError: If there are no methods, a shape does not fit, the fractions do not increase, or
            a value is not finite.
        TypeError: If an array does not hold real numbers.

    Examples:
        >>> import jaxattn as ja
        >>> ax = ja.plot.curve([0, 0.5, 1], {"saliency": [1, 0.5, 0]})
        >>> ax.get_legend().get_texts()[0].get_text()
        'saliency (AUC 0.500)'
    """
    steps = style.real("fractions", fractions)
    if steps.ndim != 1 or len(steps) < 2 or (np.diff(steps) <= 0).any():
        raise ValueError(f"`fractions` must have shape (P,), P > 1, and increase, got {steps}.")
    if not scores:
        raise ValueError("`scores` must hold at least one method's, got none.")
    curves = {name: _scores(name, rows, len(steps)) for name, rows in scores.items()}
    ax = style.panel(ax, (5.6, 3.8))
    styles = line_styles(curves)
    for name, rows in curves.items():
        colour, dashes = styles[name]
        mean = rows.mean(0)
        area = np.trapezoid(mean, steps) / (steps[-1] - steps[0])
        ax.plot(steps, mean, dashes, color=colour, label=f"{name} (AUC {area:.3f})")
        if len(rows) > 1:
            error = rows.std(0, ddof=1) / np.sqrt(len(rows))
            ax.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(steps[0], steps[-1]))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", linewidth=0.6)
    ax.legend(frameon=False, fontsize="small")
    if title is not None:
        ax.set_title(title)
    return ax


def _scores(method: str, scores: Values | CurveLike, count: int) -> np.ndarray:
    """Return the scores of one method as `(B, P)`."""
    name = f"scores[{method!r}]"
    values = scores.scores if isinstance(scores, CurveLike) else scores
    rows = np.atleast_2d(style.real(name, values))
    if rows.ndim != 2 or rows.shape[1] != count:
        raise ValueError(f"`{name}` must have shape ({count},) or (B, {count}), got {rows.shape}.")
    return rows
