"""Test the cache of compiled programs: no stale results, no repeated compilation."""

import dataclasses
import functools

import chex
import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilation import compiles
from flax import nnx
from jax.tree_util import Partial

import jaxattn as ja

B, T, D, K = 3, 4, 2, 3
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
Y = np.array([0, 1, 2])


def saliency(fn, target=Y, **options):
    return np.asarray(ja.explain(ja.saliency, fn, X, target, **options).values)


class Linear(nnx.Module):
    def __init__(self, scale, power=1):
        self.w = nnx.Param(jnp.full((D, K), scale))
        self.power = power

    def __call__(self, x):
        return (x @ self.w[...]).sum(0) ** self.power


class Dense(linen.Module):
    power: float = 1

    @linen.compact
    def __call__(self, x):
        return linen.Dense(K, use_bias=False)(x).sum(0) ** self.power


class Scale(eqx.Module):
    w: jax.Array
    power: float = eqx.field(static=True, default=1)

    def __call__(self, x):
        return (x @ self.w).sum(0) ** self.power


def dense(scale):
    return Partial(Dense().apply, {"params": {"Dense_0": {"kernel": jnp.full((D, K), scale)}}})


def closure(scale):
    w = jnp.full((D, K), scale)
    return lambda x: (x @ w).sum(0)


def inner_jit(scale):
    """Use a constant in a jit equation inside of a scan and of a branch."""
    w = jnp.full((D, K), scale)

    @jax.jit
    def project(x):
        return x @ w

    def fn(x):
        total, _ = jax.lax.scan(lambda c, row: (c + project(row), None), jnp.zeros(K), x)
        return jax.lax.cond(True, lambda t: t + 0 * project(x[0]), lambda t: t, total)

    return fn


MAKERS = {
    "nnx": Linear,
    "linen": dense,
    "equinox": lambda scale: Scale(jnp.full((D, K), scale)),
    "lambda": closure,
    "inner jit": inner_jit,
    "lambda over a module": lambda scale: (lambda m: lambda x: m(x))(Linear(scale)),
    "partial": lambda scale: Partial(lambda w, x: (x @ w).sum(0), jnp.full((D, K), scale)),
    "unbatched": lambda scale: ja.unbatched(jax.vmap(Linear(scale))),
}


@pytest.mark.parametrize("name", MAKERS)
def test_equal_new_model_is_not_recompiled(name):
    make = MAKERS[name]
    np.testing.assert_allclose(saliency(make(2.0)), 2)
    with compiles(0):
        np.testing.assert_allclose(saliency(make(3.0)), 3)
    np.testing.assert_allclose(ja.saliency(make(2.0), X[0], 1).values, 2)
    with compiles(0):
        np.testing.assert_allclose(ja.saliency(make(5.0), X[0], 2).values, 5)


def test_weights_changed_in_place_take_effect():
    model = Linear(2.0)
    over = lambda x: model(x)  # noqa: E731  a closure that jit would make stale
    assert saliency(model).max() == saliency(over).max() == 2
    model.w[...] = jnp.full((D, K), 7.0)
    with compiles(0):
        assert saliency(model).max() == saliency(over).max() == 7


def test_closure_over_numpy_is_not_stale():
    w = np.full((D, K), 2, np.float32)
    fn = lambda x: (x @ w).sum(0)  # noqa: E731
    assert saliency(fn).max() == 2
    w[:] = 3
    assert saliency(fn).max() == 3


_GLOBAL = {"scale": 2.0}


def global_reader(x):
    return x.sum(0)[:1].repeat(K) * _GLOBAL["scale"]


def test_function_reading_globals_is_not_stale():
    for scale in (2.0, 3.0):
        _GLOBAL["scale"] = scale
        for fn in (global_reader, Partial(global_reader), lambda x: global_reader(x)):
            assert saliency(fn).max() == scale


