"""Figures as PNG files and as one page that holds them all and needs nothing else."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxattn as ja
from examples.explaining import EqualArea, Explained, Judged
from jaxattn import plot

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f6f6f4; color: #222; font: 17px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 0 0 .75rem; }
p { max-width: 46rem; margin: 0 0 .75rem; }
section { background: #fff; border: 1px solid #e2e2de; border-radius: 8px; margin: 1.75rem 0 0;
  padding: 1.5rem; }
figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption, .reading { border-left: 3px solid #0072b2; margin: 1rem 0 0; max-width: 46rem;
  padding-left: .9rem; }
.reading { margin: 0 0 1rem; }
b.how { color: #0072b2; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { border-bottom: 1px solid #e2e2de; padding: .35rem .7rem; text-align: right; }
th { font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
tr.strong td { font-weight: 600; }
nav a { color: #0072b2; margin-right: 1.2em; white-space: nowrap; }
"""


class Gallery:
    """A page of figures and tables, in the order in which they are added.

    Args:
        folder: where the page and the PNG files go; made if it is not there.
        title: the page's title.
        about: its first paragraphs.
    """

    def __init__(self, folder: str | Path, title: str, about: Sequence[str]):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.title = title
        self.about = about
        self._sections: list[tuple[str, str, str]] = []

    def figure(self, name: str, heading: str, drawn: Any, reading: str, *, alt: str) -> None:
        """Saves the figure that Axes belong to as `name`.png, and closes it."""
        figure = np.ravel(drawn)[0].figure
        path = self.folder / f"{name}.png"
        figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
        plt.close(figure)
        data = base64.b64encode(path.read_bytes()).decode()
        body = (
            f'<figure>\n<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}">\n'
            f'<figcaption><b class="how">How to read it.</b> {html.escape(reading)}</figcaption>\n'
            "</figure>"
        )
        self._sections.append((name, heading, body))

    def table(
        self, name: str, heading: str, columns: Sequence[str], rows: Sequence[Sequence[str]],
        reading: str, *, strong: str = "",
    ) -> None:  # fmt: skip
        """Adds a table; the row that begins with `strong` is set in bold."""

        def line(cells, kind):
            mark = ' class="strong"' if cells[0] == strong else ""
            inner = "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells)
            return f"<tr{mark}>{inner}</tr>"

        body = (
            f'<p class="reading"><b class="how">How to read it.</b> {html.escape(reading)}</p>\n'
            f'<div class="scroll"><table>\n<thead>{line(columns, "th")}</thead>\n<tbody>\n'
            + "\n".join(line(row, "td") for row in rows)
            + "\n</tbody>\n</table></div>"
        )
        self._sections.append((name, heading, body))

    def write(self) -> Path:
        """Writes the page, and says where it is."""
        title = html.escape(self.title)
        about = "\n".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in self.about)
        links = "\n".join(
            f'<a href="#{name}">{html.escape(heading)}</a>' for name, heading, _ in self._sections
        )
        sections = "\n".join(
            f'<section id="{name}">\n<h2>{html.escape(heading)}</h2>\n{body}\n</section>'
            for name, heading, body in self._sections
        )
        page = self.folder / "index.html"
        page.write_text(
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{title}</h1>\n{about}\n<nav>\n{links}\n</nav>\n{sections}\n"
            f"</main>\n</body>\n</html>\n",
            encoding="utf-8",
        )
        return page


def method_rows(
    explained: Mapping[str, Explained], curves: Mapping[str, ja.metrics.Curve]
) -> tuple[list[str], list[list[str]]]:
    """The closing table: each method's time, and its deletion score beside a random one's."""
    any_method = next(iter(explained.values()))
    half = len(any_method.attribution.output) // 2
    columns = ["method", f"first {half}, compiling", f"next {half}", "deletion AUC", "± error"]
    rows = []
    for name, curve in curves.items():
        auc = np.asarray(curve.auc)
        error = auc.std(ddof=1) / np.sqrt(len(auc))
        seconds = ["", ""]
        if name in explained:
            times = explained[name].first_seconds, explained[name].again_seconds
            seconds = [f"{t:.2f} s" for t in times]
        rows.append([name, *seconds, f"{auc.mean():.3f}", f"{error:.3f}"])
    return columns, rows


def area_rows(found: EqualArea) -> tuple[list[str], list[list[str]]]:
    """What is left of the label's probability, once equally many cells are deleted."""
    rows = [["nothing", f"{found.before:.3f}"]]
    rows += [[f"highest by {name}", f"{score:.3f}"] for name, score in found.after.items()]
    return ["deleted", "mean probability of the label"], rows


def show(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Prints a table."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def deletion(
    page: Gallery, curves: Mapping[str, ja.metrics.Curve], things: str, cells: str, note: str
) -> None:
    """Draws the deletion curves of all methods beside a random ranking's."""
    # The Jacobian's row of the label is the gradient.
    shown = {name: curve for name, curve in curves.items() if name != "Jacobian"}
    _, ax = plt.subplots(figsize=(8, 4.8), layout="constrained")
    order = sorted(shown, key=lambda name: float(shown[name].auc.mean()))
    plot.curve(
        shown["random"].fractions,
        {name: np.asarray(shown[name].scores) for name in order},
        ax=ax, xlabel=f"fraction of the {cells} deleted", ylabel="probability of the label",
    )  # fmt: skip
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    page.figure(
        "deletion", "Deletion: do the methods name what the network needs?", ax,
        f"The {cells} of {len(shown['random'].auc)} {things} are deleted in the order in which "
        "each method ranks them; curves are means with a band of one standard error. The sooner a "
        f"curve falls, and the smaller the area under it (AUC), the better the ranking. {note}",
        alt="Deletion curves of all methods and of a random ranking.",
    )  # fmt: skip


def close(page: Gallery, console: Console, found: Judged, things: str, cells: str) -> Path:
    """Adds the closing tables, writes the page, prints both, and returns the page's path."""
    count, size = found.values["gradient"].shape[0], found.values["gradient"][0].size
    methods = method_rows(found.explained, found.curves)
    area = area_rows(found.area)
    page.table(
        "methods",
        "Time, and how much each method knows",
        *methods,
        f"Each method explained {count} {things} in two halves; the first includes compilation. "
        f"The deletion AUC is the label's mean probability while {cells} are deleted, the highest "
        f"first: low is good, and random {cells} show what low means. The Jacobian is judged by "
        "the row of the label, which is the gradient; the temporal scores can only rank whole "
        "time steps, by how much each raises the score.",
        strong="random",
    )
    page.table(
        "equal-area",
        "The learned mask against other rankings at equal area",
        *area,
        f"In each of {count} {things} as many {cells} are deleted as the learned mask marks, "
        f"{found.area.cells:.0f} of {size} on average: those it marks most, or those that another "
        "method ranks highest. The lower the probability that is left, the better the choice.",
        strong="highest by learned mask",
    )
    path = page.write()
    show(console, "Methods", *methods)
    show(console, f"At equal area: {found.area.cells:.0f} of {size} {cells} deleted", *area)
    console.print(f"The gallery is at [bold]{path.resolve()}", soft_wrap=True)
    return path
