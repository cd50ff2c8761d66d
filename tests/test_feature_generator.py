"""The generator of the next time step, and its training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxattn as ja
from jaxattn.models.feature_generator import fit_generator

D = 2


def small(**options):
    sizes = {"hidden_features": 8, "latent_features": 4, "layer_features": 6} | options
    return ja.models.FeatureGenerator(D, rngs=nnx.Rngs(0), **sizes)


def series(number, steps=6):
    """Return two correlated features, each half of its last value plus noise."""
    noise = jax.random.normal(jax.random.key(0), (number, steps, D))
    noise = noise @ jnp.array([[0.5, 0.3], [0.0, 0.4]])

    def advance(last, row):
        new = 0.5 * last + row
        return new, new

    return jax.vmap(lambda rows: jax.lax.scan(advance, jnp.zeros(D), rows)[1])(noise)


@pytest.mark.slow
def test_covariance_is_symmetric_and_positive():
    step = nnx.jit(lambda g, x, key: g(x, key))(small(), series(1)[0], jax.random.key(1))
    np.testing.assert_allclose(step.covariance, jnp.swapaxes(step.covariance, 1, 2), atol=1e-7)
    assert (np.linalg.eigvalsh(step.covariance) > 0).all()


@pytest.fixture(scope="module")
def trained():
    lengths = jnp.array([6] * 12 + [3] * 4)
    xs = series(16)
    options = {"key": jax.random.key(2), "num_epochs": 25, "batch_size": 16, "lengths": lengths}
    padded = jnp.where(jnp.arange(6)[None, :, None] < lengths[:, None, None], xs, 99.0)
    generator = small()
    before = jax.tree.map(jnp.copy, nnx.state(generator))
    runs = [fit_generator(generator, x, **options) for x in (xs, padded)]
    return generator, before, runs


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_the_generator(trained):
    generator, before, (result, _) = trained
    assert result.losses.shape == (25,)
    assert result.losses[-5:].mean() < result.losses[:5].mean() - 0.005
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, nnx.state(generator))
    assert all(jax.tree.leaves(same))


@pytest.mark.slow
def test_padding_does_not_change_the_training(trained):
    _, _, (result, padded) = trained
    np.testing.assert_allclose(padded.losses, result.losses, rtol=1e-5)


@pytest.mark.slow
def test_first_loss_is_the_likelihood_of_the_steps():
    generator, xs, key = small(), series(4), jax.random.key(5)
    losses = fit_generator(generator, xs, key=key, num_epochs=1, batch_size=4).losses
    _, of_latents = jax.random.split(key)
    order = jax.random.permutation(jax.random.split(jax.random.split(key)[0], 1)[0], 4)
    keys = jax.random.split(of_latents, (1, 4))[0]

    def likelihood(x, key):
        step = generator(x, key)
        density = jax.vmap(jax.scipy.stats.multivariate_normal.logpdf)
        return density(x[1:], step.mean[:-1], step.covariance[:-1])

    want = -nnx.jit(nnx.vmap(likelihood))(xs[order], keys).mean() / D
    np.testing.assert_allclose(losses[0], want, rtol=1e-5)


@pytest.mark.slow
def test_training_approaches_the_entropy_of_the_noise():
    xs = series(512, 12)
    options = {"key": jax.random.key(2), "num_epochs": 60, "batch_size": 64}
    losses = fit_generator(small(), xs, **options).losses
    factor = np.array([[0.5, 0.3], [0.0, 0.4]])
    entropy = 0.5 * np.log(np.linalg.det(2 * np.pi * np.e * factor.T @ factor)) / D
    assert abs(losses[-40:].mean() - entropy) < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"xs": np.ones((3, 4, 1))}, r"`xs` must have shape \(B, T, 2\) with T of at least 2"),
        ({"xs": np.ones((3, 1, 2))}, r"`xs` must have shape \(B, T, 2\) with T of at least 2"),
        ({"batch_size": 4}, "`batch_size` must be at most the number of series, 3, got 4"),
        ({"num_epochs": 0}, "`num_epochs` must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(options, message):
    call = {"xs": np.ones((3, 4, 2)), "key": jax.random.key(0), "batch_size": 2}
    with pytest.raises(ValueError, match=message):
        fit_generator(small(), **call | options)
