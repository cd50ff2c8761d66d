"""Test errors for invalid arguments: messages contain the argument and its value."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn.metrics import completeness, deletion, insertion

B, T, D, K = 4, 5, 3, 3
WEIGHTS = np.random.default_rng(0).normal(size=(D, K)).astype(np.float32)
XS = np.random.default_rng(1).normal(size=(B, T, D)).astype(np.float32)
X = XS[0]
KEY = jax.random.key(0)
GRADIENTS = ["gradient", "saliency", "input_x_gradient", "smooth_grad", "integrated_gradients"]
GRADIENTS += ["jacobian", "learned_mask"]


def fn(x):
    return jnp.tanh(x @ WEIGHTS).sum(0)


def raises(error, *words):
    """Return a context that asserts an error whose message contains all words."""
    return pytest.raises(error, match="(?s)" + "".join(f"(?=.*{re.escape(w)})" for w in words))


@pytest.mark.parametrize(
    "target, error, got",
    [
        (None, ValueError, "missing"),
        (3, ValueError, "3"),
        (-1, ValueError, "-1"),
        ((0, 1), ValueError, "(2,)"),
        (True, TypeError, "True"),
        ((True,), TypeError, "bool"),
        (1.0, TypeError, "1.0"),
        (jnp.float32(1), TypeError, "float32"),
        ("cat", TypeError, "cat"),
        (lambda out: out[:2], ValueError, "(2,)"),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("method", [ja.gradient, ja.occlusion])
def test_invalid_target_raises(target, error, got, batched, method):
    x, run = (XS, partial(ja.explain, method)) if batched else (X, method)
    with raises(error, "target", got):
        run(fn, x, target)


@pytest.mark.parametrize("target", [np.int64(3), np.int32(-2), jnp.int32(3), np.array([-1])])
def test_array_target_out_of_range_raises(target):
    with raises(ValueError, "target", str(int(target.item())), "(3,)"):
        ja.gradient(fn, X, target)


@pytest.mark.parametrize(
    "targets, error, got",
    [
        (np.zeros(B + 1, int), ValueError, "(5,)"),
        (np.zeros((B, 2), int), ValueError, "(4, 2)"),
        (np.array([0, 1, 2, 3]), ValueError, "3"),
        (jnp.array([0, 1, -1, 2]), ValueError, "-1"),
        (np.zeros(B), TypeError, "float64"),
        (np.zeros(B, bool), TypeError, "bool"),
        ([0, 1, 2, 3], ValueError, "3"),
    ],
)
def test_invalid_targets_of_a_batch_raise(targets, error, got):
    with raises(error, "target", got, *([f"({K},)"] if error is ValueError else [])):
        ja.explain(ja.gradient, fn, XS, targets)


def test_static_target_is_checked_under_jit():
    with raises(ValueError, "target", "7", "(3,)"):
        jax.jit(lambda x: ja.gradient(fn, x, 7).values)(X)


def test_first_call_inside_a_trace():
    from jaxattn import _static

    for cached in vars(_static).values():
        getattr(cached, "cache_clear", lambda: None)()
    jax.jit(lambda x: ja.gradient(jnp.sum, x).values)(X)
    with raises(ValueError, "NaN"):
        ja.gradient(jnp.sum, jnp.full(3, jnp.nan))


@pytest.mark.parametrize("target", [None, 1, (0, 1)])
def test_several_outputs_require_a_callable_target(target):
    with raises(ValueError, "target", "callable", "2 arrays"):
        ja.occlusion(lambda x: (fn(x), fn(x)), X, target)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"window": 6}, ValueError, ["window", "6", "(5, 3)"]),
        ({"window": (1, 4)}, ValueError, ["window", "(1, 4)", "(5, 3)"]),
        ({"window": 0}, ValueError, ["window", "0"]),
        ({"window": (2, -1)}, ValueError, ["window", "-1"]),
        ({"window": (1, 1, 1)}, ValueError, ["window", "(1, 1, 1)", "(5, 3)"]),
        ({"window": 2.0}, TypeError, ["window", "2.0"]),
        ({"window": (2, 1.5)}, TypeError, ["window", "1.5"]),
        ({"window": True}, TypeError, ["window", "True"]),
        ({"window": "all"}, (TypeError, ValueError), ["window", "all"]),
        ({"window": {"a": 1}}, ValueError, ["window", "{'a': 1}"]),
        ({"window": ()}, ValueError, ["`window` must have at least one axis", "()"]),
        ({"window": np.array([2, 4])}, ValueError, ["window", "(2, 4)", "(5, 3)"]),
        ({"window": np.array([2.0, 1.0])}, TypeError, ["`window` must hold ints", "2.0"]),
        ({"window": np.array([True, True])}, TypeError, ["`window` must hold ints", "True"]),
        ({"window": np.array([], int)}, ValueError, ["`window` must have at least one axis"]),
        ({"window": np.ones((2, 2), int)}, ValueError, ["`window` must be one for all of x"]),
        ({"window": 2, "stride": np.array([3])}, ValueError, ["stride", "3", "window", "2"]),
        ({"window": 2, "stride": 3}, ValueError, ["stride", "3", "window", "2"]),
        ({"window": 2, "stride": 0}, ValueError, ["stride", "0"]),
        ({"window": 2, "stride": -1}, ValueError, ["stride", "-1"]),
        ({"window": 5, "stride": 6}, ValueError, ["stride", "6"]),
        ({"window": 2, "stride": 1.0}, TypeError, ["stride", "1.0"]),
        ({"window": 2, "stride": (1, 1)}, ValueError, ["stride", "(1, 1)", "window"]),
        ({"window": 2, "baseline": np.zeros(4)}, ValueError, ["baseline", "(4,)", "(5, 3)"]),
        ({"window": 2, "baseline": {"a": 0}}, ValueError, ["baseline", "{'a': 0}"]),
        ({"window": 2, "baseline": "zero"}, (TypeError, ValueError), ["baseline", "zero"]),
        ({"window": 2, "baseline": None}, (TypeError, ValueError), ["baseline", "None"]),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_invalid_occlusion_options_raise(options, error, words, batched):
    with raises(error, *words):
        if batched:
            ja.explain(ja.occlusion, fn, XS, 0, **options)
        else:
            ja.occlusion(fn, X, 0, **options)


@pytest.mark.parametrize("method", [ja.integrated_gradients, ja.learned_mask, ja.occlusion])
@pytest.mark.parametrize("shape", [(4,), (2, 5, 3), (B, T, 1)])
def test_baseline_must_broadcast(method, shape):
    with raises(ValueError, "baseline", str(shape), "(5, 3)"):
        method(fn, X, 0, baseline=np.zeros(shape, np.float32))


@pytest.mark.parametrize("count", [B - 1, B + 1])
def test_number_of_baselines_must_equal_the_batch(count):
    with raises(ValueError, "baseline", str(count)):
        ja.explain(ja.occlusion, fn, XS, 0, baseline=np.zeros((count, T, D), np.float32))


def test_float_baseline_of_integer_input_raises():
    ids = jnp.arange(3)
    with raises(TypeError, "baseline", "float", "int32"):
        ja.occlusion(lambda ids: ids.sum().astype(jnp.float32), ids, baseline=0.5)


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_gradient_of_integer_input_raises(name, dtype):
    x = np.ones((T, D), dtype)
    with raises(TypeError, "x", dtype, "occlusion", "at="):
        getattr(ja, name)(lambda x: fn(x.astype(jnp.float32)), x, 0, key=KEY)


@pytest.mark.parametrize("method", [ja.gradient, ja.jacobian, ja.occlusion])
def test_integer_output_raises(method):
    with raises(TypeError, "fn", "int32"):
        method(lambda x: fn(x).astype(jnp.int32), X, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.representatives("float32-nan", "bfloat16-inf", "float16--inf")
def test_non_finite_input_raises(value, dtype):
    bad = jnp.asarray(XS, dtype).at[2, 1, 0].set(value)
    with raises(ValueError, "1 NaN or infinite", "check_finite=False"):
        ja.explain(ja.gradient, jnp.sum, bad)
    with raises(ValueError, "1 NaN or infinite", "check_finite=False"):
        ja.gradient(jnp.sum, bad[2])
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        with raises(ValueError, "1 NaN or infinite"):
            ja.smooth_grad(jnp.sum, bad[2], key=key)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [3, 2**19])
def test_input_overflowing_float32_raises(size):
    for bad in (np.full(size, 1e300), np.full(size, 1e300 + 0j)):
        with raises(ValueError, f"`x` holds {size} NaN or infinite"):
            ja.occlusion(lambda x: x.real.sum(), bad)
    for bad in (1e300, np.float64(1e300)):
        with raises(ValueError, "`x` holds 1 NaN or infinite", "float32"):
            ja.gradient(jnp.sum, bad)
    for baseline in (1e300, np.full(T, 1e300)[:, None]):
        with raises(ValueError, "`baseline` holds", "infinite", "float32"):
            ja.integrated_gradients(fn, X, 0, baseline=baseline)


def test_large_numbers_are_finite_in_float64(x64):
    x = np.full(3, 1e300)
    np.testing.assert_array_equal(ja.gradient(jnp.sum, x).values, np.ones(3))
    np.testing.assert_allclose(ja.occlusion(jnp.sum, x, baseline=-1e300).values, 2 * x)


def test_check_finite_can_be_disabled():
    bad = jnp.asarray(XS).at[2, 1, 0].set(jnp.nan)

    def first(x):
        return x[0].sum()

    for got in (
        ja.explain(ja.gradient, first, bad, check_finite=False).values[2],
        ja.gradient(first, bad[2], check_finite=False).values,
        jax.jit(lambda x: ja.gradient(first, x).values)(bad[2]),
        jax.jit(lambda xs: ja.explain(ja.gradient, first, xs).values)(bad)[2],
    ):
        np.testing.assert_array_equal(got, np.eye(T)[:, :1] @ np.ones((1, D)))


def test_batch_only_model_raises():
    def batched(xs):
        return jnp.einsum("btd,dk->bk", xs, WEIGHTS)

    for run in (ja.gradient, ja.occlusion):
        with raises(ValueError, "fn", "(5, 3)", "jaxattn.unbatched"):
            run(batched, X, 0)
    with raises(ValueError, "fn", "(5, 3)", "jaxattn.unbatched"):
        ja.explain(ja.gradient, batched, XS, 0)

    def by_rows(xs):
        return jnp.tanh(xs @ WEIGHTS)  # accepts one example, but its output has rows

    with raises(ValueError, "target", "(5, 3)", "jaxattn.unbatched"):
        ja.explain(ja.gradient, by_rows, XS, 0)


def test_runtime_error_of_fn_propagates():
    with pytest.raises(RuntimeError, match="my own"):
        ja.gradient(lambda x: (_ for _ in ()).throw(RuntimeError("my own")), X, 0)


@pytest.mark.parametrize(
    "xs, args, words",
    [
        (np.zeros((0, T, D), np.float32), (), ["xs", "at least one example"]),
        ({}, (), ["xs", "empty"]),
        (np.float32(1), (), ["xs", "scalar"]),
        ({"a": XS, "b": jnp.float32(2)}, (), ["xs['b']", "scalar"]),
        ({"a": XS, "b": XS[:3]}, (), ["xs['a']", "4", "xs['b']", "3"]),
        (XS, (np.arange(3),), ["xs", "4", "args[0]", "3"]),
        (XS, (np.arange(B), np.float32(1)), ["args[1]", "scalar"]),
    ],
)
def test_invalid_batch_raises(xs, args, words):
    with raises(ValueError, *words):
        ja.explain(ja.gradient, lambda x, *args: jnp.float32(0), xs, args=args)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, "all"])
def test_invalid_batch_size_raises(batch_size):
    for run in (partial(ja.explain, ja.occlusion, fn, XS, 0), partial(ja.occlusion, fn, X, 0)):
        with raises((TypeError, ValueError), "batch_size", repr(batch_size)):
            run(batch_size=batch_size)


@pytest.mark.parametrize("mesh", [2, "data", jax.devices()])
def test_invalid_mesh_raises(mesh):
    with raises(TypeError, "mesh", type(mesh).__name__):
        ja.explain(ja.gradient, fn, XS, 0, mesh=mesh)


@pytest.mark.parametrize("bad", [None, 3, np.ones(3)])
def test_fn_and_method_must_be_callable(bad):
    with raises(TypeError, "fn", type(bad).__name__):
        ja.gradient(bad, X, 0)
    with raises(TypeError, "fn", type(bad).__name__):
        ja.explain(ja.gradient, bad, XS, 0)
    with raises(TypeError, "method", type(bad).__name__):
        ja.explain(bad, fn, XS, 0)


@pytest.mark.parametrize("name", [*GRADIENTS, "occlusion", "temporal_output_score"])
def test_unknown_option_raises(name):
    with raises(TypeError, "widnow"):
        getattr(ja, name)(fn, X, 0, key=KEY, widnow=3)
    with raises(TypeError, "widnow"):
        ja.explain(getattr(ja, name), fn, XS, 0, key=KEY, widnow=3)


@pytest.mark.parametrize(
    "method, options, error, words",
    [
        (ja.smooth_grad, {"key": None}, ValueError, ["key", "missing"]),
        (ja.smooth_grad, {"num_samples": 0}, ValueError, ["num_samples", "0"]),
        (ja.smooth_grad, {"num_samples": 2.5}, TypeError, ["num_samples", "2.5"]),
        (
            ja.smooth_grad,
            {"num_samples": 1, "statistic": "variance"},
            ValueError,
            ["num_samples", "2", "1"],
        ),
        (ja.smooth_grad, {"noise": -0.1}, ValueError, ["noise", "-0.1"]),
        (ja.smooth_grad, {"statistic": "median"}, ValueError, ["statistic", "median", "mean"]),
        (ja.smooth_grad, {"method": "gradient"}, TypeError, ["method", "str"]),
        (ja.integrated_gradients, {"num_steps": 0}, ValueError, ["num_steps", "0"]),
        (ja.integrated_gradients, {"num_steps": 2.5}, TypeError, ["num_steps", "2.5"]),
        (
            ja.integrated_gradients,
            {"quadrature": "simpson"},
            ValueError,
            ["quadrature", "simpson", "midpoint"],
        ),
        (ja.integrated_gradients, {"num_steps": None}, TypeError, ["`num_steps` must be", "None"]),
        (ja.integrated_gradients, {"num_steps": "8"}, ValueError, ["`num_steps` must be", "'8'"]),
        (ja.smooth_grad, {"num_samples": None}, TypeError, ["`num_samples` must be", "None"]),
        (ja.learned_mask, {"num_steps": None}, TypeError, ["`num_steps` must be", "None"]),
        (ja.jacobian, {"mode": "both"}, ValueError, ["mode", "both", "reverse"]),
        (ja.learned_mask, {"num_steps": 0}, ValueError, ["num_steps", "0"]),
        (ja.learned_mask, {"num_steps": 2.5}, TypeError, ["num_steps", "2.5"]),
        (ja.learned_mask, {"jitter": -1}, ValueError, ["jitter", "-1"]),
        (ja.learned_mask, {"jitter": 2, "key": None}, ValueError, ["key", "jitter", "2"]),
        (ja.learned_mask, {"coarseness": 0}, ValueError, ["coarseness", "0"]),
        (ja.learned_mask, {"coarseness": (1, 1, 1)}, ValueError, ["coarseness", "(1, 1, 1)"]),
        (ja.learned_mask, {"coarseness": 1.5}, (TypeError, ValueError), ["coarseness", "1.5"]),
        (ja.temporal_output_score, {"direction": "up"}, ValueError, ["direction", "up"]),
        (ja.temporal_output_score, {"padding": "both"}, ValueError, ["padding", "both"]),
        (ja.temporal_output_score, {"score": "softmax"}, ValueError, ["score", "softmax", "logit"]),
        (ja.learned_mask, {"score": True}, ValueError, ["score", "True", "log_probability"]),
        (ja.temporal_output_score, {"steps": [5]}, ValueError, ["steps", "5"]),
        (ja.temporal_output_score, {"steps": [-1]}, ValueError, ["steps", "-1"]),
        (ja.temporal_output_score, {"steps": []}, ValueError, ["steps"]),
        (ja.temporal_output_score, {"steps": [1.5]}, TypeError, ["steps"]),
        (ja.temporal_output_score, {"steps": np.arange(3)}, TypeError, ["steps", "tuple"]),
        (ja.temporal_output_score, {"steps": 3}, TypeError, ["steps", "3"]),
        (ja.temporal_output_score, {"length_arg": 0}, ValueError, ["length_arg", "0"]),
        (ja.temporal_output_score, {"length_arg": -1}, ValueError, ["length_arg", "-1"]),
        (ja.temporal_output_score, {"length_arg": True}, TypeError, ["length_arg", "True"]),
        (ja.temporal_output_score, {"length_arg": "0"}, TypeError, ["length_arg", "'0'"]),
        (ja.temporal_output_score, {"reuse": "no"}, TypeError, ["`reuse` must be a bool", "'no'"]),
        (ja.occlusion, {"reuse": "no"}, TypeError, ["`reuse` must be a bool", "'no'"]),
        (ja.occlusion, {"reuse": 1}, TypeError, ["`reuse` must be a bool", "1"]),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_invalid_options_raise(method, options, error, words, batched):
    run, x = (partial(ja.explain, method), XS) if batched else (method, X)
    with raises(error, *words):
        run(fn, x, 0, **{"key": KEY} | options)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_probability_score_of_one_output_raises(shape):
    def one(x):
        return fn(x)[0].reshape(shape)

    for run in (ja.temporal_output_score, partial(ja.learned_mask, score="log_probability")):
        with raises(ValueError, '`score` must be "logit"', str(shape)):
            run(one, X)
    with raises(ValueError, '`score` must be "logit"', str(shape)):
        deletion(one, XS, None, XS)


@pytest.mark.parametrize("metric", [deletion, insertion, completeness])
def test_attribution_of_wrong_shape_raises(metric):
    with raises(ValueError, "attribution", "(4, 5)", "(4, 5, 3)"):
        metric(fn, XS, 0, XS[..., 0])


@pytest.mark.parametrize("metric", [deletion, insertion])
@pytest.mark.parametrize("num_steps, error", [(0, ValueError), (2.5, TypeError)])
def test_invalid_num_steps_of_a_curve_raises(metric, num_steps, error):
    with raises(error, "num_steps", str(num_steps)):
        metric(fn, XS, 0, XS, num_steps=num_steps)


@pytest.mark.parametrize(
    "x, error, got",
    [
        ("abc", TypeError, "abc"),
        (None, ValueError, "None"),
        ({}, ValueError, "{}"),
        (np.array(["a"]), TypeError, "<U1"),
        (np.array([None]), TypeError, "object"),
    ],
)
def test_non_numeric_input_raises(x, error, got):
    with raises(error, "`x` must hold", got):
        ja.gradient(fn, x, 0)
    with raises(error, "`xs` must hold", got):
        ja.explain(ja.gradient, fn, x, 0)


@pytest.mark.parametrize("progress", ["no", 1, None])
def test_progress_must_be_a_bool(progress):
    with raises(TypeError, "`progress` must be a bool", repr(progress)):
        ja.explain(ja.gradient, fn, XS, 0, progress=progress)


def test_invalid_num_steps_of_layer_conductance_raises():
    def tagged(x):
        return fn(ja.tag(x, "layer"))

    with raises(TypeError, "`num_steps` must be an int, got None"):
        ja.layer_conductance(tagged, X, 0, at="layer", num_steps=None)


def test_args_must_be_a_tuple():
    with raises(TypeError, "args", "ndarray"):
        ja.explain(ja.gradient, lambda x, scale: scale * fn(x), XS, 0, args=np.ones(B, np.float32))


@pytest.mark.parametrize(
    "listed", [[1.0, 2.0], [[1, 2], [3, 4]], [(1.0, 2.0)], {"a": [1.0], "b": [[True]]}]
)
def test_list_of_numbers_raises(listed):
    with raises(TypeError, "`x` must hold arrays", "list of numbers", "np.array(x)"):
        ja.saliency(fn, listed, 1)
    with raises(TypeError, "`xs` must hold arrays", "list of numbers", "np.array(xs)"):
        ja.explain(ja.saliency, fn, listed, 1)


@pytest.mark.parametrize("x", [[X, X], [np.array(2, "f")], [[jnp.float32(2)], X]])
def test_list_of_arrays_is_a_pytree(x):
    values = ja.gradient(lambda x: sum(map(jnp.sum, jax.tree.leaves(x))), x).values
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(values))


@pytest.mark.parametrize("method", [ja.gradient, ja.occlusion])
def test_non_array_output_raises(method):
    for run, x in ((method, X), (partial(ja.explain, method), XS)):
        with raises(TypeError, "`fn` must return arrays", "str 'cat'"):
            run(lambda x: "cat", x, 0)
        with raises(TypeError, "`fn` must return arrays", "str 'cat'"):
            run(lambda x: (fn(x), "cat"), x, lambda out: out[0][0])
        with raises(TypeError, "`target` must return one number", "str 'cat'"):
            run(fn, x, lambda out: "cat")


def test_type_error_of_fn_propagates():
    def broken(x):
        raise TypeError("my own")

    with pytest.raises(TypeError, match="my own"):
        ja.gradient(broken, X, 0)


@pytest.mark.parametrize("key", [0, "key", np.zeros((B, 2), np.uint32)])
def test_key_must_be_a_random_key(key):
    with raises(TypeError, "`key` must be a random key"):
        ja.explain(ja.smooth_grad, fn, XS, 0, key=key)


def test_window_of_a_scalar_leaf_raises():
    with raises(ValueError, "`window`", "(1,)", "shape ()", "leaves that leaf unchanged"):
        ja.occlusion(lambda x: 2 * x, np.float32(3))
    tree = {"a": X, "b": jnp.float32(3)}
    with raises(ValueError, "`window`", "(2,)", "shape ()", "leaves that leaf unchanged"):
        ja.occlusion(lambda x: x["a"].sum() * x["b"], tree, window=2)
    with raises(ValueError, "`window` must have at least one axis", "()", "window=None"):
        ja.occlusion(lambda x: x["a"].sum() * x["b"], tree, window={"a": 2, "b": ()})
    window = {"a": 2, "b": None}
    assert ja.occlusion(lambda x: x["a"].sum() * x["b"], tree, window=window).values["b"] == 0


def test_window_of_none_raises():
    with raises(ValueError, "window", "None"):
        ja.occlusion(fn, X, 0, window=None)


def test_integer_target_of_scalar_output_raises():
    with raises(ValueError, "target", "single number", "0"):
        ja.gradient(lambda x: x.sum(), X, 0)


@pytest.mark.parametrize("method", [ja.gradient, ja.occlusion, ja.jacobian])
@pytest.mark.representatives("gradient", "jacobian")
def test_empty_index_selects_a_scalar_output(method):
    one = method(lambda x: fn(x).sum(), X, ()).values
    np.testing.assert_array_equal(one, method(lambda x: fn(x).sum(), X).values)
    many = ja.explain(method, lambda x: fn(x).sum(), XS, ()).values
    np.testing.assert_allclose(many[0], one, rtol=1e-5)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    sharded = ja.explain(method, lambda x: fn(x).sum(), XS, (), mesh=mesh).values
    np.testing.assert_allclose(sharded, many, rtol=1e-5)
    with raises(ValueError, "target", "(0,)", f"({K},)"):
        method(fn, X, ())


@pytest.mark.parametrize("target", [np.int64(2), jnp.int32(2), np.array(2)])
def test_scalar_target_applies_to_all_examples(target):
    np.testing.assert_array_equal(
        ja.explain(ja.gradient, fn, XS, target).values, ja.explain(ja.gradient, fn, XS, 2).values
    )


def test_integer_baseline_out_of_range_raises():
    with raises(ValueError, "`baseline`", "-1", "uint8"):
        ja.occlusion(lambda x: x.astype(jnp.float32).sum(), np.array([3, 4], np.uint8), baseline=-1)


def test_noise_on_integer_input_raises():
    with raises(TypeError, "`x` must hold floating-point numbers for noise", "int32"):
        ja.smooth_grad(
            lambda x: x.astype(jnp.float32).sum(),
            np.array([3, 4], np.int32),
            key=KEY,
            method=ja.occlusion,
        )


def test_error_of_a_fixed_length_function_propagates():
    def flat(x):
        return x.reshape(T * D)[:3]

    with pytest.raises(TypeError, match="reshape"):
        ja.temporal_output_score(flat, X, 1)
    with pytest.raises(TypeError, match="reshape"):
        ja.temporal_output_score(
            lambda x: x.cumsum(0), X, lambda out: out.reshape(T * D)[3], score="logit"
        )


def test_second_softmax_raises():
    def ends(x):
        return jax.nn.softmax(fn(x))

    with raises(ValueError, '`score` must be "logit"', "probability"):
        ja.temporal_output_score(ends, X, 1)
    with raises(ValueError, '`score` must be "logit"', "probability"):
        deletion(ends, XS, 1, XS)
    scores = ja.temporal_output_score(ends, X, 1, score="logit").values
    np.testing.assert_allclose(scores, ja.temporal_output_score(fn, X, 1).values, rtol=1e-5)


@pytest.mark.parametrize(
    "method, old, new",
    [
        (ja.temporal_output_score, "length_argnum", "length_arg"),
        (ja.temporal_output_score, "softmax", "score"),
        (ja.learned_mask, "softmax", "score"),
        (ja.deep_lift, "rule", "multiplier"),
        (ja.smooth_grad, "reduction", "statistic"),
        (ja.attention, "name", "none of its own"),
        (ja.gradient_x_attention, "name", "none of its own"),
        (ja.value_zeroing, "name", "of"),
        (ja.attention_rollout, "name", "heads, residual"),
        (ja.attention_flow, "name", "heads, residual"),
    ],
)
def test_old_option_names_raise(method, old, new):
    options = {"key": KEY, old: 0}
    with raises(TypeError, f"{method.__name__} has no option {old!r}", new):
        method(fn, X, 0, **options)
    with raises(TypeError, f"{method.__name__} has no option {old!r}", new):
        ja.explain(method, fn, XS, 0, **options)


def test_smooth_grad_passes_options_to_its_method():
    got = ja.smooth_grad(fn, X, key=KEY, method=ja.jacobian, num_samples=2, mode="forward")
    assert got.values.shape == (K, T, D)
    with raises(TypeError, "has no option 'rule'", "statistic", "mode"):
        ja.smooth_grad(fn, X, key=KEY, method=ja.jacobian, rule="epsilon")


def test_options_of_other_methods_raise():
    with raises(TypeError, "n_steps", "num_steps"):
        ja.explain(ja.integrated_gradients, fn, XS, 0, n_steps=3)
    with raises(TypeError, "target", "targets"):
        ja.explain(ja.gradient, fn, XS, target=0)
    with raises(TypeError, "baselines", "none of its own"):
        ja.gradient(fn, X, 0, baselines=0.0)
    with raises(ValueError, "at='a'", "temporal_output_score"):
        ja.temporal_output_score(fn, X, 0, at="a")


@pytest.mark.parametrize(
    "baseline, dtype", [(np.int64(-1), "uint8"), (np.array([258] * T), "uint8"), (7, "bool")]
)
def test_numpy_baseline_out_of_range_raises(baseline, dtype):
    x = np.ones(T, dtype)
    with raises(ValueError, "baseline", dtype):
        ja.occlusion(lambda x: x.astype(jnp.float32).sum(), x, baseline=baseline)


def test_complex_numbers_raise():
    with raises(TypeError, "baseline", "complex64"):
        ja.integrated_gradients(fn, X, 0, baseline=1j)
    with raises(TypeError, "complex64"):
        ja.gradient(lambda z: jnp.abs(z[0]).sum() + z[1].sum(), (np.ones(2, np.complex64), X))


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: ja.temporal_output_score(fn, X, 0, steps=(True, False)), TypeError, "steps"),
        (lambda: ja.learned_mask(fn, X, 0, optimizer="adam"), TypeError, "optimizer"),
        (lambda: ja.gradient(fn, X, lambda out: None), ValueError, "target"),
        (lambda: ja.jacobian(lambda x: None, X), ValueError, "fn"),
        (lambda: ja.explain(ja.gradient, fn, XS, [(0,), (1, 2)]), ValueError, "target"),
        (lambda: ja.gradient(fn, np.ma.masked_array(X), 0), TypeError, "masked"),
        (lambda: ja.smooth_grad(fn, X, 0, key=KEY, noise=np.ones(3)), ValueError, "noise"),
    ],
)
def test_plausible_mistakes_raise(call, error, words):
    with raises(error, words):
        call()


def test_constant_arguments_inside_a_trace():
    expected = ja.gradient(fn, X, 1).values
    traced = jax.jit(lambda i: ja.gradient(fn, X, i).values)(1)
    np.testing.assert_allclose(traced, expected, rtol=1e-6)
    values = jax.jit(lambda w: ja.explain(ja.gradient, lambda x: w * fn(x), XS, 1).values)(2.0)
    np.testing.assert_allclose(values[0], 2 * expected, rtol=1e-6)


def test_non_finite_baseline_raises():
    with raises(ValueError, "`baseline` holds 1 NaN"):
        ja.integrated_gradients(fn, X, 0, baseline=np.nan)
