"""Attributions of images."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from jaxattn.plot import style
from jaxattn.plot.style import Batch, ColorMap, ColorScale, Panels, Values


def image(
    x: ArrayLike,
    values: Values,
    *,
    ax: Axes | None = None,
    limit: float | None = None,
    alpha: float = 0.9,
    cmap: ColorMap | None = None,
    title: str | None = None,
    colorbar: bool = True,
    label: str = "attribution",
) -> Axes:
    """Draw the attribution of an image over the pale image.

    The opacity of a pixel grows with the magnitude of its value.

    Args:
        x: Image of shape `(H, W)`, `(H, W, 1)` or `(H, W, 3)`: RGB in [0, 1] or integers up to
            255; other ranges are scaled to [0, 1].
        values: Attribution of shape `(H, W)` or the shape of `x`; channels are summed.
        ax: Axes to draw on; a new figure by default.
        limit: End of the colour scale; the largest magnitude by default.
        alpha: Opacity of values at the limit.
        cmap: Colour map; see `jaxattn.plot` for the default.
        title: Title of the panel.
        colorbar: Whether to add a colour bar.
        label: Label of the colour bar.

    Returns:
        The Axes; `ax.images` holds the input, then the attribution.

    Raises:
        ValueError: If a shape does not fit, a value is not finite, or `limit` is not positive.
        TypeError: If an array does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> ax = ja.plot.image(np.ones((4, 4)), np.diag([1, -2, 3, -4]))
        >>> ax.images[1].get_clim()
        (-4.0, 4.0)
    """
    picture = as_picture("x", x)
    heat = as_heat("values", values, picture)
    scale = style.color_scale([heat], limit, cmap)
    ax = style.panel(ax, (4.0, 3.4))
    overlay(ax, picture, heat, scale, alpha=alpha)
    if title is not None:
        ax.set_title(title)
    if colorbar:
        # An inset has the height of the image, whatever the size of the figure.
        style.colorbar(ax, scale, [heat], label, cax=ax.inset_axes((1.04, 0, 0.05, 1)))
    return ax


def images(
    xs: Batch,
    values: Batch,
    *,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    shared_scale: bool = True,
    limit: float | None = None,
    ax: np.ndarray | None = None,
    alpha: float = 0.9,
    cmap: ColorMap | None = None,
    label: str | None = None,
) -> Panels:
    """Draw images and their attributions in a grid with one colour bar.

    Args:
        xs: B images, an array or a sequence; see `image`.
        values: B attributions: a batched `Attribution`, an array or a sequence.
        titles: B titles.
        columns: Number of panels per row; by default the grid is slightly wider than high.
        shared_scale: Whether all panels share the scale of the largest magnitude. If False, each
            attribution is divided by its own largest magnitude.
        limit: End of the shared scale; the largest magnitude by default.
        ax: Array `(B,)` of Axes to draw on; a new figure by default.
        alpha: Opacity of values at the limit.
        cmap: Colour map; see `jaxattn.plot` for the default.
        label: Label of the colour bar.

    Returns:
        The panels, shape `(B,)`.

    Raises:
        ValueError: As `image`; if lengths differ, `columns` is below 1, or `limit` is given
            without `shared_scale`.
        TypeError: If an array does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> ja.plot.images(np.ones((3, 8, 8)), np.ones((3, 8, 8))).shape
        (3,)
    """
    pictures = [as_picture(f"xs[{i}]", x) for i, x in enumerate(style.examples("xs", xs))]
    rows = style.examples("values", values)
    style.same_length("values", rows, len(pictures), "images")
    style.same_length("titles", titles, len(pictures), "images")
    heats = [
        as_heat(f"values[{i}]", row, picture)
        for i, (row, picture) in enumerate(zip(rows, pictures, strict=True))
    ]
    if not shared_scale:
        heats = [heat / style.largest(heat) for heat in heats]
        if limit is not None:
            raise ValueError(f"`limit` must come with shared_scale=True, got {limit}.")
        limit = 1.0
    scale = style.color_scale(heats, limit, cmap)
    axes = picture_panels(ax, len(pictures), columns, titled=titles is not None)
    for i, (panel, picture, heat) in enumerate(zip(axes, pictures, heats, strict=True)):
        overlay(panel, picture, heat, scale, alpha=alpha)
        if titles is not None:
            panel.set_title(titles[i], fontsize="medium")
    default = "attribution" if shared_scale else "attribution / largest magnitude of each panel"
    style.colorbar(axes, scale, heats, label or default)
    return axes


def picture_panels(ax: np.ndarray | None, count: int, columns: int | None, titled: bool) -> Panels:
    """Return `count` Axes for images, in rows of `columns`."""
    if columns is None:
        columns = math.ceil(math.sqrt(1.6 * count))
    if columns < 1:
        raise ValueError(f"`columns` must be at least 1, got {columns}.")
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    size = (1.8 * columns + 0.9, (1.8 + 0.3 * titled) * rows + 0.1)
    return style.panels(ax, (count,), rows, columns, figsize=size, layout="compressed")


def show(ax: Axes, picture: np.ndarray, *, pale: bool = False) -> None:
    """Draw an image without ticks; pale if an attribution lies over it."""
    ax.set(xticks=[], yticks=[], facecolor="white")
    ax.spines[:].set_color(style.PALE)
    ax.imshow(picture, cmap="gray", alpha=0.45 if pale else None)


def overlay(
    ax: Axes, picture: np.ndarray, heat: np.ndarray, scale: ColorScale, *, alpha: float = 0.9
) -> None:
    """Draw an image and over it an attribution, more opaque where its magnitude is larger."""
    show(ax, picture, pale=True)
    # The square root lifts small values: the colour map is pale near zero already.
    opacity = alpha * np.sqrt(np.minimum(np.abs(heat) / scale.limit, 1))
    ax.imshow(heat, cmap=scale.cmap, norm=scale.norm, alpha=opacity, interpolation="nearest")


def as_picture(name: str, x: Values) -> np.ndarray:
    """Return an image as `(H, W)`, or as `(H, W, 3)` in [0, 1]."""
    integers = np.asarray(x).dtype.kind in "iu"
    picture = style.real(name, x)
    if picture.ndim == 3 and picture.shape[-1] == 1:
        picture = picture[..., 0]
    if picture.ndim != 2 and not (picture.ndim == 3 and picture.shape[-1] == 3):
        raise ValueError(
            f"`{name}` must be one image, (H, W), (H, W, 1) or (H, W, 3), got shape "
            f"{picture.shape}."
        )
    if picture.ndim == 2:
        return picture
    low, high = picture.min(), picture.max()
    if integers and low >= 0 and high <= 255:
        return picture / 255
    if low < 0 or high > 1:
        return (picture - low) / ((high - low) or 1)
    return picture


def as_heat(name: str, values: Values, picture: np.ndarray) -> np.ndarray:
    """Return the attribution of an image summed over channels, `(H, W)`."""
    heat = style.real(name, values)
    channels = ((), (1,), picture.shape[2:])
    if heat.shape[:2] != picture.shape[:2] or heat.shape[2:] not in channels:
        raise ValueError(
            f"`{name}` must fit its image of shape {picture.shape}, with or without its channels, "
            f"got shape {heat.shape}."
        )
    return heat.sum(-1) if heat.ndim == 3 else heat
