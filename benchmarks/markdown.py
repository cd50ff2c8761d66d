"""Print the numbers of `benchmarks.speed` as the Markdown table of docs/speed.md.

python -m benchmarks.markdown benchmarks/results/methods-image-cpu-2-cores.json
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import milliseconds

COLUMNS = (
    "work", "contender", "best setting", "compile (s)", "run (ms)", "quartiles", "x jaxattn",
    "share of limit", "difference",
)  # fmt: skip

NAMES = {"captum": "Captum", "tint": "time-interpret"}


def rows(results: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the row of each contender of each cell.

    Args:
        results: the contents of a file that `benchmarks.speed --json` wrote.
    """
    for cell, measured in results["cells"].items():
        for i, (name, one) in enumerate(measured["contenders"].items()):
            ours = name == "jaxattn"
            quartiles = np.quantile(one["seconds"], (0.25, 0.75))
            compiled = one["compile_seconds"]
            yield [
                "" if i else cell,
                NAMES.get(name, name),
                one["setting"],
                "" if compiled is None else f"{compiled:.2f}",
                milliseconds(one["run_seconds"]),
                " - ".join(map(milliseconds, quartiles)),
                "1" if ours else f"{one['ratio']:.3g}",
                f"{one['share_of_limit']:.0%}".replace("%", " %"),
                "" if ours else f"{one['difference']:.0e}".replace("e-0", "e-"),
            ]


def main() -> None:
    """Print the table of several files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="JSON files of benchmarks.speed")
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    for path in parser.parse_args().files:
        lines += rows(json.loads(path.read_text()))
    for line in lines:
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
