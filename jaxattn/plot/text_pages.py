"""Text coloured by values: as HTML, in a terminal, and with matplotlib."""

import dataclasses
import html
import itertools
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from jaxattn.plot import style
from jaxattn.plot.style import ColorMap, Values
from jaxattn.plot.text_axes import draw
from jaxattn.plot.typeset import Line, ends_line, starts, visible


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Text:
    """Coloured words or characters.

    A notebook shows a `Text` as HTML, `print` writes it in the colours of a terminal, and `+` puts
    several below one another. `save` writes an HTML page, `draw` returns matplotlib Axes.

    Attributes:
        lines: The lines of the text.

    Examples:
        >>> import jaxattn as ja
        >>> text = ja.plot.text(["a", "good", "film"], [0.0, 1.0, 0.5])
        >>> text + text
        Text(6 words in 2 lines)
    """

    lines: tuple[Line, ...]

    def __add__(self, other: "Text") -> "Text":
        return Text(self.lines + other.lines)

    @property
    def html(self) -> str:
        """The text as one HTML element without dependencies.

        Each word is a `span` with its value as the title. Each line has the direction of its first
        letter.
        """
        rows = "\n".join(map(_row, self.lines))
        return f'<table style="{_TABLE}">\n{rows}\n</table>'

    @property
    def ansi(self) -> str:
        """The lines in reading order for a terminal with 24-bit colours.

        Signs replace characters that could steer the terminal.
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
        """Write an HTML page that holds the text.

        Args:
            path: Path of the page.
        """
        page = '<!DOCTYPE html>\n<html>\n<meta charset="utf-8">\n<title>words</title>\n'
        Path(path).write_text(f"{page}{self.html}\n</html>\n", encoding="utf-8")

    def draw(
        self,
        ax: Axes | None = None,
        *,
        columns: int = 80,
        font: str | Sequence[str] = ("DejaVu Sans Mono", "DejaVu Sans"),
    ) -> Axes:
        """Draw the lines in the cells of a monospaced font.

        Right-to-left scripts are laid out from the right, with joined Arabic letters.

        Args:
            ax: Axes to draw on; a new figure of the required size by default.
            columns: Number of cells per row; longer lines are broken, between words if possible.
            font: A font, or several in order of preference. The fonts that come with matplotlib
                have no ideographs.

        Returns:
            The Axes; a unit across is a cell, a row is two units high.

        Raises:
            ValueError: If `columns` is below 1.

        Examples:
            >>> import jaxattn as ja
            >>> ax = ja.plot.text(["a", "good", "film"], [0.0, 1.0, 0.5]).draw(columns=20)
            >>> ax.get_xlim()
            (np.float64(0.0), np.float64(20.0))
        """
        return draw(self.lines, ax, columns=columns, font=font)


def text(
    words: str | Sequence[str],
    values: Values | Mapping[str, Values],
    *,
    kind: Literal["relevance", "attention"] = "relevance",
    limit: float | None = None,
    cmap: ColorMap | None = None,
    gap: str = " ",
) -> Text:
    """Colour the background of words or characters by their values.

    Characters that form one cluster, such as letters with accents and composed emoji, share a cell,
    and their values are summed.

    Args:
        words: T words or subwords, or a string of T characters, which is shown without gaps.
        values: Values of shape `(T,)`, or several by name: one line each, after its name. Sum the
            values of an embedding to one per word first.
        kind: "relevance" for signed values, whose colours diverge from white at zero, or
            "attention" for non-negative ones, whose colours run from white at zero to red at
            `limit`: RGB (255, r, r) with r = 255 - int(255 a) for a fraction a of the limit.
        limit: End of the colour scale; the largest magnitude of each line by default. A limit of 1
            shows attention weights on their absolute scale, nearly white for long texts.
        cmap: Colour map: a diverging one for relevance, whose middle becomes white; any for
            attention.
        gap: Text between words.

    Returns:
        The coloured text: `html` and `ansi` hold it, `draw` draws it, `save` writes a page.

    Raises:
        ValueError: If a shape or length does not fit, a value is not finite, attention is negative,
            or `kind` is unknown.
        TypeError: If a word is not a string, or an array does not hold real numbers.

    Examples:
        >>> import jaxattn as ja
        >>> text = ja.plot.text("read me", [0.1, 0.2, 0.3, 0.1, 0, 0.2, 0.1], kind="attention")
        >>> text
        Text(7 words in 1 lines)
    """
    if isinstance(words, Set) or not isinstance(words, Iterable):
        raise TypeError(f"`words` must be a string or a sequence of strings, got {words!r}.")
    words = words if isinstance(words, str) else tuple(words)
    for word in words:
        if not isinstance(word, str):
            raise TypeError(f"`words` must be strings, got {word!r}.")
    if kind not in ("relevance", "attention"):
        raise ValueError(f'`kind` must be "relevance" or "attention", got {kind!r}.')
    gap = "" if isinstance(words, str) else gap
    if not isinstance(values, Mapping):
        heat = _check_values("values", values, len(words), kind)
        return Text((_line(None, words, heat, kind, limit, cmap, gap),))
    if not values:
        raise ValueError("`values` must hold at least one line, got none.")
    heats = {str(name): _check_values(str(name), v, len(words), kind) for name, v in values.items()}
    return Text(
        tuple(_line(name, words, heat, kind, limit, cmap, gap) for name, heat in heats.items())
    )


def _check_values(name: str, values: Values, count: int, kind: str) -> np.ndarray:
    """Return the values of `count` words as an array."""
    heat = style.real(name, values)
    if heat.shape != (count,):
        raise ValueError(
            f"`{name}` must have one value for each of {count} words, got {heat.shape}."
        )
    if kind == "attention" and heat.min() < 0:
        raise ValueError(f"`{name}` must not be negative to be attention, got {heat.min():.3g}.")
    return heat


def _line(
    label: str | None,
    words: Sequence[str],
    heat: np.ndarray,
    kind: str,
    limit: float | None,
    cmap: ColorMap | None,
    gap: str,
) -> Line:
    """Return one coloured line; without gaps, words that form one cluster are merged."""
    cells = tuple(words)
    if not gap:
        cuts = starts(words)
        pairs = itertools.pairwise([*cuts, len(words)])
        cells = tuple("".join(words[start:end]) for start, end in pairs)
        heat = np.add.reduceat(heat, cuts)
    fractions = heat / style.color_scale([heat], limit).limit
    if kind == "relevance":
        colours = _diverging(fractions, cmap or style.DIVERGING)
    else:
        colours = _sequential(np.minimum(fractions, 1), cmap)
    return Line(label, cells, heat, colours, gap)


def _diverging(fractions: np.ndarray, cmap: ColorMap) -> np.ndarray:
    """Return the colours (T, 3) of a map for fractions from -1 to 1 of the limit, white at zero.

    The middle of most colour maps is a pale grey, which would mark irrelevant words.
    """
    colours = mpl.colormaps.get_cmap(cmap)
    positions = np.clip((fractions + 1) / 2, 0, 1)
    paleness = 1 - np.abs(2 * positions - 1)
    to_white = 1 - np.asarray(colours(0.5)[:3])
    return _rgb(colours(positions)[:, :3] + paleness[:, None] * to_white)


def _sequential(fractions: np.ndarray, cmap: ColorMap | None) -> np.ndarray:
    """Return the colours (T, 3) of fractions from 0 to 1 of the limit."""
    if cmap is not None:
        return _rgb(mpl.colormaps.get_cmap(cmap)(fractions))
    rest = 255 - (255 * fractions).astype(np.uint8)
    return np.stack([np.full_like(rest, 255), rest, rest], axis=1)


def _rgb(colours: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.clip(colours[:, :3], 0, 1)).astype(np.uint8)


# All properties that a page or a notebook may set for its own tables are set here.
_TABLE = "border-collapse: collapse; width: auto"
_CELL = "border: 0; padding: 2px 8px; text-align: start; background: #ffffff"
_LABEL = f"{_CELL}; white-space: nowrap; color: #595959"
_LINE = f"{_CELL}; line-height: 1.6"
# No padding: Arabic letters join across the border of a span only without it.
_CHARACTERS = f"{_LINE}; font-family: monospace; overflow-wrap: anywhere"
_WORD = "border-radius: 3px; padding: 1px 2px; white-space: pre-wrap"
_CHARACTER = "white-space: pre-wrap"


def _row(line: Line) -> str:
    spans = (
        f'<span style="{_WORD if line.gap else _CHARACTER}; background: {_hex(ground)}; '
        f'color: {_hex(ink)}" title="{value:.3g}">{html.escape(visible(word))}</span>'
        f"{'<br>' if ends_line(word) else ''}"
        for word, value, ground, ink in zip(
            line.words, line.values, line.colours, line.inks, strict=True
        )
    )
    name = html.escape(visible(line.label or ""))
    label = "" if line.label is None else f'<td style="{_LABEL}">{name}</td>'
    look = _LINE if line.gap else _CHARACTERS
    return f'<tr>{label}<td dir="auto" style="{look}">{html.escape(line.gap).join(spans)}</td></tr>'


def _hex(colour: np.ndarray) -> str:
    return f"#{colour.astype(np.uint8).tobytes().hex()}"


def _escaped(word: str, ground: np.ndarray, ink: np.ndarray) -> str:
    """Return the word between the codes that set and reset its colours."""
    back, front = (";".join(map(str, colour)) for colour in (ground, ink))
    end = "\n" if ends_line(word) else ""
    return f"\x1b[48;2;{back};38;2;{front}m{visible(word)}\x1b[0m{end}"
