"""Finds the softmax or the sigmoid with which a function ends, and stops before it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from jaxattn.jaxpr.interpreter import evaluate, sub_jaxprs

#: Equations that only lay the same numbers out otherwise.
_LAYOUT = {"reshape", "squeeze", "convert_element_type", "broadcast_in_dim", "transpose", "copy"}
#: What lies between a softmax's logits and the maximum that it subtracts.
_MAXIMUM = _LAYOUT | {"stop_gradient", "max"}


def before_softmax(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function that answers the logits of `fn`; see `jaxattn.without_softmax`."""

    def logits(*inputs: Any) -> Any:
        leaves = jax.tree.leaves(inputs)
        fresh = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)
        closed, output = fresh(*inputs)
        flat = jax.make_jaxpr(lambda *args: evaluate(closed, args, _inline))(*leaves)
        if len(flat.jaxpr.outvars) != 1:
            raise ValueError(
                f"without_softmax wants an fn with one output array, got {len(flat.jaxpr.outvars)}"
            )
        producers = {var: eqn for eqn in flat.jaxpr.eqns for var in eqn.outvars}
        last = _behind(flat.jaxpr.outvars[0], producers, _LAYOUT)
        source = _logits_of(last, producers)
        if source is None:
            end = "its input" if last is None else f"`{last.primitive.name}`"
            raise ValueError(
                f"without_softmax wants an fn that ends in a softmax or a sigmoid, not in {end}"
            )
        seen: dict[Any, Any] = {}

        def skip(eqn: jex.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any] | None:
            """Answers the logits for the last equation; what lays them out stays as it is."""
            seen.update((a, v) for a, v in zip(eqn.invars, inputs, strict=True) if a is source)
            return [seen[source]] if eqn is last else None

        (z,) = evaluate(flat, leaves, skip)
        if last.primitive.name == "logistic" and z.shape[-1:] in ((), (1,)):
            z = z if z.ndim else z[None]
            return jnp.concatenate([-z, z], -1)
        return jax.tree.unflatten(jax.tree.structure(output), [z])

    return logits


def ends_in_softmax(fn: Callable[..., Any], *inputs: Any) -> bool:
    """Whether the output of `fn` is that of a softmax or of a sigmoid."""
    closed = jax.make_jaxpr(lambda *args: fn(*args))(*inputs)
    flat = jax.make_jaxpr(lambda *args: evaluate(closed, args, _inline))(*jax.tree.leaves(inputs))
    producers = {var: eqn for eqn in flat.jaxpr.eqns for var in eqn.outvars}
    last = [_behind(var, producers, _LAYOUT) for var in flat.jaxpr.outvars]
    return any(_logits_of(eqn, producers) is not None for eqn in last)


def _inline(eqn: jex.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any] | None:
    custom = eqn.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call"))
    if eqn.primitive.name == "jit" or (custom and "softmax" in str(eqn.params.get("name", ""))):
        (called,) = sub_jaxprs(eqn)
        return evaluate(called, inputs, _inline)
    return None


def _behind(atom: Any, producers: dict[Any, Any], through: set[str]) -> Any:
    """The equation that made the numbers of `atom`, past those that are named in `through`."""
    while True:
        eqn = None if isinstance(atom, jex.Literal) else producers.get(atom)
        if eqn is None or eqn.primitive.name not in through:
            return eqn
        atom = next((a for a in eqn.invars if not isinstance(a, jex.Literal)), eqn.invars[0])


def _logits_of(eqn: Any, producers: dict[Any, jex.JaxprEqn]) -> Any:
    """The operand of a logistic or of a softmax whose last equation is `eqn`, if it is one."""
    if eqn is None:
        return None
    if eqn.primitive.name == "logistic":
        return eqn.invars[0]
    if eqn.primitive.name != "div":
        return None
    exponential = _behind(eqn.invars[0], producers, _LAYOUT)
    total = _behind(eqn.invars[1], producers, _LAYOUT)
    if exponential is None or exponential.primitive.name != "exp":
        return None
    if total is None or total.primitive.name != "reduce_sum":
        return None
    summed = _behind(total.invars[0], producers, _LAYOUT)
    if summed is None or summed.primitive.name != "exp":
        return None
    if summed.invars[0] is not exponential.invars[0]:
        return None
    shifted = _behind(exponential.invars[0], producers, _LAYOUT)
    if shifted is not None and shifted.primitive.name == "sub":
        z, shift = shifted.invars
        maximum = _behind(shift, producers, _MAXIMUM)
        if (
            maximum is not None
            and maximum.primitive.name == "reduce_max"
            and maximum.invars[0] is z
        ):
            return z
    return exponential.invars[0]
