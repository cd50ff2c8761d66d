"""Sections of a report that its caller adds: paragraphs, figures, tables and other HTML."""

import base64
import dataclasses
import io
import itertools
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import pyplot
from matplotlib.figure import Figure, SubFigure
from rich.table import Table

from jaxattn.engine.options import name_of
from jaxattn.reporting.sheets import Sheet, sheet_of

#: The resolution of figures: twice that of a screen.
_DPI = 160
#: The places of the page's own sections.
RESERVED = {"predictions", "examples", "switch", "signs", "cost", "metrics", "recurrent", "notes",
            "made"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a section: HTML, or a table."""

    body: Markup | None = None
    sheet: Sheet | None = None


@dataclasses.dataclass(frozen=True)
class Section:
    """A section: its place in the page, its heading and its parts."""

    anchor: str
    heading: str
    parts: tuple[Part, ...]


def sections_of(sections: Mapping[str, Any]) -> list[Section]:
    """Return sections with their parts as HTML; figures that are drawn are closed.

    Raises:
        TypeError: for something that is not a mapping, or a part that cannot be shown.
    """
    if not isinstance(sections, Mapping):
        raise TypeError(f"`sections` must be a dict of parts by heading, got {sections!r}.")
    found: dict[str, Section] = {}
    for heading, given in sections.items():
        parts = given if isinstance(given, list | tuple) else [given]
        anchor = _anchor(str(heading), found)
        found[anchor] = Section(
            anchor, str(heading), tuple(part_of(each, heading) for each in parts)
        )
    return list(found.values())


def _anchor(heading: str, taken: Container[str]) -> str:
    """Return the words of a heading with dashes, with a number if that is taken."""
    words = re.sub(r"\W+", "-", heading.lower()).strip("-") or "section"
    names = itertools.chain([words], (f"{words}-{i}" for i in itertools.count(2)))
    return next(name for name in names if name not in taken and name not in RESERVED)


def part_of(part: Any, heading: str) -> Part:
    """Return one part of a section as HTML or as a table.

    Text is escaped. The HTML of an object that a notebook shows is not.

    Raises:
        TypeError: for an object that cannot be shown.
    """
    if isinstance(part, str):
        paragraphs = [Markup("<p>{}</p>").format(text) for text in part.split("\n\n")]
        return Part(Markup("\n").join(paragraphs))
    if isinstance(part, Table):
        return Part(sheet=sheet_of(part))
    figure = _figure(part)
    if figure is not None:
        return Part(figure_image(figure, heading))
    show = getattr(part, "_repr_html_", None)
    html = show() if callable(show) else None
    if html is None:
        raise TypeError(
            f"`sections` must hold strings, matplotlib figures or Axes, rich tables, and objects "
            f"that a notebook shows as HTML, got {name_of(type(part))} in {heading!r}."
        )
    return Part(Markup('<div class="scroll whole shown">{}</div>').format(Markup(html)))


def _figure(part: Any) -> Figure | None:
    """Return the figure of Axes, of an array of Axes, or a figure itself."""
    if isinstance(part, np.ndarray) and part.dtype == object and part.size:
        part = part.flat[0]
    figure = part if isinstance(part, Figure | SubFigure) else getattr(part, "figure", None)
    while isinstance(figure, SubFigure):
        figure = figure.figure
    return figure if isinstance(figure, Figure) else None


def figure_image(figure: Figure, heading: str) -> Markup:
    """Return a figure as an image of twice the resolution of a screen, and close it.

    The alternative text is the label of the figure (`figure.set_label`), or else the heading.
    """
    file = io.BytesIO()
    figure.savefig(file, dpi=_DPI, bbox_inches="tight", facecolor="white")
    pyplot.close(figure)
    data = base64.b64encode(file.getvalue()).decode()
    width, height = np.frombuffer(file.getvalue()[16:24], ">u4")
    return Markup(
        '<div class="scroll whole"><img class="figure" loading="lazy" width="{}" height="{}" '
        'alt="{}" src="data:image/png;base64,{}"></div>'
    ).format(width // 2, height // 2, str(figure.get_label()) or heading, data)


def introduction(text: str | Sequence[str]) -> list[str]:
    """Return the paragraphs of an introduction; empty lines separate those of a single text."""
    return text.split("\n\n") if isinstance(text, str) else [str(each) for each in text]
