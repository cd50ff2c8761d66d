"""How one affine map shares out the relevance of what it answers among its inputs."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np

from jaxattn.jaxpr.propagation import modified_layer as maps
from jaxattn.jaxpr.structure.graph import Affine, Structure

Kind = Literal[
    "epsilon", "z", "gamma", "alpha_beta", "z_plus", "w_square", "flat", "bounded", "z_b"
]


class LRPRule(NamedTuple):
    """How a layer shares relevance out among its inputs; see `jaxattn.lrp`.

    Attributes:
        kind: which rule.
        epsilon: what `"epsilon"` adds to the size of each denominator.
        gamma: how much more `"gamma"` weighs positive weights.
        alpha: how much of the relevance `"alpha_beta"` gives to positive contributions; `alpha - 1`
            is taken from the negative ones.
        low: the least value that an input may have, for `"bounded"`.
        high: the largest.
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
    epsilon: Any = 1e-3
    gamma: Any = 0.25
    alpha: Any = 2.0
    low: Any = None
    high: Any = None
    ignore_bias: bool = False

    def check(self) -> "LRPRule":
        """Refuses what is no rule.

        Raises:
            ValueError: for an unknown kind, a negative `epsilon` or `gamma`, an `alpha` below 1, or
                bounds that are missing.
        """
        if self.kind not in get_args(Kind):
            known = ", ".join(map(repr, get_args(Kind)))
            raise ValueError(f"rule must be one of {known}, got {self.kind!r}")
        for name, least in (("epsilon", 0), ("gamma", 0), ("alpha", 1)):
            value = getattr(self, name)
            if isinstance(value, (int, float)):
                if not least <= value < float("inf"):
                    raise ValueError(f"{name} must be at least {least} and finite, got {value}")
            elif not hasattr(value, "dtype") or value.ndim:
                raise TypeError(f"{name} must be one number, got {value!r}")
        plain = all(isinstance(end, (int, float)) for end in (self.low, self.high))
        if plain and self.low > self.high:
            raise ValueError(f"low must not be above high, got {self.low} and {self.high}")
        if self.kind in ("bounded", "z_b") and (self.low is None or self.high is None):
            raise ValueError(
                'rule="bounded" wants low and high, the least and the largest value that an input '
                f"may have, got low={self.low} and high={self.high}"
            )
        return self


def stabilised(z: Any, epsilon: Any) -> Any:
    """`z`, moved away from zero."""
    epsilon = jnp.asarray(epsilon, z.dtype)
    return z + jnp.where(z >= 0, epsilon, -epsilon)


