"""Arithmetic of complex numbers in their real and imaginary parts, by primitive."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxattn.jaxpr.interpreter import Value, bind, struct_of

#: The real or the imaginary part of a value; `None` if it is zero.
Part: TypeAlias = Any


class Pair(NamedTuple):
    """The real and the imaginary part of a value, of which at most one is `None`."""

    real: Part
    imag: Part


#: Computes the outputs of an equation; complex operands and outputs are pairs.
PairRule: TypeAlias = Callable[[jex.JaxprEqn, Sequence[Value | Pair]], Sequence[Value | Pair]]
#: Applies a function of real numbers that maps zero to zero.
_Linear: TypeAlias = Callable[..., Value]


def real_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype of the parts of a complex dtype."""
    return np.finfo(dtype).dtype


def split(value: Value) -> Pair:
    """Return a complex array as a pair."""
    return Pair(lax.real(value), lax.imag(value))


def filled(pair: Pair, struct: jax.ShapeDtypeStruct) -> Pair:
    """Return a pair with arrays of zeros for parts that are zero.

    Args:
        pair: the pair.
        struct: the shape and the complex dtype of the value.
    """
    dtype = real_dtype(struct.dtype)
    return Pair(*(jnp.zeros(struct.shape, dtype) if part is None else part for part in pair))


def _apply(function: _Linear, part: Part) -> Part:
    return None if part is None else function(part)


def _add(a: Part, b: Part) -> Part:
    if a is None or b is None:
        return b if a is None else a
    return lax.add(a, b)


def _sub(a: Part, b: Part) -> Part:
    if a is None or b is None:
        return a if b is None else lax.neg(b)
    return lax.sub(a, b)


def _mul(a: Part, b: Part) -> Part:
    return None if a is None or b is None else lax.mul(a, b)


def _multiply(a: Pair, b: Pair, mul: Callable[[Part, Part], Part] = _mul) -> Pair:
    return Pair(
        _sub(mul(a.real, b.real), mul(a.imag, b.imag)),
        _add(mul(a.real, b.imag), mul(a.imag, b.real)),
    )


def _inverse(a: Pair) -> Pair:
    if a.imag is None:
        return Pair(lax.reciprocal(a.real), None)
    if a.real is None:
        return Pair(None, lax.neg(lax.reciprocal(a.imag)))
    size = lax.square(a.real) + lax.square(a.imag)
    return Pair(lax.div(a.real, size), lax.neg(lax.div(a.imag, size)))


def _divide(a: Pair, b: Pair) -> Pair:
    if b.imag is not None:
        return _multiply(a, _inverse(b))
    return Pair(*(_apply(lambda part: lax.div(part, b.real), part) for part in a))


def _size(a: Pair) -> Value:
    if a.real is not None and a.imag is not None:
        return lax.sqrt(lax.square(a.real) + lax.square(a.imag))
    return lax.abs(a.imag if a.real is None else a.real)


