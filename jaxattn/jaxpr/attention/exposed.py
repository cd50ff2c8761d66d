"""Attention weights as named intermediates: a function that tags its weights."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxattn.jaxpr.attention.discovery import Layout, Weights
from jaxattn.jaxpr.flat import path_of
from jaxattn.jaxpr.interpreter import Body, Value, bind, evaluate, reemit, sub_jaxprs
from jaxattn.jaxpr.names import tag_of


class _Tagging(NamedTuple):
    """The weights to tag, by their equations.

    Attributes:
        weights: the weights by their equation and its path; several for calls of equal paths.
        holders: the equations inside of which there are weights.
        calls: how often each equation was met.
    """

    weights: dict[tuple[int, str], list[Weights]]
    holders: set[int]
    calls: dict[tuple[int, str], int]


def exposed(closed: jex.ClosedJaxpr, found: Iterable[Weights]) -> jex.ClosedJaxpr:
    """Return a function that tags its attention weights, laid out as (heads, queries, keys).

    Args:
        closed: the function.
        found: its attention weights.
    """
    by_equation: dict[tuple[int, str], list[Weights]] = {}
    for weights in found:
        by_equation.setdefault((id(weights.step.eqn), weights.step.path), []).append(weights)
    holders: set[int] = set()
    _add_holders(closed.jaxpr.eqns, {equation for equation, _ in by_equation}, holders)
    tagging = _Tagging(by_equation, holders, {})
    return jax.make_jaxpr(lambda *args: _walk(closed, args, "", tagging))(
        *(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars)
    )


def _add_holders(eqns: Sequence[jex.JaxprEqn], wanted: set[int], holders: set[int]) -> bool:
    """Add the equations inside of which there are wanted ones, and return whether any are."""
    inside = False
    for eqn in eqns:
        held = [_add_holders(body.jaxpr.eqns, wanted, holders) for body in sub_jaxprs(eqn)]
        if any(held):
            holders.add(id(eqn))
        inside |= any(held) or id(eqn) in wanted
    return inside


def _walk(
    closed: jex.ClosedJaxpr, args: Sequence[Value], prefix: str, tagging: _Tagging
) -> tuple[Value, ...]:
    """Evaluate a jaxpr, and tag weights."""

    def rule(eqn: jex.JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value] | None:
        path = path_of(prefix, eqn)
        weights = _weights_of(eqn, path, tagging)
        if weights is not None:
            # A tag of the user is replaced by that of its weights.
            value = inputs[0] if tag_of(eqn) else bind(eqn, inputs)[0]
            return [_tagged(value, weights)]
        if id(eqn) not in tagging.holders:
            return None
        is_custom = eqn.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call"))
        if is_custom:
            called = sub_jaxprs(eqn)[0]
            last = _last_equation(called)
            weights = None if last is None else _weights_of(last, path_of(path, last), tagging)
            if weights is not None:
                # The weights are the output: the custom derivative rule is kept.
                return [_tagged(bind(eqn, inputs)[0], weights)]
            return _walk(called, inputs, path, tagging)

        def inside(body: jex.ClosedJaxpr) -> Body:
            return lambda _, *args: (_walk(body, args, path, tagging), ())

        results = reemit(eqn, inputs, inside)
        assert results is not None
        return results[0]

    return tuple(evaluate(closed, args, rule))


def _weights_of(eqn: jex.JaxprEqn, path: str, tagging: _Tagging) -> Weights | None:
    """Return the weights that an equation computes, the next ones if it is called repeatedly."""
    key = id(eqn), path
    each = tagging.weights.get(key)
    if each is None:
        return None
    call = tagging.calls.get(key, 0)
    tagging.calls[key] = call + 1
    return each[call % len(each)]


def _last_equation(closed: jex.ClosedJaxpr) -> jex.JaxprEqn | None:
    """Return the equation that computes the only output of a jaxpr."""
    outputs = closed.jaxpr.outvars
    last = [eqn for eqn in closed.jaxpr.eqns if len(outputs) == 1 and outputs[0] in eqn.outvars]
    return last[0] if last else None


def _tagged(value: Array, weights: Weights) -> Array:
    """Tag weights in their layout, and return them as they were."""
    heads, queries, keys, dropped = layout = weights.layout
    order = (*dropped, *heads, *queries, *keys)
    ordered = jnp.transpose(value, order)
    tagged = checkpoint_name(ordered.reshape(_shape(ordered.shape, layout)), weights.name)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return jnp.transpose(tagged.reshape(ordered.shape), inverse)


def _shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """Return the shape (heads, queries, keys) of weights whose axes are in that order."""
    rest = shape[len(layout.dropped) :]
    count = len(layout.heads)
    heads = 1
    for size in rest[:count]:
        heads *= size
    return (heads, *rest[count:]) if count else rest
