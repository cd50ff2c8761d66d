"""Flags of XLA, of which each version has others."""

import importlib.util
import mmap
from pathlib import Path


def supported(flags):
    """Return the flags that this version of XLA has: it aborts the process at any other."""
    folder = Path(importlib.util.find_spec("jaxlib").origin).parent
    names = {flag: flag.removeprefix("--").partition("=")[0].encode() for flag in flags}
    found = set()
    for library in folder.glob("*.so"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m:
            found |= {flag for flag, name in names.items() if m.find(name + b"\0") >= 0}
    return [flag for flag in flags if flag in found]
