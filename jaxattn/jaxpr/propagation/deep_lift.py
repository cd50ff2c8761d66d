"""DeepLIFT through any function: multipliers that turn differences into differences.

The function runs at the input and at the baseline. A step's multipliers times the differences of
its operands sum to the difference of its output, exactly, and multipliers chain like derivatives.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxattn.jaxpr.flat import Step, Var, is_elementwise
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.propagation.modified_layer import Layer, Signed, transposed
from jaxattn.jaxpr.propagation.secants import (
    Elementwise,
    bounded,
    log_softmax,
    logarithmic_mean,
    mean_slopes,
    secant,
    slope_at,
    softmax_multipliers,
)
from jaxattn.jaxpr.propagation.two_runs import TwoRuns
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
from jaxattn.jaxpr.structure.normalisations import is_root
from jaxattn.jaxpr.structure.primitive_classes import (
    CONTRACTING,
    SUMMING,
)
from jaxattn.jaxpr.structure.producers import producer_behind

#: Primitives that keep the order of elements.
_RESHAPING = frozenset("broadcast_in_dim convert_element_type expand_dims reshape squeeze".split())
_MAXIMA = frozenset("cummax reduce_max reduce_or reduce_window_max".split())
_MINIMA = frozenset("cummin reduce_and reduce_min reduce_window_min".split())


class DeepLift(TwoRuns):
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
            self._log_sum_exp,
            self._extremum,
            self._contraction,
            self._activation,
            self._normalisation,
            self.choice,
            self._pair,
        )

    def start(self, score: Runs) -> Array:
        """Return 1: the multiplier of the score itself."""
        return jnp.ones((), self.dtype)

    def absorb(self, value: Array) -> None:
        """Do nothing: a constant has no difference."""

    def __call__(self, visit: Visit) -> list[Cotangent]:
        """Return the multipliers of a step's operands."""
        step = visit.step
        if step.name in ("convert_element_type", "stop_gradient") and not _rounds(step):
            return [Cotangent(visit.actives[0], visit.cotangent)]
        multipliers = self._softmax(visit)
        if multipliers is not None:
            return multipliers
        if _is_linear(visit.structure, step):
            read, _ = self.reads(visit)
            values = transpose_step(step, visit.actives, read, visit.cotangents)
            return cotangents_of(visit.actives, values)
        for rule in self._one_output if len(visit.cotangents) == 1 else (self.choice,):
            multipliers = rule(visit)
            if multipliers is not None:
                return multipliers
        if not any(var.is_floating for var in step.outputs):
            return []  # counts of another kind than these are not propagated
        raise ValueError(unsupported(visit.step, "DeepLIFT"))

    def _softmax(self, visit: Visit) -> list[Cotangent] | None:
        """Apply the derivative of a softmax at the logarithmic means of the weights of both runs.

        The logarithmic mean of two weights times the difference of their logarithms is their
        difference, so that the multipliers sum to the difference. The means do not depend on what
        is added to all logits.
        """
        found = visit.structure.softmaxes.get(visit.step)
        if found is None or not found.is_plain:
            return None
        s, s0 = visit.runs(visit.output)
        # A masked element has no weight, whatever its logit.
        shown = (s > 0) | (s0 > 0)
        means = self._mean_weights(visit, found.logits, found.axes, shown)
        z, z0 = map(bounded, self.wide_runs(visit, found.logits))
        multiplier = visit.cotangent.astype(means.dtype)
        multipliers = softmax_multipliers(multiplier, means, z, z0, shown, found.axes)
        return [Cotangent(found.logits, multipliers)]

    def _log_sum_exp(self, visit: Visit) -> list[Cotangent] | None:
        """Apply the derivative of a logarithm of summed exponentials; see `_softmax`."""
        producers = visit.structure.producers
        if visit.step.name != "log":
            return None
        total = producer_behind(visit.step.inputs[0], producers, _RESHAPING, "reduce_sum")
        exponential = None if total is None else producer_behind(total.inputs[0], producers, set())
        if total is None or exponential is None or exponential.name != "exp":
            return None
        if total.outputs[0].aval.size != visit.output.aval.size:  # it is repeated
            return None
        (logits,), axes = visit.structure.actives(exponential), tuple(total.eqn.params["axes"])
        means = self._mean_weights(visit, logits, axes, jnp.ones(logits.shape, bool))
        weights = means / jnp.sum(means, axes, keepdims=True)
        multiplier = visit.cotangent.reshape(
            [1 if i in axes else n for i, n in enumerate(logits.shape)]
        )
        return [Cotangent(logits, weights * multiplier.astype(weights.dtype))]

    def _mean_weights(
        self, visit: Visit, logits: Var, axes: tuple[int, ...], shown: Array
    ) -> Array:
        """Return the logarithmic means of the weights of a softmax in both runs."""
        of_runs = [log_softmax(bounded(z), shown, axes) for z in self.wide_runs(visit, logits)]
        return jnp.where(shown, logarithmic_mean(*of_runs), 0)

    def _extremum(self, visit: Visit) -> list[Cotangent] | None:
        """Attribute a change of a maximum to the element that holds the larger of the two.

        A minimum is attributed in the same way. Truth values have a maximum and a minimum, too.
        """
        step = visit.step
        if step.name not in _MAXIMA | _MINIMA:
            return None
        (source,) = visit.actives
        (x, x0), (y, y0) = (self.wide_runs(visit, var) for var in (source, visit.output))
        apply = None
        if step.name in ("reduce_and", "reduce_or"):
            reduce = jnp.min if step.name in _MINIMA else jnp.max
            apply = lambda x: [reduce(x, step.eqn.params["axes"])]  # noqa: E731
        at_input = (y >= y0) if step.name in _MAXIMA else (y <= y0)
        changes, slopes = [], []
        for read, decides in zip(self.reads(visit), (at_input, ~at_input), strict=True):
            part = jnp.where(decides, visit.cotangent.astype(y.dtype), 0)
            changes += transpose_step(step, [source], read, [part * (y - y0)], apply)
            slopes += transpose_step(step, [source], read, [part], apply)
        change, slope = changes[0] + changes[1], slopes[0] + slopes[1]
        return [Cotangent(source, secant(change, x, x0, slope))]

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
        (u, u0), (y, y0) = (
            map(bounded, self.wide_runs(visit, var)) for var in (source, visit.output)
        )
        if not (source.is_floating and visit.output.is_floating):  # it jumps
            return [Cotangent(source, visit.cotangent * secant(y - y0, u, u0, None))]
        apply = function_between(visit.structure, source, visit.output, visit.read)
        if self.reveal_cancel and _is_sum(visit.structure, source):
            return self._reveal_cancel(visit, source, apply)
        v, v0 = visit.runs(source)
        half = jnp.asarray(0.5, v.dtype)
        ratio = secant(y - y0, u, u0, slope_at(apply, half * (v + v0)))
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
        slope = slope_at(apply, half * (u + u0))
        zero = jnp.zeros_like(up)
        multiplier = visit.cotangent.astype(u.dtype)
        ratios = Signed(secant(y_up, up, zero, slope), secant(y_down, down, zero, slope))
        weighted = Signed(*(multiplier * ratio for ratio in ratios))
        slopes = transposed(by_sign, pairs, weighted)
        multipliers = [
            jnp.where(d > 0, a, jnp.where(d < 0, b, half * (a + b)))
            for d, (a, b) in zip(differences, slopes, strict=True)
        ]
        return cotangents_of(affine.inputs, multipliers)

    def _normalisation(self, visit: Visit) -> list[Cotangent] | None:
        """Divide by the mean of the scales of both runs, not by each of them.

        With y = a / b the difference of a is that of y times the mean of b, plus that of b times
        the mean of y. So that of y is that of a divided by the mean of b, minus the other part. The
        scale of a constant baseline is nearly zero, and its inverse is not a multiplier here.
        """
        step, structure = visit.step, visit.structure
        if step.name not in ("mul", "div") or len(visit.actives) != 2:
            return None
        first, second = step.inputs
        if step.name == "mul" and is_root(structure, first):
            first, second = second, first
        statistic = step.name == "div" and structure.fact(second).statistic
        if not (statistic or is_root(structure, second)):
            return None
        (a, a0), (b, b0), (y, y0) = (
            self.wide_runs(visit, atom) for atom in (first, second, visit.output)
        )
        same_sign = jnp.sign(b) * jnp.sign(b0) > 0
        total = jnp.where(same_sign, b + b0, 1)
        half = jnp.asarray(0.5, total.dtype)
        if step.name == "mul":
            weight = jnp.where(same_sign, b / total, half)
            of_signal = (1 - weight) * b + weight * b0
            of_scale = weight * a + (1 - weight) * a0
        else:
            of_signal = jnp.where(same_sign, 2 / total, half * (1 / b + 1 / b0))
            other = half * (a + a0) / (b * b0)
            of_scale = -jnp.where(same_sign, (y + y0) / total, other)
        return [
            Cotangent(first, visit.cotangent * of_signal.astype(self.dtype)),
            Cotangent(second, visit.cotangent * of_scale.astype(self.dtype)),
        ]

    def _pair(self, visit: Visit) -> list[Cotangent] | None:
        """Take the mean over the two orders in which two operands may change: Shapley values."""
        step = visit.step
        if not is_elementwise(step) or len(step.inputs) != 2:
            return None
        (a, a0), (b, b0) = runs = [visit.memory[atom] for atom in step.inputs]

        def apply(a: ArrayLike, b: ArrayLike) -> Array:
            return bind(step.eqn, (a, b))[0]

        both, neither, first, second = (
            self.wide(y) for y in (apply(a, b), apply(a0, b0), apply(a, b0), apply(a0, b))
        )
        half = jnp.asarray(0.5, both.dtype)
        changes = [
            half * ((both - second) + (first - neither)),
            half * ((both - first) + (second - neither)),
        ]
        ends = [[jnp.broadcast_to(x, both.shape) for x in pair] for pair in runs]
        smooth = all(jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in (a, b, apply(a, b)))
        slopes = mean_slopes(apply, ends) if smooth else (None, None)
        ratios = [
            secant(change, self.wide(x), self.wide(x0), slope)
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


def _rounds(step: Step) -> bool:
    """Return whether a step converts floating-point numbers to others."""
    (source, *_), (output, *_) = step.inputs, step.outputs
    floating = jnp.issubdtype(source.aval.dtype, jnp.inexact)
    return step.name == "convert_element_type" and floating and not output.is_floating


def _is_linear(structure: Structure, step: Step) -> bool:
    """Return whether a step is linear in its active operands, and the same in both runs."""
    if any(structure.fact(a).depends_on_input and not structure.is_active(a) for a in step.inputs):
        return False
    if _rounds(step) or (step.name == "div" and not step.outputs[0].is_floating):
        return False
    return (
        structure.lays_out(step)
        or structure.scales(step)
        or structure.shifts(step)
        or structure.adds(step)
        or structure.contracts(step)
        or step.name in SUMMING
    )
