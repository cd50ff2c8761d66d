"""Where a translator of dates looks, and whether that explains what it writes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.stats import spearmanr

import jaxattn as ja
from examples.dates import LABELS, SAYS, UNKNOWN, WRITTEN, Dated, Texts, encode, gold

DIGITS = np.array([t for t, says in enumerate(SAYS) if says != "."])
PLACES = (
    *(f"year: {place}" for place in ("thousands", "hundreds", "tens", "ones")),
    *(f"{part}: {place}" for part in ("month", "day") for place in ("tens", "ones")),
)
DELETED, SHOWN = 4, (1, 2, 4)  # how many characters at most, and of which the table tells
Table = tuple[list[str], list[list[str]]]  # its columns and rows


class Translated(NamedTuple):
    """What is written for B texts, and where the network looks.

    Attributes:
        labels: what is written, (B, T_out).
        chances: the probability of each label, (B, T_out, K).
        attention: (B, T_out, T_in).
    """

    labels: np.ndarray
    chances: np.ndarray
    attention: np.ndarray


def one_hot(model: ja.models.Translator, ids: np.ndarray) -> jax.Array:
    return jax.nn.one_hot(ids, model.encoder.in_features)


@nnx.jit
def _translate(model, ids, lengths, attention=None):
    def one(x, length, attention):
        # Weights that are given are looked at in the place of its own.
        changed = model if attention is None else ja.intervene(model, {"attention": attention})
        return ja.capture(changed, "attention")(x, length)

    logits, seen = jax.vmap(one)(one_hot(model, ids), lengths, attention)
    return jax.nn.softmax(logits), seen["attention"]


def translate(
    model: ja.models.Translator, texts: Texts, attention: np.ndarray | None = None, size: int = 256
) -> Translated:
    """Translates texts, with attention (B, T_out, T_in) instead of its own where it is given."""
    parts = []
    for start in range(0, len(texts.ids), size):
        # The last part is filled up: one compilation.
        rows = np.minimum(np.arange(start, start + size), len(texts.ids) - 1)
        given = None if attention is None else attention[rows]
        part = _translate(model, texts.ids[rows], texts.lengths[rows], given)
        parts.append([np.asarray(array)[: len(texts.ids) - start] for array in part])
    chances, looked = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Translated(chances.argmax(-1), chances, looked)


def spans(dated: Sequence[Dated], width: int) -> np.ndarray:
    """Which characters say what each of the first 11 written ones says, (B, 11, width)."""
    return np.stack([np.pad(g := gold(d), ((0, 0), (0, width - g.shape[1]))) for d in dated])


def share_on(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The part of all that is said, for or against, which lies on some cells of the last axis."""
    size = np.abs(values)
    return (size * where).sum(-1) / np.maximum(size.sum(-1), 1e-12)


