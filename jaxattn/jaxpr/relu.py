"""Finds the ReLUs of a function, and changes which gradients they let through."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jaxattn.jaxpr.interpreter import descend, evaluate, sub_jaxprs

#: Functions that JAX writes with a ReLU and that are none; each is one named call.
_NO_RELU = {"celu", "hard_sigmoid", "sparse_sigmoid"}
#: Equations that only lay the same numbers out otherwise.
_LAYOUT = {"broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze", "transpose"}
#: Equations between a variance, which rounding may make negative, and its root.
_TO_ROOT = _LAYOUT | {"add", "concatenate", "gather", "mul", "slice"}


def rectified(fn: Callable[..., Any], *, gated: bool) -> Callable[..., Any]:
    """The same function, whose ReLUs let only positive gradients through.

    A ReLU is `max(x, 0)`, `where(x > 0, x, 0)` or a `clamp` at 0, by itself or inside of
    `jax.nn.relu` and `relu6`; an upper bound stops the gradient as ever. No other derivative rule
    is touched. A function with a derivative rule of its own is kept, whatever it is made of, and so
    is a `max` that only keeps a variance from turning negative before its root is taken.

    Args:
        fn: maps arrays to outputs.
        gated: whether the input must be positive too.

    Returns:
        a function with the outputs of `fn`. Called for an `fn` without a ReLU it warns.

    Raises:
        ValueError: when called, if a ReLU lies where it cannot be replaced, as in a `shard_map`.
    """

    def call(*inputs: Any) -> Any:
        relus: dict[jex.Var, int] = {}

        def prepare(closed: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
            opened = _open(closed)
            relus.update(_find(opened.jaxpr))
            return opened

        def rule(eqn: jex.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any] | None:
            name = eqn.primitive.name
            i = relus.get(eqn.outvars[0]) if eqn.outvars else None
            if i is not None and name == "min":
                return [_bounded(inputs[i], inputs[1 - i])]
            if i is not None:
                y = _relu(gated, inputs[i])
                return [_bounded(y, inputs[2]) if name == "clamp" else y]
            if name in ("jit", "while"):  # one that is no ReLU; one that no gradient passes
                return None
            outputs = descend(eqn, inputs, rule, prepare)
            if outputs is None and _hides_relu(eqn):
                raise ValueError(
                    f"fn has a ReLU inside of a `{name}`, where its gradient cannot be changed"
                )
            return outputs

        fresh = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)
        closed, output = fresh(*inputs)
        flat = evaluate(prepare(closed), jax.tree.leaves(inputs), rule)
        if not relus:
            warnings.warn("fn has no ReLU: this is its plain gradient", UserWarning, stacklevel=2)
        return jax.tree.unflatten(jax.tree.structure(output), flat)

    return call


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _relu(gated: bool, x: Any) -> Any:
    return jax.nn.relu(x)


def _relu_forward(gated: bool, x: Any) -> tuple[Any, Any]:
    return jax.nn.relu(x), x > 0


def _relu_backward(gated: bool, positive: Any, cotangent: Any) -> tuple[Any]:
    kept = jax.nn.relu(cotangent)
    return (jnp.where(positive, kept, 0) if gated else kept,)


_relu.defvjp(_relu_forward, _relu_backward)


def _bounded(y: Any, ceiling: Any) -> Any:
    """The smaller of the two; unlike that of `min` the gradient is 0, not half, on the bound."""
    return jax.lax.clamp(jnp.array(-jnp.inf, y.dtype), y, ceiling)


def _open(closed: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    """The jaxpr with all calls opened, so that one level shows what an operand is."""

    def rule(eqn: jex.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any] | None:
        called = _called(eqn)
        return None if called is None else evaluate(called, inputs, rule)

    structs = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
        for aval in closed.in_avals
    ]
    return jax.make_jaxpr(lambda *args: evaluate(closed, args, rule))(*structs)


def _called(eqn: jex.JaxprEqn) -> jex.ClosedJaxpr | None:
    """What a call runs, `jax.nn.relu` and `relu6` included, if it may be opened."""
    if eqn.primitive.name == "jit" and eqn.params["name"] not in _NO_RELU:
        return eqn.params["jaxpr"]
    if eqn.primitive.name == "custom_jvp_call":
        (called,) = sub_jaxprs(eqn)
        named = called.jaxpr.debug_info.func_name in ("relu", "relu6")
        return called if named and _find(_open(called).jaxpr) else None
    return None


def _find(jaxpr: jex.Jaxpr) -> dict[jex.Var, int]:
    """The ReLUs of an open jaxpr by their result: which operand is rectified.

    The `min` that bounds a ReLU is among them: which operand is bounded.
    """
    producers: dict[Any, jex.JaxprEqn] = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    under_root = _under_root(jaxpr)
    found: dict[Any, int] = {}

    def literal(atom: Any) -> Any:
        if isinstance(atom, jex.Literal):
            return atom.val
        eqn = producers.get(atom)
        if eqn is None or eqn.primitive.name not in _LAYOUT:
            return None
        return literal(eqn.invars[0])

    def is_zero(atom: Any) -> bool:
        value = literal(atom)
        return value is not None and not np.any(value)

    def rectified_operand(eqn: jex.JaxprEqn) -> int | None:
        match eqn.primitive.name, eqn.invars:
            case "max" | "min" as name, (a, b) if (literal(a) is None) != (literal(b) is None):
                i = 0 if literal(a) is None else 1
                rectifies = is_zero(eqn.invars[1 - i]) if name == "max" else eqn.invars[i] in found
                return i if rectifies else None
            case "clamp", (low, _, _) if is_zero(low):
                return 1
            case "select_n", (condition, a, b) if is_zero(a) or is_zero(b):
                i, tests = (2, ("gt", "ge")) if is_zero(a) else (1, ("lt", "le"))
                test = producers.get(condition)
                if test is not None and test.primitive.name in tests and is_zero(test.invars[1]):
                    return i if test.invars[0] is eqn.invars[i] else None
        return None

    for eqn in jaxpr.eqns:
        i = rectified_operand(eqn)
        if i is None or eqn.outvars[0] in under_root:
            continue
        aval: Any = eqn.outvars[0].aval
        if jnp.issubdtype(aval.dtype, jnp.floating):
            found[eqn.outvars[0]] = i
    return found


def _under_root(jaxpr: jex.Jaxpr) -> set[Any]:
    """The variables of which nothing is made but a square root."""
    found: set[Any] = set()
    other = {atom for atom in jaxpr.outvars if not isinstance(atom, jex.Literal)}
    for eqn in reversed(jaxpr.eqns):
        read = {atom for atom in eqn.invars if not isinstance(atom, jex.Literal)}
        name = eqn.primitive.name
        ends_there = name in _TO_ROOT and eqn.outvars[0] in found
        if name in ("sqrt", "rsqrt") or ends_there:
            found |= read - other
        else:
            other |= read
            found -= read
    return found


def _hides_relu(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation that cannot be opened has a ReLU inside."""
    if eqn.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call")):
        return _called(eqn) is not None
    return eqn.params.get("name") not in _NO_RELU and any(
        _find(inner.jaxpr) or any(map(_hides_relu, inner.jaxpr.eqns)) for inner in sub_jaxprs(eqn)
    )
