"""Coloured text in the cells of a monospaced font."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

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
INCHES = 0.1  # width of a cell in a new figure
ADVANCE = 0.602  # width of a monospaced character in sizes of DejaVu Sans Mono


class Glyph(NamedTuple):
    """A cluster of characters, and the index of its word; None for a gap between words."""

    cluster: str
    word: int | None


@dataclasses.dataclass(frozen=True)
class _Cell:
    """A cluster of characters at its place: the left and right edge, and the top of the row."""

    text: str
    word: int
    left: int
    right: int
    top: int

    @property
    def corners(self) -> list[tuple[int, int]]:
        bottom = self.top + HEIGHT
        return [
            (self.left, self.top), (self.right, self.top), (self.right, bottom),
            (self.left, bottom),
        ]  # fmt: skip


def draw(
    lines: Sequence[Line], ax: Axes | None, *, columns: int, font: str | Sequence[str]
) -> Axes:
    """Draw lines of coloured text; see `Text.draw`."""
    if columns < 1:
        raise ValueError(f"`columns` must be at least 1, got {columns}.")
    labels = [visible(line.label or "") for line in lines]
    indent = max(map(len, labels)) + 2 if any(labels) else 0
    blocks = [list(_rows(_glyphs(line), columns)) or [[]] for line in lines]
    ax = _prepare(ax, indent + columns, HEIGHT * sum(map(len, blocks)))
    look = _text_properties(ax, font)
    top, boxes, colours = 0, [], []
    for line, label, block in zip(lines, labels, blocks, strict=True):
        if label:
            ax.text(0, top + HEIGHT / 2, label, color=style.INK, **look)
        grounds, inks = line.colours / 255, line.inks / 255
        for cell in _cells(block, indent, columns, top):
            boxes.append(cell.corners)
            colours.append(grounds[cell.word])
            if not cell.text.isspace():
                middle = (cell.left + cell.right) / 2, cell.top + HEIGHT / 2
                ax.text(*middle, cell.text, color=inks[cell.word], ha="center", **look)
        top += HEIGHT * len(block)
    ax.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors="none"), autolim=False)
    return ax


def _prepare(ax: Axes | None, across: int, down: int) -> Axes:
    """Return Axes, or those of a new figure, whose unit is a cell, without ticks."""
    if ax is None:
        figure = plt.figure(figsize=(INCHES * across, INCHES * down))
        ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, across), ylim=(down, 0))
    ax.set_aspect("equal", anchor="NW")
    ax.set_axis_off()
    ax.apply_aspect()
    return ax


def _text_properties(ax: Axes, font: str | Sequence[str]) -> dict[str, Any]:
    """Return the properties of text that fits into the cells of the Axes."""
    pixels = np.ptp(ax.transData.transform([(0, 0), (1, 0)])[:, 0])
    return {
        "family": [font] if isinstance(font, str) else list(font),
        "fontsize": 0.95 * pixels * 72 / ax.figure.dpi / ADVANCE,
        "va": "center_baseline",
        "parse_math": False,
    }


def _cells(
    block: Sequence[Sequence[Glyph]], indent: int, columns: int, top: int
) -> Iterator[_Cell]:
    """Yield the cells of the words in the rows of one line, gaps left out."""
    rtl = is_rtl([glyph.cluster for row in block for glyph in row])
    for row in block:
        depth = levels([glyph.cluster for glyph in row], rtl)
        texts = list(map(visible, shaped([glyph.cluster for glyph in row], depth)))
        left = indent
        if rtl:
            left += columns - sum(width(glyph.cluster) for glyph in row)
        for i in visual_order(depth):
            right = left + width(row[i].cluster)
            word = row[i].word
            if word is not None:
                yield _Cell(texts[i], word, left, right, top)
            left = right
        top += HEIGHT


def _glyphs(line: Line) -> list[Glyph]:
    glyphs: list[Glyph] = []
    for i, word in enumerate(line.words):
        if i:
            glyphs += [Glyph(cluster, None) for cluster in clusters(line.gap)]
        glyphs += [Glyph(cluster, i) for cluster in clusters(word)]
    return glyphs


def _rows(glyphs: Sequence[Glyph], columns: int) -> Iterator[list[Glyph]]:
    """Yield the glyphs in rows, which end with a line, after a space, or when they are full."""
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
