"""Compare methods on series of known salience: `python -m benchmarks.faithfulness --help`.

AUP and AUR are the areas under precision and recall of the salient cells as functions of the
threshold. Absolute values are scaled to [0, 1] in each series; the cells of all series of a seed
count together.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import report
from benchmarks.faithfulness import rare
from benchmarks.progress import track

TASKS: dict[str, rare.Task] = {"rare-feature": "feature", "rare-time": "time"}
#: AUP and AUR that time-interpret publishes for these tasks.
PUBLISHED = {
    "integrated_gradients": (1.0, 0.13),
    "occlusion": (1.0, 0.129),
    "dynamask": (0.93, 0.65),
    "extremal_mask": (0.993, 0.788),
}
COLUMNS = (
    "method",
    "AUP",
    "AUR",
    "information\n(1000 bits)",
    "entropy\n(1000 bits)",
    "published\nAUP, AUR",
)


class Result(NamedTuple):
    """The measures of a method on a task: for each, one number per seed."""

    task: str
    method: str
    measures: dict[str, list[float]]


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    cells = [(task, method) for task in arguments.tasks for method in arguments.methods]
    results = []
    for task, method in track(cells, "tasks and methods", " ".join):
        each = [
            rare.measured(method, TASKS[task], seed, arguments.series)
            for seed in track(arguments.seeds, "seeds", inside=f"{task} {method}")
        ]
        results.append(
            Result(task, method, {name: [one[name] for one in each] for name in rare.MEASURES})
        )
    for task in arguments.tasks:
        show(task, [result for result in results if result.task == task], arguments)
    settings = {"seeds": arguments.seeds, "series": arguments.series}
    report.write(arguments.json, settings | {"results": [each._asdict() for each in results]})


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.faithfulness", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=rare.METHODS, default=list(rare.METHODS))
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5], help="default: 1 2 3 4 5"
    )
    parser.add_argument(
        "--series", type=report.positive, default=rare.SERIES, help="per seed, default: %(default)s"
    )
    parser.add_argument("--quick", action="store_true", help="10 series of one seed")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the numbers")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.series, arguments.seeds = 10, arguments.seeds[:1]
    report.check_file(parser, "--json", arguments.json)
    return arguments


def show(task: str, results: list[Result], arguments: argparse.Namespace) -> None:
    number = len(arguments.seeds)
    seeds = f"Mean and standard deviation of {number} seeds" if number > 1 else "One seed"
    report.table(
        f"{task}: {arguments.series} series of {rare.STEPS} steps and {rare.FEATURES} features",
        COLUMNS,
        [(result.method, *entries(result), published(result.method)) for result in results],
        f"{seeds}. Published: AUP and AUR of time-interpret on these tasks. Higher is better; for "
        "the entropy, lower.",
    )


def entries(result: Result) -> list[str]:
    """Return the mean and the standard deviation of each measure."""
    texts = []
    for name, numbers in result.measures.items():
        digits, unit = (3, 1) if name in ("aup", "aur") else (1, 1000)
        spread = f" ± {np.std(numbers) / unit:.{digits}f}" if len(numbers) > 1 else ""
        texts.append(f"{np.mean(numbers) / unit:.{digits}f}{spread}")
    return texts


def published(method: str) -> str:
    if method not in PUBLISHED:
        return "-"
    return ", ".join(f"{number:g}" for number in PUBLISHED[method])


if __name__ == "__main__":
    main()
