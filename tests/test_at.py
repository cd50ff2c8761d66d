"""Test attributions of a named intermediate (`at`)."""

import jax
import jax.numpy as jnp
import keras
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
@pytest.mark.representatives("plain-integrated_gradients", "plain-saliency", "jit-occlusion")
def test_at_explains_the_embedding_of_token_ids(method, wrap):
    target = None if method is ja.jacobian else Y
    got = ja.explain(method, wrap(classify), IDS, target, at="embedding", **OPTIONS[method])
    expected = ja.explain(method, from_embedding, TABLE[IDS], target, **OPTIONS[method])
    np.testing.assert_allclose(got.values, expected.values, atol=1e-6)
    one = method(classify, IDS[1], None if target is None else 0, at="embedding", **OPTIONS[method])
    assert one.values.shape == expected.values[1].shape


def test_at_with_baseline_per_example_and_args():
    baseline = rng.normal(size=(2, 3, 4)).astype(np.float32)
    scale = np.ones(2, np.float32)
    got = ja.explain(
        ja.integrated_gradients,
        classify,
        IDS,
        Y,
        at="embedding",
        baseline=baseline,
        args=(scale,),
    )
    assert abs(got.info["delta"]).max() < 1e-3
    expected = ja.integrated_gradients(from_embedding, TABLE[IDS[1]], 0, baseline=baseline[1])
    np.testing.assert_allclose(got.values[1], expected.values, atol=1e-6)


def recurrent(x):
    def step(carry, row):
        state = ja.tag(jnp.tanh(carry + row @ HEAD), "state")
        return state, ja.tag(state * row[:3], "gated")

    return jax.lax.scan(step, jnp.zeros(3), x)[1].sum(0)


ROWS = rng.normal(size=(2, 5, 4)).astype(np.float32)


@pytest.mark.parametrize("method", OPTIONS, ids=lambda method: method.__name__)
@pytest.mark.representatives("integrated_gradients", "jacobian")
def test_at_explains_every_step_of_a_state(method):
    target = None if method is ja.jacobian else Y
    states = jax.vmap(ja.capture(recurrent, "state"))(ROWS)[1]["state"]

    def from_states(states, row):
        return (states * row[:, :3]).sum(0)

    options = {"args": (ROWS,), **OPTIONS[method]}
    expected = ja.explain(method, from_states, states, target, **options)
    got = ja.explain(method, recurrent, ROWS, target, at="state", **OPTIONS[method])
    np.testing.assert_allclose(got.values, expected.values, atol=1e-6)
    np.testing.assert_allclose(got.output, expected.output, atol=1e-6)


def test_gradient_of_one_intermediate_with_respect_to_another():
    def gated(x):
        return ja.capture(recurrent, "gated")(x)[1]["gated"]

    got = ja.jacobian(gated, ROWS[0], at="state").values
    each = np.einsum("tk,ts,kj->tksj", ROWS[0][:, :3], np.eye(5), np.eye(3))
    np.testing.assert_allclose(got, each, atol=1e-6)
    last = ja.gradient(gated, ROWS[0], lambda out: out[-1, 0], at="gated").values
    assert last[-1, 0] == 1 and last.sum() == 1


@pytest.mark.slow
def test_untagged_embedding_is_selected_by_path():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Embedding(7, 4, name="embed"), keras.layers.LSTM(3, name="lstm")]
        model = keras.Sequential([keras.Input((3,), dtype="int32"), *layers])
        got = ja.explain(ja.gradient, model, IDS, Y, at="embed").values
        table = layers[0](IDS)
        for i in range(2):
            score = jax.grad(lambda e, i=i: layers[1](e[None])[0, Y[i]])
            np.testing.assert_allclose(got[i, 0], score(table[i]), atol=1e-6)


@pytest.mark.parametrize("name", ["embedding", "embed", "emb*", "*ding"])
def test_names_match_substrings_and_globs(name):
    got = ja.saliency(classify, IDS[0], 0, at=name).values
    expected = ja.saliency(from_embedding, TABLE[IDS[0]], 0).values
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_invalid_names_raise():
    with pytest.raises(ValueError, match=r"at: `fn` has no intermediate 'bed.*\['embedding'\]"):
        ja.saliency(classify, IDS[0], 0, at="bedding*")
    with pytest.raises(ValueError, match=r"at='a' must name one array, got a .* a "):
        ja.saliency(lambda x: ja.tag(ja.tag(x, "a"), "a").sum(), np.ones(2), at="a")
    with pytest.raises(ValueError, match=r"at='\*' .* got state \[\(5, 3\)\]; gated"):
        ja.saliency(recurrent, ROWS[0], 0, at="*")
    with pytest.raises(TypeError, match="`at` must be the name of an intermediate, got 3"):
        ja.saliency(classify, IDS[0], 0, at=3)
    with pytest.raises(ValueError, match="`at` must be None for temporal_output_score"):
        ja.temporal_output_score(recurrent, ROWS[0], 0, at="state")


def test_integer_ids_without_at_raise():
    with pytest.raises(TypeError, match=r'at="embedding".*occlusion'):
        ja.saliency(classify, IDS[0], 0)
