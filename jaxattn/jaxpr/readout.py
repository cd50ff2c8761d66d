"""The logits of a function that ends in a softmax or a sigmoid."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxattn.jaxpr.flat import flatten
from jaxattn.jaxpr.interpreter import JaxprAtom, Value, evaluate, struct_of, sub_jaxprs
from jaxattn.jaxpr.structure.softmaxes import softmax_ending_in

#: Primitives that only lay out the elements of their operand.
_LAYOUT = {"reshape", "squeeze", "convert_element_type", "broadcast_in_dim", "transpose", "copy"}


class _Logits(NamedTuple):
    """The logits of a softmax, and what it multiplies them by."""

    variable: JaxprAtom
    scale: float


def before_softmax(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return the function that returns the logits of `fn`; see `jaxattn.without_softmax`."""

    def logits(*inputs: PyTree) -> PyTree:
        leaves = jax.tree.leaves(inputs)
        fresh = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)
        closed, output = fresh(*inputs)
        flat = jax.make_jaxpr(lambda *args: evaluate(closed, args, _inline))(*leaves)
        if len(flat.jaxpr.outvars) != 1:
            raise ValueError(
                "without_softmax: `fn` must return one array, "
                f"got an output of {len(flat.jaxpr.outvars)} arrays."
            )
        producers = {var: eqn for eqn in flat.jaxpr.eqns for var in eqn.outvars}
        last = _producer_behind(flat.jaxpr.outvars[0], producers)
        source = _logits_of(flat, last)
        if last is None or source is None:
            end = "its input" if last is None else f"`{last.primitive.name}`"
            raise ValueError(
                "without_softmax: `fn` must be a function that ends in a softmax or a sigmoid, "
                f"not in {end}."
            )
        operands: dict[JaxprAtom, Value] = {}

        def skip(eqn: jex.JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value] | None:
            """Return the logits for the last equation; the layout after it stays as it is."""
            found = zip(eqn.invars, inputs, strict=True)
            operands.update((a, v) for a, v in found if a is source.variable)
            if eqn is not last:
                return None
            z = jnp.asarray(operands[source.variable])
            scaled = z if source.scale == 1.0 else z * jnp.asarray(source.scale, z.dtype)
            return [scaled.reshape(struct_of(eqn.outvars[0]).shape)]

        (z,) = evaluate(flat, leaves, skip)
        if last.primitive.name == "logistic" and z.shape[-1:] in ((), (1,)):
            z = z if z.ndim else z[None]
            return jnp.concatenate([-z, z], -1)
        return jax.tree.unflatten(jax.tree.structure(output), [z])

    return logits


def ends_in_softmax(fn: Callable[..., PyTree], *inputs: PyTree) -> bool:
    """Return whether an output of `fn` is the result of a softmax or of a sigmoid."""
    closed = jax.make_jaxpr(lambda *args: fn(*args))(*inputs)
    flat = jax.make_jaxpr(lambda *args: evaluate(closed, args, _inline))(*jax.tree.leaves(inputs))
    producers = {var: eqn for eqn in flat.jaxpr.eqns for var in eqn.outvars}
    last = [_producer_behind(var, producers) for var in flat.jaxpr.outvars]
    return any(_logits_of(flat, eqn) is not None for eqn in last)


def _inline(eqn: jex.JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value] | None:
    custom = eqn.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call"))
    if eqn.primitive.name == "jit" or (custom and "softmax" in str(eqn.params.get("name", ""))):
        (called,) = sub_jaxprs(eqn)
        return evaluate(called, inputs, _inline)
    return None


def _producer_behind(
    atom: JaxprAtom, producers: Mapping[jex.Var, jex.JaxprEqn]
) -> jex.JaxprEqn | None:
    """Return the equation that computed the elements of `atom`, past changes of layout."""
    while not isinstance(atom, jex.Literal):
        eqn = producers.get(atom)
        if eqn is None or eqn.primitive.name not in _LAYOUT:
            return eqn
        atom = next((a for a in eqn.invars if not isinstance(a, jex.Literal)), eqn.invars[0])
    return None


def _logits_of(closed: jex.ClosedJaxpr, eqn: jex.JaxprEqn | None) -> _Logits | None:
    """Return the logits of the logistic or of the softmax that ends in `eqn`, if there is one."""
    if eqn is None:
        return None
    if eqn.primitive.name == "logistic":
        return _Logits(eqn.invars[0], 1.0)
    flat = flatten(closed)
    last = next((step for step in flat.steps if step.eqn is eqn), None)
    producers = {var: step for step in flat.steps for var in step.outputs}
    softmax = None if last is None else softmax_ending_in(last, producers)
    if softmax is None or softmax.factors or not _in_order(softmax.layout):
        return None
    variables = dict(zip(flat.inputs, closed.jaxpr.invars, strict=True))
    for step in flat.steps:
        variables |= zip(step.outputs, step.eqn.outvars, strict=True)
    variable = variables.get(softmax.logits)
    return None if variable is None else _Logits(variable, softmax.scale)


def _in_order(layout: Sequence[int]) -> bool:
    """Return whether the logits have the elements of the output in the same order."""
    axes = [axis for axis in layout if axis >= 0]
    return axes == sorted(axes)
