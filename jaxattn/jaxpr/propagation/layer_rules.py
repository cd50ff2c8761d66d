"""Redistribute the relevance of one affine map's output among its inputs."""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxattn._types import check_bool
from jaxattn.jaxpr.propagation.modified_layer import Layer, Map, Signed, transposed

Kind = Literal[
    "epsilon", "z", "gamma", "alpha_beta", "z_plus", "w_square", "flat", "bounded", "z_b"
]


class LRPRule(NamedTuple):
    """A rule by which a layer redistributes relevance among its inputs; see `jaxattn.lrp`.

    Attributes:
        kind: the rule's name. `"z_b"` and `"bounded"` are two names of one rule.
        epsilon: the stabiliser that `"epsilon"` adds to the magnitude of each denominator.
        gamma: the additional weight that `"gamma"` gives to positive coefficients.
        alpha: the factor of positive contributions in `"alpha_beta"`; that of negative ones is
            `1 - alpha`.
        low: the lower bound of the inputs, for `"bounded"`.
        high: the upper bound.
        ignore_bias: whether `"alpha_beta"` leaves biases out of its denominators.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x @ jnp.array([1.0, 2.0, -1.0])
        >>> rule = ja.LRPRule("gamma", gamma=1.0)
        >>> print(ja.lrp(fn, jnp.array([2.0, 1.0, 2.0]), rule=rule).values)
        [ 1.3333334  1.3333334 -0.6666667]
    """

    kind: Kind = "epsilon"
    epsilon: ArrayLike = 1e-3
    gamma: ArrayLike = 0.25
    alpha: ArrayLike = 2.0
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    ignore_bias: bool = False

    def check(self) -> "LRPRule":
        """Validate the rule and return it.

        Raises:
            TypeError: if a parameter is not a number, or `ignore_bias` not a bool.
            ValueError: for an unknown kind, a negative `epsilon` or `gamma`, an `alpha` below 1, or
                missing bounds.
        """
        if self.kind not in get_args(Kind):
            known = ", ".join(map(repr, get_args(Kind)))
            raise ValueError(f"`rule` must be one of {known}, got {self.kind!r}.")
        for name, least in (("epsilon", 0), ("gamma", 0), ("alpha", 1)):
            _check_parameter(name, getattr(self, name), least)
        check_bool("ignore_bias", self.ignore_bias)
        low, high = self.low, self.high
        if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low > high:
            raise ValueError(f"`low` must not be above `high`, got {low} and {high}.")
        if self.kind in ("bounded", "z_b") and (low is None or high is None):
            raise ValueError(
                f'rule="{self.kind}" requires `low` and `high`, the bounds of the inputs, '
                f"got low={low} and high={high}."
            )
        return self


def _check_parameter(name: str, value: ArrayLike, least: int) -> None:
    if isinstance(value, (int, float)):
        if not least <= value < float("inf"):
            raise ValueError(f"`{name}` must be at least {least} and finite, got {value}.")
    elif not hasattr(value, "dtype") or jnp.ndim(value):
        raise TypeError(f"`{name}` must be one number, got {value!r}.")


class Redistribution(NamedTuple):
    """The relevance of a layer's output, redistributed.

    Attributes:
        inputs: the relevance of each input, of its shape.
        absorbed: the relevance that no input got, of the output's shape.
    """

    inputs: list[Array]
    absorbed: Array


def stabilised(z: Array, epsilon: ArrayLike) -> Array:
    """Return `z` with its magnitude increased by `epsilon`."""
    epsilon = jnp.asarray(epsilon, z.dtype)
    return z + jnp.where(z >= 0, epsilon, -epsilon)


