"""Tables of a report: predictions, costs, metrics, and tables of rich."""

import dataclasses

import numpy as np
from jaxtyping import Float
from rich.table import Table
from rich.text import Text

from jaxattn.metrics.direction import Direction
from jaxattn.reporting.contents import Contents
from jaxattn.reporting.inputs_shown import Labels

_BETTER: dict[Direction, str] = {"higher": "higher is better", "lower": "lower is better",
                                 "zero": "zero is better"}  # fmt: skip
_LONGEST_UNIT = 12


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table: what is read, and the number by which it sorts (`None`: by the text)."""

    text: str
    number: float | None = None
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table that can be sorted by each column, unless rows without a name follow another.

    Attributes:
        caption: its caption.
        columns: the names of its columns.
        rows: its rows.
        strong: which rows are bold.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    strong: frozenset[int] = frozenset()

    @property
    def sortable(self) -> bool:
        """Whether each row has a name."""
        return all(row[0].text for row in self.rows)


def named_class(names: list[str], index: int) -> str:
    """Return the name of a class, or its number if it has none."""
    return names[index] if 0 <= index < len(names) else str(index)


def predicted(output: Float[np.ndarray, " K"]) -> int | None:
    """Return the largest entry; `None` if one is NaN."""
    return None if np.isnan(output).any() else int(output.argmax())


def number(value: float, digits: int = 4) -> Cell:
    """Return the cell of a number; NaN is written as NaN."""
    return Cell("NaN" if np.isnan(value) else f"{value:.{digits}g}", float(value))


def sheet_of(table: Table) -> Sheet:
    """Return a table of rich; cells that are numbers, perhaps with a unit, sort as such."""
    columns = [_plain(column.header) for column in table.columns]
    cells = [[_plain(cell) for cell in column.cells] for column in table.columns]
    rows = [
        tuple(Cell(text, _leading_number(text)) for text in row) for row in zip(*cells, strict=True)
    ]
    bold = frozenset(i for i, row in enumerate(table.rows) if "bold" in str(row.style))
    return Sheet(_plain(table.title or ""), tuple(columns), tuple(rows), bold)


def _plain(text: object) -> str:
    return Text.from_markup(text).plain if isinstance(text, str) else str(text)


def _leading_number(text: str) -> float | None:
    """Return the number that a text starts with if it is all there is, but for a unit."""
    number_, _, unit = text.replace(",", "").replace("%", " %").partition(" ")
    try:
        return float(number_) if len(unit) <= _LONGEST_UNIT else None
    except ValueError:
        return None


def predictions(found: Contents, labels: Labels) -> Sheet:
    """Return the table of predictions: the largest scores of each example."""
    classes, names = found.classes, labels.classes
    rows: list[tuple[Cell, ...]] = []
    if found.outputs.ndim == 3:
        for i, output in enumerate(found.outputs):
            scores = output.max(-1)
            rows.append(
                (Cell(str(i), i), Cell(labels.sequence(i, output)), number(float(scores.min())))
            )
        caption = "The output sequence of each example, and the least of its largest scores"
        return Sheet(caption, ("example", "output", "least score"), tuple(rows))
    if classes is None or classes == 1:
        flat = found.outputs.reshape(len(found.outputs), -1)
        caption = f"Output of shape {found.outputs.shape[1:]}; of several numbers the mean"
        rows = [(Cell(str(i), i), number(float(output.mean()))) for i, output in enumerate(flat)]
        return Sheet(caption, ("example", "output"), tuple(rows))
    top = min(3, classes)
    columns = ["example", "prediction"]
    columns += ["explained"] if found.targets is not None else []
    columns += ["score", *(f"{place}. class" for place in ("2", "3")[: top - 1])]
    for i, output in enumerate(found.outputs):
        order = np.argsort(-output, kind="stable")[:top]
        best = predicted(output)
        row = [Cell(str(i), i), Cell("NaN" if best is None else named_class(names, best))]
        if found.targets is not None:
            row.append(Cell(named_class(names, int(found.targets[i]))))
        row.append(number(float(output[order[0]]) if best is not None else np.nan))
        for k in order[1:]:
            row.append(Cell(f"{names[k]} ({number(float(output[k])).text})", float(output[k])))
        rows.append(tuple(row))
    caption = "The largest entries of the output of each example"
    return Sheet(caption, tuple(columns), tuple(rows))


def costs(found: Contents) -> Sheet | None:
    """Return the table of the cost of each method that ran, or `None` if all were given."""
    columns = ("method", "first call (s)", "second call (s)", "evaluations per example", "state")
    rows = []
    for each in found.explained:
        if each.given:
            continue
        failed = np.isnan(each.first_seconds)
        times = [
            Cell("–", np.inf) if failed else number(seconds, 3)
            for seconds in (each.first_seconds, each.second_seconds)
        ]
        declared = each.evaluations
        evaluations = (
            Cell("not declared", np.inf) if declared is None else Cell(f"{declared}", declared)
        )
        state = f"failed: {each.error}" if each.error else "done"
        rows.append((Cell(each.name), *times, evaluations, Cell(state)))
    caption = f"Seconds for {len(found.xs)} examples; the first call includes compilation"
    return Sheet(caption, columns, tuple(rows)) if rows else None


def metric_sheet(found: Contents) -> Sheet | None:
    """Return the means and standard errors of metrics, or `None` if none was computed."""
    if found.table is None:
        return None
    table = found.table
    pairs = zip(table.metrics, table.better, strict=True)
    columns = ("method", *(f"{name} ({_BETTER[better]})" for name, better in pairs))
    rows = []
    for i, name in enumerate(table.methods):
        numbers = zip(table.mean[i], table.standard_error[i], table.best[i], strict=True)
        cells = [
            dataclasses.replace(
                number(mean, 3),
                text=number(mean, 3).text + ("" if np.isnan(error) else f" ± {error:.2g}"),
                best=bool(best),
            )
            for mean, error, best in numbers
        ]
        rows.append((Cell(name), *cells))
    return Sheet("Means with standard errors; the best in bold with a star", columns, tuple(rows))
