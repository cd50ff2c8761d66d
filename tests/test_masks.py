"""Learned masks: closed forms of the objective, and deletion of the relevant features only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxattn as ja
from jaxattn.methods.mask_penalties import total_variation

T, D = 5, 3
PLANTED = (2, 1)
X = np.random.default_rng(0).uniform(0.5, 1, size=(T, D))


def planted(x):
    return 4 * x[PLANTED]


def product(x):
    return jnp.tanh(x).sum() + x[0, 0] * x[1, 2]


@pytest.mark.parametrize("beta, want", [(1.0, 6), (2.0, 14), (3.0, 36)])
@pytest.mark.representatives("3.0-36")
def test_total_variation_closed_form(beta, want):
    """Neighbours differ by 3 and 2 along the first axis, by 1 and 0 along the second."""
    mask = jnp.array([[0.0, 1.0], [3.0, 3.0]])
    np.testing.assert_allclose(total_variation(mask, beta), want, rtol=1e-6)
    assert np.isfinite(jax.grad(total_variation)(mask, beta)).all()


def test_one_step_of_gradient_descent_closed_form(x64):
    """The mask of a feature changes by the learning rate times its slope minus the penalty."""
    options = {
        "optimizer": optax.sgd(0.1),
        "l1": 0.3,
        "tv": 0.7,
        "tv_beta": 2.0,
        "num_steps": 2,
        "initial": 1.0,
    }
    got = ja.learned_mask(product, X, **options)
    one = ja.learned_mask(product, X, **options | {"num_steps": 1})
    deleted = np.clip(0.1 * (X * np.asarray(jax.grad(product)(jnp.asarray(X))) - 0.3), 0, 1)
    np.testing.assert_allclose(one.values, deleted, rtol=0, atol=1e-12)
    assert deleted.min() > 0
    assert deleted.max() < 1
    score = product((1 - deleted) * X)
    variation = sum((np.diff(deleted, axis=axis) ** 2).sum() for axis in (0, 1))
    objective = score + 0.3 * deleted.sum() + 0.7 * variation
    np.testing.assert_allclose(got.info["losses"], [product(X), objective], rtol=0, atol=1e-12)
    np.testing.assert_allclose(one.info["score"], score, rtol=0, atol=1e-12)


def test_only_the_relevant_feature_is_deleted():
    got = ja.learned_mask(planted, X, tv=0.0, num_steps=60)
    want = np.zeros((T, D))
    want[PLANTED] = 1
    np.testing.assert_array_equal(got.values, want)
    assert got.info["score"] == 0
    assert got.info["losses"].shape == (60,)
    assert got.info["losses"][-1] < 0.1 * got.info["losses"][0]


@pytest.mark.parametrize("l1, deleted", [(0.1, 1), (10.0, 0)])
def test_feature_is_deleted_only_for_a_small_penalty(l1, deleted):
    got = ja.learned_mask(planted, X, tv=0.0, l1=l1, num_steps=200, optimizer=optax.adam(0.02))
    np.testing.assert_allclose(got.values[PLANTED], deleted, atol=0.05)


def test_values_are_in_the_unit_interval_and_the_loss_decreases():
    got = ja.learned_mask(lambda x: -product(5 * x), X, num_steps=40, baseline=1.0, l1=0.01)
    assert (got.values >= 0).all()
    assert (got.values <= 1).all()
    assert got.info["losses"].min() < got.info["losses"][0] - 0.1


def test_deleted_features_take_the_baseline():
    got = ja.learned_mask(planted, X, baseline=0.25, tv=0.0, num_steps=60)
    np.testing.assert_allclose(got.info["score"], 4 * 0.25, rtol=1e-6)


def test_probability_score():
    def fn(x):
        return jnp.stack([planted(x), jnp.float32(0)])

    got = ja.learned_mask(
        fn, X, 0, score="probability", tv=0.0, l1=0.001, num_steps=60, initial=1.0
    )
    np.testing.assert_allclose(got.info["losses"][0], jax.nn.sigmoid(planted(X)), rtol=1e-5)
    np.testing.assert_allclose(got.info["score"], 0.5, rtol=1e-5)


@pytest.mark.parametrize("coarseness", [T, (T,), (T, 1)])
def test_coarse_features_share_one_value(coarseness):
    got = np.asarray(ja.learned_mask(product, X, num_steps=3, coarseness=coarseness).values)
    np.testing.assert_array_equal(got, np.broadcast_to(got[:1], got.shape))
    assert np.ptp(got[0]) > 0


def test_jitter_depends_on_the_key():
    values = [
        ja.learned_mask(product, X, num_steps=5, jitter=1, key=jax.random.key(seed)).values
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(values[0], values[1])
    assert np.abs(values[0] - values[2]).max() > 1e-3


def test_batch_equals_single_examples():
    xs = np.stack([X, 2 * X, X[::-1]]).astype(np.float32)
    options = {"num_steps": 8, "l1": 0.02}
    got = ja.explain(ja.learned_mask, product, xs, batch_size=2, **options)
    assert got.info["losses"].shape == (3, 8)
    for i, x in enumerate(xs):
        one = ja.learned_mask(product, x, **options)
        np.testing.assert_allclose(got.values[i], one.values, rtol=0, atol=1e-5)
        np.testing.assert_allclose(got.info["losses"][i], one.info["losses"], rtol=0, atol=1e-5)


def test_integer_leaves_are_never_deleted():
    x = {"a": jnp.ones((3, 2)), "n": jnp.array([1, 2], jnp.int32)}

    def fn(x):
        return x["a"].sum() * x["n"].astype(jnp.float32).sum()

    got = ja.learned_mask(fn, x, baseline=0.5, num_steps=40)
    np.testing.assert_array_equal(got.values["n"], [0, 0])
    np.testing.assert_allclose(got.info["score"], 9.0, rtol=1e-6)


LARGEST = 5
COEFFICIENTS = np.linspace(0.2, 0.9, T * D).reshape(T, D)


def linear(x):
    return (jnp.asarray(COEFFICIENTS, x.dtype) * x).sum()


@pytest.mark.parametrize("mode", ["deletion", "preservation"])
def test_area_of_a_linear_function_has_a_known_optimum(mode):
    """The five largest coefficients reach 1; the others are c N / (2 weight)."""
    got = ja.learned_mask(
        linear,
        np.ones((T, D), np.float32),
        mode=mode,
        area=LARGEST / (T * D),
        area_weight=20.0,
        tv=0.0,
        num_steps=300,
        optimizer=optax.adam(0.03, b2=0.9),
    )
    want = COEFFICIENTS * T * D / (2 * 20)
    want.ravel()[-LARGEST:] = 1  # they increase
    np.testing.assert_allclose(got.values, want, atol=0.01)
    kept = want if mode == "preservation" else 1 - want
    np.testing.assert_allclose(got.info["score"], (COEFFICIENTS * kept).sum(), atol=0.05)


def test_preservation_keeps_the_relevant_feature_only():
    got = ja.learned_mask(planted, X, mode="preservation", tv=0.0, num_steps=60)
    want = np.zeros((T, D))
    want[PLANTED] = 1
    np.testing.assert_array_equal(got.values, want)
    np.testing.assert_allclose(got.info["score"], planted(X), rtol=1e-6)


@pytest.mark.parametrize("perturbation", ["fade_moving_average", "fade_blur", "gaussian_blur"])
def test_deleted_features_take_their_surroundings(perturbation):
    x = np.zeros((T, D), np.float32)
    x[PLANTED] = 1
    got = ja.learned_mask(planted, x, perturbation=perturbation, tv=0.0, num_steps=60, sigma=50.0)
    np.testing.assert_allclose(got.info["score"], 4 / T, atol=0.01)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"area": 1.0}, r"`area` must lie between 0 and 1, both excluded, got 1.0\."),
        ({"area": -0.1}, r"`area` must lie between 0 and 1, both excluded, got -0.1\."),
        ({"area": (0.1, 0.2)}, r"`area` must be one number, got \(0.1, 0.2\)\."),
        ({"mode": "keep"}, r"`mode` must be \"preservation\" or \"deletion\", got 'keep'\."),
        ({"perturbation": "blur"}, r"`perturbation` must be one of .* got 'blur'\."),
    ],
)
def test_errors_of_modes_and_areas(options, message):
    with pytest.raises(ValueError, match=message):
        ja.learned_mask(planted, X, **options)
