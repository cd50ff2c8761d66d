"""DeepLIFT through any function: multipliers that turn differences into differences.

The function runs at the input and at the baseline. A step's multipliers times the differences of
its operands sum to the difference of its output, exactly, and multipliers chain like derivatives.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxattn.jaxpr.flat import Atom, Step, Var, is_elementwise
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.propagation.layer_rules import quotient
from jaxattn.jaxpr.propagation.modified_layer import Layer, Signed, transposed
from jaxattn.jaxpr.propagation.score import ScoreRules
from jaxattn.jaxpr.propagation.walk import (
    Cotangent,
    Runs,
    Visit,
    cotangents_of,
    transpose_step,
    unsupported,
)
from jaxattn.jaxpr.structure.activations import activation, function_between
from jaxattn.jaxpr.structure.affine import affine_map
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.primitive_classes import CONTRACTING, SUMMING

#: An elementwise function of one value.
Elementwise: TypeAlias = Callable[[Array], Array]

_MAXIMA = frozenset("cummax reduce_max reduce_window_max".split())
_MINIMA = frozenset("cummin reduce_min reduce_window_min".split())


class DeepLift(ScoreRules):
    """The rules of DeepLIFT.

    Each method named after a kind of step returns the multipliers of the operands of such a step,
    and `None` for any other step.

    Args:
        reveal_cancel: whether layers before an activation use the reveal-cancel rule.
        dtype: of the multipliers.
    """

    def __init__(self, reveal_cancel: bool, dtype: np.dtype) -> None:
        super().__init__(dtype)
        self.reveal_cancel = reveal_cancel
        # In the order in which they are tried.
        self._one_output = (
            self._extremum,
            self._contraction,
            self._activation,
            self._pair,
        )

    def start(self, score: Runs) -> Array:
        """Return 1: the multiplier of the score itself."""
        return jnp.ones((), self.dtype)

    def absorb(self, value: Array) -> None:
        """Do nothing: a constant has no difference."""

    def __call__(self, visit: Visit) -> list[Cotangent]:
        """Return the multipliers of a step's operands."""
        if visit.step.name in ("convert_element_type", "stop_gradient"):
            return [Cotangent(visit.actives[0], visit.cotangent)]
        multipliers = self._softmax(visit)
        if multipliers is not None:
            return multipliers
        if _is_linear(visit.structure, visit.step):
            return visit.transpose()
        for rule in self._one_output if len(visit.cotangents) == 1 else ():
            multipliers = rule(visit)
            if multipliers is not None:
                return multipliers
        raise ValueError(unsupported(visit.step, "DeepLIFT"))

    def _softmax(self, visit: Visit) -> list[Cotangent] | None:
        """Take exponentials, divided by their sum, with one maximum subtracted in both runs."""
        softmax = visit.structure.softmaxes.get(visit.step)
        if softmax is None or not softmax.is_plain:
            return None
        logits, axes = softmax.logits, softmax.axes
        z, z0 = visit.runs(logits)
        s, s0 = visit.runs(visit.output)
        top = jnp.max(jnp.maximum(z, z0), axes, keepdims=True)
        # A masked element has no part in the sum, whatever its logit.
        e, e0 = (jnp.where(w > 0, jnp.exp(x - top), 0) for x, w in ((z, s), (z0, s0)))
        total, total0 = (jnp.sum(x, axes, keepdims=True) for x in (e, e0))
        half = jnp.asarray(0.5, e.dtype)
        multiplier = visit.cotangent.astype(e.dtype)
        through_sum = jnp.sum(multiplier * half * (e + e0), axes, keepdims=True) / (total * total0)
        of_exponentials = multiplier * half * (1 / total + 1 / total0) - through_sum
        ratio = _ratio(e - e0, z, z0, half * (e + e0))
        return [Cotangent(logits, jnp.where(jnp.isfinite(ratio), ratio, 0) * of_exponentials)]

    def _extremum(self, visit: Visit) -> list[Cotangent] | None:
        """Attribute a change of a maximum to the element that holds the larger of the two.

        A minimum is attributed in the same way.
        """
        step = visit.step
        if step.name not in _MAXIMA | _MINIMA:
            return None
        (source,) = visit.actives
        (x, x0), (y, y0) = visit.runs(source), visit.runs(visit.output)
        at_input = (y >= y0) if step.name in _MAXIMA else (y <= y0)
        multiplier = visit.cotangent.astype(y.dtype)
        changes, slopes = [], []
        for run, decides in enumerate((at_input, ~at_input)):

            def read(atom: Atom, run: int = run) -> ArrayLike:
                return visit.memory[atom][run]

            part = jnp.where(decides, multiplier, 0)
            changes += transpose_step(step, [source], read, [part * (y - y0)])
            slopes += transpose_step(step, [source], read, [part])
        change, slope = changes[0] + changes[1], slopes[0] + slopes[1]
        return [Cotangent(source, _ratio(change, x, x0, slope))]

    def _contraction(self, visit: Visit) -> list[Cotangent] | None:
        """Weigh the change of each operand with the mean of the other."""
        step = visit.step
        if step.name not in CONTRACTING:
            return None
        values = [visit.memory[atom] for atom in step.inputs]
        half = jnp.asarray(0.5, visit.output.aval.dtype)
        means = [half * (x + x0) for x, x0 in values]  # type: ignore[operator]
        _, transpose = jax.vjp(lambda a, b: bind(step.eqn, (a, b))[0], *means)
        return _active(visit, transpose(visit.cotangent.astype(half.dtype)))

    def _activation(self, visit: Visit) -> list[Cotangent] | None:
        """Rescale: the slope of the secant between both runs."""
        if not is_elementwise(visit.step):
            return None
        source = activation(visit.structure, visit.step)
        if source is None or source.shape != visit.output.shape:
            return None
        apply = function_between(visit.structure, source, visit.output, visit.read)
        if self.reveal_cancel and _is_sum(visit.structure, source):
            return self._reveal_cancel(visit, source, apply)
        (u, u0), (y, y0) = visit.runs(source), visit.runs(visit.output)
        half = jnp.asarray(0.5, u.dtype)
        ratio = _ratio(y - y0, u, u0, _slope(apply, half * (u + u0)))
        return [Cotangent(source, visit.cotangent * ratio.astype(self.dtype))]

    def _reveal_cancel(self, visit: Visit, source: Var, apply: Elementwise) -> list[Cotangent]:
        """Take the positive and the negative contributions to a pre-activation apart."""
        (u, u0), (y, y0) = visit.runs(source), visit.runs(visit.output)
        affine = affine_map(visit.structure, source)
        by_sign = Layer(visit.structure, affine, visit.read).by_sign()
        differences = [x - x0 for x, x0 in map(visit.runs, affine.inputs)]
        pairs = [Signed.of(difference) for difference in differences]
        up, down = by_sign(*pairs)
        with_up, with_down = apply(u0 + up), apply(u0 + down)
        half = jnp.asarray(0.5, u.dtype)
        y_up = half * ((with_up - y0) + (y - with_down))
        y_down = half * ((with_down - y0) + (y - with_up))
        slope = _slope(apply, half * (u + u0))
        zero = jnp.zeros_like(up)
        multiplier = visit.cotangent.astype(u.dtype)
        ratios = Signed(_ratio(y_up, up, zero, slope), _ratio(y_down, down, zero, slope))
        weighted = Signed(*(multiplier * ratio for ratio in ratios))
        slopes = transposed(by_sign, pairs, weighted)
        multipliers = [
            jnp.where(d > 0, a, jnp.where(d < 0, b, half * (a + b)))
            for d, (a, b) in zip(differences, slopes, strict=True)
        ]
        return cotangents_of(affine.inputs, multipliers)

    def _pair(self, visit: Visit) -> list[Cotangent] | None:
        """Take the mean over the two orders in which two operands may change: Shapley values."""
        step = visit.step
        if not is_elementwise(step) or len(step.inputs) != 2:
            return None
        runs = [visit.memory[atom] for atom in step.inputs]

        def apply(a: ArrayLike, b: ArrayLike) -> Array:
            return bind(step.eqn, (a, b))[0]

        (a, a0), (b, b0) = runs
        both, neither, first, second = apply(a, b), apply(a0, b0), apply(a, b0), apply(a0, b)
        half = jnp.asarray(0.5, both.dtype)
        ends = [[jnp.broadcast_to(x, both.shape) for x in pair] for pair in runs]
        slopes = jax.vjp(apply, *(half * (x + x0) for x, x0 in ends))[1](jnp.ones_like(both))
        changes = (both - second) + (first - neither), (both - first) + (second - neither)
        ratios = [
            _ratio(half * change, x, x0, slope)
            for change, (x, x0), slope in zip(changes, ends, slopes, strict=True)
        ]
        return _active(visit, [visit.cotangent * ratio.astype(self.dtype) for ratio in ratios])


