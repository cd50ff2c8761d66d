"""Gates, statistics and masks are recognised from the operations of the traced program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja

rng = np.random.default_rng(0)
W, V, U = (rng.normal(size=s) for s in [(4, 5), (4, 5), (5, 5)])
X = rng.normal(size=(6, 4))
sigmoid, relu = jax.nn.sigmoid, jax.nn.relu


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def relevance(fn, **options):
    found = ja.lrp(fn, jnp.asarray(X), **options)
    total = found.values.sum() + found.info["absorbed"]
    np.testing.assert_allclose(total, found.output, rtol=0, atol=1e-10)
    return np.asarray(found.values)


def gated(gate):
    """The gate reads rows 0 to 2, the signal rows 3 to 5."""
    return lambda x: (gate(x[:3] @ W) * (x[3:] @ V)).sum()


GATES = {
    "logistic": sigmoid,
    "one minus": lambda z: 1 - sigmoid(z),
    "hard sigmoid": jax.nn.hard_sigmoid,
    "clipped": lambda z: jnp.clip(0.2 * z + 0.5, 0, 1),
    "by tanh": lambda z: 0.5 * jnp.tanh(z) + 0.5,
    "spelled out": lambda z: 1 / (1 + jnp.exp(-z)),
    "softmax": lambda z: jax.nn.softmax(z, -1),
    "masked softmax": lambda z: jax.nn.softmax(z, -1, where=jnp.arange(5)[None] < 3),
    "exponential of a log-softmax": lambda z: jnp.exp(jax.nn.log_softmax(z, -1)),
    "scaled by constants": lambda z: sigmoid(z) * np.linspace(1, 3, 5)[None],
    "product of two": lambda z: sigmoid(z) * sigmoid(z - 1),
    "square": lambda z: sigmoid(z) ** 2,
}


@pytest.mark.parametrize("name", GATES)
def test_gates_receive_no_relevance(name):
    values = relevance(gated(GATES[name]))
    assert not values[:3].any()
    assert abs(values[3:]).max() > 0.1


SIGNALS = {
    "relu": relu,
    "tanh": jnp.tanh,
    "tanh of a relu": lambda z: jnp.tanh(relu(z)),
    "radial": lambda z: jnp.exp(-jnp.square(z)),
    "root of something": lambda z: jnp.sqrt(relu(z) + 1),
    "identity": lambda z: z,
}


@pytest.mark.parametrize("name", SIGNALS)
def test_products_of_two_signals_raise(name):
    with pytest.raises(ValueError, match=r"`mul` .*test_gates.py, line \d+.*products="):
        relevance(gated(SIGNALS[name]))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: (jnp.clip(x[0], 0, 1) * (x[1] @ V[:, :4])).sum(),
        lambda x: relu(x[0] @ W).mean() / (1 + relu(x[1] @ V).mean()),
        lambda x: (
            jax.lax.sort_key_val(sigmoid(x[0] @ W), relu(x[1] @ V))[1] * relu(x[2] @ V)
        ).sum(),
    ],
    ids=["clipped input", "another's mean", "sorted by a gate"],
)
def test_apparent_gates_and_statistics_raise(fn):
    with pytest.raises(ValueError, match="combines two signals"):
        relevance(fn)


def rms_norm(v):
    return v * jax.lax.rsqrt(jnp.square(v).mean() + 1e-6)


def test_normalised_mean_in_a_sum_receives_relevance():
    values = relevance(lambda x: ((x[0] + rms_norm(x.mean(0))) @ W).sum())
    assert (abs(values[1:]).sum(1) > 0.1).all()


def layer_norms():
    def mean(v):
        return v.mean(-1, keepdims=True)

    def variance(v):
        return mean(jnp.square(v)) - jnp.square(mean(v))

    scale, offset = np.linspace(1, 2, 5)[None], np.linspace(0, 1, 5)[None]

    def inverse(v):
        return jax.lax.rsqrt(variance(v) + 1e-3)

    def mean_shifted(v, by):
        return v * by + (-mean(v) * by + offset)

    return {
        "centred first": lambda v: (v - mean(v)) * inverse(v) * scale + offset,
        "scale with the root": lambda v: (v - mean(v)) * (inverse(v) * scale) + offset,
        "mean shifted": lambda v: (
            v * (inverse(v) * scale) + (-mean(v) * (inverse(v) * scale) + offset)
        ),
        "divided": lambda v: (v - mean(v)) / jnp.sqrt(variance(v) + 1e-3) * scale + offset,
    }


@pytest.mark.slow
def test_normalisation_passes_relevance_through():
    found = {
        name: relevance(lambda x, norm=norm: (norm(jnp.tanh(x @ W)) @ U).sum(), rule="z")
        for name, norm in layer_norms().items()
    }
    first = found["centred first"]
    for name in ("scale with the root", "divided"):
        np.testing.assert_allclose(found[name], first, rtol=0, atol=1e-10)
    # Here the offset is added to the mean, which receives no relevance.
    assert abs(found["mean shifted"]).max() > 0.1


@pytest.mark.parametrize("mask", [-np.inf, -1e30])
@pytest.mark.parametrize("conserve_bias", [False, True])
@pytest.mark.representatives("False--inf", "True--1e+30")
def test_masked_scores_receive_no_relevance(mask, conserve_bias):
    causal = jnp.tril(jnp.ones((6, 6))) > 0

    def attend(x):
        weights = jax.nn.softmax(jnp.where(causal, x @ x.T, mask))
        return (weights @ x)[2].sum()

    values = relevance(attend, attention="attnlrp", conserve_bias=conserve_bias)
    assert np.isfinite(values).all()
    if not conserve_bias:  # conserve_bias redistributes epsilon over all positions
        assert not values[3:].any()
    assert abs(values[:3]).max() > 0.1


def test_residual_stream_is_not_one_layer():
    weights = rng.normal(size=(3, 5, 5)) / 3

    def network(x):
        h = ja.tag(x[0] @ W, "stem")
        for i, name in enumerate(["one", "two", "three"]):
            h = h + ja.tag(jnp.tanh(h) @ weights[i], name)
        return h.sum()

    def dots(fn):
        return str(jax.make_jaxpr(fn)(jnp.asarray(X))).count("dot_general")

    # A forward pass, a backward pass and forward products that the compiler removes: none is
    # repeated for each layer.
    assert dots(lambda x: ja.lrp(network, x).values) <= 1.5 * dots(jax.grad(network))
    flat = relevance(network, rule=(("one", "flat"),))
    every = relevance(network, rule="flat")
    none = relevance(network)
    assert abs(flat - every).max() > 1e-3
    assert abs(flat - none).max() > 1e-3


def test_padded_positions_are_not_inputs_of_a_convolution():
    kernel = rng.normal(size=(2, 4, 3))

    def convolve(x, padding):
        numbers = ("NWC", "WIO", "NWC")
        return jax.lax.conv_general_dilated(
            x[None], kernel, (1,), padding, dimension_numbers=numbers
        )[0]

    padded = relevance(
        lambda x: jnp.tanh(convolve(jnp.pad(x, ((1, 0), (0, 0))), "VALID")).sum(), rule="flat"
    )
    inside = relevance(lambda x: jnp.tanh(convolve(x, [(1, 0)])).sum(), rule="flat")
    np.testing.assert_allclose(padded, inside, rtol=0, atol=1e-12)


def test_products_are_selected_by_name():
    def glu(x):
        return ja.tag((x[:3] @ W) * (x[3:] @ V), "glu").sum()

    assert not relevance(glu, products={"glu": "second"})[:3].any()
    assert not relevance(glu, products={"g*": "first"})[3:].any()
    half = relevance(glu, products="half")
    np.testing.assert_allclose(half[:3].sum(), half[3:].sum(), rtol=0.02)
    with pytest.raises(ValueError, match="`products` names 'gru', which matches nothing"):
        relevance(gated(sigmoid), products={"gru": "half"})


def test_product_of_two_gates_warns_and_divides_relevance():
    def both(x):
        return (sigmoid(x[:3] @ W) * sigmoid(x[3:] @ V)).sum()

    with pytest.warns(UserWarning, match=r"multiplies two gates.*products="):
        values = relevance(both)
    assert abs(values[:3]).max() > 0.1
    assert abs(values[3:]).max() > 0.1


@pytest.mark.parametrize("rule", ["epsilon", "flat", "w_square", "alpha_beta", "gamma"])
@pytest.mark.representatives("epsilon", "alpha_beta")
def test_layer_broadcast_by_a_constant_conserves_relevance(rule):
    """The scores have shape (4, 4), their term that depends on the input (4, 1)."""
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(4, 3)), rng.normal(size=(3, 1))

    def network(x):
        away = jnp.arange(4.0)[None] - x @ w
        return (jax.nn.softmax(away) @ x).sum()

    found = ja.lrp(network, x, rule=rule, attention="attnlrp", conserve_bias=True)
    np.testing.assert_allclose(found.values.sum() + found.info["absorbed"], found.output, rtol=1e-8)
