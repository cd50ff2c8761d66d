"""Words or characters on the colours of their values: as HTML, in a terminal, with matplotlib."""

import dataclasses
import html
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from jaxattn.plot import style
from jaxattn.plot.text_axes import draw
from jaxattn.plot.typeset import Line, ends_line, starts, visible


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Text:
    """Coloured words or characters: shown by a notebook, printed in colours, stacked by `+`.

    Attributes:
        lines: what is shown.
    """

    lines: tuple[Line, ...]

    def __add__(self, other: "Text") -> "Text":
        return Text(self.lines + other.lines)

    @property
    def html(self) -> str:
        """An element that needs nothing else, to be put into a page.

        Every word is a `span` with its value for a title. Each line takes the direction of its
        first letter.
        """
        rows = "\n".join(map(_row, self.lines))
        return f'<table style="{_TABLE}">\n{rows}\n</table>'

    @property
    def ansi(self) -> str:
        """The lines for a terminal that knows 24-bit colours, in the order in which they are read.

        Whatever could steer the terminal is replaced by a sign.
        """
        labels = [visible(line.label or "") for line in self.lines]
        indent = max(map(len, labels)) + 2 if any(labels) else 0
        return "\n".join(
            label.ljust(indent) + line.gap.join(map(_escaped, line.words, line.colours, line.inks))
            for label, line in zip(labels, self.lines, strict=True)
        )

    def __str__(self) -> str:
        return self.ansi

    def __repr__(self) -> str:
        words = sum(len(line.words) for line in self.lines)
        return f"Text({words} words in {len(self.lines)} lines)"

    def _repr_html_(self) -> str:
        return self.html

    def save(self, path: str | Path) -> None:
        """Writes a page that holds nothing but the words."""
        page = '<!DOCTYPE html>\n<html>\n<meta charset="utf-8">\n<title>words</title>\n'
        Path(path).write_text(f"{page}{self.html}\n</html>\n", encoding="utf-8")

    def draw(
        self,
        ax: Axes | None = None,
        *,
        columns: int = 80,
        font: str | Sequence[str] = ("DejaVu Sans Mono", "DejaVu Sans"),
    ) -> Axes:
        """Draws the lines in the cells of a monospaced font.

        Scripts that are written from right to left are laid out so, with Arabic letters joined.

        Args:
            ax: What to draw into, by default a new figure of the right size.
            columns: How many cells a row has; longer lines are broken, between words if possible.
            font: The first of these fonts that has a character draws it. Those that come with
                matplotlib have no ideographs.

        Returns:
            The Axes, whose unit is a cell; rows lie at 0, 1, ... from above.

        Raises:
            ValueError: for `columns` below 1.
        """
        return draw(self.lines, ax, columns=columns, font=font)


def text(
    words: str | Sequence[str],
    values: Any,
    *,
    kind: Literal["relevance", "attention"] = "relevance",
    limit: float | None = None,
    cmap: str | Colormap | None = None,
    gap: str = " ",
) -> Text:
    """Put words or characters on a ground coloured by their values.

    Characters that are drawn as one, as letters with accents and composed emoji are, share a cell,
    in which their values add up.

    Args:
        words: T words, or pieces of words; or a string of T characters, shown without gaps.
        values: What they are worth, `(T,)`; or several by name, `{name: (T,)}`: one line for each,
            with its name before it. Values of embeddings are to be summed to one for each word.
        kind: "relevance" has a sign: colours diverge from white at zero. "attention" has none:
            colours run from white at 0 to red at `limit`, RGB (255, r, r) with
            r = 255 - int(255 a) for a share a of the limit.
        limit: The colours run to `limit`, and for relevance from `-limit`; by default the largest
            magnitude of each line. A limit of 1 shows attention weights as they are, which over
            long texts is nearly white.
        cmap: Other colours: a diverging map for relevance, whose middle is moved to white; any for
            attention.
        gap: What stands between words.

    Returns:
        A `Text`: `.html` and `.ansi` hold it, `.draw()` draws it, `.save(path)` writes a page.

    Raises:
        ValueError: for a wrong rank, lengths that differ, values that are not finite, attention
            that is negative, an unknown `kind`.
        TypeError: for words that are not strings.
    """
    if isinstance(words, Set) or not isinstance(words, Iterable):
        raise TypeError(f"words must be a string or a sequence of strings, got {words!r}")
    words = words if isinstance(words, str) else tuple(words)
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"words must be strings, got {word!r}")
    if kind not in ("relevance", "attention"):
        raise ValueError(f'kind must be "relevance" or "attention", got {kind!r}')
    gap = "" if isinstance(words, str) else gap
    named = isinstance(values, Mapping)
    lines = []
    for name, given in (values if named else {"values": values}).items():
        heat = style.real(str(name), given)
        if heat.shape != (len(words),):
            raise ValueError(
                f"{name} must have one value for each of {len(words)} words, got {heat.shape}"
            )
        if kind == "attention" and heat.min() < 0:
            raise ValueError(f"{name} must not be negative to be attention, got {heat.min():.3g}")
        cells, heat = (tuple(words), heat) if gap else _merged(words, heat)
        scale = style.symmetric(limit, heat)
        if kind == "relevance":
            colours = _diverging(scale(heat), cmap or style.DIVERGING)
        else:
            colours = _sequential(np.minimum(heat / scale.vmax, 1), cmap)
        lines.append(Line(str(name) if named else None, cells, heat, colours, gap))
    if not lines:
        raise ValueError("values must hold at least one line, got none")
    return Text(tuple(lines))


