"""ReLUs of a function, and other backward rules for them."""

import functools
import warnings
from collections.abc import Callable, Sequence

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jaxattn.jaxpr.interpreter import (
    JaxprAtom,
    Value,
    descend,
    evaluate,
    struct_of,
    sub_jaxprs,
)
from jaxattn.jaxpr.literals import check_literals

#: Functions that JAX computes with a clipping at 0 but that are not ReLUs; each is one named call.
_NO_RELU = {"celu", "hard_sigmoid", "sparse_sigmoid"}
#: Primitives that only lay out the elements of their operand.
_LAYOUT = {"broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze", "transpose"}
#: Primitives between a variance, which rounding may make negative, and its root.
_TO_ROOT = _LAYOUT | {"add", "concatenate", "gather", "mul", "slice"}


def rectified(fn: Callable[..., PyTree], *, gated: bool) -> Callable[..., PyTree]:
    """Return the function with a backward rule of its ReLUs that drops negative gradients.

    A ReLU is `max(x, 0)`, `where(x > 0, x, 0)` or a `clamp` at 0, by itself or in `jax.nn.relu` and
    `relu6`. An upper bound stops the gradient as usual. All other derivative rules stay. So do
    functions with a custom derivative rule, whatever they consist of, and a `max` that only keeps a
    variance from becoming negative before its root is taken.

    Args:
        fn: maps arrays to outputs.
        gated: whether gradients pass only where the ReLU's operand is positive, as well.

    Returns:
        A function with the outputs of `fn`. It warns when called for an `fn` without ReLUs.

    Raises:
        ValueError: when called, if a ReLU cannot be replaced, as inside a `shard_map`.
    """

    def call(*inputs: PyTree) -> PyTree:
        check_literals()  # a ReLU is a maximum with 0
        relus: dict[jex.Var, int] = {}

        def prepare(closed: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
            opened = _open(closed)
            relus.update(_find(opened.jaxpr))
            return opened

        def rule(eqn: jex.JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value] | None:
            name = eqn.primitive.name
            i = relus.get(eqn.outvars[0]) if eqn.outvars else None
            if i is not None and name == "min":
                return [_bounded(inputs[i], inputs[1 - i])]
            if i is not None:
                y = _relu(gated, inputs[i])
                return [_bounded(y, inputs[2]) if name == "clamp" else y]
            if name in ("jit", "while"):  # a function of _NO_RELU; a loop without gradients
                return None
            outputs = descend(eqn, inputs, rule, prepare)
            if outputs is None and _hides_relu(eqn):
                raise ValueError(
                    f"`fn` has a ReLU inside of a `{name}`, where its gradient cannot be changed."
                )
            return outputs

        fresh = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)
        closed, output = fresh(*inputs)
        flat = evaluate(prepare(closed), jax.tree.leaves(inputs), rule)
        if not relus:
            warnings.warn(
                "`fn` has no ReLU: this is its plain gradient.", UserWarning, stacklevel=2
            )
        return jax.tree.unflatten(jax.tree.structure(output), flat)

    return call


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _relu(gated: bool, x: ArrayLike) -> Array:
    return jax.nn.relu(x)


def _relu_forward(gated: bool, x: ArrayLike) -> tuple[Array, Array]:
    return jax.nn.relu(x), jnp.asarray(x) > 0


def _relu_backward(gated: bool, positive: Array, cotangent: Array) -> tuple[Array]:
    kept = jax.nn.relu(cotangent)
    return (jnp.where(positive, kept, 0) if gated else kept,)


_relu.defvjp(_relu_forward, _relu_backward)


def _bounded(y: Array, ceiling: Value) -> Array:
    """Return the minimum of both. Its gradient on the bound is 0; that of `min` is one half."""
    return jax.lax.clamp(jnp.array(-jnp.inf, y.dtype), y, ceiling)


def _open(closed: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    """Inline the calls of a jaxpr, to have the producers of all operands on one level."""

    def rule(eqn: jex.JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value] | None:
        called = _called(eqn)
        return None if called is None else evaluate(called, inputs, rule)

    structs = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
        for aval in closed.in_avals
    ]
    return jax.make_jaxpr(lambda *args: evaluate(closed, args, rule))(*structs)


