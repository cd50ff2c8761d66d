"""Extremal masks: closed form of the first step, both modes, and the replacement network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxattn as ja
from jaxattn.methods.replacement_network import ReplacementNetwork

T, D = 4, 2
KEY = jax.random.key(0)
X = np.array([[1.0, 2.0], [-1.0, 1.0], [2.0, -2.0], [-2.0, -1.0]], np.float32)
WEIGHTS = np.array([[0.2, -0.4], [0.1, 0.3], [-0.5, 0.1], [0.6, 0.2]])


def reads_two(x):
    return x[1:3, 0]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.mark.slow
def test_network_equals_a_loop():
    network = ReplacementNetwork.of(jnp.asarray(X), 3, KEY)
    network = network._replace(
        readout=jnp.arange(12.0).reshape(6, 2) / 7, bias=jnp.array([0.5, -0.25])
    )
    gru = jax.tree.map(lambda leaf: np.asarray(leaf, float), network.gated)
    states = []
    for direction, rows in enumerate([X, X[::-1]]):
        state, seen = np.zeros(3), []
        for row in rows:
            z, r, c = np.split(row @ gru.kernel[direction] + gru.bias[direction], 3)
            own_z, own_r, own_c = np.split(state @ gru.recurrent[direction], 3)
            update, reset = sigmoid(z + own_z), sigmoid(r + own_r)
            candidate = np.tanh(c + reset * (own_c + gru.candidate_bias[direction]))
            state = (1 - update) * candidate + update * state
            seen.append(state)
        states.append(np.stack(seen[:: 1 - 2 * direction]))
    want = np.concatenate(states, 1) @ np.asarray(network.readout) + np.asarray(network.bias)
    np.testing.assert_allclose(network(jnp.asarray(X)), want, rtol=0, atol=1e-6)


def test_first_step_closed_form(x64):
    """Replacements are zero at first; the slope of the mask is that of the error and its weight."""
    x = X.astype(float)

    def fn(x):
        return (WEIGHTS * x).sum(0)

    got = ja.extremal_mask(
        fn, x, key=KEY, mask_weight=0.3, num_steps=1, num_units=2, optimizer=optax.sgd(0.1)
    )
    lost = -0.5 * fn(x)
    mask = 0.5 - 0.1 * (lost * WEIGHTS * x + 0.3 / X.size)
    np.testing.assert_allclose(got.values, mask, rtol=0, atol=1e-12)
    np.testing.assert_allclose(got.info["losses"], [np.mean(lost**2) + 0.3 / 2], rtol=1e-12)
    replacement = np.asarray(got.info["replacement"])
    assert np.abs(replacement).max() > 1e-3
    error = np.mean((fn(mask * x + (1 - mask) * replacement) - fn(x)) ** 2)
    np.testing.assert_allclose(got.info["error"], error, rtol=1e-9)


@pytest.mark.parametrize("mode", ["preservation", "deletion"])
def test_mask_holds_the_features_that_are_read(mode):
    options = {"mask_weight": 0.1, "num_steps": 300, "num_units": 4}
    got = ja.extremal_mask(reads_two, X, key=KEY, mode=mode, **options)
    want = np.zeros((T, D))
    want[1:3, 0] = 1
    np.testing.assert_allclose(got.values, want, atol=0.1)
    assert got.info["losses"].shape == (300,)
    assert got.info["losses"][-1] < 0.5 * got.info["losses"][0]
    assert got.info["error"] < 0.05


def test_deletion_reaches_the_output_of_the_baseline():
    options = {"mode": "deletion", "replacement_weight": 0.01, "optimizer": optax.adam(0.02)}
    got = ja.extremal_mask(
        reads_two, X, key=KEY, baseline=0.5, num_steps=300, num_units=4, **options
    )
    deleted, replacement = np.asarray(got.values), np.asarray(got.info["replacement"])
    output = reads_two((1 - deleted) * X + deleted * replacement)
    np.testing.assert_allclose(output, [0.5, 0.5], atol=0.05)


@pytest.mark.slow
def test_draws_depend_on_the_key():
    drawn = [
        ja.extremal_mask(reads_two, X, key=jax.random.key(seed), num_steps=20, num_units=2).info[
            "replacement"
        ]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-3


@pytest.mark.slow
def test_series_of_one_step_and_single_numbers():
    for x in (X[:1], np.array(2.0, np.float32)):
        got = ja.extremal_mask(jnp.sum, x, key=KEY, num_steps=5, num_units=2)
        assert got.values.shape == np.shape(x)
        assert np.isfinite(got.values).all()


@pytest.mark.slow
def test_half_precision_is_trained_in_float32():
    x = jnp.asarray(X, jnp.bfloat16)
    got = ja.extremal_mask(reads_two, x, key=KEY, num_steps=20, num_units=2)
    full = ja.extremal_mask(reads_two, X, key=KEY, num_steps=20, num_units=2)
    assert got.values.dtype == got.info["replacement"].dtype == jnp.bfloat16
    np.testing.assert_allclose(got.values.astype(np.float32), full.values, atol=0.05)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"key": None}, r"`key` is missing: the network is drawn"),
        ({"num_steps": 0}, r"`num_steps` must be at least 1, got 0\."),
        ({"num_units": 0}, r"`num_units` must be at least 1, got 0\."),
        ({"mode": "keep"}, r"`mode` must be \"preservation\" or \"deletion\", got 'keep'\."),
        ({"mode": "deletion", "baseline": np.ones(3)}, r"`baseline` must broadcast to the shape"),
        ({"error": "mse"}, r"`error` must be \"squared\" or \"cross_entropy\", got 'mse'\."),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ja.extremal_mask(reads_two, X, **{"key": KEY} | options)
