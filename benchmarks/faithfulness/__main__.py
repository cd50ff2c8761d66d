"""Compare methods on series of known salience: `python -m benchmarks.faithfulness --help`.

AUP and AUR are the areas under precision and recall of the salient cells as functions of the
threshold. Absolute values are scaled to [0, 1] in each series; the cells of all series of a seed
count together.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import report
from benchmarks.faithfulness import classifier, rare
from benchmarks.progress import track


class Task(NamedTuple):
    """Series, and what is measured on them.

    Attributes:
        series: their description.
        number: of the series of a seed, if the command line does not name it.
        methods: the methods that apply.
        measures: functions of `jaxattn.metrics`.
        published: the first numbers of `measures` that time-interpret publishes, for some methods.
        measured: the function from a method, a seed and a number of series to the measures.
    """

    series: str
    number: int
    methods: Mapping[str, dict[str, Any]]
    measures: tuple[str, ...]
    published: dict[str, tuple[float, ...]]
    measured: Callable[[str, int, int], dict[str, float]]


RARE = Task(
    f"{rare.STEPS} steps and {rare.FEATURES} features",
    rare.SERIES,
    rare.METHODS,
    rare.MEASURES,
    {
        "integrated_gradients": (1.0, 0.13),
        "occlusion": (1.0, 0.129),
        "dynamask": (0.93, 0.65),
        "extremal_mask": (0.993, 0.788),
    },
    lambda method, seed, number: rare.measured(method, "feature", seed, number),
)
TASKS = {
    "rare-feature": RARE,
    "rare-time": RARE._replace(
        measured=lambda method, seed, number: rare.measured(method, "time", seed, number)
    ),
    "state": Task(
        "200 steps and 3 features",
        10,
        classifier.METHODS,
        classifier.MEASURES,
        {"integrated_gradients": (0.918, 0.454, 0.936, 0.909)},
        classifier.measured,
    ),
}
#: Headings of measures that are not areas, and the unit of their numbers.
BITS = 1000


class Result(NamedTuple):
    """The measures of a method on a task: for each, one number per seed."""

    task: str
    method: str
    measures: dict[str, list[float]]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    cells = [
        (task, method)
        for task in arguments.tasks
        for method in arguments.methods
        if method in TASKS[task].methods
    ]
    results = []
    for name, method in track(cells, "tasks and methods", " ".join):
        task = TASKS[name]
        each = [
            task.measured(method, seed, arguments.series or task.number)
            for seed in track(arguments.seeds, "seeds", inside=f"{name} {method}")
        ]
        measures = {measure: [one[measure] for one in each] for measure in task.measures}
        results.append(Result(name, method, measures))
    for name in arguments.tasks:
        show(name, [result for result in results if result.task == name], arguments)
    settings = {"seeds": arguments.seeds, "series": arguments.series}
    report.write(arguments.json, settings | {"results": [each._asdict() for each in results]})


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.faithfulness", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    methods = list(rare.METHODS)
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5], help="default: 1 2 3 4 5"
    )
    parser.add_argument(
        "--series", type=report.positive, help="of each seed, default: 100, for state 10"
    )
    parser.add_argument("--quick", action="store_true", help="10 series of one seed, not state")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the numbers")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.series, arguments.seeds = 10, arguments.seeds[:1]
        arguments.tasks = [task for task in arguments.tasks if task != "state"]
    report.check_file(parser, "--json", arguments.json)
    return arguments


def show(name: str, results: list[Result], arguments: argparse.Namespace) -> None:
    if not results:
        return
    task, number = TASKS[name], len(arguments.seeds)
    seeds = f"Mean and standard deviation of {number} seeds" if number > 1 else "One seed"
    columns = [
        f"{each}\n({BITS} bits)" if in_bits(each) else each.upper() for each in task.measures
    ]
    report.table(
        f"{name}: {arguments.series or task.number} series of {task.series}",
        ("method", *columns),
        [(result.method, *entries(result, task.published)) for result in results],
        f"{seeds}; in brackets, numbers that time-interpret publishes. Higher is better; for the "
        "entropy, lower.",
    )


def in_bits(measure: str) -> bool:
    return measure in ("information", "entropy")


def entries(result: Result, published: dict[str, tuple[float, ...]]) -> list[str]:
    """Return the mean of each measure, its standard deviation and the published number."""
    known = dict(zip(result.measures, published.get(result.method, ()), strict=False))
    texts = []
    for name, numbers in result.measures.items():
        digits, unit = (1, BITS) if in_bits(name) else (3, 1)
        text = f"{np.mean(numbers) / unit:.{digits}f}"
        if len(numbers) > 1:
            text += f" ± {np.std(numbers) / unit:.{digits}f}"
        texts.append(f"[{known[name]:g}] {text}" if name in known else text)
    return texts


if __name__ == "__main__":
    main()
