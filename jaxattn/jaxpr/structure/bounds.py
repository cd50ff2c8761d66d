"""Interval arithmetic: bounds of a step's output that hold for every input."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from jaxattn.jaxpr.flat import Number, Step
from jaxattn.jaxpr.structure.primitive_classes import LAYOUT, SELECTING

INF = math.inf


class Bounds(NamedTuple):
    """The interval that holds all elements of a value.

    Attributes:
        low: the lower bound, `-inf` if there is none.
        high: the upper bound, `inf` if there is none.
    """

    low: float = -INF
    high: float = INF

    @property
    def within_unit(self) -> bool:
        """Return whether all elements lie between 0 and 1."""
        # Six times a sixth is a little more than 1 in float32.
        return self.low >= 0 and self.high <= 1 + 1e-6

    @property
    def is_finite(self) -> bool:
        """Return whether there is a lower and an upper bound."""
        return not (math.isinf(self.low) or math.isinf(self.high))


UNBOUNDED = Bounds()

#: Computes the bounds of a step's outputs from those of its operands.
TransferFunction: TypeAlias = Callable[[Step, Sequence[Bounds]], Bounds]


def literal_bounds(literal: Number) -> Bounds:
    """Return the bounds of a literal: its smallest and its largest element."""
    value = np.asarray(literal.val)
    if value.size == 0 or value.dtype.kind not in "biuf":
        return UNBOUNDED
    return Bounds(float(value.min()), float(value.max()))


def union(intervals: Iterable[Bounds]) -> Bounds:
    """Return the smallest interval that holds all of some intervals."""
    lows, highs = zip(*intervals, strict=True)
    return Bounds(min(lows), max(highs))


def widen(before: Bounds, after: Bounds) -> Bounds:
    """Drop those bounds that still grow from one turn of a loop to the next."""
    return Bounds(
        before.low if after.low >= before.low else -INF,
        before.high if after.high <= before.high else INF,
    )


def output_bounds(step: Step, operands: Sequence[Bounds]) -> Bounds:
    """Compute the bounds of a step's outputs by the transfer function of its primitive.

    Args:
        step: the step. One whose primitive is not in the table has unbounded outputs.
        operands: the bounds of its operands.
    """
    compute = _TRANSFER_FUNCTIONS.get(step.name)
    if compute is None or not operands:
        return UNBOUNDED
    bounds = compute(step, operands)
    return UNBOUNDED if math.isnan(bounds.low) or math.isnan(bounds.high) else bounds


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else INF


def _log(x: float) -> float:
    if x <= 0:
        return -INF
    return INF if x == INF else math.log(x)


def _log1p(x: float) -> float:
    if x <= -1:
        return -INF
    return INF if x == INF else math.log1p(x)


def _product(a: Bounds, b: Bounds) -> Bounds:
    ends = [_times(x, y) for x in a for y in b]
    return Bounds(min(ends), max(ends))


def _inverse(x: Bounds) -> Bounds:
    if x.low < 0 < x.high:
        return UNBOUNDED
    at_zero = INF if x.low >= 0 else -INF
    ends = [1 / end if end else at_zero for end in x]
    return Bounds(min(ends), max(ends))


def _monotone(function: Callable[[float], float]) -> TransferFunction:
    """Return the transfer function of an increasing function of single elements."""
    return lambda step, operands: Bounds(function(operands[0].low), function(operands[0].high))


def _always(low: float, high: float) -> TransferFunction:
    """Return the transfer function of a primitive with a bounded range."""
    return lambda step, operands: Bounds(low, high)


def _neg(step: Step, operands: Sequence[Bounds]) -> Bounds:
    return Bounds(-operands[0].high, -operands[0].low)


def _add(step: Step, operands: Sequence[Bounds]) -> Bounds:
    a, b = operands
    return Bounds(a.low + b.low, a.high + b.high)


def _sub(step: Step, operands: Sequence[Bounds]) -> Bounds:
    a, b = operands
    return Bounds(a.low - b.high, a.high - b.low)


def _mul(step: Step, operands: Sequence[Bounds]) -> Bounds:
    a, b = operands
    if step.inputs[0] is step.inputs[1]:
        return Bounds(0.0, max(_times(a.low, a.low), _times(a.high, a.high)))
    return _product(a, b)


def _div(step: Step, operands: Sequence[Bounds]) -> Bounds:
    return _product(operands[0], _inverse(operands[1]))


def _max(step: Step, operands: Sequence[Bounds]) -> Bounds:
    a, b = operands
    return Bounds(max(a.low, b.low), max(a.high, b.high))


def _min(step: Step, operands: Sequence[Bounds]) -> Bounds:
    a, b = operands
    return Bounds(min(a.low, b.low), min(a.high, b.high))


def _clamp(step: Step, operands: Sequence[Bounds]) -> Bounds:
    low, x, high = operands
    return Bounds(
        min(max(x.low, low.low), high.low),
        min(max(x.high, low.high), high.high),
    )


def _sum(step: Step, operands: Sequence[Bounds]) -> Bounds:
    low, high = operands[0]
    return Bounds(0.0 if low >= 0 else -INF, 0.0 if high <= 0 else INF)


def _integer_pow(step: Step, operands: Sequence[Bounds]) -> Bounds:
    power = step.eqn.params["y"]
    if operands[0].within_unit and power >= 0:
        return Bounds(0.0, 1.0)
    return Bounds(0.0, INF) if power % 2 == 0 else UNBOUNDED


def _select_n(step: Step, operands: Sequence[Bounds]) -> Bounds:
    return union(operands[1:])


def _selecting(step: Step, operands: Sequence[Bounds]) -> Bounds:
    return operands[0] if len(operands) == 1 else UNBOUNDED


def _layout(step: Step, operands: Sequence[Bounds]) -> Bounds:
    """Return the union of the operands whose elements may come out: no indices, no predicates."""
    casts = step.name == "convert_element_type"
    dtype = step.outputs[0].aval.dtype
    return union(
        bounds
        for bounds, atom in zip(operands, step.inputs, strict=True)
        if casts or atom.aval.dtype == dtype
    )


_TRANSFER_FUNCTIONS: dict[str, TransferFunction] = {
    **dict.fromkeys(LAYOUT, _layout),
    **dict.fromkeys(SELECTING, _selecting),
    "abs": _always(0.0, INF),
    "add": _add,
    "add_any": _add,
    "clamp": _clamp,
    "cos": _always(-1.0, 1.0),
    "cumsum": _sum,
    "div": _div,
    "erf": _monotone(math.erf),
    "erfc": _always(0.0, 2.0),
    "exp": _monotone(_exp),
    "expm1": _monotone(lambda x: _exp(x) - 1),
    "integer_pow": _integer_pow,
    "log": _monotone(_log),
    "log1p": _monotone(_log1p),
    "logistic": _monotone(lambda x: 0.0 if x == -INF else 1 / (1 + _exp(-x))),
    "max": _max,
    "min": _min,
    "mul": _mul,
    "neg": _neg,
    "reduce_sum": _sum,
    "reduce_window_sum": _sum,
    "rsqrt": _always(0.0, INF),
    "select_n": _select_n,
    "sign": _always(-1.0, 1.0),
    "sin": _always(-1.0, 1.0),
    "sqrt": _monotone(lambda x: 0.0 if x <= 0 else math.sqrt(x)),
    "square": _always(0.0, INF),
    "sub": _sub,
    "tanh": _monotone(math.tanh),
}
