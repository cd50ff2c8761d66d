"""A function as the program that it traces to, so that equal programs are recognised as equal.

A lambda or a closure has no identity worth trusting: two fresh ones may do the same, and one may do
something else than before once what it closes over has changed. Its jaxpr tells.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jaxattn._static import UnkeyableError, typed_key
from jaxattn.jaxpr.flat import varying_axes
from jaxattn.jaxpr.interpreter import bind, descend, evaluate, sub_jaxprs


class Signature(NamedTuple):
    """The structure, shapes and dtypes of a function's positional arguments."""

    treedef: jax.tree_util.PyTreeDef
    avals: tuple[tuple[tuple[int, ...], Any], ...]

    @classmethod
    def of(cls, inputs: Any) -> "Signature":
        """The signature of a tuple of arguments, concrete, traced or abstract."""
        leaves, treedef = jax.tree.flatten(inputs)
        return cls(treedef, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves))

    def structs(self) -> Any:
        """Abstract arguments of this signature."""
        return self.treedef.unflatten([jax.ShapeDtypeStruct(*aval) for aval in self.avals])


class UntracedError(LookupError):
    """A program was called with a signature for which it has not been traced."""

    def __init__(self, program: "Program", signature: Signature) -> None:
        super().__init__("the function has not been traced for these shapes")
        self.program, self.signature = program, signature


class Trace(NamedTuple):
    """One traced form of a function: open, and which arrays it takes as constants and arguments."""

    jaxpr: jex.Jaxpr
    constants: tuple[int, ...]
    output: Any


class Program:
    """What a function computes, for some signatures; hashable, and equal for equal programs."""

    def __init__(self, key: Hashable, traces: dict[Signature, Trace]) -> None:
        self._key, self._hash, self._traces = key, hash(key), traces

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Program) and self._key == other._key)

    def output(self, signature: Signature) -> Any:
        """The abstract output for a signature that has been traced."""
        return self._traces[signature].output

    def jaxpr(self, signature: Signature) -> jex.Jaxpr:
        """What was traced for a signature."""
        return self._traces[signature].jaxpr

    def rebuild(self, arrays: Sequence[Any]) -> Callable[..., Any]:
        """The function, given its constants."""

        def call(*inputs: Any) -> Any:
            signature = Signature.of(inputs)
            trace = self._traces.get(signature)
            if trace is None:
                raise UntracedError(self, signature)
            # The jaxpr was traced for strong types; a weak one would not match its equations.
            leaves = [_strong(leaf) for leaf in jax.tree.leaves(inputs)]
            constants = [arrays[i] for i in trace.constants]
            n_bound = len(trace.jaxpr.constvars)
            closed = jex.ClosedJaxpr(trace.jaxpr, constants[:n_bound])
            if any(varying_axes(leaf) for leaf in leaves):
                raise ValueError(
                    "fn is known by its trace, which a jax.shard_map that checks what varies over "
                    "its devices cannot run: give shard_map check_vma=False, or explain mesh=, or "
                    "a module as fn"
                )
            flat = jex.jaxpr_as_fun(closed)(*constants[n_bound:], *leaves)
            return jax.tree.unflatten(jax.tree.structure(trace.output), flat)

        return call


def trace(fn: Callable[..., Any], signatures: Sequence[Signature]) -> tuple[list[Any], Program]:
    """Traces `fn` for each signature.

    Returns:
        the arrays that it closes over, and the program that takes them.
    """
    arrays: dict[int, Any] = {}
    traces: dict[Signature, Trace] = {}
    parts: list[Hashable] = []
    for signature in signatures:
        # JAX remembers the trace of a function that it has seen: it must not know this one.
        fresh = jax.make_jaxpr(lambda *inputs: fn(*inputs), return_shape=True)
        closed, output = fresh(*signature.structs())
        jaxpr, constants = _hoist(closed)
        for constant in constants:
            arrays.setdefault(id(constant), constant)
        position = {identity: i for i, identity in enumerate(arrays)}
        indices = tuple(position[id(constant)] for constant in constants)
        traces[signature] = Trace(jaxpr, indices, output)
        parts.append((signature, indices, jax.tree.structure(output), _program_key(jaxpr)))
    return list(arrays.values()), Program(tuple(parts), traces)


def _constants(closed: jex.ClosedJaxpr) -> dict[int, Any]:
    """The constants at any depth, by identity, outer ones first."""
    return {id(c): c for c in closed.consts} | _inner_constants(closed.jaxpr)


def _inner_constants(jaxpr: jex.Jaxpr) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for eqn in jaxpr.eqns:
        for inner in sub_jaxprs(eqn):
            found |= _constants(inner)
    return found


