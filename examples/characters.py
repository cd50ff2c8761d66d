"""Sentences about films as characters, and the network that reads them, in Keras."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples import critic, training

os.environ.setdefault("KERAS_BACKEND", "jax")
import keras  # it reads its backend when it is imported

PAD, UNKNOWN = 0, 1
DROP = 0.03  # the share of characters that are unknown in training, so that they can be deleted
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
    """`jaxattn.models.CharacterClassifier` in Keras."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    ids = keras.Input((width,), dtype="int32")
    # As in jaxattn's: with Keras' own, six times smaller, learning starts some 700 steps later.
    wide = keras.initializers.RandomNormal(stddev=embedding**-0.5)
    embedded = layers.Embedding(characters, embedding, wide, name="embedding")(ids)
    states = layers.GRU(units, return_sequences=True, name="gru")(embedded)
    scores = layers.Dense(1, activation="tanh", name="score")(states)
    weights = layers.Activation("softmax", name="attention_vec")(layers.Flatten()(scores))
    summed = layers.Dot(axes=1, name="sum")([weights, states])
    return keras.Model(ids, layers.Dense(1, activation="sigmoid", name="answer")(summed))


def fit_keras(model: keras.Model, batches: Sequence[Any], rate: float) -> None:
    """Minimises the cross-entropy of batches of ids and labels, by Keras' own step."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, len(batches))
    model.compile(keras.optimizers.Adam(schedule, global_clipnorm=1.0), "binary_crossentropy")
    rng = np.random.default_rng(0)
    with training.bar() as progress:
        task = progress.add_task("training with Keras", total=len(batches), note="")
        for ids, labels in batches:
            drop = (rng.random(ids.shape) < DROP) & (ids != PAD)
            loss = model.train_on_batch(np.where(drop, UNKNOWN, ids), labels)
            progress.update(task, advance=1, note=f"mean loss {float(loss):.3f}")


def reloaded(model: keras.Model, path: Path) -> keras.Model:
    """What a file holds, once the model is saved to it."""
    model.save(path)
    return keras.models.load_model(path)
