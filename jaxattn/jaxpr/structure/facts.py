"""What flows into each value of a function: the input or not, and between which bounds.

A gate is told from a signal by this alone. What depends on the input and can only lie between 0
and 1 has gone through something that squashes: a logistic, a hard sigmoid, a softmax, or one minus
such. Bounds are those of interval arithmetic, so they hold for every input.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxattn.jaxpr.flat import ELEMENTWISE, Atom, Number, Step

INF = math.inf

#: Steps that only lay numbers out, copy them or choose among them.
LAYOUT = frozenset(
    "all_gather broadcast_in_dim concatenate convert_element_type copy copy_p dynamic_slice "
    "dynamic_update_slice expand_dims gather name optimization_barrier pad pvary reduce_precision "
    "reshape rev scatter select_n sharding_constraint slice split squeeze stack tile transpose "
    "unstack".split()
)
#: Steps that answer one of their operand's numbers.
SELECTING = frozenset(
    "argsort cummax cummin reduce_max reduce_min reduce_window_max reduce_window_min sort "
    "top_k".split()
)
#: Steps that add up cells.
SUMMING = frozenset("cumsum reduce_sum reduce_window_sum scatter-add scatter_add".split())
#: Steps that make statistics of cells.
POOLING = frozenset("reduce_max reduce_min reduce_sum".split())
#: Steps that only scale one operand by the other.
CONTRACTING = frozenset("conv_general_dilated dot_general".split())


class Fact(NamedTuple):
    """What is known about a value whatever the input.

    Attributes:
        active: whether relevance can go through it to the input.
        touched: whether it depends on the input at all.
        low: no cell lies below.
        high: no cell lies above.
        squashed: whether its bounds are those of a squashing of something without bounds.
        gate: whether it is a gate between 0 and 1, perhaps scaled by constants.
        soft: whether it came out of a softmax.
        norm: whether it is a root of a statistic, or its inverse: the scale of a normalisation.
        pooled: whether it is a function of statistics: sums, or extremes, over cells.
        depth: how many layers lie between it and the input.
    """

    active: bool = False
    touched: bool = False
    low: float = -INF
    high: float = INF
    squashed: bool = False
    gate: bool = False
    soft: bool = False
    norm: bool = False
    pooled: bool = False
    depth: int = 0

    @property
    def is_gate(self) -> bool:
        """Whether a product with it gives its signal a weight."""
        return self.active and (self.gate or (self.squashed and self.within_unit))

    @property
    def within_unit(self) -> bool:
        """Whether all cells lie between 0 and 1."""
        # Six times a sixth is a little more than 1 in float32.
        return self.low >= 0 and self.high <= 1 + 1e-6


def literal_fact(atom: Number) -> Fact:
    """What is known about a literal."""
    value = np.asarray(atom.val)
    if value.size == 0 or value.dtype.kind not in "biuf":
        return Fact()
    return Fact(low=float(value.min()), high=float(value.max()))


def join(a: Fact, b: Fact) -> Fact:
    """What is known about a value that may be either of two."""
    touched = [f for f in (a, b) if f.touched]

    def every(flag: str) -> bool:
        # A constant beside a gate, such as a padding of zeros, leaves it a gate.
        return bool(touched) and all(getattr(f, flag) for f in touched)

    return Fact(
        active=a.active or b.active,
        touched=a.touched or b.touched,
        low=min(a.low, b.low),
        high=max(a.high, b.high),
        squashed=every("squashed"),
        gate=every("gate"),
        soft=every("soft"),
        norm=every("norm"),
        pooled=every("pooled"),
        depth=max(a.depth, b.depth),
    )


def joined(facts: Sequence[Fact]) -> Fact:
    """What is known about a value that may be any of several."""
    result = facts[0]
    for fact in facts[1:]:
        result = join(result, fact)
    return result


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _product(a: Fact, b: Fact) -> tuple[float, float]:
    ends = [_times(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    return min(ends), max(ends)


def _inverse(f: Fact) -> Fact:
    if f.low < 0 < f.high:
        return f._replace(low=-INF, high=INF)
    at_zero = INF if f.low >= 0 else -INF
    ends = [1 / x if x else at_zero for x in (f.low, f.high)]
    return f._replace(low=min(ends), high=max(ends))


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else INF


_MONOTONE: dict[str, Callable[[float], float]] = {
    "logistic": lambda x: 0.0 if x == -INF else 1 / (1 + _exp(-x)),
    "tanh": math.tanh,
    "exp": _exp,
    "expm1": lambda x: _exp(x) - 1,
    "erf": math.erf,
    "log1p": lambda x: -INF if x <= -1 else INF if x == INF else math.log1p(x),
    "sqrt": lambda x: 0.0 if x <= 0 else math.sqrt(x),
}
_BOUNDED = {"sin": (-1.0, 1.0), "cos": (-1.0, 1.0), "erfc": (0.0, 2.0), "sign": (-1.0, 1.0)}


def _bounds(step: Step, given: Sequence[Fact]) -> tuple[float, float]:
    """The bounds of an output from those of the operands."""
    name, first = step.name, given[0]
    if name in _MONOTONE:
        return _MONOTONE[name](first.low), _MONOTONE[name](first.high)
    if name in _BOUNDED:
        return _BOUNDED[name]
    match name:
        case "neg":
            return -first.high, -first.low
        case "add" | "add_any":
            return first.low + given[1].low, first.high + given[1].high
        case "sub":
            return first.low - given[1].high, first.high - given[1].low
        case "mul" if step.inputs[0] is step.inputs[1]:
            return 0.0, max(_times(first.low, first.low), _times(first.high, first.high))
        case "mul":
            return _product(first, given[1])
        case "div":
            return _product(first, _inverse(given[1]))
        case "max":
            return max(first.low, given[1].low), max(first.high, given[1].high)
        case "min":
            return min(first.low, given[1].low), min(first.high, given[1].high)
        case "clamp":
            low, x, high = given
            return (
                min(max(x.low, low.low), high.low),
                min(max(x.high, low.high), high.high),
            )
        case "abs" | "square" | "rsqrt" | "reduce_sum" | "reduce_window_sum" | "cumsum" if (
            name in ("abs", "square", "rsqrt") or first.low >= 0
        ):
            return 0.0, INF
        case "integer_pow" | "square" if first.within_unit:
            return 0.0, 1.0
        case "integer_pow" if step.eqn.params["y"] % 2 == 0:
            return 0.0, INF
        case "select_n":
            return min(f.low for f in given[1:]), max(f.high for f in given[1:])
    if name in SELECTING and len(step.inputs) == 1:
        return first.low, first.high
    if name in LAYOUT:
        data = [f for f, atom in zip(given, step.inputs, strict=True) if _is_data(step, atom)]
        return min(f.low for f in data), max(f.high for f in data)
    return -INF, INF


def _is_data(step: Step, atom: Atom) -> bool:
    """Whether an operand's numbers may come out, unlike indices and predicates."""
    cast = step.name == "convert_element_type"
    return bool(cast or atom.aval.dtype == step.outputs[0].aval.dtype)


