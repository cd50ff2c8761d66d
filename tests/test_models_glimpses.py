"""Tests of the recurrent attention model against NumPy equations, its loss and explanations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parameters import with_random_parameters

import jaxattn as ja
from jaxattn.models import RecurrentAttention, glimpse_loss

CLASSES, UNITS, N = 3, 8, 3
IMAGES = np.random.default_rng(0).uniform(size=(4, 12, 10))
LABELS = np.array([0, 2, 1, 2], np.int32)
KEY = jax.random.key(3)


def make(dtype=jnp.float64, **options):
    """Return a network with nonzero biases and varying glimpse locations."""
    options = {"size": 3, "scales": 2, "num_glimpses": N, "hidden_features": UNITS} | options
    return with_random_parameters(
        lambda: RecurrentAttention(CLASSES, param_dtype=dtype, rngs=nnx.Rngs(0), **options),
        scale=0.6,
    )


def linear(layer, x):
    return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


def loop(model, image, noise):
    """Compute logits, means, samples, baselines and previous states of all glimpses of an image."""
    state, steps, net = np.zeros(UNITS), [], model.glimpse
    for e in noise:
        mean = np.tanh(linear(model.location.linear, state))
        sample = mean + model.location.std * e
        place = np.clip(sample, -1, 1)
        seen = np.asarray(ja.nn.glimpse(image, place, model.sensor.size, model.sensor.scales))
        what = np.maximum(linear(net.read_patches, seen.reshape(-1)), 0)
        where = np.maximum(linear(net.read_location, place), 0)
        seen = np.maximum(linear(net.join_patches, what) + linear(net.join_location, where), 0)
        now = np.maximum(linear(model.from_state, state) + linear(model.from_glimpse, seen), 0)
        expected = linear(model.baseline, state)[0]
        steps.append((linear(model.classifier, now), mean, sample, expected, state))
        state = now
    return [np.stack(part) for part in zip(*steps, strict=True)]


@pytest.mark.slow
def test_equals_equations(x64):
    model = make()
    drawn, sure = model.look(IMAGES[0], key=KEY), model.look(IMAGES[0])
    for found, noise in (
        (drawn, (np.asarray(drawn.samples) - drawn.means) / model.location.std),
        (sure, np.zeros((N, 2))),
    ):
        *expected, _ = loop(model, IMAGES[0], noise)
        got = found.logits, found.means, found.samples, found.baselines
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(found.locations, np.clip(found.samples, -1, 1))
        boxes = ja.nn.glimpse_boxes(found.locations, (12, 10), 3, 2)
        np.testing.assert_array_equal(found.boxes, boxes)
    np.testing.assert_array_equal(model(IMAGES[0]), sure.logits[-1])
    again = model.look(IMAGES[0], locations=drawn.locations)
    np.testing.assert_allclose(again.logits, drawn.logits, atol=1e-12)


@pytest.mark.slow
def test_batches_equal_single_images():
    model = make(jnp.float32)
    images = IMAGES.astype(np.float32).reshape(2, 2, 12, 10)
    got = model(images)
    assert got.shape == (2, 2, CLASSES) and got.dtype == jnp.float32
    for i in np.ndindex(2, 2):
        np.testing.assert_allclose(got[i], jax.jit(model)(images[i]), rtol=1e-4, atol=1e-5)
    drawn = model.look(images, key=KEY)
    noise = (drawn.samples - drawn.means).reshape(4, N * 2)
    assert len(np.unique(np.round(noise, 5))) == 4 * N * 2  # all samples are independent
    other = model.look(images, key=jax.random.key(4))
    assert np.all(other.samples != drawn.samples)


@pytest.mark.slow
def test_colour_images_and_integer_pixels():
    model = make(jnp.float32, channels=3)
    image = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    assert model(image).shape == (CLASSES,)
    np.testing.assert_allclose(model(image), model(image.astype(np.float32)), rtol=1e-6)
    assert np.any(model(image) != model(image[..., ::-1]))


@pytest.mark.slow
def test_probabilities_are_mean_over_paths(x64):
    model = make()
    got = model.probabilities(IMAGES, key=KEY, num_samples=5)
    paths = [model.look(IMAGES, key=key) for key in jax.random.split(KEY, 5)]
    one_by_one = [jax.nn.softmax(path.logits[:, -1]) for path in paths]
    np.testing.assert_allclose(got, np.mean(one_by_one, 0), rtol=1e-12)


def slopes(model, part, **options):
    """Compute the gradient of one term of the loss with respect to the parameters."""
    graph, state = nnx.split(model)

    def of(state):
        model = nnx.merge(graph, state)
        return getattr(glimpse_loss(model, IMAGES, LABELS, key=KEY, **options), part)

    return jax.grad(of)(state)


def layers_with_gradient(gradient):
    """Return the names of the layers with a nonzero gradient."""
    return {
        name for name, part in nnx.to_pure_dict(gradient).items()
        if any(np.any(leaf) for leaf in jax.tree.leaves(part))
    }  # fmt: skip


CLASSIFIER_LAYERS = {"glimpse", "from_state", "from_glimpse", "classifier"}


@pytest.mark.slow
def test_loss_terms_have_separate_gradients(x64):
    model = make()
    assert layers_with_gradient(slopes(model, "cross_entropy")) == CLASSIFIER_LAYERS
    assert layers_with_gradient(slopes(model, "baseline")) == {"baseline"}
    assert layers_with_gradient(slopes(model, "reinforce")) == {"location"}
    assert layers_with_gradient(slopes(model, "loss")) == CLASSIFIER_LAYERS | {
        "baseline",
        "location",
    }
    fixed = np.zeros((1, 4, N, 2))
    assert layers_with_gradient(slopes(model, "loss", locations=fixed)) == CLASSIFIER_LAYERS | {
        "baseline"
    }


@pytest.mark.slow
def test_reinforce_gradient_equals_formula(x64):
    """The gradient is -(l - mu) / std^2 * (R - b), averaged over images and paths."""
    model, paths, std = make(), 2, 0.17
    kernel, bias = np.zeros((UNITS, 2)), np.zeros(2)
    rewards, errors = [], []
    for key in jax.random.split(KEY, paths):
        seen = jax.tree.map(np.asarray, model.look(IMAGES, key=key))
        for i, label in enumerate(LABELS):
            noise = (seen.samples[i] - seen.means[i]) / std
            logits, means, samples, baselines, states = loop(model, IMAGES[i], noise)
            rewards.append(float(np.argmax(logits[-1]) == label))
            advantages = rewards[-1] - baselines
            errors.append(np.mean(advantages**2))
            by_mean = advantages[:, None] * (samples - means) / std**2
            push = -by_mean * (1 - means**2) / (paths * len(LABELS))
            kernel += states.T @ push
            bias += push.sum(0)
    assert 0 < np.mean(rewards) < 1
    found = glimpse_loss(model, IMAGES, LABELS, key=KEY, num_samples=paths)
    np.testing.assert_allclose(found.reward, np.mean(rewards), rtol=1e-12)
    np.testing.assert_allclose(found.baseline, np.mean(errors), rtol=1e-12)
    whole = found.cross_entropy + found.baseline + found.reinforce
    np.testing.assert_allclose(found.loss, whole, rtol=1e-12)
    got = slopes(model, "reinforce", num_samples=paths).location.linear
    np.testing.assert_allclose(got.kernel[...], kernel, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got.bias[...], bias, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_mean_reinforce_gradient_is_expected_reward_gradient(x64):
    """On a grid of locations, all paths of two glimpses are enumerated with their density."""
    model = make(num_glimpses=2, std=0.6)
    model.baseline.kernel[...] *= 0
    model.baseline.bias[...] *= 0
    places = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, 7)] * 2), -1).reshape(-1, 2)
    first, second = np.repeat(places, len(places), 0), np.tile(places, (len(places), 1))
    paths = np.stack([first, second], 1)
    images = np.broadcast_to(IMAGES[2], (len(paths), 12, 10))
    # No class has the largest logit on every path.
    model.classifier.bias[...] -= model.look(images, locations=paths).logits[:, -1].mean(0)
    graph, state = nnx.split(model)

    def likelihood(state):
        """Return the density of each path, and whether class 2 is predicted at its end."""
        model = nnx.merge(graph, state)
        seen = model.look(images, locations=paths)
        density = jnp.exp(model.location.log_density(paths, seen.means).sum(-1))
        return density, seen.logits[:, -1].argmax(-1) == 2

    density, right = likelihood(state)
    assert 0.1 < np.mean(right) < 0.9

    def surrogate(state):
        """Return the sum of the losses of all paths, weighted with their density."""

        def one(image, path):
            part = glimpse_loss(
                nnx.merge(graph, state), image[None], np.array([2]), key=KEY,
                locations=path[None, None],
            )  # fmt: skip
            return part.reinforce

        return jnp.sum(density * jax.vmap(one)(images, jnp.asarray(paths)))

    got = jax.jit(jax.grad(surrogate))(state).location.linear
    expected = jax.jit(lambda state: jnp.sum(jnp.where(right, likelihood(state)[0], 0)))
    for name in ("kernel", "bias"):
        at = getattr(state.location.linear, name)[...]
        slope = np.zeros(at.shape)
        for index in np.ndindex(at.shape):
            ends = []
            for h in (1e-6, -1e-6):
                changed = jax.tree.map(lambda leaf: leaf, state)
                changed.location.linear[name][...] = at.at[index].add(h)
                ends.append(float(expected(changed)))
            slope[index] = (ends[0] - ends[1]) / 2e-6
        # The gradient of the loss is the negative gradient of the reward.
        np.testing.assert_allclose(-getattr(got, name)[...], slope, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_training_moves_gaze_to_informative_region():
    """Only the lower right is informative; the glimpse, initially at the centre, moves there."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 64).astype(np.int32)
    images = rng.uniform(size=(64, 12, 12)).astype(np.float32)
    images[labels == 1, 7:11, 7:11] += 1
    model = RecurrentAttention(
        2, size=4, num_glimpses=1, hidden_features=16, std=0.25, rngs=nnx.Rngs(0)
    )  # fmt: skip
    graph, state = nnx.split(model)

    @jax.jit
    def descend(state):
        def step(state, key):
            def loss(state):
                model = nnx.merge(graph, state)
                return glimpse_loss(model, images, labels, key=key, num_samples=2).loss

            slope = jax.grad(loss)(state)
            return jax.tree.map(lambda w, g: w - 0.05 * g, state, slope), None

        return jax.lax.scan(step, state, jax.random.split(KEY, 400))[0]

    row, column = np.asarray(nnx.merge(graph, descend(state)).look(images[0]).locations[0])
    assert 0.2 < row < 0.9 and 0.2 < column < 0.9


