"""Lines of text as a reader sees them: clusters, signs for invisible ones, and their order."""

import functools
import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Line(NamedTuple):
    """One coloured line.

    Attributes:
        label: what stands before it, if anything.
        words: T words or characters.
        values: their values, (T,).
        colours: their grounds as red, green and blue from 0 to 255, (T, 3).
        gap: what stands between them.
    """

    label: str | None
    words: tuple[str, ...]
    values: np.ndarray
    colours: np.ndarray
    gap: str

    @property
    def inks(self) -> np.ndarray:
        """Black or white for each word, whichever stands out more, (T, 3)."""
        ground = self.colours / 255
        linear = np.where(ground <= 0.04045, ground / 12.92, ((ground + 0.055) / 1.055) ** 2.4)
        # The relative luminance of WCAG 2: above 0.179 black stands out more than white.
        dark = linear @ (0.2126, 0.7152, 0.0722) <= 0.179
        return np.repeat(np.where(dark, 255, 0)[:, None], 3, axis=1)


def belongs(cluster: str, character: str) -> bool:
    """Whether a character is drawn onto the one before it: most of Unicode's UAX 29."""
    last = cluster[-1]
    if unicodedata.category(last) == "Cc":
        return last + character == "\r\n"
    kind = unicodedata.category(character)
    if kind[0] == "M" or "\u1160" <= character <= "\u11ff" or "🏻" <= character <= "🏿":
        return True
    if kind == "Cf":  # joiners and marks, but none that turns the text behind it around
        return unicodedata.bidirectional(character) in ("BN", "L", "R", "AL")
    flag = "🇦" <= character <= "🇿" and "🇦" <= last <= "🇿" and len(cluster) == 1
    return flag or (last == "\u200d" and kind == "So")


def starts(pieces: Sequence[str]) -> list[int]:
    """Which pieces of a text are not drawn onto the one before them."""
    found, cluster = [], ""
    for i, piece in enumerate(pieces):
        if cluster and piece and belongs(cluster, piece[0]):
            cluster += piece
        else:
            found.append(i)
            cluster = piece
    return found


def clusters(text: str) -> list[str]:
    """A text, cut between the characters that a reader tells apart."""
    cuts = [*starts(text), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(cuts)]


def ends_line(word: str) -> bool:
    """Return whether a word ends in a line break."""
    return bool(word) and word[-1] in "\n\r\v\f\x85\u2028\u2029"


def visible(word: str) -> str:
    """The word with signs for what cannot be seen, or would change how the rest is shown."""
    return "".join(map(_visible, word.replace("\r\n", "\n")))


def _visible(character: str) -> str:
    if character == "\t":
        return "⇥"
    if ends_line(character):
        return "↵"
    unsafe = unicodedata.category(character) in ("Cc", "Cs")
    embeds = unicodedata.bidirectional(character) in _EMBEDDING
    return "\ufffd" if unsafe or embeds else character


_EMBEDDING = "LRE RLE LRO RLO PDF LRI RLI FSI PDI".split()


def width(cluster: str) -> int:
    """How many cells of a monospaced font it takes: 2 for ideographs and emoji."""
    wide = unicodedata.east_asian_width(cluster[0]) in "WF" or "\ufe0f" in cluster
    return 2 if wide or "🇦" <= cluster[0] <= "🇿" else 1


_KINDS = {"L": "L", "R": "R", "AL": "R", "EN": "1", "AN": "1", "CS": ",", "ES": ",", "ET": "%"}


def is_rtl(row: Sequence[str]) -> bool:
    """Whether the first letter is of a script that is written from right to left."""
    kinds = (_KINDS.get(unicodedata.bidirectional(cluster[0])) for cluster in row)
    return next((kind == "R" for kind in kinds if kind in ("L", "R")), False)


def levels(row: Sequence[str], rtl: bool) -> list[int]:
    """How deep each cluster lies in changes of direction, odd where it runs from right to left.

    Unicode's UAX 9 for one row, without explicit embeddings.

    Args:
        row: clusters in the order in which they are read.
        rtl: whether the paragraph runs from right to left.
    """
    base = "R" if rtl else "L"
    kinds = "".join(_KINDS.get(unicodedata.bidirectional(c[0]), " ") for c in row)
    kinds = re.sub("(?<=1),(?=1)", "1", kinds)
    kinds = re.sub("%+(?=1)|(?<=1)%+", lambda found: "1" * len(found[0]), kinds)
    # Numbers after Latin letters are read with them.
    kinds = re.sub("L[^R]*", lambda found: found[0].replace("1", "L"), base + kinds)
    kinds = kinds.replace("1", "d") + base

    def neutral(found: re.Match[str]) -> str:
        sides = {kinds[found.start() - 1].replace("d", "R"), kinds[found.end()].replace("d", "R")}
        return len(found[0]) * (sides.pop() if len(sides) == 1 else base)

    kinds = re.sub("[^LRd]+", neutral, kinds)[1:-1]
    return [{"L": 2 * rtl, "R": 1, "d": 2}[kind] for kind in kinds]


def visual_order(levels: Sequence[int]) -> list[int]:
    """The clusters of one row, by index, as they stand from left to right."""
    order = list(range(len(levels)))
    for level in (2, 1):
        start = 0
        while start < len(order):
            end = start
            while end < len(order) and levels[order[end]] >= level:
                end += 1
            order[start:end] = order[start:end][::-1]
            start = end + 1
    return order


_MIRRORED = str.maketrans("()[]{}<>«»", ")(][}{><»«")


def shaped(row: Sequence[str], levels: Sequence[int]) -> list[str]:
    """The clusters, Arabic letters in the forms that join, and brackets open to the right side.

    Each can then be drawn by itself, in its own cell.
    """
    letters = [cluster[0] for cluster in row]
    joins = [
        "initial" in _forms()[a] and "final" in _forms()[b]
        for a, b in zip(["", *letters], [*letters, ""], strict=True)
    ]
    names = {(0, 0): "isolated", (0, 1): "initial", (1, 0): "final", (1, 1): "medial"}
    found = []
    for i, (cluster, letter) in enumerate(zip(row, letters, strict=True)):
        form = _forms()[letter].get(names[joins[i], joins[i + 1]], letter)
        found.append((form.translate(_MIRRORED) if levels[i] % 2 else form) + cluster[1:])
    return found


@functools.cache
def _forms() -> defaultdict[str, dict[str, str]]:
    """The forms of every Arabic letter, by name."""
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for code in [*range(0xFB50, 0xFC00), *range(0xFE80, 0xFEFD)]:
        name, *letters = unicodedata.decomposition(chr(code)).split() or [""]
        if len(letters) == 1:
            found[chr(int(letters[0], 16))][name.strip("<>")] = chr(code)
    return found
