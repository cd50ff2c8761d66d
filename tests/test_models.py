"""Tests of the sequence classifier: readouts, padding, options and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxattn import nn
from jaxattn.models import SequenceClassifier

T, D, H, K = 5, 3, 4, 2
every_readout = pytest.mark.parametrize("readout", ["last", "mean", "steps"])


def make(**options):
    model = SequenceClassifier(D, H, K, **{"rngs": nnx.Rngs(0)} | options)
    model.head.bias[...] = jnp.arange(1.0, K + 1).astype(model.head.bias.dtype)
    return model


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("lengths", [None, np.array([3, 0, 5])])
@every_readout
@pytest.mark.representatives(
    "last-lengths1-right", "steps-lengths1-left", "mean-lengths1-left", "mean-None-right"
)
def test_readout_uses_valid_steps(readout, lengths, padding):
    model = make(readout=readout, padding=padding, bidirectional=True, num_layers=2)
    x = inputs(3, T, D)
    kernel, bias = np.asarray(model.head.kernel[...]), np.asarray(model.head.bias[...])
    got = model(x, lengths)
    assert got.shape == ((3, T, K) if readout == "steps" else (3, K))
    for i, n in enumerate([T] * 3 if lengths is None else lengths):
        now = slice(0, n) if padding == "right" else slice(T - n, T)
        outputs, state = (np.asarray(a) for a in model.recurrent(x[i], n, padding=padding))
        if readout == "steps":
            want = np.zeros((T, K))
            want[now] = outputs[now] @ kernel + bias
        else:
            mean = outputs[now].mean(axis=0) if n else 0 * state
            want = (state if readout == "last" else mean) @ kernel + bias
        np.testing.assert_allclose(got[i], want, rtol=0, atol=1e-6)


@every_readout
def test_single_example_equals_batch_row_and_padding_is_ignored(readout):
    model, x, lengths = make(readout=readout, cell="gru"), inputs(3, T, D), np.array([3, 0, 5])
    batched = model(x, lengths)
    dirty = np.where(np.asarray(nn.valid_steps(lengths, T))[..., None], x, np.float32(np.nan))

    @jax.jit
    @jax.vmap
    def score(x, length):
        logits, back = jax.vjp(lambda x: model(x, length), x)
        return logits, back(jnp.ones_like(logits))[0]

    logits, gradients = score(dirty, lengths)
    np.testing.assert_allclose(logits, batched, rtol=0, atol=1e-6)
    for row, n in zip(np.asarray(gradients), lengths, strict=True):
        assert (row[:n] != 0).all() and not row[n:].any()


@pytest.mark.parametrize(("cell", "layer"), [("lstm", nn.LSTM), ("gru", nn.GRU), ("rnn", nn.RNN)])
@pytest.mark.slow
def test_cell_type_and_sizes(cell, layer):
    model = make(cell=cell, num_layers=2, bidirectional=True, param_dtype="bfloat16")
    assert type(model.recurrent) is layer
    assert len(model.recurrent.cells) == 4
    assert model.head.kernel.shape == (2 * H, K)
    assert {p.dtype for p in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("bfloat16")}
    assert model(inputs(T, D)).dtype == jnp.float32
    assert model(jnp.ones((T, D), jnp.int32)).dtype == jnp.bfloat16


def test_split_and_merge():
    model, x = make(bidirectional=True), inputs(T, D)
    graph, params = nnx.split(model)
    assert graph == nnx.split(make(bidirectional=True))[0]
    assert hash(graph) == hash(nnx.split(make(bidirectional=True))[0])
    pure = nnx.as_pure(params)
    got = jax.jit(lambda p, x: nnx.merge(graph, p)(x, 4))(pure, x)
    np.testing.assert_allclose(got, model(x, 4), rtol=0, atol=1e-6)
    doubled = jax.tree.map(lambda p: 2 * p, pure)
    assert not np.allclose(nnx.merge(graph, doubled)(x, 4), got)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("`cell` must be one of lstm, gru, rnn; got 'LSTM'", {"cell": "LSTM"}),
        ("`readout` must be one of last, mean, steps; got 'sum'", {"readout": "sum"}),
        ("`padding` must be one of right, left; got 'pre'", {"padding": "pre"}),
        ("`num_classes` must be at least 1, got 0", {"num_classes": 0}),
        ("`num_layers` must be at least 1, got 0", {"num_layers": 0}),
    ],
)
def test_wrong_settings(message, options):
    sizes = {"in_features": D, "hidden_features": H, "num_classes": K}
    with pytest.raises(ValueError, match=message):
        SequenceClassifier(**sizes | options, rngs=nnx.Rngs(0))


def test_wrong_inputs():
    with pytest.raises(ValueError, match=r"`x` must have shape \(\.\.\., T, 3\), got \(5, 2\)"):
        make()(inputs(T, D - 1))
    with pytest.raises(ValueError, match=r"`lengths` must lie in \[0, T\] = \[0, 5\], got 6"):
        make()(inputs(T, D), 6)
