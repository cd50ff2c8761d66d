"""Deletion curves with a legend beside them."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from jaxattn import plot


def draw(
    ax: Axes, positions: ArrayLike, curves: Mapping[str, np.ndarray], *, xlabel: str, ylabel: str,
    title: str | None = None, legend_outside: bool = True,
) -> None:  # fmt: skip
    """Draw the mean curve and the standard error of each method.

    Args:
        ax: empty Axes.
        positions: numbers or fractions of deleted features, (P,).
        curves: by method, the scores of B examples, (B, P).
        xlabel: label of the positions.
        ylabel: label of the scores.
        title: title of the panel.
        legend_outside: whether the legend is drawn to the right of the Axes.
    """
    plot.curve(positions, curves, ax=ax, title=title, xlabel=xlabel, ylabel=ylabel)
    if legend_outside:
        ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
