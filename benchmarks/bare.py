"""Stands in for jaxtyping, where a machine has jax, flax and numpy alone.

jaxattn writes the shapes of arrays with jaxtyping's names, in annotations that nothing reads here.
"""

import sys
from types import ModuleType


class Anything:
    """A type that takes any shape."""

    def __class_getitem__(cls, shape: object) -> type:
        return cls


class _Names(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


def install() -> None:
    """Makes `import jaxtyping` find the stand-in."""
    sys.modules["jaxtyping"] = _Names("jaxtyping")
