"""Evaluate the attention of a date translator as an explanation of its output."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.stats import spearmanr

import jaxattn as ja
from examples import gallery
from examples.dates import (
    END,
    LABELS,
    OUTPUT_LENGTH,
    OUTPUT_PARTS,
    UNKNOWN,
    DateText,
    Texts,
    encode,
    gold,
)

DIGITS = np.array([t for t, part in enumerate(OUTPUT_PARTS) if part != "."])
PLACES = (
    *(f"year: {place}" for place in ("thousands", "hundreds", "tens", "ones")),
    *(f"{part}: {place}" for part in ("month", "day") for place in ("tens", "ones")),
)
DELETED, SHOWN = 4, (1, 2, 4)  # largest number of deleted characters, and those in the table
Table = tuple[list[str], list[list[str]]]  # columns and rows


class Translations(NamedTuple):
    """Translations of B texts.

    Attributes:
        labels: predicted labels, (B, T_out).
        probabilities: probability of each label, (B, T_out, K).
        attention: attention weights, (B, T_out, T_in).
    """

    labels: np.ndarray
    probabilities: np.ndarray
    attention: np.ndarray


def write(
    page: gallery.Gallery, model: ja.models.Translator, shown: Sequence[DateText], texts: Texts
) -> Path:
    """Write the page with the attributions of all outputs of a few dates."""
    ids, lengths = texts.take(np.arange(len(shown)))
    return page.write(
        model, np.asarray(one_hot(model, ids)), None,
        {"saliency": ja.saliency, "LRP": ja.lrp, "input × gradient": ja.input_x_gradient},
        args=(lengths,), class_names=["·", *LABELS[1:]],
        tokens=[gallery.padded([*dated.text, LABELS[END]], ids.shape[1]) for dated in shown],
    )  # fmt: skip


def one_hot(model: ja.models.Translator, ids: np.ndarray) -> jax.Array:
    """Return the one-hot input of a model, (..., T, K)."""
    return jax.nn.one_hot(ids, model.encoder.in_features)


@nnx.jit
def _translate(model, ids, lengths, attention=None):
    def one(x, length, attention):
        patched = model if attention is None else ja.intervene(model, {"attention": attention})
        return ja.capture(patched, "attention")(x, length)

    logits, hidden = jax.vmap(one)(one_hot(model, ids), lengths, attention)
    return jax.nn.softmax(logits), hidden["attention"]


def translate(
    model: ja.models.Translator, texts: Texts, attention: np.ndarray | None = None, size: int = 256
) -> Translations:
    """Translate texts, optionally with other attention weights (B, T_out, T_in)."""
    parts = []
    for start in range(0, len(texts.ids), size):
        # The last part is padded to the same size: one compilation.
        rows = np.minimum(np.arange(start, start + size), len(texts.ids) - 1)
        replacement = None if attention is None else attention[rows]
        part = _translate(model, texts.ids[rows], texts.lengths[rows], replacement)
        parts.append([np.asarray(array)[: len(texts.ids) - start] for array in part])
    probabilities, attention = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Translations(probabilities.argmax(-1), probabilities, attention)


def gold_alignments(dates: Sequence[DateText], width: int) -> np.ndarray:
    """Return the source characters of the 11 output characters of each date, (B, 11, width)."""
    return np.stack([np.pad(g := gold(d), ((0, 0), (0, width - g.shape[1]))) for d in dates])


def share_on(values: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Return the share of the summed magnitudes on `sources`, over the last axis."""
    size = np.abs(values)
    return (size * sources).sum(-1) / np.maximum(size.sum(-1), 1e-12)


