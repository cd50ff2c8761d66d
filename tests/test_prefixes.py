"""Methods on every prefix: cuts by length and by baseline, and causal functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from peer_network import X, peer_network

import jaxattn as ja
from jaxattn.engine.callable import as_function

T, D, H, K = 5, 3, 4, 2
pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(T, D)))


def network(**options):
    options = {"cell": "gru", "param_dtype": jnp.float64} | options
    return ja.models.SequenceClassifier(D, H, K, rngs=nnx.Rngs(0), **options)


def close(got, want, atol=1e-12):
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


@pytest.mark.slow
def test_gradients_of_all_outputs_are_the_rows_of_the_jacobian(x):
    model = network(readout="steps", cell="rnn")
    got = ja.time_forward(model, x, 1, per_step=True, reduction="none")
    plain = jax.jit(as_function(model))
    jacobian = jax.jit(jax.jacrev(lambda x: plain(x)[:, 1]))(x)
    close(got.values, jacobian)
    close(got.output, plain(x))
    diagonal = ja.time_forward(model, x, 1, per_step=True).values
    close(diagonal, jacobian[jnp.arange(T), jnp.arange(T)])


def test_values_equal_those_of_time_interpret():
    options = {"per_step": True, "method": ja.input_x_gradient}
    want = [
        [0, -0.0409136751, -0.0709303419],
        [0.1685115847, 0.163041623, -0.0075838372],
        [-0.3811635299, -0.208838416, 0.1641240481],
        [0.4803322529, 0.2158904855, -0.2165733681],
    ]
    close(ja.time_forward(peer_network, X, 1, **options).values, want, 1e-10)


METHODS = {
    "integrated_gradients": {"num_steps": 4, "baseline": 0.5},
    "occlusion": {"baseline": 0.5},
    "lrp": {"epsilon": 0.1},
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.representatives("occlusion")
def test_values_are_those_of_the_truncated_series(name, x):
    """A causal network is not cut; its last output for the truncated series is the same."""
    model, method = network(readout="steps"), getattr(ja, name)
    options = {"method": method, "per_step": True, "reduction": "none", **METHODS[name]}
    got = ja.time_forward(model, x, 1, **options)
    of_prefix = method(model, x[:3], (2, 1), **METHODS[name])
    close(got.values[2, :3], of_prefix.values)
    close(got.values[2, 3:], 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.representatives("3")
def test_lengths_cut_a_network_that_is_not_causal(batch_size, x):
    model = network(bidirectional=True, cell="rnn")
    options = {"length_arg": 0, "method": ja.occlusion, "reduction": "none"}
    got = ja.time_forward(model, x, 1, args=(jnp.array(T),), batch_size=batch_size, **options)
    close(got.values[2, :3], ja.occlusion(model, x[:3], 1).values)
    close(got.values[2, 3:], 0)  # scores of one and of several series differ by rounding


def test_padding_has_no_value(x):
    model, lengths = network(), jnp.array([T, 3])
    xs = jnp.stack([x, x])
    got = ja.explain(ja.time_forward, model, xs, 1, args=(lengths,), length_arg=0).values
    close(got[1, :3], got[0, :3])
    close(got[1, 3:], 0, 0)


def test_steps_after_the_cut_are_the_baseline(x):
    """Without a length the rest of the series is replaced, also where outputs read ahead."""
    baseline = jnp.arange(3.0)

    def total(x):
        return (x * x.sum(0, keepdims=True)).sum()

    def totals(x):
        return jnp.full(T, total(x))

    seen = jnp.arange(T)[:, None] <= 1
    want = jax.jit(jax.grad(total))(jnp.where(seen, x, baseline[None])) * seen.astype(float)
    for fn, per_step in ((total, False), (totals, True)):
        got = ja.time_forward(fn, x, per_step=per_step, baseline=baseline, reduction="none")
        close(got.values[1], want)


@pytest.mark.slow
def test_draws_are_shared_by_all_prefixes_and_batches_of_any_size(x):
    model, key = network(readout="steps"), jax.random.key(3)
    options = {"per_step": True, "reduction": "none", "num_samples": 3, "key": key}
    got = ja.time_forward(model, x, 1, method=ja.smooth_grad, batch_size=2, **options)
    want = ja.smooth_grad(model, x, (2, 1), num_samples=3, key=key)
    close(got.values[2], want.values)


def test_info_has_an_axis_of_steps(x):
    model = network(readout="steps")
    options = {"method": ja.integrated_gradients, "num_steps": 64}
    got = ja.explain(ja.time_forward, model, x[None], 1, per_step=True, **options)
    assert got.info["delta"].shape == (1, T)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reduction": "sum"}, ValueError, '`reduction` must be "diagonal" or "none", got \'sum\''),
        ({"per_step": 1}, TypeError, "`per_step` must be a bool, got 1"),
        (
            {"length_arg": 0},
            ValueError,
            "`length_arg` must be left out without args, and with `at`",
        ),
        (
            {"length_arg": 1, "args": (3,)},
            ValueError,
            "`length_arg` must be less than the number of args, 1, got 1",
        ),
        ({"steps": 3}, TypeError, "time_forward has no option 'steps'; its options are method"),
        ({"method": 3}, TypeError, "`method` must be callable, got int"),
    ],
)
def test_wrong_options(options, error, message, x):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        ja.time_forward(lambda x, *_: jnp.cumsum(x.sum(1)), x, **{"per_step": True} | options)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_an_output_without_an_axis_of_time_is_not_per_step(shape, x):
    with pytest.raises(ValueError, match="`per_step` must be False where the output of fn has no"):
        ja.time_forward(lambda x: jnp.full(shape, x.sum()), x, per_step=True)


def test_the_diagonal_needs_values_per_step(x):
    def method(fn, x, target=None, *, args=(), key=None, batch_size=None):
        return ja.Attribution(jnp.zeros(2), fn(x))

    with pytest.raises(ValueError, match='`reduction` must be "none" for a method whose values'):
        ja.time_forward(lambda x: jnp.cumsum(x.sum(1)), x, per_step=True, method=method)


@pytest.mark.slow
def test_a_method_keeps_a_baseline_or_background_of_its_own():
    x = jnp.array([[1.0], [2.0], [3.0]])
    bound = functools.partial(ja.feature_ablation, baseline=5.0)
    got = ja.time_forward(lambda x: (x**2).sum(), x, method=bound)
    close(got.values, [[-24], [-21], [-16]])
    options = {"method": ja.time_shap, "background": x[None], "key": jax.random.key(0)}
    got = ja.time_forward(lambda x: x.sum(), x, reduction="none", num_samples=6, **options)
    assert got.values.shape == (3, 3, 1)


def test_later_steps_have_no_value_also_where_they_share_a_group():
    x, channels = jnp.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0, 1]])
    options = {"method": ja.feature_ablation, "groups": channels, "reduction": "none"}
    got = ja.time_forward(lambda x: x.sum(), x, **options).values
    close(got, [[[1, 2], [0, 0]], [[4, 6], [4, 6]]])


def test_integers_alone_are_not_cut():
    with pytest.raises(TypeError, match="`length_arg` is missing: `x` holds integers alone"):
        ja.time_forward(lambda t: t.astype(float).sum(), jnp.arange(3), method=ja.occlusion)
    with pytest.raises(TypeError, match="`length_arg` is missing: `x` holds integers alone"):
        ja.time_forward(lambda t: t.astype(float)[::-1], jnp.arange(3), per_step=True)


def test_integers_of_a_causal_function_are_explained():
    table = jnp.array([[0.0], [1.0], [3.0]])
    options = {"per_step": True, "method": ja.feature_ablation, "baseline": 0}
    options |= {"groups": np.arange(3), "reduction": "none"}

    def fn(ids):
        return jax.lax.scan(lambda total, row: (total + row[0],) * 2, 0.0, table[ids])[1]

    got = ja.time_forward(fn, jnp.array([2, 1, 2]), **options)
    close(got.values, [[3, 0, 0], [3, 1, 0], [3, 1, 3]])