def quotient(a: Array, b: Array) -> Array:
    """Return `a / b`, and 0 where `b` is 0."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def redistribute(rule: LRPRule, layer: Layer, relevance: Array) -> Redistribution:
    """Redistribute the relevance of a layer's output among its inputs.

    Args:
        rule: the rule.
        layer: the layer.
        relevance: of the layer's output.
    """
    return _REDISTRIBUTE[rule.kind](rule, layer, relevance)


def redistribute_equally(layer: Layer, relevance: Array) -> Redistribution:
    """Redistribute relevance equally among the features that each output element depends on."""
    weigh = layer.with_ones()
    ones = [jnp.ones(var.shape, var.aval.dtype) for var in layer.affine.inputs]
    count = weigh(*ones)
    each = quotient(relevance, count)
    inputs = list(transposed(weigh, ones, each))
    return Redistribution(inputs, jnp.where(count == 0, relevance, 0))


def _epsilon(rule: LRPRule, layer: Layer, relevance: Array) -> Redistribution:
    """Redistribute in proportion to the contributions, with a stabiliser."""
    return _proportional(layer, relevance, rule.epsilon)


def _z(rule: LRPRule, layer: Layer, relevance: Array) -> Redistribution:
    """Redistribute in proportion to the contributions."""
    return _proportional(layer, relevance, 0.0)


def _proportional(layer: Layer, relevance: Array, epsilon: ArrayLike) -> Redistribution:
    inputs = layer.inputs
    z = layer.output
    # In half precision a small number may be rounded to zero.
    positive = isinstance(epsilon, (int, float)) and np.asarray(epsilon, z.dtype) > 0
    denominator = stabilised(z, epsilon)
    s = relevance / denominator if positive else quotient(relevance, denominator)
    slopes = transposed(layer.unmodified, inputs, s)
    bias = layer.bias()
    # An element that a mask sets to minus infinity takes no part.
    own = z if bias is None else jnp.where(jnp.isfinite(z), z - bias, 0)
    contributions = [x * slope for x, slope in zip(inputs, slopes, strict=True)]
    return Redistribution(contributions, relevance - s * own)


def _flat(rule: LRPRule, layer: Layer, relevance: Array) -> Redistribution:
    """Redistribute equally, with the bias left out."""
    return _by_coefficients(layer, layer.with_ones(), relevance)


def _w_square(rule: LRPRule, layer: Layer, relevance: Array) -> Redistribution:
    """Redistribute in proportion to the squares of the coefficients."""
    squares = layer.with_coefficients(lambda weight, contracts: weight * weight)
    return _by_coefficients(layer, squares, relevance)


def _by_coefficients(layer: Layer, weigh: Map, relevance: Array) -> Redistribution:
    """Redistribute by coefficients alone, whatever the inputs."""
    ones = [jnp.ones_like(x) for x in layer.inputs]
    total = weigh(*ones)
    s = quotient(relevance, total)
    return Redistribution(list(transposed(weigh, ones, s)), relevance - s * total)


def _bounded(rule: LRPRule, layer: Layer, relevance: Array) -> Redistribution:
    """Redistribute by the z^B rule.

    An input contributes by its distance from the bound that its coefficient points away from.
    """
    inputs = layer.inputs
    lows = [_bound("low", rule.low, x) for x in inputs]
    highs = [_bound("high", rule.high, x) for x in inputs]
    by_sign = layer.by_sign()

    def contributions(x: list[Array], low: list[Array], high: list[Array]) -> Array:
        def through(values: list[Array]) -> Signed:
            return by_sign(*[Signed(v, jnp.zeros_like(v)) for v in values])

        positive, negative = through(x)
        return positive + negative - through(low).positive - through(high).negative

    total = contributions(inputs, lows, highs)
    s = quotient(relevance, total)
    of_x, of_low, of_high = transposed(contributions, (inputs, lows, highs), s)
    redistributed = [
        x * a + low * b + high * c
        for x, a, low, b, high, c in zip(inputs, of_x, lows, of_low, highs, of_high, strict=True)
    ]
    return Redistribution(redistributed, relevance - s * total)


def _bound(name: str, value: ArrayLike | None, x: Array) -> Array:
    bound = jnp.asarray(value, x.dtype)
    try:
        return jnp.broadcast_to(bound, x.shape)
    except ValueError as error:
        raise ValueError(
            f"`{name}` of shape {bound.shape} does not broadcast to the input of shape "
            f'{x.shape} of a layer with rule "bounded". Use numbers, or this rule only for the '
            "first layer."
        ) from error


def _gamma(rule: LRPRule, layer: Layer, relevance: Array) -> Redistribution:
    """Redistribute in proportion to contributions in which positive coefficients weigh more."""
    inputs, by_sign = layer.inputs, layer.by_sign()

    def weigh(*inputs: Array) -> Array:
        up, down = by_sign(*[Signed(x, jnp.zeros_like(x)) for x in inputs])
        return up + down + jnp.asarray(rule.gamma, up.dtype) * up

    own = weigh(*inputs)
    bias = layer.bias()
    total = own
    if bias is not None:
        total = own + bias + jnp.asarray(rule.gamma, own.dtype) * jnp.maximum(bias, 0)
        own = jnp.where(jnp.isfinite(bias), own, 0)
    s = quotient(relevance, total)
    slopes = transposed(weigh, inputs, s)
    contributions = [x * slope for x, slope in zip(inputs, slopes, strict=True)]
    return Redistribution(contributions, relevance - s * own)


def _alpha_beta(rule: LRPRule, layer: Layer, relevance: Array) -> Redistribution:
    """Redistribute by positive and negative contributions, each with a factor."""
    return _by_sign(layer, relevance, rule.alpha, with_bias=not rule.ignore_bias)


def _z_plus(rule: LRPRule, layer: Layer, relevance: Array) -> Redistribution:
    """Redistribute by positive contributions only."""
    return _by_sign(layer, relevance, 1.0, with_bias=False)


def _by_sign(
    layer: Layer, relevance: Array, alpha: ArrayLike, *, with_bias: bool
) -> Redistribution:
    by_sign = layer.by_sign()
    inputs = [Signed.of(x) for x in layer.inputs]
    up, down = by_sign(*inputs)
    bias = layer.bias() if with_bias else None
    above, below = up, down
    if bias is not None:
        above, below = up + jnp.maximum(bias, 0), down + jnp.minimum(bias, 0)
    alpha = jnp.asarray(alpha, up.dtype)
    s = Signed(alpha * quotient(relevance, above), (1 - alpha) * quotient(relevance, below))
    slopes = transposed(by_sign, inputs, s)
    contributions = [
        x.positive * slope.positive + x.negative * slope.negative
        for x, slope in zip(inputs, slopes, strict=True)
    ]
    return Redistribution(contributions, relevance - s.positive * up - s.negative * down)


_Rule: TypeAlias = Callable[[LRPRule, Layer, Array], Redistribution]
_REDISTRIBUTE: dict[Kind, _Rule] = {
    "epsilon": _epsilon,
    "z": _z,
    "gamma": _gamma,
    "alpha_beta": _alpha_beta,
    "z_plus": _z_plus,
    "w_square": _w_square,
    "flat": _flat,
    "bounded": _bounded,
    "z_b": _bounded,
}
