"""Compare jaxattn with hand-written JAX and other libraries: `python -m benchmarks.speed --help`.

All explain the same network and examples on the same device, in one run. Each opponent is first
tried at every chunk size and then measured at its best; jaxattn uses its defaults. They take turns,
and each time is divided by jaxattn's of the same turn. A result that differs from jaxattn's by more
than a cell's tolerance fails the benchmark, and no time is printed for it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import cells, coalition_cells, contest, limits, report, state_cells
from benchmarks.cells import Cell
from benchmarks.progress import track

CELLS = {**cells.CELLS, **coalition_cells.CELLS, **state_cells.CELLS}

COLUMNS = (
    "work, contender",
    "best\nsetting",
    "compile\n(s)",
    "run\n(ms)",
    "quartiles\n(ms)",
    "×\njaxattn",
    "of\nlimit",
    "peak\n(MiB)",
    "largest\ndiff.",
)


class Result(NamedTuple):
    """The measurements of a cell's contenders, and the limit of its speed."""

    entries: dict[str, contest.Entry]
    limit: limits.Limit


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    results: dict[str, Result] = {}
    failed: dict[str, str] = {}
    precision = "default" if arguments.tf32 else "highest"
    with jax.default_device(arguments.device), jax.default_matmul_precision(precision):
        for name in track(arguments.cells, "cells"):
            try:
                results[name] = measure(name, CELLS[name], arguments)
            except contest.DisagreementError as disagreement:
                failed[name] = str(disagreement)
            # A cell can take half an hour: what is measured is kept if the rest is stopped.
            report.write(arguments.json, as_json(results, failed, arguments))
    show(results, arguments)
    if arguments.plot is not None and results:
        from benchmarks import charts

        times = {
            name: {
                contender: charts.Times(entry.seconds, entry.ratios)
                for contender, entry in result.entries.items()
            }
            for name, result in results.items()
        }
        charts.save(charts.ratios(times, arguments.device.device_kind), arguments.plot)
    if failed:
        sys.exit("\n".join(failed.values()))


