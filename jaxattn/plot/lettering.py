"""Tokens as visible text: signs for blanks, and fonts that have the letters."""

import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

from matplotlib import font_manager

# Blanks and line ends are tokens too, but invisible.
_SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}


def visible_token(token: str) -> str:
    """Return the token with signs for blanks and control characters.

    Characters that no installed font has become their code points, such as <5E74>.
    """
    if token in _SIGNS:
        return _SIGNS[token]
    return "".join(
        c if c == " " or _is_drawable(c) else _SIGNS.get(c, f"<{ord(c):04X}>") for c in token
    )


def font(texts: Sequence[str]) -> dict[str, Any]:
    """Return the Text properties of these texts: fonts that have their letters, no formulas."""
    others = {_family(character) for character in "".join(texts)}
    family = [*font_manager.FontProperties().get_family(), *sorted(filter(None, others))]
    return {"fontfamily": family, "parse_math": False}


def _is_drawable(character: str) -> bool:
    kind = unicodedata.category(character)
    # Characters of category Cf, such as the right-to-left mark, have no shape of their own.
    return kind == "Cf" or (kind not in ("Cc", "Cs", "Cn") and _family(character) is not None)


@functools.cache
def _family(character: str) -> str | None:
    """Return a font family that has the character: "" for the default, None if there is none."""
    default = font_manager.findfont(font_manager.FontProperties())
    if font_manager.get_font(default).get_char_index(ord(character)):
        return ""
    for entry in font_manager.fontManager.ttflist:
        # The font of last resort has a box for every character.
        if "LastResort" in entry.fname:
            continue
        if font_manager.get_font(entry.fname).get_char_index(ord(character)):
            return str(entry.name)
    return None