def peaks_on(values: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Return whether the largest value of the last axis lies on `sources`."""
    return np.take_along_axis(sources, values.argmax(-1)[..., None], -1)[..., 0]


def extended(sources: np.ndarray, reach: int = 2) -> np.ndarray:
    """Return the source characters and the next `reach` characters.

    The LSTM states of these characters contain the whole word.
    """
    width, leading = sources.shape[-1], [(0, 0)] * (sources.ndim - 1)
    shifted = [np.pad(sources, [*leading, (k, 0)])[..., :width] for k in range(reach + 1)]
    return np.any(shifted, axis=0)


class Alignment(NamedTuple):
    """Agreement of the attention of each of the 8 digits with the gold alignment, (B, 8) each.

    Attributes:
        on: share of the attention on the source characters.
        uniform: this share for uniform attention.
        error: whether the largest weight is not on a source character; the mean is the alignment
            error.
        error_tolerant: the same, but the two characters after a source character count as correct.
    """

    on: np.ndarray
    uniform: np.ndarray
    error: np.ndarray
    error_tolerant: np.ndarray


def align(translations: Translations, dates: Sequence[DateText], lengths: np.ndarray) -> Alignment:
    """Compare the attention with the gold alignment."""
    sources = gold_alignments(dates, translations.attention.shape[-1])[:, DIGITS]
    attention = translations.attention[:, DIGITS]
    return Alignment(
        share_on(attention, sources),
        sources.sum(-1) / lengths[:, None],
        ~peaks_on(attention, sources),
        ~peaks_on(attention, extended(sources)),
    )


class Swap(NamedTuple):
    """A text with one replaced part, and its correct translation.

    Attributes:
        row: row of the original text.
        text: the text with the replaced part.
        iso: its correct translation.
    """

    row: int
    text: str
    iso: str


def swaps(dates: Sequence[DateText], seed: int = 0) -> dict[str, list[Swap]]:
    """Return English dates with a replaced weekday, month, year or day, by part."""
    from babel import dates as babel_dates

    rng = np.random.default_rng(seed)
    weekdays, months = (
        names("wide", "format", "en")
        for names in (babel_dates.get_day_names, babel_dates.get_month_names)
    )
    swapped: dict[str, list[Swap]] = {"weekday": [], "month": [], "year": [], "day": []}

    def add(kind, row, piece, iso):
        text, parts = dates[row].text, dates[row].parts
        case = str.upper if text.isupper() else str.lower if text.islower() else str
        start, stop = parts.index(kind[0]), parts.rindex(kind[0]) + 1
        swapped[kind].append(Swap(row, text[:start] + case(piece) + text[stop:], iso))

    for row, (_, parts, day, *_) in enumerate(dates):
        iso = day.isoformat()
        if "w" in parts:
            for other in set(range(7)) - {day.weekday()}:
                add("weekday", row, weekdays[other], iso)
        month = int(rng.choice([m for m in range(1, 13) if m != day.month]))
        add("month", row, months[month], f"{iso[:5]}{month:02}{iso[7:]}")
        year = int(rng.choice([y for y in range(1970, 2026) if y != day.year]))
        add("year", row, str(year), f"{year}{iso[4:]}")
        number = int(rng.choice([n for n in range(1, 29) if n != day.day]))
        add("day", row, str(number), f"{iso[:8]}{number:02}")
    return swapped


def explain_digits(
    model: ja.models.Translator, texts: Texts, translations: Translations
) -> dict[str, np.ndarray]:
    """Return the attributions of each character for each output digit, (B, 8, T), by method.

    The targets are the logits of the predicted labels. The input is one-hot. The attribution of a
    character is the sum over the vocabulary; for saliency, which has no sign, the norm. Occlusion
    replaces a character by `UNKNOWN`.
    """
    count, width = texts.ids.shape
    rows, steps = (a.ravel() for a in np.meshgrid(np.arange(count), DIGITS, indexing="ij"))
    x = np.asarray(one_hot(model, texts.ids[rows]))
    targets = np.stack([steps, translations.labels[rows, steps]], axis=1)
    blank = np.tile(np.eye(x.shape[-1], dtype=x.dtype)[UNKNOWN], (width, 1))

    def method(method, reduce, **options):
        attribution = ja.explain(method, model, x, targets, args=(texts.lengths[rows],), **options)
        return np.asarray(reduce(attribution.values, axis=-1)).reshape(count, len(DIGITS), width)

    return {
        "attention": translations.attention[:, DIGITS],
        "saliency": method(ja.saliency, jnp.linalg.norm),
        "LRP": method(ja.lrp, jnp.sum),
        "occlusion": method(ja.occlusion, jnp.mean, baseline=blank),
        "random": np.random.default_rng(0).uniform(size=(count, len(DIGITS), width)),
    }


def rank_correlation(a: np.ndarray, b: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation over the valid entries; NaN if all values are equal."""
    rows = zip(a, b, np.broadcast_to(valid, a.shape), strict=True)
    return np.array([spearmanr(one[mask], other[mask]).statistic for one, other, mask in rows])


def deletion(
    model: ja.models.Translator,
    texts: Texts,
    translations: Translations,
    values: Mapping[str, np.ndarray],
    max_deleted: int = DELETED,
) -> dict[str, np.ndarray]:
    """Return the probability of each digit without the 0, 1, ... highest characters.

    A deleted character is replaced by `UNKNOWN`.

    Returns:
        By method, the probabilities, (B * 8, max_deleted + 1).
    """
    count, width = texts.ids.shape
    rows = np.repeat(np.arange(count), len(DIGITS))
    steps = np.tile(DIGITS, count)
    label = translations.labels[rows, steps]
    ids, lengths = texts.ids[rows], texts.lengths[rows]
    valid = np.arange(width) < lengths[:, None] - 1
    curves = {}
    for name, attributions in values.items():
        heat = np.where(valid, attributions.reshape(-1, width), -np.inf)
        ranks = np.argsort(np.argsort(-heat, axis=1, kind="stable"), axis=1)
        remaining = [
            translate(model, Texts(np.where(ranks < k, UNKNOWN, ids), lengths)).probabilities
            for k in range(max_deleted + 1)
        ]
        curves[name] = np.stack([c[np.arange(len(rows)), steps, label] for c in remaining], axis=1)
    return curves


def replaced_attention(
    translations: Translations, dates: Sequence[DateText], lengths: np.ndarray
) -> dict[str, Any]:
    """Return replacements of the attention weights, by name, of the same shape."""
    own = translations.attention
    readable = (np.arange(own.shape[-1]) < lengths[:, None, None]).astype(own.dtype)
    uniform = np.broadcast_to(readable / readable.sum(-1, keepdims=True), own.shape)
    # Weights of a longer text may lie on the padding of a shorter text.
    another = np.roll(own, 1, axis=0) * readable
    total = another.sum(-1, keepdims=True)
    sources = np.zeros(own.shape, own.dtype)
    sources[:, :OUTPUT_LENGTH] = gold_alignments(dates, own.shape[-1])
    count = sources.sum(-1, keepdims=True)
    return {
        "own": own,
        "largest weight only": np.eye(own.shape[-1], dtype=own.dtype)[own.argmax(-1)],
        "source characters only": np.where(count, sources / np.maximum(count, 1), own),
        "uniform": uniform,
        "of another date": np.where(total, another / np.where(total, total, 1), uniform),
    }


def output_characters(translations: Translations) -> np.ndarray:
    """Return the 11 characters of the date and the end token, (B, 11)."""
    return np.array(LABELS)[translations.labels[:, :OUTPUT_LENGTH]]


def percent(shares: np.ndarray) -> str:
    """Format a mean as a percentage; empty arrays give an empty text."""
    return f"{np.mean(shares):.1%}" if np.size(shares) else ""


def alignment_table(english: Alignment, everything: Alignment) -> Table:
    """Return the table of the agreement of attention with the gold alignment."""
    rows = []
    for name, k in [*zip(PLACES, range(8), strict=True), ("all digits", slice(None))]:
        cells = [percent(array[:, k]) for array in english]
        rows.append([name, *cells, percent(everything.on[:, k]), percent(everything.error[:, k])])
    columns = ["digit", "attention on source", "uniform", "alignment error", "error, tolerance 2"]
    return [*columns, "all: attention on source", "all: alignment error"], rows


def swap_table(
    model: ja.models.Translator,
    vocabulary: Mapping[str, int],
    english: Sequence[DateText],
    texts: Texts,
    translations: Translations,
) -> Table:
    """Return the table of the changes of the output if one part of an English date is replaced."""
    parts = np.array([[*date.parts.ljust(texts.ids.shape[1], ".")] for date in english])
    before = output_characters(translations)[:, DIGITS]
    output_parts = np.array([*OUTPUT_PARTS])[DIGITS]
    rows = []
    for kind, swapped in swaps(english).items():
        row = np.array([swap.row for swap in swapped], int)
        cells = [""] * 5
        if swapped:
            changed = encode([swap.text for swap in swapped], vocabulary)
            after = output_characters(translate(model, changed))[:, DIGITS]
            expected = np.array([[*swap.iso] for swap in swapped])[:, DIGITS]
            in_part, own = parts[row] == kind[0], output_parts == kind[0]
            on = (translations.attention[row][:, DIGITS] * in_part[:, None]).sum(-1)
            followed = (after == expected)[:, own].all(1) if own.any() else []
            cells = [
                percent(in_part.sum(1) / texts.lengths[row]), percent(on[:, own]),
                percent(on[:, ~own]), percent(followed),
                percent((after == before[row])[:, ~own].all(1)),
            ]  # fmt: skip
        rows.append([kind, *cells, f"{len(swapped):,}"])
    columns = ["part", "share of text", "attention of its digits", "attention of others"]
    return [*columns, "its digits correct", "others unchanged", "swaps"], rows


def method_table(
    curves: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray], sources: np.ndarray,
    lengths: np.ndarray,
) -> Table:  # fmt: skip
    """Return the table of each method's alignment, rank correlations and deletion scores."""
    sources = sources[:, DIGITS].reshape(-1, sources.shape[-1])
    valid = np.arange(sources.shape[-1]) < np.repeat(lengths, len(DIGITS))[:, None]
    flat = {name: v.reshape(sources.shape) for name, v in values.items()}
    sizes = {name: np.where(valid, np.abs(v), 0) for name, v in flat.items()}
    month = np.tile(np.array([*OUTPUT_PARTS])[DIGITS] == "m", len(lengths))
    rows = []
    for name, heat in flat.items():
        peaks = peaks_on(np.where(valid, heat, -np.inf), sources)
        ranks = [
            "" if name == other
            else f"{np.nanmean(rank_correlation(sizes[name], sizes[other], valid)):.2f}"
            for other in ("attention", "occlusion")
        ]  # fmt: skip
        probabilities = (f"{curves[name][:, k].mean():.3f}" for k in SHOWN)
        on = percent(share_on(sizes[name], sources))
        rows.append([name, on, percent(peaks), percent(peaks[month]), *ranks, *probabilities])
    columns = [
        "method", "on source", "peak on source", "peak, months", "r(attention)", "r(occlusion)",
    ]  # fmt: skip
    return [*columns, *(f"without {k}" for k in SHOWN)], rows


