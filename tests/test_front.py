"""Test the affine prefix of a function, which is evaluated once per attribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from reuse_reference import RNG, D, H, T, V, W, X
from test_reuse import OTHERS, SAVING, WHOLE, rnn

import jaxattn as ja
from jaxattn.jaxpr.flops import count_flops
from jaxattn.jaxpr.reuse.affine_prefix import AffinePrefix

pytestmark = pytest.mark.usefixtures("x64")

FUNCTIONS = SAVING | {name: fn for name, (fn, *_) in WHOLE.items()} | OTHERS
del FUNCTIONS["constant"]
#: Functions without an affine prefix: no product, or only after other operations or inside a rule.
NAMES_WITHOUT_PREFIX = set(
    "custom rule|nested|no rows|rematerialised|shift register|sorted|start alone changes".split("|")
)
#: Functions in which no contraction precedes other operations.
WITHOUT_PREFIX = {
    "sorted": lambda x: rnn(jnp.sort(x, 0))[0],
    "squared": lambda x: (x**2 @ W).sum(),
    "divided by itself": lambda x: x / x.sum(),
    "both factors": lambda x: x @ x.T,
    "no contraction": lambda x: jnp.tanh(2 * x + 1).sum(),
    "printed": lambda x: (jax.debug.print("{}", x[0, 0]), jnp.tanh(x @ W))[1],
    "rounded": lambda x: jnp.tanh(x.astype(jnp.float32) @ W.astype(np.float32)),
    "own rule": lambda x: jnp.tanh(reversed_slope(x) @ W),
    "stopped": lambda x: jnp.tanh(lax.stop_gradient(x) @ W),
}


@jax.custom_vjp
def reversed_slope(x):
    return x * 2


reversed_slope.defvjp(lambda x: (x * 2, None), lambda _, ct: (-ct,))


def score(fn):
    """Return a scalar function of all outputs of a function."""

    def scored(x):
        leaves = [
            leaf for leaf in jax.tree.leaves(fn(x)) if jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
        return sum(
            (jnp.cos(jnp.arange(leaf.size)) * leaf.ravel().astype(float)).sum() for leaf in leaves
        )

    return scored


def close(got, expected, rtol=1e-12):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-13)


@pytest.mark.representatives("lstm", "attention", "dropout", "windows", "start changes")
@pytest.mark.parametrize("name", sorted({*FUNCTIONS} - NAMES_WITHOUT_PREFIX))
def test_prefix_and_remainder_equal_the_function(name):
    fn = FUNCTIONS[name]
    prefix = AffinePrefix.of(fn, [X])
    got, expected = jax.jit(
        lambda x: (prefix.remainder(prefix.affine(x), lambda leaf: leaf), fn(x))
    )(X)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(close, got, expected)
    # An affine function commutes with linear interpolation.
    other = X[::-1] + 0.5
    between = jax.jit(prefix.affine)(X + 0.3 * (other - X))
    for first, last, mid in zip(prefix.affine(X), prefix.affine(other), between, strict=True):
        close(mid, first + 0.3 * (last - first))


def test_other_functions_have_no_prefix():
    assert {
        name for name, fn in FUNCTIONS.items() if AffinePrefix.of(fn, [X]) is None
    } == NAMES_WITHOUT_PREFIX


@pytest.mark.parametrize("name", WITHOUT_PREFIX)
def test_functions_without_a_prefix(name):
    assert AffinePrefix.of(WITHOUT_PREFIX[name], [X]) is None


@pytest.mark.representatives("attention", "masked", "sorted", "own rule")
@pytest.mark.parametrize(
    "name", sorted({*FUNCTIONS, *WITHOUT_PREFIX} - {"while"})
)  # has no gradient
def test_integrated_gradients_equal_the_reference(name):
    fn = score((FUNCTIONS | WITHOUT_PREFIX)[name])
    start = 0.1 * X[:, ::-1]

    @jax.jit
    def reference(x):
        def slope(alpha):
            return jax.grad(fn)(start + alpha * (x - start))

        return (x - start) * jax.vmap(slope)((np.arange(6) + 0.5) / 6).mean(0)

    for size in (None, 4):
        got = ja.integrated_gradients(fn, X, num_steps=6, baseline=start, batch_size=size)
        close(got.values, reference(X), 1e-6 if name == "rounded" else 1e-10)


def test_projection_is_not_recomputed_at_each_point():
    def fn(x):
        return (jnp.tanh(rnn(x)[0]) @ V)[0]

    def contractions(fn):
        return count_flops(jax.make_jaxpr(fn)(X)).by_primitive["dot_general"]

    few, many = (
        contractions(lambda x, n=n: ja.integrated_gradients(fn, x, num_steps=n).values)
        for n in (10, 20)
    )
    projections = 2 * 2 * T * D * H  # forward and back
    assert many - few == 10 * (contractions(jax.grad(fn)) - projections)


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "RNN"])
@pytest.mark.slow
def test_layers_keep_their_derivative_rules(layer):
    """Second derivatives of padded, bidirectional layers."""
    net = getattr(ja.nn, layer)(
        D, H, bidirectional=True, num_layers=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )
    prefix = AffinePrefix.of(lambda x: net(x, 6).state, [X])
    jaxpr = str(jax.make_jaxpr(lambda x: prefix.remainder(prefix.affine(x), lambda leaf: leaf))(X))
    assert ("custom_jvp_call" in jaxpr) == (layer != "RNN")

    def values(x):
        return ja.integrated_gradients(lambda x: net(x, 6).state, x, 1, num_steps=5).values

    def reference(x):
        slope = jax.grad(lambda x: net(x, 6).state[1])
        return x * jax.vmap(lambda a: slope(a * x))((np.arange(5) + 0.5) / 5).mean(0)

    close(values(X), reference(X), 1e-10)
    again = [jax.grad(lambda x, f=f: (f(x) ** 2).sum())(X) for f in (values, reference)]
    close(*again, 1e-9)


def test_integer_leaves_have_zero_attribution():
    kernel = RNG.normal(size=(2, H))

    def fn(x):
        rows = x["a"] @ W + x["b"] @ kernel
        return jnp.tanh(rows).sum() * x["n"].astype(float) + (x["b"] ** 2).sum()

    x = {"a": X, "b": X[:, :2], "n": np.array(3, np.int32)}
    got = ja.integrated_gradients(fn, x, num_steps=4)

    def slope(alpha):
        return jax.grad(lambda a, b: fn({"a": a, "b": b, "n": np.float64(3)}), (0, 1))(
            alpha * x["a"], alpha * x["b"]
        )

    a, b = jax.tree.map(lambda s: s.mean(0), jax.vmap(slope)((np.arange(4) + 0.5) / 4))
    close(got.values["a"], x["a"] * a)
    close(got.values["b"], x["b"] * b)
    assert got.values["n"] == 0


def test_half_precision_is_summed_in_single():
    x, kernel = jnp.asarray(X, jnp.bfloat16), jnp.asarray(W, jnp.bfloat16)
    fn = lambda x, kernel: jnp.tanh(x @ kernel).astype(jnp.float32).sum()  # noqa: E731
    got = ja.integrated_gradients(fn, x, args=(kernel,), num_steps=512)
    expected = ja.integrated_gradients(fn, X, args=(np.asarray(kernel, float),), num_steps=512)
    assert got.values.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got.values, float), expected.values, rtol=0.03, atol=0.01)
