"""LRP of programs as they are written: slices with strides, associative scans, routing, writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from relevance_reference import compiled

import jaxattn as ja

T, D, H = 6, 3, 4
rng = np.random.default_rng(0)
X, W, V = rng.normal(size=(T, D)), rng.normal(size=(D, H)), rng.normal(size=(D, H))
DECAY = np.exp(-rng.random(H))
ORDER = np.array([2, 0, 5])


@pytest.fixture(autouse=True)
def float64(x64):
    pass


def check_conservation(found):
    whole = found.values.sum() + found.info["absorbed"]
    np.testing.assert_allclose(whole, found.output, rtol=0, atol=1e-10)


def compare(fn, want, x=X, rtol=1e-10, **options):
    """Compare the relevance of two ways to write a function."""
    both = compiled(lambda x: [ja.lrp(f, x, **options) for f in (fn, want)])
    got, wanted = both(jnp.asarray(x))
    np.testing.assert_allclose(got.output, wanted.output, rtol=1e-10)
    scale = abs(wanted.values).max()
    assert scale > 1e-2
    np.testing.assert_allclose(got.values, wanted.values, rtol=0, atol=rtol * scale)
    check_conservation(got)


# Slices of a layer.


def summed(select):
    return lambda x: jnp.tanh(select(x)).sum()


def gated(gate, signal):
    return lambda x: (jax.nn.sigmoid(gate(x)) * signal(x)).sum()


SLICES = {
    "rows": (summed(lambda x: (x @ W)[::2]), summed(lambda x: x[::2] @ W)),
    "rows, sum alone": (lambda x: (x @ W)[::2].sum(0)[1], lambda x: (x[::2] @ W).sum(0)[1]),
    "reversed rows": (summed(lambda x: (x @ W)[::-2]), summed(lambda x: x[::-2] @ W)),
    "units": (summed(lambda x: (x @ W)[:, ::2]), summed(lambda x: x @ W[:, ::2])),
    "slice of a slice": (
        summed(lambda x: (x @ W)[1:, ::2][::2, 1:]),
        summed(lambda x: x[1::2] @ W[:, 2:3]),
    ),
    "empty slice": (
        summed(lambda x: jnp.concatenate([(x @ W)[::2][3:], (x @ W)[1::2]])),
        summed(lambda x: x[1::2] @ W),
    ),
    "gate and signal in turns": (
        gated(lambda x: (x @ W)[:, ::2], lambda x: (x @ W)[:, 1::2]),
        gated(lambda x: x @ W[:, ::2], lambda x: x @ W[:, 1::2]),
    ),
    "interleaved parts": (
        summed(lambda x: jnp.stack(jnp.split(x @ W, 2, 1), -1).reshape(T, H)[:, ::2]),
        summed(lambda x: x @ W[:, :2]),
    ),
    "constant indices": (summed(lambda x: (x @ W)[ORDER]), summed(lambda x: x[ORDER] @ W)),
    "rolled": (
        summed(lambda x: jnp.roll(x @ W, 2, 0)[:3]),
        summed(lambda x: x[np.array([4, 5, 0])] @ W),
    ),
    "zeros between rows": (
        summed(lambda x: jax.lax.pad(x @ W, 0.0, [(1, 1, 2), (0, 0, 0)])[1::3]),
        summed(lambda x: x @ W),
    ),
    "depth to space": (
        summed(lambda x: (x @ W).reshape(3, 2, 2, 2).transpose(0, 2, 1, 3).reshape(6, 4)[::2]),
        summed(lambda x: (x @ W[:, :2]).reshape(3, 4)),
    ),
}


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "flat"])
@pytest.mark.parametrize("name", SLICES)
@pytest.mark.representatives("rows-epsilon", "gate and signal in turns-gamma", "empty slice-flat")
def test_slice_of_a_layer_is_the_layer_of_a_slice(name, rule):
    compare(*SLICES[name], rule=rule)


# Linear recurrences.


def combine(a, b):
    return a[0] * b[0], b[0] * a[1] + b[1]


def fixed_decay(x):
    return jnp.broadcast_to(DECAY, (len(x), H)), x @ W


def gates_of_the_input(x):
    gate = jax.nn.sigmoid(x @ W)
    return 1 - gate, gate * (x @ V)


def associative(rates, reverse=False):
    return lambda x: jnp.tanh(jax.lax.associative_scan(combine, rates(x), reverse=reverse)[1]).sum()


def sequential(rates, reverse=False):
    def advance(h, now):
        h = now[0] * h + now[1]
        return h, h

    zeros = jnp.zeros(H)
    return lambda x: jnp.tanh(jax.lax.scan(advance, zeros, rates(x), reverse=reverse)[1]).sum()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rates", [fixed_decay, gates_of_the_input])
@pytest.mark.representatives("fixed_decay-False")
def test_associative_scan_is_the_recurrence(rates, reverse):
    """The orders of summation differ, and agree without a stabiliser."""
    compare(associative(rates, reverse), sequential(rates, reverse), rule="z", rtol=1e-8)


def test_size_of_an_associative_scan_grows_with_the_logarithm_of_the_steps():
    def size(steps):
        x = jnp.ones((steps, D))
        return str(jax.make_jaxpr(lambda x: ja.lrp(associative(fixed_decay), x).values)(x)).count(
            "\n"
        )

    assert size(64) < 2.5 * size(8)