def measure(name: str, cell: Cell, arguments: argparse.Namespace) -> Result:
    platform = arguments.device.platform
    limit = limits.measure(cell, platform)
    entries = contest.contend(
        name,
        cell,
        arguments.peers,
        platform,
        arguments.chunks,
        arguments.rounds,
        tf32=arguments.tf32,
        cache=arguments.cache is not None,
    )
    return Result(entries, limit)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed", description=__doc__.splitlines()[0]
    )
    report.add_device(parser)
    parser.add_argument(
        "--cells",
        nargs="+",
        choices=CELLS,
        default=[name for name in CELLS if name in cells.CELLS],
        metavar="CELL",
        help=f"default: {' '.join(cells.CELLS)}; further: "
        f"{' '.join(name for name in CELLS if name not in cells.CELLS)}",
    )
    parser.add_argument(
        "--peers", nargs="+", choices=contest.PEERS, default=[], help="default: none"
    )
    parser.add_argument(
        "--chunks",
        nargs="+",
        type=report.positive,
        metavar="N",
        help="chunk sizes of the opponents; default: all powers of two",
    )
    parser.add_argument("--rounds", type=report.positive, default=9, help="default: %(default)s")
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="allow a GPU to round products to TF32; default: float32",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="JAX's compilation cache on disk")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the numbers")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="file for the figure")
    arguments = parser.parse_args(argv)
    arguments.device = report.device(parser, arguments.device)
    for peer in arguments.peers:
        reason = contest.PEERS[peer].why_not(arguments.device.platform)
        if reason is not None:
            parser.error(f"--peers {peer}: {reason}")
    report.check_file(parser, "--json", arguments.json)
    report.check_plot(parser, arguments.plot)
    report.check_folder(parser, "--cache", arguments.cache)
    if arguments.cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(arguments.cache.resolve()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return arguments


def show(results: dict[str, Result], arguments: argparse.Namespace) -> None:
    device = arguments.device.device_kind
    rows = [
        line
        for name, result in results.items()
        for line in [
            (name,),
            *(row(contender, entry, result) for contender, entry in result.entries.items()),
        ]
    ]
    report.table(
        f"The same work on {device}, float32, JAX {jax.__version__}",
        COLUMNS,
        rows,
        f"run: medians of {arguments.rounds} turns; limit: time of jaxattn's operations at the "
        "rate of a matrix product of a step's size",
    )
    reached = [
        (
            f"{name}, {peer}",
            f"{ratio(result.entries[peer]):.2f}",
            f"{least:g}",
            f"{cell.goal[peer]:g}" if peer in cell.goal else "",
            "yes" if ratio(result.entries[peer]) >= least else "no",
        )
        for name, result in results.items()
        for cell in [CELLS[name]]
        for peer, least in cell.at_least.items()
        if peer in result.entries
    ]
    report.table(
        "Time of an opponent / time of jaxattn",
        ("work, opponent", "measured", "at least", "goal", "reached"),
        reached,
        "medians of the ratios of single turns",
    )
    report.table(
        "Time of the first call of jaxattn",
        ("work", "compiled\n(s)", "loaded from disk\n(s)"),
        [
            (name, f"{built.first_seconds:.2f}", "" if cached is None else f"{cached:.2f}")
            for name, result in results.items()
            for built in [result.entries["jaxattn"].built]
            for cached in [built.cached_seconds]
        ],
        "with tracing and one run; a program that --cache held before is not compiled again",
    )
    for name, result in results.items():
        line = below_half(result)
        if line is not None:
            print(report.paragraph(f"{name}: {line}"))


def row(contender: str, entry: contest.Entry, result: Result) -> tuple[str, ...]:
    low, middle, high = map(report.milliseconds, np.percentile(entry.seconds, (25, 50, 75)))
    built = entry.built
    return (
        f"  {contender}",
        built.setting,
        "" if built.compile_seconds is None else f"{built.compile_seconds:.2f}",
        middle,
        f"{low} - {high}",
        f"{ratio(entry):.2f}",
        f"{share(entry, result):.0%}",
        "" if built.peak_bytes is None else f"{built.peak_bytes / 2**20:,.0f}",
        f"{entry.difference:.0e}" if contender != "jaxattn" else "",
    )


def ratio(entry: contest.Entry) -> float:
    """Return the median ratio of the contender's time to jaxattn's of the same turn."""
    return float(np.median(entry.ratios))


def share(entry: contest.Entry, result: Result) -> float:
    """Return the share of the limit: the time of jaxattn's operations as products / the time."""
    flops = result.entries["jaxattn"].built.flops or 0
    return result.limit.seconds(flops) / float(np.median(entry.seconds))


def below_half(result: Result) -> str | None:
    """Describe the time of jaxattn if it reaches less than half of the limit."""
    entry = result.entries["jaxattn"]
    if share(entry, result) >= 0.5:
        return None
    run = float(np.median(entry.seconds))
    flops = entry.built.flops or 0
    gates = entry.built.nonlinear / result.limit.nonlinear
    return (
        f"{share(entry, result):.0%} of the limit: {flops / 1e9:.3g} Gflop at "
        f"{result.limit.product / 1e9:.0f} Gflop/s take {1e3 * result.limit.seconds(flops):.1f} of "
        f"{1e3 * run:.1f} ms; {entry.built.nonlinear / 1e6:.3g} million tanh and sigmoids alone "
        f"take {1e3 * gates:.1f} ms at the measured {result.limit.nonlinear / 1e9:.2f} G/s"
    )


def as_json(
    results: dict[str, Result], failed: dict[str, str], arguments: argparse.Namespace
) -> dict[str, Any]:
    return {
        "device": arguments.device.device_kind,
        "platform": arguments.device.platform,
        "rounds": arguments.rounds,
        "tf32": arguments.tf32,
        "peers": {
            name: version
            for peer in arguments.peers
            for name, version in contest.PEERS[peer].versions().items()
        },
        "failed": failed,
        "cells": {
            name: {
                "limit": result.limit._asdict(),
                "limit_seconds": result.limit.seconds(result.entries["jaxattn"].built.flops or 0),
                "at_least": dict(CELLS[name].at_least),
                "goal": dict(CELLS[name].goal),
                "contenders": {
                    contender: {
                        "setting": entry.built.setting,
                        "compile_seconds": entry.built.compile_seconds,
                        "run_seconds": float(np.median(entry.seconds)),
                        "ratio": ratio(entry),
                        "share_of_limit": share(entry, result),
                        "first_seconds": entry.built.first_seconds,
                        "cached_seconds": entry.built.cached_seconds,
                        "peak_bytes": entry.built.peak_bytes,
                        "flops": entry.built.flops,
                        "difference": entry.difference,
                        "seconds": entry.seconds,
                        "ratios": entry.ratios,
                        "sweep": entry.sweep,
                    }
                    for contender, entry in result.entries.items()
                },
            }
            for name, result in results.items()
        },
    }


if __name__ == "__main__":
    main()
