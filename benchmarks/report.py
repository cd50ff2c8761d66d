"""How a benchmark is asked for and what it leaves: options, a table, numbers in JSON."""

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

try:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table
except ImportError:  # a GPU box may hold no more than what the numbers need
    Console = None  # type: ignore[assignment, misc]

WIDTH = 120  # where the output is no terminal that has one


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive int, got {text!r}")
    return int(text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds the option that `device` reads."""
    parser.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="default: JAX's own")


def device(parser: argparse.ArgumentParser, platform: str | None) -> jax.Device:
    """The first device of a platform; the parser's error where there is none."""
    try:
        return jax.devices(platform)[0]
    except RuntimeError:
        seen = ", ".join(sorted({"cpu", jax.default_backend()}))
        parser.error(f"no {platform} here: JAX sees {seen}")


def check_folder(parser: argparse.ArgumentParser, option: str, path: Path | None) -> None:
    """Makes a folder that files will be written to; the parser's error where that cannot be."""
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # permissions alone do not tell
            pass
    except OSError as error:
        parser.error(f"{option}: cannot write to the folder {path}: {error.strerror}")


def check_file(parser: argparse.ArgumentParser, option: str, path: Path | None) -> None:
    """The parser's error where a file could not be written, before its numbers are measured."""
    if path is None:
        return
    check_folder(parser, option, path.parent)
    if path.is_dir():
        parser.error(f"{option}: {path} is a folder, give a file in it")
    if path.exists() and not os.access(path, os.W_OK):
        parser.error(f"{option}: cannot write over {path}")


def check_plot(parser: argparse.ArgumentParser, path: Path | None) -> None:
    """The parser's error where a plot is wanted and cannot be drawn or written."""
    if path is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot: matplotlib is not installed")
    from matplotlib.backend_bases import FigureCanvasBase

    suffixes = FigureCanvasBase.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in suffixes:  # without one it is a PNG
        parser.error(
            f"--plot: matplotlib cannot save {path.suffix}, it can {' '.join(sorted(suffixes))}"
        )
    check_file(parser, "--plot", path)


def progress(steps: Iterable[Any], description: str) -> Iterable[Any]:
    """The steps, with a bar that goes away, where rich is installed."""
    if Console is None:
        return steps
    return track(list(steps), description, transient=True)


def table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], caption: str) -> None:
    """Prints a table whose first column names the rows."""
    if Console is None:
        print(_plain(title, columns, rows, caption))
        return
    broad = min(WIDTH, max(len(title), len(caption)))
    shown = Table(title=title, caption=caption, min_width=broad)
    for i, heading in enumerate(columns):
        shown.add_column(heading, justify="right" if i else "left")
    for row in rows:
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(shown)


def _plain(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], caption: str) -> str:
    """The same in aligned text."""
    lines = [tuple(" ".join(heading.split()) for heading in columns), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([title, *aligned, caption, ""])


def write(path: Path | None, numbers: dict[str, Any]) -> None:
    """Writes the numbers and where they were measured, if there is a path to write to."""
    if path is None:
        return
    cores = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    where = {"jax": jax.__version__, "host": cores}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(where | numbers, indent=2) + "\n")
