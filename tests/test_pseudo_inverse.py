"""The pseudo-inverse of symmetric matrices, alone and in batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.jaxpr.lapack import takes_batches
from jaxattn.methods.pseudo_inverse import pseudo_inverse

RNG = np.random.default_rng(0)


def matrices(rank, *batch):
    """Return random symmetric matrices of a rank, with 5 rows."""
    factors = RNG.normal(size=(*batch, 5, rank))
    return jnp.asarray(factors @ np.swapaxes(factors, -1, -2))


@pytest.mark.parametrize("rank", [5, 3])
def test_equals_the_decomposition_of_numpy(rank, x64):
    batch = matrices(rank, 4)
    expected = np.linalg.pinv(batch, hermitian=True)
    np.testing.assert_allclose(pseudo_inverse(batch[0]), expected[0], atol=1e-10)
    np.testing.assert_allclose(jax.vmap(pseudo_inverse)(batch), expected, atol=1e-10)
    nested = jax.vmap(jax.vmap(pseudo_inverse))(batch.reshape(2, 2, 5, 5))
    np.testing.assert_allclose(nested.reshape(4, 5, 5), expected, atol=1e-10)


@pytest.mark.parametrize("rank", [5, 3])
def test_gradient_equals_finite_differences_at_constant_rank(rank, x64):
    factors, weights = RNG.normal(size=(2, 5, rank)), RNG.normal(size=(5, 5))

    def score(factor):
        return (weights * pseudo_inverse(factor @ factor.T)).sum()

    def batch(factors):
        return jax.vmap(score)(factors).sum()

    direction = RNG.normal(size=factors.shape)
    slope = (jax.grad(batch)(factors) * direction).sum()
    step = 1e-6
    ahead, behind = (batch(factors + sign * step * direction) for sign in (1, -1))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-5)


def test_batches_are_decomposed_one_matrix_at_a_time_on_a_cpu():
    batch = jnp.asarray(matrices(5, 4), jnp.float32)

    def found(f, x):
        return takes_batches(jax.make_jaxpr(f)(x).jaxpr)

    assert not found(jax.vmap(pseudo_inverse), batch)
    assert not found(jax.jit(jax.vmap(jax.grad(lambda m: pseudo_inverse(m).sum()))), batch)
    assert found(jax.vmap(jnp.linalg.pinv), batch)
    assert found(jax.jit(jnp.linalg.cholesky), batch)
    assert not found(jax.jit(jnp.linalg.cholesky), batch[0])
    assert not found(jnp.sin, batch)
