"""Coloured text in the cells of a monospaced font."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from jaxattn.plot import style
from jaxattn.plot.typeset import (
    Line,
    clusters,
    ends_line,
    is_rtl,
    levels,
    shaped,
    visible,
    visual_order,
    width,
)

HEIGHT = 2  # of a row, in widths of a cell
INCHES = 0.1  # a cell, in a figure of ours
ADVANCE = 0.602  # the width of a monospaced character in sizes of DejaVu Sans Mono


class Glyph(NamedTuple):
    """What stands in a cell, or two: a cluster of characters, and the word that it belongs to."""

    cluster: str
    word: int | None


def draw(
    lines: Sequence[Line], ax: Axes | None, *, columns: int, font: str | Sequence[str]
) -> Axes:
    """See `Text.draw`."""
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    labels = [visible(line.label or "") for line in lines]
    indent = max(map(len, labels)) + 2 if any(labels) else 0
    blocks: list[list[list[Glyph]]] = [
        list(_rows(_glyphs(line), columns)) or [[]] for line in lines
    ]
    shape = indent + columns, HEIGHT * sum(map(len, blocks))
    if ax is None:
        figure = plt.figure(figsize=(INCHES * shape[0], INCHES * shape[1]))
        ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, shape[0]), ylim=(shape[1], 0))
    ax.set_aspect("equal", anchor="NW")
    ax.set_axis_off()
    ax.apply_aspect()
    pixels = np.ptp(ax.transData.transform([(0, 0), (1, 0)])[:, 0])
    look = {
        "family": [font] if isinstance(font, str) else list(font),
        "fontsize": 0.95 * pixels * 72 / ax.figure.dpi / ADVANCE,
        "va": "center_baseline",
        "parse_math": False,
    }
    top, boxes, colours = 0, [], []
    for line, label, block in zip(lines, labels, blocks, strict=True):
        if label:
            ax.text(0, top + HEIGHT / 2, label, color=style.INK, **look)
        grounds, inks = line.colours / 255, line.inks / 255
        rtl = is_rtl([glyph.cluster for row in block for glyph in row])
        for row in block:
            depth = levels([glyph.cluster for glyph in row], rtl)
            drawn = list(map(visible, shaped([glyph.cluster for glyph in row], depth)))
            left = indent
            if rtl:
                left += columns - sum(width(glyph.cluster) for glyph in row)
            for i in visual_order(depth):
                right = left + width(row[i].cluster)
                word = row[i].word
                if word is not None:
                    bottom = top + HEIGHT
                    boxes.append([(left, top), (right, top), (right, bottom), (left, bottom)])
                    colours.append(grounds[word])
                    if not drawn[i].isspace():
                        middle = (left + right) / 2, top + HEIGHT / 2
                        ax.text(*middle, drawn[i], color=inks[word], ha="center", **look)
                left = right
            top += HEIGHT
    ax.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors="none"), autolim=False)
    return ax


def _glyphs(line: Line) -> list[Glyph]:
    found = []
    for i, word in enumerate(line.words):
        if i:
            found += [Glyph(cluster, None) for cluster in clusters(line.gap)]
        found += [Glyph(cluster, i) for cluster in clusters(word)]
    return found


def _rows(glyphs: Sequence[Glyph], columns: int) -> Iterator[list[Glyph]]:
    """The glyphs in rows that end with a line, after a space, or where the row is full."""
    row: list[Glyph] = []
    for glyph in glyphs:
        full = sum(width(each.cluster) for each in [*row, glyph]) > columns
        if full and row and not (glyph.word is None and glyph.cluster.isspace()):
            spaces = [i for i, each in enumerate(row) if each.cluster.isspace()]
            cut = spaces[-1] + 1 if spaces else len(row)
            yield row[:cut]
            row = row[cut:]
        row.append(glyph)
        if ends_line(glyph.cluster):
            yield row
            row = []
    if row:
        yield row
