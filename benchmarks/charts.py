"""Figures of the measurements of `benchmarks.speed` and `benchmarks.curves`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

COLORS = {
    "jaxattn": "#d1495b",
    "handwritten": "#edae49",
    "captum": "#00798c",
    "captum, repeated": "#7fb7be",
}
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
    figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")


def bars(ratios: Mapping[str, Mapping[str, tuple[float, float]]], subtitle: str) -> Figure:
    """Draw a group of bars per cell: the ratio of each contender's time to jaxattn's.

    Args:
        ratios: for each cell and contender, the ratio to jaxattn's time, and the seconds.
        subtitle: the device.
    """
    names = [name for name in LABELS if any(name in cell for cell in ratios.values())]
    order = ["jaxattn", *names]
    heights = [len(cell) for cell in ratios.values()]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.2 + 0.27 * (sum(heights) + len(heights))))
        axes = figure.add_subplot()
        place, ticks = 0.0, []
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        largest = max(ratio for cell in ratios.values() for ratio, _ in cell.values())
        left = min(0.5, 0.8 * min(ratio for cell in ratios.values() for ratio, _ in cell.values()))
        for cell in ratios.values():
            shown = [name for name in order if name in cell]
            ticks.append(place + (len(shown) - 1) / 2)
            for name in shown:
                ratio, seconds = cell[name]
                axes.barh(place, ratio - left, 0.86, left=left, color=COLORS[name])
                text = f" {1e3 * seconds:,.3g} ms" if seconds < 1 else f" {seconds:,.2f} s"
                if name != "jaxattn":
                    text = f" {ratio:.2f} ×  {text.strip()}"
                axes.annotate(
                    text.strip(),
                    (ratio, place),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8.5,
                    color="#444444",
                    bbox=box,
                )
                place += 1
            place += 0.9
        axes.axvline(1, color=COLORS["jaxattn"], lw=1, ls=(0, (4, 3)), zorder=0)
        axes.set_xscale("log")
        axes.set_xlim(left, 2.2 * max(largest, 1.5))
        marks = [
            m for m in (0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100) if left <= m <= largest * 2
        ]
        axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", length=0)
        axes.set_yticks(ticks, list(ratios))
        axes.tick_params(axis="y", length=0, labelsize=10, labelcolor="#222222")
        axes.invert_yaxis()
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("time relative to jaxattn (lower is faster)")
        handles = [mpl.patches.Patch(color=COLORS[n], label=LABELS.get(n, n)) for n in order]
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
            axes.plot(sizes, line, color="#bbbbbb", lw=1, ls=(0, (4, 3)), zorder=0)
            axes.annotate(
                "proportional",
                (sizes[-2], line[-2]),
                textcoords="offset points",
                xytext=(6, -10),
                fontsize=8,
                color="#999999",
            )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
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