def summary(curves: Mapping[str, np.ndarray], others: Mapping[str, float]) -> str:
    """Return a summary in words: whether attention explains the output."""
    start = curves["attention"][:, 0].mean()
    fall = {name: start - curve[:, 1:].mean() for name, curve in curves.items()}
    best = max((name for name in fall if name not in ("attention", "random")), key=fall.__getitem__)
    gain = fall[best] - fall["random"]
    gain_of_attention = fall["attention"] - fall["random"]
    ratio = gain_of_attention / gain if gain > 0 else float(gain_of_attention > 0)
    how = (
        f"as well as {best}" if ratio >= 0.95
        else f"nearly as well as {best}" if ratio >= 0.8
        else f"less well than {best}" if ratio > 0
        else "no better than a random ranking"
    )  # fmt: skip
    depends = others["own"] - others["uniform"] > 0.5
    falls = ", ".join(f"{drop:.2f} ({name})" for name, drop in fall.items())
    return (
        f"By the deletion test, attention ranks the characters {how}. Without the one to {DELETED} "
        "characters with the highest values, the probability of the digit falls on average by "
        f"{falls}. Occlusion measures such a deletion itself, which favours it. The output "
        f"{'depends' if depends else 'does not depend'} on the attention weights: with uniform "
        f"attention, {others['uniform']:.0%} of these dates are still translated correctly, with "
        f"the largest weight only, {others['largest weight only']:.0%}, and with attention on the "
        f"source characters only, {others['source characters only']:.0%}. Attention "
        + ("does not explain the output" if ratio <= 0 or (ratio < 0.8 and not depends)
           else "explains the output" + ("" if ratio >= 0.8 and depends else " only in part"))
        + (": it weights states of the LSTM, which depend on other characters, too."
           if ratio < 0.8 and others["source characters only"] < 0.5 else ".")
    )  # fmt: skip
