"""Several targets at once: values, shared work, memory, and invalid indices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attributions import close
from jax.tree_util import Partial

import jaxattn as ja
from jaxattn.engine.explain import prepare
from jaxattn.jaxpr.flops import count_flops

rng = np.random.default_rng(0)
T, D, H, K, B = 6, 4, 16, 5, 3
WEIGHTS = {
    name: jnp.asarray(rng.normal(size=shape) / 3, jnp.float32)
    for name, shape in {"input": (D, H), "recurrent": (H, H), "readout": (H, K)}.items()
}
XS = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
KEY = jax.random.key(3)
STEPS = np.arange(T)[:, None]


def dense(weights, x):
    rows = ja.tag(jnp.sin(x), "rows")
    return jnp.tanh(rows @ weights["input"]).sum(0) @ weights["readout"]


def recurrent(weights, x):
    def advance(h, row):
        return jnp.tanh(row @ weights["input"] + h @ weights["recurrent"]), None

    return jax.lax.scan(advance, jnp.zeros(H), x)[0] @ weights["readout"]


FN, RECURRENT = Partial(dense, WEIGHTS), Partial(recurrent, WEIGHTS)


def table(x):
    """Return an output with two axes: products of two features."""
    return jnp.outer(x, x)


def stacked(targets, method=ja.gradient, fn=FN, xs=XS, **options):
    """Return the attributions of single targets, stacked behind the axis of examples."""
    single = [ja.explain(method, fn, xs, target, **options) for target in targets]
    values, info = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves, 1), *[getattr(a, name) for a in single])
        for name in ("values", "info")
    )
    return ja.Attribution(values, single[0].output, info)


def operations(method, target, **options):
    """Return the number of operations that one call takes for the recurrent network."""
    return count_flops(
        jax.make_jaxpr(lambda x: method(RECURRENT, x, target, key=KEY, **options))(XS[0])
    ).total


def test_values_and_info_get_an_axis_of_targets_and_the_output_does_not():
    got = ja.integrated_gradients(FN, XS[0], ja.each([3, 1]), num_steps=4)
    assert got.values.shape == (2, T, D)
    assert got.output.shape == (K,)
    assert got.info["delta"].shape == (2,)
    got = ja.explain(ja.integrated_gradients, FN, XS, ja.each([3, 1]), num_steps=4)
    assert got.values.shape == (B, 2, T, D)
    assert got.output.shape == (B, K)
    assert got.info["delta"].shape == (B, 2)
    close(got, stacked([3, 1], ja.integrated_gradients, num_steps=4))


@pytest.mark.slow
def test_without_indices_all_entries_are_targets():
    close(ja.explain(ja.gradient, FN, XS, ja.each()), stacked(range(K)))
    close(ja.gradient(FN, XS[0], ja.each()).values, jax.jacobian(FN)(XS[0]))


def test_indices_per_example():
    indices = np.array([[0, 1], [4, 4], [2, 3]])
    want = jnp.stack([ja.gradient(FN, x, ja.each(i)).values for x, i in zip(XS, indices, strict=1)])
    close(ja.explain(ja.gradient, FN, XS, ja.each(indices)).values, want)
    close(ja.explain(ja.gradient, FN, XS, ja.each(indices[..., None])).values, want)


def test_indices_of_an_output_with_two_axes():
    x, pairs = jnp.array([[2.0, 3.0, 5.0], [7.0, 1.0, 2.0]]), [(0, 1), (2, 2)]
    want = np.array([[[3, 2, 0], [0, 0, 10]], [[1, 7, 0], [0, 0, 4]]])
    close(ja.gradient(table, x[0], ja.each(pairs)).values, want[0])
    close(ja.explain(ja.gradient, table, x, ja.each(pairs)).values, want)
    own = ja.each([[(0, 1)], [(2, 2)]])
    close(ja.explain(ja.gradient, table, x, own).values, np.stack([want[0, :1], want[1, 1:]]))


def test_a_callable_selects_an_array_of_targets():
    def fn(x):
        return {"logits": FN(x), "length": x.sum()}

    got = ja.explain(ja.gradient, fn, XS, ja.each(lambda out: out["logits"][1:3]))
    close(got.values, stacked([1, 2]).values)
    assert got.output["logits"].shape == (B, K)


@pytest.mark.slow
def test_traced_indices_and_a_target_as_an_argument():
    got = jax.jit(lambda target: ja.explain(ja.gradient, FN, XS, target))(ja.each([2, 0]))
    close(got, stacked([2, 0]))
    mapped = jax.vmap(lambda x, target: ja.gradient(FN, x, target))
    close(mapped(XS, ja.each(jnp.array([[2, 0]] * B))), stacked([2, 0]))


def test_inside_of_another_method():
    @ja.method
    def spread(fn, x, target=None, *, args=(), key=None, batch_size=None):
        slopes = ja.gradient(fn, x, ja.each(), args=args)
        chosen = ja.gradient(fn, x, ja.each(lambda out: out[:2]), args=args)
        return ja.Attribution((slopes.values.sum(0), chosen.values), slopes.output)

    total, first = ja.explain(spread, FN, XS).values
    slopes = stacked(range(K)).values
    close(total, slopes.sum(1))
    close(first, slopes[:, :2])


def test_method_without_the_decorator():
    def plain(fn, x, target=None, *, args=(), key=None, batch_size=None):
        return ja.Attribution(x * fn(x)[target[0]], fn(x))

    got = ja.explain(plain, FN, XS, ja.each([1, 2]))
    outputs = jax.vmap(FN)(XS)
    close(got.values, XS[:, None] * outputs[:, 1:3, None, None])


def test_named_intermediate():
    got = ja.explain(ja.occlusion, FN, XS, ja.each([4, 2]), at="rows", window=2)
    close(got, stacked([4, 2], ja.occlusion, at="rows", window=2))


def test_draws_are_shared():
    options = {"key": KEY, "num_samples": 3}
    got = ja.explain(ja.smooth_grad, FN, XS, ja.each([1, 1]), **options).values
    np.testing.assert_array_equal(got[:, 0], got[:, 1])
    close(got, stacked([1, 1], ja.smooth_grad, **options).values)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
@pytest.mark.representatives("2")
def test_values_are_independent_of_batch_size(batch_size):
    options = {"num_steps": 4, "quadrature": "gauss_legendre"}
    got = ja.explain(ja.integrated_gradients, FN, XS, ja.each(), batch_size=batch_size, **options)
    close(got, stacked(range(K), ja.integrated_gradients, **options))


@pytest.mark.parametrize(
    ("method", "options", "shared"),
    [
        (ja.gradient, {}, 0.9),
        (ja.lrp, {}, 0.9),
        (ja.smooth_grad, {"num_samples": 8}, 8.9),
        # Of each node the recurrent products; those with the input are an affine prefix.
        (ja.integrated_gradients, {"num_steps": 8}, 6.0),
    ],
    ids=["gradient", "lrp", "smooth_grad", "integrated_gradients"],
)
def test_forward_passes_are_not_repeated(method, options, shared):
    """`shared` is the number of evaluations that further targets do not take."""
    forward = operations(lambda fn, x, target, key: fn(x), 0)
    one = operations(method, 1, **options)
    further = (operations(method, ja.each(), **options) - one) / (K - 1)
    assert further <= one - shared * forward
    assert further > 0.5 * forward * options.get("num_steps", options.get("num_samples", 1))


def plan(method, target, batch_size, **options):
    return prepare(method, FN, XS[:1], target, batch_size=batch_size, **options).plan


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (ja.occlusion, {"window": 2}),
        (ja.occlusion, {"window": 2, "reuse": False}),
        (ja.feature_ablation, {"groups": STEPS}),
        (ja.feature_permutation, {"groups": STEPS, "background": XS}),
        (ja.shapley_values, {"groups": STEPS}),
        (ja.shapley_value_sampling, {"groups": STEPS, "num_samples": 4}),
        (ja.kernel_shap, {"groups": STEPS, "num_samples": 40}),
        (ja.lime, {"groups": STEPS, "num_samples": 40}),
        (ja.rise, {"grid": 3, "num_samples": 8}),
    ],
)
def test_many_targets_without_a_backward_pass_cost_as_much_as_one(method, options):
    one, many = (operations(method, t, **options) for t in (1, ja.each()))
    assert one <= many <= 1.1 * one
    plans = [plan(method, t, 1000, key=KEY, **options) for t in (1, ja.each())]
    assert plans[0].in_flight == plans[1].in_flight > 1


def test_targets_with_a_backward_pass_count_as_evaluations_in_flight():
    assert plan(ja.gradient, 0, 64).in_flight == 1
    assert plan(ja.gradient, ja.each(), 64).in_flight == K
    assert plan(ja.integrated_gradients, ja.each(), 64, num_steps=10).in_flight == 10 * K
    assert plan(ja.gradient, ja.each(), 2).in_flight == 2
    assert plan(ja.occlusion, ja.each(), 64, window=2).in_flight == T


def test_memory_of_many_targets_is_bounded_by_batch_size():
    def wide(x):
        return jnp.tanh(x @ jnp.ones((D, 200))).sum(0)

    def largest(batch_size):
        x = jnp.ones((50, D))
        jaxpr = jax.make_jaxpr(
            lambda x: ja.saliency(wide, x, ja.each(), batch_size=batch_size).values
        )(x)
        return jax.jit(jax.extend.core.jaxpr_as_fun(jaxpr)).lower(x).compile().memory_analysis()

    few, all_ = (largest(size).temp_size_in_bytes for size in (10, 200))
    assert few < all_ / 5


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (3, ValueError, "`indices` must have an axis of targets, got 3"),
        ([], ValueError, r"`indices` must hold at least one target, got .* \(0,\)"),
        ([0.5], TypeError, "`indices` must hold integers, got float64"),
        ([True], TypeError, "`indices` must hold integers, got bool"),
        ([[0], [1, 2]], ValueError, "`indices` must have one length for all targets"),
    ],
)
def test_invalid_indices_raise(indices, error, message):
    with pytest.raises(error, match=message):
        ja.each(indices)


@pytest.mark.parametrize(
    ("fn", "target", "message"),
    [
        (FN, ja.each([0, K]), r"`target` \(5,\) is out of range"),
        (FN, ja.each([-1]), r"`target` \(-1,\) is out of range"),
        (FN, ja.each([[0, 1]]), "`indices` of ja.each must have one row for each of 3 examples"),
        (FN, ja.each(lambda out: out.sum()), r"`indices` .* an array with one axis .* got \(\)"),
        (FN, ja.each(lambda out: [out]), "`indices` .* an array with one axis .* got list"),
        (jnp.sum, ja.each(), "`target` must be None .* single number, got ja.each"),
        (lambda x: x, ja.each(), r"`indices` .* shape \(K, 2\) for .* \(6, 4\), got None"),
        (lambda x: x, ja.each([1]), r"`target` must have shape \(1, 2\)"),
        (lambda x: (x, x), ja.each(), "`target` must be a callable if fn returns 2 arrays"),
    ],
)
def test_targets_that_do_not_fit_the_output_raise(fn, target, message):
    with pytest.raises(ValueError, match=message):
        ja.explain(ja.gradient, fn, XS, target)
