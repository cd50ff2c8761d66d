"""Select layers and products by depth, kind or name."""

import fnmatch
import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from jaxattn.jaxpr.flat import Step
from jaxattn.jaxpr.structure.affine import Affine
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.logarithms import multiplies_exponentials
from jaxattn.jaxpr.structure.primitive_classes import CONTRACTING

#: Where a rule holds: a depth, a kind of layer, or a name.
Where: TypeAlias = int | str


@dataclass(frozen=True)
class Selected:
    """The caller's selectors that matched something, and the names that exist.

    Attributes:
        matched: the selectors that matched.
        decided: the selectors of products that need no choice.
        names: the names of the layers and products that were visited.
    """

    matched: set[Where] = field(default_factory=set)
    decided: set[Where] = field(default_factory=set)
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
    """Return whether a pattern equals a name, is a part of its path, or matches as a glob.

    A pattern that starts with a slash is a full name, or a glob of one.
    """
    pattern, name = pattern.replace(".", "/"), name.replace(".", "/")
    if pattern.startswith("/"):
        return fnmatch.fnmatchcase(name, pattern[1:])
    return f"/{pattern}/" in f"/{name}/" or fnmatch.fnmatchcase(name, pattern)


class ProductNames:
    """The names of the products of two values in a function.

    A product has its tags, the path of its layer and its line of code, which may all belong to
    several products, and its line with a number, which belongs to it alone.

    Args:
        structure: the function.
    """

    def __init__(self, structure: Structure) -> None:
        self._structure = structure

    @functools.cached_property
    def _tags(self) -> dict[Step, list[str]]:
        return {step: _tags(each, step) for each, step in _products(self._structure)}

    @functools.cached_property
    def _names(self) -> dict[Step, list[str]]:
        named: dict[Step, list[str]] = {}
        numbers: Counter[str] = Counter()
        for step, tags in self._tags.items():
            line = step.line or str(step)
            numbers[line] += 1
            numbered = f"{line}, product {numbers[line]}"
            named[step] = [*tags, *filter(None, [step.path]), line, numbered]
        return named

    def of(self, step: Step) -> list[str]:
        """Return the names of a product."""
        return self._names[step]

    def match(self, pattern: str, step: Step) -> bool:
        """Return whether a pattern matches a name of a product."""
        return any(matches(pattern, name) for name in self._names[step])

    def match_alone(self, pattern: str, step: Step) -> bool:
        """Return whether a pattern is a tag of a product, or matches it and no other product."""
        alone = [other for other in self._names if self.match(pattern, other)] == [step]
        return pattern in self._tags[step] or alone

    def own(self, step: Step) -> str:
        """Return the first name of a product that no other product has or is below."""
        return next(name for name in self._names[step] if self.match_alone(name, step))


def _products(structure: Structure) -> Iterator[tuple[Structure, Step]]:
    """Yield the products of two active values, also in loops and branches, each with its body."""
    for step in structure.flat.steps:
        if is_product(structure, step) and step not in structure.softmaxes:
            yield structure, step
        for body in structure.inner.get(step, ()):
            yield from _products(body)


def is_product(structure: Structure, step: Step) -> bool:
    """Return whether a step multiplies or divides two active values, or adds their logarithms."""
    active = sum(structure.is_active(atom) for atom in step.inputs)
    multiplies = step.name in ("mul", "div", *CONTRACTING)
    return active == 2 and (multiplies or multiplies_exponentials(structure, step))


def _tags(structure: Structure, step: Step) -> list[str]:
    """Return the tags of a step's outputs."""
    users = (user for var in step.outputs for user in structure.users[var])
    return [str(user.eqn.params["name"]) for user in users if user.name == "name"]