def _hoist(closed: jex.ClosedJaxpr) -> tuple[jex.Jaxpr, list[Any]]:
    """The jaxpr with all its constants, also those of inner jaxprs, bound from outside."""
    if not _inner_constants(closed.jaxpr):
        return closed.jaxpr, list(closed.consts)
    constants = _constants(closed)

    def flat(arrays: list[Any], args: list[Any]) -> list[Any]:
        given = dict(zip(constants, arrays, strict=True))

        def bound(inner: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
            return jex.ClosedJaxpr(inner.jaxpr, [given[id(c)] for c in inner.consts])

        def rule(eqn: jex.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any] | None:
            holds_constants = any(_constants(inner) for inner in sub_jaxprs(eqn))
            return descend(eqn, inputs, rule, bound) if holds_constants else None

        return evaluate(bound(closed), args, rule)

    arrays = list(constants.values())
    return jax.make_jaxpr(flat)(arrays, list(map(_struct, closed.jaxpr.invars))).jaxpr, arrays


def _program_key(jaxpr: jex.Jaxpr) -> Hashable:
    """A key that two jaxprs share only if they compute the same, derivatives included."""
    try:
        return _jaxpr_key(jaxpr, ())
    except UnkeyableError:
        return object()


def _jaxpr_key(jaxpr: jex.Jaxpr, within: tuple[Hashable, ...]) -> Hashable:
    number: dict[Any, int] = {}

    def atom(a: Any) -> Hashable:
        if isinstance(a, jex.Literal):
            return "literal", str(a.aval), typed_key(a.val)
        return number.setdefault(a, len(number))

    def var(v: Any) -> Hashable:
        return atom(v), str(v.aval), getattr(v.aval, "weak_type", None)

    head = tuple(var(v) for v in (*jaxpr.constvars, *jaxpr.invars))
    body = tuple(
        (
            eqn.primitive,
            str(eqn.source_info.name_stack),
            tuple(atom(a) for a in eqn.invars),
            _params_key(eqn, within),
            tuple(var(v) for v in eqn.outvars),
        )
        for eqn in jaxpr.eqns
    )
    return head, body, tuple(atom(a) for a in jaxpr.outvars)


def _params_key(eqn: jex.JaxprEqn, within: tuple[Hashable, ...]) -> Hashable:
    if eqn.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call")):
        (called,) = sub_jaxprs(eqn)
        key = eqn.primitive.name, _param_key(called, ())
        # A rule may call the very function that it belongs to, as relu's does.
        if key in within:
            return key, within.index(key)
        rule = _derivative(eqn)
        return key, _param_key(rule, (*within, key))
    return tuple((name, _param_key(eqn.params[name], within)) for name in sorted(eqn.params))


def _param_key(value: Any, within: tuple[Hashable, ...]) -> Hashable:
    if isinstance(value, jex.ClosedJaxpr):
        return _jaxpr_key(value.jaxpr, within), typed_key(list(value.consts))
    if isinstance(value, jex.Jaxpr):
        return _jaxpr_key(value, within)
    if isinstance(value, tuple):
        return tuple(_param_key(part, within) for part in value)
    try:
        return typed_key(value)
    except UnkeyableError:
        hash(value)  # by identity: at worst an equal program is not recognised
        return type(value), value


def _derivative(eqn: jex.JaxprEqn) -> jex.ClosedJaxpr:
    """The program of an equation's custom derivative rule, which the equation itself hides."""
    structs = [_struct(atom) for atom in eqn.invars]

    def ones(struct: Any) -> Any:
        if jnp.issubdtype(struct.dtype, jnp.inexact):
            return jnp.ones(struct.shape, struct.dtype)
        return np.zeros(struct.shape, jax.dtypes.float0)

    # What the function closes over has no derivative by the rule.
    closed_over = eqn.params.get("num_consts", 0)

    def differentiated(*args: Any) -> Any:
        constants, inputs = args[:closed_over], args[closed_over:]

        def call(*inputs: Any) -> Any:
            return list(bind(eqn, [*constants, *inputs]))

        if eqn.primitive.name.startswith("custom_jvp_call"):
            return jax.jvp(call, inputs, tuple(map(ones, structs[closed_over:])))
        outputs, pullback = jax.vjp(call, *inputs)
        return outputs, [
            ct for ct in pullback(list(map(ones, outputs))) if ct.dtype != jax.dtypes.float0
        ]

    return jax.make_jaxpr(differentiated)(*structs)


def _strong(leaf: Any) -> Any:
    return jax.lax.convert_element_type(leaf, leaf.dtype) if jax.typeof(leaf).weak_type else leaf


def _struct(atom: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)
