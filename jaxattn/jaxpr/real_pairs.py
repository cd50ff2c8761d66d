"""A function of complex numbers as a function of their real and imaginary parts.

A complex value is two real signals. A program in real and imaginary parts has only real steps, so
what reads it needs no rules of its own for complex numbers.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxattn.jaxpr.flat import line_of
from jaxattn.jaxpr.interpreter import (
    Body,
    JaxprAtom,
    Value,
    evaluate,
    reemit,
    scan_counts,
    struct_of,
    sub_jaxprs,
)
from jaxattn.jaxpr.pair_arithmetic import PAIR_RULES, Pair, filled, real_dtype, split

#: Primitives with an inner jaxpr that is evaluated once, in place.
_CALLS = frozenset(
    "jit closed_call core_call checkpoint remat remat2 custom_jvp_call custom_vjp_call".split()
)


def with_real_pairs(closed: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    """Return a jaxpr in which complex values that depend on the inputs are pairs of real ones.

    Complex inputs are split at the start, and complex outputs are joined at the end. A jaxpr
    without complex values is returned as it is.

    Raises:
        ValueError: for a function of complex numbers that has no rule.
    """
    if not _has_complex(closed):
        return closed

    def run(*inputs: Array) -> list[Value]:
        args = [split(x) if jnp.iscomplexobj(x) else x for x in inputs]
        outputs = _evaluate(closed, args, [True] * len(args))
        full = map(_arrays, closed.jaxpr.outvars, outputs)
        return [lax.complex(x.real, x.imag) if isinstance(x, Pair) else x for x in full]

    return jax.make_jaxpr(run)(*map(struct_of, closed.jaxpr.invars))


def _has_complex(closed: jex.ClosedJaxpr) -> bool:
    return any(map(_reads_complex, closed.jaxpr.eqns))


def _reads_complex(eqn: jex.JaxprEqn) -> bool:
    own = any(map(_is_complex, (*eqn.invars, *eqn.outvars)))
    return own or any(map(_has_complex, sub_jaxprs(eqn)))


def _is_complex(atom: JaxprAtom) -> bool:
    dtype = getattr(atom.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating)


def _evaluate(
    closed: jex.ClosedJaxpr, args: Sequence[Value | Pair], depends: Sequence[bool]
) -> list[Value | Pair]:
    """Evaluate a jaxpr on pairs.

    Args:
        closed: the jaxpr.
        args: its inputs.
        depends: which of them depend on the input of the whole function. Complex ones among them
            are pairs; other complex values remain what they are.
    """
    dependent = set(itertools.compress(closed.jaxpr.invars, depends))

    def rule(eqn: jex.JaxprEqn, inputs: Sequence[Value | Pair]) -> Sequence[Value | Pair] | None:
        flags = [isinstance(atom, jex.Var) and atom in dependent for atom in eqn.invars]
        if not any(flags):
            return None
        dependent.update(eqn.outvars)
        name = eqn.primitive.name
        if not _reads_complex(eqn):
            return None
        if name in ("scan", "while", "cond"):
            return _evaluate_control_flow(eqn, inputs, flags)
        if name in _CALLS:
            outputs: Sequence[Value | Pair] = _evaluate(sub_jaxprs(eqn)[0], inputs, flags)
        elif name in PAIR_RULES:
            pairs = [_as_pair(*each) for each in zip(eqn.invars, inputs, strict=True)]
            outputs = PAIR_RULES[name](eqn, pairs)
        else:
            raise ValueError(
                f"`{name}` of complex numbers ({line_of(eqn)}) has no rule: compute it from real "
                "and imaginary parts."
            )
        return [_as_pair(*each) for each in zip(eqn.outvars, outputs, strict=True)]

    return evaluate(closed, args, rule)


def _evaluate_control_flow(
    eqn: jex.JaxprEqn, inputs: Sequence[Value | Pair], flags: list[bool]
) -> Sequence[Value | Pair]:
    """Evaluate a loop or a branch on pairs, which are arrays wherever bodies must agree."""
    name = eqn.primitive.name
    agree = [True] * len(flags)
    if name == "scan":  # constants and scanned arrays may differ from turn to turn
        n_consts, n_carry = scan_counts(eqn.params)
        agree = [n_consts <= i < n_consts + n_carry for i in range(len(flags))]
    depends = [flag or must for flag, must in zip(flags, agree, strict=True)]
    operands = [
        _arrays(atom, x) if must else x
        for atom, x, must in zip(eqn.invars, inputs, agree, strict=True)
    ]

    def inside(body: jex.ClosedJaxpr) -> Body:
        def run(more: object, *args: Value | Pair) -> tuple[tuple[Value | Pair, ...], object]:
            of_args = depends if name == "scan" else [True] * len(args)
            outputs = _evaluate(body, args, of_args)
            return tuple(map(_arrays, body.jaxpr.outvars, outputs)), ()

        return run

    results = reemit(eqn, operands, inside)
    assert results is not None
    return results[0]


def _as_pair(atom: JaxprAtom, value: Value | Pair) -> Value | Pair:
    """Return a complex value as a pair with parts of its shape; any other value as it is."""
    if not _is_complex(atom):
        return value
    struct = struct_of(atom)
    if isinstance(atom, jex.Literal):
        real, imag = (np.asarray(p, real_dtype(struct.dtype)) for p in (value.real, value.imag))
        return Pair(None if imag.any() and not real.any() else real, imag if imag.any() else None)
    pair = value if isinstance(value, Pair) else split(value)
    if pair.real is None and pair.imag is None:  # multiplied by zero
        return Pair(jnp.zeros(struct.shape, real_dtype(struct.dtype)), None)
    return Pair(*(p if p is None else jnp.broadcast_to(p, struct.shape) for p in pair))


def _arrays(atom: JaxprAtom, value: Value | Pair) -> Value | Pair:
    """Return a complex value as a pair of two arrays; any other value as it is."""
    if not _is_complex(atom):
        return value
    pair = _as_pair(atom, value)
    return Pair(*map(jnp.asarray, filled(pair, struct_of(atom))))
