"""The tables of the benchmark, printed or as a page of the documentation."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks import report
from benchmarks.faithfulness.runs import RANDOM
from benchmarks.faithfulness.tasks import TASKS, Numbers
from benchmarks.faithfulness.wording import INTRODUCTIONS, OPENING


class Column(NamedTuple):
    """The heading, unit and direction of a measure.

    Attributes:
        heading: its name and unit.
        text: of a number.
        lower: whether lower is better.
    """

    heading: str
    text: Callable[[float], str] = "{:.3f}".format
    lower: bool = False


COLUMNS = {
    "aup": Column("AUP"),
    "aur": Column("AUR"),
    "auroc": Column("AUROC"),
    "auprc": Column("AUPRC"),
    "information": Column("information\n(1000 bits)", lambda bits: f"{bits / 1000:.1f}"),
    "entropy": Column("entropy\n(1000 bits)", lambda bits: f"{bits / 1000:.2f}", lower=True),
    "first": Column("first number,\ncorrelation (%)"),
    "second": Column("second number,\ncorrelation (%)"),
    "squared_error": Column("sum - output,\nmean square", "{:.0e}".format, lower=True),
    "inside": Column("inside the square", "{:.1%}".format),
    "accuracy": Column("accuracy", "{:.1%}".format),
    "mean squared error": Column("mean squared error", "{:.0e}".format, lower=True),
}


def show(name: str, results: Numbers) -> None:
    """Print the table of a task."""
    task = TASKS[name]
    report.table(
        f"{name}: {results['number']} {task.examples}",
        ("method", *(COLUMNS[measure].heading for measure in task.measures)),
        [
            (method, *entries(name, method, measured))
            for method, measured in results["methods"].items()
        ],
        caption(name, results),
    )


def caption(name: str, results: Numbers) -> str:
    """Say what the numbers of a table are, and which methods find nothing."""
    seeds = results["seeds"]
    several = len(seeds) > 1
    texts = [f"Mean ± standard deviation of {len(seeds)} seeds." if several else "One seed."]
    if set(TASKS[name].published).intersection(results["methods"]):
        texts.append("In brackets: the numbers that time-interpret publishes.")
    lower = [
        COLUMNS[measure].heading.split("\n")[0].rstrip(",")
        for measure in TASKS[name].measures
        if COLUMNS[measure].lower
    ]
    if lower:
        texts.append(f"Higher is better, lower for: {', '.join(lower)}.")
    texts += [
        f"Networks: {measure} {spread(measure, numbers)}."
        for measure, numbers in results["networks"].items()
    ]
    if RANDOM in results["methods"] and several:
        found = no_better_than_random(name, results)
        texts.append(f"No better than random: {', '.join(found) or 'none'}.")
    return " ".join(texts)


def no_better_than_random(name: str, results: Numbers) -> list[str]:
    """Return the methods whose mean exceeds that of the control by two deviations at most.

    The deviation is that of the difference of both in one seed.
    """
    control = results["methods"][RANDOM]

    def is_higher(measured: dict[str, list[float]], measure: str) -> bool:
        ours, others = np.asarray(measured[measure]), np.asarray(control[measure])
        return bool(ours.mean() > others.mean() + 2 * np.hypot(ours.std(), others.std()))

    return [
        method
        for method, measured in results["methods"].items()
        if method != RANDOM
        and not all(is_higher(measured, measure) for measure in TASKS[name].ranked_by)
    ]


def spread(measure: str, numbers: list[float]) -> str:
    """Return the mean of the seeds, and their standard deviation if there are several."""
    text = COLUMNS[measure].text
    mean = text(float(np.mean(numbers)))
    return f"{mean} ± {text(float(np.std(numbers)))}" if len(numbers) > 1 else mean


def entries(name: str, method: str, measured: dict[str, list[float]]) -> list[str]:
    """Return the text of each measure of a method, with the published number."""
    published = TASKS[name].published.get(method, ())
    known = dict(zip(TASKS[name].measures, published, strict=False))
    return [
        f"[{known[measure]:g}] {spread(measure, numbers)}"
        if measure in known
        else spread(measure, numbers)
        for measure, numbers in measured.items()
    ]


def markdown(numbers: Numbers) -> str:
    """Return the page of the documentation."""
    parts = [OPENING]
    for name, results in numbers["tasks"].items():
        task = TASKS[name]
        headings = [COLUMNS[measure].heading.replace("\n", " ") for measure in task.measures]
        rows = [
            ["method", *headings],
            ["---"] * (1 + len(headings)),
            *(
                [method, *entries(name, method, measured)]
                for method, measured in results["methods"].items()
            ),
        ]
        parts += [
            f"## {name}: {results['number']} {task.examples}",
            INTRODUCTIONS[name],
            "\n".join(f"| {' | '.join(row)} |" for row in rows),
            caption(name, results),
        ]
    return "\n\n".join(parts) + "\n"
