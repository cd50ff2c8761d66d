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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


# Choices, indices and masks that are computed from the input: constants for relevance.

EXPERTS, TOKENS, OUT = (rng.normal(size=s) for s in [(H, D, 2), (5, D), (H, 5)])
FIRST = int(np.argmax(X[:, 0]))
BY_FIRST_FEATURE = np.argsort(X[:, 0])
BEST_TWO = np.argsort(-(X @ W), 1)[:, :2]


def experts(x):
    return jnp.stack([jnp.tanh(x @ expert) for expert in EXPERTS], 1)


def routed(x):
    """Each row is sent to two of four experts."""
    scores, chosen = jax.lax.top_k(x @ W, 2)
    outputs = jnp.take_along_axis(experts(x), chosen[..., None], 1)
    return (outputs * jax.nn.softmax(scores)[..., None]).sum()


def routed_by_constants(x):
    scores = jnp.take_along_axis(x @ W, BEST_TWO, 1)
    outputs = jnp.take_along_axis(experts(x), BEST_TWO[..., None], 1)
    return (outputs * jax.nn.softmax(scores)[..., None]).sum()


def renormalised_routing(x, chosen=None):
    """The weights of the best experts are divided by their sum."""
    weights = jax.nn.softmax(x @ W)
    if chosen is None:
        weights, chosen = jax.lax.top_k(weights, 2)
    else:
        weights = jnp.take_along_axis(weights, chosen, 1)
    weights = weights / weights.sum(-1, keepdims=True)
    return (jnp.take_along_axis(experts(x), chosen[..., None], 1) * weights[..., None]).sum()


def decoded(x, tokens=None):
    """The token with the largest logit is written into a buffer, and read at the next step."""
    embeddings = jnp.asarray(TOKENS)

    def advance(carry, step):
        h, buffer, token = carry
        h = jnp.tanh(embeddings[token] @ W + h)
        token = jnp.argmax(h @ OUT) if tokens is None else tokens[step]
        buffer = buffer.at[step].set(embeddings[token])
        return (h, buffer, token), (h @ OUT, token)

    start = jnp.tanh(x.sum(0) @ W), jnp.zeros((3, D)), 0
    (_, buffer, _), (logits, chosen) = jax.lax.scan(advance, start, jnp.arange(3))
    return logits.max(-1).sum() + jnp.tanh(buffer @ W).sum(), chosen


def index(x):
    return jnp.argmax(x[:, 0])


def layers_of(rows):
    return lambda x: jnp.tanh(rows(x) @ W).sum()


