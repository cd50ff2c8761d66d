"""Tests of the captioner against NumPy equations, and of its losses, searches and relevance."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parameters import with_random_parameters

import jaxattn as ja
from jaxattn import models
from jaxattn.models.caption_loss import word_mask

IMAGE, V, T = (6, 5, 2), 3, 3
GRID = (2, 2)


def make(attention="soft", dtype=jnp.float32, **options):
    """Return a small network with L = 4 positions and clearly non-uniform attention weights."""
    options = {"channels": (3, 4, 3), "hidden_features": 3, "embedding_features": 4} | options
    return with_random_parameters(
        lambda: models.Captioner(
            IMAGE, V, T, attention=attention, attention_units=3, param_dtype=dtype,
            rngs=nnx.Rngs(0), **options,
        ),
        scale=1,
    )  # fmt: skip


def pictures(*batch, dtype=np.float32):
    return np.random.default_rng(0).random((*batch, *IMAGE)).astype(dtype)


WORDS = np.array([2, 1, 0], np.int32)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def expected(model, image, words, positions=None):
    """Compute logits and attention weights step by step in NumPy."""
    memory, state = model.begin(jnp.asarray(image))
    a = np.asarray(memory.annotations)
    h, c = (
        np.tanh(a.mean(0) @ head.kernel[...] + head.bias[...])
        for head in (model.hidden_head, model.cell_head)
    )
    np.testing.assert_allclose(state.hidden, h, rtol=1e-12)
    np.testing.assert_allclose(state.cell, c, rtol=1e-12)
    w = jax.tree.map(np.asarray, model.attention.weights())
    lstm = jax.tree.map(np.asarray, model.lstm.weights())
    table = np.asarray(model.embedding.embedding[...])
    logits, weights = [], []
    for t, before in enumerate([0, *words[:-1]]):
        scores = np.tanh(a @ w.annotation + h @ w.state + w.bias) @ w.score
        alpha = np.exp(scores) / np.exp(scores).sum()
        if model.hard:
            z = a[alpha.argmax() if positions is None else positions[t]]
        else:
            gate = h @ np.asarray(model.attention.gate[...]) + model.attention.gate_bias[...]
            z = sigmoid(gate) * (alpha @ a)
        gates = np.concatenate([table[before], z]) @ lstm.kernel + h @ lstm.recurrent + lstm.bias
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        inner = table[before] + h @ model.say_hidden.kernel[...] + model.say_hidden.bias[...]
        inner = np.tanh(inner + z @ model.say_context.kernel[...])
        logits.append(inner @ model.say.kernel[...] + model.say.bias[...])
        weights.append(alpha)
    return np.array(logits), np.array(weights)


@pytest.mark.representatives("hard-positions1")
@pytest.mark.parametrize("positions", [None, np.array([3, 0, 1])])
@pytest.mark.parametrize("attention", ["soft", "hard"])
def test_read_equals_equations(attention, positions, x64):
    model, image = make(attention, jnp.float64), pictures(dtype=np.float64)
    assert model.grid == GRID
    found = model.read(image, WORDS, positions=positions)
    logits, weights = expected(model, image, WORDS, positions)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-10)
    np.testing.assert_allclose(found.weights.sum(-1), 1, rtol=1e-12)
    np.testing.assert_array_equal(model(image, WORDS), model.read(image, WORDS).logits)
    assert np.ptp(weights) > 0.2  # the weights are not uniform


@pytest.mark.slow
def test_hidden_dropout_rate(x64):
    model, image = make(dtype=jnp.float64), pictures(dtype=np.float64)
    whole = model.read(image, WORDS)
    forgetful = nnx.clone(model)
    forgetful.say_hidden.kernel[...] *= 0
    forgetful.say_hidden.bias[...] *= 0
    without = forgetful.read(image, WORDS).logits
    assert np.abs(whole.logits - without).max(1).min() > 1e-3
    dropped = []
    for key in jax.random.split(jax.random.key(0), 40):
        found = model.read(image, WORDS, key=key, hidden_dropout=0.25)
        np.testing.assert_array_equal(found.weights, whole.weights)
        match = [np.abs(found.logits - logits).max(1) < 1e-12 for logits in (whole.logits, without)]
        assert (match[0] ^ match[1]).all()
        dropped.append(match[1])
    assert abs(np.mean(dropped) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 120)
    np.testing.assert_array_equal(model.read(image, WORDS, hidden_dropout=1.0).logits, whole.logits)


@pytest.mark.slow
def test_positions_are_independent_of_hidden_dropout():
    model, image, count = make("hard"), pictures(), 4000
    keys = jax.random.split(jax.random.key(0), count)
    drawn = jax.vmap(lambda key: model.read(image, WORDS, key=key, hidden_dropout=0.5))(keys)
    whole = jax.vmap(lambda places: model.read(image, WORDS, positions=places))(drawn.positions)
    kept = np.abs(drawn.logits - whole.logits).max(-1) < 1e-4
    for places, step in itertools.product(np.asarray(drawn.positions).T, range(T)):
        for place in range(4):
            here = kept[places == place, step]
            assert abs(here.sum() - len(here) / 2) < 2.25 * np.sqrt(len(here)) + 1e-9


@pytest.mark.slow
def test_soft_attention_draws_no_positions():
    model, image = make(), pictures()
    read = model.read(image, WORDS, key=jax.random.key(0), hidden_dropout=0.5)
    np.testing.assert_array_equal(read.positions, read.weights.argmax(-1))


@pytest.mark.slow
def test_annotation_receptive_fields_are_centred():
    model = models.Captioner((32, 32, 1), V, T, channels=(4, 4, 4), rngs=nnx.Rngs(0))
    blank = model.begin(jnp.zeros((32, 32, 1)))[0].annotations
    assert model.grid == (8, 8)

    def receptive_field(row, column):
        """Return the cells whose annotation depends on the central 2 x 2 pixels of a cell."""
        here = np.s_[4 * row + 1 : 4 * row + 3, 4 * column + 1 : 4 * column + 3]
        image = jnp.zeros((32, 32, 1)).at[here].set(1)
        change = np.abs(model.begin(image)[0].annotations - blank).sum(-1)
        return np.argwhere(change.reshape(8, 8) > 0)

    corners = receptive_field(4, 2)
    np.testing.assert_array_equal(corners.min(0), [3, 1])
    np.testing.assert_array_equal(corners.max(0), [5, 3])
    np.testing.assert_array_equal(receptive_field(0, 7).max(0), [1, 7])


@pytest.mark.parametrize("attention", ["soft", "hard"])
@pytest.mark.slow
def test_batches_equal_single_images(attention):
    model, images = make(attention), pictures(2, 2)
    words = np.array([[[1, 2, 0], [0, 0, 0]], [[2, 2, 1], [1, 0, 0]]], np.int32)
    batched = nnx.jit(lambda model, *args: model.read(*args))(model, images, words)
    assert batched.logits.shape == (2, 2, T, V)
    for i in np.ndindex(2, 2):
        for a, b in zip(batched, model.read(images[i], words[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_weights_are_captured_by_name():
    model, image = make(), pictures()
    out, captured = ja.capture(model, "attention")(image, WORDS)
    np.testing.assert_allclose(captured["attention"], model.read(image, WORDS).weights, atol=1e-6)
    even = ja.intervene(model, {"attention": np.full(4, 0.25, np.float32)})(image, WORDS)
    assert np.abs(even - out).max() > 1e-4


def test_word_mask_ends_at_first_end_token():
    words = np.array([[1, 2, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0]])
    want = [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    np.testing.assert_array_equal(word_mask(words), np.array(want, bool))


def log_likelihood(logits, words):
    steps = [*words].index(0) + 1 if 0 in words else len(words)
    logits = np.asarray(logits)
    normalised = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return sum(normalised[t, words[t]] for t in range(steps)), steps


@pytest.mark.slow
def test_soft_loss_is_sum_of_terms(x64):
    model, images = make(dtype=jnp.float64), pictures(2, dtype=np.float64)
    words = np.array([[2, 0, 0], [1, 2, 1]], np.int32)
    reading = model.read(images, words)
    likelihood, steps = zip(*map(log_likelihood, reading.logits, words), strict=True)
    assert steps == (2, 3)
    weights = [np.asarray(w)[:n] for w, n in zip(reading.weights, steps, strict=True)]
    penalty = [((1 - w.sum(0)) ** 2).sum() for w in weights]
    loss = models.soft_caption_loss(model, images, words, penalty=0.3)
    np.testing.assert_allclose(loss.log_likelihood, np.mean(likelihood), rtol=1e-12)
    np.testing.assert_allclose(loss.penalty, np.mean(penalty), rtol=1e-12)
    np.testing.assert_allclose(loss.entropy, np.mean([-(w * np.log(w)).sum() for w in weights]))
    np.testing.assert_allclose(loss.value, 0.3 * np.mean(penalty) - np.mean(likelihood))


@pytest.fixture(scope="module")
def enumerated():
    """Enumerate all position sequences of hard attention for its exact gradient.

    Returns a dict of the network, image and caption; all sequences of positions (N, T), their
    probabilities (N,) and log-likelihoods (N,); the gradient of the expected log-likelihood, flat
    (P,); and the gradients of the log-likelihood and log-probability of each sequence (N, P).
    """
    with jax.enable_x64(True):
        model, image = make("hard", jnp.float64), pictures(dtype=np.float64)
        graph, state = nnx.split(model)
        flat, unravel = jax.flatten_util.ravel_pytree(state)
        places = np.array(list(itertools.product(range(4), repeat=2)), np.int32)
        words = np.array([2, 0], np.int32)

        def logs(flat, places):
            read = nnx.merge(graph, unravel(flat)).read(image, words, positions=places)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(read.logits), words[:, None], 1)
            drawn = jnp.take_along_axis(read.weights, places[:, None].astype(jnp.int32), 1)
            return chosen.sum(), jnp.log(drawn).sum()

        def expectation(flat):
            likelihood, prior = jax.vmap(logs, (None, 0))(flat, places)
            return (jnp.exp(prior) * likelihood).sum()

        likelihood, prior = jax.vmap(logs, (None, 0))(flat, places)
        slopes = jax.vmap(jax.jacrev(logs), (None, 0))(flat, places)
        return {
            "model": model, "image": image, "words": words, "places": places,
            "probability": np.exp(prior), "likelihood": np.asarray(likelihood),
            "exact": np.asarray(jax.grad(expectation)(flat)),
            "of_likelihood": np.asarray(slopes[0]), "of_prior": np.asarray(slopes[1]),
        }  # fmt: skip


@pytest.mark.slow
def test_hard_estimator_is_unbiased_for_every_baseline(enumerated):
    found = enumerated
    assert found["probability"].sum() == pytest.approx(1, rel=1e-12)
    for baseline in (0.0, -3.0, 10.0):
        advantage = (found["likelihood"] - baseline)[:, None]
        each = found["of_likelihood"] + advantage * found["of_prior"]
        mean = found["probability"] @ each
        np.testing.assert_allclose(mean, found["exact"], rtol=1e-9, atol=1e-12)


def estimates(found, count, **options):
    """Compute the negative gradient of the loss for `count` keys, shape (count, P)."""
    graph, state = nnx.split(found["model"])
    flat, unravel = jax.flatten_util.ravel_pytree(state)

    def slope(key):
        def value(flat):
            return models.hard_caption_loss(
                nnx.merge(graph, unravel(flat)), found["image"][None], found["words"][None],
                key=key, **options,
            ).value  # fmt: skip

        return -jax.grad(value)(flat)

    return np.asarray(jax.jit(jax.vmap(slope))(jax.random.split(jax.random.key(0), count)))


@pytest.mark.slow
def test_hard_loss_samples_are_enumerated(enumerated, x64):
    found = enumerated
    advantage = (found["likelihood"] + 1.5)[:, None]
    each = found["of_likelihood"] + 0.7 * advantage * found["of_prior"]
    got = estimates(
        found, 60, baseline=-1.5, score_weight=0.7, entropy_weight=0.0, expected_share=0.0
    )
    distance = np.abs(got[:, None] - each[None]).max(-1)
    assert (distance.min(1) < 1e-9).all()
    assert len(set(distance.argmin(1))) >= 5


@pytest.mark.slow
def test_mean_hard_gradient_equals_enumeration(enumerated, x64):
    found, count = enumerated, 20_000
    got = estimates(found, count, baseline=-1.5, entropy_weight=0.0, expected_share=0.0)
    error = got.std(0, ddof=1) / np.sqrt(count)
    z = (got.mean(0) - found["exact"])[error > 1e-12] / error[error > 1e-12]
    assert np.abs(z).max() < 5
    assert 0.5 < np.sqrt((z**2).mean()) < 1.5
    np.testing.assert_allclose(
        got.mean(0)[error <= 1e-12], found["exact"][error <= 1e-12], atol=1e-10
    )
    # The gradient of the log-likelihood alone differs from the exact gradient.
    alone = found["probability"] @ found["of_likelihood"]
    assert np.abs(alone - found["exact"]).max() > 10 * error.max()


@pytest.mark.slow
def test_hard_loss_entropy_gradient(enumerated, x64):
    got = [
        estimates(enumerated, 40, entropy_weight=w, score_weight=0.0, expected_share=0.0)
        for w in (0.0, 0.5)
    ]
    model = enumerated["model"]
    graph, state = nnx.split(model)
    flat, unravel = jax.flatten_util.ravel_pytree(state)

    def entropy(flat, places):
        read = nnx.merge(graph, unravel(flat)).read(
            enumerated["image"], enumerated["words"], positions=places
        )
        return -(read.weights * jnp.log(read.weights)).sum()

    each = 0.5 * np.asarray(jax.vmap(jax.grad(entropy), (None, 0))(flat, enumerated["places"]))
    distance = np.abs((got[1] - got[0])[:, None] - each[None]).max(-1)
    assert (distance.min(1) < 1e-9).all()


@pytest.mark.slow
def test_expected_positions_use_weighted_annotations(x64):
    model, image = make("hard", jnp.float64), pictures(1, dtype=np.float64)
    words = WORDS[None]

    def loss(model, **options):
        return models.hard_caption_loss(model, image, words, key=jax.random.key(3), **options)

    found = loss(model, expected_share=1.0, entropy_weight=0.0)
    read = model.read(image, words, expected=np.ones(1, bool))
    np.testing.assert_allclose(found.value, -log_likelihood(read.logits[0], WORDS)[0], rtol=1e-12)
    # The baseline affects the gradient only if positions are sampled.
    for share, same in ((1.0, True), (0.0, False)):
        slopes = [
            jax.grad(lambda m, b=b, s=share: loss(m, baseline=b, expected_share=s).value)(model)
            for b in (0.0, 5.0)
        ]
        change = np.abs(slopes[0].attention.score[...] - slopes[1].attention.score[...]).max()
        assert (change < 1e-12) == same


@pytest.mark.slow
def test_hard_loss_includes_penalty(x64):
    model, image = make("hard", jnp.float64), pictures(1, dtype=np.float64)
    plain, paid = (
        models.hard_caption_loss(model, image, WORDS[None], key=jax.random.key(3), penalty=p)
        for p in (0.0, 0.3)
    )
    assert paid.penalty > 0.01
    np.testing.assert_allclose(paid.value - plain.value, 0.3 * paid.penalty, rtol=1e-10)


def test_moving_baseline_rate():
    assert float(models.moving_baseline(-2.0, -12.0)) == pytest.approx(-3.0)


def every_caption(model, image):
    """Return all captions with their log-probabilities."""
    found = {}
    for words in itertools.product(range(V), repeat=T):
        end = words.index(0) + 1 if 0 in words else T
        found[words[:end] + (0,) * (T - end)] = None
    ids = np.array(list(found), np.int32)
    logits = jax.vmap(model, (None, 0))(image, ids)
    return {tuple(w): log_likelihood(x, w)[0] for w, x in zip(ids.tolist(), logits, strict=True)}


@pytest.mark.parametrize("attention", ["soft", "hard"])
@pytest.mark.slow
def test_wide_beam_returns_most_likely_captions(attention, x64):
    model, image = make(attention, jnp.float64), pictures(dtype=np.float64)
    every = every_caption(model, image)
    assert len(every) == 1 + 2 + 4 * 3 and sum(map(np.exp, every.values())) == pytest.approx(1)
    best = sorted(every, key=every.get)[::-1]
    found = models.beam_captions(model, image, width=20)
    assert [tuple(w) for w in found.words[:15].tolist()] == best
    np.testing.assert_allclose(found.log_prob[:15], [every[w] for w in best], rtol=1e-10)
    np.testing.assert_array_equal(found.log_prob[15:], -np.inf)


@pytest.mark.slow
def test_beam_search_returns_attention_weights():
    model, image = make(), pictures()
    found = models.beam_captions(model, image, width=4)
    for words, weights in zip(found.words, found.weights, strict=True):
        kept = np.asarray(word_mask(words))
        want = model.read(image, words).weights
        np.testing.assert_allclose(weights[kept], want[kept], atol=1e-6)
        np.testing.assert_array_equal(weights[~kept], 0)
    # At least one caption ends early.
    assert not all(np.asarray(word_mask(found.words)).all(1))


@pytest.mark.slow
def test_greedy_caption_is_argmax_at_each_step():
    model, images = make("hard"), pictures(2, 3)
    found = nnx.jit(models.greedy_caption)(model, images)
    logits = model(images, found.words)
    kept = np.asarray(word_mask(found.words))
    np.testing.assert_array_equal(found.words[kept], logits.argmax(-1)[kept])
    assert found.weights.shape == (2, 3, T, 4)
    for i in np.ndindex(2, 3):
        want = log_likelihood(logits[i], found.words[i].tolist())[0]
        assert float(found.log_prob[i]) == pytest.approx(want, abs=1e-5)


@pytest.mark.slow
def test_beam_is_at_least_as_likely_as_greedy():
    model, images = make(), pictures(8)
    greedy = models.greedy_caption(model, images).log_prob
    assert (models.beam_captions(model, images, width=3).log_prob[:, 0] >= greedy - 1e-6).all()


@pytest.mark.parametrize("attention", ["soft", "hard"])
@pytest.mark.slow
def test_word_relevance_is_conserved(attention, x64):
    model, images = make(attention, jnp.float64), pictures(2, dtype=np.float64)
    words = np.stack([WORDS, WORDS])
    found = ja.explain(ja.lrp, model, images, (1, 2), args=(words,), conserve_bias=True)
    scores = model(images, words)[:, 1, 2]
    total = found.values.sum((1, 2, 3)) + found.info["absorbed"]
    np.testing.assert_allclose(total, scores, rtol=1e-8)
    assert np.abs(found.values).max() > 1e-6
    slope = ja.explain(ja.gradient, model, images, (1, 2), args=(words,)).values
    step = 1e-6 * np.random.default_rng(1).normal(size=images.shape)
    rise = (model(images + step, words) - model(images - step, words))[:, 1, 2] / 2
    np.testing.assert_allclose((slope * step).sum((1, 2, 3)), rise, rtol=1e-4)


@pytest.mark.parametrize(
    ("image", "words", "error", "message"),
    [
        ((6, 6, 2), [1, 0], ValueError, "`image` must have shape (..., 6, 5, 2), got (6, 6, 2)"),
        (IMAGE, [1, 2, 1, 0], ValueError, "`words` must hold 1 to 3 words per caption"),
        (IMAGE, [[1, 0]], ValueError, "`words` must have shape ('T',) for these images"),
        ((2, *IMAGE), [[1, 0]], ValueError, "`words` must have shape (2, 'T')"),
        (IMAGE, [1, 3], ValueError, "`words` must lie in 0 to 2, got 1 to 3"),
        (IMAGE, [-1, 0], ValueError, "`words` must lie in 0 to 2, got -1 to 0"),
        (IMAGE, [1.0, 0.0], TypeError, "`words` must be integers"),
    ],
)
def test_invalid_inputs_raise(image, words, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()(np.zeros(image, np.float32), np.array(words))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"positions": np.array([99, 0, 1])}, ValueError, "`positions` must lie in 0 to 3, got 0"),
        ({"positions": np.array([-1, 0, 1])}, ValueError, "`positions` must lie in 0 to 3, got -1"),
        ({"positions": np.array([0, 1])}, ValueError, "`positions` must have shape (3,)"),
        ({"positions": np.zeros(3)}, TypeError, "`positions` must be of dtype integer, got float"),
        ({"expected": np.ones(2, bool)}, ValueError, "`expected` must have shape ()"),
        ({"expected": np.array(1)}, TypeError, "`expected` must be of dtype bool"),
        ({"hidden_dropout": 1.5}, ValueError, "`hidden_dropout` must lie in 0 to 1, got 1.5"),
        ({"hidden_dropout": np.nan}, ValueError, "`hidden_dropout` must lie in 0 to 1, got nan"),
    ],
)
def test_invalid_read_options_raise(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make("hard").read(pictures(), WORDS, **options)


@pytest.mark.parametrize("width", [0, -1])
def test_beam_width_below_one_raises(width):
    with pytest.raises(ValueError, match=f"`width` must be at least 1, got {width}"):
        models.beam_captions(make(), pictures(), width=width)


def test_search_on_other_image_shape_raises():
    with pytest.raises(ValueError, match=re.escape("`image` must have shape (..., 6, 5, 2)")):
        models.greedy_caption(make(), np.zeros((5, 6, 2), np.float32))


def test_hard_loss_requires_hard_attention():
    with pytest.raises(ValueError, match="`model` must have hard attention, got soft"):
        models.hard_caption_loss(make(), pictures(1), WORDS[None], key=jax.random.key(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "firm"}, "`attention` must be 'soft' or 'hard', got 'firm'"),
        ({"channels": ()}, "`channels` must be of at least one convolution"),
        ({"embedding_features": 0}, "`embedding_features` must be at least 1, got 0"),
        ({"hidden_features": 0}, "`hidden_features` must be at least 1, got 0"),
    ],
)
def test_invalid_sizes_raise(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**options)
