"""Write figures as PNG files and as one self-contained HTML page."""

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
from examples import method_curves
from examples.explaining import EqualArea, Evaluation, TimedAttribution

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
        folder: folder of the page and of the PNG files; created if it does not exist.
        title: title of the page.
        about: introductory paragraphs.
    """

    def __init__(self, folder: str | Path, title: str, about: Sequence[str]):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.title = title
        self.about = about
        self._sections: list[tuple[str, str, str]] = []

    def figure(self, name: str, heading: str, drawn: Any, reading: str, *, alt: str) -> None:
        """Add the figure of the Axes `drawn` to the page, save it as `name`.png, and close it."""
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
        """Add a table; the row that begins with `strong` is bold."""

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
        """Write the page and return its path."""
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
    explained: Mapping[str, TimedAttribution], curves: Mapping[str, ja.metrics.Curve]
) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of the table of times and deletion scores."""
    first = next(iter(explained.values()))
    half = len(first.attribution.output) // 2
    columns = ["method", f"first {half}, compiling", f"next {half}", "deletion AUC", "± error"]
    rows = []
    for name, curve in curves.items():
        auc = np.asarray(curve.auc)
        error = auc.std(ddof=1) / np.sqrt(len(auc))
        seconds = ["", ""]
        if name in explained:
            times = explained[name].first_seconds, explained[name].next_seconds
            seconds = [f"{t:.2f} s" for t in times]
        rows.append([name, *seconds, f"{auc.mean():.3f}", f"{error:.3f}"])
    return columns, rows


def area_rows(area: EqualArea) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of the comparison at equal area."""
    rows = [["none", f"{area.before:.3f}"]]
    rows += [[f"highest by {name}", f"{score:.3f}"] for name, score in area.after.items()]
    return ["deleted features", "mean probability of the label"], rows


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print a table to the console."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def deletion(
    page: Gallery,
    curves: Mapping[str, ja.metrics.Curve],
    inputs_name: str,
    features_name: str,
    note: str,
) -> None:
    """Draw the deletion curves of all methods and of a random ranking."""
    # The Jacobian's row of the label is the gradient.
    shown = {name: curve for name, curve in curves.items() if name != "Jacobian"}
    _, ax = plt.subplots(figsize=(8, 4.8), layout="constrained")
    order = sorted(shown, key=lambda name: float(shown[name].auc.mean()))
    method_curves.draw(
        ax, shown["random"].fractions, {name: np.asarray(shown[name].scores) for name in order},
        xlabel=f"fraction of the {features_name} deleted", ylabel="probability of the label",
    )  # fmt: skip
    page.figure(
        "deletion", "Deletion curves of all methods", ax,
        f"The {features_name} of {len(shown['random'].auc)} {inputs_name} are deleted in "
        "descending order of their attribution. Curves are means, bands are one standard error. "
        "A steeper fall, and a smaller area under the curve (AUC), means a better ranking. Each "
        f"method has its own colour and line style, the same on all pages. {note}",
        alt="Deletion curves of all methods and of a random ranking.",
    )  # fmt: skip


def finish(
    page: Gallery, console: Console, evaluation: Evaluation, inputs_name: str, features_name: str
) -> Path:
    """Add the closing tables, write the page, print the tables, and return the page's path."""
    count, size = evaluation.values["gradient"].shape[0], evaluation.values["gradient"][0].size
    methods = method_rows(evaluation.explained, evaluation.curves)
    area = area_rows(evaluation.area)
    compared = [name for name in evaluation.area.after if name != "learned mask"]
    page.table(
        "methods",
        "Time and deletion AUC of each method",
        *methods,
        f"Each method explained {count} {inputs_name} in two halves. The time of the first half "
        "includes compilation. The deletion AUC is the label's mean probability while "
        f"{features_name} are deleted, those with the highest attribution first. Lower is better; "
        "the row “random” is the reference. The Jacobian is ranked by the row of the label, which "
        "is the gradient. The temporal scores rank whole time steps, by the increase of the score "
        "at each step.",
        strong="random",
    )
    page.table(
        "equal-area",
        f"The learned mask and {len(compared)} other rankings at equal area",
        *area,
        f"In each of {count} {inputs_name}, as many {features_name} are deleted as the learned "
        f"mask covers, {evaluation.area.features:.0f} of {size} on average: those with the highest "
        f"mask values, or those with the highest attribution by {', '.join(compared)}. The mask is "
        "compared with these methods only. A lower probability means a better selection.",
        strong="highest by learned mask",
    )
    path = page.write()
    print_table(console, "Methods", *methods)
    print_table(
        console,
        f"At equal area: {evaluation.area.features:.0f} of {size} {features_name} deleted",
        *area,
    )
    console.print(f"The gallery is at [bold]{path.resolve()}", soft_wrap=True)
    return path
