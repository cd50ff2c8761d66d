"""Six small networks on real data, for the pages of methods (`python -m docs.methods`).

Each is trained once, in seconds, and kept in `out/small_networks`. The functions return the
network and the examples that the pages explain.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxattn as ja
from examples import checkpoints, critic, digits as handwriting, heartbeats as beats, series
from examples.descent import descend
from examples.training import stratified_split

# Another number trains the networks again: count up with a change of a network or its training.
FOLDER = Path(__file__).parents[1] / "out" / "small_networks" / "1"
WORDS = 20  # the longest sentences
REVIEWS = {  # 0 for negative and 1 for positive
    "a harmless and mildly amusing family comedy .": 0,
    "this is nothing but familiar territory .": 0,
    "a moving story of determination and the human spirit .": 1,
}


class Setting(NamedTuple):
    """A network and examples from its test data.

    Attributes:
        model: the trained network.
        x: the examples, with a leading axis.
        y: their classes, all of which the network predicts.
        names: a name for each example; for motions of each channel.
        background: examples from the training data.
    """

    model: Any
    x: np.ndarray
    y: np.ndarray
    names: list[str]
    background: np.ndarray


class Review(NamedTuple):
    """A network and sentences from its test data.

    Attributes:
        model: the trained network.
        words: the words of each sentence.
        ids: the token ids of each sentence.
        y: their sentiments, 0 for negative and 1 for positive, all of which the network predicts.
    """

    model: Any
    words: list[list[str]]
    ids: list[np.ndarray]
    y: list[int]


def trained(name: str, model: Any, train: Callable[[Any], None]) -> Any:
    """Return the network with the weights of an earlier run, or train it and keep the weights."""
    folder = FOLDER / name
    if folder.exists():
        return checkpoints.restore(model, folder)
    train(model)
    checkpoints.save(model, folder)
    return model


def cross_entropy(model: Any, key: Any, x: Any, y: Any) -> jax.Array:
    """Return the mean cross-entropy of a batch; an output per step counts at every step."""
    logits = model(x)
    labels = jnp.broadcast_to(y.reshape(len(y), *[1] * (logits.ndim - 2)), logits.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def batches(x: np.ndarray, y: np.ndarray, size: int, epochs: int) -> list[tuple[np.ndarray, ...]]:
    """Return shuffled batches of some epochs."""
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(x))[: len(x) // size * size] for _ in range(epochs)]
    rows = np.concatenate(orders).reshape(-1, size)
    return [(x[part], y[part]) for part in rows]


def recognised(model: Any, x: np.ndarray, y: np.ndarray, classes: tuple[int, ...]) -> np.ndarray:
    """Return the row of the first example of each class that the network recognises."""
    predicted = np.asarray(model(x)).reshape(len(x), -1, np.asarray(model(x[:1])).shape[-1])
    correct = predicted[:, -1].argmax(-1) == y
    return np.array([np.flatnonzero(correct & (y == k))[0] for k in classes])


@functools.cache
def digits() -> Setting:
    """Return a bidirectional LSTM that reads digits (28, 28) row by row, and five digits."""
    model = ja.models.SequenceClassifier(28, 32, 10, bidirectional=True, rngs=nnx.Rngs(0))
    return _digits("digits", model, epochs=4)


@functools.cache
def convolutions() -> Setting:
    """Return a convolutional network on digits (28, 28), and five digits."""
    return _digits("convolutions", Convolutions(rngs=nnx.Rngs(0)), epochs=10)


def _digits(name: str, model: Any, epochs: int) -> Setting:
    x, y = handwriting.load()
    train, test = stratified_split(y, 0.2, seed=0)
    data = batches(x[train], y[train], 64, epochs=epochs)
    trained(name, model, lambda m: descend(m, cross_entropy, data, learning_rate=8e-3))
    rows = test[recognised(model, x[test[:200]], y[test[:200]], (2, 3, 4, 5, 9))]
    return Setting(model, x[rows], y[rows], [f"logit of {k}" for k in y[rows]], x[train[:200]])


class Convolutions(nnx.Module):
    """Three convolutions with ReLUs, a mean over all positions, and a linear layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.second = nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs)
        self.third = nnx.Conv(16, 32, (5, 5), strides=2, rngs=rngs)
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        """Return the logits of digits (..., 28, 28)."""
        h = x[..., None]
        h = nnx.relu(self.first(h))
        h = nnx.relu(self.second(h))
        h = ja.tag(nnx.relu(self.third(h)), "map")  # (7, 7, 32)
        return self.head(h.mean((-3, -2)))


@functools.cache
def heartbeats() -> Setting:
    """Return an LSTM that reads heartbeats (70, 1), every second sample, and one of two classes."""
    x, y = beats.load()
    x, usual = x[:, ::2], np.flatnonzero(y < 2)
    x, y = x[usual], y[usual]
    train, test = stratified_split(y, 0.2, seed=0)
    model = ja.models.SequenceClassifier(1, 16, 2, readout="mean", rngs=nnx.Rngs(0))
    data = batches(x[train], y[train], 64, epochs=4)
    trained("heartbeats", model, lambda m: descend(m, cross_entropy, data, learning_rate=1e-2))
    rows = test[recognised(model, x[test[:200]], y[test[:200]], (0, 1))]
    names = [beats.SHORT[k] for k in y[rows]]
    return Setting(model, x[rows], y[rows], names, x[train[:200]])