def peaks_on(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Whether the largest value of the last axis lies on one of some cells."""
    return np.take_along_axis(where, values.argmax(-1)[..., None], -1)[..., 0]


def and_behind(where: np.ndarray, reach: int = 2) -> np.ndarray:
    """The cells, and as many that follow: there the LSTM has just read the whole word."""
    return np.any([np.pad(where, [(0, 0)] * (where.ndim - 1) + [(k, 0)])[..., : where.shape[-1]]
                   for k in range(reach + 1)], axis=0)  # fmt: skip


class Aligned(NamedTuple):
    """How attention lies on the characters that say each of the 8 digits; all are shares, (B, 8).

    Attributes:
        on: attention on those characters.
        chance: those characters among all.
        missed: whether the largest weight lies somewhere else: the mean is the alignment error.
        missed_by_far: the same, unless it lies on one of the two characters behind.
    """

    on: np.ndarray
    chance: np.ndarray
    missed: np.ndarray
    missed_by_far: np.ndarray


def aligned(found: Translated, dated: Sequence[Dated], lengths: np.ndarray) -> Aligned:
    where = spans(dated, found.attention.shape[-1])[:, DIGITS]
    looked = found.attention[:, DIGITS]
    return Aligned(
        share_on(looked, where),
        where.sum(-1) / lengths[:, None],
        ~peaks_on(looked, where),
        ~peaks_on(looked, and_behind(where)),
    )


class Swap(NamedTuple):
    """A text in which one part says something else, and what is to be written then."""

    row: int
    text: str
    iso: str


def swaps(dated: Sequence[Dated], seed: int = 0) -> dict[str, list[Swap]]:
    """English dates with another day of the week, month, year or day in the place of theirs."""
    from babel import dates

    rng = np.random.default_rng(seed)
    weekdays, months = (
        names("wide", "format", "en") for names in (dates.get_day_names, dates.get_month_names)
    )
    found: dict[str, list[Swap]] = {"weekday": [], "month": [], "year": [], "day": []}

    def add(kind, row, piece, iso):
        text, parts = dated[row].text, dated[row].parts
        case = str.upper if text.isupper() else str.lower if text.islower() else str
        start, stop = parts.index(kind[0]), parts.rindex(kind[0]) + 1
        found[kind].append(Swap(row, text[:start] + case(piece) + text[stop:], iso))

    for row, (_, parts, day, *_) in enumerate(dated):
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
    return found


def explain_all(
    model: ja.models.Translator, texts: Texts, found: Translated
) -> dict[str, np.ndarray]:
    """What each method says of each character for each written digit, (B, 8, T).

    Explained is the logit of what the network writes. The input is one-hot: what a character says
    is the sum over the vocabulary; of saliency, which has no sign, the norm. Occlusion puts a
    character in its place that is not known.
    """
    count, width = texts.ids.shape
    rows, steps = (a.ravel() for a in np.meshgrid(np.arange(count), DIGITS, indexing="ij"))
    x = np.asarray(one_hot(model, texts.ids[rows]))
    targets = np.stack([steps, found.labels[rows, steps]], axis=1)
    blank = np.tile(np.eye(x.shape[-1], dtype=x.dtype)[UNKNOWN], (width, 1))

    def method(method, reduce, **options):
        seen = ja.explain(method, model, x, targets, args=(texts.lengths[rows],), **options)
        return np.asarray(reduce(seen.values, axis=-1)).reshape(count, len(DIGITS), width)

    return {
        "attention": found.attention[:, DIGITS],
        "saliency": method(ja.saliency, jnp.linalg.norm),
        "LRP": method(ja.lrp, jnp.sum),
        "occlusion": method(ja.occlusion, jnp.mean, baseline=blank),
        "random": np.random.default_rng(0).uniform(size=(count, len(DIGITS), width)),
    }


def rank_correlation(a: np.ndarray, b: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Spearman's, over the present cells of the last axis; NaN where all values are equal."""
    rows = zip(a, b, np.broadcast_to(present, a.shape), strict=True)
    return np.array([spearmanr(one[here], other[here]).statistic for one, other, here in rows])


def deletion(
    model: ja.models.Translator,
    texts: Texts,
    found: Translated,
    values: Mapping[str, np.ndarray],
    most: int = DELETED,
) -> dict[str, np.ndarray]:
    """The probability of each written digit without the 0, 1, ... characters named first.

    Returns:
        by method, (B * 8, most + 1). A character that is deleted is one that is not known.
    """
    count, width = texts.ids.shape
    rows = np.repeat(np.arange(count), len(DIGITS))
    steps = np.tile(DIGITS, count)
    label = found.labels[rows, steps]
    ids, lengths = texts.ids[rows], texts.lengths[rows]
    present = np.arange(width) < lengths[:, None] - 1
    curves = {}
    for name, of_method in values.items():
        heat = np.where(present, of_method.reshape(-1, width), -np.inf)
        ranks = np.argsort(np.argsort(-heat, axis=1, kind="stable"), axis=1)
        left = [
            translate(model, Texts(np.where(ranks < k, UNKNOWN, ids), lengths)).chances
            for k in range(most + 1)
        ]
        curves[name] = np.stack([c[np.arange(len(rows)), steps, label] for c in left], axis=1)
    return curves


def other_attention(
    found: Translated, dated: Sequence[Dated], lengths: np.ndarray
) -> dict[str, Any]:
    """What the network could look at instead, by name: weights of the shape of its own."""
    own = found.attention
    readable = (np.arange(own.shape[-1]) < lengths[:, None, None]).astype(own.dtype)
    alike = np.broadcast_to(readable / readable.sum(-1, keepdims=True), own.shape)
    # A longer text's weights may lie where this one has ended.
    another = np.roll(own, 1, axis=0) * readable
    total = another.sum(-1, keepdims=True)
    where = np.zeros(own.shape, own.dtype)
    where[:, :WRITTEN] = spans(dated, own.shape[-1])
    count = where.sum(-1, keepdims=True)
    return {
        "its own": own,
        "only the largest weight": np.eye(own.shape[-1], dtype=own.dtype)[own.argmax(-1)],
        "only what says the digit": np.where(count, where / np.maximum(count, 1), own),
        "all characters alike": alike,
        "that of another date": np.where(total, another / np.where(total, total, 1), alike),
    }


def written(found: Translated) -> np.ndarray:
    """The 11 characters that mean something, (B, 11)."""
    return np.array(LABELS)[found.labels[:, :WRITTEN]]


def percent(shares: np.ndarray) -> str:
    return f"{np.mean(shares):.1%}" if np.size(shares) else ""


def alignment_table(english: Aligned, everything: Aligned) -> Table:
    """How attention lies on what says each digit: in English long forms, and in all dates."""
    rows = []
    for name, k in [*zip(PLACES, range(8), strict=True), ("all digits", slice(None))]:
        of = [percent(array[:, k]) for array in english]
        rows.append([name, *of, percent(everything.on[:, k]), percent(everything.missed[:, k])])
    columns = ["digit", "attention on it", "chance", "alignment error", "2 behind allowed"]
    return [*columns, "all: attention on it", "all: alignment error"], rows


def findings(
    model: ja.models.Translator,
    vocabulary: Mapping[str, int],
    english: Sequence[Dated],
    texts: Texts,
    found: Translated,
) -> Table:
    """What is written when one part of an English date says something else."""
    parts = np.array([[*dated.parts.ljust(texts.ids.shape[1], ".")] for dated in english])
    before, says = written(found)[:, DIGITS], np.array([*SAYS])[DIGITS]
    rows = []
    for kind, made in swaps(english).items():
        row = np.array([swap.row for swap in made], int)
        cells = [""] * 5
        if made:
            changed = encode([swap.text for swap in made], vocabulary)
            after = written(translate(model, changed))[:, DIGITS]
            wanted = np.array([[*swap.iso] for swap in made])[:, DIGITS]
            here, its = parts[row] == kind[0], says == kind[0]
            on = (found.attention[row][:, DIGITS] * here[:, None]).sum(-1)
            follow = (after == wanted)[:, its].all(1) if its.any() else []
            cells = [
                percent(here.sum(1) / texts.lengths[row]), percent(on[:, its]),
                percent(on[:, ~its]), percent(follow),
                percent((after == before[row])[:, ~its].all(1)),
            ]  # fmt: skip
        rows.append([kind, *cells, f"{len(made):,}"])
    columns = ["part", "of the text", "its digits look there", "others look there"]
    return [*columns, "its digits follow", "others stay", "swaps"], rows


def judged(
    curves: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray], where: np.ndarray,
    lengths: np.ndarray,
) -> Table:  # fmt: skip
    """Each method beside the known alignment, the other methods, and what the network needs."""
    where = where[:, DIGITS].reshape(-1, where.shape[-1])
    present = np.arange(where.shape[-1]) < np.repeat(lengths, len(DIGITS))[:, None]
    flat = {name: v.reshape(where.shape) for name, v in values.items()}
    sizes = {name: np.where(present, np.abs(v), 0) for name, v in flat.items()}
    month = np.tile(np.array([*SAYS])[DIGITS] == "m", len(lengths))
    rows = []
    for name, heat in flat.items():
        peaks = peaks_on(np.where(present, heat, -np.inf), where)
        ranks = [
            "" if name == other
            else f"{np.nanmean(rank_correlation(sizes[name], sizes[other], present)):.2f}"
            for other in ("attention", "occlusion")
        ]  # fmt: skip
        left = (f"{curves[name][:, k].mean():.3f}" for k in SHOWN)
        on = percent(share_on(sizes[name], where))
        rows.append([name, on, percent(peaks), percent(peaks[month]), *ranks, *left])
    columns = ["method", "on what says it", "peak there", "of months", "~ attention", "~ occlusion"]
    return [*columns, *(f"without {k}" for k in SHOWN)], rows


