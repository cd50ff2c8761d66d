"""Tests of the time series classifier: published shapes, padding, relevance and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxattn as ja
from jaxattn.models import SignalClassifier

T, D, H, K = 6, 3, 4, 2
every_form = pytest.mark.parametrize(
    ("attention", "beside"),
    [(a, b) for a in ("self", "weighted") for b in ("weights", "outputs")],
)


def make(**options):
    defaults = {"hidden_features": H, "units": 3, "rngs": nnx.Rngs(0)}
    return SignalClassifier(D, T, K, **defaults | options)


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.slow
def test_published_example_shapes():
    x = jax.ShapeDtypeStruct((240, 4), jnp.float32)
    want = {"self": ((240, 60), (240, 240), 72000), "weighted": ((60,), (240,), 300)}
    for attention, (attended, weights, read) in want.items():
        model = SignalClassifier(4, 240, 1, attention=attention, rngs=nnx.Rngs(0))
        out, captured = jax.eval_shape(ja.capture(model, "attended", "attention"), x)
        assert out.shape == (1,)
        assert {name: found.shape for name, found in captured.items()} == {
            "attended": attended, "attention": weights,
        }  # fmt: skip
        assert model.head.kernel.shape == (read, 1)


@every_form
@pytest.mark.slow
def test_head_inputs_are_values_and_weights_or_outputs(attention, beside):
    model, x = make(attention=attention, beside=beside), inputs(T, D).astype(np.float32)
    logits, captured = ja.capture(model)(x, np.int32(4))
    outputs, values, weights = (
        np.asarray(captured[name]) for name in ("outputs", "attended", "attention")
    )
    if attention == "self":
        weights = np.where(np.arange(T)[:, None] < 4, weights, 0)
        assert not values[4:].any()
        np.testing.assert_allclose(weights @ outputs, values, rtol=0, atol=1e-6)
    others = outputs if beside == "outputs" else weights
    if attention == "self":
        read = np.concatenate([values, others], axis=1).ravel()
    else:
        read = np.concatenate([values, others.ravel()])
    want = read @ np.asarray(model.head.kernel[...]) + np.asarray(model.head.bias[...])
    np.testing.assert_allclose(logits, want, rtol=0, atol=1e-6)


@pytest.mark.slow
@every_form
@pytest.mark.representatives("weighted-weights")
def test_padding_is_ignored(attention, beside):
    model, x = make(attention=attention, beside=beside), inputs(3, T, D).astype(np.float32)
    lengths = np.array([6, 4, 0], np.int32)
    padding = np.arange(T) >= lengths[:, None]
    dirty = np.where(padding[..., None], np.float32(np.nan), x)

    @nnx.jit
    def both(model, x):
        def total(x):
            logits = model(x, lengths)
            return logits.sum(), logits

        return jax.value_and_grad(total, has_aux=True)(x)

    (_, logits), slope = both(model, dirty)
    np.testing.assert_allclose(logits, both(model, x)[0][1], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(slope[padding], 0)
    assert (np.abs(slope[~padding]).max(-1) > 0).all()
    np.testing.assert_allclose(model(x[1], lengths[1]), logits[1], rtol=0, atol=1e-6)


@pytest.mark.slow
@every_form
@pytest.mark.representatives("weighted-weights")
def test_relevance_is_conserved(attention, beside, x64):
    model = make(attention=attention, beside=beside, param_dtype="float64")
    x, length = inputs(T, D), np.int32(4)
    for options in ({}, {"attention": "attnlrp"}):
        found = ja.lrp(model, x, 1, args=(length,), conserve_bias=True, **options)
        total = found.values.sum() + found.info["absorbed"]
        np.testing.assert_allclose(total, found.output[1], rtol=0, atol=1e-8)
        np.testing.assert_array_equal(found.values[4:], 0)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("`attention` must be one of self, weighted; got 'soft'", {"attention": "soft"}),
        ("`beside` must be one of weights, outputs; got 'both'", {"beside": "both"}),
        ("`num_steps` must be at least 1, got 0", {"num_steps": 0}),
        ("`num_classes` must be at least 1, got 0", {"num_classes": 0}),
        ("`units` must be at least 1, got 0", {"units": 0}),
    ],
)
def test_wrong_settings(message, options):
    defaults = {"in_features": D, "num_steps": T, "num_classes": K, "rngs": nnx.Rngs(0)}
    with pytest.raises(ValueError, match=message):
        SignalClassifier(**defaults | options)


@pytest.mark.parametrize("name", ["in_features", "num_steps", "num_classes", "hidden_features"])
def test_non_integer_sizes_raise(name):
    defaults = {"in_features": D, "num_steps": T, "num_classes": K, "rngs": nnx.Rngs(0)}
    with pytest.raises(TypeError, match=rf"^`{name}` must be an integer, got 5\.5"):
        SignalClassifier(**defaults | {name: 5.5})


@pytest.mark.parametrize("shape", [(T - 1, D), (D,), (2, T, D + 1)])
def test_wrong_series(shape):
    with pytest.raises(ValueError, match="`x` must have shape"):
        make()(np.zeros(shape, np.float32))
