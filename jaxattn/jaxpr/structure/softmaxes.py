"""Softmaxes, which have no primitive: a maximum, an exponential, a sum and a quotient."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxattn.jaxpr.flat import Atom, Flat, Step, Var
from jaxattn.jaxpr.structure.primitive_classes import LAYOUT
from jaxattn.jaxpr.structure.producers import producer_behind

#: Primitives between a softmax's logits and the maximum that it subtracts from them.
_TO_MAXIMUM = LAYOUT | {"stop_gradient", "max"}


class Softmax(NamedTuple):
    """A softmax.

    Attributes:
        logits: its operand.
        axes: the axes that its exponentials are summed over.
    """

    logits: Var
    axes: tuple[int, ...]


class _Quotient(NamedTuple):
    """An exponential and the sum that it is divided by."""

    exponential: Step
    total: Step


def find_softmaxes(flat: Flat, producers: Mapping[Var, Step]) -> dict[Step, Softmax]:
    """Find the softmaxes of a function, by their last steps.

    Args:
        flat: the function.
        producers: the step that computes each value.
    """
    found = {step: _softmax_ending_in(step, producers) for step in flat.steps}
    return {step: softmax for step, softmax in found.items() if softmax is not None}


def is_maximum(atom: Atom, producers: Mapping[Var, Step]) -> bool:
    """Return whether a value is a maximum over elements, as a softmax subtracts it."""
    return producer_behind(atom, producers, _TO_MAXIMUM, "reduce_max") is not None


def _softmax_ending_in(step: Step, producers: Mapping[Var, Step]) -> Softmax | None:
    quotient = _quotient(step, producers)
    if quotient is None:
        return None
    exponential, total = quotient
    if producer_behind(total.inputs[0], producers, LAYOUT, "exp") is not exponential:
        return None
    logits = exponential.inputs[0]
    difference = producer_behind(logits, producers, LAYOUT, "sub")
    if difference is not None and is_maximum(difference.inputs[1], producers):
        logits = difference.inputs[0]
    if not isinstance(logits, Var) or logits.shape != step.outputs[0].shape:
        return None
    return Softmax(logits, tuple(total.eqn.params["axes"]))


def _quotient(step: Step, producers: Mapping[Var, Step]) -> _Quotient | None:
    """Return the quotient that a step computes, or the exponential of its logarithm."""
    if step.name == "div":
        exponential = producer_behind(step.inputs[0], producers, LAYOUT, "exp")
        total = producer_behind(step.inputs[1], producers, LAYOUT, "reduce_sum")
        return None if exponential is None or total is None else _Quotient(exponential, total)
    # The exponential of a log-softmax: z - log(sum(exp(z))).
    if step.name != "exp":
        return None
    difference = producer_behind(step.inputs[0], producers, LAYOUT, "sub")
    if difference is None:
        return None
    logarithm = producer_behind(difference.inputs[1], producers, LAYOUT, "log")
    if logarithm is None:
        return None
    total = producer_behind(logarithm.inputs[0], producers, LAYOUT, "reduce_sum")
    if total is None:
        return None
    exponential = producer_behind(total.inputs[0], producers, LAYOUT, "exp")
    if exponential is None or exponential.inputs[0] is not difference.inputs[0]:
        return None
    return _Quotient(exponential, total)
