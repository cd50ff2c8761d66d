"""A network translates dates to ISO 8601: where does it look, and does that explain what it writes?

Dates in many languages and formats, by babel and faker, are read by a bidirectional LSTM, and
written by a decoder with attention. What each written digit must be read from is known, so that
attention can be judged as an explanation (`python -m examples.date_translation`).
"""

import argparse
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from rich.console import Console

import jaxattn as ja
from examples import alignment, checkpoints, dates, gallery
from examples.alignment import (
    DELETED,
    DIGITS,
    Table,
    Translated,
    aligned,
    alignment_table,
    findings,
    judged,
    percent,
    verdict,
)
from examples.dates import LABELS, SAYS, UNKNOWN, WRITTEN, Dated, Texts
from examples.descent import descend
from jaxattn import plot

ODD = "January 2016 5"
UNUSUAL = {
    ODD: date(2016, 1, 5),
    "2016 January 5": date(2016, 1, 5),
    "Saturday 3 May 2016": date(2016, 5, 3),  # it was a Tuesday
    "3 May 1979": date(1979, 5, 3),
    "5 Apr 09": date(2009, 4, 5),
    "20th February 2016": date(2016, 2, 20),
    "Wed 10 Jul 2007": date(2007, 7, 10),
    "March 3rd 2001": date(2001, 3, 3),
    "the 12 of August, 1996": date(1996, 8, 12),
}
SHOWN = (("en_US", "full"), ("en_GB", "d MMMM YYY"), ("fr", "full"), ("ru", "long"))
JUDGED = 200  # of how many dates of a format it is asked whether they are ambiguous


