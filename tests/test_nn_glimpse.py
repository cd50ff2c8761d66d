"""Tests of the glimpse sensor against slicing, and of the glimpse and location networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxattn as ja
from jaxattn import nn

GREY = np.random.default_rng(0).uniform(size=(9, 12)).astype(np.float32)
COLOUR = np.random.default_rng(1).uniform(size=(9, 12, 3)).astype(np.float32)
SQUARE = np.arange(1.0, 37, dtype=np.float32).reshape(6, 6)
PLACES = {
    "centre": (0, 0), "top left": (-1, -1), "bottom right": (1, 1), "top right": (-1, 1),
    "edge": (0.1, 0.9), "inside": (-0.37, 0.21), "just outside": (1.2, -1.1),
    "far outside": (-7, 0), "beyond all numbers": (1e30, -np.inf), "nowhere": (np.nan, 0),
}  # fmt: skip


def by_hand(image, location, size, scales):
    """Compute the patches pixel by pixel."""
    patches = np.zeros((scales, size, size, *image.shape[2:]))
    for s in range(scales):
        pool = 2**s
        corner = np.floor(
            (np.array(location) + 1) * image.shape[:2] / 2 - size * pool / 2 + 0.5
        )  # fmt: skip
        for a, b in np.ndindex(size, size):
            for i, j in np.ndindex(pool, pool):
                row, column = corner[0] + a * pool + i, corner[1] + b * pool + j
                if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                    patches[s, a, b] += image[int(row), int(column)] / pool**2
    return patches


@pytest.mark.representatives("4-3-top left-colour", "4-3-just outside-colour", "4-3-nowhere-grey")
@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("location", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize(("size", "scales"), [(4, 1), (3, 2), (4, 3)])
def test_sensor_equals_slicing_by_hand(image, location, size, scales):
    got = nn.glimpse(image, np.array(location, np.float32), size, scales)
    np.testing.assert_allclose(got, by_hand(image, location, size, scales), rtol=0, atol=1e-6)


def test_sensor_at_centre_corner_and_beyond_edge():
    def look(row, column):
        return nn.glimpse(SQUARE, np.array([row, column], np.float32), 2, 2)

    sharp, wide = look(0, 0)
    np.testing.assert_array_equal(sharp, SQUARE[2:4, 2:4])
    means = SQUARE[1:5, 1:5].reshape(2, 2, 2, 2).mean((1, 3))
    np.testing.assert_allclose(wide, means, rtol=1e-6)
    sharp, wide = look(-1, -1)
    np.testing.assert_array_equal(sharp, [[0, 0], [0, 1]])
    np.testing.assert_array_equal(wide, [[0, 0], [0, (1 + 2 + 7 + 8) / 4]])
    sharp, _ = look(1, 1)
    np.testing.assert_array_equal(sharp, [[36, 0], [0, 0]])
    sharp, wide = look(1.4, 0)  # its centre lies 1.2 pixels below the image
    np.testing.assert_array_equal(sharp, np.zeros((2, 2)))
    np.testing.assert_array_equal(wide, [[(32 + 33) / 4, (34 + 35) / 4], [0, 0]])


def test_location_order_is_row_column():
    np.testing.assert_array_equal(
        nn.glimpse(SQUARE, np.array([-2 / 3, 2 / 3], np.float32), 2)[0], SQUARE[0:2, 4:6]
    )


@pytest.mark.slow
@pytest.mark.parametrize("location", [(0, 0), (-0.37, 0.21), (0.2, -0.3)])
def test_boxes_are_the_pixels_read(location):
    location = np.array(location, np.float32)
    top, left, bottom, right = np.asarray(nn.glimpse_boxes(location, GREY.shape, 4)[0])
    assert (bottom - top, right - left) == (4, 4)
    np.testing.assert_array_equal(nn.glimpse(GREY, location, 4)[0], GREY[top:bottom, left:right])
    gradient = jax.grad(lambda image: nn.glimpse(image, location, 4, 2)[0].sum())(GREY)
    ones = np.zeros_like(GREY)
    ones[top:bottom, left:right] = 1
    np.testing.assert_array_equal(gradient, ones)
    boxes = nn.glimpse_boxes(np.stack([location, location]), GREY.shape, 4, 3)
    assert boxes.shape == (2, 3, 4)
    np.testing.assert_array_equal(boxes[0, :, 2] - boxes[0, :, 0], [4, 8, 16])


@pytest.mark.slow
def test_integers_are_converted_and_floating_dtypes_kept(x64):
    centre = np.zeros(2, np.float32)
    whole = nn.glimpse(np.arange(36, dtype=np.uint8).reshape(6, 6), centre, 2, 2)
    np.testing.assert_allclose(whole[0], [[14, 15], [20, 21]])
    assert nn.glimpse(SQUARE.astype(np.float64), centre, 2).dtype == jnp.float64
    assert nn.glimpse(jnp.asarray(SQUARE, jnp.bfloat16), centre, 2).dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_batches_equal_single_images(image):
    sensor = nn.GlimpseSensor(3, 2)
    images = np.stack([[image, image[::-1]], [image[:, ::-1], 2 * image]])
    locations = np.random.default_rng(0).uniform(-1, 1, (2, 2, 2)).astype(np.float32)
    got = jax.jit(sensor)(images, locations)
    for i in np.ndindex(2, 2):
        np.testing.assert_allclose(got[i], sensor(images[i], locations[i]), atol=1e-6)


@pytest.mark.slow
def test_glimpse_network_equals_formula():
    network = nn.GlimpseNetwork(5, 4, patch_features=3, location_features=2, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    patches, location = (rng.normal(size=(7, n)).astype(np.float32) for n in (5, 2))

    def linear(layer, x):
        return x @ np.asarray(layer.kernel) + np.asarray(layer.bias)

    what = linear(network.join_patches, np.maximum(linear(network.read_patches, patches), 0))
    where = linear(network.join_location, np.maximum(linear(network.read_location, location), 0))
    np.testing.assert_allclose(
        network(patches, location), np.maximum(what + where, 0), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(network(patches[0], location[0]), network(patches, location)[0],
                               rtol=1e-5, atol=1e-6)  # fmt: skip
    assert nn.GlimpseNetwork(9, rngs=nnx.Rngs(0)).join_patches.kernel.shape == (128, 256)


@pytest.fixture
def network():
    network = nn.LocationNetwork(3, std=0.5, rngs=nnx.Rngs(0))
    assert not np.any(network(HIDDEN).mean)  # the initial location is the centre
    network.linear.kernel[...] = np.array([[0.5, -0.3], [0.2, 0.9], [-0.7, 0.1]], np.float32)
    network.linear.bias[...] = np.array([0.1, -0.2], np.float32)
    return network


HIDDEN = np.random.default_rng(2).normal(size=(400, 3)).astype(np.float32)


def test_locations_are_normal_around_means_and_clamped(network):
    found = network(HIDDEN, key=jax.random.key(0))
    mean = np.tanh(HIDDEN @ np.asarray(network.linear.kernel) + np.asarray(network.linear.bias))
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.location, np.clip(found.sample, -1, 1))
    assert np.abs(found.sample).max() > 1
    deviations = (np.asarray(found.sample) - mean) / 0.5
    assert abs(deviations.mean()) < 0.15 and abs(deviations.std() - 1) < 0.1
    without_key = network(HIDDEN)
    np.testing.assert_array_equal(without_key.location, without_key.mean)
    outside = np.full((400, 2), 3, np.float32)
    np.testing.assert_array_equal(network(HIDDEN, at=outside).location, outside)


def test_log_density_gradient_is_scaled_deviation(network, x64):
    rng = np.random.default_rng(0)
    sample, mean, advantage = rng.normal(size=(3, 5, 2))

    def push(mean):
        return (advantage[:, 0] * network.log_density(sample, mean)).sum()

    expected = (sample - mean) / 0.5**2 * advantage[:, :1]
    np.testing.assert_allclose(jax.grad(push)(jnp.asarray(mean)), expected, rtol=1e-12)


@pytest.mark.slow
def test_only_mean_has_gradient_and_only_in_weights(network):
    def total(network, hidden, part):
        return getattr(network(hidden, key=jax.random.key(0)), part).sum()

    for part, has_gradient in (("location", False), ("sample", False), ("mean", True)):
        weights, hidden = jax.grad(total, (0, 1))(network, HIDDEN, part)
        assert not np.any(hidden)
        assert (
            np.any(weights.linear.kernel[...]) == np.any(weights.linear.bias[...]) == has_gradient
        )


def test_locations_are_captured_and_replaced_by_name():
    network = nn.LocationNetwork(3, name="gaze", rngs=nnx.Rngs(0))
    _, captured = ja.capture(network, "gaze")(HIDDEN[0])
    np.testing.assert_array_equal(captured["gaze"], network(HIDDEN[0]).location)
    there = np.array([0.5, -0.5], np.float32)
    changed = ja.intervene(network, {"gaze": there})(HIDDEN[0])
    np.testing.assert_array_equal(changed.location, there)


WRONG = {
    "an image smaller than the glimpse": (
        lambda: nn.glimpse(np.zeros((9, 3), np.float32), np.zeros(2, np.float32), 4),
        r"`image` must be at least .* 4 x 4, got shape \(9, 3\)",
    ),
    "an image of another rank": (
        lambda: nn.GlimpseSensor(2)(np.zeros(9, np.float32), np.zeros(2, np.float32)),
        r"`image` must have shape \(H, W\) or \(H, W, C\), got \(9,\)",
    ),
    "a location of another shape": (
        lambda: nn.GlimpseSensor(2)(GREY, np.zeros(3, np.float32)),
        r"`location` must have shape \(\.\.\., 2\), got \(3,\)",
    ),
    "a batch of another size": (
        lambda: nn.GlimpseSensor(2)(np.stack([GREY, GREY]), np.zeros((3, 2), np.float32)),
        r"`image` must have shape \(3, H, W\) .* got \(2, 9, 12\)",
    ),
    "a size of 0": (lambda: nn.GlimpseSensor(0), "`size` must be at least 1, got 0"),
    "no scales": (lambda: nn.GlimpseSensor(2, 0), "`scales` must be at least 1, got 0"),
    "boxes on too small an image": (
        lambda: nn.glimpse_boxes(np.zeros(2, np.float32), (3, 3), 4),
        "`image` must be at least as large",
    ),
    "no features": (
        lambda: nn.GlimpseNetwork(5, 0, rngs=nnx.Rngs(0)), "`features` must be at least 1, got 0",
    ),
    "patches of another width": (
        lambda: nn.GlimpseNetwork(5, 4, rngs=nnx.Rngs(0))(
            np.zeros((1, 4), np.float32), np.zeros((1, 2), np.float32)
        ),
        r"`patches` must have shape \(\.\.\., 5\), got \(1, 4\)",
    ),
    "no spread": (
        lambda: nn.LocationNetwork(3, std=0.0, rngs=nnx.Rngs(0)), "`std` must be positive, got 0.0",
    ),
    "no hidden state": (
        lambda: nn.LocationNetwork(0, rngs=nnx.Rngs(0)), "`in_features` must be at least 1, got 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_invalid_inputs_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("size", [8.5, "8"])
def test_non_integer_sizes_raise(size):
    for name, call in {
        "size": lambda: nn.GlimpseSensor(size),
        "scales": lambda: nn.GlimpseSensor(8, size),
        "features": lambda: nn.GlimpseNetwork(5, size, rngs=nnx.Rngs(0)),
        "in_features": lambda: nn.LocationNetwork(size, rngs=nnx.Rngs(0)),
    }.items():
        with pytest.raises(TypeError, match=f"^`{name}` must be an integer, got {size!r}"):
            call()


def test_nan_pixels_are_propagated():
    broken = SQUARE.copy()
    broken[0, 0] = np.nan
    assert np.isnan(nn.glimpse(broken, np.zeros(2, np.float32), 2)).any()
