"""Typesetting of words: grapheme clusters, signs for invisible characters, and visual order."""

import functools
import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Line(NamedTuple):
    """One line of coloured text.

    Attributes:
        label: Text before the line, or None.
        words: T words or characters.
        values: Their values, shape `(T,)`.
        colours: Their background colours, red, green and blue from 0 to 255, shape `(T, 3)`.
        gap: Text between words.
    """

    label: str | None
    words: tuple[str, ...]
    values: np.ndarray
    colours: np.ndarray
    gap: str

    @property
    def inks(self) -> np.ndarray:
        """The text colour of each word, black or white by contrast, shape `(T, 3)`."""
        ground = self.colours / 255
        linear = np.where(ground <= 0.04045, ground / 12.92, ((ground + 0.055) / 1.055) ** 2.4)
        # Relative luminance as in WCAG 2: above 0.179 black has more contrast than white.
        dark = linear @ (0.2126, 0.7152, 0.0722) <= 0.179
        return np.repeat(np.where(dark, 255, 0)[:, None], 3, axis=1)


def extends(cluster: str, character: str) -> bool:
    """Return whether a character extends a cluster: most of Unicode's UAX 29."""
    last = cluster[-1]
    if unicodedata.category(last) == "Cc":
        return last + character == "\r\n"
    kind = unicodedata.category(character)
    if kind[0] == "M" or "\u1160" <= character <= "\u11ff" or "🏻" <= character <= "🏿":
        return True
    if kind == "Cf":  # joiners and marks, but none that changes the direction of text
        return unicodedata.bidirectional(character) in ("BN", "L", "R", "AL")
    flag = "🇦" <= character <= "🇿" and "🇦" <= last <= "🇿" and len(cluster) == 1
    return flag or (last == "\u200d" and kind == "So")


def starts(pieces: Sequence[str]) -> list[int]:
    """Return the indices of the pieces of a text that start a new cluster."""
    indices, cluster = [], ""
    for i, piece in enumerate(pieces):
        if cluster and piece and extends(cluster, piece[0]):
            cluster += piece
        else:
            indices.append(i)
            cluster = piece
    return indices


def clusters(text: str) -> list[str]:
    """Return the grapheme clusters (user-perceived characters) of a text."""
    cuts = [*starts(text), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(cuts)]


def ends_line(word: str) -> bool:
    """Return whether a word ends in a line break."""
    return bool(word) and word[-1] in "\n\r\v\f\x85\u2028\u2029"


def visible(word: str) -> str:
    """Return the word with signs for characters that are invisible or steer the display."""
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
    """Return the number of monospaced cells of a cluster: 2 for ideographs and emoji."""
    wide = unicodedata.east_asian_width(cluster[0]) in "WF" or "\ufe0f" in cluster
    return 2 if wide or "🇦" <= cluster[0] <= "🇿" else 1


_KINDS = {"L": "L", "R": "R", "AL": "R", "EN": "1", "AN": "1", "CS": ",", "ES": ",", "ET": "%"}


def is_rtl(row: Sequence[str]) -> bool:
    """Return whether the first letter is of a right-to-left script."""
    kinds = (_KINDS.get(unicodedata.bidirectional(cluster[0])) for cluster in row)
    return next((kind == "R" for kind in kinds if kind in ("L", "R")), False)


def levels(row: Sequence[str], rtl: bool) -> list[int]:
    """Return the embedding level of each cluster, odd for right-to-left text.

    This is Unicode's UAX 9 for one row, without explicit embeddings.

    Args:
        row: Clusters in reading order.
        rtl: Whether the paragraph runs from right to left.

    Returns:
        The levels, one per cluster.
    """
    base = "R" if rtl else "L"
    kinds = "".join(_KINDS.get(unicodedata.bidirectional(c[0]), " ") for c in row)
    kinds = re.sub("(?<=1),(?=1)", "1", kinds)
    kinds = re.sub("%+(?=1)|(?<=1)%+", lambda match: "1" * len(match[0]), kinds)
    # Numbers after Latin letters belong to them.
    kinds = re.sub("L[^R]*", lambda match: match[0].replace("1", "L"), base + kinds)
    kinds = kinds.replace("1", "d") + base

    def neutral(match: re.Match[str]) -> str:
        sides = {kinds[match.start() - 1].replace("d", "R"), kinds[match.end()].replace("d", "R")}
        return len(match[0]) * (sides.pop() if len(sides) == 1 else base)

    kinds = re.sub("[^LRd]+", neutral, kinds)[1:-1]
    return [{"L": 2 * rtl, "R": 1, "d": 2}[kind] for kind in kinds]


def visual_order(levels: Sequence[int]) -> list[int]:
    """Return the indices of the clusters of one row, from left to right."""
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
    """Return the clusters with joined forms of Arabic letters and mirrored brackets.

    Each can then be drawn in its own cell.
    """
    letters = [cluster[0] for cluster in row]
    joins = [
        "initial" in _forms()[a] and "final" in _forms()[b]
        for a, b in zip(["", *letters], [*letters, ""], strict=True)
    ]
    names = {(0, 0): "isolated", (0, 1): "initial", (1, 0): "final", (1, 1): "medial"}
    clusters = []
    for i, (cluster, letter) in enumerate(zip(row, letters, strict=True)):
        form = _forms()[letter].get(names[joins[i], joins[i + 1]], letter)
        clusters.append((form.translate(_MIRRORED) if levels[i] % 2 else form) + cluster[1:])
    return clusters


@functools.cache
def _forms() -> defaultdict[str, dict[str, str]]:
    """Return the forms of every Arabic letter, by name."""
    forms: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for code in [*range(0xFB50, 0xFC00), *range(0xFE80, 0xFEFD)]:
        name, *letters = unicodedata.decomposition(chr(code)).split() or [""]
        if len(letters) == 1:
            forms[chr(int(letters[0], 16))][name.strip("<>")] = chr(code)
    return forms
