"""Steps of a function together with the loops and branches around them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from jaxattn.jaxpr.flat import Atom, Step, Var
from jaxattn.jaxpr.structure.graph import Structure

#: The position of an axis that a value does not have: it is outside of a loop, or was removed.
ABSENT = -1


class AxisOf(NamedTuple):
    """An axis of a value.

    Attributes:
        site: the function or body that the value belongs to.
        atom: the value.
        axis: the position of the axis.
    """

    site: "Site"
    atom: Atom
    axis: int


@dataclass(frozen=True, eq=False)
class Site:
    """A function, or the body of a loop or of a branch in it.

    Attributes:
        structure: the function or body.
        parent: the site of the loop or branch; `None` for a whole function.
        step: the loop or branch.
    """

    structure: Structure
    parent: "Site | None" = None
    step: Step | None = None

    def inside(self, step: Step) -> list["Site"]:
        """Return the sites of the bodies of a loop or a branch."""
        return [Site(body, self, step) for body in self.structure.inner.get(step, [])]

    def sites(self) -> Iterator["Site"]:
        """Yield this site and all sites inside of it, in the order of the program."""
        yield self
        for step in self.structure.flat.steps:
            for inner in self.inside(step):
                yield from inner.sites()

    def depends(self, atom: Atom) -> bool:
        """Return whether an operand depends on an input of the whole function."""
        return self.structure.fact(atom).depends_on_input

    def operand_of(self, var: Var, axis: int) -> AxisOf | None:
        """Return the axis of the operand that an input of this body is, or is a slice of."""
        if self.parent is None or self.step is None:
            return None
        position = self.structure.flat.inputs.index(var)
        if self.step.name == "cond":
            return AxisOf(self.parent, self.step.inputs[position + 1], axis)
        is_slice = position >= sum(self.step.counts)
        return AxisOf(self.parent, self.step.inputs[position], axis + is_slice)

    def results_of(self, var: Var) -> Iterator[tuple["Site", Var, int]]:
        """Yield what a body's output becomes outside.

        Yields:
            the site around, the value, and by how much the positions of axes grow.
        """
        if self.parent is None or self.step is None:
            return
        for position, atom in enumerate(self.structure.flat.outputs):
            is_stacked = self.step.name == "scan" and position >= self.step.counts[1]
            if atom is var and (is_stacked or self.step.name == "cond"):
                yield self.parent, self.step.outputs[position], int(is_stacked)

    def uses_inside(self, step: Step, operand: Var) -> Iterator[tuple["Site", Var, int]]:
        """Yield what an operand of a loop or branch becomes in its bodies, as `results_of`."""
        for inner in self.inside(step):
            for position, atom in enumerate(step.inputs):
                if atom is not operand:
                    continue
                if step.name == "cond":
                    if position:
                        yield inner, inner.structure.flat.inputs[position - 1], 0
                elif not step.counts[0] <= position < sum(step.counts):
                    is_slice = position >= sum(step.counts)
                    yield inner, inner.structure.flat.inputs[position], -int(is_slice)
