"""Contextual decomposition of a score into the parts of a phrase and of its context.

Every value is a sum of a relevant part (beta), an irrelevant part (gamma) and a bias. The pass goes
forwards only. A linear step acts on each part alone, a nonlinearity is divided by the mean over the
orders in which its parts may be added, and of a product all pairs of parts are multiplied.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxattn.jaxpr.flat import Atom, Step, Var, is_elementwise
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.propagation.decomposed_values import (
    Apply,
    Parts,
    Split,
    Value,
    in_parts,
    jointly,
    linearly,
    with_mask,
    without_mask,
)
from jaxattn.jaxpr.propagation.score import side_effects
from jaxattn.jaxpr.propagation.walk import unsupported
from jaxattn.jaxpr.real_pairs import with_real_pairs
from jaxattn.jaxpr.structure.activations import activation, function_between
from jaxattn.jaxpr.structure.facts import Fact
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.hoisted import analyse_whole
from jaxattn.jaxpr.structure.normalisations import is_normalised_by
from jaxattn.jaxpr.structure.primitive_classes import CONTRACTING, SUMMING


def decompose(score: Callable[..., Any], x: Array, mask: Array) -> Split:
    """Decompose a score into the parts of a phrase, of its context, and a bias.

    Args:
        score: returns the score first, and other outputs.
        x: the input.
        mask: which features of the input are in the phrase.

    Raises:
        ValueError: for side effects, or a `while` loop that depends on the input.
    """
    closed = with_real_pairs(jax.make_jaxpr(lambda x: score(x))(x))
    if closed.effects:
        raise ValueError(side_effects(closed.effects, "decomposed"))
    structure = analyse_whole(closed, [Fact(active=True, depends_on_input=True)])
    zero = jnp.zeros_like(x)
    phrase = mask.astype(x.dtype) + zero
    parts = Parts(jnp.where(mask, x, 0), jnp.where(mask, 0, x), zero, phrase)
    first = _Decomposer(structure, None).run([parts])[0]
    if isinstance(first, Parts):
        return Split(*first[:3])
    value = jnp.asarray(first)
    return Split(jnp.zeros_like(value), jnp.zeros_like(value), value)


@dataclass(frozen=True, eq=False)
class _Operands:
    """The operands of a step that depends on the input.

    Attributes:
        step: the step.
        values: its operands, those that depend on the input in parts.
        totals: the operands themselves.
        in_phrase: which elements of the step's output depend on the phrase; see `Parts`.
    """

    step: Step
    values: Sequence[Value]
    totals: list[ArrayLike]
    in_phrase: Array | None

    @property
    def active(self) -> list[int]:
        """The positions of the operands in parts."""
        return [i for i, value in enumerate(self.values) if isinstance(value, Parts)]

    @property
    def parts(self) -> list[Parts]:
        """The operands in parts."""
        return [value for value in self.values if isinstance(value, Parts)]

    def at(self, positions: Sequence[int]) -> Apply:
        """Return the step as a function of the operands at some positions."""

        def apply(*values: ArrayLike) -> Sequence[Array]:
            operands = list(self.totals)
            for position, value in zip(positions, values, strict=True):
                operands[position] = value
            return bind(self.step.eqn, operands)

        return apply

    @property
    def apply(self) -> Apply:
        """The step as a function of the operands in parts."""
        return self.at(self.active)


class _Decomposer:
    """One pass through a function, or through one step of a loop.

    Each rule returns the parts of the outputs of a kind of step, and `None` for any other step.

    Args:
        structure: the function.
        step_in_phrase: whether the step of the loop is in the phrase; `None` outside of loops.
    """

    def __init__(self, structure: Structure, step_in_phrase: Array | None) -> None:
        self.structure, self.step_in_phrase = structure, step_in_phrase
        self.env: dict[Var, Value] = {}
        # In the order in which they are tried.
        self.rules = (
            self._statistic,
            self._linear,
            self._normalisation,
            self._softmax,
            self._product,
            self._activation,
        )

    def run(self, inputs: Sequence[Value]) -> list[Value]:
        """Return the outputs, those that depend on the input in parts."""
        flat = self.structure.flat
        self.env |= dict(zip(flat.inputs, inputs, strict=True)) | flat.constants
        for step in flat.steps:
            values = [self._read(atom) for atom in step.inputs]
            with jax.named_scope(step.stack):
                outputs = self._step(step, values)
            self.env.update(zip(step.outputs, outputs, strict=True))
        return [self._read(atom) for atom in flat.outputs]

    def _read(self, atom: Atom) -> Value:
        return self.env[atom] if isinstance(atom, Var) else atom.val

    def _total(self, atom: Atom) -> ArrayLike:
        value = self._read(atom)
        return value.total if isinstance(value, Parts) else value

    def _parts(self, var: Var) -> Parts:
        value = self.env[var]
        assert isinstance(value, Parts)
        return value

    def _step(self, step: Step, values: list[Value]) -> Sequence[Value]:
        """Compute the outputs of a step."""
        if step.name == "scan" and any(isinstance(value, Parts) for value in values):
            return self._scan(step, values)
        if step.name == "cond" and any(map(self.structure.is_active, step.outputs)):
            return self._cond(step, values)
        totals = [self._total(atom) for atom in step.inputs]
        if not any(map(self.structure.is_active, step.outputs)):
            return bind(step.eqn, totals)
        if step.name == "while":
            raise ValueError(unsupported(step, "contextual decomposition"))
        operands = _Operands(step, values, totals, self._in_phrase(step, values))
        splits = self._split(operands)
        return [
            Parts(*split, operands.in_phrase) if self.structure.is_active(var) else total
            for var, split, total in zip(step.outputs, splits, bind(step.eqn, totals), strict=True)
        ]

    def _split(self, operands: _Operands) -> list[Split]:
        """Return the parts of a step's outputs, by the first rule that applies."""
        for rule in self.rules:
            splits = rule(operands)
            if splits is not None:
                return splits
        return jointly(operands.apply, operands.parts)

    # One rule for each kind of step.

    def _statistic(self, operands: _Operands) -> list[Split] | None:
        """Hold the scale of a normalisation constant."""
        if not self.structure.facts[operands.step.outputs[0]].norm:
            return None
        (value,) = bind(operands.step.eqn, operands.totals)
        zero = jnp.zeros_like(value)
        return [Split(zero, zero, value)]

    def _linear(self, operands: _Operands) -> list[Split] | None:
        structure, step = self.structure, operands.step
        linear = structure.lays_out(step) or structure.scales(step) or structure.contracts(step)
        sums = structure.shifts(step) or structure.adds(step) or step.name in SUMMING
        return linearly(operands.apply, operands.parts) if linear or sums else None

    def _normalisation(self, operands: _Operands) -> list[Split] | None:
        """Hold the statistic by which a signal is scaled constant."""
        signal = self._normalised(operands.step)
        if signal is None:
            return None
        value = operands.values[signal]
        assert isinstance(value, Parts)
        return linearly(operands.at([signal]), [value])

    def _softmax(self, operands: _Operands) -> list[Split] | None:
        """Divide a softmax as a whole, not step by step."""
        softmax = self.structure.softmaxes.get(operands.step)
        if softmax is None or softmax.masks or not softmax.is_plain:
            return None
        logits, axes = softmax.logits, softmax.axes
        return jointly(lambda z: [jax.nn.softmax(z, axes)], [self._parts(logits)])

    def _product(self, operands: _Operands) -> list[Split] | None:
        """Multiply all pairs of parts.

        The relevant part is that of the pairs in which the phrase meets itself or a bias.
        """
        step = operands.step
        if step.name not in ("mul", *CONTRACTING) or len(operands.active) != 2:
            return None
        if self._is_activation(step):
            return None

        def times(a: Array, b: Array) -> Array:
            return operands.apply(a, b)[0]

        first, second = operands.parts
        whole = times(first.total, second.total)
        state = self._state_of_gate(step)
        if state is not None:  # the gate on what a state shows is not divided
            relevant = (
                times(first.relevant, second.total)
                if state == 0
                else times(first.total, second.relevant)
            )
        else:
            relevant = times(first.relevant, second.relevant + second.bias)
            relevant = relevant + times(first.bias, second.relevant)
            in_phrase = operands.in_phrase
            if self.step_in_phrase is not None:
                in_phrase = self.step_in_phrase.astype(whole.dtype)
            assert in_phrase is not None
            relevant = relevant + in_phrase * times(first.bias, second.bias)
        return [Split(relevant, whole - relevant, jnp.zeros_like(whole))]

    def _activation(self, operands: _Operands) -> list[Split] | None:
        """Divide an activation in several steps as a whole."""
        structure, step = self.structure, operands.step
        source = activation(structure, step)
        if source is None or len(structure.actives(step)) < 2:
            return None
        whole = function_between(structure, source, step.outputs[0], self._total)
        return jointly(lambda value: [whole(value)], [self._parts(source)])

    # How steps are told apart.

    def _normalised(self, step: Step) -> int | None:
        """Return the operand that is scaled by a statistic over its own features."""
        if step.name not in ("mul", "div") or len(self.structure.actives(step)) != 2:
            return None
        first, second = step.inputs
        if not isinstance(first, Var) or not isinstance(second, Var):
            return None
        facts = self.structure.facts
        statistic = facts[second].norm or step.name == "div"
        if statistic and is_normalised_by(self.structure, first, second):
            return 0
        statistic = facts[first].norm and step.name == "mul"
        return 1 if statistic and is_normalised_by(self.structure, second, first) else None

    def _is_activation(self, step: Step) -> bool:
        """Return whether both operands of a product are elementwise functions of one value."""
        gates = [self.structure.facts[v].is_gate for v in self.structure.actives(step)]
        return sum(gates) != 1 and activation(self.structure, step) is not None

    def _state_of_gate(self, step: Step) -> int | None:
        """Return which operand of a product with a gate is an activation of a sum over time."""
        for i, atom in enumerate(step.inputs):
            other = self.structure.fact(step.inputs[1 - i])
            producer = self.structure.producers.get(atom) if isinstance(atom, Var) else None
            if producer is None or not other.is_gate or self.structure.fact(atom).is_gate:
                continue
            source = activation(self.structure, producer)
            if source is not None and not self.structure.is_preactivation(source):
                return i
        return None

    def _in_phrase(self, step: Step, operands: Sequence[Value]) -> Array | None:
        """Return which elements of a step's output depend on the phrase; `None` in loops."""
        if self.step_in_phrase is not None:
            return None
        structure, out = self.structure, step.outputs[0]
        masks = [
            value.in_phrase
            for value in operands
            if isinstance(value, Parts) and value.in_phrase is not None
        ]
        if structure.lays_out(step) or structure.contracts(step):
            # Weights of one reach every element that a feature contributes to.
            fill = jnp.ones_like if structure.contracts(step) else jnp.zeros_like
            values = [
                value.in_phrase
                if isinstance(value, Parts)
                else (fill(value) if _is_floating(atom) else value)
                for atom, value in zip(step.inputs, operands, strict=True)
            ]
            return jnp.minimum(bind(step.eqn, values)[0], 1)
        if is_elementwise(step):
            return jnp.broadcast_to(_largest(masks), out.shape).astype(out.aval.dtype)
        anywhere = _largest([jnp.max(mask) for mask in masks]) > 0
        return jnp.broadcast_to(anywhere, out.shape).astype(out.aval.dtype)

    # Branches and loops.

    def _cond(self, step: Step, values: list[Value]) -> list[Value]:
        """Decompose the branch that is taken; what is constant there is a bias."""
        in_phrase = self._in_phrase(step, values)

        def branch(body: Structure) -> Callable[[list[Value]], list[Value]]:
            def run(operands: list[Value]) -> list[Value]:
                outputs = _Decomposer(body, self.step_in_phrase).run(operands)
                return [
                    self._as_output(value, var, in_phrase)
                    for value, var in zip(outputs, step.outputs, strict=True)
                ]

            return run

        branches = [branch(body) for body in self.structure.inner[step]]
        taken: list[Value] = jax.lax.switch(self._total(step.inputs[0]), branches, values[1:])
        return taken

    def _as_output(self, value: Value, var: Var, in_phrase: Array | None) -> Value:
        """Return a value in parts if the output of some branch is."""
        if not self.structure.is_active(var):
            return jnp.asarray(value.total if isinstance(value, Parts) else value)
        mask = None if in_phrase is None else jnp.broadcast_to(jnp.max(in_phrase), var.shape)
        if isinstance(value, Parts):
            return value if value.in_phrase is not None else value._replace(in_phrase=mask)
        zero = jnp.zeros(var.shape, var.aval.dtype)
        return Parts(zero, zero, zero + value, None if mask is None else zero)

    def _scan(self, step: Step, values: list[Value]) -> list[Value]:
        """Run a loop whose operands are in parts."""
        (body,) = self.structure.inner[step]
        n_consts, n_carry = step.counts
        stop = n_consts + n_carry
        carried = [
            in_parts(value) if body.facts[var].active and n_consts <= i < stop else value
            for i, (var, value) in enumerate(zip(body.flat.inputs, values, strict=True))
        ]
        bare = [without_mask(value) for value in carried]
        consts, init, xs = bare[:n_consts], bare[n_consts:stop], bare[stop:]
        steps = self._steps_in_phrase(step, values[stop:])

        def advance(
            carry: list[Value], now: tuple[list[Value], Array]
        ) -> tuple[list[Value], list[Value]]:
            xs, in_phrase = now
            outputs = _Decomposer(body, in_phrase).run([*consts, *carry, *xs])
            kept = [
                in_parts(out) if isinstance(before, Parts) else out
                for out, before in zip(outputs[:n_carry], carry, strict=True)
            ]
            return kept, outputs[n_carry:]

        options = {name: step.eqn.params[name] for name in ("length", "reverse", "unroll")}
        carry, ys = jax.lax.scan(advance, init, (xs, steps), **options)
        if self.step_in_phrase is not None:
            return [*carry, *ys]
        any_step = steps.any()
        return [
            *(with_mask(value, any_step) for value in carry),
            *(with_mask(value, steps) for value in ys),
        ]

    def _steps_in_phrase(self, step: Step, xs: Sequence[Value]) -> Array:
        """Return which steps of a loop read a feature of the phrase."""
        length = step.eqn.params["length"]
        if self.step_in_phrase is not None:  # the steps of an inner loop belong to one outer step
            return jnp.full(length, self.step_in_phrase)
        steps = jnp.zeros(length, bool)
        for value in xs:
            if isinstance(value, Parts) and value.in_phrase is not None:
                steps = steps | (value.in_phrase > 0).reshape(length, -1).any(1)
        return steps


def _largest(masks: Sequence[Array]) -> Array:
    """Return the elementwise maximum."""
    return functools.reduce(lambda a, b: jnp.maximum(a, b), masks)


def _is_floating(atom: Atom) -> bool:
    return bool(jnp.issubdtype(atom.aval.dtype, jnp.floating))
