"""Messages of common user errors: the argument, what was expected, and how to correct it."""

import inspect
import os
import re

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from matplotlib import pyplot as plt

import jaxattn as ja

N, H, W, K = 4, 6, 6, 3
WEIGHTS = np.random.default_rng(0).normal(size=(H * W, K)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(N, H, W)).astype(np.float32)
LENGTHS = [3, 4, 5, 6]


def fn(x):
    return x.reshape(H * W) @ WEIGHTS


def ragged(x, length):
    return fn(x) * length


def located(function, offset=1):
    """Return the end of a message that locates the failure in the user's code."""
    line = inspect.getsourcelines(function)[1] + offset
    return f" It failed at {__file__}, line {line}."


def defined(function):
    """Return the end of a message that locates the definition of the user's function."""
    return f" See {__file__}, line {function.__code__.co_firstlineno}."


@pytest.fixture(scope="module")
def model():
    return keras.Sequential(
        [keras.Input((H, W)), keras.layers.Flatten(), keras.layers.Dense(K, use_bias=False)]
    )


def message(error, call):
    """Return the message of the error that a call raises."""
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def test_missing_batch_axis():
    found = message(ValueError, lambda: ja.explain(ja.saliency, fn, X[0], 2))
    assert found == (
        "`xs` of shape (6, 6) was read as 6 examples of shape (6,), which fn does not accept; "
        "for one example pass xs[None], that is X[:1] instead of X[0], or call the method itself."
        + located(fn)
    )


def test_missing_batch_axis_of_a_keras_model(model):
    found = message(ValueError, lambda: ja.explain(ja.saliency, model, X[0], 2))
    assert found == (
        "`xs` of shape (6, 6) was read as 6 examples of shape (6,), which fn does not accept; "
        "for one example pass xs[None], that is X[:1] instead of X[0], or call the method itself."
    )


def test_missing_batch_axis_of_a_recurrent_keras_model():
    with jax.numpy_rank_promotion("allow"):
        recurrent = keras.Sequential([keras.Input((H, W)), keras.layers.SimpleRNN(K)])
        found = message(ValueError, lambda: ja.explain(ja.saliency, recurrent, X[0], 2))
    assert "unbatched" not in found and "X[:1]" in found


def test_missing_batch_axis_of_a_function_that_accepts_rows():
    found = message(ValueError, lambda: ja.explain(ja.saliency, lambda x: x.sum(0), X[0], 2))
    assert found == (
        "`targets` must be None or () if the output of fn is a single number for one example, "
        "got 2; if xs is one example, pass xs[None], that is X[:1] instead of X[0]."
    )


def test_examples_and_targets_swapped():
    found = message(TypeError, lambda: ja.explain(ja.saliency, fn, np.array([0, 1, 2, 0]), X))
    assert "the order is explain(method, fn, xs, targets)" in found
    found = message(TypeError, lambda: ja.saliency(fn, np.int64(2), X[0]))
    assert "the order is method(fn, x, target)" in found


def test_class_labels_as_floats():
    labels = np.array([0.0, 1.0, 2.0, 0.0], np.float32)
    assert message(TypeError, lambda: ja.explain(ja.saliency, fn, X, labels)) == (
        "`target` must hold integers, got float32 of shape (4,); convert class labels with "
        "target.astype(int)."
    )


def test_function_of_batches():
    def batched(xs):
        return jnp.einsum("nhw,hwk->nk", xs, WEIGHTS.reshape(H, W, K))

    found = message(ValueError, lambda: ja.explain(ja.saliency, batched, X, 2))
    assert found.startswith(
        "`xs` of shape (4, 6, 6) was read as 4 examples of shape (6, 6), which fn does not accept; "
        "for one example pass xs[None], that is X[:1] instead of X[0], or call the method itself. "
        "If fn takes only batches, wrap it in jaxattn.unbatched."
    )
    found = message(ValueError, lambda: ja.saliency(batched, X[0], 2))
    assert found == (
        "`fn` must accept one example, of shape (6, 6), but accepts only a batch of them: wrap fn "
        "in jaxattn.unbatched." + located(batched)
    )


def test_batch_passed_as_one_example():
    found = message(ValueError, lambda: ja.saliency(fn, X, 2))
    assert found == (
        "`x` must be one example, got shape (4, 6, 6): fn does not accept it, but accepts each of "
        "its 4 rows of shape (6, 6); for a batch call jaxattn.explain(saliency, fn, xs, targets)."
        + located(fn)
    )


def test_batch_passed_as_one_example_that_fn_accepts():
    found = message(ValueError, lambda: ja.saliency(lambda x: x @ WEIGHTS[:W], X[0], 2))
    assert found == (
        "`target` must have shape (2,) for an output of shape (6, 3), got (); if fn takes only "
        "batches, wrap it in jaxattn.unbatched, and if x is a batch, call jaxattn.explain."
    )