def _merged(words: Sequence[str], values: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Words without gaps, those that are drawn onto the one before them put together with it."""
    cuts = starts(words)
    cells = ("".join(words[a:b]) for a, b in zip(cuts, [*cuts[1:], len(words)], strict=True))
    return tuple(cells), np.add.reduceat(values, cuts)


def _diverging(positions: np.ndarray, cmap: str | Colormap) -> np.ndarray:
    """The map's colours (T, 3) at positions from 0 to 1, white in the middle, its own at the ends.

    The middle of most maps is a pale grey, which would mark words that have no say.
    """
    colours = mpl.colormaps.get_cmap(cmap)
    positions = np.clip(positions, 0, 1)
    paleness = 1 - np.abs(2 * positions - 1)
    to_white = 1 - np.asarray(colours(0.5)[:3])
    return _rgb(colours(positions)[:, :3] + paleness[:, None] * to_white)


def _sequential(shares: np.ndarray, cmap: str | Colormap | None) -> np.ndarray:
    if cmap is not None:
        return _rgb(mpl.colormaps.get_cmap(cmap)(shares))
    rest = 255 - (255 * shares).astype(np.uint8)
    return np.stack([np.full_like(rest, 255), rest, rest], axis=1)


def _rgb(colours: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.clip(colours[:, :3], 0, 1)).astype(np.uint8)


# All that a page or a notebook may have said about its tables is said again.
_TABLE = "border-collapse: collapse; width: auto"
_CELL = "border: 0; padding: 2px 8px; text-align: start; background: #ffffff"
_LABEL = f"{_CELL}; white-space: nowrap; color: #595959"
_LINE = f"{_CELL}; line-height: 1.6"
# Without padding: letters of Arabic join over the border of a span only if nothing lies there.
_CHARACTERS = f"{_LINE}; font-family: monospace; overflow-wrap: anywhere"
_WORD = "border-radius: 3px; padding: 1px 2px; white-space: pre-wrap"
_CHARACTER = "white-space: pre-wrap"


def _row(line: Line) -> str:
    spans = (
        f'<span style="{_WORD if line.gap else _CHARACTER}; background: {_hex(ground)}; '
        f'color: {_hex(ink)}" title="{value:.3g}">{html.escape(visible(word))}</span>'
        f"{'<br>' if ends_line(word) else ''}"
        for word, value, ground, ink in zip(*line[1:4], line.inks, strict=True)
    )
    name = html.escape(visible(line.label or ""))
    label = "" if line.label is None else f'<td style="{_LABEL}">{name}</td>'
    look = _LINE if line.gap else _CHARACTERS
    return f'<tr>{label}<td dir="auto" style="{look}">{html.escape(line.gap).join(spans)}</td></tr>'


def _hex(colour: np.ndarray) -> str:
    return f"#{colour.astype(np.uint8).tobytes().hex()}"


def _escaped(word: str, ground: np.ndarray, ink: np.ndarray) -> str:
    """The word with the codes before it that set its colours, and the one after that ends them."""
    back, front = (";".join(map(str, colour)) for colour in (ground, ink))
    end = "\n" if ends_line(word) else ""
    return f"\x1b[48;2;{back};38;2;{front}m{visible(word)}\x1b[0m{end}"
