"""DeepLIFT through any function: multipliers that turn differences into differences.

The function runs at the input and at the baseline. A step's multipliers times the differences of
its operands sum to the difference of its output, exactly, and multipliers chain like slopes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn.jaxpr.flat import Atom, Step, Var, is_elementwise
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.propagation import modified_layer as maps
from jaxattn.jaxpr.propagation.layer_rules import quotient
from jaxattn.jaxpr.propagation.lrp import pull, refusal
from jaxattn.jaxpr.propagation.reverse import Memory, Runs
from jaxattn.jaxpr.structure.activations import activation, function_between
from jaxattn.jaxpr.structure.affine import affine_map
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.primitive_classes import CONTRACTING, SUMMING

Shares = list[tuple[Atom, Any]]

_LARGEST = frozenset("cummax reduce_max reduce_window_max".split())
_LEAST = frozenset("cummin reduce_min reduce_window_min".split())


class DeepLift:
    """The rules of one walk back: rescale, or reveal-cancel where a layer meets an activation."""

    def __init__(self, reveal_cancel: bool, dtype: Any) -> None:
        self.reveal_cancel, self.dtype = reveal_cancel, dtype

    def start(self, score: Runs) -> Any:
        """The score's own multiplier is 1."""
        return jnp.ones((), self.dtype)

    def absorb(self, given: Any) -> None:
        """A constant makes no difference."""

    def enter(self) -> None:
        """Nothing is summed up."""

    def leave(self) -> Any:
        """Nothing was."""
        return jnp.zeros((), self.dtype)

    def __call__(
        self, structure: Structure, step: Step, memory: Memory, given: list[Any]
    ) -> Shares:
        """The multipliers of a step's operands."""
        if step.name in ("convert_element_type", "stop_gradient"):
            return [(structure.actives(step)[0], given[0])]
        if _is_linear(structure, step):
            actives = structure.actives(step)
            shares = pull(step, actives, lambda atom: memory[atom][0], given)
            return list(zip(actives, shares, strict=True))
        if len(given) != 1:
            raise ValueError(refusal(step, "DeepLIFT"))
        (multiplier,) = given
        if step in structure.softmaxes:
            return self._softmax(structure, step, memory, multiplier)
        if step.name in _LARGEST | _LEAST:
            return self._extreme(structure, step, memory, multiplier)
        if step.name in CONTRACTING:
            return self._contract(structure, step, memory, multiplier)
        if is_elementwise(step):
            source = activation(structure, step)
            if source is not None and source.shape == step.outputs[0].shape:
                return self._activation(structure, step, source, memory, multiplier)
            if len(step.inputs) == 2:
                return self._pair(structure, step, memory, multiplier)
        raise ValueError(refusal(step, "DeepLIFT"))

    def _activation(
        self, structure: Structure, step: Step, source: Var, memory: Memory, multiplier: Any
    ) -> Shares:
        (u, u0), (y, y0) = memory[source], memory[step.outputs[0]]
        apply = function_between(structure, source, step.outputs[0], lambda a: memory[a][0])
        maker = structure.producers.get(source)
        sums = maker is not None and (structure.adds(maker) or maker.name in SUMMING)
        if not self.reveal_cancel or not (sums or structure.is_preactivation(source)):
            return [(source, multiplier * _secant(apply, u, u0, y, y0).astype(self.dtype))]
        layer = affine_map(structure, source)
        by_sign = maps.signed(structure, layer, lambda a: memory[a][0])
        differences = [memory[v][0] - memory[v][1] for v in layer.inputs]
        pairs = [(jnp.maximum(d, 0), jnp.minimum(d, 0)) for d in differences]
        up, down = by_sign(*pairs)
        with_up, with_down = apply(u0 + up), apply(u0 + down)
        half = jnp.asarray(0.5, u.dtype)
        y_up = half * ((with_up - y0) + (y - with_down))
        y_down = half * ((with_down - y0) + (y - with_up))
        slope = _slope(apply, half * (u + u0))
        zero = jnp.zeros_like(up)
        given = multiplier.astype(u.dtype)
        ratios = _ratio(y_up, up, zero, slope), _ratio(y_down, down, zero, slope)
        slopes = maps.transposed(by_sign, pairs, tuple(given * ratio for ratio in ratios))
        multipliers = [
            jnp.where(d > 0, a, jnp.where(d < 0, b, half * (a + b)))
            for d, (a, b) in zip(differences, slopes, strict=True)
        ]
        return list(zip(layer.inputs, multipliers, strict=True))

    def _pair(self, structure: Structure, step: Step, memory: Memory, multiplier: Any) -> Shares:
        """Each of two operands' part, the mean over the two orders in which they may change."""
        (a, a0), (b, b0) = (memory[atom] for atom in step.inputs)

        def apply(a: Any, b: Any) -> Any:
            return bind(step.eqn, (a, b))[0]

        both, neither, first, second = apply(a, b), apply(a0, b0), apply(a, b0), apply(a0, b)
        half = jnp.asarray(0.5, both.dtype)
        middle = [jnp.broadcast_to(half * (x + x0), both.shape) for x, x0 in ((a, a0), (b, b0))]
        slopes = jax.vjp(apply, *middle)[1](jnp.ones_like(both))
        changes = (both - second) + (first - neither), (both - first) + (second - neither)
        ends = [[jnp.broadcast_to(x, both.shape) for x in pair] for pair in ((a, a0), (b, b0))]
        ratios = [
            _ratio(half * change, x, x0, slope)
            for change, (x, x0), slope in zip(changes, ends, slopes, strict=True)
        ]
        return [
            (atom, multiplier * ratio.astype(self.dtype))
            for atom, ratio in zip(step.inputs, ratios, strict=True)
            if structure.is_active(atom)
        ]

    def _contract(
        self, structure: Structure, step: Step, memory: Memory, multiplier: Any
    ) -> Shares:
        """Of a product of two active operands each weighs the other's change by its own mean."""
        values = [memory[atom] for atom in step.inputs]
        half = jnp.asarray(0.5, step.outputs[0].aval.dtype)
        means = [half * (x + x0) for x, x0 in values]
        _, transpose = jax.vjp(lambda a, b: bind(step.eqn, (a, b))[0], *means)
        slopes = transpose(multiplier.astype(half.dtype))
        return [
            (atom, slope)
            for atom, slope in zip(step.inputs, slopes, strict=True)
            if structure.is_active(atom)
        ]

    def _softmax(self, structure: Structure, step: Step, memory: Memory, multiplier: Any) -> Shares:
        """Exponentials, divided by their sum; the same maximum is subtracted in both runs."""
        logits, axes = structure.softmaxes[step]
        z, z0 = memory[logits]
        s, s0 = memory[step.outputs[0]]
        top = jnp.max(jnp.maximum(z, z0), axes, keepdims=True)
        # A masked cell has no part in the sum, whatever its logit.
        e, e0 = (jnp.where(w > 0, jnp.exp(x - top), 0) for x, w in ((z, s), (z0, s0)))
        total, total0 = (jnp.sum(x, axes, keepdims=True) for x in (e, e0))
        half = jnp.asarray(0.5, e.dtype)
        given = multiplier.astype(e.dtype)
        through_sum = jnp.sum(given * half * (e + e0), axes, keepdims=True) / (total * total0)
        of_exponentials = given * half * (1 / total + 1 / total0) - through_sum
        ratio = _ratio(e - e0, z, z0, half * (e + e0))
        return [(logits, jnp.where(jnp.isfinite(ratio), ratio, 0) * of_exponentials)]

    def _extreme(self, structure: Structure, step: Step, memory: Memory, multiplier: Any) -> Shares:
        """A larger maximum is the doing of the cell that holds it; a smaller, of that which did."""
        (source,) = structure.actives(step)
        (x, x0), (y, y0) = memory[source], memory[step.outputs[0]]
        now = (y >= y0) if step.name in _LARGEST else (y <= y0)
        given = multiplier.astype(y.dtype)
        shares = []
        for run, here in enumerate((now, ~now)):

            def read(atom: Atom, run: int = run) -> Any:
                return memory[atom][run]

            part = jnp.where(here, given, 0)
            (moved,) = pull(step, [source], read, [part * (y - y0)])
            (plain,) = pull(step, [source], read, [part])
            shares.append((moved, plain))
        (moved, plain), (moved0, plain0) = shares
        return [(source, _ratio(moved + moved0, x, x0, plain + plain0))]


