"""Test DeepLIFT: completeness and the examples of the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import relevance_reference as reference
import test_relevance_recurrent as recurrent
from test_relevance import Draw, max_pool, pool

import jaxattn as ja

X, H0, C0 = recurrent.X, recurrent.H0, recurrent.C0
MULTIPLIERS = ("rescale", "reveal_cancel")
every_multiplier = pytest.mark.parametrize("multiplier", MULTIPLIERS)


@pytest.fixture(autouse=True)
def float64(x64):
    """Use float64, and rank promotion for the biases of the recurrent models."""
    with jax.numpy_rank_promotion("allow"):
        yield


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def deep_lift(fn, x, *args, **options):
    return ja.deep_lift(fn, jnp.asarray(x), *args, **options).values


def convolutional(x):
    d = Draw(4)
    hidden = max_pool.fn(jax.nn.relu(d.conv(1, 3)(x)))
    hidden = pool(jnp.tanh(d.conv(3, 2)(hidden)))
    return d.dense(8, 3)(hidden.ravel())


def normalised(x):
    d = Draw(5)
    return d.dense(6, 3)(jax.nn.gelu(d.batch_norm(6)(d.dense(4, 6)(x))))


def attentive(x):
    d = Draw(9)
    weights = jax.nn.softmax(d.dense(4, 5)(x) @ d.dense(4, 5)(x).T / 5)
    return d.dense(4, 3)(weights @ x).sum(0)


NETWORKS = {
    name: (lambda x, name=name: recurrent.MODELS[name](x, (jnp.asarray(H0), jnp.asarray(C0))), X)
    for name in ("lstm", "gru", "bilstm", "attention", "self-attention")
}
NETWORKS |= {
    "convolutional": (convolutional, Draw(6)(8, 8, 1)),
    "normalised": (normalised, Draw(7)(4)),
    "attentive": (attentive, Draw(10)(3, 4)),
}


@pytest.mark.slow
@pytest.mark.representatives("lstm", "normalised", "attentive")
@pytest.mark.parametrize("name", NETWORKS)
def test_values_sum_to_the_difference_from_the_baseline(name):
    fn, x = NETWORKS[name]
    x, baseline = jnp.asarray(x), jnp.asarray(Draw(8)(*x.shape))

    @reference.compiled
    def both(x):
        got = [ja.deep_lift(fn, x, 2, baseline=baseline, multiplier=m) for m in MULTIPLIERS]
        return got, fn(x)[2] - fn(baseline)[2]

    got, expected = both(x)
    assert abs(expected) > 1e-3
    for attribution in got:
        close(attribution.values.sum(), expected)
        close(attribution.info["delta"], 0.0)


@every_multiplier
def test_linear_network_equals_gradient_times_difference(multiplier):
    d = Draw()
    first, last, x, baseline = d.dense(4, 5), d.dense(5, 3), d(4), d(4)
    fn = lambda x: last(first(x) * 2.0)  # noqa: E731
    slope = jax.grad(lambda x: fn(x)[0])(jnp.asarray(x))
    close(
        deep_lift(fn, x, 0, baseline=jnp.asarray(baseline), multiplier=multiplier),
        slope * (x - baseline),
    )


@every_multiplier
def test_saturation(multiplier):
    """Shrikumar et al. 2017, figure 1: the gradient is 0 although both inputs contribute."""
    fn = lambda i: 1.0 - jax.nn.relu(1.0 - i[0] - i[1])  # noqa: E731
    close(deep_lift(fn, [1.0, 1.0], multiplier=multiplier), [0.5, 0.5], 1e-12)


@every_multiplier
def test_threshold(multiplier):
    """Figure 2: gradient times input is discontinuous at the threshold."""
    fn = lambda x: jax.nn.relu(x - 10.0).sum()  # noqa: E731
    close(deep_lift(fn, [10.5], multiplier=multiplier), [0.5], 1e-12)


MINIMA = {
    "cells": lambda i: i[0] - jax.nn.relu(i[0] - i[1]),
    "dense": lambda i: i[0] - jax.nn.relu(i @ np.array([1.0, -1.0])),
}


@pytest.mark.parametrize("form", MINIMA)
@pytest.mark.parametrize("inputs", [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0)])
def test_minimum_of_two_inputs(inputs, form):
    """Figure 3: only RevealCancel attributes the minimum to both inputs."""
    least = min(inputs)
    values = deep_lift(MINIMA[form], inputs, multiplier="reveal_cancel")
    close(values, [least / 2, least / 2], 1e-12)
    one = [0.0, least] if inputs[0] > inputs[1] else [least, 0.0]
    close(deep_lift(MINIMA[form], inputs, multiplier="rescale"), one, 1e-12)


@pytest.mark.parametrize("fn", [jnp.max, jnp.min])
def test_change_of_an_extremum_is_attributed_to_the_element_that_holds_it(fn):
    """The maximum 3 is element 0 of the input; the minimum 0 is element 0 of the baseline."""
    values = ja.deep_lift(fn, jnp.array([3.0, 1.0]), baseline=jnp.array([0.0, 2.0])).values
    np.testing.assert_array_equal(values, [1, 0])


def test_rescale_by_hand():
    """Two layers; the multiplier is the derivative if the difference is 0."""
    w, v = Draw(1)(3, 4), Draw(2)(4)
    x, baseline = Draw(3)(3), Draw(4)(3)
    u, u0 = x @ w, baseline @ w
    multiplier = (np.tanh(u) - np.tanh(u0)) / (u - u0)
    values = deep_lift(lambda x: jnp.tanh(x @ w) @ v, x, baseline=jnp.asarray(baseline))
    close(values, (x - baseline) * (w @ (multiplier * v)), 1e-12)
    x = jnp.asarray(x)
    same = ja.deep_lift(lambda x: jnp.tanh(x @ w) @ v, x, baseline=x)
    close(same.values, np.zeros(3), 0)

    def finite(x):
        return ja.deep_lift(lambda x: jnp.tanh(x @ w) @ v, x, baseline=x + 0.0).values.sum()

    assert np.isfinite(jax.grad(finite)(x)).all()


def lstm_multipliers(cell, x, x0, h, c, of_hidden):
    """Return multipliers backward through time: secants of activations, means of factors."""
    weight = np.concatenate([cell.kernel, cell.recurrent])
    (hidden, memory, gates), (hidden0, memory0, gates0) = (
        reference.run_lstm(cell, rows, h, c) for rows in (x, x0)
    )

    def secant(fn, u, u0):
        return (fn(u) - fn(u0)) / (u - u0)

    of_memory, multipliers = np.zeros_like(c), np.zeros_like(x)
    for t in reversed(range(len(x))):
        c, c0 = memory[t + 1], memory0[t + 1]
        mean_i, mean_f, mean_g, mean_o = (gates[t] + gates0[t]) / 2
        of_o = of_hidden * (np.tanh(c) + np.tanh(c0)) / 2
        of_memory = of_memory + of_hidden * mean_o * secant(np.tanh, c, c0)
        of_f = of_memory * (memory[t] + memory0[t]) / 2
        z, z0 = (
            rows[t] @ cell.kernel + states[t] @ cell.recurrent + cell.bias
            for rows, states in ((x, hidden), (x0, hidden0))
        )
        slopes = [reference.sigmoid, reference.sigmoid, np.tanh, reference.sigmoid]
        slopes = [
            secant(fn, u, u0)
            for fn, u, u0 in zip(slopes, np.split(z, 4), np.split(z0, 4), strict=True)
        ]
        above = np.array([of_memory * mean_g, of_f, of_memory * mean_i, of_o]) * slopes
        multipliers[t], of_hidden = np.split(weight @ above.ravel(), [x.shape[1]])
        of_memory = of_memory * mean_f
    return multipliers


def test_lstm_equals_the_reference_through_time():
    cell, head = recurrent.CELL, recurrent.HEAD[0]
    baseline = Draw(8)(*X.shape)
    expected = (X - baseline) * lstm_multipliers(cell, X, baseline, H0, C0, head[:, 2])
    values = deep_lift(lambda x: recurrent.classifier(cell, x), X, 2, baseline=baseline)
    close(values, expected)


@pytest.mark.slow
def test_baseline_near_the_input_gives_gradient_times_difference():
    fn, x = recurrent.MODELS["lstm"], jnp.asarray(X)
    model = lambda x: fn(x, (jnp.asarray(H0), jnp.asarray(C0)))[2]  # noqa: E731
    step = 1e-5 * jnp.asarray(Draw(9)(*X.shape))
    values = deep_lift(model, x + step, baseline=x)
    close(values / 1e-5, jax.grad(model)(x) * step / 1e-5, 1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"multiplier": "rescael"}, "multiplier.*rescael"),
        ({"baseline": jnp.zeros(5)}, "baseline"),
    ],
    ids=str,
)
def test_invalid_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        deep_lift(lambda x: x.sum(), [1.0, 2.0], **options)
