"""The path of glimpses over an image."""

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from jaxattn.plot import style
from jaxattn.plot.pictures import as_picture
from jaxattn.plot.style import ColorMap


def glimpses(
    image: ArrayLike,
    locations: ArrayLike,
    size: int,
    *,
    scales: int = 1,
    ax: Axes | None = None,
    cmap: ColorMap = "plasma",
    title: str | None = None,
) -> Axes:
    """Draw the glimpses of a network as numbered boxes in pixel coordinates.

    Colours run from dark to bright along the path. A solid box surrounds the pixels of each
    sharpest patch; dotted boxes surround those of wider patches, as far as they lie on the image.

    Args:
        image: Image of shape `(H, W)`, `(H, W, 1)` or `(H, W, 3)`.
        locations: Row and column of each glimpse in [-1, 1], shape `(n, 2)`; see
            `jaxattn.nn.glimpse`.
        size: Width of the sharpest patch in pixels.
        scales: Number of patches per glimpse, each twice as wide as the one before.
        ax: Axes to draw on; a new figure by default.
        cmap: Colour map of the path.
        title: Title of the panel.

    Returns:
        The Axes; `ax.patches` holds the boxes, glimpse by glimpse, the sharpest of each first,
        `ax.lines[0]` the path, and `ax.texts` the numbers.

    Raises:
        ValueError: If a shape does not fit, a value is not finite, `size` or `scales` is below 1,
            or `image` is smaller than a glimpse.
        TypeError: If an array does not hold real numbers.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> ax = ja.plot.glimpses(np.zeros((28, 28)), [[0, 0], [-0.5, 0.5]], 8, scales=2)
        >>> len(ax.patches)
        4
    """
    picture = as_picture("image", image)
    # Networks compute in float32; another precision may round a box to the next pixel.
    places = style.real("locations", locations).astype(np.float32)
    if places.ndim != 2 or places.shape[1] != 2:
        raise ValueError(f"`locations` must have shape (n, 2), got {places.shape}.")
    for name, value in {"size": size, "scales": scales}.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if min(picture.shape[:2]) < size:
        raise ValueError(
            f"`image` must be at least as large as a glimpse of {size} x {size}, "
            f"got shape {picture.shape}."
        )
    ax = style.panel(ax, (3.6, 3.6))
    ax.imshow(picture, cmap="gray")
    ax.set(xticks=[], yticks=[], title=title or "")
    ax.autoscale(False)

    lengths = np.array(picture.shape[:2], np.float32)
    # Pixel i extends from i - 1/2 to i + 1/2.
    rows, columns = ((places + 1) * lengths / 2 - 0.5).T
    ax.plot(columns, rows, color="white", linewidth=1, alpha=0.7)
    colours = mpl.colormaps.get_cmap(cmap)(np.linspace(0.3, 0.95, len(places)))
    for i, (place, colour) in enumerate(zip(places, colours, strict=True)):
        for scale in range(scales):
            width = size * 2**scale
            top, left = np.floor((place + 1) * lengths / 2 - width / 2 + 0.5) - 0.5
            box = Rectangle((left, top), width, width, fill=False, color=colour, linewidth=1.8)
            if scale:
                box.set(linewidth=0.8, linestyle=":", alpha=0.8)
            ax.add_patch(box)
        ax.text(
            columns[i], rows[i], str(i + 1), color="black", fontsize="x-small", ha="center",
            va="center", clip_on=True,
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": colour, "edgecolor": "none"},
        )  # fmt: skip
    return ax
