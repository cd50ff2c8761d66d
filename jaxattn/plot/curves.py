"""Scores as curves: over time, and over a growing deletion."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from jaxattn.plot import style, time_series


def score_over_time(
    scores: Any,
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
    """Draw the temporal output score: what the network says after reading a part of the input.

    Args:
        scores: The score at each time, `(T,)`, or of K classes, `(T, K)`.
        x: The input, drawn pale behind the curves on a scale of its own: `(T,)`, or `(T, D)` as a
            picture with time running to the right.
        ax: Where to draw; a new figure by default.
        time: The time of each score, `(T,)`.
        sampling_rate: Steps a second, instead of `time`; the axis is then in seconds.
        direction: "forward" if a score has seen the input up to its time, "backward" from it on.
        class_names: K names for the legend.
        title: The title.
        ylabel: What the score is.

    Returns:
        The Axes, whose lines are the K curves.

    Raises:
        ValueError: for a wrong rank, an unknown direction, lengths that differ, or values that are
            not finite.
    """
    curves = style.real("scores", scores)
    if curves.ndim not in (1, 2):
        raise ValueError(f"scores must have shape (T,) or (T, K), got {curves.shape}")
    seen = {"forward": "input read up to here", "backward": "input read from here on"}
    if direction not in seen:
        raise ValueError(f'direction must be "forward" or "backward", got {direction!r}')
    curves = curves.reshape(len(curves), -1)
    steps, time_label = time_series.time_axis(len(curves), time, sampling_rate)
    trace = None if x is None else time_series.channels("x", x)
    if trace is not None and len(trace) != len(curves):
        raise ValueError(f"x must have one step a score, got {trace.shape} and {curves.shape}")
    style.same_length("class_names", class_names, curves.shape[1], "classes")
    [ax] = style.panels(ax, (), 1, 1, figsize=(8, 2.8), layout="constrained").reshape(1)
    names = [f"class {k}" for k in range(len(curves.T))] if class_names is None else class_names
    for k, curve in enumerate(curves.T):
        ax.plot(steps, curve, color=style.PALETTE[k % len(style.PALETTE)], label=names[k])
    ax.set(xlabel=f"{time_label}: {seen[direction]}", ylabel=ylabel)
    ax.margins(x=0)
    ax.spines[["top", "right"]].set_visible(False)
    if curves.min() >= 0 and curves.max() <= 1:
        ax.set_ylim(-0.03, 1.03)
    if curves.shape[1] > 1 or class_names is not None:
        ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    if title is not None:
        ax.set_title(title)
    if trace is not None:
        _behind(ax, steps, trace)
    return ax


def _behind(ax: Axes, steps: np.ndarray, trace: np.ndarray) -> None:
    """Draw the input on Axes of its own below `ax`, which the curves' scale does not move."""
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
    scores: Mapping[str, Any],
    *,
    ax: Axes | None = None,
    title: str | None = None,
    xlabel: str = "fraction of the input deleted",
    ylabel: str = "score",
) -> Axes:
    """Draw deletion or insertion curves of several methods, each with the area under it.

    Args:
        fractions: The fractions deleted or inserted, `(P,)`, increasing.
        scores: For each method's name the scores, `(P,)`, or of B examples, `(B, P)`, drawn as
            their mean in a band of one standard error; a `jaxattn.metrics.Curve` is taken too.
        ax: Where to draw; a new figure by default.
        title: The title.
        xlabel: What the fractions are.
        ylabel: What the scores are.

    Returns:
        The Axes, whose lines are the methods' curves. The legend gives the area under each over the
        range of the fractions, that is, its mean score.

    Raises:
        ValueError: for no methods, shapes that do not fit, fractions that do not increase, or
            values that are not finite.
    """
    steps = style.real("fractions", fractions)
    if steps.ndim != 1 or len(steps) < 2 or (np.diff(steps) <= 0).any():
        raise ValueError(f"fractions must be (P,), P > 1, and increase, got {steps}")
    if not scores:
        raise ValueError("scores must hold at least one method's, got none")
    given = {name: getattr(s, "scores", s) for name, s in scores.items()}
    found = {name: np.atleast_2d(style.real(f"scores[{name!r}]", s)) for name, s in given.items()}
    for name, s in found.items():
        if s.ndim != 2 or s.shape[1] != len(steps):
            raise ValueError(
                f"scores[{name!r}] must have shape ({len(steps)},) or (B, {len(steps)}), "
                f"got {s.shape}"
            )
    [ax] = style.panels(ax, (), 1, 1, figsize=(5.6, 3.8), layout="constrained").reshape(1)
    for i, (name, s) in enumerate(found.items()):
        colour, dashes = style.PALETTE[i % 8], ("-", "--", ":")[i // 8 % 3]
        mean = s.mean(0)
        area = np.trapezoid(mean, steps) / (steps[-1] - steps[0])
        ax.plot(steps, mean, dashes, color=colour, label=f"{name} (AUC {area:.3f})")
        if len(s) > 1:
            error = s.std(0, ddof=1) / np.sqrt(len(s))
            ax.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(steps[0], steps[-1]))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", linewidth=0.6)
    ax.legend(frameon=False, fontsize="small")
    if title is not None:
        ax.set_title(title)
    return ax
