"""Test the check of options that are one number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from jaxattn.engine.numbers import check_number

KEY = jax.random.key(0)
X = jnp.ones((3, 2))
OPTIONS = {
    "rise": (functools.partial(ja.rise, key=KEY, num_samples=2), "probability", 1.5),
    "smooth_grad": (functools.partial(ja.smooth_grad, key=KEY), "noise", -1.0),
    "expected_gradients": (
        functools.partial(ja.expected_gradients, key=KEY, background=X[None].repeat(2, 0)),
        "noise",
        -1.0,
    ),
    "learned_mask": (ja.learned_mask, "initial", 2.0),
    "time_shap": (ja.time_shap, "tolerance", -1.0),
    "lime": (functools.partial(ja.lime, key=KEY), "width", 0.0),
}


@pytest.mark.parametrize("kind", [float, np.float32, np.array, jnp.array])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_out_of_range_raise_whatever_their_type(name, kind):
    method, option, value = OPTIONS[name]
    with pytest.raises(ValueError, match=f"`{option}` must be a number and"):
        method(jnp.sum, X, **{option: kind(value)})


@pytest.mark.parametrize("value", [float("nan"), jnp.nan, -1e-9, jnp.bfloat16(-1)])
def test_negative_numbers_and_nan_raise(value):
    with pytest.raises(ValueError, match="`noise` must be a number and not negative, got"):
        check_number("noise", value)


def test_other_objects_raise():
    with pytest.raises(TypeError, match="`noise` must be a number, got None"):
        check_number("noise", None)
    with pytest.raises(TypeError, match=r"`noise` must be a number, got \[1\]"):
        check_number("noise", [1])
    with pytest.raises(ValueError, match=r"`noise` must be one number, got shape \(2,\)"):
        check_number("noise", np.ones(2))


def test_none_is_valid_only_where_it_has_a_meaning():
    with pytest.raises(TypeError, match="`noise` must be a number, got None"):
        ja.smooth_grad(jnp.sum, X, key=KEY, noise=None)
    assert ja.time_shap(jnp.sum, X, tolerance=None).values.shape == (3, 2)


def test_options_of_an_inner_method_are_checked():
    with pytest.raises(ValueError, match="`probability` must be a number and in"):
        ja.smooth_grad(jnp.sum, X, key=KEY, method=ja.rise, probability=jnp.array(2.0))


@jax.jit
def traced(value):
    check_number("noise", value)
    check_number("noise", np.float32(1))
    return value


def test_traced_numbers_are_accepted():
    assert traced(-1.0) == -1
