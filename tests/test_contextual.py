"""Contextual decomposition: the paper's equations, phrase by phrase."""

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
    """All in float64; the recurrent models add biases to rows."""
    with jax.numpy_rank_promotion("allow"):
        yield


def close(got, want, atol=1e-10):
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def model(x):
    """An LSTM from the zero state, and a dense head."""
    weights = ja.nn.LSTMWeights(*map(jnp.asarray, CELL))

    def advance(state, row):
        return ja.nn.lstm_step(weights, state, row), None

    zeros = jnp.zeros(H)
    return jax.lax.scan(advance, ja.nn.LSTMState(zeros, zeros), x)[0].hidden @ HEAD[0] + HEAD[1]


def three_ways(fn, a, b, c):
    """What a, b and the bias c make of fn(a + b + c)."""
    of_a = (fn(a + c) - fn(c) + fn(a + b + c) - fn(b + c)) / 2
    of_b = (fn(b + c) - fn(c) + fn(a + b + c) - fn(a + c)) / 2
    return of_a, of_b, fn(c)


def decompose(x, phrase):
    """Relevant and irrelevant parts of the logits, without the head's bias (Murdoch et al. 2018).

    beta and gamma are the parts of h and c; each gate's pre-activation is split in three, and its
    bias makes a part of its own.
    """
    beta_h = gamma_h = beta_c = gamma_c = np.zeros(H)
    for t, row in enumerate(x):
        inside = phrase[0] <= t < phrase[1]
        relevant = beta_h @ CELL.recurrent + inside * (row @ CELL.kernel)
        irrelevant = gamma_h @ CELL.recurrent + (not inside) * (row @ CELL.kernel)
        parts = [np.split(p, 4) for p in (relevant, irrelevant, CELL.bias)]
        fns = (sigmoid, sigmoid, np.tanh)
        (r_i, q_i, b_i), (r_f, q_f, b_f), (r_g, q_g, b_g) = (
            three_ways(fn, *gate) for fn, *gate in zip(fns, *(p[:3] for p in parts), strict=True)
        )
        o = sigmoid(sum(p[3] for p in parts))
        c = (r_f + q_f + b_f) * (beta_c + gamma_c) + (r_i + q_i + b_i) * (r_g + q_g + b_g)
        beta_c = r_i * (r_g + b_g) + b_i * r_g + inside * b_i * b_g + (r_f + b_f) * beta_c
        gamma_c = c - beta_c
        beta, gamma, _ = three_ways(np.tanh, beta_c, gamma_c, np.zeros(H))
        beta_h, gamma_h = o * beta, o * gamma
    return beta_h @ HEAD[0], gamma_h @ HEAD[0]


def test_the_reference_splits_the_logits():
    logits = model(jnp.asarray(X))
    for phrase in PHRASES:
        close(sum(decompose(X, phrase)), logits - HEAD[1], 1e-14)


def test_every_phrase_of_an_lstm():
    x, phrases = jnp.asarray(X), jnp.asarray(PHRASES)
    explain = jax.vmap(lambda phrase: ja.contextual_decomposition(model, x, TARGET, phrase=phrase))
    found = jax.jit(explain)(phrases)
    relevant, irrelevant = np.transpose([decompose(X, phrase) for phrase in PHRASES], (1, 0, 2))
    close(found.values, relevant[:, TARGET])
    close(found.info["irrelevant"], irrelevant[:, TARGET])
    close(found.info["bias"], np.full(len(PHRASES), HEAD[1][TARGET]))
    logits = model(x)[TARGET] - HEAD[1][TARGET]
    close(found.values + found.info["irrelevant"], np.full(len(PHRASES), logits))


def test_the_phrase_is_two_numbers_a_mask_or_each_step_by_itself():
    x = jnp.asarray(X)
    steps = ja.contextual_decomposition(model, x, TARGET)
    close(steps.values, [decompose(X, (t, t + 1))[0][TARGET] for t in range(T)])
    mask = jnp.array([False, True, True, False, False])
    for phrase in ((1, 3), mask):
        found = ja.contextual_decomposition(model, x, TARGET, phrase=phrase)
        close(found.values, decompose(X, (1, 3))[0][TARGET])


def test_a_batch_of_sentences():
    xs = jnp.stack([jnp.asarray(X), 2.0 * jnp.asarray(X)[::-1]])
    found = ja.explain(ja.contextual_decomposition, model, xs, TARGET, phrase=(0, 2))
    close(found.values, [decompose(np.asarray(x), (0, 2))[0][TARGET] for x in xs])


@pytest.mark.parametrize("name", ["gru", "bilstm", "attention"])
def test_the_parts_sum_to_the_score(name):
    states = jnp.asarray(recurrent.H0), jnp.asarray(recurrent.C0)
    found = ja.contextual_decomposition(
        lambda x: recurrent.MODELS[name](x, states), jnp.asarray(X), TARGET, phrase=(1, 3)
    )
    assert abs(found.values) > 1e-4
    parts = found.values + found.info["irrelevant"] + found.info["bias"]
    close(parts, found.output[TARGET])


@pytest.mark.parametrize("phrase", [(2, 2), (3, 1), (0, T + 1), (-1, 2), (1,), "word"], ids=str)
def test_a_phrase_that_is_none(phrase):
    with pytest.raises((ValueError, TypeError), match="phrase"):
        ja.contextual_decomposition(model, jnp.asarray(X), TARGET, phrase=phrase)
