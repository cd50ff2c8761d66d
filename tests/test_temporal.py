"""The temporal output score: truncation, lengths and hidden states agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxattn as ja
from jaxattn.engine.callable import as_function
from jaxattn.jaxpr.reuse.extents import Count
from jaxattn.jaxpr.reuse.reuse_plan import Traced, plan_reuse

T, D, H, K = 4, 3, 4, 3
pytestmark = pytest.mark.usefixtures("x64")


def classifier(**options):
    rngs = nnx.Rngs(0)
    return ja.models.SequenceClassifier(D, H, K, param_dtype=jnp.float64, rngs=rngs, **options)


def score(fn, x, target=1, **options):
    return ja.temporal_output_score(fn, x, target, **options)


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(T, D)))


def close(got, want, atol=1e-12):
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.representatives("forward-True")
def test_values_are_predictions_of_truncated_series(bidirectional, direction, x):
    model = classifier(bidirectional=bidirectional)
    parts = [x[: t + 1] if direction == "forward" else x[t:] for t in range(T)]
    logits = jnp.stack([model(part) for part in parts])
    got = score(model, x, direction=direction)
    close(got.values, jax.nn.softmax(logits)[:, 1])
    close(score(model, x, direction=direction, score="logit").values, logits[:, 1])
    logs = score(model, x, direction=direction, score="log_probability").values
    close(logs, jax.nn.log_softmax(logits)[:, 1])
    whole = got.values[-1 if direction == "forward" else 0]
    close(whole, jax.nn.softmax(got.output)[1])


@pytest.mark.slow
def test_causal_network_matches_its_readout_of_all_steps(x):
    by_steps = classifier(readout="steps")
    close(score(classifier(), x).values, jax.nn.softmax(by_steps(x))[:, 1], 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.representatives("None-forward-right", "4-backward-left")
def test_lengths_and_truncation_agree(padding, direction, batch_size, x):
    options = {"direction": direction, "length_arg": 0, "padding": padding}
    model = classifier(bidirectional=True, padding=padding)
    length = (jnp.int32(T),)
    got = score(model, x, args=length, batch_size=batch_size, **options).values
    close(got, score(model, x, direction=direction).values)


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.representatives("forward-right", "backward-left")
def test_padding_is_ignored(padding, direction, x):
    """Valid steps equal those of the series without padding; padded steps add nothing to it."""
    model, valid = classifier(bidirectional=True, padding=padding), 3
    empty = jnp.full((T - valid, D), 99.0)
    padded = jnp.concatenate([x[:valid], empty] if padding == "right" else [empty, x[:valid]])
    options = {"direction": direction, "length_arg": 0, "padding": padding}
    got = score(model, padded, args=(jnp.int32(valid),), **options).values
    valid_steps = slice(0, valid) if padding == "right" else slice(T - valid, T)
    want = score(model, x[:valid], direction=direction).values
    close(got[valid_steps], want)
    empty_series = jax.nn.softmax(model(padded, jnp.int32(0)))[1]
    neighbours = {"right": (want[-1], empty_series), "left": (empty_series, want[0])}[padding]
    padded_steps = np.delete(np.asarray(got), np.r_[valid_steps])
    close(padded_steps, neighbours[direction == "backward"])


@pytest.mark.parametrize("steps", [(0,), (3, 1), range(1, T, 2)])
@pytest.mark.parametrize("lengths", [{}, {"args": (jnp.array(T, jnp.int32),), "length_arg": 0}])
def test_selected_steps(steps, lengths, x):
    model = classifier()
    got = score(model, x, steps=steps, **lengths).values
    close(got, np.asarray(score(model, x).values)[list(steps)])


@pytest.mark.slow
def test_lengths_per_example(x):
    model, lengths = classifier(), jnp.array([T, 2], jnp.int32)
    xs = jnp.stack([x, jnp.where(jnp.arange(T)[:, None] < 2, x, 99.0)])
    method = ja.temporal_output_score
    got = ja.explain(method, model, xs, 1, args=(lengths,), length_arg=0).values
    want = score(model, x).values
    close(got[0], want)
    close(got[1], jnp.where(jnp.arange(T) < 2, want, want[1]))


def test_callable_target_of_probabilities(x):
    model = classifier()
    got = score(model, x, lambda p: p[0] - p[2]).values
    close(got, score(model, x, 0).values - score(model, x, 2).values)


@pytest.mark.parametrize("number", [np.int64(0), np.uint8(0)])
@pytest.mark.representatives("number1")
def test_numpy_integer_as_length_arg(number, x):
    model, lengths = classifier(), (jnp.array(T, jnp.int32),)
    got = score(model, x, args=lengths, length_arg=number).values
    close(got, score(model, x, args=lengths, length_arg=0).values, 0)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint32"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_lengths_of_any_integer_dtype(dtype, direction):
    def fn(x, length):
        return jnp.where(jnp.arange(6, dtype=length.dtype) < length, x, 0).sum()

    x = np.arange(1.0, 7.0, dtype=np.float32)
    options = {"length_arg": 0, "score": "logit", "direction": direction}
    got = ja.temporal_output_score(fn, x, args=(np.array(5, dtype),), **options)
    sums = np.cumsum(x[:5]) if direction == "forward" else np.cumsum(x[4::-1])[::-1]
    expected = np.append(sums, sums[-1] if direction == "forward" else 0)
    np.testing.assert_allclose(got.values, expected)


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"num_layers": 2, "cell": "gru"}, {"readout": "mean"}]
)
@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.representatives("5-options1", "5-options3")
def test_reuse_preserves_values(options, batch_size):
    model, lengths = classifier(**options), np.array([20, 13, 1, 0])
    xs = np.random.default_rng(2).normal(size=(4, 20, D))
    call = {"args": (lengths,), "length_arg": 0, "batch_size": batch_size}
    got, want = (
        ja.explain(ja.temporal_output_score, model, xs, 1, reuse=reuse, **call).values
        for reuse in (True, False)
    )
    close(got, want)


def test_prefixes_share_half_of_the_steps():
    model, x = as_function(classifier()), jnp.ones((32, D))
    traced = Traced.of(lambda length: model(x, length), jnp.array(32))
    shared = plan_reuse(traced, [Count(t + 1) for t in range(32)])
    assert 0.45 < (shared.flops - traced.flops) / (32 * traced.flops) < 0.5


@pytest.mark.slow
def test_length_that_is_also_used_in_arithmetic():
    def fn(x, length):
        valid = jnp.arange(x.shape[0]) < length
        return jnp.where(valid[:, None], x, 0).sum(0) / length.astype(x.dtype)

    x = jnp.asarray(np.random.default_rng(3).normal(size=(12, D)))
    call = {"args": (jnp.array(12),), "length_arg": 0, "score": "logit"}
    close(score(fn, x, **call).values, score(fn, x, reuse=False, **call).values)


def test_length_that_overflows_its_dtype():
    def fn(x, length):
        valid = jnp.arange(x.shape[0]) < length.astype(jnp.uint8).astype(int)
        return jnp.cumsum(jnp.where(valid[:, None], x, 0), 0)[-1]

    x = jnp.asarray(np.random.default_rng(3).normal(size=(260, 2)))
    call = {"args": (jnp.array(260),), "length_arg": 0, "score": "logit", "steps": [3, 200, 258]}
    close(score(fn, x, **call).values, score(fn, x, reuse=False, **call).values)


@pytest.mark.slow
def test_custom_derivatives_of_a_score(x):
    @jax.custom_vjp
    def advance(h, row):
        return jnp.tanh(h + row)

    advance.defvjp(lambda h, row: (advance(h, row), None), lambda _, ct: (ct, 3 * ct))

    def total(x, reuse):
        def fn(x, length):
            valid = jnp.arange(x.shape[0]) < length
            step = lambda h, xs: (jnp.where(xs[1], advance(h, xs[0]), h), None)  # noqa: E731
            return jax.lax.scan(step, jnp.zeros(D), (x, valid))[0]

        call = {"args": (jnp.array(12),), "length_arg": 0, "score": "logit"}
        return jnp.sin(score(fn, x, reuse=reuse, **call).values).sum()

    series = jnp.asarray(np.random.default_rng(3).normal(size=(12, D)))
    close(*(jax.grad(total)(series, reuse) for reuse in (True, False)), 1e-10)
