"""Dynamask: closed forms of its objective, the choice of an area, and both modes."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxattn as ja

T, D = 4, 2
X = np.array([[1.0, 2.0], [-1.0, 1.0], [2.0, -2.0], [-2.0, -1.0]], np.float32)
WEIGHTS = np.array([[0.2, -0.4], [0.1, 0.3], [-0.5, 0.1], [0.6, 0.2]])


def reads_two(x):
    """Return two features, which are far from the mean of their channel."""
    return x[1:3, 0]


def test_first_steps_closed_form(x64):
    """The slope is that of the error, of the area with all features equal, and of no change."""
    x = X.astype(float)
    options = {
        "area": 0.25,
        "perturbation": "fade_baseline",
        "baseline": 0.0,
        "optimizer": optax.sgd(0.1),
        "area_weight": 0.7,
        "area_growth": 9.0,
        "smoothness_weight": 0.3,
    }

    def fn(x):
        return (WEIGHTS * x).sum(0)

    one = ja.dynamask(fn, x, num_steps=1, **options)
    lost = -0.5 * fn(x)  # at m = 0.5
    slope = lost * WEIGHTS * x + 0.7 * (1 - 2 * 0.25) / X.size
    mask = 0.5 - 0.1 * slope
    np.testing.assert_allclose(one.values, mask, rtol=0, atol=1e-12)
    np.testing.assert_allclose(one.info["losses"], [np.mean(lost**2) + 0.7 / 4], rtol=1e-12)
    np.testing.assert_allclose(one.info["error"], np.mean(fn((1 - mask) * x) ** 2), rtol=1e-9)

    two = ja.dynamask(fn, x, num_steps=2, **options)
    largest = mask >= np.sort(mask.ravel())[-2]
    distance = np.mean((mask - largest) ** 2)
    want = np.mean(fn((1 - mask) * x) ** 2) + 0.7 * 9**0.5 * distance
    want += 0.3 * np.abs(np.diff(mask, axis=0)).mean()
    np.testing.assert_allclose(two.info["losses"][1], want, rtol=1e-9)


@pytest.mark.parametrize("mode", ["preservation", "deletion"])
def test_mask_holds_the_features_that_are_read(mode):
    got = ja.dynamask(reads_two, X, area=0.25, mode=mode, num_steps=200)
    want = np.zeros((T, D))
    want[1:3, 0] = 1
    np.testing.assert_allclose(got.values, want, atol=1e-3)
    assert got.info["losses"].shape == (200,)
    error = 0.0 if mode == "preservation" else np.mean(reads_two(X) ** 2)
    np.testing.assert_allclose(got.info["error"], error, atol=1e-2)


def test_smallest_area_that_suffices_is_kept():
    options = {"area": (0.75, 0.125, 0.25, 0.5), "num_steps": 200}
    got = ja.dynamask(reads_two, X, **options, tolerance=0.01)
    assert got.info["area"] == 0.25
    assert got.info["errors"].shape == (4,)
    assert got.info["error"] == got.info["errors"][2]
    alone = ja.dynamask(reads_two, X, area=0.25, num_steps=200)
    np.testing.assert_allclose(got.values, alone.values, atol=1e-5)
    np.testing.assert_allclose(got.info["losses"], alone.info["losses"], atol=1e-5)
    assert ja.dynamask(reads_two, X, **options, tolerance=1.0).info["area"] == 0.125
    best = ja.dynamask(reads_two, X, **options, tolerance=-1.0)
    assert best.info["error"] == best.info["errors"].min()


def test_target_selects_what_is_compared():
    got = ja.dynamask(reads_two, X, 1, area=0.125, num_steps=200)
    want = np.zeros((T, D))
    want[2, 0] = 1
    np.testing.assert_allclose(got.values, want, atol=1e-3)


def test_features_that_do_not_matter_share_the_area():
    got = ja.dynamask(lambda x: jnp.ones(2), X, area=0.25, num_steps=200)
    np.testing.assert_allclose(got.values, 0.25, atol=1e-2)


def test_penalty_of_changes_makes_a_mask_constant_in_time():
    got = ja.dynamask(reads_two, X, area=0.5, smoothness_weight=100.0, num_steps=200)
    assert np.ptp(got.values, axis=0).max() < 0.1


@pytest.mark.parametrize("perturbation", ["gaussian_blur", "fade_moving_average"])
def test_series_of_one_step(perturbation):
    """It equals its blur and its average, so that all masks are as good."""
    got = ja.dynamask(jnp.sum, X[:1], area=0.5, num_steps=20, perturbation=perturbation)
    assert np.isfinite(got.values).all()
    np.testing.assert_allclose(got.info["error"], 0, atol=1e-10)


@pytest.mark.slow
def test_batch_of_many_areas_is_independent_of_chunks():
    xs = np.stack([X, 2 * X, -X])
    options = {"area": (0.125, 0.25, 0.5), "num_steps": 20}
    got = ja.explain(ja.dynamask, reads_two, xs, batch_size=2, **options)
    assert got.info["errors"].shape == (3, 3)
    for i in (0, 2):
        one = ja.dynamask(reads_two, xs[i], **options)
        np.testing.assert_allclose(got.values[i], one.values, atol=1e-5)
        np.testing.assert_allclose(got.info["losses"][i], one.info["losses"], atol=1e-4)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"area": 0.0}, ValueError, r"`area` must lie between 0 and 1, both excluded, got 0.0\."),
        ({"area": (0.1, 1.0)}, ValueError, r"`area` must lie between 0 and 1"),
        ({"area": ()}, ValueError, r"`area` must lie between 0 and 1"),
        ({"area": jnp.array([0.3, 1.7])}, ValueError, r"`area` must lie between 0 and 1"),
        ({"num_steps": 0}, ValueError, r"`num_steps` must be at least 1, got 0\."),
        ({"mode": "keep"}, ValueError, r"`mode` must be \"preservation\" or \"deletion\""),
        ({"error": "mse"}, ValueError, r"`error` must be \"squared\" or \"cross_entropy\""),
        ({"perturbation": "zero"}, ValueError, r"`perturbation` must be one of \"fade_baseline\""),
        ({"window": 0}, ValueError, r"`window` must be at least 1, got 0\."),
        ({"window": (1, 1, 1)}, ValueError, r"`window` must have at most as many axes as x"),
        ({"perturbation": "fade_blur", "sigma": 0}, ValueError, r"`sigma` must be positive"),
        ({"perturbation": "gaussian_blur", "sigma": (1, 1)}, ValueError, r"`sigma` must be one"),
        ({"optimizer": 0.1}, TypeError, r"`optimizer` must be an optax.GradientTransformation"),
    ],
)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        ja.dynamask(reads_two, X, **options)


def test_areas_of_all_examples_are_checked():
    with pytest.raises(ValueError, match=r"`area` must lie between 0 and 1"):
        ja.explain(ja.learned_mask, jnp.sum, X[None], area=np.array(1.7))


def test_outputs_must_be_floating():
    with pytest.raises(TypeError, match=r"`fn` must return real floating-point numbers"):
        ja.dynamask(lambda x: jnp.ones(2, jnp.int32), X)
