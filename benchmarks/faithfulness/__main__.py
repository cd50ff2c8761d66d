"""Compare methods on tasks with a known answer: `python -m benchmarks.faithfulness --help`.

Each method meets the same examples and networks, and so does a random attribution, as a control.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.faithfulness import page
from benchmarks.faithfulness.runs import Run
from benchmarks.faithfulness.tasks import TASKS, Numbers
from benchmarks.progress import track


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    if arguments.read is None:
        numbers = measured(arguments)
        report.write(arguments.json, numbers)
    else:
        numbers = json.loads(arguments.read.read_text())
    for name, results in numbers["tasks"].items():
        page.show(name, results)
    if arguments.markdown is not None:
        arguments.markdown.write_text(page.markdown(numbers))


def measured(arguments: argparse.Namespace) -> Numbers:
    """Train all networks, then measure all methods of all tasks."""
    seeds = tuple(arguments.seeds)

    def run(name: str) -> Run:
        return Run(seeds, arguments.number or TASKS[name].number, arguments.quick)

    numbers: Numbers = {"quick": arguments.quick, "tasks": {}}
    trained = [(name, seed) for name in arguments.tasks for seed in seeds]
    for name, seed in track(trained, "networks", lambda each: f"{each[0]} of seed {each[1]}"):
        task = numbers["tasks"].setdefault(
            name,
            {"seeds": seeds, "number": run(name).number, "networks": {}, "methods": {}},
        )
        for measure, number in TASKS[name].quality(seed, run(name)).items():
            task["networks"].setdefault(measure, []).append(number)
    cells = [
        (name, method)
        for name in arguments.tasks
        for method in TASKS[name].methods
        if method in arguments.methods
    ]
    for name, method in track(cells, "tasks and methods", " ".join):
        each = [
            TASKS[name].measured(method, seed, run(name))
            for seed in track(seeds, "seeds", inside=f"{name} {method}")
        ]
        numbers["tasks"][name]["methods"][method] = {
            measure: [one[measure] for one in each] for measure in TASKS[name].measures
        }
    return numbers


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.faithfulness", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    methods = list(dict.fromkeys(name for task in TASKS.values() for name in task.methods))
    parser.add_argument(
        "--methods", nargs="+", choices=methods, default=methods, metavar="METHOD",
        help=f"default: all of {' '.join(methods)}",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5], help="default: 1 2 3 4 5"
    )
    sizes = ", ".join(f"{name} {task.number}" for name, task in TASKS.items())
    parser.add_argument(
        "--number", type=report.positive, help=f"of examples of each seed, default: {sizes}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="10 examples of one seed, networks of short training"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the numbers")
    parser.add_argument(
        "--markdown", type=Path, metavar="PATH", help="file for the tables, with what they show"
    )
    parser.add_argument(
        "--read", type=Path, metavar="PATH", help="take the numbers from this file of --json"
    )
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.number, arguments.seeds = arguments.number or 10, arguments.seeds[:1]
    report.check_file(parser, "--json", arguments.json)
    report.check_file(parser, "--markdown", arguments.markdown)
    return arguments


if __name__ == "__main__":
    main()
