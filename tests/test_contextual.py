"""Test contextual decomposition against the paper's equations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_relevance_recurrent as recurrent
from relevance_reference import sigmoid

import jaxattn as ja

T, D, H, TARGET = 5, 3, 4, 1
X, CELL, HEAD = recurrent.X, recurrent.CELL, recurrent.HEAD
PHRASES = list(itertools.combinations(range(T + 1), 2))


@pytest.fixture(autouse=True)
def float64(x64):
    """Use float64, and rank promotion for the biases of the recurrent models."""
    with jax.numpy_rank_promotion("allow"):
        yield


def close(got, expected, atol=1e-10):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def model(x):
    """An LSTM from the zero state, and a dense head."""
    weights = ja.nn.LSTMWeights(*map(jnp.asarray, CELL))

    def advance(state, row):
        return ja.nn.lstm_step(weights, state, row), None

    zeros = jnp.zeros(H)
    return jax.lax.scan(advance, ja.nn.LSTMState(zeros, zeros), x)[0].hidden @ HEAD[0] + HEAD[1]


def split_in_three(fn, a, b, c):
    """Return the contributions of a, b and the bias c to fn(a + b + c)."""
    of_a = (fn(a + c) - fn(c) + fn(a + b + c) - fn(b + c)) / 2
    of_b = (fn(b + c) - fn(c) + fn(a + b + c) - fn(a + c)) / 2
    return of_a, of_b, fn(c)


def decompose(x, phrase):
    """Return the relevant and irrelevant parts of the logits without the head's bias.

    Murdoch et al. (2018): beta and gamma are the parts of h and c. Each gate's pre-activation is
    split into a relevant part, an irrelevant part and the bias.
    """
    beta_h = gamma_h = beta_c = gamma_c = np.zeros(H)
    for t, row in enumerate(x):
        inside = phrase[0] <= t < phrase[1]
        relevant = beta_h @ CELL.recurrent + inside * (row @ CELL.kernel)
        irrelevant = gamma_h @ CELL.recurrent + (not inside) * (row @ CELL.kernel)
        parts = [np.split(p, 4) for p in (relevant, irrelevant, CELL.bias)]
        fns = (sigmoid, sigmoid, np.tanh)
        (r_i, q_i, b_i), (r_f, q_f, b_f), (r_g, q_g, b_g) = (
            split_in_three(fn, *gate)
            for fn, *gate in zip(fns, *(p[:3] for p in parts), strict=True)
        )
        o = sigmoid(sum(p[3] for p in parts))
        c = (r_f + q_f + b_f) * (beta_c + gamma_c) + (r_i + q_i + b_i) * (r_g + q_g + b_g)
        beta_c = r_i * (r_g + b_g) + b_i * r_g + inside * b_i * b_g + (r_f + b_f) * beta_c
        gamma_c = c - beta_c
        beta, gamma, _ = split_in_three(np.tanh, beta_c, gamma_c, np.zeros(H))
        beta_h, gamma_h = o * beta, o * gamma
    return beta_h @ HEAD[0], gamma_h @ HEAD[0]


def test_reference_parts_sum_to_the_logits():
    logits = model(jnp.asarray(X))
    for phrase in PHRASES:
        close(sum(decompose(X, phrase)), logits - HEAD[1], 1e-14)


def test_every_phrase_of_an_lstm_equals_the_reference():
    x, phrases = jnp.asarray(X), jnp.asarray(PHRASES)
    explain = jax.vmap(lambda phrase: ja.contextual_decomposition(model, x, TARGET, phrase=phrase))
    got = jax.jit(explain)(phrases)
    relevant, irrelevant = np.transpose([decompose(X, phrase) for phrase in PHRASES], (1, 0, 2))
    close(got.values, relevant[:, TARGET])
    close(got.info["irrelevant"], irrelevant[:, TARGET])
    close(got.info["bias"], np.full(len(PHRASES), HEAD[1][TARGET]))
    logits = model(x)[TARGET] - HEAD[1][TARGET]
    close(got.values + got.info["irrelevant"], np.full(len(PHRASES), logits))


@pytest.mark.slow
def test_phrase_as_bounds_mask_or_single_steps():
    x = jnp.asarray(X)
    steps = ja.contextual_decomposition(model, x, TARGET)
    close(steps.values, [decompose(X, (t, t + 1))[0][TARGET] for t in range(T)])
    mask = jnp.array([False, True, True, False, False])
    for phrase in ((1, 3), mask):
        got = ja.contextual_decomposition(model, x, TARGET, phrase=phrase)
        close(got.values, decompose(X, (1, 3))[0][TARGET])


def test_batch_of_sentences():
    xs = jnp.stack([jnp.asarray(X), 2.0 * jnp.asarray(X)[::-1]])
    got = ja.explain(ja.contextual_decomposition, model, xs, TARGET, phrase=(0, 2))
    close(got.values, [decompose(np.asarray(x), (0, 2))[0][TARGET] for x in xs])


@pytest.mark.parametrize("name", ["gru", "bilstm", "attention"])
@pytest.mark.representatives("gru", "bilstm")
def test_parts_sum_to_the_score(name):
    states = jnp.asarray(recurrent.H0), jnp.asarray(recurrent.C0)
    got = ja.contextual_decomposition(
        lambda x: recurrent.MODELS[name](x, states), jnp.asarray(X), TARGET, phrase=(1, 3)
    )
    assert abs(got.values) > 1e-4
    parts = got.values + got.info["irrelevant"] + got.info["bias"]
    close(parts, got.output[TARGET])


@pytest.mark.parametrize("phrase", [(2, 2), (3, 1), (0, T + 1), (-1, 2), (1,), "word"], ids=str)
def test_invalid_phrase_raises(phrase):
    with pytest.raises((ValueError, TypeError), match="phrase"):
        ja.contextual_decomposition(model, jnp.asarray(X), TARGET, phrase=phrase)
