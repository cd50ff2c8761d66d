"""Jacobians: how every output depends on every input."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm, Normalize
from numpy.typing import ArrayLike

from jaxattn.plot import pictures, style, time_series


def jacobian(
    x: ArrayLike,
    jacobian: Any,
    *,
    class_names: Sequence[str] | None = None,
    outputs: ArrayLike | None = None,
    highlight: int | None = None,
    kind: str = "auto",
    columns: int | None = None,
    ax: np.ndarray | None = None,
    limit: float | None = None,
    cmap: str | Colormap = style.DIVERGING,
    label: str = "∂ output / ∂ input",
    sampling_rate: float | None = None,
) -> np.ndarray:
    """Draw a Jacobian, one panel a class, on one scale.

    Args:
        x: The input: an image, or a series `(T,)` or `(T, D)`.
        jacobian: The Jacobian, `(K, *x.shape)`.
        class_names: K names; by default "class 0" and so on.
        outputs: K scores for the titles; an `Attribution` brings its own.
        highlight: The class whose title stands out, say the predicted one.
        kind: "image", "series", or "auto": a series if `x` has shape `(T,)` or `(T, 1)`.
        columns: How many pictures beside one another.
        ax: An array of Axes to draw on, shaped as returned.
        limit: The colours run from `-limit` to `limit`; by default the largest magnitude.
        cmap: A diverging colour map.
        label: What the colour bar says.
        sampling_rate: Steps a second, of a series.

    Returns:
        The Axes, `(K,)`; for a series of several channels `(K, D)`.

    Raises:
        ValueError: as `image` and `series`, or if `jacobian`, `class_names`, `outputs` or
            `highlight` do not fit.
    """
    if outputs is None:
        outputs = getattr(jacobian, "output", None)
    every = style.real("jacobian", jacobian)
    shown = style.real("x", x)
    if every.shape[1:] != shown.shape:
        raise ValueError(f"jacobian must have shape (K, *{shown.shape}), got {every.shape}")
    count = len(every)
    style.same_length("class_names", class_names, count, "classes")
    if highlight is not None and not 0 <= highlight < count:
        raise ValueError(f"highlight must be a class from 0 to {count - 1}, got {highlight}")
    titles = [f"class {k}" for k in range(count)] if class_names is None else list(class_names)
    if outputs is not None:
        scores = style.real("outputs", outputs)
        if scores.shape != (count,):
            raise ValueError(f"outputs must have shape ({count},), got {scores.shape}")
        titles = [f"{t}: {s:.3g}" for t, s in zip(titles, scores, strict=True)]
    norm = style.symmetric(limit, every)
    if style.is_series(kind, shown.shape):
        axes = time_series.traces(
            shown, list(every), titles, norm, ax=ax, cmap=cmap, sampling_rate=sampling_rate
        )
    else:
        picture = pictures.as_picture("x", x)
        every = np.stack([pictures.as_heat("jacobian", one, picture) for one in every])
        norm = style.symmetric(limit, every)
        axes = pictures.picture_panels(ax, count, columns, titled=True)
        for panel, heat, title in zip(axes, every, titles, strict=True):
            pictures.overlay(panel, picture, heat, norm, cmap=cmap)
            panel.set_title(title, fontsize="medium")
    if highlight is not None:
        for panel in np.ravel(axes[highlight]):
            panel.title.set(color=style.HIGHLIGHT, fontweight="bold")
            panel.spines[:].set(edgecolor=style.HIGHLIGHT, linewidth=1.5)
    style.colorbar(axes, norm, list(every), label, cmap, aspect=30, pad=0.02)
    return axes


def temporal_jacobian(
    jacobian: Any,
    *,
    ax: Axes | None = None,
    log: bool = False,
    cmap: str | Colormap = "viridis",
    title: str | None = None,
    label: str = "‖∂ output(t) / ∂ input(s)‖",
) -> Axes:
    """Draw how strongly the output at each time depends on the input at each time.

    The upper triangle stays empty if it is all zero: no output depends on the future.

    Args:
        jacobian: A temporal Jacobian, `(T, K, T, D)`, reduced here by the Euclidean norm over K and
            D, or such norms, `(T, T)`.
        ax: Where to draw; a new figure by default.
        log: Whether colours are logarithmic, which shows gradients that vanish; zeros stay empty.
        cmap: A sequential colour map.
        title: The title.
        label: What the colour bar says.

    Returns:
        The Axes: its image holds the norms, one row an output time.

    Raises:
        ValueError: for another shape, or values that are not finite.
    """
    every = style.real("jacobian", jacobian)
    if every.ndim not in (2, 4) or every.shape[0] != every.shape[every.ndim // 2]:
        raise ValueError(f"jacobian must have shape (T, K, T, D) or (T, T), got {every.shape}")
    norms = np.sqrt((every**2).sum((1, 3))) if every.ndim == 4 else np.abs(every)
    causal = not np.triu(norms, 1).any()
    hidden = np.triu(np.ones_like(norms, bool), 1) if causal else np.zeros_like(norms, bool)
    high = style.largest(norms)
    norm = Normalize(0, high)
    if log:
        hidden |= norms == 0
        norm = LogNorm(norms[norms > 0].min(initial=high), high)
    [ax] = style.panels(ax, (), 1, 1, figsize=(5, 4.2), layout="constrained").reshape(1)
    ax.set(xlabel="input time s", ylabel="output time t")
    ax.spines[["top", "right"]].set_visible(False)
    drawn = ax.imshow(np.ma.array(norms, mask=hidden), cmap=cmap, norm=norm)
    if title is not None:
        ax.set_title(title)
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes((1.04, 0, 0.05, 1)), label=label)
    bar.outline.set_visible(False)
    return ax
