"""ContraLSP: closed form of the objective, gates, and the choice of the background's examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

import jaxattn as ja

T, D = 4, 2
KEY = jax.random.key(0)
X = np.array([[1.0, 2.0], [-1.0, 1.0], [2.0, -2.0], [-2.0, -1.0]], np.float32)
BACKGROUND = np.stack([-X, 1.5 * X, 0.9 * X, 0.2 * X, -2 * X])


def reads_two(x):
    return x[1:3, 0]


def constant(x):
    return jnp.ones(2) + 0 * x[0, 0]


@pytest.mark.slow
def test_first_loss_closed_form(x64):
    """All gates are centred at one half, and replacements are zero.

    The nearest outputs are those of 0.9 x and 1.5 x, the farthest those of -x and -2 x.
    """
    x = X.astype(float)
    options = {"num_steps": 1, "num_units": 2, "num_references": 2, "background": BACKGROUND}
    weights = {"mask_weight": 0.3, "replacement_weight": 0.2, "contrast_weight": 0.7}
    got = ja.contra_mask(lambda x: 0 * reads_two(x), x, key=KEY, margin=3.0, **options, **weights)
    size = np.abs(X).mean()
    open_ = (1 + erf(0.5 / (0.5 * np.sqrt(2)))) / 2
    # All outputs are equal, so that the order of the background decides.
    apart = np.mean([0.2, 2.0]) * size - np.mean([1.0, 1.5]) * size
    want = 0.3 * open_ + 0.7 * max(0, apart + 3)
    np.testing.assert_allclose(got.info["losses"], [want], rtol=1e-6)

    read = ja.contra_mask(reads_two, x, key=KEY, margin=0.0, **options, contrast_weight=100.0)
    alone = ja.contra_mask(reads_two, x, key=KEY, margin=0.0, **options, contrast_weight=0.0)
    apart = np.mean([1.0, 2.0]) * size - np.mean([0.9, 1.5]) * size
    difference = read.info["losses"] - alone.info["losses"]
    np.testing.assert_allclose(difference, [100 * apart], rtol=1e-6)


def test_gates_hold_the_features_that_are_read():
    got = ja.contra_mask(
        reads_two, X, background=BACKGROUND, key=KEY, mask_weight=0.1, num_steps=300, num_units=4
    )
    want = np.zeros((T, D), bool)
    want[1:3, 0] = True
    np.testing.assert_array_equal(got.values > 0.5, want)
    assert got.values.min() >= 0
    assert got.values.max() <= 1
    assert got.info["losses"][-20:].mean() < 0.5 * got.info["losses"][:20].mean()


@pytest.mark.slow
def test_replacements_are_drawn_to_the_far_examples():
    """Where no feature matters, only the triplet loss moves the replacements."""

    def distance(contrast_weight):
        got = ja.contra_mask(
            constant,
            X,
            background=np.stack([0 * X - 3, 0 * X + 3]),
            key=KEY,
            replacement_weight=0.1,
            contrast_weight=contrast_weight,
            margin=10.0,
            num_steps=200,
            num_units=4,
        )
        return np.abs(np.asarray(got.info["replacement"]) - 3).mean()

    assert distance(1.0) < 0.5 * distance(0.0)


def test_draws_depend_on_the_key():
    options = {"background": BACKGROUND, "num_steps": 5, "num_units": 2}
    values = [
        ja.contra_mask(reads_two, X, key=jax.random.key(seed), **options).values
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(values[0], values[1])
    assert np.abs(values[0] - values[2]).max() > 1e-4


def test_series_of_one_step():
    got = ja.contra_mask(
        jnp.sum, X[:1], background=BACKGROUND[:, :1], key=KEY, num_steps=5, num_units=2
    )
    assert np.isfinite(got.values).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"key": None}, r"`key` is missing: the networks are drawn"),
        ({"background": None}, r"`background` is missing: pass a set of examples"),
        ({"background": X}, r"`background` must have a leading axis of examples before \(4, 2\)"),
        ({"background": BACKGROUND[:1]}, r"`background` must hold at least two examples, got 1\."),
        ({"background": {"x": BACKGROUND}}, r"`background` must be a pytree like x"),
        ({"num_references": 0}, r"`num_references` must be at least 1, got 0\."),
        ({"num_steps": 0}, r"`num_steps` must be at least 1, got 0\."),
        ({"error": "mse"}, r"`error` must be \"squared\" or \"cross_entropy\", got 'mse'\."),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ja.contra_mask(reads_two, X, **{"key": KEY, "background": BACKGROUND} | options)


def test_optimizer_must_be_of_optax():
    with pytest.raises(TypeError, match=r"`optimizer` must be an optax\.GradientTransformation"):
        ja.contra_mask(reads_two, X, background=BACKGROUND, key=KEY, optimizer=0.1)
