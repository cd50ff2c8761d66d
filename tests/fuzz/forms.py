"""Two readings of a network: as it is computed, and as LRP linearises it.

LRP-0 redistributes relevance in proportion to contributions. Its relevance is therefore the input
times the gradient of a linearised network: activations become products with a constant slope
through the origin, gates and statistics of normalisations become constants, and each factor of a
product of two signals takes one half. `jax.lax.stop_gradient` writes this network, without rules
for layers, sums or loops.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

fixed = jax.lax.stop_gradient


class Forms(NamedTuple):
    """The form of each operation that LRP treats in a way of its own.

    Attributes:
        activation: applies an elementwise function to a value.
        gate: returns a gate, given the gate.
        centre: subtracts a mean from a value.
        statistic: returns a factor that is a statistic.
        product: multiplies two signals.
        weights: returns attention weights, given the weights.
        contraction: multiplies two values with a function that is linear in each.
    """

    activation: Callable
    gate: Callable
    centre: Callable
    statistic: Callable
    product: Callable
    weights: Callable
    contraction: Callable


def _same(x):
    return x


#: Stands for an output of zero: a line through the origin has no slope where its output is zero,
#: and relevance passes through a unit that is off if the signal is centred behind it.
_TINY = 1e-100


def _slope(fn, z):
    """Return z times the slope of the line from the origin to fn(z)."""
    value = fn(z)
    value = jnp.where(value == 0, _TINY, value)
    ratio = jnp.where(z == 0, 0.0, value / jnp.where(z == 0, 1.0, z))
    return z * fixed(ratio)


def _half(multiply, a, b):
    return 0.5 * (multiply(fixed(a), b) + multiply(a, fixed(b)))


PLAIN = Forms(
    activation=lambda fn, z: fn(z),
    gate=_same,
    centre=lambda x, mean: x - mean,
    statistic=_same,
    product=lambda a, b: a * b,
    weights=_same,
    contraction=lambda multiply, a, b: multiply(a, b),
)
#: CP-LRP: attention weights are gates.
CP_LRP = Forms(
    activation=_slope,
    gate=fixed,
    centre=lambda x, mean: _slope(lambda x: x - mean, x),
    statistic=fixed,
    product=lambda a, b: _half(jnp.multiply, a, b),
    weights=fixed,
    contraction=lambda multiply, a, b: multiply(fixed(a), b),
)
#: AttnLRP: the Taylor expansion of a softmax is its gradient, and products take halves.
ATTN_LRP = CP_LRP._replace(weights=_same, contraction=_half)