def _called(eqn: jex.JaxprEqn) -> jex.ClosedJaxpr | None:
    """Return the jaxpr of a call that may be inlined, such as `jax.nn.relu`; else `None`."""
    if eqn.primitive.name == "jit" and eqn.params["name"] not in _NO_RELU:
        return eqn.params["jaxpr"]
    if eqn.primitive.name == "custom_jvp_call":
        (called,) = sub_jaxprs(eqn)
        named = called.jaxpr.debug_info.func_name in ("relu", "relu6")
        return called if named and _find(_open(called).jaxpr) else None
    return None


def _find(jaxpr: jex.Jaxpr) -> dict[jex.Var, int]:
    """Find the ReLUs of a jaxpr without calls.

    Returns:
        For the output of each ReLU, the position of the operand that is rectified; and for a `min`
        that bounds a ReLU from above, the position of the operand that is bounded.
    """
    return _ReluFinder(jaxpr).relus


class _ReluFinder:
    """The ReLUs of a jaxpr without calls, found in the order of its equations."""

    def __init__(self, jaxpr: jex.Jaxpr) -> None:
        self.producers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
        self.relus: dict[jex.Var, int] = {}
        operand_of = {
            "max": self._of_max,
            "min": self._of_min,
            "clamp": self._of_clamp,
            "select_n": self._of_select,
        }
        under_root = _under_root(jaxpr)
        for eqn in jaxpr.eqns:
            find = operand_of.get(eqn.primitive.name)
            operand = None if find is None else find(eqn)
            if operand is None:
                continue
            (output,) = eqn.outvars
            floating = jnp.issubdtype(struct_of(output).dtype, jnp.floating)
            if floating and output not in under_root:
                self.relus[output] = operand

    def _of_max(self, eqn: jex.JaxprEqn) -> int | None:
        """Return the operand of `max(x, 0)`."""
        i = self._only_variable(eqn)
        return i if i is not None and self._is_zero(eqn.invars[1 - i]) else None

    def _of_min(self, eqn: jex.JaxprEqn) -> int | None:
        """Return the operand of `min(relu(x), bound)`."""
        i = self._only_variable(eqn)
        return i if i is not None and eqn.invars[i] in self.relus else None

    def _of_clamp(self, eqn: jex.JaxprEqn) -> int | None:
        """Return the operand of a `clamp` from 0."""
        return 1 if self._is_zero(eqn.invars[0]) else None

    def _of_select(self, eqn: jex.JaxprEqn) -> int | None:
        """Return the operand of `where(x > 0, x, 0)`, or of `where(x < 0, 0, x)`."""
        if len(eqn.invars) != 3:
            return None
        condition, on_false, on_true = eqn.invars
        if self._is_zero(on_false):
            i, tests = 2, ("gt", "ge")
        elif self._is_zero(on_true):
            i, tests = 1, ("lt", "le")
        else:
            return None
        test = None if isinstance(condition, jex.Literal) else self.producers.get(condition)
        if test is None or test.primitive.name not in tests or not self._is_zero(test.invars[1]):
            return None
        return i if test.invars[0] is eqn.invars[i] else None

    def _only_variable(self, eqn: jex.JaxprEqn) -> int | None:
        """Return the position of the operand that is no literal, if the other one is."""
        variables = [i for i, atom in enumerate(eqn.invars) if self._literal(atom) is None]
        return variables[0] if len(variables) == 1 else None

    def _is_zero(self, atom: JaxprAtom) -> bool:
        value = self._literal(atom)
        return value is not None and not np.any(value)

    def _literal(self, atom: JaxprAtom) -> Value:
        """Return the literal that a value is, however laid out; `None` if it is none."""
        while not isinstance(atom, jex.Literal):
            eqn = self.producers.get(atom)
            if eqn is None or eqn.primitive.name not in _LAYOUT:
                return None
            atom = eqn.invars[0]
        return atom.val


def _under_root(jaxpr: jex.Jaxpr) -> set[jex.Var]:
    """Return the variables that are used for square roots only."""
    found: set[jex.Var] = set()
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
    """Return whether an equation that cannot be replaced has a ReLU inside."""
    if eqn.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call")):
        return _called(eqn) is not None
    return eqn.params.get("name") not in _NO_RELU and any(
        _find(inner.jaxpr) or any(map(_hides_relu, inner.jaxpr.eqns)) for inner in sub_jaxprs(eqn)
    )