def _is_linear(structure: Structure, step: Step) -> bool:
    """Whether the step is linear in its active operands, and the same in both runs."""
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


def _slope(apply: Callable[[Any], Any], x: Any) -> Any:
    # Of a function of single cells the transpose gives the same, for custom rules of either kind.
    y, transpose = jax.vjp(apply, x)
    return transpose(jnp.ones_like(y))[0]


def _secant(apply: Callable[[Any], Any], u: Any, u0: Any, y: Any, y0: Any) -> Any:
    """The slope between two points of a function of single cells."""
    return _ratio(y - y0, u, u0, _slope(apply, jnp.asarray(0.5, u.dtype) * (u + u0)))


def _ratio(change: Any, x: Any, x0: Any, slope: Any) -> Any:
    """`change / (x - x0)`, or the slope in between where rounding would decide."""
    difference, limits = x - x0, jnp.finfo(x.dtype)
    size = jnp.maximum(jnp.abs(x), jnp.abs(x0))
    # Beyond all bounds lies only what a mask put there.
    size = jnp.where(jnp.isfinite(size), size, 0)
    least = jnp.sqrt(limits.eps).astype(x.dtype) * size + jnp.asarray(limits.tiny, x.dtype)
    # A root's slope at zero is infinite, and makes nothing of no difference.
    slope = jnp.where(jnp.isfinite(slope), slope, 0)
    return jnp.where(jnp.abs(difference) > least, quotient(change, difference), slope)
