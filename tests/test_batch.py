"""Test chunked maps and sums: results of every chunk size, evaluations in flight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn.engine.batch import balanced, chunked_map, chunked_sum

COUNT = 7
XS = {"a": jnp.arange(1.0, 15).reshape(COUNT, 2), "n": jnp.arange(COUNT)}
every_size = pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 7, 8, 1000, None])


def fn(x):
    return {"cube": x["a"] ** 3, "count": x["n"], "inverse": 1 / x["a"].sum()}


@pytest.mark.parametrize(
    "count, limit, chunks, size", [(7, 3, 3, 3), (8, 5, 2, 4), (7, 1, 7, 1), (7, 9, 1, 7)]
)
def test_balanced_chunks_are_few_and_equal(count, limit, chunks, size):
    assert balanced(count, limit) == (chunks, size)


@pytest.mark.parametrize("count", range(1, 20))
@pytest.mark.parametrize("limit", range(1, 22))
def test_balanced_chunks_cover_all_within_the_limit(count, limit):
    chunks, size = balanced(count, limit)
    assert size <= limit
    assert (chunks - 1) * size < count <= chunks * size
    assert chunks == -(-count // min(limit, count))


@every_size
def test_chunked_map_equals_vmap(batch_size):
    got = jax.jit(lambda xs: chunked_map(fn, xs, batch_size))(XS)
    jax.tree.map(np.testing.assert_array_equal, got, jax.jit(jax.vmap(fn))(XS))


@every_size
def test_chunked_sum_equals_the_sum_of_vmap(batch_size):
    got = jax.jit(lambda xs: chunked_sum(fn, xs, batch_size))(XS)
    expected = jax.tree.map(lambda leaf: leaf.sum(0), jax.vmap(fn)(XS))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-6), got, expected)
    assert jax.tree.map(jnp.result_type, got) == jax.tree.map(jnp.result_type, expected)


@pytest.mark.parametrize("chunked", [chunked_map, chunked_sum])
def test_evaluations_in_flight_are_at_most_the_batch_size(chunked):
    jaxpr = jax.make_jaxpr(lambda xs: chunked(lambda x: jnp.sin(x["a"]), xs, 3))(XS)
    assert "sin" in str(jaxpr)
    assert "f32[3,2] = sin" in str(jaxpr)


def test_padding_of_the_last_chunk_is_not_summed():
    """Seven elements in chunks of 2 are padded to eight."""
    assert chunked_sum(lambda x: x, jnp.ones(7), 2) == 7


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [chunked_map, chunked_sum])
def test_gradients_through_chunks_equal_the_unchunked(chunked):
    def loss(a):
        return jnp.sum(jnp.square(chunked(lambda x: jnp.sin(x["a"]), {**XS, "a": a}, 3)))

    def whole(a):
        return jnp.sum(jnp.square(chunked(lambda x: jnp.sin(x["a"]), {**XS, "a": a}, 7)))

    np.testing.assert_allclose(jax.grad(loss)(XS["a"]), jax.grad(whole)(XS["a"]), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_half_precision_sums_do_not_saturate(batch_size):
    ones = jnp.ones((1024, 2), jnp.bfloat16)
    total = chunked_sum(lambda row: row, ones, batch_size)
    assert total.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(total, np.float32), 1024)


@pytest.mark.parametrize("batch_size", [4, None])
def test_mean_in_half_precision_does_not_overflow(batch_size):
    x = np.array([1, 2, 3, 4], np.float16)
    slope = np.float16(3000)
    got = ja.smooth_grad(
        lambda x: (x * slope).sum(), x, key=jax.random.key(0), batch_size=batch_size
    )
    np.testing.assert_array_equal(got.values, np.full(4, slope))


def test_overlapping_windows_in_half_precision():
    x = np.ones((40, 40), np.float16)
    got = ja.occlusion(lambda x: x.mean() * np.float16(5000), x, window=(16, 16)).values
    np.testing.assert_allclose(got[8:-8, 8:-8], 800, rtol=5e-3)
