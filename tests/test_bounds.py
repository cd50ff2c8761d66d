"""Test interval arithmetic: values are within their bounds for all inputs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.jaxpr.flat import flatten
from jaxattn.jaxpr.structure.analysis import analyse
from jaxattn.jaxpr.structure.bounds import INF, Bounds, literal_bounds, union, widen
from jaxattn.jaxpr.structure.facts import Fact

rng = np.random.default_rng(0)
INTERVALS = [(-2.0, 3.0), (0.0, 1.0), (0.5, 2.0), (-3.0, -1.0), (0.0, INF), (-INF, INF)]

UNARY = {
    "abs": jnp.abs,
    "clamp": lambda x: jnp.clip(x, -1, 2),
    "cos": jnp.cos,
    "cumsum": lambda x: jnp.cumsum(jnp.stack([x, x]))[1],
    "erf": jax.lax.erf,
    "erfc": jax.lax.erfc,
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "integer_pow": lambda x: x**3,
    "log1p": jnp.log1p,
    "logistic": jax.nn.sigmoid,
    "neg": lambda x: -x,
    "reduce_max": lambda x: jnp.stack([x, x - 1]).max(),
    "reduce_sum": lambda x: jnp.stack([x, x]).sum(),
    "rsqrt": jax.lax.rsqrt,
    "sign": jnp.sign,
    "sin": jnp.sin,
    "sort": lambda x: jnp.sort(jnp.stack([x, -x]))[0],
    "sqrt": jnp.sqrt,
    "square": jnp.square,
    "square as a product": lambda x: x * x,
    "tanh": jnp.tanh,
}
BINARY = {
    "add": lambda x, y: x + y,
    "concatenate": lambda x, y: jnp.concatenate([x[None], y[None]])[1],
    "div": lambda x, y: x / y,
    "max": jnp.maximum,
    "min": jnp.minimum,
    "mul": lambda x, y: x * y,
    "select_n": lambda x, y: jnp.where(x > y, x, y + x),
    "sub": lambda x, y: x - y,
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def bounds_of(fn, *cases):
    """Return the bounds of a function's output for each case, a tuple of operand bounds."""
    flat = flatten(jax.make_jaxpr(fn)(*[jnp.zeros(())] * len(cases[0])))
    facts = ([Fact(bounds=Bounds(*interval)) for interval in case] for case in cases)
    return [analyse(flat, inputs).fact(flat.outputs[0]).bounds for inputs in facts]


def points_of(interval):
    low, high = np.clip(interval, -30, 30)
    return np.concatenate([[low, high], rng.uniform(low, high, 98)])


def assert_sound(fn, *cases):
    points = np.stack([np.stack(list(map(points_of, case)), -1) for case in cases])
    values = jax.jit(jax.vmap(jax.vmap(lambda operands: fn(*operands))))(points)
    for bounds, inside in zip(bounds_of(fn, *cases), np.asarray(values), strict=True):
        inside = inside[~np.isnan(inside)]  # NaN outside of the function's domain
        assert (bounds.low - 1e-9 <= inside).all() and (inside <= bounds.high + 1e-9).all()


@pytest.mark.parametrize("name", UNARY)
def test_unary_operations_are_within_bounds(name):
    assert_sound(UNARY[name], *itertools.product(INTERVALS))


@pytest.mark.parametrize("name", BINARY)
def test_binary_operations_are_within_bounds(name):
    assert_sound(BINARY[name], *itertools.product(INTERVALS, repeat=2))


def test_negative_powers_are_within_bounds():
    assert_sound(lambda x: x**-1, [(0.5, 1.0)])


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (jax.nn.sigmoid, (0, 1)),
        (lambda x: 1 / (1 + jnp.exp(-x)), (0, 1)),
        (lambda x: 0.5 * jnp.tanh(x) + 0.5, (0, 1)),
        (lambda x: 1 - jax.nn.sigmoid(x), (0, 1)),
        (jax.nn.relu, (0, INF)),
        (jnp.sinh, (-INF, INF)),
    ],
)
def test_bounds_of_activations_are_tight(fn, expected):
    assert bounds_of(fn, [(-INF, INF)]) == [expected]


def test_loop_widens_growing_bounds():
    def count(x):
        return jax.lax.fori_loop(0, 3, lambda _, c: (c[0] + 1, jnp.tanh(c[1])), (x, x))

    flat = flatten(jax.make_jaxpr(count)(jnp.zeros(())))
    structure = analyse(flat, [Fact(bounds=Bounds(0.0, 1.0))])
    grown, bounded = (structure.fact(atom).bounds for atom in flat.outputs)
    assert grown == (1, INF)
    assert bounded.low == 0 and bounded.high <= 1


def test_unions_and_widening():
    assert union([Bounds(0, 1), Bounds(-1, 0.5)]) == (-1, 1)
    assert widen(Bounds(0, 1), Bounds(0, 2)) == (0, INF)
    assert widen(Bounds(0, 1), Bounds(-1, 1)) == (-INF, 1)
    assert Bounds(0, 1).within_unit and not Bounds(0, 2).within_unit
    assert Bounds(0, 1).is_finite and not Bounds(0).is_finite


def test_bounds_of_literals():
    flat = flatten(jax.make_jaxpr(lambda x: x + 2.0)(jnp.zeros(())))
    assert literal_bounds(flat.steps[0].inputs[1]) == (2, 2)
