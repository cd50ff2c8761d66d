"""The memory of devices, and that of compiled programs."""

import functools
import math
import os

import jax

from jaxattn.engine.threads import cores
from jaxattn.jaxpr.rows import Rows

#: Share of the free memory that one program may fill with its temporaries and its output.
_SHARE = 0.6


def default_in_flight(device: jax.Device, rows: Rows) -> int:
    """Return how many evaluations of `fn` in flight to try first.

    Args:
        device: the caches of a CPU hold a few hundred, unless `fn` is tiny; an accelerator needs
            thousands.
        rows: how many evaluations of `fn` use a device well.
    """
    if device.platform != "cpu":
        return 8192
    surely_near = _at_most(_caches() / max(1, rows.bytes))
    return min(max(320, _power_of_two(rows.least), surely_near), 4096)


def fewer_in_flight(device: jax.Device, least: int, in_flight: int, needed: int) -> int:
    """Return how many evaluations of `fn` suit the memory, and on a CPU the caches, after a trial.

    Gradients keep all intermediates for the backward pass, and a network of few units computes less
    on each than it takes to load it. But what `fn` needs to run at full speed comes first.

    Args:
        device: where they run.
        least: the evaluations with which `fn` runs at full speed.
        in_flight: the evaluations of the trial.
        needed: its bytes.
    """
    if needed > budget(device):
        return max(1, in_flight // 2)
    # A little more costs less than to compile once more.
    if device.platform != "cpu" or needed <= 1.25 * _caches():
        return in_flight
    fitting = _at_most(_caches() * in_flight / needed)
    return min(in_flight, max(fitting, _power_of_two(least)))


def _power_of_two(rows: int) -> int:
    return 2 ** math.ceil(math.log2(max(1, rows)))


def _at_most(rows: float) -> int:
    return 2 ** int(math.log2(max(1, rows)))


@functools.cache
def _caches() -> int:
    """Return the bytes of caches that speed depends on, by measurement four times level 2."""
    second, third = (
        os.sysconf(name) if name in os.sysconf_names else 0
        for name in ("SC_LEVEL2_CACHE_SIZE", "SC_LEVEL3_CACHE_SIZE")
    )
    near = 4 * max(0, second) * cores()
    return min(near, third) if near and third > 0 else near or 2**24


def budget(device: jax.Device) -> int:
    """Return the bytes that a program may use on a device beside what it holds already."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return int(_SHARE * os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE"))


def needed(compiled: jax.stages.Compiled) -> int:
    """Return the bytes of temporaries and outputs of a program; 0 if XLA does not report them."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    return int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)


def is_exhausted(error: Exception) -> bool:
    """Return whether a device lacked memory to compile a program or to run it."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
