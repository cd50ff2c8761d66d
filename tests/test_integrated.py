"""Integrated gradients: exactness, completeness and implementation invariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxattn as ja

T, D, H, K = 5, 3, 4, 2
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


@pytest.mark.parametrize("quadrature", ["midpoint", "gauss_legendre"])
def test_one_step_is_exact_for_linear_and_quadratic_functions(quadrature, x):
    weights, baseline = jnp.arange(1.0, T * D + 1).reshape(T, D), 0.5
    options = {"baseline": baseline, "num_steps": 1, "quadrature": quadrature}
    linear = ja.integrated_gradients(lambda x: (weights * x).sum() + 7, x, **options)
    close(linear.values, weights * (x - baseline))
    quadratic = ja.integrated_gradients(lambda x: (weights * x**2).sum(), x, **options)
    close(quadratic.values, weights * (x**2 - baseline**2))
    close([linear.info["delta"], quadratic.info["delta"]], 0)


@pytest.mark.parametrize("num_steps", [2, 5])
def test_gauss_legendre_is_exact_for_polynomials_of_twice_its_order(num_steps, x):
    def fn(x):
        return (x ** (2 * num_steps)).sum()

    options = {"baseline": -0.5, "quadrature": "gauss_legendre"}
    got = ja.integrated_gradients(fn, x, num_steps=num_steps, **options)
    close(got.values, x ** (2 * num_steps) - 0.5 ** (2 * num_steps), 1e-9)
    fewer = ja.integrated_gradients(fn, x, num_steps=num_steps - 1, **options)
    assert abs(fewer.info["delta"]) > 1e-4


def test_midpoint_rule_is_of_second_order(model, x):
    deltas = [ja.integrated_gradients(model, x, 1, num_steps=n).info["delta"] for n in (8, 16, 32)]
    np.testing.assert_allclose(np.divide(deltas[:-1], deltas[1:]), 4, rtol=0.05)


def test_delta_is_the_residual_of_completeness(model, x):
    got = ja.integrated_gradients(model, x, 1, num_steps=2, baseline=0.3)
    change = model(x)[1] - model(jnp.full_like(x, 0.3))[1]
    close(got.info["delta"], got.values.sum() - change)
    exact = ja.integrated_gradients(model, x, 1, num_steps=24, quadrature="gauss_legendre")
    close(exact.info["delta"], 0)


def test_values_equal_the_riemann_sum(model, x):
    grad = jax.jit(jax.grad(lambda x: model(x)[1]))
    mean = np.mean([grad(0.2 + (i + 0.5) / 7 * (x - 0.2)) for i in range(7)], axis=0)
    for batch_size in (None, 3):
        got = ja.integrated_gradients(model, x, 1, baseline=0.2, num_steps=7, batch_size=batch_size)
        close(got.values, (x - 0.2) * mean)


def test_implementation_invariance(x):
    first = ja.integrated_gradients(lambda x: jnp.tanh(x).prod(), x, num_steps=9)
    second = ja.integrated_gradients(
        lambda x: (2 * jax.nn.sigmoid(2 * x) - 1).prod(), x, num_steps=9
    )
    close(first.values, second.values)


def test_linearity_in_the_function(model, x):
    parts = [ja.integrated_gradients(model, x, k, num_steps=5).values for k in range(K)]
    both = ja.integrated_gradients(model, x, lambda out: 2 * out[0] - 3 * out[1], num_steps=5)
    close(both.values, 2 * parts[0] - 3 * parts[1])


@pytest.mark.parametrize(
    "baseline",
    [0.5, 1, np.arange(3.0), np.arange(15.0).reshape(T, D), np.arange(5.0)[:, None]],
    ids=["float", "int", "last axis", "all", "first axis"],
)
def test_baseline_broadcasts(baseline, x):
    def fn(x):
        return (x**2).sum()

    want = x**2 - np.broadcast_to(np.asarray(baseline, float), x.shape) ** 2
    close(ja.integrated_gradients(fn, x, baseline=baseline, num_steps=1).values, want)
    xs = jnp.stack([x, 2 * x])
    got = ja.explain(ja.integrated_gradients, fn, xs, baseline=baseline, num_steps=1).values
    close(got[0], want)


def test_baselines_per_example(x):
    xs, baseline = jnp.stack([x, 2 * x, -x]), jnp.stack([0 * x, x, 3 * x])
    got = ja.explain(ja.integrated_gradients, lambda x: (x**2).sum(), xs, baseline=baseline)
    close(got.values, xs**2 - baseline**2)


@pytest.mark.parametrize("baseline", [0.5, {"a": 0.5, "n": 7, "flag": False}])
def test_integer_leaves_are_not_interpolated(baseline):
    x = {"a": jnp.arange(3.0), "n": jnp.array([2, 3, 4], jnp.int32), "flag": jnp.array(True)}

    def fn(x):
        return jnp.where(x["flag"], (x["n"].astype(float) * x["a"]).sum(), 0)

    got = ja.integrated_gradients(fn, x, baseline=baseline, num_steps=2)
    close(got.values["a"], np.array([2, 3, 4]) * (np.arange(3) - 0.5))
    close(got.values["n"], 0, 0)
    close(got.info["delta"], 0)
