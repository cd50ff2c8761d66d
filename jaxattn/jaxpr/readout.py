"""The logits of a function that ends in a softmax or a sigmoid."""

from collections.abc import Callable, Mapping, Sequence, Set

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxattn.jaxpr.interpreter import JaxprAtom, Value, evaluate, sub_jaxprs

#: Primitives that only lay out the elements of their operand.
_LAYOUT = {"reshape", "squeeze", "convert_element_type", "broadcast_in_dim", "transpose", "copy"}
#: Primitives between a softmax's logits and the maximum that it subtracts from them.
_TO_MAXIMUM = _LAYOUT | {"stop_gradient", "max"}


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
        last = _producer_behind(flat.jaxpr.outvars[0], producers, _LAYOUT)
        source = _logits_of(last, producers)
        if last is None or source is None:
            end = "its input" if last is None else f"`{last.primitive.name}`"
            raise ValueError(
                "without_softmax: `fn` must be a function that ends in a softmax or a sigmoid, "
                f"not in {end}."
            )
        operands: dict[JaxprAtom, Value] = {}

        def skip(eqn: jex.JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value] | None:
            """Return the logits for the last equation; the layout after it stays as it is."""
            operands.update((a, v) for a, v in zip(eqn.invars, inputs, strict=True) if a is source)
            return [operands[source]] if eqn is last else None

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
    last = [_producer_behind(var, producers, _LAYOUT) for var in flat.jaxpr.outvars]
    return any(_logits_of(eqn, producers) is not None for eqn in last)


def _inline(eqn: jex.JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value] | None:
    custom = eqn.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call"))
    if eqn.primitive.name == "jit" or (custom and "softmax" in str(eqn.params.get("name", ""))):
        (called,) = sub_jaxprs(eqn)
        return evaluate(called, inputs, _inline)
    return None


def _producer_behind(
    atom: JaxprAtom,
    producers: Mapping[jex.Var, jex.JaxprEqn],
    through: Set[str],
    name: str | None = None,
) -> jex.JaxprEqn | None:
    """Return the equation that computed the elements of `atom`, past some primitives.

    Args:
        atom: the value.
        producers: the equation that computes each value.
        through: the primitives to look through.
        name: the primitive that the equation must be of; `None` for any.
    """
    while not isinstance(atom, jex.Literal):
        eqn = producers.get(atom)
        if eqn is None or eqn.primitive.name not in through:
            matches = eqn is not None and name in (None, eqn.primitive.name)
            return eqn if matches else None
        atom = next((a for a in eqn.invars if not isinstance(a, jex.Literal)), eqn.invars[0])
    return None


def _logits_of(
    eqn: jex.JaxprEqn | None, producers: Mapping[jex.Var, jex.JaxprEqn]
) -> JaxprAtom | None:
    """Return the operand of the logistic or of the softmax that ends in `eqn`, if there is one."""
    if eqn is None:
        return None
    if eqn.primitive.name == "logistic":
        return eqn.invars[0]
    if eqn.primitive.name != "div":
        return None
    exponential = _producer_behind(eqn.invars[0], producers, _LAYOUT, "exp")
    total = _producer_behind(eqn.invars[1], producers, _LAYOUT, "reduce_sum")
    if exponential is None or total is None:
        return None
    summed = _producer_behind(total.invars[0], producers, _LAYOUT, "exp")
    if summed is None or summed.invars[0] is not exponential.invars[0]:
        return None
    shifted = _producer_behind(exponential.invars[0], producers, _LAYOUT, "sub")
    if shifted is not None:
        z, shift = shifted.invars
        maximum = _producer_behind(shift, producers, _TO_MAXIMUM, "reduce_max")
        if maximum is not None and maximum.invars[0] is z:
            return z
    return exponential.invars[0]
