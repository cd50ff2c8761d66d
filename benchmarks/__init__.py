"""What the methods cost, and whether they find what is there to be found."""

import importlib.util

if importlib.util.find_spec("jaxtyping") is None:
    from benchmarks import bare

    bare.install()
