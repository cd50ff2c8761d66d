"""Collect figures and tables of an example, and write them with `jaxattn.report`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import jaxattn as ja
from examples import method_curves
from examples.explaining import EqualArea, Evaluation, TimedAttribution

#: The most examples of which a page shows every method.
SHOWN = 24


class Gallery:
    """The sections of a page, in the order in which they are added.

    Args:
        folder: folder of the page and of the PNG files; created if it does not exist.
        title: title of the page.
        about: introductory paragraphs.
    """

    def __init__(self, folder: str | Path, title: str, about: Sequence[str]):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.title = title
        self.about = list(about)
        self.sections: dict[str, list[Any]] = {}

    def figure(self, name: str, heading: str, drawn: Any, reading: str, *, alt: str) -> None:
        """Add the figure of the Axes `drawn` to the page, save it as `name`.png, and close it."""
        figure = np.ravel(drawn)[0].figure
        path = self.folder / f"{name}.png"
        figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
        figure.set_label(alt)
        plt.close(figure)
        self.sections[heading] = [figure, reading]

    def table(
        self, heading: str, columns: Sequence[str], rows: Sequence[Sequence[str]], reading: str,
        *, strong: str = "",
    ) -> None:  # fmt: skip
        """Add a table; the row that begins with `strong` is bold."""
        self.sections[heading] = [reading, table_of("", columns, rows, strong=strong)]

    def texts(
        self, heading: str, texts: Sequence[ja.plot.Text], captions: Sequence[str], reading: str
    ) -> None:
        """Add coloured texts, each below its caption."""
        pairs = zip(captions, texts, strict=True)
        self.sections[heading] = [reading, *(part for pair in pairs for part in pair)]

    def write(
        self,
        fn: Callable[..., Any],
        xs: np.ndarray,
        targets: Any,
        methods: Mapping[str, Any],
        **options: Any,
    ) -> Path:
        """Write the page with the predictions and attributions of some examples; return its path.

        Args:
            fn: the network.
            xs: the examples, (B, ...).
            targets: their targets.
            methods: methods, or values (B, ...), by name.
            **options: further arguments of `jaxattn.report`.
        """
        outputs = np.zeros(len(xs))
        given = {
            name: method if callable(method) else ja.Attribution(method, outputs)
            for name, method in methods.items()
        }
        return ja.report(
            fn, xs, targets, given, path=self.folder / "index.html", title=self.title,
            about=self.about, sections=self.sections, **{"metrics": [], "curves": False, **options},
        )  # fmt: skip


def padded(tokens: Sequence[str], length: int, *, left: bool = False) -> list[str]:
    """Return tokens with empty ones for padding on the right or on the left."""
    padding = [""] * (length - len(tokens))
    return [*padding, *tokens] if left else [*tokens, *padding]


def table_of(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, strong: str = ""
) -> Table:
    """Return a table; the row that begins with `strong` is bold."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*map(escape, row), style="bold" if row[0] == strong else None)
    return table


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
    console.print(table_of(title, columns, rows))


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
    page: Gallery, console: Console, model: Callable[..., Any], inputs: np.ndarray,
    targets: np.ndarray, evaluation: Evaluation, inputs_name: str, features_name: str,
    **options: Any,
) -> Path:  # fmt: skip
    """Add the closing tables, write the page, print the tables, and return the page's path."""
    count, size = evaluation.values["gradient"].shape[0], evaluation.values["gradient"][0].size
    methods = method_rows(evaluation.explained, evaluation.curves)
    area = area_rows(evaluation.area)
    compared = [name for name in evaluation.area.after if name != "learned mask"]
    page.table(
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
        f"The learned mask and {len(compared)} other rankings at equal area",
        *area,
        f"In each of {count} {inputs_name}, as many {features_name} are deleted as the learned "
        f"mask covers, {evaluation.area.features:.0f} of {size} on average: those with the highest "
        f"mask values, or those with the highest attribution by {', '.join(compared)}. The mask is "
        "compared with these methods only. A lower probability means a better selection.",
        strong="highest by learned mask",
    )
    shown = {name: v[:SHOWN] for name, v in evaluation.values.items() if name != "Jacobian"}
    path = page.write(model, inputs[:SHOWN], targets[:SHOWN], shown, jacobian=True, **options)
    print_table(console, "Methods", *methods)
    print_table(
        console,
        f"At equal area: {evaluation.area.features:.0f} of {size} {features_name} deleted",
        *area,
    )
    console.print(f"The gallery is at [bold]{path.resolve()}", soft_wrap=True)
    return path
