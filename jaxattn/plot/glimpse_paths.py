"""The path of a gaze over a picture."""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from jaxattn.plot import style
from jaxattn.plot.pictures import as_picture


def glimpses(
    image: ArrayLike,
    locations: Any,
    size: int,
    *,
    scales: int = 1,
    ax: Axes | None = None,
    cmap: str | Colormap = "plasma",
    title: str | None = None,
) -> Axes:
    """Draw where a network looked, in order, as numbered boxes in pixel coordinates.

    The colour goes from dark to bright along the path. Each sharpest patch is a solid box around
    the pixels that it reads, at its centre a number, a line from one to the next; wider patches are
    thin dotted boxes, drawn as far as they lie on the image.

    Args:
        image: The image, `(H, W)`, `(H, W, 1)` or `(H, W, 3)`.
        locations: Row and column of each glimpse in [-1, 1], `(n, 2)`; see `jaxattn.nn.glimpse`.
        size: Width of the sharpest patch in pixels.
        scales: How many patches a glimpse has, each twice as wide as the one before.
        ax: Where to draw; a new figure by default.
        cmap: The colour map of the path.
        title: The title.

    Returns:
        The Axes: `ax.patches` holds the boxes, glimpse after glimpse, the sharpest of each first;
        `ax.lines[0]` the path, `ax.texts` the numbers.

    Raises:
        ValueError: for a wrong shape, a size or number of scales below 1, an image smaller than a
            glimpse, or numbers that are not finite.
    """
    picture = as_picture("image", image)
    # In float32, as a network has them: a box must not round to the pixel beside it.
    places = style.real("locations", locations).astype(np.float32)
    if places.ndim != 2 or places.shape[1] != 2:
        raise ValueError(f"locations must have shape (n, 2), got {places.shape}")
    for name, value in {"size": size, "scales": scales}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if min(picture.shape[:2]) < size:
        raise ValueError(
            f"image must be at least as large as a glimpse of {size} x {size}, "
            f"got shape {picture.shape}"
        )
    [ax] = style.panels(ax, (), 1, 1, figsize=(3.6, 3.6), layout="constrained").reshape(1)
    ax.imshow(picture, cmap="gray")
    ax.set(xticks=[], yticks=[], title=title or "")
    ax.autoscale(False)

    lengths = np.array(picture.shape[:2], np.float32)
    # Pixel i reaches from i - 1/2 to i + 1/2.
    rows, columns = ((places + 1) * lengths / 2 - 0.5).T
    ax.plot(columns, rows, color="white", linewidth=1, alpha=0.7)
    colours = mpl.colormaps.get_cmap(cmap)(np.linspace(0.3, 0.95, len(places)))
    for i, (place, colour) in enumerate(zip(places, colours, strict=True)):
        for width in (size * 2**k for k in range(scales)):
            top, left = np.floor((place + 1) * lengths / 2 - width / 2 + 0.5) - 0.5
            look: dict[str, Any] = (
                {"linewidth": 1.8} if width == size
                else {"linewidth": 0.8, "linestyle": ":", "alpha": 0.8}
            )  # fmt: skip
            ax.add_patch(Rectangle((left, top), width, width, fill=False, color=colour, **look))
        ax.text(
            columns[i], rows[i], str(i + 1), color="black", fontsize="x-small", ha="center",
            va="center", clip_on=True,
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": colour, "edgecolor": "none"},
        )  # fmt: skip
    return ax
