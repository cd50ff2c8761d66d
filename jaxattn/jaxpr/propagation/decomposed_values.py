"""Values in a relevant part, an irrelevant part and a bias, and how functions divide them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


class Split(NamedTuple):
    """The parts of a value, which sum to it."""

    relevant: Array
    irrelevant: Array
    bias: Array


class Parts(NamedTuple):
    """The parts of a value that depends on the input.

    Attributes:
        relevant: the part of the phrase.
        irrelevant: the part of its context.
        bias: the part of neither.
        in_phrase: 1 for each element that depends on features of the phrase, else 0; `None` in
            loops, where the steps of the loop are in the phrase or not.
    """

    relevant: Array
    irrelevant: Array
    bias: Array
    in_phrase: Array | None

    @property
    def total(self) -> Array:
        """The value itself."""
        return self.relevant + self.irrelevant + self.bias


#: A value: in parts if it depends on the input.
Value: TypeAlias = Parts | ArrayLike
#: A step as a function of the operands that are in parts.
Apply: TypeAlias = Callable[..., Sequence[Array]]


def in_parts(value: Value) -> Parts:
    """Give a value that does not depend on the input to the context."""
    if isinstance(value, Parts):
        return value
    value = jnp.asarray(value)
    return Parts(jnp.zeros_like(value), value, jnp.zeros_like(value), None)


def without_mask(value: Value) -> Value:
    """Drop the mask of a value that goes into a loop."""
    return value._replace(in_phrase=None) if isinstance(value, Parts) else value


def with_mask(value: Value, steps: Array) -> Value:
    """Return an output of a loop with its mask.

    Args:
        value: the output.
        steps: whether each step of the loop is in the phrase (T,), for stacked outputs; or whether
            any is (), for carried ones.
    """
    if not isinstance(value, Parts):
        return value
    like = value.relevant
    mask = steps.reshape(*steps.shape, *[1] * (like.ndim - 1)) if steps.ndim else steps
    return value._replace(in_phrase=jnp.broadcast_to(mask, like.shape).astype(like.dtype))


def linearly(apply: Apply, parts: list[Parts]) -> list[Split]:
    """Apply a linear step to each part; its constants are added to the bias."""
    biases = [p.bias for p in parts]
    bias, relevant = jax.jvp(apply, biases, [p.relevant for p in parts])
    _, irrelevant = jax.jvp(apply, biases, [p.irrelevant for p in parts])
    return [Split(*parts) for parts in zip(relevant, irrelevant, bias, strict=True)]


def jointly(apply: Apply, parts: list[Parts]) -> list[Split]:
    """Take the mean over the two orders in which both parts may be added to the bias.

    Where the function is not finite for some of the parts, such as a logarithm, all is irrelevant.
    """
    bias = apply(*[p.bias for p in parts])
    with_relevant = apply(*[p.relevant + p.bias for p in parts])
    with_irrelevant = apply(*[p.irrelevant + p.bias for p in parts])
    whole = apply(*[p.total for p in parts])
    splits = []
    for b, r, i, w in zip(bias, with_relevant, with_irrelevant, whole, strict=True):
        if not jnp.issubdtype(w.dtype, jnp.inexact):
            splits.append(Split(w, w, w))
            continue
        relevant = jnp.asarray(0.5, b.dtype) * (r - b + w - i)
        finite = jnp.isfinite(relevant) & jnp.isfinite(b)
        relevant, b = jnp.where(finite, relevant, 0), jnp.where(finite, b, 0)
        splits.append(Split(relevant, w - b - relevant, b))
    return splits