def test_list_of_arrays():
    found = message(ValueError, lambda: ja.explain(ja.saliency, fn, [X[0], X[1]], 2))
    assert found.startswith(
        "`xs` is a list of 2 arrays, which is read as 2 inputs of fn, each with a leading axis of "
        "examples; for a batch of examples pass np.stack(xs)."
    )
    found = message(ValueError, lambda: ja.saliency(fn, [X[0], X[1]], 2))
    assert found.startswith(
        "`x` is a list of 2 arrays, which is read as one example with 2 inputs; for a batch of "
        "examples call jaxattn.explain(saliency, fn, xs, targets) with xs=np.stack(x)."
    )


@pytest.mark.parametrize("method", [ja.saliency, ja.occlusion])
def test_list_of_lengths(method):
    call = lambda: ja.explain(method, ragged, X, 2, args=(LENGTHS,))  # noqa: E731
    assert message(TypeError, call) == (
        "`args[0]` must hold arrays, got a list of numbers, each of which would be an input of its "
        "own: pass an array, such as np.array(args[0])."
    )
    values = ja.explain(method, ragged, X, 2, args=(np.array(LENGTHS, np.float32),)).values
    assert values.shape == X.shape


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_integer_image(dtype):
    image = np.ones((H, W), dtype)
    call = lambda: ja.saliency(lambda x: fn(x.astype(jnp.float32)), image, 2)  # noqa: E731
    assert message(TypeError, call) == (
        f"`x` must hold floating-point numbers for a gradient, got {dtype}: convert an image with "
        "x.astype(np.float32); for token ids explain a floating-point intermediate, such as "
        'at="embedding", or use jaxattn.occlusion.'
    )


def test_numpy_inside_fn():
    def with_numpy(x):
        return jnp.asarray(np.asarray(x).reshape(-1) @ WEIGHTS)

    expected = (
        "`fn` must be traceable by JAX, but converts a traced array to a numpy array: use "
        "jax.numpy instead of numpy inside fn." + located(with_numpy)
    )
    assert message(TypeError, lambda: ja.saliency(with_numpy, X[0], 2)) == expected
    assert message(TypeError, lambda: ja.explain(ja.saliency, with_numpy, X, 2)) == expected


def test_numpy_inside_target():
    def target(out):
        return np.asarray(out)[0]

    assert message(TypeError, lambda: ja.saliency(fn, X[0], target)) == (
        "`target` must be traceable by JAX, but converts a traced array to a numpy array: use "
        "jax.numpy instead of numpy inside target." + located(target)
    )


def test_python_that_depends_on_values():
    def branches(x):
        return fn(x) if x.sum() > 0 else -fn(x)

    def loops(x):
        return sum(fn(x) for _ in range(x.argmax()))

    expected = (
        "`fn` must be traceable by JAX, but its Python code depends on the value of a traced "
        "array, as `if`, `float` and `range` do: use jax.numpy.where or jax.lax instead."
    )
    for function in (branches, loops):
        found = message(TypeError, lambda function=function: ja.saliency(function, X[0], 2))
        assert found == expected + located(function)


def test_keras_predict(model):
    expected = (
        "`fn` must be traceable by JAX, which `predict` of a Keras model is not: pass the model "
        "itself as fn, or call it inside fn as model(x[None])[0]."
    )

    def predicted(x):
        return model.predict(x[None])[0]

    found = message(TypeError, lambda: ja.saliency(predicted, X[0], 2))
    assert found == expected + located(predicted)
    assert message(TypeError, lambda: ja.explain(ja.saliency, predicted, X, 2)).startswith(expected)
    assert message(TypeError, lambda: ja.saliency(model.predict, X[0], 2)) == expected
    values = ja.saliency(lambda x: model(x[None])[0], X[0], 2).values
    np.testing.assert_allclose(values, ja.saliency(model, X[0], 2).values, rtol=1e-5)


def test_one_hot_target():
    one_hot = np.eye(K, dtype=np.float32)
    assert message(TypeError, lambda: ja.saliency(fn, X[0], one_hot[2])) == (
        "`target` must hold integers, got float32 of shape (3,); for one-hot targets pass "
        "target.argmax(-1)."
    )
    targets = one_hot[[0, 1, 2, 0]]
    assert message(TypeError, lambda: ja.explain(ja.saliency, fn, X, targets)) == (
        "`target` must hold integers, got float32 of shape (4, 3); for one-hot targets pass "
        "target.argmax(-1)."
    )
    found = message(ValueError, lambda: ja.explain(ja.saliency, fn, X, targets.astype(int)))
    assert found == (
        "`target` must have shape (4, 1) or (4,) for an output of shape (3,), got (4, 3); for "
        "one-hot targets pass target.argmax(-1); if fn takes only batches, wrap it in "
        "jaxattn.unbatched."
    )


