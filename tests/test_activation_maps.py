"""Class activation maps: closed forms, guided maps, and invalid options."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import jaxattn as ja

rng = np.random.default_rng(0)
KERNEL, DENSE = rng.normal(size=(3, 3, 2, 4)), rng.normal(size=(4, 3))
IMAGE = rng.normal(size=(6, 5, 2))
ROWS, W, _, READOUT = (rng.normal(size=s) / 2 for s in ((5, 3), (3, 4), (4, 4), (4, 2)))
MAPS = [ja.grad_cam, ja.grad_cam_plus_plus, ja.guided_grad_cam]


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


@pytest.mark.slow
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


@pytest.mark.parametrize("method", MAPS)
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


def test_grad_cam_plus_plus_equals_the_definition_of_the_paper(x64):
    """Weights of the first three derivatives of exp(target), divided by exp(target)."""

    def fn(x):
        return (ja.tag(x, "layer") * READOUT).sum()

    layer = abs(ROWS[:4, :2])

    def along(step, place):
        return jnp.exp(fn(jnp.asarray(layer).at[place].add(step)))

    weights = np.zeros(2)
    for position, channel in np.ndindex(4, 2):
        derivatives = [lambda step, place=(position, channel): along(step, place)]
        for _ in range(3):
            derivatives.append(jax.grad(derivatives[-1]))
        value, first, second, third = (float(d(0.0)) for d in derivatives)
        alpha = second / (2 * second + layer[:, channel].sum() * third)
        weights[channel] += alpha * max(first, 0) / value
    got = ja.grad_cam_plus_plus(fn, layer, at="layer", relu=False)
    close(got.values, layer @ weights)
    close(ja.grad_cam_plus_plus(fn, layer, at="layer").values, np.maximum(layer @ weights, 0))


def test_guided_grad_cam_is_the_product_of_both(x64):
    guided = ja.guided_backprop(lambda x: jax.nn.relu(classify(x)), IMAGE, 1).values
    map_ = ja.grad_cam(lambda x: jax.nn.relu(classify(x)), IMAGE, 1, at="conv", shape=(6, 5)).values
    got = ja.guided_grad_cam(lambda x: jax.nn.relu(classify(x)), IMAGE, 1, at="conv")
    close(got.values, guided * map_[..., None])
    assert np.any(got.values)


def waves(size, speed, start, shape):
    return np.sin(np.arange(size) * speed + start).reshape(shape)


def rectified(x):
    """Apply two convolutions with ReLUs, and a dense layer to the mean of the second."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    layer = x[None]
    kernels = waves(54, 1.3, 0.2, (3, 3, 2, 3)), waves(48, 0.7, 0.5, (2, 2, 3, 4))
    for i, kernel in enumerate(kernels):
        layer = jax.lax.conv_general_dilated(
            layer, kernel, (i + 1, i + 1), "VALID", dimension_numbers=dimensions
        )
        layer = ja.tag(jax.nn.relu(layer), f"layer {i}")
    return layer.mean((0, 1, 2)) @ waves(8, 2.1, 1, (4, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "total", "size", "row"),
    [
        (
            "layer 0",
            -0.001067518963344875,
            0.008806000208915844,
            [0.0001771593297623691, -0.00020628713009592035, -0.0006985263411188325],
        ),
        (
            "layer 1",
            -0.016771613049647062,
            0.11587386237407418,
            [0.00570378532538086, -0.004972014545953167, -0.010763255139995757],
        ),
    ],
)
def test_guided_grad_cam_agrees_with_captum(at, total, size, row, x64):
    """GuidedGradCam with interpolate_mode="bilinear"; the layers have an axis of batches."""
    image = np.cos(np.arange(96) * 0.9).reshape(8, 6, 2)
    got = ja.guided_grad_cam(rectified, image, 0, at=at).values
    close(got.sum(), total)
    close(abs(got).sum(), size)
    close(got[5, :3, 1], row)


def test_guided_grad_cam_of_an_image_without_channels(x64):
    def fn(x):
        return jax.nn.relu(ja.tag(x[..., None] * abs(READOUT[None, :1]), "layer")).sum()

    x = abs(ROWS)
    got = ja.guided_grad_cam(fn, x, at="layer").values
    guided = ja.guided_backprop(fn, x).values
    close(got, guided * ja.grad_cam(fn, x, at="layer").values)
    assert np.all(got)


def test_inputs_that_do_not_fit_a_guided_map_raise():
    def fn(x):
        return jax.nn.relu(ja.tag(jnp.ones((3, 4, 2)) * x.sum(), "layer")).sum()

    with pytest.raises(ValueError, match=r"`x` must have the axes of the map of shape \(3, 4\)"):
        ja.guided_grad_cam(fn, np.ones(3, np.float32), at="layer")
    with pytest.raises(ValueError, match="`x` must be one array for guided_grad_cam"):
        ja.guided_grad_cam(lambda x: fn(x[0]), (np.ones((3, 4), np.float32),) * 2, at="layer")
