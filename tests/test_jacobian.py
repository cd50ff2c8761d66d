"""The Jacobian: forward and reverse agree with a loop over outputs, for all structures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxattn as ja

T, D, H, K = 5, 3, 4, 2
MODES = ["auto", "forward", "reverse"]
pytestmark = pytest.mark.usefixtures("x64")


def classifier(**options):
    rngs = nnx.Rngs(0)
    return ja.models.SequenceClassifier(D, H, K, param_dtype=jnp.float64, rngs=rngs, **options)


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(T, D)))


def close(got, want, atol=1e-12):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=atol), got, want)


def by_loop(fn, x, shape):
    """Row by row, one gradient an output."""
    row = jax.jit(jax.grad(lambda x, i: fn(x).ravel()[i]))
    return np.stack([row(x, i) for i in range(np.prod(shape))]).reshape(*shape, *x.shape)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("readout", ["last", "steps"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_every_mode_equals_a_loop(mode, readout, batch_size, x):
    model = classifier(bidirectional=True, readout=readout)
    shape = (K,) if readout == "last" else (T, K)
    got = ja.jacobian(model, x, mode=mode, batch_size=batch_size)
    assert got.values.shape == (*shape, T, D)
    close(got.values, by_loop(model, x, shape))
    close(got.output, model(x))


@pytest.mark.parametrize("mode", MODES)
def test_a_causal_network_has_no_future(mode, x):
    values = np.asarray(ja.jacobian(classifier(readout="steps"), x, mode=mode).values)
    future = np.arange(T)[:, None] < np.arange(T)
    by_steps = values.transpose(0, 2, 1, 3)
    assert (by_steps[future] == 0).all()
    assert (by_steps[~future] != 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_pytrees_of_outputs_over_pytrees_of_inputs(mode):
    a, b = jnp.arange(1.0, 3.0), jnp.array(5.0)

    def fn(x):
        return (x["a"] ** 2 * x["b"], {"sum": x["a"].sum()})

    x = {"a": a, "b": b, "n": jnp.arange(3, dtype=jnp.int32)}
    got = ja.jacobian(fn, x, mode=mode).values
    squares = {"a": jnp.diag(2 * a * b), "b": a**2, "n": jnp.zeros((2, 3))}
    total = {"a": jnp.ones(2), "b": jnp.zeros(()), "n": jnp.zeros(3)}
    assert jax.tree.structure(got) == jax.tree.structure((squares, {"sum": total}))
    close(got, (squares, {"sum": total}))


@pytest.mark.parametrize("mode", MODES)
def test_with_a_target_it_is_the_gradient(mode, x):
    model = classifier()
    got = ja.jacobian(model, x, 1, mode=mode)
    close(got.values, ja.gradient(model, x, 1).values)
    pair = ja.jacobian(model, x, lambda out: out[0] * out[1], mode=mode)
    close(pair.values, jax.grad(lambda x: jnp.prod(model(x)))(x))


def test_auto_takes_whichever_mode_is_cheaper():
    def primitives(numbers_in, numbers_out):
        def fn(x):
            return jnp.tile(jnp.sin(x).sum(), numbers_out)

        x = jnp.ones(numbers_in)
        modes = [str(jax.make_jaxpr(lambda x, m=m: ja.jacobian(fn, x, mode=m))(x)) for m in MODES]
        return [modes[0] == other for other in modes[1:]]

    assert primitives(2, 5) == [True, False]
    assert primitives(5, 2) == [False, True]


def test_many_examples_at_once(x):
    model = classifier()
    xs = jnp.stack([x, x[::-1], -x])
    close(ja.explain(ja.jacobian, model, xs).values, jax.vmap(jax.jacrev(model))(xs))
