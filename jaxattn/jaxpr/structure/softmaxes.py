"""Softmaxes, which have no primitive: exponentials divided by their sum, in any way of writing.

A softmax is a product of factors: exponentials, masks, and the inverse of a sum over the same
factors. The factors are collected from the steps, through logarithms and reciprocals, each with the
axes of the softmax that its own axes correspond to. Then the two lists are compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import jax.extend.core as jex
from jax import Array

from jaxattn.jaxpr.flat import Atom, Flat, Step, Var, flatten
from jaxattn.jaxpr.structure.axes import KEEPING, Axes, axes_of_operand
from jaxattn.jaxpr.structure.equality import Equality
from jaxattn.jaxpr.structure.factors import Exponent, Factors, Place, Term
from jaxattn.jaxpr.structure.primitive_classes import LAYOUT
from jaxattn.jaxpr.structure.producers import literal_scalar, producer_behind

#: Primitives between a softmax's logits and the maximum that it subtracts from them.
_TO_MAXIMUM = LAYOUT | {"clamp", "max", "min", "neg", "stop_gradient"}
#: Primitives that a softmax can end in.
_LAST = frozenset("div exp mul select_n".split())
#: Primitives between the sum of exponentials and the denominator: what keeps it from being zero.
_STABILISING = frozenset("abs add clamp max min select_n".split())


class Softmax(NamedTuple):
    """A softmax: exponentials of logits, perhaps masked, divided by their sum.

    Attributes:
        logits: its operand, without what is subtracted for numerical reasons.
        axes: the axes of the logits that the exponentials are summed over.
        layout: for each axis of the logits, the axis of the softmax's output; -1 for an axis of
            size 1 that the output lacks.
        scale: what the logits are multiplied by.
        masks: predicates that set elements to zero.
        factors: other values that the exponentials are multiplied by before they are summed.
        stabilisers: values that keep the sum from being zero, such as a small number added to it.
    """

    logits: Var
    axes: tuple[int, ...]
    layout: tuple[int, ...]
    scale: float = 1.0
    masks: tuple[Atom, ...] = ()
    factors: tuple[Atom, ...] = ()
    stabilisers: tuple[Atom, ...] = ()

    @property
    def constants(self) -> tuple[Atom, ...]:
        """The values that the output is not a softmax of."""
        return self.factors + self.stabilisers

    @property
    def is_plain(self) -> bool:
        """Return whether the output is `jax.nn.softmax(logits, axes)` wherever it is not masked."""
        in_order = self.layout == tuple(range(len(self.layout)))
        return in_order and self.scale == 1.0 and not (self.factors or self.stabilisers)

    def of_output(self, value: Array) -> Array:
        """Lay out an array of the output's shape like the logits."""
        shape = self.logits.shape
        if self.layout == tuple(range(value.ndim)):
            return value
        wide = [axis for axis, size in enumerate(value.shape) if size > 1]
        order = [wide.index(axis) for axis, n in zip(self.layout, shape, strict=True) if n > 1]
        return value.reshape([value.shape[axis] for axis in wide]).transpose(order).reshape(shape)


def find_softmaxes(flat: Flat, producers: Mapping[Var, Step]) -> dict[Step, Softmax]:
    """Find the softmaxes of a function, by their last steps.

    Factors and stabilisers may be functions of the input, which is not examined here. A step is a
    softmax of its logits alone if none of them is.

    Args:
        flat: the function.
        producers: the step that computes each value.
    """
    search = _Search(producers)
    found = {step: search.ending_in(step) for step in flat.steps if step.name in _LAST}
    return {step: softmax for step, softmax in found.items() if softmax is not None}


def returns_probabilities(jaxpr: jex.Jaxpr) -> bool:
    """Return whether an output of a function is the result of a softmax or a sigmoid."""
    closed = jex.ClosedJaxpr(jaxpr, [None] * len(jaxpr.constvars))
    flat = flatten(closed)
    producers = {var: step for step in flat.steps for var in step.outputs}
    last = [producer_behind(atom, producers, LAYOUT) for atom in flat.outputs]
    return any(
        step.name == "logistic" or softmax_ending_in(step, producers) is not None
        for step in last
        if step is not None
    )