# Explanations.


def outside_boxes(boxes, shape):
    outside = np.ones(shape, bool)
    for top, left, bottom, right in np.asarray(boxes).reshape(-1, 4):
        outside[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = False
    return outside


@pytest.mark.representatives("lrp")
@pytest.mark.parametrize("method", [ja.gradient, ja.saliency, ja.lrp, ja.input_x_gradient])
def test_attribution_outside_boxes_is_zero(method, x64):
    model = make(size=2)
    values = np.asarray(ja.explain(method, model, IMAGES, LABELS).values)
    for value, boxes in zip(values, model.look(IMAGES).boxes, strict=True):
        outside = outside_boxes(boxes, value.shape)
        assert outside.sum() > 20
        assert not np.any(value[outside])
        assert np.any(value[~outside])


@pytest.mark.slow
def test_relevance_is_conserved(x64):
    model = make()
    found = ja.explain(ja.lrp, model, IMAGES, LABELS, conserve_bias=True)
    scores = np.asarray(model(IMAGES))[np.arange(4), LABELS]
    total = np.asarray(found.values).sum((1, 2)) + found.info["absorbed"]
    np.testing.assert_allclose(total, scores, rtol=0, atol=1e-10)


def test_gradient_is_along_fixed_path(x64):
    model = make()
    path = model.look(IMAGES[0]).locations
    step = np.random.default_rng(0).normal(size=(12, 10))

    def logit(scale):
        return model.look(IMAGES[0] + scale * step, locations=path).logits[-1, 1]

    slope = (logit(1e-6) - logit(-1e-6)) / 2e-6
    got = np.sum(np.asarray(ja.gradient(model, IMAGES[0], 1).values) * step)
    np.testing.assert_allclose(got, slope, rtol=1e-6)


@pytest.mark.slow
def test_locations_are_captured_and_replaced_by_name(x64):
    model = make()
    _, captured = ja.capture(model, "locations")(IMAGES[0])
    np.testing.assert_array_equal(captured["locations"], model.look(IMAGES[0]).locations)
    there = np.array([[0.0, 0.0], [0.5, -0.5], [-1.0, 1.0]])
    redirected = ja.intervene(model, {"locations": there})(IMAGES[0])
    expected = model.look(IMAGES[0], locations=there).logits[-1]
    np.testing.assert_allclose(redirected, expected, atol=1e-12)
    assert np.any(np.abs(redirected - model(IMAGES[0])) > 1e-3)


# Invalid inputs.


def loss(labels=LABELS, **options):
    return glimpse_loss(
        make(jnp.float32), IMAGES.astype(np.float32), labels, key=KEY, **options
    )  # fmt: skip


WRONG = {
    "an image smaller than the glimpse": (
        lambda: make(jnp.float32)(np.zeros((12, 2), np.float32)),
        "at least as large as a glimpse",
    ),
    "a vector": (
        lambda: make(jnp.float32)(np.zeros(12, np.float32)),
        r"`image` must have shape \(\.\.\., H, W\), got \(12,\)",
    ),
    "other channels": (
        lambda: make(jnp.float32, channels=3)(np.zeros((12, 10, 4), np.float32)),
        r"`image` must have shape \(\.\.\., H, W, 3\), got \(12, 10, 4\)",
    ),
    "too few locations": (
        lambda: make(jnp.float32).look(
            np.zeros((12, 10), np.float32), locations=np.zeros((2, 2), np.float32)
        ),
        r"`locations` must have shape \(3, 2\), got \(2, 2\)",
    ),
    "no glimpses": (lambda: make(num_glimpses=0), "`num_glimpses` must be at least 1, got 0"),
    "no size": (lambda: make(size=0), "`size` must be at least 1, got 0"),
    "no scales": (lambda: make(scales=0), "`scales` must be at least 1, got 0"),
    "no channels": (lambda: make(channels=0), "`channels` must be at least 1, got 0"),
    "no units": (lambda: make(hidden_features=0), "`hidden_features` must be at least 1, got 0"),
    "one unit": (lambda: make(hidden_features=1), "`hidden_features` must be at least 2, got 1"),
    "a label past the classes": (
        lambda: loss(labels=LABELS + 1), r"`labels` must lie in \[0, 3\), got 1 to 3",
    ),
    "a label below 0": (
        lambda: loss(labels=LABELS - 1), r"`labels` must lie in \[0, 3\), got -1 to 1",
    ),
    "a loss of no paths": (lambda: loss(num_samples=0), "`num_samples` must be at least 1, got 0"),
    "other paths than asked for": (
        lambda: loss(num_samples=2, locations=np.zeros((1, 4, N, 2), np.float32)),
        r"`locations` must have shape \(2, 4, 3, 2\), got \(1, 4, 3, 2\)",
    ),
    "no paths": (
        lambda: make(jnp.float32).probabilities(
            np.zeros((12, 10), np.float32), key=KEY, num_samples=0
        ),
        "`num_samples` must be at least 1, got 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.representatives(
    "a vector",
    "too few locations",
    "no paths",
    "a label below 0",
    "no scales",
    "one unit",
    "no glimpses",
    "no channels",
    "no size",
    "no units",
)
def test_invalid_inputs_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_non_integer_counts_raise():
    with pytest.raises(TypeError, match=r"`num_glimpses` must be an integer, got 2\.5"):
        make(num_glimpses=2.5)
    with pytest.raises(TypeError, match=r"`num_samples` must be an integer, got 1\.5"):
        loss(num_samples=1.5)


@pytest.mark.slow
def test_traced_labels_are_not_checked():
    found = jax.jit(lambda labels: loss(labels).loss)
    assert np.isfinite(found(LABELS)) and np.isnan(found(LABELS + 1))


@pytest.mark.slow
def test_locations_beyond_the_edge_read_zeros(x64):
    model = make()
    away = np.full((N, 2), 5.0)
    np.testing.assert_array_equal(
        model.look(IMAGES[0], locations=away).logits,
        model.look(0 * IMAGES[0], locations=away).logits,
    )


@pytest.mark.slow
def test_nan_image_outputs_nan():
    broken = IMAGES[:2].astype(np.float32)
    broken[0, 5, 5] = np.nan
    logits = make(jnp.float32)(broken)
    assert np.isnan(logits[0]).all() and np.isfinite(logits[1]).all()
