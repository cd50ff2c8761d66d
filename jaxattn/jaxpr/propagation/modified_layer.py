"""The affine maps of a function, with their coefficients as they are or modified.

Relevance rules modify coefficients: they square them, replace them by ones, or keep their positive
parts. A map's matrix of coefficients is never built: its own steps are computed with modified
operands.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jaxattn.jaxpr.flat import Atom, Step
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.propagation.walk import Read
from jaxattn.jaxpr.propagation.windowed_layer import WindowedLayer
from jaxattn.jaxpr.structure.affine import Affine
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.primitive_classes import CONTRACTING

#: Modifies a coefficient, or the weights of a contraction (if the second argument is true).
Change: TypeAlias = Callable[[Array, bool], Array]
#: An affine or linear function of a map's inputs.
Map: TypeAlias = Callable[..., Array]
#: Applies a bilinear step to an input and its coefficient.
Apply: TypeAlias = Callable[[Array, Array], Array]


class Signed(NamedTuple):
    """The positive and the negative part of an array, which sum to it."""

    positive: Array
    negative: Array

    @classmethod
    def of(cls, x: Array) -> "Signed":
        """Split an array by its sign."""
        return cls(jnp.maximum(x, 0), jnp.minimum(x, 0))


T = TypeVar("T", Array, Signed)


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """An affine map of a function, with the values of its operands.

    Attributes:
        structure: the function.
        affine: the map.
        read: returns the value of an operand.
    """

    structure: Structure
    affine: Affine
    read: Read

    @property
    def inputs(self) -> list[Array]:
        """The values of the map's inputs."""
        return [jnp.asarray(self.read(var)) for var in self.affine.inputs]

    @property
    def output(self) -> Array:
        """The value of the map's output."""
        return jnp.asarray(self.read(self.affine.output))

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the map's output."""
        dtype: np.dtype = self.affine.output.aval.dtype
        return dtype

    def unmodified(self, *inputs: Array) -> Array:
        """Apply the map as it is, with its biases."""
        return WindowedLayer(self.affine, self.read, inputs).output()

    def bias(self) -> ArrayLike | None:
        """Return what the map adds whatever its inputs; `None` where it adds nothing."""
        env: dict[Atom, ArrayLike | None] = dict.fromkeys(self.affine.inputs)
        for step in self.affine.steps:
            own = [i for i, atom in enumerate(step.inputs) if atom in env]
            values = [env[a] if a in env else self.read(a) for a in step.inputs]
            if self.structure.adds(step) or self.structure.shifts(step):
                # A scalar that is written in the program has no shape.
                total, out = _sum(step, *values), step.outputs[0]
                env[out] = None if total is None else jnp.broadcast_to(total, out.shape)
            elif all(values[i] is None for i in own) and not any(
                _is_data(step, i) for i in range(len(values)) if i not in own
            ):
                env.update(dict.fromkeys(step.outputs))
            else:
                operands = [
                    jnp.zeros(atom.aval.shape, atom.aval.dtype) if value is None else value
                    for atom, value in zip(step.inputs, values, strict=True)
                ]
                env.update(zip(step.outputs, bind(step.eqn, operands), strict=True))
        return env[self.affine.output]

    def with_coefficients(self, change: Change) -> Map:
        """Return the map with `change(weight, contracts)` for its coefficients, without biases."""

        def run(*inputs: Array) -> Array:
            return _evaluate(self, inputs, _Changed(change))

        return run

    def with_ones(self) -> Map:
        """Return the map with 1 for every coefficient, and 0 for those that mask."""

        def change(weight: Array, contracts: bool) -> Array:
            return jnp.ones_like(weight) if contracts else (weight != 0).astype(weight.dtype)

        return self.with_coefficients(change)

    def by_sign(self) -> Callable[..., Signed]:
        """Return the map on positive and negative parts, without biases.

        Applied to `Signed.of(x)` it returns the sums of the positive and of the negative
        contributions; applied to `Signed(x, 0)` the contributions through positive and through
        negative coefficients.
        """

        def run(*inputs: Signed) -> Signed:
            return _evaluate(self, inputs, _BySign())

        return run


class _Arithmetic(abc.ABC, Generic[T]):
    """A function that evaluates the steps of a map on its values."""

    @abc.abstractmethod
    def negate(self, x: T) -> T:
        """Return `-x`."""

    @abc.abstractmethod
    def add(self, x: T, y: T) -> T:
        """Return `x + y`."""

    @abc.abstractmethod
    def weigh(self, apply: Apply, x: T, weight: Array, contracts: bool) -> T:
        """Apply a coefficient, or contract with weights."""

    @abc.abstractmethod
    def lay_out(self, move: Callable[..., list[Array]], values: list[T]) -> list[T]:
        """Apply a step that moves elements or sums them."""


