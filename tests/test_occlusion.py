"""Occlusion against loops in numpy: values are means over the windows that cover a feature."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja


def smooth(x):
    """Couple all features, so that no two windows have equal scores."""
    flat = x.ravel()
    return jnp.stack([jnp.tanh(flat * jnp.arange(1.0, flat.size + 1)).sum(), (flat**2).prod()])


def by_loop(fn, x, window, stride, baseline):
    """Occlude one window after the other; the last one along an axis may be smaller."""
    total, count = np.zeros(x.shape), np.zeros(x.shape)
    starts = []
    for size, width, step in zip(x.shape, window, stride, strict=True):
        along = [0]
        while along[-1] + width < size:
            along.append(along[-1] + step)
        starts.append(along)
    for corner in itertools.product(*starts):
        index = tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))
        changed = x.copy()
        changed[index] = np.broadcast_to(baseline, x.shape)[index]
        total[index] += float(fn(x)) - float(fn(changed))
        count[index] += 1
    return total / count


@pytest.mark.representatives(
    "None-shape4-window4-stride4-baseline4",
    "3-shape3-window3-stride3-0.0",
    "3-shape8-window8-stride8-baseline8",
)
@pytest.mark.parametrize(
    "shape, window, stride, baseline",
    [
        ((7,), (1,), (1,), 0.0),
        ((7,), (3,), (2,), 0.3),
        ((8,), (3,), (3,), 0.0),
        ((5, 3), (2, 2), (1, 1), 0.0),
        ((5, 3), (3, 2), (2, 1), np.arange(3.0)),
        ((5, 3), (5, 3), (1, 1), 0.5),
        ((6, 4), (4, 3), (3, 3), 0.0),
        ((4, 3, 2), (2, 2, 1), (2, 1, 1), 0.1),
        ((4, 3, 2), (3, 2, 2), (2, 2, 2), np.arange(24.0).reshape(4, 3, 2)),
    ],
)
@pytest.mark.parametrize("batch_size", [None, 3])
def test_values_match_a_loop(shape, window, stride, baseline, batch_size, x64):
    x = np.random.default_rng(0).normal(size=shape)
    options = {"window": window, "stride": stride, "baseline": baseline}
    got = ja.occlusion(smooth, x, 0, batch_size=batch_size, **options)
    want = by_loop(lambda x: smooth(x)[0], x, **options)
    np.testing.assert_allclose(got.values, want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(got.output, smooth(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_closed_form(shape):
    """The score of a window is the sum of its features: 1+2, 2+3 and 3+4, averaged over windows."""
    x = jnp.ones((4, *shape)) * jnp.arange(1.0, 5).reshape(4, *[1] * len(shape))
    got = ja.occlusion(jnp.sum, x, window=2).values
    width = int(np.prod(shape))
    want = width * np.array([3.0, 4.0, 6.0, 7.0]).reshape(4, *[1] * len(shape))
    np.testing.assert_array_equal(got, np.broadcast_to(want, x.shape))


def test_last_window_covers_the_remaining_features():
    got = ja.occlusion(jnp.sum, jnp.array([1.0, 2, 4, 8, 16]), window=3, stride=3).values
    np.testing.assert_array_equal(got, [7, 7, 7, 24, 24])


@pytest.mark.parametrize("window, same", [(2, (2, 3)), ((2,), (2, 3)), (np.int64(2), (2, 3))])
@pytest.mark.parametrize("stride, steps", [(None, (1, 3)), (2, (2, 3)), ((2,), (2, 3))])
def test_windows_cover_unspecified_axes(window, same, stride, steps):
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    got = ja.occlusion(smooth, x, 0, window=window, stride=stride).values
    want = ja.occlusion(smooth, x, 0, window=same, stride=steps).values
    np.testing.assert_array_equal(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"reuse": False}])
@pytest.mark.representatives("options0")
def test_windows_as_numpy_arrays(options):
    """Also as options of another method, and bound by functools.partial."""
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    tuples = {"window": (2, 3), "stride": (1, 2), **options}
    arrays = tuples | {"window": np.array([2, 3]), "stride": np.array([1, 2], np.uint8)}
    want = ja.occlusion(smooth, x, 0, **tuples).values
    np.testing.assert_array_equal(ja.occlusion(smooth, x, 0, **arrays).values, want)
    batch = ja.explain(partial(ja.occlusion, **arrays), smooth, x[None], 0).values[0]
    np.testing.assert_allclose(batch, want, rtol=1e-5, atol=1e-6)
    noise = {"key": jax.random.key(0), "noise": 0.0, "num_samples": 2}
    for method, keywords in ((ja.occlusion, arrays), (partial(ja.occlusion, **arrays), {})):
        keywords = {"method": method, **noise, **keywords}
        np.testing.assert_allclose(
            ja.smooth_grad(smooth, x, 0, **keywords).values, want, rtol=1e-5, atol=1e-6
        )


def test_windows_of_leaves_as_numpy_arrays():
    x = {"a": jnp.arange(4.0), "b": jnp.ones((2, 2))}
    window = {"a": np.array(2), "b": np.array([1, 2])}
    got = ja.occlusion(lambda x: x["a"].sum() * x["b"].sum(), x, window=window).values
    want = ja.occlusion(
        lambda x: x["a"].sum() * x["b"].sum(), x, window={"a": 2, "b": (1, 2)}
    ).values
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_baselines_per_example():
    xs = jnp.arange(1.0, 9).reshape(2, 4)
    got = ja.explain(ja.occlusion, jnp.sum, xs, window=1, baseline=2 * xs).values
    np.testing.assert_array_equal(got, -xs)


def test_integer_inputs():
    ids = jnp.array([3, 0, 2], jnp.int32)
    table = jnp.array([0.0, 10, 20, 40])
    got = ja.occlusion(lambda ids: table[ids].sum(), ids, window=1, baseline=1)
    np.testing.assert_array_equal(got.values, [30, -10, 10])
    assert jnp.issubdtype(got.values.dtype, jnp.floating)


def test_windows_per_leaf():
    x = {"a": jnp.arange(4.0), "b": jnp.ones((2, 2)), "c": jnp.ones(3)}

    def fn(x):
        return x["a"].sum() * x["b"].sum() + x["c"].sum()

    got = ja.occlusion(fn, x, window={"a": 1, "b": (1, 2), "c": None}).values
    np.testing.assert_array_equal(got["a"], 4 * np.arange(4.0))
    np.testing.assert_array_equal(got["b"], np.full((2, 2), 12.0))
    np.testing.assert_array_equal(got["c"], np.zeros(3))
