"""Tests of spatial attention against its equations, of masks, sampling and errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parameters import with_random_parameters

import jaxattn as ja
from jaxattn import nn

L, D, H, U = 4, 3, 2, 5
LAYERS = {"soft": nn.SoftSpatialAttention, "hard": nn.HardSpatialAttention}
both = pytest.mark.parametrize("kind", LAYERS)


def make(kind, dtype=jnp.float32, **options):
    """Return a layer with nonzero biases."""
    return with_random_parameters(
        lambda: LAYERS[kind](D, H, U, param_dtype=dtype, rngs=nnx.Rngs(0), **options), scale=1
    )


def inputs(*batch, dtype=np.float32):
    rng = np.random.default_rng(0)
    return rng.normal(size=(*batch, L, D)).astype(dtype), rng.normal(size=(*batch, H)).astype(dtype)


def expected_weights(layer, annotations, hidden):
    w = jax.tree.map(np.asarray, layer.weights())
    scores = [np.tanh(a @ w.annotation + hidden @ w.state + w.bias) @ w.score for a in annotations]
    exponentials = np.exp(scores)
    return exponentials / exponentials.sum()


def test_soft_attention_equals_equations(x64):
    layer = make("soft", jnp.float64)
    annotations, hidden = inputs(dtype=np.float64)
    values, weights = layer(annotations, hidden)
    alpha = expected_weights(layer, annotations, hidden)
    beta = 1 / (1 + np.exp(-(hidden @ np.asarray(layer.gate[...]) + layer.gate_bias[...])))
    np.testing.assert_allclose(weights, alpha, rtol=1e-13)
    np.testing.assert_allclose(values, beta * (alpha @ annotations), rtol=1e-13)
    assert abs(beta - 1) > 0.05


@pytest.mark.slow
def test_soft_attention_by_hand():
    # W_a, W_h and w have one unit; the scores are tanh(0) and tanh(1).
    layer = nn.SoftSpatialAttention(1, 1, 1, rngs=nnx.Rngs(0))
    for name in ("annotation", "state", "score", "gate"):
        getattr(layer, name)[...] = jnp.ones_like(getattr(layer, name)[...])
    values, weights = layer(np.array([[-1.0], [0.0]], np.float32), np.array([1.0], np.float32))
    high = np.exp(np.tanh(1.0))
    np.testing.assert_allclose(weights, [1 / (1 + high), high / (1 + high)], rtol=1e-6)
    np.testing.assert_allclose(values, [-1 / (1 + np.exp(-1.0)) / (1 + high)], rtol=1e-6)


def test_ungated_values_are_weighted_mean(x64):
    layer = make("soft", jnp.float64, gated=False)
    annotations, hidden = inputs(dtype=np.float64)
    values, weights = layer(annotations, hidden)
    np.testing.assert_allclose(values, weights @ annotations, rtol=1e-13)
    assert not hasattr(layer, "gate")


def test_hard_attention_selects_argmax_or_samples(x64):
    layer = make("hard", jnp.float64)
    annotations, hidden = inputs(dtype=np.float64)
    alpha = expected_weights(layer, annotations, hidden)
    found = layer(annotations, hidden)
    np.testing.assert_allclose(found.weights, alpha, rtol=1e-13)
    assert int(found.position) == alpha.argmax()
    np.testing.assert_array_equal(found.values, annotations[alpha.argmax()])

    count = 20_000
    keys = jax.random.split(jax.random.key(0), count)
    drawn = jax.jit(jax.vmap(lambda key: layer(annotations, hidden, key=key)))(keys)
    np.testing.assert_array_equal(drawn.values, annotations[drawn.position])
    shares = np.bincount(drawn.position, minlength=L) / count
    assert (np.abs(shares - alpha) < 4.5 * np.sqrt(alpha * (1 - alpha) / count)).all()


@both
@pytest.mark.slow
def test_batch_axes_equal_single_examples(kind):
    layer = make(kind)
    annotations, hidden = inputs(2, 3)
    mask = np.random.default_rng(1).random((2, 3, L)) < 0.7
    batched = layer(annotations, hidden, mask)
    assert batched.values.shape == (2, 3, D)
    assert batched.weights.shape == (2, 3, L)
    for i in np.ndindex(2, 3):
        for a, b in zip(batched, layer(annotations[i], hidden[i], mask[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_batch_examples_draw_independent_positions():
    layer = make("hard")
    annotations, hidden = (np.repeat(a[None], 200, 0) for a in inputs())
    assert len(set(layer(annotations, hidden, key=jax.random.key(0)).position.tolist())) > 1


@pytest.mark.slow
@both
@pytest.mark.representatives("hard")
def test_masked_positions_are_ignored(kind):
    layer = make(kind)
    annotations, hidden = inputs()
    mask = np.array([True, False, True, False])
    for fill in (np.nan, np.inf, 7.0):
        other = np.where(mask[:, None], annotations, fill).astype(np.float32)
        found = layer(other, hidden, mask)
        kept = layer(annotations[mask], hidden)
        np.testing.assert_allclose(found.weights[mask], kept.weights, rtol=1e-6)
        np.testing.assert_array_equal(found.weights[~mask], 0)
        np.testing.assert_allclose(found.values, kept.values, rtol=1e-6)
        slope = jax.grad(lambda a: layer(a, hidden, mask).values.sum())(other)
        assert np.isfinite(slope).all()
        np.testing.assert_array_equal(slope[~mask], 0)
        assert np.abs(slope[mask]).min() > 0 or kind == "hard"


@both
@pytest.mark.slow
def test_fully_masked_output_is_zero(kind):
    layer = make(kind)
    annotations, hidden = inputs()
    options = {"key": jax.random.key(0)} if kind == "hard" else {}

    def total(layer, annotations):
        found = layer(annotations, hidden, np.zeros(L, bool), **options)
        return found.values.sum() + found.weights.sum(), found

    (slopes, slope), found = jax.grad(total, argnums=(0, 1), has_aux=True)(layer, annotations)
    np.testing.assert_array_equal(found.values, 0)
    np.testing.assert_array_equal(found.weights, 0)
    for leaf in jax.tree.leaves((slopes, slope)):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.slow
@both
def test_weights_are_captured_and_replaced(kind):
    layer = make(kind)
    annotations, hidden = inputs()
    out, captured = ja.capture(layer, "attention")(annotations, hidden)
    np.testing.assert_array_equal(captured["attention"], out.weights)
    only = np.array([0, 0, 1, 0], np.float32)
    forced = ja.intervene(layer, {"attention": only})(annotations, hidden)
    beta = 1.0
    if kind == "soft":
        beta = jax.nn.sigmoid(hidden @ layer.gate[...] + layer.gate_bias[...])
    np.testing.assert_allclose(forced.values, beta * annotations[2], rtol=1e-6)
    renamed = make(kind, name="look")
    assert list(ja.capture(renamed)(annotations, hidden)[1]) == ["look"]


@pytest.mark.slow
@both
@pytest.mark.representatives("hard")
def test_dtypes_promote(kind, x64):
    assert make(kind)(*inputs(dtype=np.float64)).values.dtype == jnp.float64
    assert make(kind, jnp.bfloat16)(*inputs()).weights.dtype == jnp.float32


def test_doubly_stochastic_penalty_by_hand():
    weights = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]], np.float32)
    # Sums over steps: 1.7, 0.8, 0.5; without the last step 1.5, 0.5, 0.
    penalty = nn.doubly_stochastic_penalty
    np.testing.assert_allclose(penalty(weights), 0.49 + 0.04 + 0.25, rtol=1e-6)
    mask = np.array([True, True, False])
    np.testing.assert_allclose(penalty(weights, mask), 0.25 + 0.25 + 1, rtol=1e-6)
    both = np.stack([weights, weights[::-1]])
    np.testing.assert_allclose(penalty(both, mask), [1.5, 0.04 + 0.49 + 0.25], rtol=1e-6)
    assert penalty(np.eye(3, dtype=np.float32)) == 0


@both
@pytest.mark.parametrize(
    ("annotations", "hidden", "mask", "error", "message"),
    [
        (
            (L, D + 1),
            (H,),
            None,
            ValueError,
            "`annotations` must have shape (..., L, 3), got (4, 4)",
        ),
        ((D,), (H,), None, ValueError, "`annotations` must have shape (..., L, 3), got (3,)"),
        ((L, D), (H + 1,), None, ValueError, "`hidden` must have shape (2,) for annotations"),
        ((6, L, D), (H,), None, ValueError, "`hidden` must have shape (6, 2) for annotations"),
        ((L, D), (H,), np.ones(3, bool), ValueError, "must broadcast to shape (4,), got (3,)"),
        ((L, D), (H,), np.ones(L), TypeError, "`mask` must be boolean"),
    ],
)
def test_invalid_inputs_raise(kind, annotations, hidden, mask, error, message):
    layer = make(kind)
    with pytest.raises(error, match=re.escape(message)):
        layer(np.ones(annotations, np.float32), np.ones(hidden, np.float32), mask)


@both
def test_integer_annotations_raise(kind):
    with pytest.raises(TypeError, match="`annotations` must be floating, got dtype int32"):
        make(kind)(np.ones((L, D), np.int32), np.ones(H, np.float32))


@both
@pytest.mark.parametrize(
    ("sizes", "name"),
    [((0, 1, 1), "annotation_features"), ((1, 0, 1), "state_features"), ((1, 1, -2), "units")],
)
def test_sizes_below_one_raise(kind, sizes, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1"):
        LAYERS[kind](*sizes, rngs=nnx.Rngs(0))


@both
def test_non_floating_param_dtype_raises(kind):
    with pytest.raises(TypeError, match="`param_dtype` must be floating"):
        LAYERS[kind](1, 1, 1, param_dtype=jnp.int32, rngs=nnx.Rngs(0))


def test_wrong_step_mask_shape_raises():
    with pytest.raises(ValueError, match=re.escape("must broadcast to shape (3,), got (2,)")):
        nn.doubly_stochastic_penalty(np.ones((3, 4), np.float32), np.ones(2, bool))
