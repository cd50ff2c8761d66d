"""Feature groups: how they are numbered, checked and made."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import label
from sklearn.datasets import load_sample_image

import jaxattn as ja
from jaxattn.engine.feature_groups import feature_groups

X = jnp.arange(1.0, 7).reshape(3, 2)


def fn(x):
    return sum((leaf**2).sum() for leaf in jax.tree.leaves(x))


def ablated(x, groups, **options):
    return ja.feature_ablation(fn, x, groups=groups, **options)


def test_ids_need_be_neither_contiguous_nor_neighbours():
    got = ablated(X, np.array([[7, -3], [7, 7], [-3, 100]]))
    np.testing.assert_array_equal(got.info["groups"], [4 + 25, 1 + 9 + 16, 36])
    np.testing.assert_array_equal(got.values, [[26, 29], [26, 26], [29, 36]])


@pytest.mark.parametrize(
    "groups", [[[0], [1], [1]], np.array([[0], [1], [1]]), [[0, 0], [1, 1], [1, 1]]]
)
def test_groups_broadcast(groups):
    np.testing.assert_array_equal(ablated(X, groups).info["groups"], [5, 86])


def test_equal_ids_in_several_leaves_are_one_group():
    x = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0], [4.0]])}
    got = ablated(x, {"a": np.array([0, 1]), "b": np.array([[1], [2]])})
    np.testing.assert_array_equal(got.info["groups"], [1, 13, 16])
    jax.tree.map(
        np.testing.assert_array_equal, got.values, {"a": [1.0, 13.0], "b": [[13.0], [16.0]]}
    )


def test_without_groups_each_feature_is_one():
    x = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    got = ablated(x, None)
    np.testing.assert_array_equal(got.info["groups"], [1, 4, 9])
    np.testing.assert_array_equal(ablated(jnp.ones(1), None).values, [1])


def test_groups_per_example_and_groups_that_an_example_lacks():
    xs = jnp.stack([X, X])
    groups = np.array([[[0], [1], [2]], [[0], [2], [2]]])
    got = ja.explain(ja.feature_ablation, fn, xs, groups=groups)
    np.testing.assert_array_equal(got.info["groups"], [[5, 25, 61], [5, 0, 86]])
    np.testing.assert_array_equal(got.values[1], [[5, 5], [86, 86], [86, 86]])


def test_traced_groups_need_their_number():
    groups = jnp.array([[4], [4], [9]])
    got = jax.jit(lambda g: ablated(X, g, num_groups=2).info["groups"])(groups)
    np.testing.assert_array_equal(got, [30, 61])
    with pytest.raises(ValueError, match="`num_groups` is missing"):
        jax.jit(lambda g: ablated(X, g).values)(groups)


def test_more_traced_groups_than_their_number_join_the_last_one():
    got = jax.jit(lambda g: ablated(X, g, num_groups=2))(jnp.array([[4], [7], [9]]))
    np.testing.assert_array_equal(got.info["groups"], [5, 86])
    np.testing.assert_array_equal(got.values, [[5, 5], [86, 86], [86, 86]])


def test_known_groups_have_their_number():
    message = "`num_groups` must be the number of groups, 2, got 7."
    with pytest.raises(ValueError, match=message):
        ablated(X, np.array([[4], [4], [9]]), num_groups=7)


def test_groups_of_a_wrapped_method():
    options = {"noise": 0.0, "num_samples": 2, "key": jax.random.key(0)}
    got = ja.smooth_grad(fn, X, method=ja.feature_ablation, groups=[[0], [1], [1]], **options)
    np.testing.assert_allclose(got.values, [[5, 5], [86, 86], [86, 86]], rtol=1e-6)


def test_intervals_are_found_along_each_axis_with_disjoint_ones():
    windows = feature_groups(X, ja.groups.windows((3, 2), (2, 1)))
    assert [each.axis for each in windows.intervals] == [0, 1]
    np.testing.assert_array_equal(windows.intervals[0].begin, [0, 0, 2, 2])
    np.testing.assert_array_equal(windows.intervals[0].end, [2, 2, 3, 3])
    overlapping = feature_groups(X, np.array([[0, 0], [1, 1], [0, 0]]))
    assert [each.axis for each in overlapping.intervals] == [1]


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (np.zeros((3, 2)), TypeError, "`groups` must hold integers, got float64"),
        (np.zeros((3, 2), bool), TypeError, "`groups` must hold integers, got bool"),
        ("words", TypeError, "`groups` must hold integer arrays, got str"),
        (np.zeros((3, 2), int), ValueError, "at least two groups, got only \\[0\\]"),
        (np.arange(3), ValueError, r"broadcast to the shape \(3, 2\) of x, .* shape \(3,\)"),
        (np.arange(4).reshape(2, 2), ValueError, "broadcast to the shape"),
        (np.arange(6).reshape(1, 3, 2), ValueError, "leading axis of examples"),
        ({"a": np.arange(2)}, ValueError, "a pytree of these like x"),
        ([[0, 1], [2]], ValueError, "rectangular"),
    ],
)
def test_groups_that_do_not_fit(groups, error, message):
    with pytest.raises(error, match=message):
        ablated(X, groups)


def test_as_many_groups_as_examples():
    with pytest.raises(ValueError, match="`groups` must have as many examples as xs, 2, got 3"):
        ja.explain(ja.feature_ablation, fn, X[:2], groups=np.arange(6).reshape(3, 2))
    x = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="for all leaves of x or for none"):
        ja.explain(
            ja.feature_ablation,
            fn,
            x,
            groups={"a": np.arange(4).reshape(2, 2), "b": np.arange(2)},
        )


def test_windows_in_row_major_order():
    got = ja.groups.windows((3, 5), (2, 2))
    want = [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(ja.groups.windows((3, 2), 2), [[0, 0], [0, 0], [1, 1]])


def test_channels_of_any_axis():
    np.testing.assert_array_equal(ja.groups.channels((2, 3), 0), [[0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(ja.groups.channels((2, 3)), [[0, 1, 2], [0, 1, 2]])


def test_spans_of_lengths_and_of_words():
    np.testing.assert_array_equal(ja.groups.spans([1, 3]), [0, 1, 1, 1])
    got = ja.groups.spans(words=[None, 4, 4, 2, None])
    np.testing.assert_array_equal(got, [0, 1, 1, 2, 3])
    pair = ja.groups.spans(words=[None, 0, 1, None, 0, 1, None])
    np.testing.assert_array_equal(pair, [0, 1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ja.groups.windows((3,), 0), ValueError, "`window` must be at least 1"),
        (lambda: ja.groups.windows((3,), (1, 1)), ValueError, "at most as many axes"),
        (lambda: ja.groups.windows((3,), 1.5), TypeError, "`window` must hold ints"),
        (lambda: ja.groups.windows((), 1), ValueError, "`shape` must be the shape of an array"),
        (lambda: ja.groups.channels((3,), 1), ValueError, "`axis` must be an axis of shape"),
        (lambda: ja.groups.channels((3,), 0.0), TypeError, "`axis` must be an int"),
        (lambda: ja.groups.spans(), ValueError, "`lengths` or `words` must be given"),
        (lambda: ja.groups.spans([1, 0]), ValueError, "`lengths` must be ints of at least 1"),
        (lambda: ja.groups.superpixels(np.ones(3)), ValueError, "`image` must have shape"),
    ],
)
def test_groups_that_cannot_be_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_superpixels_of_a_photograph_are_connected_and_alike():
    image = load_sample_image("china.jpg")[::8, ::8] / 255
    groups = ja.groups.superpixels(image, 50)
    assert groups.shape == image.shape
    assert (groups == groups[..., :1]).all()
    ids = groups[..., 0]
    assert 20 <= ids.max() + 1 <= 50
    for i in range(ids.max() + 1):
        assert label(ids == i)[1] == 1
    means = np.array([image[ids == i].mean(0) for i in range(ids.max() + 1)])
    assert np.square(image - means[ids]).mean() < 0.4 * image.var((0, 1)).mean()
    gray = ja.groups.superpixels(image.mean(-1), 50)
    assert gray.shape == image.shape[:2]


def test_superpixels_without_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ImportError, match="pip install scikit-image"):
        ja.groups.superpixels(np.ones((2, 2)))