def fit(
    model: ja.models.Translator,
    texts: Texts,
    labels: np.ndarray,
    *,
    epochs: int,
    learning_rate: float,
    lost: float = 0.02,
    batch_size: int = 64,
) -> None:
    """Minimises the cross-entropy; what is fed back is the network's own soft prediction.

    A few characters are lost, so that the network has met one that it does not know.
    """

    def loss(model, key, ids, lengths, labels):
        kept = jax.random.bernoulli(key, 1 - lost, ids.shape)
        logits = model(alignment.one_hot(model, jnp.where(kept, ids, UNKNOWN)), lengths)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    rng = np.random.default_rng(0)
    size = min(batch_size, len(labels))
    plan = []
    for _ in range(epochs):
        # Texts of similar lengths together, in random order.
        order = np.argsort(texts.lengths + rng.uniform(0, 4, len(labels)))
        plan += [*rng.permutation(order[: len(order) // size * size].reshape(-1, size))]
    data = [(*texts.take(rows), labels[rows]) for rows in plan]
    descend(model, loss, data, learning_rate=learning_rate)


def exact(found: Translated, isos: np.ndarray) -> np.ndarray:
    """Whether all of the 11 characters that mean something are right, (B,)."""
    return (found.labels[:, :WRITTEN] == isos).all(1)


def accuracies(test: Sequence[Dated], right: np.ndarray, locales: Sequence[str]) -> Table:
    """Exact matches by format, in English and in all languages."""
    english = np.array([dated.locale.startswith("en") for dated in test])
    rows = []
    for form in dict.fromkeys(dates.FORMATS):
        these = np.array([dated.format == form for dated in test])
        some = [test[i].text for i in np.flatnonzero(these)[:JUDGED]]
        ambiguous = np.array([len(dates.readings(text, locales)) > 1 for text in some])
        rows.append([
            form, dates.written(date(2016, 5, 3), form, "en_US")[0],
            percent(right[these & english]), percent(right[these]), f"{these.sum():,}",
            percent(ambiguous),
        ])  # fmt: skip
    long = np.array([dated.english_long for dated in test])
    rows.append(["English long forms", "", percent(right[long]), "", f"{long.sum():,}", ""])
    rows.append(["all", "", percent(right[english]), percent(right), f"{len(test):,}", ""])
    return ["format", "example", "English", "all languages", "dates", "ambiguous"], rows


def unusual(found: Translated) -> tuple[Table, str]:
    """What the network makes of texts that are not like those it learnt from."""
    rows = []
    for i, (text, day) in enumerate(UNUSUAL.items()):
        looked = "".join(
            "-" if says == "." else [*text.replace(" ", "␣"), LABELS[dates.END]][j]
            for says, j in zip(SAYS[:-1], found.attention[i].argmax(-1), strict=False)
        )
        said = dates.read(found.labels[i])
        rows.append([text, day.isoformat(), said, "yes" if said == str(day) else "no", looked])
    _, _, said, right, _ = rows[list(UNUSUAL).index(ODD)]
    year = found.attention[0, 8:10, ODD.index("2016") : ODD.index("2016") + 4].sum(-1).mean()
    day = found.attention[0, 8:10, len(ODD) - 1].mean()
    judgement = "rightly" if right == "yes" else "wrongly"
    story = (
        f"“{ODD}” is translated {judgement} to {said}: the digits of the day look at the 5 with "
        f"{day:.0%} of their attention, and at the year with {year:.0%}."
    )
    if right == "no":
        story += f" The map {'shows' if year > 0.5 else 'does not show'} this mistake."
    return (["text", "means", "is written", "right", "each digit looks most at"], rows), story


def main(
    out: str | Path = "out/date_translation",
    *,
    full: bool = False,
    learnt: int | None = None,
    tested: int = 4000,
    epochs: int | None = None,
    units: int | None = None,
    explained: int = 100,
    least_accuracy: float = 0.97,
) -> Path:
    """Trains, tests on other days, explains English dates, and writes the page."""
    matplotlib.use("Agg")
    console = Console()
    learnt, units = learnt or (100_000 if full else 20_000), units or (256 if full else 64)
    epochs, length = epochs or (5 if full else 12), dates.LONGEST if full else WRITTEN
    locales = dates.every_locale() if full else dates.LOCALES
    train, test = dates.load(learnt, tested, locales)
    vocabulary = dates.vocabulary_of(dated.text for dated in train)
    texts, test_texts = (
        dates.encode([d.text for d in some], vocabulary) for some in (train, test)
    )  # fmt: skip
    model = ja.models.Translator(
        len(vocabulary) + UNKNOWN + 1, units, len(LABELS), output_length=length, rngs=nnx.Rngs(0)
    )
    labels = dates.labels_of([dated.day for dated in train], length)
    rate = 1e-3 if full else 4e-3
    fit(model, texts, labels, epochs=epochs, learning_rate=rate)
    checkpoints.save(model, Path(out) / "checkpoint")

    found = alignment.translate(model, test_texts)
    isos = dates.labels_of([dated.day for dated in test])
    right = exact(found, isos)
    long = np.array([dated.english_long for dated in test])
    reached = right[long].mean()
    console.print(f"English long dates of other days, translated exactly: [bold]{reached:.1%}")
    if reached < least_accuracy:
        raise SystemExit(f"the network reached {reached:.1%}, wanted {least_accuracy:.0%}")

    every = len(set(locales))
    page = gallery.Gallery(
        out,
        "Where a translator of dates looks",
        [
            "A bidirectional LSTM reads a date, one character after the other, and a decoder with "
            f"attention writes it as numbers; both have {units} units (published: 256). It learnt "
            f"from {len(train):,} dates that babel and faker wrote in {len(dates.FORMATS)} formats "
            f"and {every} languages and regions, half of them all in capitals or all in small "
            f"letters. It writes {length} characters (published: 50, as many as the padded text "
            "has), of which 11 mean something: the date and the end, ⏎.",
            f"On days that it has never seen, {reached:.1%} of the English long forms are right in "
            "every character.",
        ],
    )
    tables = {"Exact matches on other days": accuracies(test, right, locales)}
    on_maps(page, test, test_texts, found, right)
    page.table(
        "accuracy", "How often is it right?", *tables["Exact matches on other days"],
        f"The share of {len(test):,} dates, of days it did not learn from, whose 11 characters are "
        "all right. Short dates in numbers mean different days in different places: the last "
        f"column is the share, among the first {JUDGED} of a format in all languages, of texts "
        "that somebody else writes for another day. No network can know which is meant. One "
        "format counts twice among the 15, as published; the few dates around New Year are left "
        "out for which YYY, the year of the week, says another year.",
        strong="English long forms",
    )  # fmt: skip
    of_english, of_all = (
        aligned(
            Translated(*(array[rows] for array in found)),
            [test[i] for i in rows],
            test_texts.lengths[rows],
        )
        for rows in (np.flatnonzero(right & long), np.flatnonzero(right))
    )
    tables["Attention and the known alignment"] = alignment_table(of_english, of_all)
    page.table(
        "alignment", "Does it look at what says the digit?",
        *tables["Attention and the known alignment"],
        "Each written digit must be read from the year, the month or the day in the text. The "
        "first number is how much of the digit's attention lies there, the second what an even "
        "spread would give. The alignment error is the share of dates in which the digit's largest "
        "weight lies somewhere else; the next number allows the two characters behind, where the "
        "LSTM has just read the word. These are English long forms; the last two numbers are of "
        "all languages and formats. Over all digits attention puts "
        f"{of_english.on.mean():.0%} on the right place, "
        f"{of_english.on.mean() / of_english.chance.mean():.1f} times chance. Dates that are "
        "translated wrongly are left out.", strong="all digits",
    )  # fmt: skip

    chosen = np.flatnonzero(right & long)
    kept, kept_texts = [test[i] for i in chosen], Texts(*(a[chosen] for a in test_texts))
    kept_found = Translated(*(a[chosen] for a in found))
    tables["One part swapped"] = findings(model, vocabulary, kept, kept_texts, kept_found)
    page.table(
        "findings", "What decides what?", *tables["One part swapped"],
        f"In {len(kept)} English long dates, translated rightly, one part is replaced by another "
        "of its kind. How much of the text it is; how much of the attention of its own digits, and "
        "of the others, lies on it; how often its digits then say the new thing, and how often all "
        "others stay as they were. The day of the week should change nothing.",
    )  # fmt: skip
    on_unusual(page, model, vocabulary, tables)
    on_methods(page, model, kept[:explained], kept_texts.take(np.arange(len(kept))[:explained]),
               tables)  # fmt: skip
    path = page.write()
    for title, table in tables.items():
        gallery.show(console, title, *table)
    console.print(*page.about[2:], sep="\n", soft_wrap=True)
    console.print(f"The page is at [bold]{path.resolve()}", soft_wrap=True)
    return path


def draw_map(ax: plt.Axes, text: str, found: Translated, i: int, marks=None) -> None:
    width = len(text) + 1
    plot.attention(
        found.attention[i, :WRITTEN, :width], [*text, LABELS[dates.END]],
        [LABELS[label] or "·" for label in found.labels[i, :WRITTEN]], marks=marks,
        title=f"{text}  →  {dates.read(found.labels[i])}", ax=ax,
    )  # fmt: skip


def on_maps(
    page: gallery.Gallery, test: Sequence[Dated], texts: Texts, found: Translated, right: np.ndarray
) -> None:
    """Attention maps of some dates."""
    of_right = np.flatnonzero(right)
    rows = [
        next((i for i in of_right if (test[i].locale, test[i].format) == kind), of_right[0])
        for kind in SHOWN
    ]
    _, axes = plt.subplots(2, 2, figsize=(15, 8.5), layout="constrained")
    for ax, i in zip(axes.flat, rows, strict=True):
        draw_map(ax, test[i].text, found, i, dates.gold(test[i]))
    page.figure(
        "attention", "Where it looks", axes,
        "One panel for each date: what is read runs across, what is written runs down. The darker "
        "a cell, the more the network looks at that character when it writes this one; every row "
        "sums to 1. The red frames are around what says the digit: year, month and day.",
        alt="Attention matrices of four dates, written digits down and read characters across.",
    )  # fmt: skip


def on_unusual(
    page: gallery.Gallery, model: ja.models.Translator, vocabulary: Mapping[str, int],
    tables: dict[str, Table],
) -> None:  # fmt: skip
    """The tutorials' strange dates."""
    found = alignment.translate(model, dates.encode(list(UNUSUAL), vocabulary))
    table, story = unusual(found)
    tables["Unusual dates"] = table
    page.about.append(story)
    _, axes = plt.subplots(1, 2, figsize=(15, 4.5), layout="constrained")
    for i, ax in zip((0, 2), axes, strict=True):
        draw_map(ax, list(UNUSUAL)[i], found, i)
    page.figure(
        "odd", "Dates that nobody writes like this", axes,
        f"As above, for an order that it has never met, and for a wrong day of the week. {story}",
        alt="Attention matrices of two unusual dates.",
    )  # fmt: skip
    page.table(
        "unusual", "More of them", *table,
        "In English, words such as “20th”, and the year before a month's name in Latin letters, "
        "are not in what it learnt from. The last column holds, for each written digit, the "
        "character at which it looks most; ␣ is a space and ⏎ the end.",
    )  # fmt: skip


def on_methods(
    page: gallery.Gallery, model: ja.models.Translator, kept: Sequence[Dated], texts: Texts,
    tables: dict[str, Table],
) -> None:  # fmt: skip
    """Attention beside saliency, LRP and occlusion."""
    found = alignment.translate(model, texts)
    isos = dates.labels_of([dated.day for dated in kept])
    others = {
        name: float(exact(alignment.translate(model, texts, given), isos).mean())
        for name, given in alignment.other_attention(found, kept, texts.lengths).items()
    }
    values = alignment.explain_all(model, texts, found)
    curves = alignment.deletion(model, texts, found, values)
    where = alignment.spans(kept, texts.ids.shape[1])
    table = judged(curves, values, where, texts.lengths)
    said = verdict(curves, others)
    page.about.append(said)
    tables["Methods"] = table
    tables["Looking elsewhere"] = (
        ["the decoder looks at", "exact matches"], [[k, f"{v:.1%}"] for k, v in others.items()]
    )  # fmt: skip

    i = next((k for k, dated in enumerate(kept) if dated.format == "full"), 0)
    width = len(kept[i].text) + 1
    _, axes = plt.subplots(2, 2, figsize=(15, 7.5), layout="constrained")
    for ax, name in zip(axes.flat, list(values)[:4], strict=True):
        heat = values[name][i][:, :width]
        plot.attention(
            heat / np.maximum(np.abs(heat).sum(-1, keepdims=True), 1e-12),
            [*kept[i].text, LABELS[dates.END]], [LABELS[k] for k in found.labels[i, DIGITS]],
            marks=where[i, DIGITS, :width], title=name, label="share of the row", ax=ax,
        )  # fmt: skip
    page.figure(
        "methods", "Four answers to the same question", axes,
        f"What each method says of each character of “{kept[i].text}” for each written digit, "
        "every row divided by the sum of its sizes. Saliency has no sign; of LRP and occlusion red "
        "speaks for the digit and blue against it. The red frames are around what says the digit.",
        alt="Attention, saliency, LRP and occlusion of one date, digits down, characters across.",
    )  # fmt: skip
    _, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    plot.curve(np.arange(DELETED + 1), curves, ax=ax, xlabel="characters deleted",
               ylabel="probability of the digit")  # fmt: skip
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    page.figure(
        "deletion", "Does it name what the network needs?", ax,
        f"For each of {len(DIGITS)} digits of {len(kept)} English dates the characters are deleted "
        "that a method names first; the curves are means with a band of one standard error. The "
        "sooner a curve falls, the better. A deleted character is one that the network does not "
        "know.", alt="Deletion curves of attention, saliency, LRP, occlusion and random ones.",
    )  # fmt: skip
    page.table(
        "judged", "Does attention explain?", *table,
        f"{said} In the table: how much of what a method says lies on what says the digit, and how "
        "often its peak does; its rank correlation, by size, with attention and with occlusion; "
        "and the probability of the digit, "
        f"{curves['attention'][:, 0].mean():.3f} for the whole text, without the first characters.",
        strong="attention",
    )  # fmt: skip
    page.table(
        "elsewhere", "What if it looked elsewhere?", *tables["Looking elsewhere"],
        "The attention weights are replaced, and nothing else: how many of these dates are still "
        "right? Weights of another date that lie behind the text are cut off, and the others "
        "scaled to a sum of 1. The dashes and the end keep their own weights where each digit "
        "looks only at what says it.",
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/date_translation", help="folder of the page")
    parser.add_argument("--full", action="store_true", help="the published size, in hours")
    parser.add_argument("--epochs", type=int, help="over the dates")
    parser.add_argument("--units", type=int, help="of the encoder and of the decoder")
    main(**vars(parser.parse_args()))