def test_wrong_argument_order():
    assert message(TypeError, lambda: ja.saliency(X[0], fn, 2)) == (
        "`fn` must be callable, got ndarray, and `x` must hold arrays, got function: the order is "
        "method(fn, x, target)."
    )
    assert message(TypeError, lambda: ja.explain(ja.saliency, X, fn, 2)) == (
        "`fn` must be callable, got ndarray, and `xs` must hold arrays, got function: the order is "
        "explain(method, fn, xs, targets)."
    )
    assert message(TypeError, lambda: ja.explain(fn, ja.saliency, X, 2)) == (
        "`fn` must be the function that is explained, got the method saliency: the order is "
        "explain(method, fn, xs, targets)."
    )


def test_output_that_is_not_an_array():
    def named(x):
        return "cat"

    assert message(TypeError, lambda: ja.saliency(named, X[0], 2)) == (
        "`fn` must return arrays, got str 'cat'." + defined(named)
    )
    assert message(TypeError, lambda: ja.explain(ja.saliency, fn, X, named)) == (
        "`target` must return one number of the output, got str 'cat'." + defined(named)
    )


def test_errors_of_fn_are_unchanged():
    def broken(x):
        raise RuntimeError("error of fn")

    for call in (
        lambda: ja.saliency(broken, X[0], 2),
        lambda: ja.explain(ja.saliency, broken, X, 2),
    ):
        assert message(RuntimeError, call) == "error of fn"


def test_unknown_option():
    call = lambda: ja.explain(ja.saliency, fn, X, target=2)  # noqa: E731
    assert message(TypeError, call) == (
        "saliency has no option 'target': explain calls it targets; its options are none of its "
        "own."
    )


def test_attribution_converts_to_a_numpy_array():
    single = ja.saliency(fn, X[0], 2)
    many = ja.explain(ja.saliency, fn, X, 2)
    np.testing.assert_array_equal(np.asarray(single), single.values)
    np.testing.assert_array_equal(np.asarray(many[1]), many.values[1])
    assert np.asarray(single, np.float64).dtype == np.float64
    copied = np.array(single)
    copied[:] = 0
    assert np.asarray(single).any()
    image = plt.figure().add_subplot().imshow(many[0])
    np.testing.assert_array_equal(image.get_array(), many.values[0])
    plt.close("all")


def test_attribution_of_several_arrays_does_not_convert():
    tree = ja.saliency(lambda x: fn(x["a"]) + fn(x["b"]), {"a": X[0], "b": X[1]}, 2)
    assert message(TypeError, lambda: np.asarray(tree)) == (
        "An Attribution of 2 arrays cannot be converted to one: convert the arrays in `.values`, "
        "{'a': float32[6,6], 'b': float32[6,6]}."
    )


def test_attribution_ends_with_its_last_example():
    many = ja.explain(ja.saliency, fn, X, 2)
    np.testing.assert_array_equal([np.asarray(one) for one in many], many.values)
    np.testing.assert_array_equal(many[-1].values, many.values[-1])
    for outside in (N, -N - 1):
        assert message(IndexError, lambda outside=outside: many[outside]) == (
            f"`index` must lie in the leading axis, of length 4, got {outside}."
        )


def test_attribution_is_a_pytree():
    found = ja.saliency(fn, X[0], 2)
    doubled = jax.jit(lambda a: jax.tree.map(lambda leaf: 2 * leaf, a))(found)
    assert isinstance(doubled, ja.Attribution)
    np.testing.assert_allclose(doubled.values, 2 * found.values)


def test_messages_do_not_name_library_files():
    found = message(ValueError, lambda: ja.saliency(fn, X, 2))
    (path,) = re.findall(r"(/\S+\.py)", found)
    assert os.path.samefile(path, __file__)


def test_swapped_input_and_target():
    assert message(TypeError, lambda: ja.saliency(fn, 2, X[0])) == (
        "`x` must hold arrays, got 2, and `target` must be an index, got an array of float32: "
        "the order is method(fn, x, target)."
    )


@pytest.mark.parametrize(
    "method, name, options",
    [
        (ja.saliency, "check_finite", {}),
        (ja.smooth_grad, "relative", {"key": jax.random.key(0)}),
        (ja.grad_cam, "relu", {"at": "layer"}),
        (ja.lrp, "ignore_bias", {}),
        (ja.lrp, "conserve_bias", {}),
        (ja.occlusion, "reuse", {}),
    ],
)
def test_flag_must_be_a_bool(method, name, options):
    def tagged(x):
        return fn(ja.tag(x, "layer"))

    assert message(TypeError, lambda: method(tagged, X[0], 2, **options, **{name: "no"})) == (
        f"`{name}` must be a bool, got 'no'."
    )


def test_attribute_of_a_model_is_no_declaration_of_a_method():
    class Model:
        traits = ("warm", "kind")

        def __call__(self, x):
            return fn(x)

    got = ja.explain(ja.saliency, Model(), X, 2).values
    np.testing.assert_array_equal(got, ja.explain(ja.saliency, fn, X, 2).values)