def softmax_ending_in(step: Step, producers: Mapping[Var, Step]) -> Softmax | None:
    """Return the softmax that a step completes, if there is one; see `find_softmaxes`."""
    return _Search(producers).ending_in(step) if step.name in _LAST else None


def is_maximum(atom: Atom, producers: Mapping[Var, Step]) -> bool:
    """Return whether a value is a maximum over elements, as a softmax subtracts it."""
    return producer_behind(atom, producers, _TO_MAXIMUM, "reduce_max") is not None


class _Sum(NamedTuple):
    """A sum over elements, what its axes correspond to, and what keeps it from being zero."""

    step: Step
    axes: Axes
    stabilisers: tuple[Atom, ...]


@dataclass(eq=False)
class _Search:
    """The search for softmaxes among the steps of one function.

    Attributes:
        producers: the step that computes each value.
        equality: whether two values are equal.
        factors: the factors of a value.
    """

    producers: Mapping[Var, Step]
    equality: Equality = field(init=False)
    factors: Factors = field(init=False)

    def __post_init__(self) -> None:
        self.equality, self.factors = Equality(self.producers), Factors(self.producers)

    def ending_in(self, step: Step) -> Softmax | None:
        """Return the softmax that a step completes, if there is one."""
        (output,) = step.outputs
        if not output.is_floating:
            return None
        product = self.factors.product(output, tuple(range(len(output.shape))))
        for i, term in enumerate(product.terms):
            if term.kind == "factor" and term.sign < 0:
                others = product.terms[:i] + product.terms[i + 1 :]
                softmax = self._divided_by(term, others, product.scales, output)
                if softmax is not None:
                    return softmax
        return None

    def _divided_by(
        self, divisor: Term, others: list[Term], scales: list[float], output: Var
    ) -> Softmax | None:
        """Return the softmax of a product, if one of its divisors is the sum of the rest."""
        total = self._sum_behind(divisor.atom, divisor.axes)
        if total is None:
            return None
        summed = _summed_axes(total, output.shape)
        if summed is None:
            return None
        kept = iter(total.axes)
        operand = total.step.inputs[0]
        axes = tuple(
            summed[axis] if axis in summed else next(kept)
            for axis in range(len(operand.aval.shape))
        )
        product = self.factors.product(operand, axes)
        if len(product.exponents) != 1 or product.scales != scales:
            return None
        if not self._same_terms(product.terms, others):
            return None
        (exponent,) = product.exponents
        along = set(summed.values())
        softmax = self._of_exponent(exponent, output, along)
        if softmax is None:
            return None
        # Factors that are constant along the axes of the sum are divided by themselves.
        factors = [t for t in others if t.kind != "addend" and along.intersection(t.wide_axes)]
        return softmax._replace(
            masks=tuple(t.atom for t in factors if t.is_predicate),
            factors=tuple(t.atom for t in factors if not t.is_predicate),
            stabilisers=total.stabilisers,
        )

    def _of_exponent(self, exponent: Exponent, output: Var, summed: set[int]) -> Softmax | None:
        """Return the softmax of the logits in an exponent, without masks."""
        logits, scale = self._without_shift(exponent.place, summed)
        if not isinstance(logits.atom, Var):
            return None
        sizes = zip(logits.axes, logits.atom.shape, strict=True)
        wide = {axis: size for axis, size in enumerate(output.shape) if size > 1}
        if {axis: size for axis, size in sizes if size > 1} != wide:
            return None
        axes = tuple(i for i, axis in enumerate(logits.axes) if axis in summed)
        layout = tuple(max(axis, -1) for axis in logits.axes)
        return Softmax(logits.atom, axes, layout, scale * exponent.scale)

    # The sum of the exponentials.

    def _sum_behind(self, atom: Atom, axes: Axes) -> _Sum | None:
        """Return the sum that a denominator is, once it is kept from being zero."""
        place = self.factors.before_layout(atom, axes)
        step = self.producers.get(place.atom) if isinstance(place.atom, Var) else None
        if step is None:
            return None
        if step.name == "reduce_sum":
            return _Sum(step, place.axes, ())
        if step.name not in _STABILISING:
            return None
        operands = step.inputs[1:] if step.name == "select_n" else step.inputs
        for i, operand in enumerate(operands):
            total = self._sum_behind(operand, axes_of_operand(operand, place.axes))
            if total is not None:
                others = tuple(operands[:i]) + tuple(operands[i + 1 :])
                return total._replace(stabilisers=total.stabilisers + others)
        return None

    # The logits.

    def _without_shift(self, exponent: Place, summed: set[int]) -> tuple[Place, float]:
        """Return the logits, before a maximum is subtracted, and what they are multiplied by."""
        logits, scale = exponent, 1.0
        place, factor = exponent, 1.0
        while True:
            place = self.factors.before_layout(*place)
            step = self.producers.get(place.atom) if isinstance(place.atom, Var) else None
            if step is None or step.name not in ("sub", "mul", "div"):
                return logits, scale
            number = literal_scalar(step.inputs[1], self.producers)
            rest = step.inputs[0]
            if step.name == "mul" and number is None:
                number, rest = literal_scalar(rest, self.producers), step.inputs[1]
            axes = axes_of_operand(rest, place.axes)
            if step.name == "sub":
                is_shift = self._is_shift(step.inputs[1], place.axes, summed)
                if not is_shift and (number is None or logits is not exponent):
                    return logits, scale
                logits, scale = Place(rest, axes), factor
            elif not number:
                return logits, scale
            else:
                factor *= float(number) if step.name == "mul" else 1 / float(number)
            place = Place(rest, axes)

    def _is_shift(self, atom: Atom, axes: Axes, summed: set[int]) -> bool:
        """Return whether a value is subtracted from logits for numerical reasons only."""
        axes = axes_of_operand(atom, axes)
        return self._is_numerical(atom) and not self._varies(atom, axes, summed)

    def _is_numerical(self, atom: Atom) -> bool:
        """Return whether a value is a maximum, a constant for derivatives, or a log-sum-exp."""
        if is_maximum(atom, self.producers):
            return True
        step = producer_behind(atom, self.producers, LAYOUT)
        if step is None:
            return False
        sums = step.name == "add" and all(map(self._is_numerical, step.inputs))
        return sums or step.name in ("log", "stop_gradient")

    def _varies(self, atom: Atom, axes: Axes, along: set[int]) -> bool:
        """Return whether a value varies along axes that are summed over."""
        place = self.factors.before_layout(atom, axes)
        if not along.intersection(Term("factor", 1, *place).wide_axes):
            return False
        step = self.producers.get(place.atom) if isinstance(place.atom, Var) else None
        if step is None or step.name not in _TO_MAXIMUM | {"add"} or step.name in _MOVING:
            return True
        return any(self._varies(a, axes_of_operand(a, place.axes), along) for a in step.inputs)

    def _same_terms(self, first: list[Term], second: list[Term]) -> bool:
        """Return whether two lists hold the same terms, in any order."""
        if len(first) != len(second):
            return False
        rest = list(second)
        for term in first:
            match = next((t for t in rest if self._same_term(term, t)), None)
            if match is None:
                return False
            rest.remove(match)
        return True

    def _same_term(self, a: Term, b: Term) -> bool:
        return a[:2] == b[:2] and a.wide_axes == b.wide_axes and self.equality(a.atom, b.atom)


#: Primitives whose elements are in other places than those of their operand.
_MOVING = LAYOUT - KEEPING - {"select_n"}


def _summed_axes(total: _Sum, shape: tuple[int, ...]) -> dict[int, int] | None:
    """Return the axis of the output for each axis that is summed over.

    Axes of size 1 that the output lacks get distinct numbers below -1.
    """
    sizes = total.step.inputs[0].aval.shape
    free = [axis for axis in range(len(shape)) if axis not in total.axes]
    found: dict[int, int] = {}
    for axis in map(int, total.step.eqn.params["axes"]):
        match = next((a for a in free if shape[a] == sizes[axis]), None)
        if match is None and sizes[axis] > 1:
            return None
        found[axis] = -2 - axis if match is None else match
        free = [a for a in free if a != match]
    return found
