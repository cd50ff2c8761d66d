"""Figures of the measurements of `benchmarks.speed` and `benchmarks.curves`.

`python -m benchmarks.charts FILE.json FILE.png` draws the figure of a file of measurements again.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLORS = {
    "jaxattn": "#d1495b",
    "handwritten": "#edae49",
    "captum": "#00798c",
    "captum, repeated": "#7fb7be",
}
MARKERS = {"jaxattn": "o", "handwritten": "s", "captum": "D", "captum, repeated": "d"}
LABELS = {
    "handwritten": "hand-written JAX",
    "captum": "Captum",
    "captum, repeated": "Captum, examples repeated",
}
STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.edgecolor": "#888888",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}


def save(figure: Figure, path: Path) -> None:
    """Save a figure; a missing folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=180, bbox_inches="tight", facecolor="white")


class Times(NamedTuple):
    """The seconds of a contender's turns, and their ratios to jaxattn's of the same turns."""

    seconds: Sequence[float]
    ratios: Sequence[float]


def ratios(cells: Mapping[str, Mapping[str, Times]], subtitle: str) -> Figure:
    """Draw the ratio of each contender's time to jaxattn's: the median as a dot, and the range.

    The axis is logarithmic. It has no zero, so that the length of a bar would have no meaning.

    Args:
        cells: for each cell and contender, the times of all turns.
        subtitle: the device.
    """
    names = [name for name in LABELS if any(name in cell for cell in cells.values())]
    order = ["jaxattn", *names]
    every = [ratio for cell in cells.values() for times in cell.values() for ratio in times.ratios]
    lowest, highest = 0.85 * min(every), max(1.5, *every)
    with mpl.rc_context(STYLE):
        rows = sum(map(len, cells.values())) + len(cells)
        figure = Figure(figsize=(9, 1.2 + 0.25 * rows))
        axes = figure.add_subplot()
        place, ticks = 0.0, []
        for cell in cells.values():
            shown = [name for name in order if name in cell]
            ticks.append(place + (len(shown) - 1) / 2)
            for name in shown:
                _contender(axes, place, name, cell[name])
                place += 1
            axes.axhline(place + 0.2, color="#eeeeee", lw=1, zorder=0)
            place += 1.4
        axes.axvline(1, color=COLORS["jaxattn"], lw=1, ls=(0, (4, 3)), zorder=0)
        axes.set_xscale("log")
        axes.set(xlim=(lowest, 2.4 * highest), ylim=(place - 0.9, -0.9))
        marks = [m for m in (0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100) if lowest <= m <= highest]
        axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", length=0)
        axes.set_yticks(ticks, list(cells))
        axes.tick_params(axis="y", length=0, labelsize=10, labelcolor="#222222")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("time relative to jaxattn, median and range of the turns (lower is faster)")
        handles = [
            Line2D([], [], color=COLORS[n], marker=MARKERS[n], ls="", label=LABELS.get(n, n))
            for n in order
        ]
        figure.legend(
            handles=handles,
            ncols=len(order),
            frameon=False,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            bbox_transform=axes.transAxes,
            handlelength=1,
            fontsize=9.5,
        )
        axes.set_title(f"The same work, one run: {subtitle}", pad=28)
    return figure


def _contender(axes: Axes, place: float, name: str, times: Times) -> None:
    """Draw the dot, the range and the numbers of one contender."""
    ratio, seconds = float(np.median(times.ratios)), float(np.median(times.seconds))
    ends = [min(times.ratios), max(times.ratios)]
    axes.plot(ends, [place, place], color=COLORS[name], lw=2, solid_capstyle="butt")
    axes.plot([ratio], [place], color=COLORS[name], marker=MARKERS[name], ms=7)
    text = f"{1e3 * seconds:,.3g} ms" if seconds < 1 else f"{seconds:,.2f} s"
    axes.annotate(
        text if name == "jaxattn" else f"{ratio:.2f} ×  {text}",
        (ends[1], place),
        (8, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
        color="#444444",
    )


def curves(panels: Sequence[Mapping[str, Any]], subtitle: str) -> Figure:
    """Draw up to four log-log panels of time against a size.

    Args:
        panels: each with "title", "axis", "sizes" and "seconds", which holds a list per contender.
        subtitle: the device.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 7.2), layout="constrained")
        for axes, panel in zip(figure.subplots(2, 2).flat, panels, strict=False):
            sizes = np.asarray(panel["sizes"])
            for name, seconds in panel["seconds"].items():
                label = LABELS.get(name, name)
                color, marker = COLORS[name], "o" if name == "jaxattn" else "s"
                times = 1e3 * np.asarray(seconds)
                axes.plot(sizes, times, marker=marker, ms=5, lw=2, color=color, label=label)
            first = 1e3 * min(seconds[0] for seconds in panel["seconds"].values())
            line = 0.6 * first * sizes / sizes[0]
            dashes = {"color": "#999999", "lw": 1, "ls": (0, (4, 3)), "zorder": 0}
            axes.plot(sizes, line, label="proportional to the size", **dashes)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
            axes.grid(axis="y", color="#eeeeee")
            axes.set_axisbelow(True)
            axes.set_title(panel["title"])
            axes.set_xlabel(panel["axis"])
            axes.set_ylabel("ms")
        for axes in figure.axes[len(panels) :]:
            axes.remove()
        figure.axes[0].legend(frameon=False, loc="upper left")
        figure.suptitle(f"Cost of an explanation, {subtitle}", x=0.01, ha="left", fontweight="bold")
    return figure


def main(source: str, target: str) -> None:
    """Draw the measurements that `benchmarks.speed` or `benchmarks.curves` wrote."""
    measured = json.loads(Path(source).read_text())
    if "curves" in measured:
        figure = curves(measured["curves"], measured["device"])
    else:
        cells = {
            name: {
                contender: Times(entry["seconds"], entry["ratios"])
                for contender, entry in cell["contenders"].items()
            }
            for name, cell in measured["cells"].items()
        }
        figure = ratios(cells, measured["device"])
    save(figure, Path(target))


if __name__ == "__main__":
    main(*sys.argv[1:])
