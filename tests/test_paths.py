"""Integrated gradients along paths of time steps and of words."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from peer_network import X, peer_network

import jaxattn as ja
from jaxattn.methods.paths import word_path

T, D = 5, 3
W = np.array([1.0, 2.0, -1.0])
pytestmark = pytest.mark.usefixtures("x64")
integrate = functools.partial(ja.integrated_gradients, quadrature="gauss_legendre")


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(T, D)))


def close(got, want, atol=1e-12):
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def loop_of_cubes(x):
    """Return the cube of the sum of all steps so far."""

    def advance(total, row):
        total += row @ jnp.asarray(W)
        return total, total**3

    return jax.lax.scan(advance, 0.0, x)[1]


def cumulative_cubes(x):
    """Return the same, in one operation that is not known to be causal."""
    return jnp.cumsum(x @ jnp.asarray(W)) ** 3


def cube_of_prefix(x, length):
    valid = jnp.arange(x.shape[0], dtype=length.dtype) < length
    return jnp.where(valid, x @ jnp.asarray(W), 0).sum() ** 3


CUBES = {
    "causal": (loop_of_cubes, {"per_step": True}),
    "cut by the baseline": (cumulative_cubes, {"per_step": True}),
    "cut by the length": (cube_of_prefix, {"length_arg": 0, "args": (jnp.int32(T),)}),
}


@pytest.mark.parametrize("reduction", ["diagonal", "none"])
@pytest.mark.parametrize("name", CUBES)
@pytest.mark.representatives(
    "causal-none", "cut by the baseline-diagonal", "cut by the length-diagonal"
)
def test_temporal_path_of_a_cubic_in_closed_form(name, reduction, x):
    fn, options = CUBES[name]
    got = integrate(
        fn, x, path="temporal", num_steps=2, baseline=0.3, reduction=reduction, **options
    )
    x = np.asarray(x)
    moved, start = x @ W, np.full(D, 0.3) @ W
    past = np.cumsum(moved) - moved
    cubes = (past + moved) ** 3 - (past + start) ** 3
    want = (cubes / (moved - start))[:, None] * W * (x - 0.3)
    values = got.values
    if reduction == "none":
        # The mean slope of the output is the same for all steps that it reads.
        slopes = cubes / (moved - start)
        close(values, np.tril(slopes[:, None] * np.ones(T))[..., None] * (W * (x - 0.3)), 1e-11)
        values = values[jnp.arange(T), jnp.arange(T)]
    close(values, want, 1e-11)
    close(got.info["step_delta"], 0, 1e-11)
    close(want.sum(1), cubes, 1e-11)


@pytest.mark.slow
def test_values_equal_those_of_time_interpret():
    options = {"num_steps": 20, "baseline": 0.25}
    temporal = {"path": "temporal", "per_step": True, **options}
    got = integrate(peer_network, X, 1, **temporal)
    want = [
        [-0.0235177769, 0.0346280628, -0.1703113604],
        [0.0368723737, 0.2516001368, 0.0763426994],
        [-0.3040381937, -0.1695564203, -0.0856243361],
        [0.2541313944, 0.3305675869, -0.0080303128],
    ]
    close(got.values, want, 1e-10)
    pairs = integrate(
        peer_network, X, 1, path="temporal", per_step=True, reduction="none", **options
    )
    close(pairs.values[jnp.arange(4), jnp.arange(4)], want, 1e-10)
    want = [
        [-0.0003829972, -0.000061981, 0.0012050425],
        [-0.0014670045, -0.0060959762, -0.00043334],
        [0.0397622218, -0.0007449624, -0.0478213675],
    ]
    close(pairs.values[3, :3], want, 1e-10)
    want = [
        [-0.0000437903, -0.000168103, 0.0011612834],
        [-0.0014174197, -0.0011081736, 0.0027625147],
        [0.0123404991, -0.025324859, -0.0794593536],
        [0.2541313944, 0.3305675869, -0.0080303128],
    ]
    close(integrate(peer_network, X, (3, 1), path="sequential", **options).values, want, 1e-10)


def squashed(weights, x):
    """Return outputs per step of a recurrent network with random weights."""

    def advance(h, row):
        h = jnp.tanh(row * weights[0] + h * weights[1])
        return h, jnp.stack([h.sum(), (h * weights[2]).sum()])

    return jax.lax.scan(advance, jnp.zeros(D), x)[1]


@pytest.mark.slow
@hypothesis.settings(max_examples=5, deadline=None)
@hypothesis.given(st.integers(0, 10**6))
def test_steps_are_complete_linear_and_ignore_dummies(seed):
    """The values of a step sum to the change of its output; features without weight have none."""
    rng = np.random.default_rng(seed)
    weights, x = rng.normal(size=(3, D)), rng.normal(size=(T, D))
    weights[0, 1] = 0
    fn = Partial(squashed, jnp.asarray(weights))
    options = {"path": "temporal", "per_step": True, "num_steps": 24, "baseline": 0.5}
    first, second, both = (
        integrate(fn, jnp.asarray(x), target, **options)
        for target in (0, 1, lambda y: 2 * y[0] - 3 * y[1])
    )
    close(both.values, 2 * first.values - 3 * second.values, 1e-10)
    close(first.info["step_delta"], 0, 1e-8)
    close(first.values[:, 1], 0, 0)


def test_sequential_values_of_a_step_sum_to_the_change_without_it(x):
    def fn(x):
        return (x @ jnp.asarray(W)).sum() ** 3

    got = integrate(fn, x, path="sequential", num_steps=2, baseline=0.3, batch_size=3)
    total = (x @ W).sum()
    without = total - x @ W + np.full(D, 0.3) @ W
    close(got.values.sum(1), total**3 - without**3, 1e-10)
    close(got.info["delta"], 0, 1e-10)


def test_examples_of_different_lengths():
    xs, lengths = jnp.ones((2, T, D)), jnp.array([T, 2], jnp.int32)
    options = {"path": "temporal", "length_arg": 0, "num_steps": 4}
    got = ja.explain(ja.integrated_gradients, cube_of_prefix, xs, args=(lengths,), **options)
    close(got.values[1, 2:], 0, 0)
    close(got.values[1, :2], got.values[0, :2])
    assert got.info["step_delta"].shape == (2, T)


@pytest.mark.parametrize("path", ["temporal", "sequential"])
def test_number_of_points_by_the_error(path, x):
    options = {"per_step": True} if path == "temporal" else {}
    fn = loop_of_cubes if options else lambda x: (x @ jnp.asarray(W)).sum() ** 3
    got = ja.integrated_gradients(fn, x, path=path, num_steps="auto", tolerance=1e-6, **options)
    assert got.info["num_steps"] in (288, 864)
    assert got.info["relative_delta"] <= 1e-6


def test_a_baseline_equal_to_the_input_has_zero_values(x):
    got = integrate(loop_of_cubes, x, path="temporal", per_step=True, baseline=x, num_steps=2)
    close(got.values, 0, 0)
    close(got.info["relative_delta"], 0, 0)


def test_integer_leaves_and_further_leaves(x):
    def fn(tree):
        return jnp.where(tree["on"], loop_of_cubes(tree["x"]), 0)

    on = jnp.array([1, 0, 1, 1, 0], bool)
    got = integrate(fn, {"x": x, "on": on}, path="temporal", per_step=True, num_steps=2)
    alone = integrate(loop_of_cubes, x, path="temporal", per_step=True, num_steps=2)
    close(got.values["x"], jnp.where(on[:, None], alone.values, 0))
    close(got.values["on"], 0, 0)


def test_words_between_the_word_and_the_baseline():
    """On a line the neighbours that lie between are visited one after the other."""
    vocabulary = jnp.array([[0.0], [1.0], [2.0], [3.0], [5.0], [6.0]])
    path = word_path(vocabulary[4:5], jnp.zeros((1, 1)), vocabulary, 3, 3)
    assert path.words[:, 0].tolist() == [3, 2]
    close(path.points[:, 0, 0], [5, 3, 2, 0], 0)


@pytest.mark.slow
def test_path_of_words_is_monotone_and_complete():
    rng = np.random.default_rng(3)
    vocabulary = jnp.asarray(rng.normal(size=(30, 4)))
    x, baseline = vocabulary[:3], jnp.full(4, 0.1)

    def fn(x):
        return jnp.tanh(x.sum(0) @ jnp.arange(4.0) / 4)

    options = {"vocabulary": vocabulary, "num_neighbors": 8, "baseline": baseline}
    got = ja.integrated_gradients(fn, x, path="discretised", num_steps=12, batch_size=5, **options)
    points = jax.jit(word_path, static_argnums=(3, 4))(
        x, jnp.broadcast_to(baseline, x.shape), vocabulary, 12, 8
    ).points
    steps = np.diff(points, axis=0)
    assert (np.sign(steps) * np.sign(baseline[None] - x) >= 0).all()
    slopes = jax.vmap(jax.grad(fn))(points)
    want = -((slopes[1:] + slopes[:-1]) / 2 * steps).sum(0)
    close(got.values, want)
    close(got.values.sum() - got.info["delta"], fn(x) - fn(jnp.broadcast_to(baseline, x.shape)))
    words = np.asarray(got.info["words"])
    assert words.shape == (11, 3)
    assert all(len({i, *words[:, i]}) == 12 for i in range(3)), "no word is visited twice"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": "curved"}, ValueError, '`path` must be "straight", "temporal", "sequential" or'),
        ({"per_step": True}, ValueError, '`per_step` must be left out unless path="temporal"'),
        ({"vocabulary": W[:, None]}, ValueError, "`vocabulary` must be left out unless path="),
        ({"path": "temporal", "reduction": "mean"}, ValueError, "`reduction` must be"),
        ({"path": "sequential", "reduction": "none"}, ValueError, "`reduction` must be left out"),
        ({"path": "discretised"}, ValueError, "`vocabulary` is missing"),
        (
            {"path": "discretised", "quadrature": "gauss_legendre"},
            ValueError,
            '`quadrature` must be left out for path="discretised"',
        ),
        (
            {"path": "discretised", "vocabulary": np.ones((5, 2))},
            ValueError,
            r"`vocabulary` must have shape \(words, 3\), got \(5, 2\)",
        ),
        (
            {"path": "discretised", "vocabulary": np.ones((5, 3))},
            ValueError,
            "`num_neighbors` must be at most the number of words, 5, got 50",
        ),
        (
            {"path": "discretised", "vocabulary": np.ones((50, 3)), "num_steps": "auto"},
            TypeError,
            "`num_steps` must be an int, got 'auto'",
        ),
    ],
)
def test_wrong_options(options, error, message, x):
    with pytest.raises(error, match=message):
        ja.integrated_gradients(
            lambda x: x[:, 0] if "per_step" in options else x.sum(), x, **options
        )
