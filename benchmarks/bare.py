"""Replace jaxtyping on a machine that has only jax, flax and numpy.

jaxattn uses jaxtyping in annotations only, and the benchmarks do not evaluate them.
"""

import sys
from types import ModuleType


class Anything:
    """A type that can be subscripted with any shape."""

    def __class_getitem__(cls, shape: object) -> type:
        return cls


class _Names(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


def install() -> None:
    """Make `import jaxtyping` return the replacement."""
    sys.modules["jaxtyping"] = _Names("jaxtyping")
