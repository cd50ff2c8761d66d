"""Film reviews as characters, and a Keras network that classifies their sentiment."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples import critic, training

os.environ.setdefault("KERAS_BACKEND", "jax")
import keras  # after KERAS_BACKEND is set

PAD, UNKNOWN = 0, 1
# Fraction of characters replaced by UNKNOWN in training; deletion replaces characters by it, too.
DROP = 0.03
# Dashes and quotation marks of the encoding Windows-1252 in texts of another encoding.
WINDOWS = {code: bytes([code]).decode("cp1252", "replace") for code in range(0x80, 0xA0)}


class Labelled(NamedTuple):
    """Texts and labels (B,): 1 for positive, 0 for negative."""

    texts: list[str]
    labels: np.ndarray


def load() -> tuple[Labelled, Labelled]:
    """Return sentences of critics and short sentences of the audience, in a uniform spelling."""
    critics, audience = critic.load()
    return _joined(critics), _joined(audience)


def _joined(part: critic.Labelled) -> Labelled:
    texts = (" ".join(words) for words in part.sentences)
    texts = [re.sub(r" (?=n't|'\w)", "", text).translate(WINDOWS) for text in texts]
    return Labelled(texts, part.labels)


def vocabulary_of(texts: Sequence[str], min_count: int) -> dict[str, int]:
    """Return an id for each character that occurs at least `min_count` times."""
    counts = Counter(character for text in texts for character in text)
    frequent = (character for character, count in counts.most_common() if count >= min_count)
    return {character: i for i, character in enumerate(frequent, start=UNKNOWN + 1)}


def encode(texts: Sequence[str], vocabulary: Mapping[str, int], width: int) -> np.ndarray:
    """Return the ids of the last characters of each text, padded on the left, (B, width).

    Characters outside of the vocabulary become `UNKNOWN`.
    """
    ids = np.full((len(texts), width), PAD, np.int32)
    for row, text in zip(ids, texts, strict=True):
        suffix = [vocabulary.get(character, UNKNOWN) for character in text[-width:]]
        row[width - len(suffix) :] = suffix
    return ids


def keras_network(characters: int, width: int, embedding: int, units: int) -> keras.Model:
    """Return `jaxattn.models.CharacterClassifier` as a Keras model."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    ids = keras.Input((width,), dtype="int32")
    # As in jaxattn. With Keras' default, six times smaller, the loss falls some 700 steps later.
    initializer = keras.initializers.RandomNormal(stddev=embedding**-0.5)
    embedded = layers.Embedding(characters, embedding, initializer, name="embedding")(ids)
    hidden_states = layers.GRU(units, return_sequences=True, name="gru")(embedded)
    scores = layers.Dense(1, activation="tanh", name="score")(hidden_states)
    weights = layers.Activation("softmax", name="attention_vec")(layers.Flatten()(scores))
    context = layers.Dot(axes=1, name="sum")([weights, hidden_states])
    return keras.Model(ids, layers.Dense(1, activation="sigmoid", name="answer")(context))


def fit_keras(model: keras.Model, batches: Sequence[Any], rate: float) -> None:
    """Minimize the cross-entropy of batches of ids and labels with `train_on_batch`."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, len(batches))
    model.compile(keras.optimizers.Adam(schedule, global_clipnorm=1.0), "binary_crossentropy")
    rng = np.random.default_rng(0)
    with training.bar() as progress:
        task = progress.add_task("training with Keras", total=len(batches), note="")
        for ids, labels in batches:
            drop = (rng.random(ids.shape) < DROP) & (ids != PAD)
            loss = model.train_on_batch(np.where(drop, UNKNOWN, ids), labels)
            progress.update(task, advance=1, note=f"mean loss {float(loss):.3f}")


def save_and_load(model: keras.Model, path: Path) -> keras.Model:
    """Save a model and return the model loaded from the file."""
    model.save(path)
    return keras.models.load_model(path)


def accuracy(positive: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of correct predictions."""
    return float(((positive > 0.5) == labels).mean())


def attention_facts(weights: np.ndarray, ids: np.ndarray) -> list[str]:
    """Return the deviation of the sums from 1, the share on padding, and the ratio of weights."""
    off = np.abs(weights.sum(1) - 1).max()
    padding = np.where(ids == PAD, weights, 0).sum(1).mean()
    ratio = (weights.max(1) / weights.min(1)).mean()
    return [f"{off:.0e}", f"{padding:.0%}", f"{ratio:.1f}"]
