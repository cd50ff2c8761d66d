"""Factors of a product, collected through logarithms, reciprocals and masks.

Each factor has the axes of the product that its own axes correspond to.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

from jaxattn.jaxpr.flat import Atom, Step, Var
from jaxattn.jaxpr.structure.axes import KEEPING, Axes, axes_before, axes_of_operand
from jaxattn.jaxpr.structure.producers import literal_scalar

#: Exponentials, and the logarithms of their bases.
_EXPONENTIALS = {"exp": 1.0, "exp2": math.log(2)}
#: Products of more factors, and longer chains of steps, are no softmaxes.
_MOST_TERMS, _MOST_STEPS = 16, 64

_Kind: TypeAlias = Literal["factor", "addend", "mask"]


class Term(NamedTuple):
    """A factor of a product, or an addend of an exponent.

    Attributes:
        kind: `"mask"` for a predicate that selects between the rest of the product and zero.
        sign: -1 for a denominator and for what is subtracted; for a mask, which of its cases holds
            the rest of the product.
        atom: the value.
        axes: what its axes correspond to.
    """

    kind: _Kind
    sign: int
    atom: Atom
    axes: Axes

    @property
    def wide_axes(self) -> list[int]:
        """The axes of the output that the axes of more than one element correspond to."""
        return [a for a, size in zip(self.axes, self.atom.aval.shape, strict=True) if size > 1]

    @property
    def is_predicate(self) -> bool:
        """Return whether the value sets elements to zero."""
        return self.kind == "mask" or (self.kind == "factor" and self.atom.aval.dtype == bool)


class Place(NamedTuple):
    """A value, and what its axes correspond to."""

    atom: Atom
    axes: Axes


class Exponent(NamedTuple):
    """The operand of an exponential, and the natural logarithm of its base."""

    place: Place
    scale: float


class Product:
    """The terms of a product, and its exponentials' operands."""

    def __init__(self) -> None:
        self.terms: list[Term] = []
        self.exponents: list[Exponent] = []

    @property
    def scales(self) -> list[float]:
        """The logarithms of the bases of its exponentials."""
        return [exponent.scale for exponent in self.exponents]


class Factors:
    """The factors of the values of one function.

    Args:
        producers: the step that computes each value.
    """

    def __init__(self, producers: Mapping[Var, Step]) -> None:
        self._producers = producers

    def product(self, atom: Atom, axes: Axes) -> Product:
        """Return a value as a product."""
        product = Product()
        self._collect(product, Term("factor", 1, atom, axes), 0)
        return product

    def _collect(self, product: Product, term: Term, depth: int) -> None:
        """Add the terms that a value is a product of, or a sum of within an exponent."""
        place = self.before_layout(term.atom, term.axes)
        term = term._replace(atom=place.atom, axes=place.axes)
        step = self._producers.get(term.atom) if isinstance(term.atom, Var) else None
        parts = None
        if step is not None and depth < _MOST_STEPS and len(product.terms) < _MOST_TERMS:
            parts = self._parts(step, term)
        if parts is None:
            value = literal_scalar(term.atom, self._producers)
            if value is None or value != (1 if term.kind == "factor" else 0):
                product.terms.append(term)
            return
        base = None if step is None or term.kind != "factor" else self._log_of_base(step)
        if step is not None and base is not None:
            product.exponents.append(Exponent(Place(step.inputs[-1], term.axes), base))
        for part in parts:
            if part.kind == "mask":
                product.terms.append(part)
            else:
                self._collect(product, part, depth + 1)

    def _parts(self, step: Step, term: Term) -> list[Term] | None:
        """Return the terms that a step multiplies, or adds within an exponent; `None` for one."""

        def part(position: int, sign: int = 1, kind: _Kind = term.kind) -> Term:
            operand = step.inputs[position]
            return Term(kind, sign * term.sign, operand, axes_of_operand(operand, term.axes))

        in_exponent = term.kind == "addend"
        if in_exponent and step.name == "log":
            return [part(0, kind="factor")]
        if not in_exponent and self._log_of_base(step) is not None:
            return [part(-1, kind="addend")]
        if step.name == ("add" if in_exponent else "mul"):
            return [part(0), part(1)]
        if step.name == ("sub" if in_exponent else "div"):
            return [part(0), part(1, -1)]
        if in_exponent:
            return [part(0, -1)] if step.name == "neg" else None
        if step.name == "integer_pow" and step.eqn.params["y"] == -1:
            return [part(0, -1)]
        if step.name == "select_n" and len(step.inputs) == 3 and term.sign > 0:
            for case in (1, 2):
                if literal_scalar(step.inputs[3 - case], self._producers) == 0:
                    predicate = self.before_layout(*part(0)[2:])
                    return [part(case), Term("mask", case, *predicate)]
        return None

    def _log_of_base(self, step: Step) -> float | None:
        """Return the logarithm of the base of an exponential; `None` for another step."""
        if step.name in _EXPONENTIALS:
            return _EXPONENTIALS[step.name]
        base = literal_scalar(step.inputs[0], self._producers) if step.name == "pow" else None
        return math.log(float(base)) if base is not None and base > 0 else None

    def before_layout(self, atom: Atom, axes: Axes) -> Place:
        """Return the value of which another has the elements, in other axes or another dtype."""
        while isinstance(atom, Var):
            step = self._producers.get(atom)
            if step is None or step.name not in KEEPING or len(step.outputs) != 1:
                break
            before = axes_before(step, axes)
            if before is None:
                break
            atom, axes = step.inputs[0], before
        return Place(atom, axes)
