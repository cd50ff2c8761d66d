"""LRP of programs as they are written: slices with strides, associative scans, routing, writes."""

import re

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
ORDER, LAST = np.array([2, 0, 5]), np.array([4, 5, 0])


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


# Names of products.

Q, K = rng.normal(size=(D, D)), rng.normal(size=(D, D))


def attention_block(x):
    """Attention weighs values, in a block that also multiplies two signals."""
    with jax.named_scope("block"):
        weights = jax.nn.softmax(((x @ Q) @ jnp.cos(x).T) * 0.5)
        values = ja.tag(weights @ jnp.tanh(x @ K), "read")
        return (values * jnp.sin(x @ Q)).sum()


def normalised_block(x):
    with jax.named_scope("block"):
        h = jax.nn.sigmoid(x @ W) * (x @ V)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-6)
        h = jax.nn.silu(h)
        return (h * jnp.sin(x @ W)).sum()


@pytest.mark.parametrize("fn", [attention_block, normalised_block])
@pytest.mark.parametrize("choice", ["first", "half"])
@pytest.mark.representatives("first-attention_block")
def test_name_of_a_block_leaves_gates_and_normalisations(fn, choice):
    """All undecided products are divided alike, by default or by the name of their block."""
    by_default = ja.lrp(fn, jnp.asarray(X), products=choice)
    for key in ("block", "bl*"):
        by_block = ja.lrp(fn, jnp.asarray(X), products={key: choice})
        np.testing.assert_allclose(by_block.values, by_default.values, rtol=1e-12)


def proposed(fn, **options):
    """Return the name that the refusal of a product proposes."""
    with pytest.raises(ValueError, match="combines two signals") as error:
        ja.lrp(fn, jnp.asarray(X), **options)
    return re.search(r"products={'(.*?)': ", str(error.value)).group(1)


@pytest.mark.parametrize("fn", [attention_block, normalised_block])
def test_refusal_proposes_a_name_that_is_the_product_s_alone(fn):
    name = proposed(fn)
    assert name.startswith("test_relevance_programs.py, line ")
    by_name = ja.lrp(fn, jnp.asarray(X), products={name: "second"})
    by_default = ja.lrp(fn, jnp.asarray(X), products="second")
    np.testing.assert_allclose(by_name.values, by_default.values, rtol=1e-12)


def test_products_of_one_line_are_numbered():
    def fn(x):
        return (jnp.sin(x) * jnp.cos(x @ Q) + (jax.nn.sigmoid(x @ K) * x) * jnp.sin(x @ K)).sum()

    first = proposed(fn)
    second = proposed(fn, products={first: "half"})
    assert {first[-11:], second[-11:]} == {", product 1", ", product 3"}
    by_name = ja.lrp(fn, jnp.asarray(X), products={first: "half", second: "half"})
    by_default = ja.lrp(fn, jnp.asarray(X), products="half")
    np.testing.assert_allclose(by_name.values, by_default.values, rtol=1e-12)


def test_tag_of_a_product_overrides_a_gate():
    """With all relevance on the weights none reaches the values, which are constants here."""

    def fn(x):
        return ja.tag(jax.nn.softmax(x @ W) * jnp.tanh(x @ V), "read").sum()

    default = ja.lrp(fn, jnp.asarray(X)).values
    overridden = ja.lrp(fn, jnp.asarray(X), products={"read": "first"}).values
    second = ja.lrp(fn, jnp.asarray(X), products={"read": "second"}).values
    np.testing.assert_allclose(second, default, rtol=1e-12)
    assert abs(overridden - default).max() > 1e-2


def test_name_of_decided_products_raises():
    def fn(x):
        with jax.named_scope("block"):
            h = jax.nn.sigmoid(x @ W) * (x @ V)
            return (jax.nn.sigmoid(h @ W.T) * x).sum()

    with pytest.raises(ValueError, match="`products` names 'block', where no product needs a choi"):
        ja.lrp(fn, jnp.asarray(X), products={"block": "half"})
