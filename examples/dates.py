"""Dates in many languages and formats, with their translations to ISO 8601."""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

import numpy as np

STYLES = ("short", "medium", "long", "full")  # each locale has its own patterns
# "d MMMM YYY" occurs twice, as in the published data.
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
# The part of a date to which each field of a pattern belongs: year, month, day, weekday.
PARTS = dict.fromkeys("yYu", "y") | dict.fromkeys("ML", "m") | {"d": "d"}
PARTS |= dict.fromkeys("Eec", "w")

PAD, END, UNKNOWN = 0, 1, 2
LONGEST = 50  # characters of a text, including the end token
WIDTHS = (16, 24, LONGEST)  # texts are padded to one of these: one compilation each
LABELS = ("", "⏎", "-", *"0123456789")  # output vocabulary: padding, end token, characters
OUTPUT_LENGTH = len("2016-05-03") + 1
# The part of the date to which each output character belongs, as in `DateText.parts`.
OUTPUT_PARTS = "yyyy.mm.dd."


class DateText(NamedTuple):
    """A date in some format and language.

    Attributes:
        text: the formatted date.
        parts: the part of the date to which each character belongs: "y" year, "m" month, "d" day,
            "w" weekday, "." none.
        day: the date.
        format: one of `FORMATS`.
        locale: the locale, as "en_US".
    """

    text: str
    parts: str
    day: date
    format: str
    locale: str

    @property
    def english_long(self) -> bool:
        """Return whether it is English with the full name of the month."""
        return self.format in LONG and self.locale.startswith("en")


def all_locales() -> tuple[str, ...]:
    """Return all locales of babel."""
    from babel import localedata

    return tuple(sorted(localedata.locale_identifiers()))


def format_date(
    day: date, form: str, locale: str, case: Callable[[str], str] = str
) -> tuple[str, str]:
    """Format a date; return the text and the part to which each of its characters belongs."""
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
    """Return whether a day belongs to the test set, which has about a tenth of all days."""
    return bool(np.random.default_rng(day.toordinal()).integers(10) == 0)


def sample_dates(count: int, *, test: bool, locales: Sequence[str], seed: int) -> list[DateText]:
    """Return random training or test dates in random formats and languages.

    Texts that are too long, or that contain another year, are left out: `YYY` is the year of the
    week, which differs from the year of the date on some days around New Year.
    """
    from faker import Faker

    fake, rng = Faker(), np.random.default_rng(seed)
    fake.seed_instance(seed)
    samples: list[DateText] = []
    while len(samples) < count:
        day = fake.date_between_dates(FIRST, LAST)
        form, locale = str(rng.choice(FORMATS)), str(rng.choice(locales))
        case = CASES[rng.integers(len(CASES))]
        if held_out(day) != test:
            continue
        text, parts = format_date(day, form, locale, case)
        year = "".join(c for c, part in zip(text, parts, strict=True) if part == "y")
        if len(text) < LONGEST and year in (f"{day:%Y}", f"{day:%y}"):
            samples.append(DateText(text, parts, day, form, locale))
    return samples


def load(
    train: int, test: int, locales: Sequence[str] = LOCALES
) -> tuple[list[DateText], list[DateText]]:
    """Return training dates and test dates of other days and with other texts."""
    try:
        import babel  # noqa: F401
        import faker  # noqa: F401
    except ImportError as error:
        raise SystemExit("the dates need two packages: pip install babel faker") from error
    training = sample_dates(train, test=False, locales=locales, seed=0)
    training_texts = {dated.text for dated in training}
    others = sample_dates(test, test=True, locales=locales, seed=1)
    return training, [dated for dated in others if dated.text not in training_texts]


class Texts(NamedTuple):
    """Texts as padded token ids (B, T), and their lengths with the end token (B,)."""

    ids: np.ndarray
    lengths: np.ndarray

    def take(self, rows: Any) -> "Texts":
        """Return the texts of `rows`, padded to the smallest sufficient width."""
        lengths = self.lengths[rows]
        width = next(width for width in WIDTHS if width >= lengths.max())
        return Texts(self.ids[rows, :width], lengths)


def vocabulary_of(texts: Iterable[str]) -> dict[str, int]:
    """Return an id for each character."""
    return {c: i for i, c in enumerate(sorted(set("".join(texts))), start=UNKNOWN + 1)}


def encode(texts: Sequence[str], vocabulary: Mapping[str, int]) -> Texts:
    """Encode texts as ids with end tokens; characters outside of the vocabulary are `UNKNOWN`.

    Raises:
        ValueError: If a text is empty or too long.
    """
    ids = np.full((len(texts), LONGEST), PAD, np.int32)
    for row, text in zip(ids, texts, strict=True):
        if not 0 < len(text) < LONGEST:
            raise ValueError(
                f"`texts` must have 1 to {LONGEST - 1} characters each, got {len(text)}: {text!r}"
            )
        row[: len(text) + 1] = [*(vocabulary.get(c, UNKNOWN) for c in text), END]
    return Texts(ids, np.array([len(text) + 1 for text in texts], np.int32))


def labels_of(days: Sequence[date], length: int = OUTPUT_LENGTH) -> np.ndarray:
    """Return ISO dates as labels (B, length), each with its end token and padding."""
    labels = np.full((len(days), length), PAD, np.int32)
    for row, day in zip(labels, days, strict=True):
        row[:OUTPUT_LENGTH] = [*map(LABELS.index, day.isoformat()), END]
    return labels


def decode(labels: np.ndarray) -> str:
    """Return the characters of labels up to the end token."""
    return "".join(LABELS[label] for label in labels).split(LABELS[END])[0]


def gold(dated: DateText) -> np.ndarray:
    """Return the source characters of each output character, (11, len(text) + 1).

    The source characters of a digit are those of the same part of the date. Dashes and the end
    token have no source characters.
    """
    parts = np.array([*dated.parts, ""])
    return (
        np.array([parts == part for part in OUTPUT_PARTS])
        & (np.array([*OUTPUT_PARTS]) != ".")[:, None]
    )


@functools.cache
def _numeric(locales: tuple[str, ...]) -> set[str]:
    """Return the numeric patterns, which are the same in all languages."""
    from babel import dates

    patterns = {form for form in FORMATS if form not in STYLES}
    patterns |= {dates.get_date_format(s, locale).pattern for s in STYLES for locale in locales}
    return {p for p in patterns if not any(letters in p for letters in ("MMM", "LLL", "E", "c"))}


def readings(text: str, locales: Sequence[str] = LOCALES) -> set[date]:
    """Return all dates that have this text in some numeric format."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    days = set()
    for year, month, day_number in (
        set(itertools.permutations(numbers)) if len(numbers) == 3 else ()
    ):
        if year < 100:
            year += 2000 if year <= LAST.year % 100 else 1900
        try:
            day = date(year, month, day_number)
        except ValueError:
            continue
        texts = (format_date(day, pattern, "en")[0] for pattern in _numeric(tuple(locales)))
        if FIRST <= day <= LAST and text.lower() in map(str.lower, texts):
            days.add(day)
    return days
