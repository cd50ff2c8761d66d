"""Gradients against central differences, and SmoothGrad against a loop over noisy samples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxattn as ja

T, D, H, K = 5, 3, 4, 3
KEY = jax.random.key(3)
pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def model():
    rngs = nnx.Rngs(0)
    return ja.models.SequenceClassifier(
        D, H, K, bidirectional=True, param_dtype=jnp.float64, rngs=rngs
    )


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(T, D)))


def close(got, want, atol=1e-12):
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def test_gradient_matches_central_differences_and_jax_grad(model, x):
    got = ja.gradient(model, x, 2)
    close(got.values, jax.grad(lambda x: model(x)[2])(x))
    close(got.output, model(x))
    steps = 1e-6 * np.eye(T * D).reshape(-1, T, D)
    score = jax.jit(jax.vmap(lambda step: model(x + step)[2]))
    differences = (score(steps) - score(-steps)).reshape(T, D) / 2e-6
    np.testing.assert_allclose(got.values, differences, rtol=1e-4, atol=1e-9)
    close(ja.saliency(model, x, 2).values, np.abs(got.values))
    close(ja.input_x_gradient(model, x, 2).values, x * got.values)


@pytest.mark.parametrize(
    "target, weights",
    [
        ((1, 0), [[0, 0], [1, 0]]),
        (np.array([0, 1]), [[0, 1], [0, 0]]),
        (lambda out: out[1, 1] - 2 * out[0, 0], [[-2, 0], [0, 1]]),
    ],
)
@pytest.mark.representatives("target0-weights0")
def test_targets_of_outputs_of_any_rank(target, weights, x):
    first = jnp.arange(2.0)

    def fn(x):
        return jnp.outer(first + 1, x[0, :2] ** 2) + x[1, 0]

    want = jax.grad(lambda x: jnp.sum(jnp.asarray(weights, float) * fn(x)))(x)
    close(ja.gradient(fn, x, target).values, want)


def test_targets_per_example(model, x):
    targets = np.array([2, 0, 1])
    got = ja.explain(ja.gradient, model, jnp.stack([x] * 3), targets).values
    close(got, jax.jacrev(model)(x)[targets])


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_target_is_optional_for_outputs_of_size_one(shape, x):
    got = ja.gradient(lambda x: (x**2).sum().reshape(shape), x)
    close(got.values, 2 * x)
    assert got.output.shape == shape


SMOOTH = {"num_samples": 6, "noise": 0.2}


def noisy_values(method, fn, x, **options):
    """Return the values of each noisy sample; each has one key per leaf and one for the method."""
    rows = []
    for key in jax.random.split(KEY, SMOOTH["num_samples"]):
        of_noise, of_method = jax.random.split(key)
        draw = jax.random.normal(jax.random.split(of_noise, 1)[0], x.shape, x.dtype)
        noisy = x + SMOOTH["noise"] * (x.max() - x.min()) * draw
        rows.append(method(fn, noisy, 1, key=of_method, **options).values)
    return np.stack(rows)


@pytest.mark.parametrize(
    "method, options",
    [
        (ja.gradient, {}),
        (ja.integrated_gradients, {"num_steps": 3, "baseline": 1.0}),
        (partial(ja.smooth_grad, num_samples=2, noise=0.1), {}),
    ],
)
@pytest.mark.representatives("gradient-options0")
def test_smooth_grad_matches_a_loop_over_noisy_samples(method, options, model, x):
    rows = noisy_values(method, model, x, **options)
    smooth = partial(ja.smooth_grad, model, x, 1, key=KEY, batch_size=4, method=method)
    assert rows.std(axis=0).min() > 0
    close(smooth(**SMOOTH, **options).values, rows.mean(axis=0))


@pytest.mark.parametrize(
    "statistic, reduce",
    [("mean_square", lambda rows: (rows**2).mean(0)), ("variance", lambda r: r.var(0, ddof=1))],
)
@pytest.mark.representatives("variance")
def test_smooth_grad_statistics(statistic, reduce, model, x):
    got = ja.smooth_grad(model, x, 1, key=KEY, statistic=statistic, **SMOOTH)
    close(got.values, reduce(noisy_values(ja.gradient, model, x)))
    close(got.output, model(x))


@pytest.mark.parametrize("method", [ja.gradient, ja.saliency, ja.integrated_gradients])
@pytest.mark.slow
def test_smooth_grad_without_noise_equals_its_method(method, model, x):
    smooth = partial(ja.smooth_grad, model, x, 1, key=KEY, num_samples=3, noise=0.0, method=method)
    close(smooth().values, method(model, x, 1).values)
    if method is ja.gradient:
        close(smooth(statistic="variance").values, jnp.zeros((T, D)), 1e-30)


def test_variance_is_stable_for_large_means(x):
    """Squares of about 1e6 and a variance below 1e-6: their difference would cancel in float32."""
    x = x.astype(jnp.float32)

    def fn(x):
        return (1e3 * x + 1e-3 * jnp.sin(x)).sum()

    got = ja.smooth_grad(fn, x, key=KEY, num_samples=16, noise=0.5, statistic="variance").values
    assert (got >= 0).all()
    assert got.max() < 1e-6
