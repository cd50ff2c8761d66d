"""Test warnings of values that do not converge or overflow, and refined integrals."""

import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn.engine.memo import MEMOS

CHECKED = os.environ.get("CHECK_TYPES") == "all"

X = jnp.asarray([1.0, 2.0, -1.0])
WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)


def steep(x):
    """A function that rises within a small part of the path."""
    return jnp.tanh(ja.tag(40 * jnp.tanh(x @ WEIGHTS), "layer") - 20).sum()


def smooth(x):
    return jnp.tanh(x @ WEIGHTS).sum()


@pytest.fixture(autouse=True)
def silent():
    """Let only expected warnings pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ja.AttributionWarning)
        yield


CASES = {
    "integrated_gradients": (steep, {"num_steps": 2}, 'num_steps="auto"'),
    "layer_conductance": (steep, {"num_steps": 2, "at": "layer"}, 'num_steps="auto"'),
    "deep_lift": (lambda x: x[0] + jax.lax.stop_gradient(x[1]), {}, "baseline"),
}


@pytest.mark.parametrize("name", CASES)
def test_values_that_do_not_sum_to_the_difference_warn(name):
    fn, options, remedy = CASES[name]
    with pytest.warns(ja.ConvergenceWarning, match=f"{name}: .* 1 of 1 .*{remedy}") as record:
        got = getattr(ja, name)(fn, X, **options)
    assert len(record) == 1
    if not CHECKED:  # run-time checks of types add frames
        assert record[0].filename == __file__
    difference = fn(X) - fn(0 * X)
    np.testing.assert_allclose(
        got.info["relative_delta"], abs(got.info["delta"] / difference), rtol=1e-4
    )


def test_number_of_outputs_in_the_warning():
    xs = jnp.stack([X, 0 * X, X])
    with pytest.warns(ja.ConvergenceWarning, match=r"2 of 3 outputs"):
        ja.explain(ja.integrated_gradients, steep, xs, num_steps=2)


def test_converged_and_constant_and_traced_results_do_not_warn():
    ja.integrated_gradients(smooth, X)
    ja.deep_lift(smooth, X)
    # A difference of zero has no relative error.
    ja.integrated_gradients(lambda x: 1e3 + jnp.tanh(x @ WEIGHTS).sum() * 0, X, num_steps=2)
    ja.deep_lift(smooth, X, baseline=X)
    jax.jit(lambda x: ja.integrated_gradients(steep, x, num_steps=2).values)(X)


@pytest.mark.parametrize(
    "quadrature, numbers", [("midpoint", (96, 288, 864)), ("gauss_legendre", (64, 128, 256))]
)
def test_auto_equals_the_fixed_number_that_it_returns(quadrature, numbers):
    fn = lambda x: jnp.tanh(20 * x - 3).sum()  # noqa: E731
    options = {"quadrature": quadrature, "tolerance": 1e-4}
    got = ja.integrated_gradients(fn, X, num_steps="auto", **options)
    assert int(got.info["num_steps"]) in numbers
    assert got.info["relative_delta"] <= 1e-4
    fixed = ja.integrated_gradients(
        fn, X, num_steps=int(got.info["num_steps"]), quadrature=quadrature
    )
    np.testing.assert_allclose(got.values, fixed.values, rtol=1e-4, atol=1e-5)


def test_auto_stops_for_each_example_of_a_batch():
    xs = jnp.stack([0 * X + 0.01, 20 * X])
    fn = lambda x: jnp.tanh(3 * x @ WEIGHTS - 2).sum()  # noqa: E731
    options = {"num_steps": "auto", "tolerance": 1e-4}
    got = ja.explain(ja.integrated_gradients, fn, xs, batch_size=5, **options)
    first, second = (int(n) for n in got.info["num_steps"])
    assert first == 32 < second
    for x, values in zip(xs, got.values, strict=True):
        alone = jax.jit(lambda x: ja.integrated_gradients(fn, x, **options).values)(x)
        np.testing.assert_allclose(values, alone, rtol=1e-3, atol=1e-5)


def test_auto_of_a_layer_and_of_what_never_converges():
    got = ja.layer_conductance(steep, X, at="layer", num_steps="auto")
    assert got.info["relative_delta"] <= 0.01
    assert got.info["num_steps"] > 32
    jump = lambda x: jnp.where(x.sum() > 1, x.sum() + 3, x.sum())  # noqa: E731
    with pytest.warns(ja.ConvergenceWarning):
        got = ja.integrated_gradients(jump, X, num_steps="auto")
    assert int(got.info["num_steps"]) == 2592


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_steps": "all"}, "num_steps.*auto"),
        ({"num_steps": "auto", "tolerance": 0.0}, "tolerance"),
    ],
)
def test_invalid_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        ja.integrated_gradients(smooth, X, **options)


def lstm(x):
    """Return the sum of the hidden state of an LSTM with large weights."""
    rng = np.random.default_rng(0)
    kernel, recurrent = (2 * rng.normal(size=(n, 16)).astype(np.float32) for n in (3, 4))

    def step(state, row):
        h, c = state
        i, f, g, o = jnp.split(row @ kernel + h @ recurrent, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    (h, _), _ = jax.lax.scan(step, (jnp.zeros(4), jnp.zeros(4)), x)
    return h.sum()


def cancelling(x):
    """Return a product with a gate whose pre-activation is the sum of -1 and nearly 1."""
    x = x[0, :2] * jnp.array([-1.0, 1.0]) + jnp.array([0.0, 1e-5])
    return jax.nn.sigmoid(x @ jnp.ones(2)) * (x @ jnp.array([2.0, 1.0]))


@pytest.mark.parametrize("fn, gates", [(cancelling, "half"), (lstm, "proportional")])
def test_relevance_that_grows_through_gates_warns(fn, gates):
    x = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    x[0] = 1
    epsilon = 1e-9 if fn is cancelling else 1e-3
    with pytest.warns(ja.AttributionWarning, match=f'gates="{gates}".*epsilon'):
        got = ja.lrp(fn, x, gates=gates, epsilon=epsilon)
    assert abs(got.values).max() > 1e4 * abs(got.output)
    ja.lrp(fn, x)


def probabilities(x):
    return jax.nn.softmax(x @ WEIGHTS)


@pytest.mark.parametrize("method", [ja.lrp, ja.integrated_gradients, ja.saliency])
@pytest.mark.parametrize(
    "fn, target", [(probabilities, 1), (lambda x: jax.nn.sigmoid(x.sum())[None], None)]
)
def test_method_for_logits_warns_once_of_a_probability(method, fn, target):
    MEMOS.warned.clear()  # other tests call the same functions
    with pytest.warns(ja.AttributionWarning, match="without_softmax") as record:
        method(fn, X, target)
    assert len(record) == 1
    if not CHECKED:  # run-time checks of types add frames
        assert record[0].filename == __file__
    method(fn, X, target)


def test_methods_of_differences_and_callable_targets_and_logits_do_not_warn():
    ja.occlusion(probabilities, X, 1, window=1)
    ja.saliency(probabilities, X, lambda output: output[1])
    ja.saliency(ja.without_softmax(probabilities), X, 1)
    ja.saliency(lambda x: x @ WEIGHTS * jax.nn.sigmoid(x.sum()), X, 1)
