"""Methods inside `jax.shard_map`, with and without its check of varying values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec as P

import jaxattn as ja

XS = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)
METHODS = {
    "saliency": lambda fn, x: ja.saliency(fn, x, 1),
    "integrated_gradients": lambda fn, x: ja.integrated_gradients(fn, x, 1, num_steps=5),
    "integrated_gradients in parts": lambda fn, x: ja.integrated_gradients(
        fn, x, 1, num_steps=5, batch_size=2
    ),
    "occlusion": lambda fn, x: ja.occlusion(fn, x, 1, window=2),
    "jacobian": ja.jacobian,
}


@pytest.fixture(scope="module")
def model():
    return ja.models.SequenceClassifier(3, 4, 2, readout="steps", rngs=nnx.Rngs(0))


def mapped(f, **options):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    return jax.jit(
        jax.shard_map(jax.vmap(f), mesh=mesh, in_specs=P("data"), out_specs=P("data"), **options)
    )(XS)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.representatives("integrated_gradients", "saliency")
def test_module_inside_shard_map(name):
    net = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    model = nnx.Sequential(net, jnp.tanh, lambda rows: rows.sum(0))
    got = mapped(lambda x: METHODS[name](model, x).values)
    want = jax.vmap(lambda x: METHODS[name](model, x).values)(XS)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.representatives("integrated_gradients", "saliency")
def test_closure_inside_shard_map_without_check_vma(name, model):
    fn = lambda x: model(x)[-1]  # noqa: E731
    got = mapped(lambda x: METHODS[name](fn, x).values, check_vma=False)
    want = jax.vmap(lambda x: METHODS[name](fn, x).values)(XS)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_closure_inside_shard_map_with_check_vma_raises(name, model):
    with pytest.raises(ValueError, match="check_vma=False"):
        mapped(lambda x: METHODS[name](lambda x: model(x)[-1], x).values)
