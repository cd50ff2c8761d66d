"""Translate dates to ISO 8601 and evaluate attention as an explanation (`make dates`).

A bidirectional LSTM encodes dates in many languages and formats, created with babel and faker. A
decoder with attention writes them in ISO 8601. The source characters of each output digit are
known, so that attention can be compared with the gold alignment.
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
from examples import alignment, checkpoints, dates, gallery, method_curves
from examples.alignment import (
    DELETED,
    DIGITS,
    Table,
    Translations,
    align,
    alignment_table,
    method_table,
    percent,
    summary,
    swap_table,
)
from examples.dates import LABELS, OUTPUT_LENGTH, OUTPUT_PARTS, UNKNOWN, DateText, Texts
from examples.descent import descend
from jaxattn import plot

UNSEEN_ORDER = "January 2016 5"
UNUSUAL = {
    UNSEEN_ORDER: date(2016, 1, 5),
    "2016 January 5": date(2016, 1, 5),
    "Saturday 3 May 2016": date(2016, 5, 3),  # it was a Tuesday
    "3 May 1979": date(1979, 5, 3),
    "5 Apr 09": date(2009, 4, 5),
    "20th February 2016": date(2016, 2, 20),
    "Wed 10 Jul 2007": date(2007, 7, 10),
    "March 3rd 2001": date(2001, 3, 3),
    "the 12 of August, 1996": date(1996, 8, 12),
}
SHOWN_DATES = 8
SHOWN = (("en_US", "full"), ("en_GB", "d MMMM YYY"), ("fr", "full"), ("ru", "long"))
AMBIGUITY_SAMPLE = 200  # number of dates of a format that are tested for ambiguity


def fit(
    model: ja.models.Translator,
    texts: Texts,
    labels: np.ndarray,
    *,
    epochs: int,
    learning_rate: float,
    unknown_fraction: float = 0.02,
    batch_size: int = 64,
) -> None:
    """Minimize the cross-entropy; the decoder is fed with its own soft predictions.

    A small fraction of the characters is replaced by `UNKNOWN`, which deletion uses, too.
    """

    def loss(model, key, ids, lengths, labels):
        kept = jax.random.bernoulli(key, 1 - unknown_fraction, ids.shape)
        logits = model(alignment.one_hot(model, jnp.where(kept, ids, UNKNOWN)), lengths)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    rng = np.random.default_rng(0)
    size = min(batch_size, len(labels))
    batch_rows = []
    for _ in range(epochs):
        # Batches of texts with similar lengths, in random order.
        order = np.argsort(texts.lengths + rng.uniform(0, 4, len(labels)))
        batch_rows += [*rng.permutation(order[: len(order) // size * size].reshape(-1, size))]
    data = [(*texts.take(rows), labels[rows]) for rows in batch_rows]
    descend(model, loss, data, learning_rate=learning_rate)


def exact(translations: Translations, isos: np.ndarray) -> np.ndarray:
    """Return whether all of the first 11 characters are correct, (B,)."""
    return (translations.labels[:, :OUTPUT_LENGTH] == isos).all(1)


def accuracies(test: Sequence[DateText], correct: np.ndarray, locales: Sequence[str]) -> Table:
    """Return the table of exact matches by format, in English and in all languages."""
    english = np.array([dated.locale.startswith("en") for dated in test])
    rows = []
    for form in dict.fromkeys(dates.FORMATS):
        of_format = np.array([dated.format == form for dated in test])
        texts = [test[i].text for i in np.flatnonzero(of_format)[:AMBIGUITY_SAMPLE]]
        ambiguous = np.array([len(dates.readings(text, locales)) > 1 for text in texts])
        rows.append([
            form, dates.format_date(date(2016, 5, 3), form, "en_US")[0],
            percent(correct[of_format & english]), percent(correct[of_format]),
            f"{of_format.sum():,}", percent(ambiguous),
        ])  # fmt: skip
    english_long = np.array([dated.english_long for dated in test])
    rows.append(
        [
            "English long forms",
            "",
            percent(correct[english_long]),
            "",
            f"{english_long.sum():,}",
            "",
        ]
    )
    rows.append(["all", "", percent(correct[english]), percent(correct), f"{len(test):,}", ""])
    return ["format", "example", "English", "all languages", "dates", "ambiguous"], rows


def unusual(translations: Translations) -> tuple[Table, str]:
    """Return the table and a summary of the translations of unusual texts."""
    rows = []
    for i, (text, day) in enumerate(UNUSUAL.items()):
        attended = "".join(
            "-" if part == "." else [*text.replace(" ", "␣"), LABELS[dates.END]][j]
            for part, j in zip(
                OUTPUT_PARTS[:-1], translations.attention[i].argmax(-1), strict=False
            )
        )
        output = dates.decode(translations.labels[i])
        rows.append(
            [text, day.isoformat(), output, "yes" if output == str(day) else "no", attended]
        )
    _, _, output, is_correct, _ = rows[list(UNUSUAL).index(UNSEEN_ORDER)]
    of_day = translations.attention[0, 8:10]  # row 0 is `UNSEEN_ORDER`
    year_start = UNSEEN_ORDER.index("2016")
    year = of_day[:, year_start : year_start + 4].sum(-1).mean()
    day = of_day[:, len(UNSEEN_ORDER) - 1].mean()
    judgement = "correctly" if is_correct == "yes" else "wrongly"
    note = (
        f"“{UNSEEN_ORDER}” is translated {judgement} to {output}: the digits of the day have "
        f"{day:.0%} of their attention on the 5 and {year:.0%} on the year."
    )
    if is_correct == "no":
        note += f" The attention {'explains' if year > 0.5 else 'does not explain'} this error."
    return (["text", "date", "output", "correct", "largest attention of each digit"], rows), note


def main(
    out: str | Path = "out/date_translation",
    *,
    full: bool = False,
    train_size: int | None = None,
    test_size: int = 4000,
    epochs: int | None = None,
    units: int | None = None,
    num_explained: int = 100,
    min_accuracy: float = 0.97,
) -> Path:
    """Train, test on other days, explain English dates, and write the page."""
    matplotlib.use("Agg")
    console = Console()
    train_size, units = train_size or (100_000 if full else 20_000), units or (256 if full else 64)
    epochs, length = epochs or (5 if full else 12), dates.LONGEST if full else OUTPUT_LENGTH
    locales = dates.all_locales() if full else dates.LOCALES
    train, test = dates.load(train_size, test_size, locales)
    vocabulary = dates.vocabulary_of(dated.text for dated in train)
    texts, test_texts = (
        dates.encode([d.text for d in split], vocabulary) for split in (train, test)
    )  # fmt: skip
    model = ja.models.Translator(
        len(vocabulary) + UNKNOWN + 1, units, len(LABELS), output_length=length, rngs=nnx.Rngs(0)
    )
    labels = dates.labels_of([dated.day for dated in train], length)
    rate = 1e-3 if full else 4e-3
    fit(model, texts, labels, epochs=epochs, learning_rate=rate)
    checkpoints.save(model, Path(out) / "checkpoint")

    translations = alignment.translate(model, test_texts)
    isos = dates.labels_of([dated.day for dated in test])
    correct = exact(translations, isos)
    english_long = np.array([dated.english_long for dated in test])
    accuracy = correct[english_long].mean()
    console.print(f"exact matches of English long dates of other days: [bold]{accuracy:.1%}")
    if accuracy < min_accuracy:
        raise SystemExit(f"test accuracy {accuracy:.1%} is below {min_accuracy:.0%}")

    num_locales = len(set(locales))
    page = gallery.Gallery(
        out,
        "Attention of a date translator",
        [
            "A bidirectional LSTM encodes a date character by character, and a decoder with "
            f"attention writes it in ISO 8601; both have {units} units (published: 256). The "
            f"training set has {len(train):,} dates, created with babel and faker in "
            f"{len(dates.FORMATS)} formats and {num_locales} locales, half of them in upper case "
            f"or in lower case only. The output has {length} characters (published: 50, the length "
            "of the padded text): the 10 characters of the date, the end token ⏎, and padding.",
            f"On days outside of the training set, {accuracy:.1%} of the English long forms are "
            "translated without an error.",
        ],
    )
    tables = {"Exact matches on other days": accuracies(test, correct, locales)}
    on_maps(page, test, test_texts, translations, correct)
    page.table(
        "Exact matches by format", *tables["Exact matches on other days"],
        f"The fraction of {len(test):,} test dates whose 11 characters are all correct. Test days "
        "are not in the training set. Some numeric dates are ambiguous, as the order of day and "
        "month depends on the locale: the last column is the fraction of texts with several "
        f"readings, among the first {AMBIGUITY_SAMPLE} of a format in all languages. One of the 15 "
        "formats occurs twice, as published. Dates around New Year are left out if YYY, the year "
        "of the week, differs from the year of the date.",
        strong="English long forms",
    )  # fmt: skip
    english_alignment, full_alignment = (
        align(
            Translations(*(array[rows] for array in translations)),
            [test[i] for i in rows],
            test_texts.lengths[rows],
        )
        for rows in (np.flatnonzero(correct & english_long), np.flatnonzero(correct))
    )
    tables["Attention and the gold alignment"] = alignment_table(english_alignment, full_alignment)
    page.table(
        "Attention and the gold alignment",
        *tables["Attention and the gold alignment"],
        "The source characters of an output digit are those of the year, the month or the day in "
        "the text. The first number is the share of the digit's attention on its source "
        "characters, the second the same share for uniform attention. The alignment error is the "
        "fraction of dates in which the digit's largest weight is not on a source character; with "
        "tolerance 2, the two characters after the source count as correct, as their LSTM states "
        "contain the whole word. These numbers are for English long forms; the last two columns "
        "are for all languages and formats. Over all digits, "
        f"{english_alignment.on.mean():.0%} of the attention is on the source characters, "
        f"{english_alignment.on.mean() / english_alignment.uniform.mean():.1f} times the share of "
        "uniform attention. Dates with translation errors are left out.", strong="all digits",
    )  # fmt: skip

    chosen = np.flatnonzero(correct & english_long)
    kept, kept_texts = [test[i] for i in chosen], Texts(*(a[chosen] for a in test_texts))
    kept_translations = Translations(*(a[chosen] for a in translations))
    tables["One part replaced"] = swap_table(model, vocabulary, kept, kept_texts, kept_translations)
    page.table(
        "The effect of one part on the output", *tables["One part replaced"],
        f"In {len(kept)} correctly translated English long dates, one part is replaced by another "
        "value. The columns are: the share of the text; the share of the attention on this part, "
        "of its own digits and of the other digits; how often its digits are correct after the "
        "replacement; and how often all other digits are unchanged. The weekday should have no "
        "effect.",
    )  # fmt: skip
    on_unusual(page, model, vocabulary, tables)
    first_texts = kept_texts.take(np.arange(len(kept))[:num_explained])
    on_methods(page, model, kept[:num_explained], first_texts, tables)
    path = alignment.write(page, model, kept[: min(num_explained, SHOWN_DATES)], first_texts)
    for title, table in tables.items():
        gallery.print_table(console, title, *table)
    console.print(*page.about[2:], sep="\n", soft_wrap=True)
    console.print(f"The page is at [bold]{path.resolve()}", soft_wrap=True)
    return path


def draw_map(ax: plt.Axes, text: str, translations: Translations, i: int, marks=None) -> None:
    """Draw the attention of one translation."""
    width = len(text) + 1
    plot.attention(
        translations.attention[i, :OUTPUT_LENGTH, :width], [*text, LABELS[dates.END]],
        [LABELS[label] or "·" for label in translations.labels[i, :OUTPUT_LENGTH]], marks=marks,
        title=f"{text}  →  {dates.decode(translations.labels[i])}", ax=ax,
    )  # fmt: skip


def on_maps(
    page: gallery.Gallery,
    test: Sequence[DateText],
    texts: Texts,
    translations: Translations,
    correct: np.ndarray,
) -> None:
    """Add the attention maps of four dates."""
    correct_rows = np.flatnonzero(correct)
    rows = [
        next((i for i in correct_rows if (test[i].locale, test[i].format) == kind), correct_rows[0])
        for kind in SHOWN
    ]
    _, axes = plt.subplots(2, 2, figsize=(15, 8.5), layout="constrained")
    for ax, i in zip(axes.flat, rows, strict=True):
        draw_map(ax, test[i].text, translations, i, dates.gold(test[i]))
    page.figure(
        "attention", "Attention maps", axes,
        "One panel per date. Columns are input characters, rows are output characters. A darker "
        "entry is a larger attention weight; every row sums to 1. Red frames mark the source "
        "characters of each digit: year, month and day.",
        alt="Attention matrices of four dates, output characters down and input characters across.",
    )  # fmt: skip


def on_unusual(
    page: gallery.Gallery, model: ja.models.Translator, vocabulary: Mapping[str, int],
    tables: dict[str, Table],
) -> None:  # fmt: skip
    """Add the translations of unusual dates, some of them from tutorials."""
    translations = alignment.translate(model, dates.encode(list(UNUSUAL), vocabulary))
    table, note = unusual(translations)
    tables["Unusual dates"] = table
    page.about.append(note)
    _, axes = plt.subplots(1, 2, figsize=(15, 4.5), layout="constrained")
    for i, ax in zip((0, 2), axes, strict=True):
        draw_map(ax, list(UNUSUAL)[i], translations, i)
    page.figure(
        "odd", "Attention maps of unusual dates", axes,
        "As above, for an order that is not in the training data, and for a wrong weekday. "
        f"{note}",
        alt="Attention matrices of two unusual dates.",
    )  # fmt: skip
    page.table(
        "Unusual dates", *table,
        "Words such as “20th”, and the year before an English month, are not in the training data. "
        "The last column contains the input character with the largest attention of each output "
        "digit; ␣ is a space and ⏎ the end token.",
    )  # fmt: skip


def on_methods(
    page: gallery.Gallery, model: ja.models.Translator, kept: Sequence[DateText], texts: Texts,
    tables: dict[str, Table],
) -> None:  # fmt: skip
    """Compare attention with saliency, LRP and occlusion."""
    translations = alignment.translate(model, texts)
    isos = dates.labels_of([dated.day for dated in kept])
    others = {
        name: float(exact(alignment.translate(model, texts, attention), isos).mean())
        for name, attention in alignment.replaced_attention(
            translations, kept, texts.lengths
        ).items()
    }
    values = alignment.explain_digits(model, texts, translations)
    curves = alignment.deletion(model, texts, translations, values)
    sources = alignment.gold_alignments(kept, texts.ids.shape[1])
    table = method_table(curves, values, sources, texts.lengths)
    conclusion = summary(curves, others)
    page.about.append(conclusion)
    tables["Methods"] = table
    tables["Replaced attention"] = (
        ["attention weights", "exact matches"], [[k, f"{v:.1%}"] for k, v in others.items()]
    )  # fmt: skip

    i = next((k for k, dated in enumerate(kept) if dated.format == "full"), 0)
    width = len(kept[i].text) + 1
    _, axes = plt.subplots(2, 2, figsize=(15, 7.5), layout="constrained")
    for ax, name in zip(axes.flat, list(values)[:4], strict=True):
        heat = values[name][i][:, :width]
        plot.attention(
            heat / np.maximum(np.abs(heat).sum(-1, keepdims=True), 1e-12),
            [*kept[i].text, LABELS[dates.END]], [LABELS[k] for k in translations.labels[i, DIGITS]],
            marks=sources[i, DIGITS, :width], title=name, label="share of the row", ax=ax,
        )  # fmt: skip
    page.figure(
        "methods", "Attention and three attributions", axes,
        f"The attributions of each character of “{kept[i].text}” for each output digit. Every row "
        "is divided by the sum of its magnitudes. Attention and saliency have no sign. In the maps "
        "of LRP and occlusion, red supports the digit and blue opposes it. Red frames mark the "
        "source characters.",
        alt="Attention, saliency, LRP and occlusion of one date, digits down, characters across.",
    )  # fmt: skip
    _, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    method_curves.draw(ax, np.arange(DELETED + 1), curves, xlabel="characters deleted",
                       ylabel="probability of the digit")  # fmt: skip
    page.figure(
        "deletion", "Deletion curves", ax,
        f"For each of {len(DIGITS)} digits of {len(kept)} English dates, the characters with the "
        "highest attribution are deleted. Curves are means, bands are one standard error. A "
        "steeper fall means a better ranking. A deleted character is replaced by the id of "
        "unknown characters. Each method has its own colour and line style, the same on all pages.",
        alt="Deletion curves of attention, saliency, LRP, occlusion and a random ranking.",
    )  # fmt: skip
    page.table(
        "Attention as an explanation", *table,
        f"{conclusion} The columns are: the share of the magnitude on the source characters; how "
        "often the largest value is on a source character, for all digits and for the month; "
        "the rank correlation of the magnitudes with those of attention and of occlusion; and the "
        "probability of the digit without the highest characters "
        f"({curves['attention'][:, 0].mean():.3f} for the whole text).",
        strong="attention",
    )  # fmt: skip
    page.table(
        "Translations with replaced attention weights", *tables["Replaced attention"],
        "The fraction of these dates that are translated correctly if only the attention weights "
        "are replaced. Weights of another date are cut at the end of the text and normalized to a "
        "sum of 1. With “source characters only”, the dashes and the end token keep their own "
        "weights.",
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/date_translation", help="folder of the page")
    parser.add_argument("--full", action="store_true", help="the published size; takes hours")
    parser.add_argument("--epochs", type=int, help="number of epochs")
    parser.add_argument("--units", type=int, help="units of the encoder and of the decoder")
    main(**vars(parser.parse_args()))
