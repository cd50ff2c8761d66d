"""Deletion curves: a method has the same colour and line style on all pages."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from jaxattn import plot

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
)  # fmt: skip
BROWN, WINE, BLACK, GREY = "#8c510a", "#882255", "#000000", "#888888"


class Style(NamedTuple):
    """The colour and the line style of a curve."""

    colour: str
    line: str


# Variants of a method share its colour. No two methods share both colour and line style.
STYLES = {
    "attention": Style(WINE, "-"),
    "occlusion": Style(BLUE, "-"),
    "LRP": Style(VERMILION, "-"),
    "LRP, half to gates": Style(VERMILION, "--"),
    "LRP, biases shared": Style(VERMILION, ":"),
    "integrated gradients": Style(GREEN, "-"),
    "input × gradient": Style(GREEN, "--"),
    "smooth input × gradient": Style(GREEN, ":"),
    "DeepLIFT": Style(PURPLE, "-"),
    "DeepLIFT, reveal-cancel": Style(PURPLE, "--"),
    "gradient": Style(ORANGE, "-"),
    "smooth grad": Style(ORANGE, "--"),
    "saliency": Style(SKY, "-"),
    "temporal score": Style(BROWN, "-"),
    "temporal score, forward": Style(BROWN, "--"),
    "temporal score, backward": Style(BROWN, ":"),
    "learned mask": Style(BLACK, "-"),
    "contextual decomposition": Style(BLACK, "--"),
    "random": Style(GREY, ":"),
}


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
    for name, line in zip(curves, ax.lines, strict=True):
        line.set(color=STYLES[name].colour, linestyle=STYLES[name].line)
    # A single example has no bands.
    for name, band in zip(curves, ax.collections, strict=False):
        band.set_color(STYLES[name].colour)
    outside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if legend_outside else {}
    ax.legend(frameon=False, fontsize="small", **outside)
