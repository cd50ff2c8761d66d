"""Command-line options, printed tables and JSON files of the benchmarks."""

import argparse
import importlib.util
import json
import os
import platform
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import jax

WIDTH = 100  # columns of the printed text


def positive(text: str) -> int:
    """Parse a positive int of the command line."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive int, got {text!r}")
    return int(text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option that `device` reads."""
    parser.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="default: JAX's own")


def device(parser: argparse.ArgumentParser, platform: str | None) -> jax.Device:
    """Return the first device of a platform; exit with the parser's error if there is none."""
    try:
        return jax.devices(platform)[0]
    except RuntimeError:
        seen = ", ".join(sorted({"cpu", jax.default_backend()}))
        parser.error(f"no {platform} here: JAX sees {seen}")


def check_folder(parser: argparse.ArgumentParser, option: str, path: Path | None) -> None:
    """Create a folder for output files; exit with the parser's error if that fails."""
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # permissions do not decide alone
            pass
    except OSError as error:
        parser.error(f"{option}: cannot write to the folder {path}: {error.strerror}")


def check_file(parser: argparse.ArgumentParser, option: str, path: Path | None) -> None:
    """Exit with the parser's error if a file cannot be written, before anything is measured."""
    if path is None:
        return
    check_folder(parser, option, path.parent)
    if path.is_dir():
        parser.error(f"{option}: {path} is a folder, give a file in it")
    if path.exists() and not os.access(path, os.W_OK):
        parser.error(f"{option}: cannot write over {path}")


def check_plot(parser: argparse.ArgumentParser, path: Path | None) -> None:
    """Exit with the parser's error if a plot was requested and cannot be drawn or written."""
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


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds, with one decimal below a second."""
    return f"{1e3 * seconds:,.1f}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], caption: str) -> None:
    """Print a table as aligned text.

    Args:
        title: the line above it.
        columns: the headings, of one line or more each. The first column is aligned to the left,
            all others to the right.
        rows: the entries. A row of one entry is a heading of the rows below it.
        caption: the text below it, broken into lines of at most `WIDTH` characters.
    """
    headings = [heading.split("\n") for heading in columns]
    height = max(map(len, headings))
    top = list(zip(*([""] * (height - len(lines)) + lines for lines in headings), strict=True))
    full = [*top, *(row for row in rows if len(row) > 1)]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]

    def aligned(row: tuple[str, ...]) -> str:
        first, *others = row
        entries = (text.rjust(width) for text, width in zip(others, widths[1:], strict=False))
        return "  ".join([first.ljust(widths[0]), *entries]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    print("\n".join([paragraph(title), rule, *map(aligned, top), rule, *map(aligned, rows), rule]))
    print(paragraph(caption), end="\n\n", flush=True)


def paragraph(text: str) -> str:
    """Return a text broken into lines of at most `WIDTH` characters."""
    return textwrap.fill(text, WIDTH)


def write(path: Path | None, numbers: dict[str, Any]) -> None:
    """Write the numbers and the machine they were measured on, if there is a path."""
    if path is None:
        return
    cores = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    where = {"jax": jax.__version__, "host": cores}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(where | numbers, indent=2) + "\n")
