"""Attributions of words, as HTML."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Colormap

from jaxattn.plot import _style as style


@dataclasses.dataclass(frozen=True)
class Text:
    """Coloured words; a notebook shows them.

    Attributes:
        html: an element that needs nothing else, to be put into a page.
    """

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def save(self, path: str | Path) -> None:
        """Writes a page that holds nothing but the words."""
        page = '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>words</title>\n'
        Path(path).write_text(f"{page}{self.html}\n</html>\n", encoding="utf-8")


def text(
    words: Sequence[str],
    values: Any,
    *,
    limit: float | None = None,
    cmap: str | Colormap = style.DIVERGING,
) -> Text:
    """Write words on a ground coloured by their attribution; pointing at a word shows its number.

    Args:
        words: T words, or pieces of words.
        values: Their attribution, `(T,)`; or several by name, `{name: (T,)}`: one line for each,
            with its name before it. Values of embeddings are to be summed to one for each word.
        limit: The colours run from `-limit` to `limit`; by default the largest magnitude of each
            line.
        cmap: A diverging colour map; its middle is moved to white.

    Returns:
        A `Text`, whose `html` is self-contained.

    Raises:
        ValueError: for a wrong rank, lengths that differ, or values that are not finite.
        TypeError: for words that are not strings.
    """
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"words must be strings, got {word!r}")
    named = isinstance(values, Mapping)
    lines = []
    for name, given in (values if named else {"values": values}).items():
        heat = style.real(str(name), given)
        if heat.shape != (len(words),):
            raise ValueError(
                f"{name} must have one value for each of {len(words)} words, got {heat.shape}"
            )
        grounds = _grounds(style.symmetric(limit, heat)(heat), mpl.colormaps.get_cmap(cmap))
        spans = " ".join(map(_span, words, heat, grounds))
        label = f'<td style="{_LABEL}">{html.escape(str(name))}</td>' if named else ""
        lines.append(f'<tr>{label}<td style="{_LINE}">{spans}</td></tr>')
    if not lines:
        raise ValueError("values must hold at least one line, got none")
    return Text(f'<table style="{_TABLE}">\n' + "\n".join(lines) + "\n</table>")


# All that a page or a notebook may have said about its tables is said again.
_TABLE = "border-collapse: collapse; width: auto"
_CELL = "border: 0; padding: 2px 8px; text-align: left; background: #ffffff"
_LABEL = f"{_CELL}; white-space: nowrap; color: #595959"
_LINE = f"{_CELL}; line-height: 1.6"
_WORD = "border-radius: 3px; padding: 1px 2px; white-space: pre-wrap"


def _grounds(positions: np.ndarray, cmap: Colormap) -> np.ndarray:
    """The map's colours (T, 3) at positions from 0 to 1, white in the middle, its own at the ends.

    The middle of most maps is a pale grey, which would mark words that have no say.
    """
    positions = np.clip(positions, 0, 1)
    paleness = 1 - np.abs(2 * positions - 1)
    to_white = 1 - np.asarray(cmap(0.5)[:3])
    return np.clip(cmap(positions)[:, :3] + paleness[:, None] * to_white, 0, 1)


def _span(word: str, value: float, ground: np.ndarray) -> str:
    # The relative luminance of WCAG 2: above 0.179 black stands out more than white.
    linear = np.where(ground <= 0.04045, ground / 12.92, ((ground + 0.055) / 1.055) ** 2.4)
    ink = "#000000" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "#ffffff"
    paper = np.rint(255 * ground).astype(np.uint8).tobytes().hex()
    look = f"{_WORD}; background: #{paper}; color: {ink}"
    return f'<span style="{look}" title="{value:.3g}">{html.escape(word)}</span>'
