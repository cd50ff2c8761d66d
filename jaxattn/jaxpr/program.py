"""A function as its traced program, hashable and equal to other traces of the same program.

The identity of a lambda or a closure says little: two new ones may compute the same, and one may
compute something else once a variable that it closes over has changed. Jaxprs are compared instead.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jaxattn._static import UnkeyableError, typed_key
from jaxattn.jaxpr.flat import varying_axes
from jaxattn.jaxpr.interpreter import (
    JaxprAtom,
    Value,
    bind,
    descend,
    evaluate,
    is_reemitted,
    struct_of,
    sub_jaxprs,
)
from jaxattn.jaxpr.literals import changing, is_liftable, literal_values, with_arguments

#: The custom derivative rules whose programs are being keyed, outermost first.
_Enclosing: TypeAlias = tuple[Hashable, ...]


class Signature(NamedTuple):
    """The structure, shapes and dtypes of a function's positional arguments."""

    treedef: jax.tree_util.PyTreeDef
    avals: tuple[tuple[tuple[int, ...], np.dtype], ...]

    @classmethod
    def of(cls, inputs: PyTree) -> "Signature":
        """Return the signature of a tuple of arguments, concrete, traced or abstract."""
        leaves, treedef = jax.tree.flatten(inputs)
        return cls(treedef, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves))

    def structs(self) -> PyTree:
        """Return abstract arguments of this signature."""
        return self.treedef.unflatten([jax.ShapeDtypeStruct(*aval) for aval in self.avals])


class UntracedError(LookupError):
    """Raised by a program that is called with a signature for which it has not been traced."""

    def __init__(self, program: "Program", signature: Signature) -> None:
        super().__init__("The function has not been traced for these shapes.")
        self.program, self.signature = program, signature


class Trace(NamedTuple):
    """A function traced for one signature.

    Attributes:
        jaxpr: the jaxpr, open: its constants are bound from outside.
        constants: the positions of its constants among the arrays of the program. Those that are no
            `constvars` of the jaxpr are its first arguments.
        output: the abstract output.
    """

    jaxpr: jex.Jaxpr
    constants: tuple[int, ...]
    output: PyTree


class Program:
    """A function traced for some signatures; hashable, and equal to an equal program.

    Attributes:
        lifted: whether some of its arrays are literals of the function.
    """

    def __init__(self, key: Hashable, traces: dict[Signature, Trace], lifted: bool) -> None:
        self._key, self._hash, self._traces, self.lifted = key, hash(key), traces, lifted

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Program) and self._key == other._key)

    def output(self, signature: Signature) -> PyTree:
        """Return the abstract output for a signature that has been traced."""
        return self._traces[signature].output

    def jaxpr(self, signature: Signature) -> jex.Jaxpr:
        """Return the jaxpr for a signature that has been traced."""
        return self._traces[signature].jaxpr

    def rebuild(self, arrays: Sequence[Value]) -> Callable[..., PyTree]:
        """Return the function with these arrays as its constants."""

        def call(*inputs: PyTree) -> PyTree:
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
                    "`fn` is evaluated from its trace, which does not work inside a jax.shard_map "
                    "that checks which values vary over devices: pass check_vma=False to "
                    "shard_map, or mesh= to explain, or a module as `fn`."
                )
            flat = jex.jaxpr_as_fun(closed)(*constants[n_bound:], *leaves)
            return jax.tree.unflatten(jax.tree.structure(trace.output), flat)

        return call


def trace(
    fn: Callable[..., PyTree], signatures: Sequence[Signature], lift: bool = True
) -> tuple[list[Value], Program]:
    """Trace `fn` for each signature.

    Args:
        fn: the function.
        signatures: those of its arguments.
        lift: whether literals that have changed between calls become arrays of the program.

    Returns:
        The arrays that it closes over, and the program that takes them.
    """
    arrays: dict[int, Value] = {}
    traces: dict[Signature, Trace] = {}
    parts: list[Hashable] = []
    lifts = False
    for signature in signatures:
        # JAX caches the traces of functions by identity: a new function is traced anew.
        fresh = jax.make_jaxpr(lambda *inputs: fn(*inputs), return_shape=True)
        closed, output = fresh(*signature.structs())
        (jaxpr, constants), key, lifted = _keyed(_hoist(closed), lift)
        lifts |= lifted
        for constant in constants:
            arrays.setdefault(id(constant), constant)
        position = {identity: i for i, identity in enumerate(arrays)}
        indices = tuple(position[id(constant)] for constant in constants)
        traces[signature] = Trace(jaxpr, indices, output)
        parts.append((signature, indices, jax.tree.structure(output), key))
    return list(arrays.values()), Program(tuple(parts), traces, lifts)


def _constants(closed: jex.ClosedJaxpr) -> dict[int, Value]:
    """Return the constants at any depth, by identity, outer ones first."""
    return {id(c): c for c in closed.consts} | _inner_constants(closed.jaxpr)


def _inner_constants(jaxpr: jex.Jaxpr) -> dict[int, Value]:
    found: dict[int, Value] = {}
    for eqn in jaxpr.eqns:
        for inner in sub_jaxprs(eqn):
            found |= _constants(inner)
    return found


class _Hoisted(NamedTuple):
    """A jaxpr whose constants, also those of inner jaxprs, are bound from outside."""

    jaxpr: jex.Jaxpr
    constants: list[Value]


