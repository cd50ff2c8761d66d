"""Tokens as text that a figure can show: blanks made visible, fonts that have the letters."""

import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

from matplotlib import font_manager

# Blanks and line ends are tokens like others, and would not be seen.
_SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}


def shown(token: str) -> str:
    """The token with blanks and control characters made visible.

    Characters of which no installed font has a picture become their code points, such as <5E74>.
    """
    if token in _SIGNS:
        return _SIGNS[token]
    return "".join(
        c if c == " " or _drawable(c) else _SIGNS.get(c, f"<{ord(c):04X}>") for c in token
    )


def look(shapes: Sequence[str]) -> dict[str, Any]:
    """The Text properties that draw these as they are: fonts that have them; `$` is no formula."""
    others = {_family(character) for character in "".join(shapes)}
    family = [*font_manager.FontProperties().get_family(), *sorted(filter(None, others))]
    return {"fontfamily": family, "parse_math": False}


def _drawable(character: str) -> bool:
    kind = unicodedata.category(character)
    # A mark of category Cf, such as the right-to-left mark, only directs others.
    return kind == "Cf" or (kind not in ("Cc", "Cs", "Cn") and _family(character) is not None)


@functools.cache
def _family(character: str) -> str | None:
    """The installed family that has a character: "" for the default, None if there is none."""
    default = font_manager.findfont(font_manager.FontProperties())
    if font_manager.get_font(default).get_char_index(ord(character)):
        return ""
    for entry in font_manager.fontManager.ttflist:
        # The last resort has a box for every character.
        if "LastResort" in entry.fname:
            continue
        if font_manager.get_font(entry.fname).get_char_index(ord(character)):
            return str(entry.name)
    return None