def _power(a: Pair, exponent: int) -> Pair:
    if exponent < 0:
        return _inverse(_power(a, -exponent))
    if exponent < 2:
        return a if exponent else Pair(jnp.ones_like(_size(a)), None)
    half = _power(a, exponent // 2)
    even = _multiply(half, half)
    return _multiply(even, a) if exponent % 2 else even


def _exp(a: Pair) -> Pair:
    if a.imag is None:
        return Pair(lax.exp(a.real), None)
    turned = Pair(lax.cos(a.imag), lax.sin(a.imag))
    return turned if a.real is None else _multiply(Pair(lax.exp(a.real), None), turned)


def _log(a: Pair) -> Pair:
    size = _size(a)
    zero = jnp.zeros_like(size)
    angle = lax.atan2(*(zero if part is None else part for part in (a.imag, a.real)))
    return Pair(lax.log(size), angle)


def _on_pairs(function: Callable[..., Value | Pair]) -> PairRule:
    """Return the rule of an equation that is a function of its operands alone."""
    return lambda eqn, operands: [function(*operands)]


def _each_part(eqn: jex.JaxprEqn, operands: Sequence[Value | Pair]) -> Sequence[Pair]:
    """Apply a linear equation, or one that only moves elements, to each part."""

    def apply(name: str) -> Sequence[Part]:
        parts = [getattr(x, name) if isinstance(x, Pair) else x for x in operands]
        if all(p is None for p, x in zip(parts, operands, strict=True) if isinstance(x, Pair)):
            return [None] * len(eqn.outvars)
        structs = map(struct_of, eqn.invars)
        given = [
            jnp.zeros(s.shape, real_dtype(s.dtype)) if part is None else part
            for part, s in zip(parts, structs, strict=True)
        ]
        return bind(eqn, given)

    return [Pair(*parts) for parts in zip(apply("real"), apply("imag"), strict=True)]


def _contraction(eqn: jex.JaxprEqn, operands: Sequence[Value | Pair]) -> Sequence[Pair]:
    preferred = eqn.params["preferred_element_type"]
    dtype = None if preferred is None else real_dtype(preferred)

    def mul(a: Part, b: Part) -> Part:
        if a is None or b is None:
            return None
        return bind(eqn, (a, b), preferred_element_type=dtype)[0]

    # One of the operands may be real.
    a, b = (each if isinstance(each, Pair) else Pair(each, None) for each in operands)
    return [_multiply(a, b, mul)]


def _part(name: str) -> PairRule:
    """Return the rule of an equation that returns one part."""

    def rule(eqn: jex.JaxprEqn, operands: Sequence[Value | Pair]) -> Sequence[Value]:
        (x,) = operands
        return [getattr(filled(x, struct_of(eqn.invars[0])), name)]

    return rule


def _conversion(eqn: jex.JaxprEqn, operands: Sequence[Value | Pair]) -> Sequence[Value | Pair]:
    (x,), dtype = operands, eqn.params["new_dtype"]
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        return [lax.convert_element_type(filled(x, struct_of(eqn.invars[0])).real, dtype)]
    convert = functools.partial(lax.convert_element_type, new_dtype=real_dtype(dtype))
    pair = x if isinstance(x, Pair) else Pair(x, None)
    return [Pair(*(_apply(convert, part) for part in pair))]


def _comparison(eqn: jex.JaxprEqn, operands: Sequence[Value | Pair]) -> Sequence[Value]:
    pairs = [filled(x, struct_of(atom)) for x, atom in zip(operands, eqn.invars, strict=True)]
    real, imag = (bind(eqn, parts)[0] for parts in zip(*pairs, strict=True))
    return [lax.bitwise_and(real, imag) if eqn.primitive.name == "eq" else real | imag]


def _fourier(eqn: jex.JaxprEqn, operands: Sequence[Value | Pair]) -> Sequence[Value | Pair]:
    """Apply a discrete Fourier transform as products with its matrix, one for each axis."""
    (x,) = operands
    kind, lengths = int(eqn.params["fft_type"]), eqn.params["fft_lengths"]
    struct = struct_of(eqn.invars[0])
    inverse, of_real, to_real = kind in (1, 3), kind == 2, kind == 3
    axes = list(range(len(struct.shape) - len(lengths), len(struct.shape)))
    dtype = struct.dtype if of_real else real_dtype(struct.dtype)
    pair = x if isinstance(x, Pair) else Pair(x, None)
    # The transform of real numbers begins with the last axis, and the one to real numbers ends so.
    for axis, length in sorted(zip(axes, lengths, strict=True), reverse=of_real):
        halved = (of_real or to_real) and axis == axes[-1]
        matrix = _fourier_matrix(length, inverse)
        if halved and of_real:
            matrix = matrix[:, : length // 2 + 1]
        elif halved:
            rows = matrix[: length // 2 + 1]
            rows[1 : (length + 1) // 2] *= 2  # each stands for its conjugate, too
            matrix = rows
        parts = Pair(*(np.asarray(part, dtype) for part in (matrix.real, matrix.imag)))
        pair = _multiply(pair, parts, functools.partial(_along, axis))
        if halved and to_real:
            return [filled(pair, jax.ShapeDtypeStruct((), np.complex64)).real]
    return [pair]


def _fourier_matrix(length: int, inverse: bool) -> np.ndarray:
    """Return the matrix (length, length) of a discrete Fourier transform."""
    turns = np.outer(np.arange(length), np.arange(length)) % length
    if inverse:
        return np.exp(2j * np.pi / length * turns) / length
    return np.exp(-2j * np.pi / length * turns)


def _along(axis: int, x: Part, matrix: np.ndarray) -> Part:
    """Multiply one axis of an array by a matrix."""
    if x is None:
        return None
    contracted = (((axis,), (0,)), ((), ()))
    product = lax.dot_general(x, matrix, contracted, precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(product, -1, axis)


_PARTWISE = (
    "add add_any broadcast_in_dim concatenate copy copy_p cumsum dynamic_slice "
    "dynamic_update_slice expand_dims gather name neg optimization_barrier pad reduce_sum reshape "
    "rev scatter select_n slice split squeeze stack stop_gradient sub tile transpose unstack"
).split()

PAIR_RULES: dict[str, PairRule] = {
    **dict.fromkeys(_PARTWISE, _each_part),
    **dict.fromkeys(("dot_general", "conv_general_dilated"), _contraction),
    **dict.fromkeys(("eq", "ne"), _comparison),
    "abs": _on_pairs(_size),
    "complex": _on_pairs(Pair),
    "conj": _on_pairs(lambda a: Pair(a.real, _sub(None, a.imag))),
    "convert_element_type": _conversion,
    "div": _on_pairs(_divide),
    "exp": _on_pairs(_exp),
    "fft": _fourier,
    "imag": _part("imag"),
    "integer_pow": lambda eqn, operands: [_power(operands[0], eqn.params["y"])],
    "log": _on_pairs(_log),
    "mul": _on_pairs(_multiply),
    "real": _part("real"),
    "square": _on_pairs(lambda a: _multiply(a, a)),
}
