"""How a benchmark is asked for and what it leaves: options, a table, numbers in JSON."""

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

WIDTH = 120  # where the output is no terminal that has one


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive int, got {text!r}")
    return int(text)


def table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], caption: str) -> None:
    """Prints a table whose first column names the rows."""
    broad = min(WIDTH, max(len(title), len(caption)))
    shown = Table(title=title, caption=caption, min_width=broad)
    for i, heading in enumerate(columns):
        shown.add_column(heading, justify="right" if i else "left")
    for row in rows:
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(shown)


def write(path: Path | None, numbers: dict[str, Any]) -> None:
    """Writes the numbers and where they were measured, if there is a path to write to."""
    if path is None:
        return
    cores = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    where = {"jax": jax.__version__, "host": cores}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(where | numbers, indent=2) + "\n")
