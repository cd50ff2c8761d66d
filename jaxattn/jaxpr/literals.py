"""Literals of a traced program that change from call to call, as arguments of the program.

A Python number that a function closes over is a literal of its trace, and a program with another
literal is another program. A literal that was seen with two values becomes an argument. All others
stay literals, because the structure of a function depends on them: `0.5 * tanh(x) + 0.5` is a gate.
"""

import functools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextvars import ContextVar

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from jaxattn._static import typed_key
from jaxattn.jaxpr.interpreter import (
    Body,
    JaxprAtom,
    Value,
    evaluate,
    is_reemitted,
    reemit,
    struct_of,
    sub_jaxprs,
)

#: Whether a program is being traced whose arguments were literals of the function.
lifted_in_trace: ContextVar[bool] = ContextVar("lifted_in_trace", default=False)


class LiteralsNeededError(LookupError):
    """Raised by an analysis that depends on literals, for a program in which they are arguments."""


def check_literals() -> None:
    """Raise an error if literals of the function that is being traced are arguments."""
    if lifted_in_trace.get():
        raise LiteralsNeededError("The structure of a function depends on its literals.")


def is_liftable(atom: JaxprAtom) -> bool:
    """Return whether an operand is a literal number, which could be an argument."""
    if not isinstance(atom, jex.Literal) or getattr(atom.aval, "shape", None) != ():
        return False
    return bool(jnp.issubdtype(struct_of(atom).dtype, jnp.number))


class _History:
    """The literals of all programs that are equal but for these, as far as seen.

    Attributes:
        first: the literals of the first program.
        changed: the positions of those that were seen with another value.
    """

    def __init__(self) -> None:
        self.first: Sequence[Hashable] | None = None
        self.changed: frozenset[int] = frozenset()


@functools.lru_cache(maxsize=1024)
def _history(program: Hashable) -> _History:
    """Return the same object for equal programs."""
    return _History()


def literal_values(literals: Iterable[jex.Literal]) -> tuple[Hashable, ...]:
    """Return keys of the values of literals."""
    return tuple(typed_key(literal.val) for literal in literals)


def changing(program: Hashable, literals: Sequence[jex.Literal]) -> tuple[list[int], Hashable]:
    """Return which literals of a program have changed between calls, and a key of the others.

    Args:
        program: a key of the program without its literals.
        literals: the literals in the order in which the program holds them. One that occurs several
            times is one object if JAX traced a function once that is called several times.

    Returns:
        The positions of the first occurrences of the literals that are to be arguments. Programs of
        equal keys differ only in the values of these.
    """
    values = literal_values(literals)
    history = _history(program)
    if history.first is None:
        history.first = values
    if values == history.first:  # its program exists, and needs no arguments
        return [], values
    pairs = zip(values, history.first, strict=True)
    history.changed |= {i for i, (value, first) in enumerate(pairs) if value != first}
    position: dict[int, int] = {}
    for i, literal in enumerate(literals):
        position.setdefault(id(literal), i)
    chosen = sorted({position[id(literals[i])] for i in history.changed})
    others = tuple(
        ("argument", position[id(literal)]) if position[id(literal)] in chosen else value
        for literal, value in zip(literals, values, strict=True)
    )
    return chosen, others


def with_arguments(jaxpr: jex.Jaxpr, literals: Iterable[jex.Literal]) -> jex.Jaxpr:
    """Return a jaxpr that takes literals as its first arguments, its constants as the next."""
    chosen = {id(literal): literal for literal in literals}

    def flat(numbers: list[Value], constants: list[Value], args: list[Value]) -> list[Value]:
        closed = jex.ClosedJaxpr(jaxpr, constants)
        return _evaluate(closed, args, dict(zip(chosen, numbers, strict=True)))

    structs = (
        list(map(struct_of, chosen.values())),
        list(map(_weak_struct, jaxpr.constvars)),
        list(map(_weak_struct, jaxpr.invars)),
    )
    return jax.make_jaxpr(flat)(*structs).jaxpr


def _evaluate(
    closed: jex.ClosedJaxpr, args: Sequence[Value], numbers: Mapping[int, Value]
) -> list[Value]:
    def inside(inner: jex.ClosedJaxpr) -> Body:
        return lambda _, *args: (tuple(_evaluate(inner, args, numbers)), ())

    def rule(eqn: jex.JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value] | None:
        if not _holds(eqn, numbers):
            return None
        results = reemit(eqn, inputs, inside)
        return None if results is None else results[0]

    return evaluate(closed, args, rule, number=lambda lit: numbers.get(id(lit), lit.val))


def _holds(eqn: jex.JaxprEqn, numbers: Mapping[int, Value]) -> bool:
    """Return whether the jaxprs of an equation hold some of the literals."""
    return is_reemitted(eqn) and any(
        any(id(atom) in numbers for atom in (*inner.invars, *closed.jaxpr.outvars))
        or _holds(inner, numbers)
        for closed in sub_jaxprs(eqn)
        for inner in closed.jaxpr.eqns
    )


def _weak_struct(var: jex.Var) -> jax.ShapeDtypeStruct:
    struct, weak = struct_of(var), getattr(var.aval, "weak_type", False)
    return jax.ShapeDtypeStruct(struct.shape, struct.dtype, weak_type=weak)