@pytest.mark.parametrize(
    "make",
    [
        lambda power: Linear(2.0, power),
        lambda power: Scale(jnp.full((D, K), 2.0), power),
        lambda power: Partial(Dense(power).apply, dense(2.0).args[0]),
    ],
)
def test_static_values_of_different_types_do_not_share_a_program(make):
    # The powers 1, 1.0 and True are equal, but result in different dtypes of integers.
    keys = {ja.engine.callable.split(make(power))[1] for power in (1, 1.0, True)}
    assert len(keys) == 3


def test_target_functions_compile_once_and_are_not_stale():
    model = Linear(2.0)

    def difference(weight):
        w = jnp.asarray([weight, 0.0, 0.0])
        return lambda out: (out * w).sum()

    np.testing.assert_allclose(saliency(model, difference(2.0)), 4)
    with compiles(0):
        np.testing.assert_allclose(saliency(model, difference(5.0)), 10)


def test_different_targets_are_not_recompiled():
    model = Linear(2.0)
    saliency(model, Y, batch_size=1)
    with compiles(0):
        saliency(model, Y[::-1].copy(), batch_size=1)
    saliency(model, 0)
    with compiles(0):
        saliency(model, 2)


def test_module_is_traced_once():
    traced = []

    class Counting(Linear):
        def __call__(self, x):
            traced.append(x.shape)
            return super().__call__(x)

    saliency(Counting(2.0))
    count = len(traced)
    for scale in (3.0, 4.0):
        saliency(Counting(scale))
    assert len(traced) == count


def test_max_traces_with_chex():
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def outer(x):
        return ja.saliency(Linear(2.0), x, 0).values

    compiled = jax.jit(outer)
    for _ in range(3):
        compiled(X[0])


def test_new_optimizer_and_method_option_compile_once():
    model = Linear(2.0)

    def learn():
        return ja.explain(
            ja.learned_mask, model, X, Y, optimizer=optax.adam(0.1), num_steps=2
        ).values

    def smooth():
        method = ja.integrated_gradients
        key = jax.random.key(0)
        return ja.explain(ja.smooth_grad, model, X, Y, key=key, method=method, num_samples=2).values

    learn(), smooth()
    with compiles(0):
        learn(), smooth()


def test_method_closing_over_a_mutable_model_is_not_stale():
    model = Linear(2.0)

    def method(fn, x, target=None, *, args=(), key=None, batch_size=None):
        return ja.Attribution(x * model.w[...].mean(), fn(x))

    def run():
        return np.asarray(ja.explain(method, lambda x: x.sum(), np.ones((2, 3), np.float32)).values)

    assert run().max() == 2
    model.w[...] = jnp.full((D, K), 7.0)
    assert run().max() == 7


def test_functions_with_different_jvp_rules_do_not_share_a_program():
    def with_slope(slope):
        @jax.custom_jvp
        def clip(x):
            return jnp.maximum(x, 0)

        clip.defjvp(lambda primals, tangents: (clip(primals[0]), slope * tangents[0]))
        return lambda x: clip(x).sum(0)[:1].repeat(K)

    assert saliency(with_slope(2.0)).max() == 2
    assert saliency(with_slope(3.0)).max() == 3
    with compiles(0):
        assert saliency(with_slope(3.0)).max() == 3


def test_functions_with_different_vjp_rules_do_not_share_a_program():
    def with_slope(slope):
        @jax.custom_vjp
        def same(x):
            return x

        same.defvjp(lambda x: (x, None), lambda _, g: (slope * g,))
        return lambda x: same(x).sum(0)[:1].repeat(K)

    assert saliency(with_slope(2.0)).max() == 2
    assert saliency(with_slope(3.0)).max() == 3


def test_eager_calls_compile_once():
    model = Linear(2.0)
    ja.integrated_gradients(model, X[0], 0)
    with compiles(0):
        ja.integrated_gradients(model, X[1], 2)


