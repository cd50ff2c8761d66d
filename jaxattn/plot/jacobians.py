"""Jacobians: the derivative of every output by every input."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from numpy.typing import ArrayLike

from jaxattn.plot import pictures, style, time_series
from jaxattn.plot.style import AttributionLike, ColorMap, Panels, Values


def jacobian(
    x: ArrayLike,
    jacobian: Values,
    *,
    class_names: Sequence[str] | None = None,
    outputs: ArrayLike | None = None,
    highlight: int | None = None,
    kind: str = "auto",
    columns: int | None = None,
    ax: np.ndarray | None = None,
    limit: float | None = None,
    cmap: ColorMap | None = None,
    label: str = "∂ output / ∂ input",
    sampling_rate: float | None = None,
) -> Panels:
    """Draw a Jacobian, one panel per class, on one colour scale.

    Args:
        x: Image, or series of shape `(T,)` or `(T, D)`.
        jacobian: Jacobian of shape `(K, *x.shape)`.
        class_names: K names; "class 0" and so on by default.
        outputs: K scores for the titles; by default the output of an `Attribution`.
        highlight: Class whose panel is highlighted, such as the predicted one.
        kind: "image", "series", or "auto": a series if `x` has shape `(T,)` or `(T, 1)`.
        columns: Number of images per row.
        ax: Array of Axes to draw on, shaped as returned; a new figure by default.
        limit: End of the colour scale; the largest magnitude by default.
        cmap: Colour map; see `jaxattn.plot` for the default.
        label: Label of the colour bar.
        sampling_rate: Steps per second of a series.

    Returns:
        The panels, shape `(K,)`; for a series of D > 1 channels `(K, D)`.

    Raises:
        ValueError: As `image` and `series`; if `jacobian`, `class_names`, `outputs` or `highlight`
            does not fit.
        TypeError: If an array does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> panels = ja.plot.jacobian(np.ones((8, 8)), np.ones((3, 8, 8)), outputs=[2, 0.5, -1])
        >>> [panel.get_title() for panel in panels]
        ['class 0: 2', 'class 1: 0.5', 'class 2: -1']
    """
    if outputs is None and isinstance(jacobian, AttributionLike):
        outputs = np.asarray(jacobian.output)
    rows = style.real("jacobian", jacobian)
    trace = style.real("x", x)
    if rows.shape[1:] != trace.shape:
        raise ValueError(f"`jacobian` must have shape (K, *{trace.shape}), got {rows.shape}.")
    count = len(rows)
    titles = _titles(class_names, outputs, count)
    if highlight is not None and not 0 <= highlight < count:
        raise ValueError(f"`highlight` must be a class from 0 to {count - 1}, got {highlight}.")
    if style.is_series(kind, trace.shape):
        heats = list(rows)
        scale = style.color_scale(heats, limit, cmap)
        axes = time_series.traces(
            trace, heats, titles, [scale] * count, ax=ax, sampling_rate=sampling_rate
        )
    else:
        picture = pictures.as_picture("x", x)
        heats = [pictures.as_heat("jacobian", row, picture) for row in rows]
        scale = style.color_scale(heats, limit, cmap)
        axes = pictures.picture_panels(ax, count, columns, titled=True)
        for panel, heat, title in zip(axes, heats, titles, strict=True):
            pictures.overlay(panel, picture, heat, scale)
            panel.set_title(title, fontsize="medium")
    if highlight is not None:
        for panel in np.ravel(axes[highlight]):
            panel.title.set(color=style.HIGHLIGHT, fontweight="bold")
            panel.spines[:].set(edgecolor=style.HIGHLIGHT, linewidth=1.5)
    style.colorbar(axes, scale, heats, label)
    return axes


def _titles(class_names: Sequence[str] | None, outputs: ArrayLike | None, count: int) -> list[str]:
    """Return the title of each class: its name, and its score if there are scores."""
    style.same_length("class_names", class_names, count, "classes")
    names = [f"class {k}" for k in range(count)] if class_names is None else list(class_names)
    if outputs is None:
        return names
    scores = style.real("outputs", outputs)
    if scores.shape != (count,):
        raise ValueError(f"`outputs` must have shape ({count},), got {scores.shape}.")
    return [f"{name}: {score:.3g}" for name, score in zip(names, scores, strict=True)]


def temporal_jacobian(
    jacobian: Values,
    *,
    ax: Axes | None = None,
    log: bool = False,
    cmap: ColorMap = "viridis",
    title: str | None = None,
    label: str = "‖∂ output(t) / ∂ input(s)‖",
) -> Axes:
    """Draw the norm of the derivative of the output at each time by the input at each time.

    The upper triangle is left empty if it is zero: no output depends on a later input.

    Args:
        jacobian: Temporal Jacobian of shape `(T, K, T, D)`, of which the Euclidean norm over K and
            D is drawn, or norms of shape `(T, T)`.
        ax: Axes to draw on; a new figure by default.
        log: Whether the colour scale is logarithmic, which makes vanishing gradients visible;
            zeros are left empty.
        cmap: Sequential colour map.
        title: Title of the panel.
        label: Label of the colour bar.

    Returns:
        The Axes; its image holds the norms, one row per output time.

    Raises:
        ValueError: If `jacobian` has another shape, or a value is not finite.
        TypeError: If `jacobian` does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> ax = ja.plot.temporal_jacobian(np.ones((5, 2, 5, 3)))
        >>> ax.images[0].get_array().shape
        (5, 5)
    """
    derivatives = style.real("jacobian", jacobian)
    rank = derivatives.ndim
    if rank not in (2, 4) or derivatives.shape[0] != derivatives.shape[rank // 2]:
        raise ValueError(
            f"`jacobian` must have shape (T, K, T, D) or (T, T), got {derivatives.shape}."
        )
    norms = np.sqrt((derivatives**2).sum((1, 3))) if rank == 4 else np.abs(derivatives)
    causal = not np.triu(norms, 1).any()
    hidden = np.triu(np.ones_like(norms, bool), 1) if causal else np.zeros_like(norms, bool)
    high = style.largest(norms)
    norm = Normalize(0, high)
    if log:
        hidden |= norms == 0
        norm = LogNorm(norms[norms > 0].min(initial=high), high)
    ax = style.panel(ax, (5.0, 4.2))
    ax.set(xlabel="input time s", ylabel="output time t")
    ax.spines[["top", "right"]].set_visible(False)
    drawn = ax.imshow(np.ma.array(norms, mask=hidden), cmap=cmap, norm=norm)
    if title is not None:
        ax.set_title(title)
    cax = ax.inset_axes((1.04, 0, 0.05, 1))
    style.finish_bar(ax.figure.colorbar(drawn, cax=cax, label=label))
    return ax
