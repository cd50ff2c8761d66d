"""Background sets as an option: shapes, dtypes and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxattn.engine.background import background_size, check_background

X = {"a": np.ones((2, 3), np.float32), "b": np.arange(4, dtype=np.int32)}
SET = {"a": np.zeros((5, 2, 3)), "b": np.zeros((5, 4), np.int8)}


def test_arrays_get_the_dtypes_of_the_input():
    got = check_background(SET, X)
    assert got["a"].dtype == jnp.float32
    assert got["b"].dtype == jnp.int32
    assert background_size(SET, X) == 5
    np.testing.assert_array_equal(check_background(X["b"][:2, None], X["b"][2:3]), [[0], [1]])


@pytest.mark.parametrize(
    ("background", "error", "message"),
    [
        (None, ValueError, "`background` is missing"),
        (SET["a"], ValueError, "`background` must be a pytree like x, .* got"),
        (
            {**SET, "a": X["a"]},
            ValueError,
            r"a leading axis .* got \(2, 3\): pass background\[None",
        ),
        ({**SET, "a": SET["a"][..., 0]}, ValueError, r"the shape \(N, 2, 3\), .* got \(5, 2\)"),
        ({**SET, "b": np.zeros((5, 4))}, TypeError, "integers like x, int32, got float64"),
        ({**SET, "a": SET["a"] + 1j}, TypeError, "`background` must be real like x, float32"),
        ({**SET, "a": SET["a"][:4]}, ValueError, r"axes of one length, .* got \[4, 5\]"),
        ({**SET, "a": SET["a"][:0]}, ValueError, r"at least one example, got \(0, 2, 3\)"),
        ({**SET, "b": 0.0}, TypeError, "`background` must hold arrays, got 0.0"),
    ],
)
def test_invalid_backgrounds_raise(background, error, message):
    with pytest.raises(error, match=message):
        check_background(background, X)


def test_a_list_of_examples_raises():
    with pytest.raises(ValueError, match=r"pass np.stack\(background\)"):
        check_background([X["a"], X["a"]], X["a"])