def _hoist(closed: jex.ClosedJaxpr) -> _Hoisted:
    """Make the constants of a jaxpr and of its inner jaxprs its first arguments."""
    if not _inner_constants(closed.jaxpr):
        return _Hoisted(closed.jaxpr, list(closed.consts))
    constants = _constants(closed)

    def flat(arrays: list[Value], args: list[Value]) -> list[Value]:
        values = dict(zip(constants, arrays, strict=True))

        def bound(inner: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
            return jex.ClosedJaxpr(inner.jaxpr, [values[id(c)] for c in inner.consts])

        def rule(eqn: jex.JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value] | None:
            holds_constants = any(_constants(inner) for inner in sub_jaxprs(eqn))
            return descend(eqn, inputs, rule, bound) if holds_constants else None

        return evaluate(bound(closed), args, rule)

    arrays = list(constants.values())
    structs = list(map(struct_of, closed.jaxpr.invars))
    return _Hoisted(jax.make_jaxpr(flat)(arrays, structs).jaxpr, arrays)


def _keyed(hoisted: _Hoisted, lift: bool) -> tuple[_Hoisted, Hashable, bool]:
    """Make the literals of a jaxpr that change between calls its first arguments.

    Returns:
        The jaxpr and its constants; a key that is equal for two jaxprs only if they and their
        derivatives are equal; and whether there are such literals.
    """
    literals: list[jex.Literal] = []
    try:
        program = _jaxpr_key(hoisted.jaxpr, (), literals)
    except UnkeyableError:
        return hoisted, object(), False
    if not lift:
        return hoisted, (program, literal_values(literals)), False
    chosen, others = changing(program, literals)
    key = program, others
    if not chosen:
        return hoisted, key, False
    jaxpr = with_arguments(hoisted.jaxpr, [literals[i] for i in chosen])
    numbers = [np.asarray(literals[i].val, struct_of(literals[i]).dtype) for i in chosen]
    return _Hoisted(jaxpr, [*numbers, *hoisted.constants]), key, True


def _jaxpr_key(
    jaxpr: jex.Jaxpr, within: _Enclosing, literals: list[jex.Literal] | None = None
) -> Hashable:
    """Return the key of a jaxpr without its liftable literals, which are added to the list."""
    number: dict[jex.Var, int] = {}

    def atom(a: JaxprAtom) -> Hashable:
        if not isinstance(a, jex.Literal):
            return number.setdefault(a, len(number))
        if literals is None or not is_liftable(a):
            return "literal", str(a.aval), typed_key(a.val)
        literals.append(a)
        return "literal", str(a.aval), getattr(a.aval, "weak_type", None)

    def var(v: jex.Var) -> Hashable:
        return atom(v), str(v.aval), getattr(v.aval, "weak_type", None)

    head = tuple(var(v) for v in (*jaxpr.constvars, *jaxpr.invars))
    body = tuple(
        (
            eqn.primitive,
            str(eqn.source_info.name_stack),
            tuple(atom(a) for a in eqn.invars),
            _params_key(eqn, within, literals if is_reemitted(eqn) else None),
            tuple(var(v) for v in eqn.outvars),
        )
        for eqn in jaxpr.eqns
    )
    return head, body, tuple(atom(a) for a in jaxpr.outvars)


def _params_key(
    eqn: jex.JaxprEqn, within: _Enclosing, literals: list[jex.Literal] | None
) -> Hashable:
    if eqn.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call")):
        (called,) = sub_jaxprs(eqn)
        key = eqn.primitive.name, _param_key(called, ())
        # A rule may call the function that it belongs to, as that of relu does.
        if key in within:
            return key, within.index(key)
        rule = _derivative(eqn)
        return key, _param_key(rule, (*within, key))
    params = sorted(eqn.params.items(), key=lambda item: item[0])
    return tuple((name, _param_key(value, within, literals)) for name, value in params)


def _param_key(
    value: object, within: _Enclosing, literals: list[jex.Literal] | None = None
) -> Hashable:
    if isinstance(value, jex.ClosedJaxpr):
        return _jaxpr_key(value.jaxpr, within, literals), typed_key(list(value.consts))
    if isinstance(value, jex.Jaxpr):
        return _jaxpr_key(value, within, literals)
    if isinstance(value, tuple):
        return tuple(_param_key(part, within, literals) for part in value)
    try:
        return typed_key(value)
    except UnkeyableError:
        hash(value)  # by identity: at worst two equal programs get different keys
        return type(value), value


def _derivative(eqn: jex.JaxprEqn) -> jex.ClosedJaxpr:
    """Trace the custom derivative rule of an equation, which is not among its jaxprs."""
    structs = [struct_of(atom) for atom in eqn.invars]

    def ones(struct: jax.ShapeDtypeStruct | Array) -> ArrayLike:
        if jnp.issubdtype(struct.dtype, jnp.inexact):
            return jnp.ones(struct.shape, struct.dtype)
        return np.zeros(struct.shape, jax.dtypes.float0)

    # The rule has no derivative with respect to the values that the function closes over.
    closed_over = eqn.params.get("num_consts", 0)

    def differentiated(*args: Value) -> PyTree:
        constants, inputs = args[:closed_over], args[closed_over:]

        def call(*inputs: Value) -> list[Value]:
            return list(bind(eqn, [*constants, *inputs]))

        if eqn.primitive.name.startswith("custom_jvp_call"):
            return jax.jvp(call, inputs, tuple(map(ones, structs[closed_over:])))
        outputs, pullback = jax.vjp(call, *inputs)
        return outputs, [
            ct for ct in pullback(list(map(ones, outputs))) if ct.dtype != jax.dtypes.float0
        ]

    return jax.make_jaxpr(differentiated)(*structs)


def _strong(leaf: Value) -> Value:
    return jax.lax.convert_element_type(leaf, leaf.dtype) if jax.typeof(leaf).weak_type else leaf