class _Changed(_Arithmetic[Array]):
    """Arithmetic with modified coefficients."""

    def __init__(self, change: Change) -> None:
        self.change = change

    def negate(self, x: Array) -> Array:
        return self.change(-jnp.ones((), x.dtype), False) * x

    def add(self, x: Array, y: Array) -> Array:
        return x + y

    def weigh(self, apply: Apply, x: Array, weight: Array, contracts: bool) -> Array:
        return apply(x, self.change(weight, contracts))

    def lay_out(self, move: Callable[..., list[Array]], values: list[Array]) -> list[Array]:
        return move(*values)


class _BySign(_Arithmetic[Signed]):
    """Arithmetic on positive and negative parts."""

    def negate(self, x: Signed) -> Signed:
        return Signed(-x.negative, -x.positive)

    def add(self, x: Signed, y: Signed) -> Signed:
        return Signed(x.positive + y.positive, x.negative + y.negative)

    def weigh(self, apply: Apply, x: Signed, weight: Array, contracts: bool) -> Signed:
        weights = Signed.of(weight)
        return Signed(
            apply(x.positive, weights.positive) + apply(x.negative, weights.negative),
            apply(x.positive, weights.negative) + apply(x.negative, weights.positive),
        )

    def lay_out(self, move: Callable[..., list[Array]], values: list[Signed]) -> list[Signed]:
        positive = move(*(value.positive for value in values))
        negative = move(*(value.negative for value in values))
        return [Signed(*parts) for parts in zip(positive, negative, strict=True)]


def _evaluate(layer: Layer, inputs: Sequence[T], arithmetic: _Arithmetic[T]) -> T:
    """Compute a map without its biases."""
    env: dict[Atom, T] = dict(zip(layer.affine.inputs, inputs, strict=True))
    for step in layer.affine.steps:
        own = [i for i, atom in enumerate(step.inputs) if atom in env]
        values = [env[step.inputs[i]] for i in own]
        if step.name == "neg":
            outputs = [arithmetic.negate(values[0])]
        elif step.name in ("add", "add_any", "sub"):
            if step.name == "sub" and 1 in own:
                values[-1] = arithmetic.negate(values[-1])
            whole = values[0] if len(values) == 1 else arithmetic.add(*values)
            # The shape of the sum may have been that of a constant, which is left out here.
            shape: tuple[int, ...] = step.outputs[0].shape
            outputs = [jax.tree.map(lambda x, s=shape: jnp.broadcast_to(x, s), whole)]
        elif layer.structure.scales(step) or step.name in CONTRACTING:
            (position,), (x,) = own, values
            outputs = [_weighed(step, position, x, layer.read, arithmetic)]
        else:
            outputs = arithmetic.lay_out(_mover(step, own, layer.read), values)
        env.update(zip(step.outputs, outputs, strict=True))
    return env[layer.affine.output]


def _weighed(step: Step, position: int, x: T, read: Read, arithmetic: _Arithmetic[T]) -> T:
    """Apply a product, a quotient or a contraction of which one operand is constant."""
    constant = step.inputs[1 - position]
    weight = jnp.asarray(read(constant), constant.aval.dtype)

    def apply(x: Array, weight: Array) -> Array:
        if step.name == "div":
            return x * weight
        return bind(step.eqn, (x, weight) if position == 0 else (weight, x))[0]

    if step.name == "div":
        weight = 1 / weight
    return arithmetic.weigh(apply, x, weight, step.name in CONTRACTING)


def _mover(step: Step, own: list[int], read: Read) -> Callable[..., list[Array]]:
    """Return a step as a function of its operands `own`, with zeros for constant data."""

    def move(*values: Array) -> list[Array]:
        given: dict[int, ArrayLike] = dict(zip(own, values, strict=True))
        operands = []
        for i, atom in enumerate(step.inputs):
            if i not in given and _is_data(step, i):
                given[i] = jnp.zeros(atom.aval.shape, atom.aval.dtype)
            operands.append(given[i] if i in given else read(atom))
        return list(bind(step.eqn, operands))

    return move


def _is_data(step: Step, position: int) -> bool:
    """Return whether an operand's elements are put out, not used as indices or weights."""
    if step.name in ("mul", "div") or step.name in CONTRACTING:
        return False
    return bool(jnp.issubdtype(step.inputs[position].aval.dtype, jnp.floating))


def _sum(step: Step, first: ArrayLike | None, second: ArrayLike | None) -> ArrayLike | None:
    """Add or subtract two constants, of which `None` is zero."""
    if step.name == "sub" and second is not None:
        second = -second  # type: ignore[operator]
    if first is None or second is None:
        return second if first is None else first
    return first + second  # type: ignore[operator]


def transposed(
    f: Callable[..., PyTree], inputs: Sequence[PyTree], cotangent: PyTree
) -> tuple[PyTree, ...]:
    """Apply the transpose of the linear part of an affine function to a cotangent.

    Args:
        f: the function.
        inputs: its arguments, pytrees of arrays, where it is transposed.
        cotangent: of its output, in the structure of the output.

    Returns:
        the cotangents of the inputs, in their structure.
    """
    return tuple(jax.vjp(f, *inputs)[1](cotangent))
