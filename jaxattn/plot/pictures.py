"""Attributions over pictures."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from numpy.typing import ArrayLike

from jaxattn.plot import style

RELATIVE = "attribution / largest magnitude of each panel"


def image(
    x: ArrayLike,
    values: Any,
    *,
    ax: Axes | None = None,
    limit: float | None = None,
    alpha: float = 0.9,
    cmap: str | Colormap = style.DIVERGING,
    title: str | None = None,
    colorbar: bool = True,
    label: str = "attribution",
) -> Axes:
    """Draw an image in pale grey or colour, its attribution over it.

    A pixel is the more opaque the larger its value's magnitude, so that the image stays visible.

    Args:
        x: The image, `(H, W)`, `(H, W, 1)` or `(H, W, 3)`: RGB in [0, 1] or integers up to 255;
            other ranges are stretched to [0, 1].
        values: Its attribution, `(H, W)` or shaped like `x`: channels are summed.
        ax: Where to draw; a new figure by default.
        limit: The colours run from `-limit` to `limit`; by default the largest magnitude.
        alpha: The opacity at the limit.
        cmap: A diverging colour map.
        title: The title.
        colorbar: Whether to add a colour bar.
        label: What the colour bar says.

    Returns:
        The Axes: `ax.images` holds the input, then the attribution.

    Raises:
        ValueError: for a wrong rank, shapes that do not fit, or values that are not finite.
    """
    picture = as_picture("x", x)
    heat = as_heat("values", values, picture)
    norm = style.symmetric(limit, heat)
    [ax] = style.panels(ax, (), 1, 1, figsize=(4, 3.4), layout="constrained").reshape(1)
    overlay(ax, picture, heat, norm, alpha=alpha, cmap=cmap)
    if title is not None:
        ax.set_title(title)
    if colorbar:
        # An inset is exactly as high as the picture, whatever room the figure has.
        style.colorbar(ax, norm, [heat], label, cmap, cax=ax.inset_axes((1.04, 0, 0.05, 1)))
    return ax


def images(
    xs: Any,
    values: Any,
    *,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    shared_scale: bool = True,
    limit: float | None = None,
    ax: np.ndarray | None = None,
    alpha: float = 0.9,
    cmap: str | Colormap = style.DIVERGING,
    label: str | None = None,
) -> np.ndarray:
    """Draw several images and their attributions in a grid with one colour bar.

    Args:
        xs: B images, as an array or a sequence; see `image`.
        values: Their attributions: a batched `Attribution`, an array, or a sequence.
        titles: A title for each.
        columns: How many beside one another; by default a grid slightly wider than high.
        shared_scale: Whether all have the scale of the largest value; if not, each is divided by
            its own largest magnitude.
        limit: The shared scale's end, as in `image`.
        ax: An array `(B,)` of Axes to draw on.
        alpha: The opacity at the limit.
        cmap: A diverging colour map.
        label: What the colour bar says.

    Returns:
        The Axes, `(B,)`.

    Raises:
        ValueError: as `image`, or if `xs`, `values` and `titles` differ in length.
    """
    pictures = [as_picture(f"xs[{i}]", x) for i, x in enumerate(style.examples("xs", xs))]
    found = style.examples("values", values)
    style.same_length("values", found, len(pictures), "images")
    style.same_length("titles", titles, len(pictures), "images")
    heats = [
        as_heat(f"values[{i}]", v, p) for i, (v, p) in enumerate(zip(found, pictures, strict=True))
    ]
    if not shared_scale:
        heats = [heat / style.largest(heat) for heat in heats]
        if limit is not None:
            raise ValueError(f"limit needs shared_scale=True, got {limit} without")
        limit = 1.0
    norm = style.symmetric(limit, *heats)
    axes = picture_panels(ax, len(pictures), columns, titled=titles is not None)
    for i, (panel, picture, heat) in enumerate(zip(axes, pictures, heats, strict=True)):
        overlay(panel, picture, heat, norm, alpha=alpha, cmap=cmap)
        if titles is not None:
            panel.set_title(titles[i], fontsize="medium")
    label = label or ("attribution" if shared_scale else RELATIVE)
    style.colorbar(axes, norm, heats, label, cmap, aspect=30, pad=0.02)
    return axes


def picture_panels(ax: Any, count: int, columns: int | None, titled: bool) -> np.ndarray:
    """`count` Axes for pictures, in rows of `columns`."""
    if columns is None:
        columns = math.ceil(math.sqrt(1.6 * count))
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    size = (1.8 * columns + 0.9, (1.8 + 0.3 * titled) * rows + 0.1)
    return style.panels(ax, (count,), rows, columns, figsize=size, layout="compressed")


def overlay(
    ax: Axes,
    picture: np.ndarray,
    heat: np.ndarray | None,
    norm: Normalize,
    *,
    alpha: float = 0.9,
    cmap: str | Colormap = style.DIVERGING,
) -> None:
    """Draw a picture, pale beneath `heat`."""
    ax.set(xticks=[], yticks=[], facecolor="white")
    ax.spines[:].set_color(style.PALE)
    ax.imshow(picture, cmap="gray", alpha=0.45 if heat is not None else None)
    if heat is not None:
        # The root lifts small values: the map is pale near zero already.
        opacity = alpha * np.sqrt(np.minimum(np.abs(heat) / norm.vmax, 1))
        ax.imshow(heat, cmap=cmap, norm=norm, alpha=opacity, interpolation="nearest")


def as_picture(name: str, x: Any) -> np.ndarray:
    """An image as `(H, W)`, or as `(H, W, 3)` in [0, 1]."""
    integers = np.asarray(x).dtype.kind in "iu"
    found = style.real(name, x)
    if found.ndim == 3 and found.shape[-1] == 1:
        found = found[..., 0]
    if found.ndim != 2 and not (found.ndim == 3 and found.shape[-1] == 3):
        raise ValueError(
            f"{name} must be one image, (H, W), (H, W, 1) or (H, W, 3), got shape {found.shape}"
        )
    if found.ndim == 2:
        return found
    if integers and found.min() >= 0 and found.max() <= 255:
        return found / 255
    if found.min() < 0 or found.max() > 1:
        return (found - found.min()) / (np.ptp(found) or 1)
    return found


def as_heat(name: str, values: Any, picture: np.ndarray) -> np.ndarray:
    """The attribution of an image, summed over channels, `(H, W)`."""
    found = style.real(name, values)
    channels = ((), (1,), picture.shape[2:])
    if found.shape[:2] != picture.shape[:2] or found.shape[2:] not in channels:
        raise ValueError(
            f"{name} must fit its image of shape {picture.shape}, with or without its channels, "
            f"got shape {found.shape}"
        )
    return found.sum(-1) if found.ndim == 3 else found
