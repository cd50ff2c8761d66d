"""Dates as people write them, in many languages and formats, and what they are in ISO 8601."""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

import numpy as np

STYLES = ("short", "medium", "long", "full")  # a locale has a pattern of its own for each
# One of them counts twice, as in the published data.
FORMATS = (
    *STYLES, "d MMM YYY", "d MMMM YYY", "dd MMM YYY", "d MMM, YYY", "d MMMM, YYY", "dd, MMM YYY",
    "d MM YY", "d MMMM YYY", "MMMM d YYY", "MMMM d, YYY", "dd.MM.YY",
)  # fmt: skip
LONG = {"long", "full", "d MMMM YYY", "d MMMM, YYY", "MMMM d YYY", "MMMM d, YYY"}
ENGLISH = "en_US en_GB en_AU en_CA en_IE en_IN en_NZ en_ZA".split()
LOCALES = (
    *ENGLISH,
    *"ar ca cs da de el es fi fr he hr hu id it ja ko nb nl pl pt ro ru sv tr uk zh".split(),
)
FIRST, LAST = date(1970, 1, 1), date(2025, 12, 31)
CASES: tuple[Callable[[str], str], ...] = (str, str, str.upper, str.lower)
# What each field of a pattern says: the year, the month, the day, the day of the week.
PARTS = dict.fromkeys("yYu", "y") | dict.fromkeys("ML", "m") | {"d": "d"}
PARTS |= dict.fromkeys("Eec", "w")

PAD, END, UNKNOWN = 0, 1, 2
LONGEST = 50  # characters, with the end of the text
WIDTHS = (16, 24, LONGEST)  # texts are padded to one of these: one compilation each
LABELS = ("", "⏎", "-", *"0123456789")  # what can be written: nothing, the end, characters
WRITTEN = len("2016-05-03") + 1
# What each written character says, as in `Dated.parts`.
SAYS = "yyyy.mm.dd."


class Dated(NamedTuple):
    """A date as somebody wrote it.

    Attributes:
        text: the date as it is written.
        parts: what each character of it belongs to: y the year, m the month, d the day, w the day
            of the week, and a full stop nothing of these.
        day: the date.
        format: which of `FORMATS`.
        locale: whose language.
    """

    text: str
    parts: str
    day: date
    format: str
    locale: str

    @property
    def english_long(self) -> bool:
        """Whether it is English, with a month in letters and not shortened."""
        return self.format in LONG and self.locale.startswith("en")


def every_locale() -> tuple[str, ...]:
    """All that babel knows."""
    from babel import localedata

    return tuple(sorted(localedata.locale_identifiers()))


def written(day: date, form: str, locale: str, case: Callable[[str], str] = str) -> tuple[str, str]:
    """A date's text, and what each of its characters belongs to."""
    from babel import dates

    pattern = dates.get_date_format(form, locale).pattern if form in STYLES else form
    fields = dates.DateTimeFormat(day, locale)
    text, parts = "", ""
    for kind, token in dates.tokenize_pattern(pattern):
        symbol, count = token if kind == "field" else ("", 1)
        piece = case(fields[symbol * count] if symbol else token)
        text += piece
        parts += PARTS.get(symbol, ".") * len(piece)
    return text, parts


def held_out(day: date) -> bool:
    """Whether this is one of the days, about a tenth of all, that are never learnt from."""
    return bool(np.random.default_rng(day.toordinal()).integers(10) == 0)


def draw(count: int, *, test: bool, locales: Sequence[str], seed: int) -> list[Dated]:
    """Random dates in random formats and languages, of the days to learn from or of the others.

    Those are left out that are too long, or say another year: `YYY` is the year that the week
    belongs to, which on the days around New Year may be the next or the last.
    """
    from faker import Faker

    fake, rng = Faker(), np.random.default_rng(seed)
    fake.seed_instance(seed)
    found: list[Dated] = []
    while len(found) < count:
        day = fake.date_between_dates(FIRST, LAST)
        form, locale = str(rng.choice(FORMATS)), str(rng.choice(locales))
        case = CASES[rng.integers(len(CASES))]
        if held_out(day) != test:
            continue
        text, parts = written(day, form, locale, case)
        year = "".join(c for c, part in zip(text, parts, strict=True) if part == "y")
        if len(text) < LONGEST and year in (f"{day:%Y}", f"{day:%y}"):
            found.append(Dated(text, parts, day, form, locale))
    return found


