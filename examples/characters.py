"""Sentences about films as characters, and the network that reads them, in Keras."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from examples import critic

os.environ.setdefault("KERAS_BACKEND", "jax")
import keras  # noqa: E402  # it reads its backend when it is imported

PAD, UNKNOWN = 0, 1
# What editors of Windows wrote into texts of another encoding: dashes, quotation marks.
WINDOWS = {code: bytes([code]).decode("cp1252", "replace") for code in range(0x80, 0xA0)}


class Labelled(NamedTuple):
    """Texts, and for each 1 if it is positive and 0 if it is negative."""

    texts: list[str]
    labels: np.ndarray


def load() -> tuple[Labelled, Labelled]:
    """Sentences of critics, and short ones of the audience, in one spelling of words and marks."""
    critics, audience = critic.load()
    return _joined(critics), _joined(audience)


def _joined(part: critic.Labelled) -> Labelled:
    texts = (" ".join(words) for words in part.sentences)
    texts = [re.sub(r" (?=n't|'\w)", "", text).translate(WINDOWS) for text in texts]
    return Labelled(texts, part.labels)


def vocabulary_of(texts: Sequence[str], least: int) -> dict[str, int]:
    """A number for each character that occurs at least so often."""
    counts = Counter(character for text in texts for character in text)
    known = (character for character, count in counts.most_common() if count >= least)
    return {character: i for i, character in enumerate(known, start=UNKNOWN + 1)}


def encode(texts: Sequence[str], vocabulary: Mapping[str, int], width: int) -> np.ndarray:
    """The ids (B, width) of the last characters of each text, padded on the left.

    A character that is not in the vocabulary is `UNKNOWN`; a text without characters is padding.
    """
    ids = np.full((len(texts), width), PAD, np.int32)
    for row, text in zip(ids, texts, strict=True):
        last = [vocabulary.get(character, UNKNOWN) for character in text[-width:]]
        row[width - len(last) :] = last
    return ids


def keras_network(characters: int, width: int, embedding: int, units: int) -> keras.Model:
    """`jaxattn.models.CharacterClassifier` in Keras: what can be saved and shared by its users."""
    layers = keras.layers
    ids = keras.Input((width,), dtype="int32")
    embedded = layers.Embedding(characters, embedding, name="embedding")(ids)
    states = layers.GRU(units, return_sequences=True, name="gru")(embedded)
    scores = layers.Dense(1, activation="tanh", name="score")(states)
    weights = layers.Activation("softmax", name="attention_vec")(layers.Flatten()(scores))
    summed = layers.Dot(axes=1, name="sum")([weights, states])
    return keras.Model(ids, layers.Dense(1, activation="sigmoid", name="answer")(summed))
