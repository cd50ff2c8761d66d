"""Select layers and products by depth, kind or name."""

import fnmatch
from dataclasses import dataclass, field
from typing import TypeAlias

from jaxattn.jaxpr.flat import Step
from jaxattn.jaxpr.structure.affine import Affine
from jaxattn.jaxpr.structure.graph import Structure

#: Where a rule holds: a depth, a kind of layer, or a name.
Where: TypeAlias = int | str


@dataclass(frozen=True)
class Selected:
    """The caller's selectors that matched something, and the names that exist.

    Attributes:
        matched: the selectors that matched.
        names: the names of the layers and products that were visited.
    """

    matched: set[Where] = field(default_factory=set)
    names: set[str] = field(default_factory=set)


def selects(where: Where, layer: Affine, num_layers: int) -> bool:
    """Return whether a selector matches a layer.

    Args:
        where: a depth (negative from the last layer), a kind of layer, or a name.
        layer: the layer.
        num_layers: the number of layers between the input and the score.
    """
    if isinstance(where, int):
        return layer.depth == (where if where >= 0 else num_layers + where)
    kinds = {
        "input": layer.depth == 0,
        "conv": layer.is_convolution,
        "dense": not layer.is_convolution,
        "*": True,
    }
    return kinds[where] if where in kinds else any(matches(where, name) for name in layer.names)


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern equals a name, is a part of its path, or matches as a glob."""
    pattern, name = pattern.replace(".", "/"), name.replace(".", "/")
    return f"/{pattern}/" in f"/{name}/" or fnmatch.fnmatchcase(name, pattern)


def product_names(structure: Structure, step: Step) -> list[str]:
    """Return the names of a product: its tags, its layer's path, its line of code."""
    tags = [
        str(user.eqn.params["name"])
        for var in step.outputs
        for user in structure.users[var]
        if user.name == "name"
    ]
    return [*tags, *filter(None, [step.path, step.line]), str(step)]
