"""State: series of a hidden Markov model, of which one feature matters at each step.

The hidden state, 0 or 1, decides which feature drives the label of a step: the second in state 0,
the third in state 1. Each step is drawn from a Gaussian of its state. State 1 tends to end the
longer it lasts.
"""

from typing import NamedTuple

import numpy as np

STEPS, FEATURES = 200, 3
#: The feature that decides the label in each state.
SALIENT = np.array([1, 2])
MEANS = np.array([[0.1, 1.6, 0.5], [-0.1, -0.4, -1.5]])
VARIANCE, COVARIANCE = 0.801, 0.01


class Markov(NamedTuple):
    """Series (N, T, D), which features are salient, states (N, T) and labels (N, T), 0 or 1."""

    x: np.ndarray
    salient: np.ndarray
    states: np.ndarray
    labels: np.ndarray


def covariances() -> np.ndarray:
    """Return the covariance of each state: the first feature goes with the salient one."""
    both = np.stack([VARIANCE * np.eye(FEATURES)] * 2)
    for covariance, salient in zip(both, SALIENT, strict=True):
        covariance[0, salient] = covariance[salient, 0] = COVARIANCE
    return both


def one_next(states: np.ndarray, lasted: np.ndarray) -> np.ndarray:
    """Return the probability of state 1 at the next step.

    State 1 is entered with 0.05, and kept with 0.95 - n / 500 after n steps without a change.
    """
    return np.where(states == 1, 0.95 - lasted / 500, 0.05)


def markov(seed: int, number: int) -> Markov:
    """Draw series, states and labels."""
    rng = np.random.default_rng(seed)
    states = np.zeros((number, STEPS), int)
    states[:, 0] = rng.random(number) < 0.5
    lasted = np.zeros(number, int)
    for t in range(1, STEPS):
        before = states[:, t - 1]
        states[:, t] = rng.random(number) < one_next(before, lasted)
        lasted = np.where(states[:, t] == before, lasted + 1, 0)
    factors = np.linalg.cholesky(covariances())
    noise = rng.normal(size=(number, STEPS, FEATURES))
    x = MEANS[states] + np.einsum("ntij,ntj->nti", factors[states], noise)
    salient = np.eye(FEATURES)[SALIENT[states]]
    deciding = (salient * x).sum(-1)
    labels = (rng.random(deciding.shape) < 1 / (1 + np.exp(-deciding))).astype(int)
    return Markov(x.astype(np.float32), salient.astype(np.float32), states, labels)