def verdict(curves: Mapping[str, np.ndarray], others: Mapping[str, float]) -> str:
    """Does attention explain? In words, from the numbers."""
    start = curves["attention"][:, 0].mean()
    fall = {name: start - curve[:, 1:].mean() for name, curve in curves.items()}
    best = max((name for name in fall if name not in ("attention", "random")), key=fall.__getitem__)
    gain = fall[best] - fall["random"]
    own = fall["attention"] - fall["random"]
    reach = own / gain if gain > 0 else float(own > 0)
    how = (
        f"as well as {best}" if reach >= 0.95
        else f"nearly as well as {best}" if reach >= 0.8
        else f"less well than {best}" if reach > 0
        else "no better than characters drawn at random"
    )  # fmt: skip
    needed = others["its own"] - others["all characters alike"] > 0.5
    falls = ", ".join(f"{drop:.2f} by {name}" for name, drop in fall.items())
    return (
        f"Attention names what the network needs {how}: without the one to {DELETED} "
        "characters that a method names first, the probability of the digit falls on average so "
        f"far: {falls}. Occlusion ranks by just this deletion, which favours it. The network "
        f"{'needs' if needed else 'does not need'} to look where it looks: with attention spread "
        f"evenly {others['all characters alike']:.0%} of these dates are still translated rightly, "
        f"with the largest weight alone {others['only the largest weight']:.0%}; and when each "
        f"digit may look only at what says it, {others['only what says the digit']:.0%}. So "
        "attention "
        + ("does not explain what is written" if reach <= 0 or (reach < 0.8 and not needed)
           else "explains what is written" + ("" if reach >= 0.8 and needed else " only in part"))
        + (": it weighs states of the LSTM, which tell of other characters than their own."
           if reach < 0.8 and others["only what says the digit"] < 0.5 else ".")
    )  # fmt: skip