CHOICES = {
    "top_k": (routed, routed_by_constants),
    "top_k, weights renormalised": (
        renormalised_routing,
        lambda x: renormalised_routing(x, BEST_TWO),
    ),
    "argsort": (
        layers_of(lambda x: x[jnp.argsort(x[:, 0])][:3]),
        layers_of(lambda x: x[BY_FIRST_FEATURE[:3]]),
    ),
    "sort with values": (
        lambda x: jax.lax.sort_key_val(x[:, 0], jnp.tanh(x @ W)[:, 1])[1][:2].sum(),
        lambda x: jnp.tanh(x @ W)[BY_FIRST_FEATURE[:2], 1].sum(),
    ),
    "row of a layer": (
        lambda x: jnp.tanh((x @ W)[index(x)]).sum(),
        lambda x: jnp.tanh((x @ W)[FIRST]).sum(),
    ),
    "dynamic_slice": (
        layers_of(lambda x: jax.lax.dynamic_slice(x, (index(x), 1), (2, D))),
        layers_of(lambda x: jax.lax.slice(x, (min(FIRST, T - 2), 0), (min(FIRST, T - 2) + 2, D))),
    ),
    "dynamic_update_slice": (
        layers_of(lambda x: jax.lax.dynamic_update_slice(x, jnp.cos(x[:1]), (index(x), 0))),
        layers_of(lambda x: jnp.concatenate([x[:FIRST], jnp.cos(x[:1]), x[FIRST + 1 :]])),
    ),
    "scatter": (
        layers_of(lambda x: jnp.zeros((T, D)).at[index(x)].set(jnp.cos(x[0]))),
        layers_of(lambda x: jnp.zeros((T, D)).at[FIRST].set(jnp.cos(x[0]))),
    ),
    "scatter of a constant row": (
        layers_of(lambda x: x.at[index(x)].set(1.0)),
        layers_of(lambda x: jnp.where(jnp.arange(T)[:, None] == FIRST, 1.0, x)),
    ),
    "scatter-add": (
        layers_of(lambda x: jnp.zeros((T, D)).at[jnp.argsort(x[:, 0])].add(x)),
        layers_of(lambda x: x[np.argsort(BY_FIRST_FEATURE)]),
    ),
    "greedy decoding": (
        lambda x: decoded(x)[0],
        lambda x: decoded(x, decoded(jnp.asarray(X))[1])[0],
    ),
    "predicate": (
        lambda x: jnp.where(x[:, :1] > 0, jnp.tanh(x @ W), x @ V).sum(),
        lambda x: jnp.where(X[:, :1] > 0, jnp.tanh(x @ W), x @ V).sum(),
    ),
    "clamp between values": (
        lambda x: jax.lax.clamp(jnp.sin(x @ V) - 2, x @ W, jnp.full((T, H), 1.0)).sum(),
        lambda x: jnp.where(
            np.sin(X @ V) - 2 > X @ W,
            jnp.sin(x @ V) - 2,
            jnp.where(X @ W > 1, 1.0, x @ W),
        ).sum(),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.representatives("top_k", "row of a layer")
def test_choices_are_constants(name):
    """The relevance is that of the function with the same choices written as constants."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        compare(*CHOICES[name], rule="z", rtol=1e-8)


def test_cond_is_decomposed_by_the_branch_that_is_taken():
    def branches(x):
        return [lambda x: jnp.tanh(x @ W + 1).sum(), lambda x: (x @ V).sum(), lambda x: 1.0]

    for taken in (0, 1):
        where = np.roll(np.arange(2), taken)

        def fn(x, where=where):
            chosen = jnp.asarray(where)[(x[0, 0] > X[0, 0] + 1).astype(int)]
            return jax.lax.switch(chosen, branches(x), x)

        got = ja.contextual_decomposition(fn, jnp.asarray(X))
        want = ja.contextual_decomposition(branches(X)[taken], jnp.asarray(X))
        for a, b in [(got.values, want.values), *((got.info[k], want.info[k]) for k in got.info)]:
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


def test_cond_in_a_loop_is_decomposed():
    def fn(x, branch=jax.lax.cond):
        def advance(h, row):
            update = branch(
                row[0] > 0,
                lambda: jnp.tanh(row @ W + h),
                lambda: jnp.ones(H),
            )
            return update + 0.5 * h, None

        return jax.lax.scan(advance, jnp.zeros(H), x)[0].sum()

    found = ja.contextual_decomposition(fn, jnp.asarray(X))
    parts = found.values + found.info["irrelevant"] + found.info["bias"]
    np.testing.assert_allclose(parts, np.full(T, found.output), rtol=1e-10)
    assert np.ptp(found.values) > 1e-2


def test_refusal_of_a_primitive_says_what_to_do():
    with pytest.raises(ValueError, match=r"no rule for `atan2`.*stop_gradient.*occlusion"):
        ja.lrp(lambda x: jnp.arctan2(x[:, 0], x[:, 1]).sum(), jnp.asarray(X))


def mean_square(h):
    return (h**2).mean(-1, keepdims=True) + 1e-6


#: Forms of one normalisation.
NORMS = {
    "reciprocal": lambda h: h * jnp.reciprocal(jnp.sqrt(mean_square(h))),
    "inverse": lambda h: h * (1 / jnp.sqrt(mean_square(h))),
    "power": lambda h: h * mean_square(h) ** -0.5,
    "quotient": lambda h: h / jnp.sqrt(mean_square(h)),
    "quotient of a power": lambda h: h / mean_square(h) ** 0.5,
}


@pytest.mark.slow
@pytest.mark.parametrize("form", NORMS)
def test_forms_of_a_norm_have_the_relevance_of_rsqrt(form):
    rng = np.random.default_rng(0)
    first, second, x = (rng.normal(size=shape) for shape in ((4, 6), (6, 2), (3, 4)))

    def network(norm):
        return lambda x: (norm(x @ jnp.asarray(first, x.dtype)) @ jnp.asarray(second, x.dtype)).sum(
            0
        )

    with jax.enable_x64(True):
        x = jnp.asarray(x)
        expected = ja.lrp(network(lambda h: h * jax.lax.rsqrt(mean_square(h))), x, 1)
        found = ja.lrp(network(NORMS[form]), x, 1)
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-10)
        total = found.values.sum() + found.info["absorbed"]
        np.testing.assert_allclose(total, found.output[1], rtol=1e-10)


@pytest.mark.slow
def test_units_that_are_off_and_centred_behind_pass_relevance_on():
    """A ReLU of zero has relevance, that of minus the mean: the limit of leaky ReLUs."""
    rng = np.random.default_rng(0)
    first, second, x = rng.normal(size=(4, 6)), rng.normal(size=6), rng.normal(size=4)

    def network(activation):
        def fn(x):
            h = activation(x @ first)
            return (h - h.mean()) * jax.lax.rsqrt(h.var() + 1e-3) @ second

        return fn

    z = x @ first
    a = np.maximum(z, 0)
    assert (a == 0).sum() >= 2
    of_units = (a - a.mean()) / np.sqrt(a.var() + 1e-3) * second
    want = x * (first @ (of_units / z))
    leaks = [lambda z, leak=leak: jnp.where(z > 0, z, leak * z) for leak in (1e-8, -1e-8)]
    for activation, atol in ((jax.nn.relu, 1e-12), (leaks[0], 1e-6), (leaks[1], 1e-6)):
        found = ja.lrp(network(activation), jnp.asarray(x), rule="z")
        np.testing.assert_allclose(found.values, want, rtol=0, atol=atol)
