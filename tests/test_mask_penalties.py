"""Perturbations and penalties of masks against loops and sorted arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.methods.mask_penalties import area_penalty, smoothness
from jaxattn.methods.mask_references import gaussian_blur, moving_average, perturbation
from jaxattn.methods.output_errors import output_error

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3)).astype(np.float32)


def sorted_penalty(values, area):
    values = np.sort(np.ravel(values))
    ones = max(1, round(area * values.size))
    reference = np.arange(values.size) >= values.size - ones
    return np.mean((values - reference) ** 2)


@pytest.mark.parametrize("area", [0.01, 0.3, 0.99])
def test_area_penalty_equals_that_of_sorted_values(area):
    masks = [RNG.uniform(size=(6, 3)), np.array([0.0, 1.0, 1.0, 0.5, 0.5, 0.5])]
    got = area_penalty([jnp.asarray(m, jnp.float32) for m in masks], area)
    want = sorted_penalty(np.concatenate([m.ravel() for m in masks]), area)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_equal_features_share_the_ones():
    """Of five features one is largest, and one of the three equal ones is drawn to 1."""
    values = jnp.array([0.5, 0.9, 0.5, 0.1, 0.5])
    slope = jax.grad(lambda v: area_penalty([v], 0.4))(values)
    third = (-2 * 0.5 + 2 * 2 * 0.5) / 3
    want = np.array([third, -2 * 0.1, third, 2 * 0.1, third]) / 5
    np.testing.assert_allclose(slope, want, rtol=1e-5)


def test_smoothness_is_the_mean_change_in_time():
    masks = [jnp.array([[0.0, 1.0], [0.5, 1.0], [0.5, 0.0]]), jnp.ones(1), jnp.ones(())]
    np.testing.assert_allclose(smoothness(masks), (0.5 + 1) / 4, rtol=1e-6)
    assert smoothness(masks[1:]) == 0


@pytest.mark.parametrize("window", [None, 3, 4, 100, (3, 2)])
def test_moving_average_equals_a_loop(window):
    sizes = {None: (99, 1)}.get(window, window if isinstance(window, tuple) else (window, 1))
    want = np.empty_like(X)
    for t, d in np.ndindex(X.shape):
        part = X
        for axis, (place, size) in enumerate(zip((t, d), sizes, strict=True)):
            low = max(0, place - (size - 1) // 2)
            part = np.take(part, range(low, min(X.shape[axis], place + size // 2 + 1)), axis)
        want[t, d] = part.mean()
    np.testing.assert_allclose(moving_average(jnp.asarray(X), window), want, rtol=0, atol=1e-6)


def kernel(length, sigma):
    distance = np.arange(length)[:, None] - np.arange(length)
    weights = np.exp(-(distance**2) / (2 * sigma**2))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.slow
def test_blur_equals_the_product_with_a_normalised_kernel():
    want = kernel(6, 1.5) @ X @ kernel(3, 0.7).T
    np.testing.assert_allclose(gaussian_blur(jnp.asarray(X), (1.5, 0.7)), want, atol=2e-3)


@pytest.mark.slow
def test_mask_sets_the_width_of_a_gaussian_blur():
    mask = RNG.uniform(0.1, 0.9, size=X.shape).astype(np.float32)
    perturbed = perturbation("gaussian_blur", jnp.asarray(X), 0.0, None, 2.0)
    want = [[kernel(6, 2 * (1 - mask[t, d]))[t] @ X[:, d] for d in range(3)] for t in range(6)]
    np.testing.assert_allclose(perturbed([jnp.asarray(mask)])[0], want, atol=2e-3)
    np.testing.assert_allclose(perturbed([jnp.ones((6, 3))])[0], X, rtol=1e-6)
    slope = jax.jacobian(lambda m: perturbed([m])[0])(jnp.ones((6, 3)))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    "name, reference",
    [
        ("fade_baseline", 0.5),
        ("fade_moving_average", X.mean(0)),
        ("fade_blur", kernel(6, 2.0) @ X),
    ],
)
def test_features_fade_to_the_reference(name, reference):
    mask = RNG.uniform(size=X.shape).astype(np.float32)
    (got,) = perturbation(name, jnp.asarray(X), 0.5, None, 2.0)([jnp.asarray(mask)])
    np.testing.assert_allclose(got, mask * X + (1 - mask) * reference, atol=2e-3)


def logits(x):
    return jnp.stack([x.sum(), x[0], -x[1]])


def test_errors_of_outputs():
    x, other = jnp.array([0.5, -1.0]), jnp.array([1.5, 0.25])
    output, moved = np.asarray(logits(x)), np.asarray(logits(other))
    logs = [np.asarray(jax.nn.log_softmax(each)) for each in (output, moved)]
    cases = {
        ("squared", None): np.mean((output - moved) ** 2),
        ("squared", 1): (output[1] - moved[1]) ** 2,
        ("cross_entropy", None): np.sum(np.exp(logs[0]) * (logs[0] - logs[1])),
        ("cross_entropy", 1): logs[0][1] - logs[1][1],
    }
    for (error, target), want in cases.items():
        of = output_error(logits, target, (), error, logits(x))
        np.testing.assert_allclose(of(other), want, rtol=1e-5)
        np.testing.assert_allclose(of(x), 0, atol=1e-6)


def test_error_of_several_outputs_compares_all_numbers():
    def fn(x):
        return {"sum": x.sum(), "steps": 2 * x}

    x = jnp.array([1.0, 2.0])
    of = output_error(fn, None, (), "squared", fn(x))
    np.testing.assert_allclose(of(x + 1), (2**2 + 2 * 2**2) / 3, rtol=1e-6)


@pytest.mark.parametrize("output", [jnp.ones(()), jnp.ones((3, 1)), [jnp.ones(2), jnp.ones(2)]])
@pytest.mark.parametrize("target", [None, 0])
def test_cross_entropy_needs_entries_of_one_output(output, target):
    message = '`error` must be "squared" unless fn returns one array with at least two entries'
    with pytest.raises(ValueError, match=message):
        output_error(lambda x: output, target, (), "cross_entropy", output)
