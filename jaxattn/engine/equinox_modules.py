"""equinox modules as they are traced: each under its path as a named scope."""

import dataclasses
import sys
from typing import Any

import jax
from jaxtyping import PyTree

from jaxattn.engine.scopes import PATHS, scoped


def is_equinox(value: object) -> bool:
    """Return whether a value is a module of equinox."""
    equinox = sys.modules.get("equinox")
    return equinox is not None and isinstance(value, equinox.Module)


def inference(module: PyTree) -> PyTree:
    """Return an equinox module with dropout off and with names; anything else as it is."""
    if not is_equinox(module):
        return module
    return named(sys.modules["equinox"].nn.inference_mode(module))


def named(module: Any, path: str = "") -> Any:
    """Return a copy of a module whose parts, and itself, enter a scope of their paths."""
    import equinox

    def of_part(value: PyTree, path: str) -> PyTree:
        def of_leaf(keys: tuple[Any, ...], leaf: Any) -> Any:
            inner = jax.tree_util.keystr(keys, simple=True, separator="/")
            return named(leaf, "/".join(filter(None, (path, inner)))) if is_equinox(leaf) else leaf

        return jax.tree.map_with_path(of_leaf, value, is_leaf=is_equinox)

    kind = type(module)
    # Methods, partial functions and what the transformations of equinox return are no layers.
    is_wrapper = kind.__module__.startswith("equinox._")
    if callable(module) and not is_wrapper:
        # Operations such as a scan over stacked layers rebuild a module from its fields.
        attributes = {PATHS: equinox.field(static=True, default=("",))}
        kind = scoped(kind, attributes={"__annotations__": {PATHS: tuple}} | attributes)
    made = object.__new__(kind)
    for field in dataclasses.fields(module):
        if hasattr(module, field.name):
            value = getattr(module, field.name)
            part = "" if is_wrapper else field.name
            if not field.metadata.get("static"):
                value = of_part(value, "/".join(filter(None, (path, part))))
            object.__setattr__(made, field.name, value)
    if hasattr(kind, PATHS):
        object.__setattr__(made, PATHS, (path,))
    return made
