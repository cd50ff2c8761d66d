"""Measure how the cost of an explanation grows: `python -m benchmarks.curves --help`.

jaxattn and hand-written JAX are measured in turns while one size grows: time steps, windows,
examples or outputs. The hand-written explanation uses the best of a few chunk sizes.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import contest, report
from benchmarks.cells import IMAGE, LONG, Cell
from benchmarks.progress import track


class Line(NamedTuple):
    """A title, the size that grows, its values, and the work at a value."""

    title: str
    axis: str
    sizes: tuple[int, ...]
    cell: Callable[[int], Cell]


def _steps(steps: int) -> Cell:
    window, stride = steps // 8, steps // 16
    options = {"window": (window,), "stride": (stride,)}
    return Cell("occlusion", LONG._replace(steps=steps), 16, options)


def _windows(windows: int) -> Cell:
    stride = LONG.steps // (windows + 1)
    return Cell("occlusion", LONG, 16, {"window": (2 * stride,), "stride": (stride,)})


LINES: Mapping[str, Line] = {
    "steps": Line("Occlusion by 15 windows, longer series", "steps", (64, 128, 256, 512), _steps),
    "windows": Line("Occlusion of 256 steps, more windows", "windows", (7, 15, 31, 63), _windows),
    "batch": Line(
        "Saliency, more examples",
        "examples",
        (16, 64, 256, 1024),
        lambda batch: Cell("saliency", IMAGE, batch),
    ),
    "outputs": Line(
        "Jacobian, more outputs",
        "outputs",
        (2, 8, 32, 128),
        lambda classes: Cell("jacobian", IMAGE._replace(classes=classes), 16),
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.curves", description=__doc__.splitlines()[0]
    )
    report.add_device(parser)
    parser.add_argument(
        "--lines", nargs="+", choices=LINES, default=list(LINES), help="default: all"
    )
    parser.add_argument(
        "--chunks",
        nargs="+",
        type=report.positive,
        metavar="N",
        default=[4, 16, 64],
        help="chunk sizes of the hand-written explanation; default: 4 16 64",
    )
    parser.add_argument("--rounds", type=report.positive, default=5, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the numbers")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="file for the figure")
    arguments = parser.parse_args(argv)
    arguments.device = report.device(parser, arguments.device)
    report.check_file(parser, "--json", arguments.json)
    report.check_plot(parser, arguments.plot)
    with jax.default_device(arguments.device), jax.default_matmul_precision("highest"):
        panels = [draw(LINES[name], arguments) for name in arguments.lines]
    device = arguments.device.device_kind
    report.table(
        f"Cost of an explanation on {device}, JAX {jax.__version__}",
        ("size", "jaxattn\n(ms)", "hand-written\n(ms)", "× jaxattn"),
        [
            (
                f"{panel['axis']} {size}",
                report.milliseconds(ours),
                report.milliseconds(by_hand),
                f"{ratio:.2f}",
            )
            for panel in panels
            for size, ours, by_hand, ratio in zip(
                panel["sizes"], *panel["seconds"].values(), panel["ratios"], strict=True
            )
        ],
        f"medians of {arguments.rounds} turns",
    )
    report.write(arguments.json, {"device": device, "curves": panels})
    if arguments.plot is not None:
        from benchmarks import charts

        charts.save(charts.curves(panels, device), arguments.plot)


def draw(line: Line, arguments: argparse.Namespace) -> dict:
    """Measure the seconds of both at each size of one line."""
    platform, chunks, rounds = arguments.device.platform, arguments.chunks, arguments.rounds
    entries = [
        contest.contend(f"{line.axis} {size}", line.cell(size), [], platform, chunks, rounds)
        for size in track(line.sizes, f"sizes ({line.axis})")
    ]
    return {
        "title": line.title,
        "axis": line.axis,
        "sizes": list(line.sizes),
        "seconds": {
            name: [float(np.median(entry[name].seconds)) for entry in entries]
            for name in ("jaxattn", "handwritten")
        },
        "ratios": [float(np.median(entry["handwritten"].ratios)) for entry in entries],
        "settings": [entry["handwritten"].built.setting for entry in entries],
    }


if __name__ == "__main__":
    main()
