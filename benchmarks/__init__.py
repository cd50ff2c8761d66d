"""Benchmarks: the cost of the methods, and their accuracy on tasks with a known answer."""

import importlib.util

if importlib.util.find_spec("jaxtyping") is None:
    from benchmarks import bare

    bare.install()
