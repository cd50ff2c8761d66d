"""Data-flow facts of a program's values: dependence on the input, interval bounds, gates.

A gate is distinguished from a signal by these facts alone. A value that depends on the input and
lies between 0 and 1 for every input went through a saturating function: a logistic, a hard sigmoid,
a softmax, or one minus such a value.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxattn.jaxpr.flat import ELEMENTWISE, Number, Step
from jaxattn.jaxpr.structure.bounds import (
    UNBOUNDED,
    Bounds,
    literal_bounds,
    output_bounds,
    union,
    widen,
)
from jaxattn.jaxpr.structure.primitive_classes import (
    ADDING,
    CONTRACTING,
    LAYOUT,
    POOLING,
    SUMMING,
)

#: Primitives that return the same elements in another order, or some of them.
_ORDERING = frozenset("sort top_k".split())


class Fact(NamedTuple):
    """Properties of a value that hold for every input.

    Attributes:
        active: whether relevance can be propagated through the value to the input.
        depends_on_input: whether the value depends on the input at all. A value may depend on it
            without being active: an index, a predicate, the result of `stop_gradient`.
        bounds: the interval that holds all elements.
        saturated: whether the bounds come from a saturating function of an unbounded value.
        gate: whether the value is a gate between 0 and 1, perhaps scaled by constants.
        softmax: whether the value is the output of a softmax.
        norm: whether the value is the root of a statistic, or its inverse: the scale of a
            normalisation.
        statistic: whether the value is a function of sums or extremes over elements.
        logarithm: whether the value is a logarithm, perhaps added to others: its exponential is a
            value of which relevance is redistributed.
        depth: the number of layers between the input and the value.
    """

    active: bool = False
    depends_on_input: bool = False
    bounds: Bounds = UNBOUNDED
    saturated: bool = False
    gate: bool = False
    softmax: bool = False
    norm: bool = False
    statistic: bool = False
    logarithm: bool = False
    depth: int = 0

    @property
    def is_gate(self) -> bool:
        """Return whether the value is a gate: a product with it weights the other factor."""
        return self.active and (self.gate or (self.saturated and self.bounds.within_unit))

    @property
    def of_exponential(self) -> "Fact":
        """Return the fact of the exponential of a logarithm: a gate if it is at most 1."""
        gate = self.active and self.logarithm and self.bounds.high <= 0
        return Fact(self.active, self.depends_on_input, gate=gate)


def literal_fact(literal: Number) -> Fact:
    """Return the fact of a literal: its bounds."""
    return Fact(bounds=literal_bounds(literal))


def join(facts: Iterable[Fact]) -> Fact:
    """Return what holds for a value that may be any of several."""
    facts = list(facts)
    dependent = [fact for fact in facts if fact.depends_on_input]

    def every(flag: Callable[[Fact], bool]) -> bool:
        # A constant beside a gate, such as a padding of zeros, leaves it a gate.
        return bool(dependent) and all(map(flag, dependent))

    return Fact(
        active=any(fact.active for fact in facts),
        depends_on_input=bool(dependent),
        bounds=union(fact.bounds for fact in facts),
        saturated=every(lambda fact: fact.saturated),
        gate=every(lambda fact: fact.gate),
        softmax=every(lambda fact: fact.softmax),
        norm=every(lambda fact: fact.norm),
        statistic=every(lambda fact: fact.statistic),
        logarithm=every(lambda fact: fact.logarithm),
        depth=max(fact.depth for fact in facts),
    )


def widen_bounds(before: Fact, after: Fact) -> Fact:
    """Drop those bounds of `after` that still grow from one turn of a loop to the next."""
    return after._replace(bounds=widen(before.bounds, after.bounds))


def transfer(step: Step, operands: Sequence[Fact]) -> Fact:
    """Compute the fact of the outputs of a step without a body.

    Args:
        step: the step.
        operands: the facts of its operands.
    """
    bounds = output_bounds(step, [fact.bounds for fact in operands])
    dependent = [fact for fact in operands if fact.depends_on_input]
    if not dependent:
        return Fact(bounds=bounds)
    active = [fact for fact in operands if fact.active]
    flow = _Flow(step, operands, dependent, active, bounds)
    return Fact(
        active=bool(active) and step.name != "stop_gradient",
        depends_on_input=True,
        bounds=bounds,
        saturated=flow.is_saturated(),
        gate=flow.is_gate(),
        softmax=bool(active) and flow.passes() and all(fact.softmax for fact in active),
        norm=flow.is_norm(),
        statistic=flow.is_statistic(),
        logarithm=flow.is_logarithm(),
        depth=max(fact.depth for fact in dependent) + flow.is_layer(),
    )


def takes_root(step: Step) -> bool:
    """Return whether a step computes a square root, or the inverse of one."""
    if step.name != "pow":
        return step.name in ("sqrt", "rsqrt")
    exponent = step.inputs[1]
    return isinstance(exponent, Number) and abs(float(exponent.val)) == 0.5


@dataclass(frozen=True)
class _Flow:
    """A step and the facts around it; its methods compute the flags of the output.

    Attributes:
        step: the step.
        operands: the facts of its operands.
        dependent: those of operands that depend on the input, at least one.
        active: those of active operands.
        bounds: the bounds of the output.
    """

    step: Step
    operands: Sequence[Fact]
    dependent: Sequence[Fact]
    active: Sequence[Fact]
    bounds: Bounds

    def passes(self) -> bool:
        """Return whether the step lays out its operands, or scales the one active operand."""
        name = self.step.name
        scales = name in ("mul", "neg") or (name == "div" and self.operands[0].active)
        return name in LAYOUT or name in _ORDERING or (scales and len(self.active) == 1)

    def shifts(self) -> bool:
        """Return whether the step adds a constant to the active operand or bounds it below."""
        return self.step.name in ("add", "sub", "max") and len(self.active) == 1

    def is_layer(self) -> bool:
        """Return whether the step multiplies the one active operand by weights and sums."""
        return self.step.name in CONTRACTING and len(self.active) == 1

    def is_saturated(self) -> bool:
        """Return whether the step saturates, or keeps the saturation of its operands."""
        keeps = self.step.name in ("mul", "square", "integer_pow") or self.passes() or self.shifts()
        return self._saturates() or (keeps and all(fact.saturated for fact in self.dependent))

    def _saturates(self) -> bool:
        """Return whether the step bounds an unbounded operand on both sides."""
        if not self.bounds.is_finite:
            return False
        first = self.operands[0]
        if self.step.name in ("logistic", "tanh", "erf"):
            return math.isinf(first.bounds.low) and math.isinf(first.bounds.high)
        if self.step.name == "div":  # 1 / (1 + exp(-z))
            return not first.depends_on_input
        # Clipping the output of a layer saturates; clipping the input repairs values out of range.
        clips = self.step.name in ("min", "max", "clamp")
        return clips and max(fact.depth for fact in self.operands) > 0

    def is_gate(self) -> bool:
        """Return whether the step computes a gate, or scales or shifts one."""
        if not self.active:
            return False
        if self.step.name == "logistic":
            return True
        if self.passes() and all(fact.is_gate for fact in self.active):
            return True
        return self.shifts() and self.bounds.within_unit and all(f.gate for f in self.active)

    def is_norm(self) -> bool:
        """Return whether the step takes the root of statistics, or scales, shifts or inverts it."""
        if takes_root(self.step) and all(f.statistic for f in self.dependent):
            return True
        keeps = self.passes() or self.shifts() or self._inverts()
        return keeps and all(fact.norm for fact in self.dependent)

    def _inverts(self) -> bool:
        """Return whether the step divides a constant by its operand."""
        if self.step.name == "integer_pow":
            return bool(self.step.eqn.params["y"] == -1)
        return self.step.name == "div" and not self.operands[0].depends_on_input

    def is_statistic(self) -> bool:
        """Return whether the step reduces over elements, or is a function of such reductions."""
        if self.step.name in POOLING:
            return True
        elementwise = self.step.name in LAYOUT or self.step.name in ELEMENTWISE
        return elementwise and all(fact.statistic for fact in self.dependent)

    def is_logarithm(self) -> bool:
        """Return whether the step takes a logarithm, or adds, scales, sums or selects some."""
        if self.step.name in ("log", "log1p", "cumlogsumexp"):
            return True
        keeps = self.step.name in ADDING or self.step.name in SUMMING or self.passes()
        return keeps and all(fact.logarithm for fact in self.active)
