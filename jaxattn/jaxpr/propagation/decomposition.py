"""Contextual decomposition: every value in a relevant part, an irrelevant one, and a bias.

Forward only: what is linear acts on each part alone, a nonlinearity is split by the mean over the
orders in which the parts may arrive, and the parts of a product meet each other.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxattn.jaxpr.flat import Atom, Flat, Step, Var, is_elementwise
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.propagation.lrp import refusal
from jaxattn.jaxpr.structure.activations import activation, function_between
from jaxattn.jaxpr.structure.facts import Fact
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.hoisted import analyse_whole
from jaxattn.jaxpr.structure.normalisations import is_normalised_by
from jaxattn.jaxpr.structure.primitive_classes import CONTRACTING, SUMMING


class Parts(NamedTuple):
    """A value that depends on the input, and which cells of it belong to the phrase alone."""

    relevant: Any
    irrelevant: Any
    bias: Any
    inside: Any

    @property
    def total(self) -> Any:
        """The value itself."""
        return self.relevant + self.irrelevant + self.bias


def decompose(
    score: Callable[..., Any], x: Any, mask: Any
) -> tuple[tuple[Any, Any, Any], list[Any]]:
    """Splits a score into the part of a phrase, the part of all else, and a bias.

    Args:
        score: answers the score, and what else is wanted of it.
        x: the input.
        mask: which of its cells are the phrase.

    Returns:
        relevant part, irrelevant part and bias of the score; and all that `score` answers, flat.

    Raises:
        ValueError: for side effects, or a branch or a `while` that the input goes through.
    """
    closed = jax.make_jaxpr(lambda x: score(x))(x)
    if closed.effects:
        raise ValueError(
            f"fn has side effects ({', '.join(sorted(map(str, closed.effects)))}), which cannot be "
            "decomposed: leave them out (jax.debug.print, io_callback)"
        )
    structure = analyse_whole(closed, [Fact(active=True, depends_on_input=True)])
    zero = jnp.zeros_like(x)
    parts = Parts(jnp.where(mask, x, 0), jnp.where(mask, 0, x), zero, mask.astype(x.dtype) + zero)
    outputs = _Walk(structure, None).run([parts])
    first = outputs[0]
    if not isinstance(first, Parts):
        first = Parts(jnp.zeros_like(first), jnp.zeros_like(first), first, None)
    return first[:3], [o.total if isinstance(o, Parts) else o for o in outputs]


class _Walk:
    """One pass through a function, or through one turn of a loop."""

    def __init__(self, structure: Structure, inside: Any) -> None:
        # Whether the turn of the loop is one of the phrase's; `None` outside of loops.
        self.structure, self.inside = structure, inside
        self.env: dict[Var, Any] = {}

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """The outputs, those that depend on the input in parts."""
        flat: Flat = self.structure.flat
        self.env |= dict(zip(flat.inputs, inputs, strict=True)) | flat.constants
        for step in flat.steps:
            given = [self._read(atom) for atom in step.inputs]
            with jax.named_scope(step.stack):
                outputs = self._step(step, given)
            self.env.update(zip(step.outputs, outputs, strict=True))
        return [self._read(atom) for atom in flat.outputs]

    def _read(self, atom: Atom) -> Any:
        return self.env[atom] if isinstance(atom, Var) else atom.val

    def _total(self, atom: Atom) -> Any:
        value = self._read(atom)
        return value.total if isinstance(value, Parts) else value

    def _step(self, step: Step, given: list[Any]) -> Sequence[Any]:
        structure = self.structure
        active = [i for i, value in enumerate(given) if isinstance(value, Parts)]
        if step.name == "scan" and active:
            return self._scan(step, given)
        totals = [self._total(atom) for atom in step.inputs]
        if not any(map(structure.is_active, step.outputs)):
            return bind(step.eqn, totals)
        if step.name in ("while", "cond"):
            raise ValueError(refusal(step, "contextual decomposition"))

        def apply(*values: Any) -> Sequence[Any]:
            operands = list(totals)
            for i, value in zip(active, values, strict=True):
                operands[i] = value
            return bind(step.eqn, operands)

        if self.structure.facts[step.outputs[0]].norm:  # the scale of a normalisation is held
            (value,) = bind(step.eqn, totals)
            zero = jnp.zeros_like(value)
            return [Parts(zero, zero, value, self._inside(step, given, active))]
        parts: list[Parts] = [given[i] for i in active]
        inside = self._inside(step, given, active)
        linear = structure.lays_out(step) or structure.scales(step) or structure.contracts(step)
        sums = structure.shifts(step) or structure.adds(step) or step.name in SUMMING
        multiplies = step.name in ("mul", *CONTRACTING) and len(active) == 2
        scaled = self._normalises(step)
        if linear or sums:
            split = _linearly(apply, parts)
        elif scaled is not None:

            def scale(value: Any) -> Sequence[Any]:
                return bind(step.eqn, [*totals[:scaled], value, *totals[scaled + 1 :]])

            split = _linearly(scale, [given[scaled]])
        elif step in structure.softmaxes:
            logits, axes = structure.softmaxes[step]
            split = _jointly(lambda z: [jax.nn.softmax(z, axes)], [self.env[logits]])
        elif multiplies and not self._is_cellwise(step):
            split = [self._product(step, apply, parts, inside)]
        else:
            source = activation(structure, step)
            if source is not None and len(structure.actives(step)) > 1:
                whole = function_between(structure, source, step.outputs[0], self._total)
                split = _jointly(lambda value: [whole(value)], [self.env[source]])
            else:
                split = _jointly(apply, parts)
        return [
            Parts(*three, inside) if structure.is_active(var) else value
            for var, three, value in zip(step.outputs, split, bind(step.eqn, totals), strict=True)
        ]

    def _normalises(self, step: Step) -> int | None:
        """Which operand of a product or quotient is scaled by a statistic over its own cells."""
        first, second = (*step.inputs, None)[:2]
        if step.name not in ("mul", "div") or not isinstance(first, Var):
            return None
        if not isinstance(second, Var) or len(self.structure.actives(step)) != 2:
            return None
        norm = self.structure.facts[second].norm or step.name == "div"
        if norm and is_normalised_by(self.structure, first, second):
            return 0
        norm = self.structure.facts[first].norm and step.name == "mul"
        return 1 if norm and is_normalised_by(self.structure, second, first) else None

    def _is_cellwise(self, step: Step) -> bool:
        """Whether both operands of a product are functions of the same single cells."""
        gates = [self.structure.facts[v].is_gate for v in self.structure.actives(step)]
        return sum(gates) != 1 and activation(self.structure, step) is not None

    def _product(
        self, step: Step, apply: Callable[..., Sequence[Any]], parts: list[Parts], inside: Any
    ) -> tuple[Any, Any, Any]:
        def times(a: Any, b: Any) -> Any:
            return apply(a, b)[0]

        first, second = parts
        whole = times(first.total, second.total)
        signal = self._state_behind(step)
        if signal is not None:  # the gate on what a state shows is not taken apart
            relevant = (
                times(first.relevant, second.total)
                if signal == 0
                else times(first.total, second.relevant)
            )
        else:
            relevant = times(first.relevant, second.relevant + second.bias)
            relevant = relevant + times(first.bias, second.relevant)
            here = inside if self.inside is None else self.inside.astype(whole.dtype)
            relevant = relevant + here * times(first.bias, second.bias)
        return relevant, whole - relevant, jnp.zeros_like(whole)

    def _state_behind(self, step: Step) -> int | None:
        """Which operand of a product with a gate is an activation of something that adds up."""
        for i, atom in enumerate(step.inputs):
            other = self.structure.fact(step.inputs[1 - i])
            maker = self.structure.producers.get(atom) if isinstance(atom, Var) else None
            if maker is None or not other.is_gate or self.structure.fact(atom).is_gate:
                continue
            source = activation(self.structure, maker)
            if source is not None and not self.structure.is_preactivation(source):
                return i
        return None

    def _inside(self, step: Step, given: list[Any], active: list[int]) -> Any:
        """Which cells belong to the phrase; not followed inside of loops, where turns do."""
        if self.inside is not None:
            return None
        (out, *_) = step.outputs
        flags = [given[i].inside for i in active]
        if self.structure.lays_out(step) or self.structure.contracts(step):
            operands = list(given)
            for i, value in enumerate(given):
                if i in active:
                    operands[i] = value.inside
                elif jnp.issubdtype(step.inputs[i].aval.dtype, jnp.floating):
                    fill = jnp.ones_like if self.structure.contracts(step) else jnp.zeros_like
                    operands[i] = fill(value)
            return jnp.minimum(bind(step.eqn, operands)[0], 1)
        if is_elementwise(step):
            here = functools.reduce(jnp.maximum, flags)
            return jnp.broadcast_to(here, out.shape).astype(out.aval.dtype)
        anywhere = sum(jnp.max(f) for f in flags) > 0
        return jnp.broadcast_to(anywhere, out.shape).astype(out.aval.dtype)

    def _scan(self, step: Step, given: list[Any]) -> list[Any]:
        (inner,) = self.structure.inner[step]
        n_consts, n_carry = step.counts
        stop = n_consts + n_carry
        carried = inner.flat.inputs[n_consts:stop]
        init = [
            value if isinstance(value, Parts) or not inner.facts[var].active else _irrelevant(value)
            for var, value in zip(carried, given[n_consts:stop], strict=True)
        ]
        flags = [v.inside for v in given[stop:] if isinstance(v, Parts) and v.inside is not None]
        length = step.eqn.params["length"]
        turns = jnp.zeros(length, bool) if self.inside is None else jnp.full(length, self.inside)
        for flag in flags:
            turns = turns | (flag > 0).reshape(length, -1).any(1)

        def bare(value: Any) -> Any:
            return value._replace(inside=None) if isinstance(value, Parts) else value

        def turn(carry: list[Any], now: tuple[list[Any], Any]) -> tuple[list[Any], list[Any]]:
            xs, inside = now
            outputs = _Walk(inner, inside).run([*map(bare, given[:n_consts]), *carry, *xs])
            kept = [
                out if isinstance(out, Parts) or not isinstance(before, Parts) else _irrelevant(out)
                for out, before in zip(outputs[:n_carry], carry, strict=True)
            ]
            return kept, outputs[n_carry:]

        options = {name: step.eqn.params[name] for name in ("length", "reverse", "unroll")}
        start = [bare(value) for value in init], [bare(value) for value in given[stop:]]
        carry, ys = jax.lax.scan(turn, start[0], (start[1], turns), **options)
        if self.inside is not None:
            return [*carry, *ys]

        def flagged(value: Any, stacked: bool) -> Any:
            if not isinstance(value, Parts):
                return value
            shape = value.relevant.shape
            flag = turns.reshape(length, *[1] * (len(shape) - 1)) if stacked else turns.any()
            flag = jnp.broadcast_to(flag, shape).astype(value.relevant.dtype)
            return value._replace(inside=flag)

        return [flagged(v, False) for v in carry] + [flagged(v, True) for v in ys]


def _irrelevant(value: Any) -> Parts:
    """What does not depend on the input is no part of the phrase."""
    value = jnp.asarray(value)
    return Parts(jnp.zeros_like(value), value, jnp.zeros_like(value), None)


def _linearly(
    apply: Callable[..., Sequence[Any]], parts: list[Parts]
) -> list[tuple[Any, Any, Any]]:
    """A linear step acts on each part alone; its constants join the bias."""
    biases = [p.bias for p in parts]
    bias, relevant = jax.jvp(apply, biases, [p.relevant for p in parts])
    _, irrelevant = jax.jvp(apply, biases, [p.irrelevant for p in parts])
    return list(zip(relevant, irrelevant, bias, strict=True))


def _jointly(apply: Callable[..., Sequence[Any]], parts: list[Parts]) -> list[tuple[Any, Any, Any]]:
    """The mean over the two orders in which relevant and irrelevant part come to the bias.

    Where the function has no value at some of the parts, as a logarithm, all is irrelevant.
    """
    bias = apply(*[p.bias for p in parts])
    with_relevant = apply(*[p.relevant + p.bias for p in parts])
    with_irrelevant = apply(*[p.irrelevant + p.bias for p in parts])
    whole = apply(*[p.total for p in parts])
    split = []
    for b, r, i, w in zip(bias, with_relevant, with_irrelevant, whole, strict=True):
        if not jnp.issubdtype(w.dtype, jnp.inexact):
            split.append((w, w, w))
            continue
        relevant = jnp.asarray(0.5, b.dtype) * (r - b + w - i)
        known = jnp.isfinite(relevant) & jnp.isfinite(b)
        relevant, b = jnp.where(known, relevant, 0), jnp.where(known, b, 0)
        split.append((relevant, w - b - relevant, b))
    return split
