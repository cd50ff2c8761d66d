"""Test numbers that a function closes over, and that change from call to call."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import compiles
from jax.tree_util import Partial

import jaxattn as ja
from jaxattn.engine import compiled
from jaxattn.jaxpr import literals

B, T, D = 3, 4, 2
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(D, D)).astype(np.float32)
VALUES = np.linspace(0.1, 0.9, 8).tolist()


def recurrent(scale):
    """Use the number in a loop, in a branch, in a rematerialised part and outside of them."""

    def step(h, row):
        h = jnp.tanh(scale * h + jax.checkpoint(lambda r: scale * (r @ W))(row))
        return jax.lax.cond(row[0] > 0, lambda h: h * scale, lambda h: h + scale, h), h

    def fn(x):
        h, hs = jax.lax.scan(step, jnp.zeros(D), x)
        return scale * h[0] + hs.sum()

    return fn


def expected(fn):
    return jax.jit(jax.vmap(jax.grad(fn)))(X)


@pytest.fixture(autouse=True)
def nothing_seen():
    literals._history.cache_clear()


METHODS = {
    "gradient": (ja.gradient, {}),
    "integrated gradients": (ja.integrated_gradients, {"num_steps": 3}),
    "occlusion": (ja.occlusion, {"window": (2, 2), "stride": (2, 2)}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_changing_float_compiles_two_programs(name):
    method, options = METHODS[name]

    def run(scale):
        return ja.explain(method, recurrent(scale), X, **options).values

    run(0.95), run(0.05)
    with compiles(0):
        found = [run(scale) for scale in VALUES]
    literals._history.cache_clear()
    fresh = run(VALUES[7])  # the first program of a function holds its literals
    np.testing.assert_allclose(found[7], fresh, rtol=1e-5, atol=1e-6)


def test_gradient_is_right_for_each_value():
    for scale in VALUES[:3]:
        fn = recurrent(scale)
        found = ja.explain(ja.gradient, fn, X).values
        np.testing.assert_allclose(found, expected(fn), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.asarray, jnp.float32, jnp.asarray])
def test_scalars_of_any_library_are_arguments(kind):
    def fn(scale):
        return lambda x: jnp.tanh(x * scale).sum()

    def run(scale):
        return ja.explain(ja.gradient, fn(kind(scale)), X).values

    run(0.2), run(0.3)
    with compiles(0):
        found = run(0.4)
    np.testing.assert_allclose(found, 0.4 / np.cosh(0.4 * X) ** 2, rtol=1e-5)


def test_integers_used_as_numbers_are_arguments():
    def run(factor, length):
        def fn(x):
            return jnp.where(jnp.arange(T)[:, None] < length, factor * x, 0).sum()

        return ja.explain(ja.gradient, fn, X)

    run(2, 1), run(3, 2)
    with compiles(0):
        found = run(5, 3).values
    np.testing.assert_array_equal(found, np.broadcast_to([[5], [5], [5], [0]], X.shape))


def test_integers_that_decide_the_structure_are_not_arguments():
    for power in (2, 3, 2):
        for length in (1, 3):
            found = ja.explain(ja.gradient, lambda x: (x[:length] ** power).sum(), X).values  # noqa: B023
            right = np.where(np.arange(T)[:, None] < length, power * X ** (power - 1), 0)
            np.testing.assert_allclose(found, right, rtol=1e-5)


def test_control_flow_on_a_closed_over_float():
    for scale in (0.5, -0.5, 0.25, -0.25):
        fn = lambda x: (x * scale if scale > 0 else x**2 * scale).sum()  # noqa: E731, B023
        found = ja.explain(ja.gradient, fn, X).values
        np.testing.assert_allclose(found, expected(fn), rtol=1e-5)


def test_two_literals_that_change_one_after_the_other():
    def run(a, b):
        found = ja.explain(ja.gradient, lambda x: (jnp.sin(a * x) * b).sum(), X).values
        np.testing.assert_allclose(found, a * b * np.cos(a * X), rtol=1e-5, atol=1e-6)

    for a, b in ((1.5, 2.5), (1.25, 2.5), (1.25, 3.5), (1.5, 3.5), (1.5, 2.5), (2.0, 3.5)):
        run(a, b)
    with compiles(0):
        run(3.0, 7.0)


def test_function_that_is_called_twice_with_changing_numbers():
    """JAX traces an inner function once, and its literals are the same objects in both calls."""

    def make(a, b):
        f = jax.jit(lambda x: jnp.sin(a * x))
        g = f if a == b else jax.jit(lambda x: jnp.sin(b * x))
        return lambda x: (f(x) * g(x**2)).sum()

    for a, b in ((1.0, 1.0), (2.0, 2.0), (2.0, 3.0), (3.0, 3.0), (1.0, 1.0), (4.0, 5.0)):
        fn = make(a, b)
        found = ja.explain(ja.gradient, fn, X).values
        np.testing.assert_allclose(found, expected(fn), rtol=1e-4, atol=1e-5)


def test_changing_float_in_a_target_and_in_a_partial():
    def run(a, b):
        fn = Partial(lambda a, x: jnp.exp(a * x).sum(0), a)
        return ja.explain(ja.gradient, fn, X, lambda out: out[0] - b * out[1]).values

    run(0.1, 2.0), run(0.2, 3.0)
    with compiles(0):
        found = run(0.5, 4.0)
    np.testing.assert_allclose(found, 0.5 * np.exp(0.5 * X) * [1, -4], rtol=1e-5)


@pytest.mark.parametrize("kind", [float, np.float32, np.asarray, int])
def test_changing_baseline_compiles_once(kind):
    def run(baseline):
        options = {"num_steps": 4, "baseline": kind(baseline)}
        return ja.explain(ja.integrated_gradients, lambda x: (x**2).sum(), X, **options).values

    run(1)
    with compiles(0):
        found = run(3)
    np.testing.assert_allclose(found, X**2 - 3 * X + 3 * X - 9, rtol=1e-4, atol=1e-5)


def gated(low):
    """Return a function with a gate for `low` 0.5 only: then the product lies in [0, 1]."""
    return lambda x: ((low * jnp.tanh(x[0]) + 0.5) * (x @ W)[1]).sum()


def test_structure_depends_on_literals_that_have_changed():
    right = ja.lrp(gated(0.5), X[0])
    for low in (0.4, 0.3):
        ja.gradient(gated(low), X[0])
        ja.lrp(gated(low), X[0])
    again = ja.lrp(gated(0.5), X[0])
    np.testing.assert_array_equal(again.values, right.values)
    ja.lrp(gated(0.25), X[0])
    with pytest.raises(ValueError, match="product"):  # no gate: 0.75 * tanh + 0.5 may be negative
        ja.lrp(gated(0.75), X[0])


def test_relus_depend_on_literals_that_have_changed():
    def run(floor):
        return ja.guided_backprop(lambda x: -jnp.maximum(x, floor).sum(), X[0]).values

    with pytest.warns(UserWarning, match="no ReLU"):
        run(0.5), run(0.25)
    assert not run(0.0).any()


def test_program_of_the_first_values_is_kept():
    fn = lambda scale: lambda x: (scale * x**2).sum()  # noqa: E731
    first = ja.explain(ja.gradient, fn(0.3), X).values
    ja.explain(ja.gradient, fn(0.4), X)
    with compiles(0):
        again = ja.explain(ja.gradient, fn(0.3), X).values
    np.testing.assert_array_equal(again, first)


def test_double_precision():
    with jax.enable_x64(True):
        x = np.linspace(0, 1, 5)
        for scale in (1 / 3, 1 / 7, 1 / 9):
            found = ja.gradient(lambda x: jnp.sin(scale * x).sum(), x).values  # noqa: B023
            np.testing.assert_allclose(found, scale * np.cos(scale * x), rtol=1e-14)


def test_programs_that_are_kept_are_bounded(monkeypatch):
    kept = compiled._jitted.cache_parameters()["maxsize"]
    assert kept is not None and kept <= 512
    limited = functools.lru_cache(maxsize=2)(compiled._jitted.__wrapped__)
    monkeypatch.setattr(compiled, "_jitted", limited)
    for power in range(1, 6):
        found = ja.gradient(lambda x: (x**power).sum(), np.float32([2.0])).values  # noqa: B023
        assert found == power * 2 ** (power - 1)
    assert limited.cache_info().currsize == 2