def test_added_signatures_are_traced_once():
    def prefix(x):
        return jnp.cumsum(x, 0)[-1][:1] * jnp.arange(1.0, K + 1)

    first = ja.explain(ja.temporal_output_score, prefix, X, Y)
    with compiles(0):
        again = ja.explain(ja.temporal_output_score, lambda x: prefix(x), X, Y)
    np.testing.assert_array_equal(first.values, again.values)


def test_models_with_different_parameter_shapes_do_not_share_a_program():
    class Wide(nnx.Module):
        def __init__(self, classes):
            self.w = nnx.Param(jnp.ones((D, classes)))

        def __call__(self, x):
            return (x @ self.w[...]).sum(0)

    saliency(Wide(10), 7)
    with pytest.raises(ValueError, match="target"):
        saliency(Wide(3), 7)


def test_method_under_vmap_and_grad_compiles_once():
    model = Linear(2.0)

    def total(x):
        return ja.integrated_gradients(model, x, 0, num_steps=4, batch_size=2).values.sum()

    expected = jax.vmap(total)(X), jax.grad(total)(X[0])
    with compiles(0):
        again = jax.vmap(total)(X), jax.grad(total)(X[0])
    np.testing.assert_array_equal(again[0], expected[0])
    np.testing.assert_array_equal(again[1], expected[1])


_FACTOR = 1.0


def scaled(fn, x, target=None, *, args=(), key=None, batch_size=None):
    return ja.Attribution(x * _FACTOR, fn(x))


def test_method_reading_globals_is_not_stale():
    global _FACTOR
    for _FACTOR in (1.0, 5.0):
        got = ja.explain(scaled, lambda x: x.sum(), np.ones((2, 3), np.float32)).values
        assert float(got.max()) == _FACTOR


def test_signatures_of_different_targets_are_independent():
    def outputs(k):
        return lambda x: jnp.cumsum(x, 0) @ jnp.ones((D, k))

    for k in (3, 5):
        weights = jnp.arange(float(k))
        got = ja.explain(
            ja.temporal_output_score, outputs(k), X, lambda o, w=weights: o[-1] @ w, score="logit"
        )
        expected = np.cumsum(X.sum(-1), 1) * weights.sum()
        np.testing.assert_allclose(got.values, expected, rtol=1e-4, atol=1e-5)


def test_new_array_in_a_partial_method_is_not_recompiled():
    def run(value):
        method = functools.partial(ja.integrated_gradients, baseline=jnp.full((T, D), value))
        return ja.explain(method, Linear(2.0), X, Y, num_steps=3).values

    np.testing.assert_allclose(run(0.0), 2 * X, rtol=1e-5)
    with compiles(0):
        np.testing.assert_allclose(run(1.0), 2 * (X - 1), rtol=1e-4, atol=1e-6)


def test_attributes_outside_dataclass_fields_take_effect():
    @dataclasses.dataclass
    class Method:
        name: str

        def __post_init__(self):
            self.scale = 2.0

        def __call__(self, fn, x, target=None, *, args=(), key=None, batch_size=None):
            return ja.Attribution(x * self.scale, fn(x))

    method = Method("m")
    xs = np.ones((2, 3), np.float32)
    assert ja.explain(method, lambda x: x.sum(), xs).values.max() == 2
    method.scale = 3.0
    assert ja.explain(method, lambda x: x.sum(), xs).values.max() == 3


def test_mutable_option_is_not_shared_with_equal_objects():
    @dataclasses.dataclass
    class Scale:
        by: float

    def scaled(fn, x, target=None, *, args=(), key=None, batch_size=None, scale=None):
        return ja.Attribution(x * scale.by, fn(x), {})

    scale = Scale(1.0)
    for by in (1.0, 2.0):
        scale.by = by
        assert (ja.explain(scaled, jnp.sum, jnp.ones((2, 3)), scale=scale).values == by).all()
    assert (ja.explain(scaled, jnp.sum, jnp.ones((3, 3)), scale=Scale(1.0)).values == 1).all()
