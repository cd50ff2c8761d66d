"""Progress of a long command: lines of text, printed also if the output is no terminal.

A progress bar is invisible in a log file, and the thread that redraws it would run during the
measurements.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import TypeVar

Step = TypeVar("Step")

EVERY = 10.0  # least number of seconds between two lines


def track(
    steps: Iterable[Step],
    unit: str,
    describe: Callable[[Step], object] | None = str,
    *,
    inside: str = "",
) -> Iterator[Step]:
    """Yield the steps and print lines such as "12/60 cells, jacobian ... 34 s".

    A line is printed when a step begins, but at most one in `EVERY` seconds. The lines go to the
    standard error, so that the standard output holds the results only.

    Args:
        steps: the steps; all are computed before the first one is yielded.
        unit: the name of a step, in the plural.
        describe: returns the description of a step; `None` prints the numbers only.
        inside: for an inner loop, the name of what it belongs to. Its lines are indented, and its
            first line is printed after `EVERY` seconds.
    """
    all_steps = list(steps)
    heading = f"  {inside}: " if inside else ""
    start = perf_counter()
    last_line = start if inside else start - EVERY
    for number, step in enumerate(all_steps, 1):
        now = perf_counter()
        if now - last_line >= EVERY:
            last_line = now
            description = "" if describe is None else f", {describe(step)}"
            _print(
                f"{heading}{number}/{len(all_steps)} {unit}{description} ... {now - start:.0f} s"
            )
        yield step
    if last_line > start or not inside:
        _print(f"{heading}{len(all_steps)} {unit} in {perf_counter() - start:.0f} s")


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