def quotient(a: Any, b: Any) -> Any:
    """`a / b`, and 0 where `b` is."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def share(
    rule: LRPRule, structure: Structure, affine: Affine, read: maps.Read, given: Any
) -> tuple[list[Any], Any]:
    """What each input of an affine map gets of the relevance of its output.

    Args:
        rule: how.
        structure: the function that the map is a part of.
        affine: the map.
        read: the value of an operand.
        given: the relevance of the output.

    Returns:
        the relevance of the inputs, and for each cell of the output what they did not get.
    """
    inputs = [read(v) for v in affine.inputs]
    if rule.kind in ("epsilon", "z"):
        epsilon = rule.epsilon if rule.kind == "epsilon" else 0.0
        return _proportional(structure, affine, read, inputs, given, epsilon)
    if rule.kind in ("w_square", "flat"):
        return _by_weights(rule, structure, affine, read, inputs, given)
    if rule.kind in ("bounded", "z_b"):
        return _bounded(rule, structure, affine, read, inputs, given)
    if rule.kind == "gamma":
        return _gamma(rule, structure, affine, read, inputs, given)
    return _by_sign(rule, structure, affine, read, inputs, given)


def _proportional(
    structure: Structure,
    affine: Affine,
    read: maps.Read,
    inputs: Sequence[Any],
    given: Any,
    epsilon: Any,
) -> tuple[list[Any], Any]:
    z = read(affine.output)
    # In half precision a small number is none.
    positive = isinstance(epsilon, (int, float)) and np.asarray(epsilon, z.dtype) > 0
    denominator = stabilised(z, epsilon)
    s = given / denominator if positive else quotient(given, denominator)
    slopes = maps.transposed(maps.plain(affine, read), inputs, s)
    bias = maps.shift(structure, affine, read)
    # A cell that a mask holds at minus infinity takes no part.
    own = z if bias is None else jnp.where(jnp.isfinite(z), z - bias, 0)
    return [x * g for x, g in zip(inputs, slopes, strict=True)], given - s * own


def _by_weights(
    rule: LRPRule,
    structure: Structure,
    affine: Affine,
    read: maps.Read,
    inputs: Sequence[Any],
    given: Any,
) -> tuple[list[Any], Any]:
    """By the weights alone, whatever the inputs."""
    if rule.kind == "flat":
        weigh = maps.ones(structure, affine, read)
    else:
        weigh = maps.changed(structure, affine, read, lambda weight, contracts: weight * weight)
    every = [jnp.ones_like(x) for x in inputs]
    total = weigh(*every)
    s = quotient(given, total)
    return list(maps.transposed(weigh, every, s)), given - s * total


def _bounded(
    rule: LRPRule,
    structure: Structure,
    affine: Affine,
    read: maps.Read,
    inputs: Sequence[Any],
    given: Any,
) -> tuple[list[Any], Any]:
    """By the distance of each input from the end of its range that the weight points away from."""
    lows = [_bound("low", rule.low, x) for x in inputs]
    highs = [_bound("high", rule.high, x) for x in inputs]
    by_sign = maps.signed(structure, affine, read)

    def parts(x: Sequence[Any], low: Sequence[Any], high: Sequence[Any]) -> Any:
        def through(values: Sequence[Any]) -> Any:
            return by_sign(*[(v, jnp.zeros_like(v)) for v in values])

        return sum(through(x)) - through(low)[0] - through(high)[1]

    total = parts(inputs, lows, highs)
    s = quotient(given, total)
    of_x, of_low, of_high = maps.transposed(parts, (inputs, lows, highs), s)
    shares = [
        x * a + low * b + high * c
        for x, a, low, b, high, c in zip(inputs, of_x, lows, of_low, highs, of_high, strict=True)
    ]
    return shares, given - s * total


def _bound(name: str, value: Any, x: Any) -> Any:
    try:
        return jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape)
    except ValueError as error:
        raise ValueError(
            f"{name} of shape {jnp.shape(value)} does not broadcast to the input of shape "
            f'{x.shape} of a layer with rule "bounded": give numbers, or choose the rule for the '
            "first layer only"
        ) from error


def _gamma(
    rule: LRPRule,
    structure: Structure,
    affine: Affine,
    read: maps.Read,
    inputs: Sequence[Any],
    given: Any,
) -> tuple[list[Any], Any]:
    by_sign = maps.signed(structure, affine, read)

    def weigh(*inputs: Any) -> Any:
        up, down = by_sign(*[(x, jnp.zeros_like(x)) for x in inputs])
        return up + down + jnp.asarray(rule.gamma, up.dtype) * up

    own = weigh(*inputs)
    bias = maps.shift(structure, affine, read)
    total = own
    if bias is not None:
        total = own + bias + jnp.asarray(rule.gamma, own.dtype) * jnp.maximum(bias, 0)
        own = jnp.where(jnp.isfinite(bias), own, 0)
    s = quotient(given, total)
    slopes = maps.transposed(weigh, inputs, s)
    return [x * g for x, g in zip(inputs, slopes, strict=True)], given - s * own


def _by_sign(
    rule: LRPRule,
    structure: Structure,
    affine: Affine,
    read: maps.Read,
    inputs: Sequence[Any],
    given: Any,
) -> tuple[list[Any], Any]:
    """Positive and negative contributions apart."""
    by_sign = maps.signed(structure, affine, read)
    pairs = [(jnp.maximum(x, 0), jnp.minimum(x, 0)) for x in inputs]
    up, down = by_sign(*pairs)
    ignored = rule.kind == "z_plus" or rule.ignore_bias
    bias = None if ignored else maps.shift(structure, affine, read)
    above, below = up, down
    if bias is not None:
        above, below = up + jnp.maximum(bias, 0), down + jnp.minimum(bias, 0)
    alpha = jnp.asarray(rule.alpha if rule.kind == "alpha_beta" else 1.0, up.dtype)
    of_up, of_down = alpha * quotient(given, above), (1 - alpha) * quotient(given, below)
    slopes = maps.transposed(by_sign, pairs, (of_up, of_down))
    shares = [p * a + n * b for (p, n), (a, b) in zip(pairs, slopes, strict=True)]
    return shares, given - of_up * up - of_down * down


def share_equally(
    structure: Structure, affine: Affine, read: maps.Read, lost: Any
) -> tuple[list[Any], Any]:
    """Gives what got lost at each output cell to the input cells that it is connected with.

    Returns:
        what each input gets, and what found no cell.
    """
    weigh = maps.ones(structure, affine, read)
    every = [jnp.ones(v.shape, v.aval.dtype) for v in affine.inputs]
    count = weigh(*every)
    each = quotient(lost, count)
    return list(maps.transposed(weigh, every, each)), jnp.where(count == 0, lost, 0)
