"""What a device can hold, and how much a compiled program asks of it."""

import os
from typing import Any

import jax

#: Share of the free memory that one program may fill with its temporaries and its output.
_SHARE = 0.6


def default_in_flight(device: jax.Device) -> int:
    """How many evaluations of `fn` are worth having in flight, memory permitting.

    On a CPU the cost of a row is lowest near a few hundred rows, whose intermediates stay in the
    caches; an accelerator wants thousands.
    """
    return 256 if device.platform == "cpu" else 8192


def budget(device: jax.Device) -> int:
    """Bytes that a program may use on a device beside what is there already."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(_SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return int(_SHARE * os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE"))


def needed(compiled: Any) -> int:
    """Bytes of temporaries and outputs of a compiled program; 0 where XLA does not say."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    return int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)


def is_exhausted(error: Exception) -> bool:
    """Whether it was memory that a device lacked, to compile a program or to run it."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