def _active(visit: Visit, multipliers: list[Array] | tuple[Array, ...]) -> list[Cotangent]:
    """Return the multipliers of the operands that depend on the input."""
    pairs = zip(visit.step.inputs, multipliers, strict=True)
    return [Cotangent(a, value) for a, value in pairs if visit.structure.is_active(a)]


def _is_sum(structure: Structure, var: Var) -> bool:
    """Return whether contributions of several features may cancel in a value."""
    producer = structure.producers.get(var)
    sums = producer is not None and (structure.adds(producer) or producer.name in SUMMING)
    return sums or structure.is_preactivation(var)


def _is_linear(structure: Structure, step: Step) -> bool:
    """Return whether a step is linear in its active operands, and the same in both runs."""
    if any(structure.fact(a).depends_on_input and not structure.is_active(a) for a in step.inputs):
        return False
    return (
        structure.lays_out(step)
        or structure.scales(step)
        or structure.shifts(step)
        or structure.adds(step)
        or structure.contracts(step)
        or step.name in SUMMING
    )


def _slope(apply: Elementwise, x: Array) -> Array:
    # For an elementwise function the transpose equals the derivative. It is defined for custom
    # derivative rules of either kind.
    y, transpose = jax.vjp(apply, x)
    return transpose(jnp.ones_like(y))[0]


def _ratio(change: Array, x: Array, x0: Array, slope: Array) -> Array:
    """Return `change / (x - x0)`, or the slope in between where rounding would dominate."""
    difference, limits = x - x0, jnp.finfo(x.dtype)
    size = jnp.maximum(jnp.abs(x), jnp.abs(x0))
    # Only a mask makes an infinite value.
    size = jnp.where(jnp.isfinite(size), size, 0)
    least = jnp.sqrt(limits.eps).astype(x.dtype) * size + jnp.asarray(limits.tiny, x.dtype)
    # A root's slope at zero is infinite. Times a difference of zero it must give zero.
    slope = jnp.where(jnp.isfinite(slope), slope, 0)
    return jnp.where(jnp.abs(difference) > least, quotient(change, difference), slope)
