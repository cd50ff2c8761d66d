"""Integrated Hessians: closed forms, completeness, symmetry and invalid options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.tree_util import Partial

import jaxattn as ja
from jaxattn.methods.interactions import product_points

X = np.array([2.0, 4.0, 1.0])
W = np.sin(np.arange(12) * 1.7 + 0.3).reshape(3, 4)
EXACT = {"quadrature": "gauss_legendre", "num_steps": 24}


def network(x):
    return jnp.tanh(x @ W).sum() + jnp.sin(x[0] * x[2])


def close(got, want, atol=1e-12):
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def test_gaussian_rule_has_the_moments_of_the_density():
    """The mean of the k-th power of a product of two uniform numbers is 1 / (k + 1)^2."""
    for number in (1, 2, 7, 40):
        nodes, weights = product_points("gauss_legendre", number)
        powers = np.arange(2 * number)
        close((weights[:, None] * nodes[:, None] ** powers).sum(0), 1 / (powers + 1) ** 2, 1e-13)
        nodes, weights = product_points("midpoint", number)
        close([weights.sum(), weights @ nodes], [1, 1 / 4], 1e-13)


@pytest.mark.parametrize("quadrature", ["midpoint", "gauss_legendre"])
def test_quadratic_function_in_closed_form(quadrature, x64):
    """A product x0 x1 gives a quarter to each pair; a linear term stays on the diagonal."""
    got = ja.integrated_hessians(
        lambda x: x[0] * x[1] + 5 * x[2], X, num_steps=1, quadrature=quadrature
    )
    close(got.values, [[2, 2, 0], [2, 2, 0], [0, 0, 5]])
    close(got.info["delta"], 0)


def test_cubic_function_in_closed_form(x64):
    """Of x0 x1 x2 each pair of two features gets 1/9 twice, and each feature 1/9."""
    got = ja.integrated_hessians(jnp.prod, X, **EXACT)
    close(got.values, np.full((3, 3), 8 / 9))


def test_values_equal_the_double_integral(x64):
    """The definition, with a sum over both positions on the path."""
    points, masses = np.polynomial.legendre.leggauss(30)
    a, w = (points + 1) / 2, masses / 2
    hessian = jax.jit(jax.vmap(jax.hessian(network)))
    slope = jax.jit(jax.vmap(jax.grad(network)))
    products, weights = np.outer(a, a).ravel(), np.outer(w, w).ravel()
    start = np.full(3, 0.3)
    along = start + products[:, None] * (X - start)
    second = np.einsum("n,nij->ij", weights * products, hessian(along))
    want = np.outer(X - start, X - start) * second
    want += np.diag((X - start) * (weights @ slope(along)))
    close(ja.integrated_hessians(network, X, baseline=0.3, **EXACT).values, want, 1e-9)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_random_cubic_functions(seed):
    """Values are complete and symmetric, zero for a feature without effect, and linear."""
    rng = np.random.default_rng(seed)
    cubes = rng.normal(size=(2, 3, 3, 3))
    cubes[0, 1] = cubes[0, :, 1] = cubes[0, :, :, 1] = 0
    x, baseline = rng.normal(size=(2, 3))

    def fn(cube, x):
        return jnp.einsum("ijk,i,j,k->", cube, x, x, x) + cube[0, 0] @ x

    with jax.enable_x64(True):
        first, second, both = (
            ja.integrated_hessians(
                Partial(fn, cube), x, baseline=baseline, quadrature="gauss_legendre", num_steps=2
            ).values
            for cube in (*cubes, cubes.sum(0))
        )
        slopes = ja.integrated_gradients(
            Partial(fn, cubes[1]), x, baseline=baseline, quadrature="gauss_legendre", num_steps=2
        ).values
        first, second, both = map(np.asarray, (first, second, both))
    close(second.sum(1), slopes, 1e-9)
    close(second, second.T, 1e-9)
    close(first + second, both, 1e-9)
    close(first[1], 0, 0)


def test_baseline_equal_to_the_input_gives_zeros(x64):
    got = ja.integrated_hessians(network, X, baseline=X)
    close(got.values, 0, 0)
    close(got.info["relative_delta"], 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 1, 2, 7])
def test_rows_sum_to_integrated_gradients_and_values_are_symmetric(batch_size, x64):
    got = ja.integrated_hessians(network, X, baseline=0.3, batch_size=batch_size, **EXACT)
    gradients = ja.integrated_gradients(network, X, baseline=0.3, **EXACT)
    close(got.values.sum(1), gradients.values, 1e-6)
    close(got.values, got.values.T)
    close(got.values.sum(), network(X) - network(np.full(3, 0.3)), 1e-6)
    close(got.info["delta"], got.values.sum() - network(X) + network(np.full(3, 0.3)))


def test_pytree_with_integers(x64):
    def fn(x):
        return jnp.tanh(x["rows"] @ W).sum() * x["scale"] * x["count"].astype(float)

    x = {"rows": X[None] / 4, "scale": np.array(2.0), "count": np.array([3])}
    got = ja.explain(
        ja.integrated_hessians,
        lambda x: fn(x)[0],
        jax.tree.map(lambda leaf: leaf[None], x),
        **EXACT,
    )
    shapes = jax.tree.map(lambda leaf: leaf.shape[1:], got.values)
    assert shapes["rows"] == {"rows": (1, 3, 1, 3), "scale": (1, 3), "count": (1, 3, 1)}
    assert shapes["count"] == {"rows": (1, 1, 3), "scale": (1,), "count": (1, 1)}
    close(got.values["rows"]["scale"], got.values["scale"]["rows"])
    close(got.values["count"]["count"], 0, 0)
    total = sum(leaf.sum() for leaf in jax.tree.leaves(got.values))
    close(total, fn(x)[0], 1e-9)


def test_relu_network_warns_that_values_are_not_complete():
    with pytest.warns(ja.ConvergenceWarning, match="softplus"):
        ja.integrated_hessians(lambda x: jax.nn.relu(x.sum() - 4), np.float32(X))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "`num_steps` must be at least 1, got 0"),
        ({"num_steps": "auto"}, TypeError, "`num_steps` must be an int, got 'auto'"),
        ({"quadrature": "simpson"}, ValueError, "`quadrature` must be .* got 'simpson'"),
    ],
)
def test_invalid_options_raise(options, error, message):
    with pytest.raises(error, match=message):
        ja.integrated_hessians(network, np.float32(X), **options)