@functools.cache
def motions() -> Setting:
    """Return a GRU with logits at each step on motions (50, 3), and one example of each class.

    A smart watch measures the acceleration in three directions at intervals of 0.2 seconds while
    its owner stands, runs, walks or plays badminton. The acceleration is standardised.
    """
    train, test, _ = series.load("BasicMotions")
    xs, others = (part.x[..., :3].reshape(-1, 50, 2, 3).mean(2) for part in (train, test))
    model = ja.models.SequenceClassifier(3, 16, 4, cell="gru", readout="steps", rngs=nnx.Rngs(0))
    data = batches(xs, train.labels, 20, epochs=150)
    trained("motions", model, lambda m: descend(m, cross_entropy, data, learning_rate=1e-2))
    rows = recognised(model, others, test.labels, (0, 1, 2, 3))
    return Setting(model, others[rows], test.labels[rows], ["x", "y", "z"], xs)


@functools.cache
def motion_generator() -> ja.models.FeatureGenerator:
    """Return a generator of the next step of motions, for FIT."""

    def train(generator):
        fitted = ja.models.fit_generator(
            generator, motions().background, key=jax.random.key(0), num_epochs=200, batch_size=20,
            optimizer=optax.adam(5e-3),
        )  # fmt: skip
        nnx.update(generator, nnx.state(fitted.generator, nnx.Param))

    generator = ja.models.FeatureGenerator(
        3, hidden_features=16, latent_features=8, rngs=nnx.Rngs(0)
    )
    return trained("generator", generator, train)


@functools.cache
def reviews() -> Review:
    """Return a bidirectional LSTM that classifies sentences of film reviews, and three of them."""
    data = _sentences()
    return _review("reviews", critic.Critic(data.size, 32, 24, rngs=nnx.Rngs(0)), data)


@functools.cache
def attentive_reviews() -> Review:
    """Return a small transformer that classifies sentences of film reviews, and three of them."""
    data = _sentences()
    return _review("attentive_reviews", Transformer(data.size, 32, rngs=nnx.Rngs(0)), data)


class _Sentences(NamedTuple):
    vocabulary: dict[str, int]
    texts: critic.Texts
    labels: np.ndarray

    @property
    def size(self) -> int:
        return len(self.vocabulary) + 2


@functools.cache
def _sentences() -> _Sentences:
    """Return training sentences of at most 20 words: most of the critics', some of the audience's.

    Each tenth sentence of the critics is left out; `REVIEWS` are among these.
    """
    critics, audience = critic.load()
    pairs = [pair for i, pair in enumerate(zip(*critics, strict=True)) if i % 10]
    pairs += list(zip(*audience, strict=True))[::8]
    pairs = [(words, label) for words, label in pairs if len(words) <= WORDS]
    sentences = [words for words, _ in pairs]
    vocabulary = critic.vocabulary_of(sentences, min_count=5)
    texts = critic.encode(sentences, vocabulary)
    return _Sentences(vocabulary, texts, np.array([label for _, label in pairs], np.int32))


class Block(nnx.Module):
    """Attention with two heads and a layer of units, each beside a residual path."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.rise = nnx.Linear(width, 2 * width, rngs=rngs)
        self.fall = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, h, mask):
        """Return the states (..., T, width) behind the block."""
        h = h + self.attention(self.norms[0](h), mask=mask)
        return h + self.fall(nnx.gelu(self.rise(self.norms[1](h))))


class Transformer(nnx.Module):
    """Two blocks of attention over word embeddings, and a linear layer of the mean state."""

    def __init__(self, words: int, width: int, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.3)
        self.words = nnx.Embed(words, width, embedding_init=small, rngs=rngs)
        self.places = nnx.Embed(WORDS, width, embedding_init=small, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(2)])
        self.head = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, ids, lengths=None, key=None, drop=0.3):
        """Return the logits of ids (..., T); with a key, dropout is applied to embeddings."""
        h = ja.tag(self.words(ids), "embedding")
        if key is not None:
            h = jnp.where(jax.random.bernoulli(key, 1 - drop, h.shape), h / (1 - drop), 0)
        h = h + self.places(jnp.arange(ids.shape[-1]))
        valid = jnp.ones(ids.shape, bool)
        if lengths is not None:
            valid = jnp.arange(ids.shape[-1]) < lengths[..., None]
        for block in self.blocks:
            h = block(h, valid[..., None, None, :])
        total = jnp.where(valid[..., None], h, 0).sum(-2)
        return self.head(total / valid.sum(-1, keepdims=True))


def _review(name: str, model: Any, data: _Sentences) -> Review:
    ids, lengths = jnp.asarray(data.texts.ids[:, :WORDS]), jnp.asarray(data.texts.lengths)

    def loss(model, key, rows, y):
        logits = model(ids[rows], lengths[rows], key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    data_batches = batches(np.arange(len(ids)), data.labels, 128, epochs=4)
    trained(name, model, lambda m: descend(m, loss, data_batches, learning_rate=5e-3))
    words = [review.split() for review in REVIEWS]
    rows = [
        np.array([data.vocabulary.get(word, critic.UNKNOWN) for word in sentence], np.int32)
        for sentence in words
    ]
    return Review(model, words, rows, list(REVIEWS.values()))
