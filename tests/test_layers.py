"""Grad-CAM and layer conductance: closed forms, and completeness."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import jaxattn as ja

rng = np.random.default_rng(0)
KERNEL, DENSE = rng.normal(size=(3, 3, 2, 4)), rng.normal(size=(4, 3))
IMAGE = rng.normal(size=(6, 5, 2))
ROWS, W, U, READOUT = (rng.normal(size=s) / 2 for s in ((5, 3), (3, 4), (4, 4), (4, 2)))


def close(got, want, atol=1e-12):
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def convolve(x):
    kernel = KERNEL.astype(x.dtype)
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x[None], kernel, (1, 1), "VALID", dimension_numbers=dimensions
    )[0]


def classify(x, scale=1.0):
    """Apply a dense layer to the mean squares of a tagged layer (4, 3, 4)."""
    layer = ja.tag(jnp.tanh(convolve(x)), "conv")
    return scale * (layer**2).mean((0, 1)) @ DENSE.astype(x.dtype)


def test_grad_cam_closed_form(x64):
    a = np.tanh(convolve(jnp.asarray(IMAGE)))
    weights = (2 * a / 12 * DENSE[:, 1]).mean((0, 1))
    signed = a @ weights
    got = ja.grad_cam(classify, IMAGE, 1, at="conv")
    close(got.values, np.maximum(signed, 0))
    assert 0 < (signed > 0).sum() < signed.size
    close(got.output, classify(IMAGE))
    close(ja.grad_cam(classify, IMAGE, 1, at="conv", relu=False).values, signed)
    close(ja.grad_cam(classify, IMAGE, 1, at="conv", args=(3.0,), relu=False).values, 3 * signed)
    whole = ja.grad_cam(classify, IMAGE, 1, at="conv", shape=(6, 5))
    close(whole.values, jax.image.resize(jnp.maximum(signed, 0), (6, 5), "bilinear"))


def test_grad_cam_equals_the_class_activation_map(x64):
    def fn(x):
        return ja.tag(convolve(x), "conv").mean((0, 1)) @ DENSE

    got = ja.grad_cam(fn, IMAGE, 2, at="conv", relu=False)
    close(got.values, convolve(jnp.asarray(IMAGE)) @ DENSE[:, 2] / 12)


@pytest.mark.parametrize("channel_axis", [0, -2])
def test_grad_cam_channel_axis_of_a_series(channel_axis, x64):
    def fn(x):
        return (jnp.arange(1.0, 6) @ ja.tag((x @ W).T, "series").T) @ READOUT[:, 0]

    got = ja.grad_cam(fn, ROWS, at="series", channel_axis=channel_axis, relu=False)
    close(got.values, 3 * ROWS @ W @ READOUT[:, 0])


def test_resized_map_of_a_keras_model_has_no_batch_axis():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        keras.utils.set_random_seed(0)
        layers = [
            keras.layers.Conv2D(4, 3, activation="tanh", name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, name="head"),
        ]
        model = keras.Sequential([keras.Input((6, 5, 2)), *layers])
        images = rng.normal(size=(3, 6, 5, 2)).astype(np.float32)
        options = {"at": "conv", "relu": False}
        small = ja.explain(ja.grad_cam, model, images, 2, **options).values
        large = ja.explain(ja.grad_cam, model, images, 2, shape=(6, 5), **options).values
    want = np.asarray(layers[0](images)) @ np.asarray(layers[2].kernel)[:, 2] / 12
    close(small, want[:, None], 1e-6)
    close(large[1], jax.image.resize(want[1], (6, 5), "linear"), 1e-6)


def test_grad_cam_as_the_method_of_smooth_grad():
    x, key = jnp.asarray(IMAGE, jnp.float32), jax.random.key(0)
    options = {"at": "conv", "key": key, "num_samples": 2, "noise": 1e-6}
    smooth = ja.smooth_grad(classify, x, 1, method=ja.grad_cam, **options)
    close(smooth.values, ja.grad_cam(classify, x, 1, at="conv").values, 1e-5)


@pytest.mark.parametrize("method", [ja.grad_cam, ja.layer_conductance])
def test_missing_at_raises(method):
    with pytest.raises(ValueError, match=f"`at` is missing: {method.__name__}"):
        method(classify, IMAGE, 1)
    with pytest.raises(ValueError, match=f"`at` is missing: {method.__name__}"):
        ja.explain(method, classify, IMAGE[None], 1)
    with pytest.raises(ValueError, match=r"at.*'pool'.*conv"):
        method(classify, IMAGE, 1, at="pool")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shape": (6, 5, 2)},
            r"`shape` must have .* \(4, 3\), got \(6, 5, 2\)",
        ),
        ({"shape": (6,)}, r"`shape` must have .* \(4, 3\), got \(6,\)"),
        ({"shape": (6, 0)}, "`shape` must be at least 1, got 0"),
        (
            {"channel_axis": 3},
            r"`channel_axis` must be an axis .* \(4, 3, 4\), got 3",
        ),
    ],
)
def test_invalid_grad_cam_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        ja.grad_cam(classify, IMAGE.astype(np.float32), 1, at="conv", **options)


def test_grad_cam_without_spatial_axes_raises():
    with pytest.raises(ValueError, match=r"channels and another axis, got shape \(4,\)"):
        ja.grad_cam(lambda x: ja.tag(x, "flat").sum(), np.ones(4, np.float32), at="flat")


def hidden(x):
    return jnp.tanh(x @ W + 0.3)


def dense(x):
    y = ja.tag(hidden(x), "hidden")
    return (y * jnp.roll(y, 1, -1)).sum(0) @ READOUT


def recurrent(x):
    def advance(h, row):
        h = jnp.tanh(row @ W + h @ U)
        return h, ja.tag(h, "state")

    _, states = jax.lax.scan(advance, jnp.zeros(4), x)
    return jnp.sin(states).sum(0) @ READOUT


EXACT = {"quadrature": "gauss_legendre", "num_steps": 40}


def test_conductance_of_linear_layers_closed_form(x64):
    def linear(x):
        return ja.tag(x @ W, "y") @ READOUT

    got = ja.layer_conductance(linear, ROWS[0], 1, at="y", baseline=ROWS[1], num_steps=1)
    close(got.values, (ROWS[0] - ROWS[1]) @ W * READOUT[:, 1])
    close(got.output, ROWS[0] @ W @ READOUT)

    def product(x):
        return ja.tag(x @ W[:, :2], "y").prod()

    got = ja.layer_conductance(product, ROWS[0], at="y", num_steps=1)
    close(got.values, np.full(2, (ROWS[0] @ W[:, :2]).prod() / 2))


@pytest.mark.parametrize(
    ("fn", "at"), [(dense, "hidden"), (recurrent, "state")], ids=["dense", "recurrent"]
)
def test_conductance_is_complete(fn, at, x64):
    got = ja.layer_conductance(fn, ROWS, 1, at=at, baseline=0.2, **EXACT)
    assert got.values.shape == (5, 4)
    change = fn(ROWS)[1] - fn(np.full_like(ROWS, 0.2))[1]
    close(got.values.sum(), change, 1e-9)
    close(got.info["delta"], 0, 1e-9)
    assert abs(change) > 0.05


def test_conductance_equals_a_riemann_sum(x64):
    steps = 400
    points = np.linspace(0, 1, 2 * steps + 1)[:, None, None] * ROWS
    y = hidden(points)
    slope = jax.vmap(jax.grad(lambda y: (y * jnp.roll(y, 1, -1)).sum(0) @ READOUT[:, 0]))
    want = (slope(y[1::2]) * (y[2::2] - y[:-2:2])).sum(0)
    close(ja.layer_conductance(dense, ROWS, 0, at="hidden", **EXACT).values, want, 1e-4)
    got = ja.layer_conductance(dense, ROWS, 0, at="hidden", num_steps=steps, batch_size=64)
    close(got.values, want, 1e-5)


def test_conductance_of_the_input_equals_integrated_gradients(x64):
    def fn(x):
        return jnp.tanh(ja.tag(x, "x") @ W).sum(0) @ READOUT

    options = {"num_steps": 5, "baseline": 0.1}
    got = ja.layer_conductance(fn, ROWS, 0, at="x", **options)
    want = ja.integrated_gradients(fn, ROWS, 0, **options)
    close(got.values, want.values)
    close(got.info["delta"], want.info["delta"])


def test_delta_is_the_effect_that_bypasses_the_layer(x64):
    def fn(x):
        return dense(x)[0] + 3 * x.sum()

    got = ja.layer_conductance(fn, ROWS, at="hidden", **EXACT)
    close(got.info["delta"], -3 * ROWS.sum(), 1e-9)


def test_inputs_that_bypass_the_layer_follow_the_path(x64):
    def fn(x):
        return (ja.tag(x @ W, "y") * x[:, :1]).sum()

    got = ja.layer_conductance(fn, ROWS, at="y", **EXACT)
    close(got.values, ROWS @ W * ROWS[:, :1] / 2)


def test_conductance_with_baselines_per_example_and_integer_leaves(x64):
    def fn(x):
        return dense(x["rows"] * x["scale"].astype(float))

    xs = {"rows": np.stack([ROWS, -ROWS]), "scale": np.array([2, 3])}
    baseline = {"rows": np.stack([0 * ROWS, ROWS]), "scale": np.array([0, 0])}
    options = {"at": "hidden", **EXACT}
    got = ja.explain(ja.layer_conductance, fn, xs, 1, baseline=baseline, **options)
    close(got.info["delta"], 0, 1e-9)
    one = ja.layer_conductance(dense, -3 * ROWS, 1, baseline=3 * ROWS, **options)
    close(got.values[1], one.values, 1e-9)


def test_conductance_of_integer_inputs_raises():
    def fn(ids):
        return ja.tag(jnp.asarray(W, jnp.float32)[ids], "embedding").sum()

    with pytest.raises(TypeError, match="a path from the baseline"):
        ja.layer_conductance(fn, np.array([0, 2]), at="embedding")


def test_invalid_path_options_raise():
    with pytest.raises(ValueError, match="quadrature"):
        ja.layer_conductance(dense, ROWS, 0, at="hidden", quadrature="simpson")
    with pytest.raises(ValueError, match="num_steps"):
        ja.layer_conductance(dense, ROWS, 0, at="hidden", num_steps=0)