def load(
    train: int, test: int, locales: Sequence[str] = LOCALES
) -> tuple[list[Dated], list[Dated]]:
    """Dates to learn from, and others of other days, none of which reads as one of the first."""
    try:
        import babel  # noqa: F401
        import faker  # noqa: F401
    except ImportError as error:
        raise SystemExit("dates are written by two packages: pip install babel faker") from error
    learnt = draw(train, test=False, locales=locales, seed=0)
    known = {dated.text for dated in learnt}
    others = draw(test, test=True, locales=locales, seed=1)
    return learnt, [dated for dated in others if dated.text not in known]


class Texts(NamedTuple):
    """Texts as padded ids (B, T), and their lengths (B,), which count the end."""

    ids: np.ndarray
    lengths: np.ndarray

    def take(self, rows: Any) -> "Texts":
        """Some of the texts, padded no further than they need."""
        lengths = self.lengths[rows]
        width = next(width for width in WIDTHS if width >= lengths.max())
        return Texts(self.ids[rows, :width], lengths)


def vocabulary_of(texts: Iterable[str]) -> dict[str, int]:
    """A number for each character."""
    return {c: i for i, c in enumerate(sorted(set("".join(texts))), start=UNKNOWN + 1)}


def encode(texts: Sequence[str], vocabulary: Mapping[str, int]) -> Texts:
    """Texts as numbers, each with its end; a character that is not known is `UNKNOWN`.

    Raises:
        ValueError: for a text that is empty, or longer than what is read.
    """
    ids = np.full((len(texts), LONGEST), PAD, np.int32)
    for row, text in zip(ids, texts, strict=True):
        if not 0 < len(text) < LONGEST:
            raise ValueError(
                f"a text must have 1 to {LONGEST - 1} characters, got {len(text)}: {text!r}"
            )
        row[: len(text) + 1] = [*(vocabulary.get(c, UNKNOWN) for c in text), END]
    return Texts(ids, np.array([len(text) + 1 for text in texts], np.int32))


def labels_of(days: Sequence[date], length: int = WRITTEN) -> np.ndarray:
    """The ISO dates as labels (B, length), each with its end, then nothing."""
    labels = np.full((len(days), length), PAD, np.int32)
    for row, day in zip(labels, days, strict=True):
        row[:WRITTEN] = [*map(LABELS.index, day.isoformat()), END]
    return labels


def read(labels: np.ndarray) -> str:
    """What is written, up to its end."""
    return "".join(LABELS[label] for label in labels).split(LABELS[END])[0]


def gold(dated: Dated) -> np.ndarray:
    """Which characters of the text say what each written character says, (11, len(text) + 1).

    The dashes and the end are said by none.
    """
    parts = np.array([*dated.parts, ""])
    return np.array([parts == says for says in SAYS]) & (np.array([*SAYS]) != ".")[:, None]


@functools.cache
def _numeric(locales: tuple[str, ...]) -> set[str]:
    """The patterns that are written in numbers alone: so in any language."""
    from babel import dates

    patterns = {form for form in FORMATS if form not in STYLES}
    patterns |= {dates.get_date_format(s, locale).pattern for s in STYLES for locale in locales}
    return {p for p in patterns if not any(letters in p for letters in ("MMM", "LLL", "E", "c"))}


def readings(text: str, locales: Sequence[str] = LOCALES) -> set[date]:
    """All dates that somebody writes like this, if it is in numbers alone."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    found = set()
    for year, month, day in set(itertools.permutations(numbers)) if len(numbers) == 3 else ():
        if year < 100:
            year += 2000 if year <= LAST.year % 100 else 1900
        try:
            read = date(year, month, day)
        except ValueError:
            continue
        said = (written(read, pattern, "en")[0] for pattern in _numeric(tuple(locales)))
        if FIRST <= read <= LAST and text.lower() in map(str.lower, said):
            found.add(read)
    return found
