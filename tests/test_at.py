"""Explaining a named intermediate instead of the input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja

rng = np.random.default_rng(0)
TABLE = jnp.asarray(rng.normal(size=(7, 4)), jnp.float32)
HEAD = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
IDS = np.array([[1, 5, 2], [0, 0, 6]])
Y = np.array([2, 0])


def classify(ids, scale=1.0):
    embedded = ja.tag(TABLE[ids], "embedding")
    return jnp.tanh(scale * embedded).sum(0) @ HEAD


def from_embedding(embedded):
    return jnp.tanh(embedded).sum(0) @ HEAD


OPTIONS = {
    ja.saliency: {},
    ja.integrated_gradients: {"num_steps": 4},
    ja.occlusion: {"window": (1, 2)},
    ja.jacobian: {},
    ja.smooth_grad: {"num_samples": 3, "key": jax.random.key(0)},
    ja.learned_mask: {"num_steps": 3},
}


@pytest.mark.parametrize("method", OPTIONS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_explains_the_embedding_of_token_ids(method, wrap):
    target = None if method is ja.jacobian else Y
    found = ja.explain(method, wrap(classify), IDS, target, at="embedding", **OPTIONS[method])
    expected = ja.explain(method, from_embedding, TABLE[IDS], target, **OPTIONS[method])
    np.testing.assert_allclose(found.values, expected.values, atol=1e-6)
    one = method(classify, IDS[1], None if target is None else 0, at="embedding", **OPTIONS[method])
    assert one.values.shape == expected.values[1].shape


def test_a_baseline_of_each_example_and_args():
    baseline = rng.normal(size=(2, 3, 4)).astype(np.float32)
    scale = np.ones(2, np.float32)
    found = ja.explain(
        ja.integrated_gradients,
        classify,
        IDS,
        Y,
        at="embedding",
        baseline=baseline,
        args=(scale,),
    )
    assert abs(found.info["delta"]).max() < 1e-3
    expected = ja.integrated_gradients(from_embedding, TABLE[IDS[1]], 0, baseline=baseline[1])
    np.testing.assert_allclose(found.values[1], expected.values, atol=1e-6)


def test_names_are_checked():
    with pytest.raises(ValueError, match=r"at='embed' must name one .* fn has \['embedding'\]"):
        ja.saliency(classify, IDS[0], 0, at="embed")
    with pytest.raises(ValueError, match="2 have that name"):
        ja.saliency(lambda x: ja.tag(ja.tag(x, "a"), "a").sum(), np.ones(2), at="a")

    def looped(x):
        return jax.lax.scan(lambda c, r: (ja.tag(c + r, "state"), None), jnp.zeros(()), x)[0]

    with pytest.raises(ValueError, match="inside of a `scan`"):
        ja.saliency(looped, np.ones(3, np.float32), at="state")


def test_ids_alone_are_refused_with_the_way_out():
    with pytest.raises(TypeError, match=r'at="embedding".*occlusion'):
        ja.saliency(classify, IDS[0], 0)
