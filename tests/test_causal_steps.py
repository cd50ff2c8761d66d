"""Causal functions by time steps: what is found, and that one row changes one step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxattn as ja
from jaxattn.engine.callable import as_function
from jaxattn.jaxpr.reuse.causal_steps import CausalSteps

T, D, H, K = 6, 3, 4, 2
pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(T, D)))


def network(**options):
    """Return a function that creates a network and runs it."""
    options = {"cell": "gru", "readout": "steps", "param_dtype": jnp.float64} | options

    def run(x, *lengths):
        model = ja.models.SequenceClassifier(D, H, K, rngs=nnx.Rngs(0), **options)
        return as_function(model)(x, *lengths)

    return run


CAUSAL = {
    "two layers": network(num_layers=2, cell="rnn"),
    "lstm": network(cell="lstm"),
    "padded": lambda x: network()(x, jnp.int32(4)),
    "softmax of the readout": lambda x: jax.nn.softmax(network()(x)),
    "no loop": lambda x: jax.nn.silu(x.reshape(T, D, 1)).sum(1) + jnp.arange(T * 1.0)[:, None],
    "time on another axis": lambda x: (jnp.ones((2, D)) @ x.T).T,
    "checkpoint": jax.checkpoint(network()),
}
OTHERS = {
    "bidirectional": network(bidirectional=True),
    "last state": network(readout="last"),
    "cumulative sum": lambda x: jnp.cumsum(x, 0),
    "normalised over time": lambda x: jax.nn.softmax(x, 0),
    "products of steps": lambda x: x @ x.T,
    "reversed": lambda x: x[::-1],
    "shifted": lambda x: jnp.concatenate([x[1:], x[:1]]),
    "convolution": lambda x: jnp.pad(x, ((1, 0), (0, 0)))[:-1] + x,
    "mean": lambda x: x - x.mean(0, keepdims=True),
    "time is not first": lambda x: x.T,
}


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.representatives("two layers", "no loop")
def test_each_step_reads_its_row_and_the_states_before(name, x):
    fn, other = CAUSAL[name], x[::-1] + 1

    @jax.jit
    def both(x, other):
        steps = CausalSteps.of(fn, x)
        got, _ = steps.advance(other, steps.states(x))
        return got, jax.lax.map(lambda t: fn(x.at[t].set(other[t]))[t], jnp.arange(T))

    got, want = both(x, other)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_states_after_a_step_are_those_before_the_next(x):
    @jax.jit
    def both(x):
        steps = CausalSteps.of(CAUSAL["two layers"], x)
        before = steps.states(x)
        return before, steps.advance(x, before)[1]

    before, after = both(x)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(old[1:], new[:-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OTHERS)
def test_functions_that_mix_steps_otherwise_are_refused(name, x):
    found = []
    jax.eval_shape(lambda x: found.append(CausalSteps.of(OTHERS[name], x)), x)
    assert found == [None]