def widened(before: Fact, after: Fact) -> Fact:
    """Gives up bounds that keep growing from turn to turn of a loop."""
    return after._replace(
        low=before.low if after.low >= before.low else -INF,
        high=before.high if after.high <= before.high else INF,
    )


def transfer(step: Step, given: Sequence[Fact]) -> Fact:
    """What is known about the output of an ordinary step."""
    name = step.name
    depth = max((f.depth for f in given if f.touched), default=0)
    low, high = _bounds(step, given) if given else (-INF, INF)
    if math.isnan(low) or math.isnan(high):
        low, high = -INF, INF
    touched = [f for f in given if f.touched]
    if not touched:
        return Fact(low=low, high=high)
    active = [f for f in given if f.active]
    scaled = name in ("mul", "neg") or (name == "div" and given[0].active)
    through = name in LAYOUT or (scaled and len(active) == 1)
    shifted = name in ("add", "sub", "max") and len(active) == 1
    weight = name in CONTRACTING and len(active) == 1
    bounded = Fact(low=low, high=high)
    return Fact(
        active=bool(active) and name != "stop_gradient",
        touched=True,
        low=low,
        high=high,
        squashed=_squashes(step, given, bounded)
        or (
            (through or shifted or name in ("mul", "square", "integer_pow"))
            and all(f.squashed for f in touched)
        ),
        gate=bool(active)
        and (
            name == "logistic"
            or (through and all(f.is_gate for f in active))
            or (shifted and bounded.within_unit and all(f.gate for f in active))
        ),
        soft=bool(active) and through and all(f.soft for f in active),
        norm=(name in ("rsqrt", "sqrt") and all(f.pooled for f in touched))
        or ((through or shifted) and all(f.norm for f in touched)),
        pooled=name in POOLING or (name in LAYOUT | ELEMENTWISE and all(f.pooled for f in touched)),
        depth=depth + weight,
    )


def _squashes(step: Step, given: Sequence[Fact], result: Fact) -> bool:
    """Whether the step bounds what had no bounds, on both sides."""
    if math.isinf(result.low) or math.isinf(result.high):
        return False
    if step.name in ("logistic", "tanh", "erf"):
        return math.isinf(given[0].low) and math.isinf(given[0].high)
    if step.name == "div":  # 1 / (1 + exp(-z))
        return not given[0].touched
    # Clipping squashes what a layer makes; of the input it only mends what is out of range.
    return step.name in ("min", "max", "clamp") and max(f.depth for f in given) > 0
