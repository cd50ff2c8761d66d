"""Panels: arrays as PNG images, SVG drawings and coloured words, each with its scale in numbers."""

import base64
import dataclasses
import html
import struct
import zlib
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Shaped, UInt8
from markupsafe import Markup

from jaxattn.plot.style import DIVERGING, SEQUENTIAL
from jaxattn.plot.text_pages import text

#: The colour of NaN, which no colour map here contains, in grey either.
NAN_COLOUR = (0, 0, 0)
#: The longest series that is drawn point by point, and the most lines in one panel.
_MOST_POINTS, _MOST_LINES = 2000, 8
#: The mean of RGB below which a colour is dark.
_DARK = 120
_DASHES = ("", "6 3", "2 2", "8 3 2 3", "12 4", "1 3", "4 1", "9 2 2 2 2 2")


@dataclasses.dataclass(frozen=True)
class Panel:
    """One drawing.

    Attributes:
        title: what is drawn.
        body: the HTML of the drawing.
        caption: the scale and extreme values, in words.
        group: the class of a derivative, or `None`.
        shown: whether the panel is visible at first.
        full: whether the panel takes the full width.
    """

    title: str
    body: Markup
    caption: str
    group: int | None = None
    shown: bool = True
    full: bool = False


@dataclasses.dataclass(frozen=True)
class Scale:
    """The range of colours of one panel: from -limit to limit if signed, else from 0 to limit."""

    limit: float
    signed: bool


def scale_of(values: Shaped[np.ndarray, "..."]) -> Scale:
    """Return the scale of values; NaN and infinity do not count."""
    finite = values[np.isfinite(values)]
    limit = float(np.abs(finite).max()) if finite.size else 0.0
    return Scale(limit or 1.0, bool((finite < 0).any()))


def colours(
    values: Float[np.ndarray, "..."], scale: Scale | None = None
) -> UInt8[np.ndarray, "... 3"]:
    """Return RGB colours: diverging about zero if a value is negative, otherwise sequential."""
    scale = scale or scale_of(values)
    fractions = np.clip(np.nan_to_num(values / scale.limit, nan=0.0), -1, 1)
    positions = (fractions + 1) / 2 if scale.signed else np.maximum(fractions, 0)
    cmap = mpl.colormaps[DIVERGING if scale.signed else SEQUENTIAL]
    rgb = cmap(positions, bytes=True)[..., :3]
    return np.where(np.isnan(values)[..., None], np.asarray(NAN_COLOUR, np.uint8), rgb).astype(
        np.uint8
    )


def described(values: Float[np.ndarray, "..."]) -> str:
    """Return the scale, the extreme values and the number of NaN in words."""
    scale, finite = scale_of(values), values[np.isfinite(values)]
    start = f"-{scale.limit:.3g}" if scale.signed else "0"
    words = [f"scale {start} to {scale.limit:.3g}"]
    if finite.size:
        words.append(f"values {finite.min():.3g} to {finite.max():.3g}")
    if np.isnan(values).any():
        words.append(f"{np.isnan(values).sum()} NaN (black)")
    if np.isinf(values).any():
        words.append(f"{np.isinf(values).sum()} infinite")
    return "; ".join(words)


def png(pixels: UInt8[np.ndarray, "H W channels"]) -> bytes:
    """Encode pixels in RGB, or in RGB and opacity, as a PNG file."""
    height, width, channels = pixels.shape
    rows = np.concatenate(
        [np.zeros((height, 1), np.uint8), pixels.reshape(height, width * channels)], axis=1
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + chunk(b"IEND", b"")
    )


def data_uri(pixels: UInt8[np.ndarray, "H W channels"]) -> str:
    """Return pixels as the address of a PNG image."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


def picture(pixels: UInt8[np.ndarray, "H W 3"], alt: str, kind: str = "pixels") -> Markup:
    """Return an image element that holds pixels; the style of the page enlarges it."""
    height, width, _ = pixels.shape
    return Markup(
        '<img class="{}" loading="lazy" width="{}" height="{}" alt="{}" src="{}">'
    ).format(kind, width, height, alt, data_uri(pixels))


def sign_marks(values: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "3*H 3*W 4"] | None:
    """Return dots in the middle of negative values, or `None` if there are none.

    In grey, both ends of the diverging scale are dark. Magnitudes below 1/20 of the limit get no
    dot.
    """
    scale = scale_of(values)
    negative = np.nan_to_num(values, nan=0.0) < -0.05 * scale.limit
    if not negative.any():
        return None
    light = colours(values).astype(float).mean(-1) > _DARK
    marks = np.zeros((3 * values.shape[0], 3 * values.shape[1], 4), np.uint8)
    marks[1::3, 1::3, :3] = np.where(light, 0, 255)[..., None]
    marks[1::3, 1::3, 3] = 255 * negative
    return marks


def marked_picture(values: Float[np.ndarray, "H W"], alt: str, kind: str = "pixels") -> Markup:
    """Return an image of values, with marks of their sign that the page can show."""
    image, marks = picture(colours(values), alt, kind), sign_marks(values)
    if marks is None:
        return image
    return Markup(
        '<span class="stack {}">{}<img class="signs" loading="lazy" alt="" src="{}"></span>'
    ).format(kind, image, data_uri(marks))


def image_panel(title: str, values: Shaped[np.ndarray, "..."]) -> Panel:
    """Draw values (H, W) or (H, W, C), summed over channels, at their own resolution."""
    values = values.sum(-1) if values.ndim == 3 else values
    if values.ndim != 2:
        return failure(title, f"Values of shape {values.shape} are not an image.")
    drawn = marked_picture(values, f"{title}: {described(values)}")
    return Panel(title, drawn, described(values))


def input_image(x: Shaped[np.ndarray, "..."]) -> Panel:
    """Draw the input: RGB if it has three channels, otherwise grey."""
    grey = x if x.ndim == 2 else x.mean(-1)
    shown = x if x.ndim == 3 and x.shape[-1] == 3 else np.repeat(grey[..., None], 3, -1)
    finite = shown[np.isfinite(shown)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    unit = np.clip((np.nan_to_num(shown, nan=low) - low) / ((high - low) or 1.0), 0, 1)
    caption = f"{low:.3g} (black) to {high:.3g} (white)"
    missing = np.isnan(shown).any(-1)
    pixels = np.rint(255 * unit).astype(np.uint8)
    if missing.any():
        pixels = np.where(missing[..., None], np.asarray((230, 159, 0), np.uint8), pixels).astype(
            np.uint8
        )
        caption += f"; {missing.sum()} NaN (orange)"
    return Panel("input", picture(pixels, f"input: {caption}"), caption)


def series_panel(title: str, values: Shaped[np.ndarray, "..."]) -> Panel:
    """Draw values (T,) or (T, D) as lines over a strip of their colours, time to the right."""
    lines = values[:, None] if values.ndim == 1 else values
    if lines.ndim != 2:
        return failure(title, f"Values of shape {values.shape} are not a series.")
    strip = marked_picture(lines.T, f"{title}: {described(values)}", "strip")
    caption = f"{described(values)}; {_extent(lines)}"
    return Panel(title, Markup("{}{}").format(lines_svg(lines, title), strip), caption)


def input_series(x: Shaped[np.ndarray, "..."]) -> Panel:
    """Draw the input series (T,) or (T, D) as lines, with gaps at NaN."""
    lines = x[:, None] if x.ndim == 1 else x
    finite = lines[np.isfinite(lines)]
    caption = f"values {finite.min():.3g} to {finite.max():.3g}" if finite.size else "no values"
    if np.isnan(lines).any():
        caption += f"; {np.isnan(lines).sum()} NaN (gaps)"
    return Panel("input", lines_svg(lines, "input"), f"{caption}; {_extent(lines)}")


def _extent(lines: Float[np.ndarray, "T D"]) -> str:
    steps, features = lines.shape
    drawn = "" if features <= _MOST_LINES else f", lines of the first {_MOST_LINES}"
    if (stride := -(-steps // _MOST_POINTS)) > 1:
        drawn += f", one of {stride} steps in the lines"
    return f"{steps} steps of {features} feature{'s' * (features > 1)}{drawn}"


def lines_svg(lines: Float[np.ndarray, "T D"], title: str) -> Markup:
    """Draw the first features as lines of distinct dashes; NaN leaves a gap."""
    stride = -(-len(lines) // _MOST_POINTS)
    lines = lines[::stride, :_MOST_LINES].astype(float)
    finite = lines[np.isfinite(lines)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    low, high = min(low, 0.0), max(high, 0.0)
    span = (high - low) or 1.0
    across = np.arange(len(lines)) + 0.5
    paths = []
    for feature, line in enumerate(lines.T):
        ys = 60 - 56 * (line - low) / span - 2
        colour = f"var(--line{feature % 8})"
        paths.append(
            f'<path d="{_path(across, ys)}" stroke="{colour}" '
            f'stroke-dasharray="{_DASHES[feature % 8]}"/>'
        )
    zero = 58 + 56 * low / span
    return Markup(
        f'<svg class="series" viewBox="0 0 {len(lines)} 60" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(title)}"><line class="zero" x1="0" x2="{len(lines)}" '
        f'y1="{zero:.2f}" y2="{zero:.2f}"/>{"".join(paths)}</svg>'
    )


def _path(xs: Float[np.ndarray, " T"], ys: Float[np.ndarray, " T"]) -> str:
    """Return the path through the finite points; a lone one becomes a short stroke."""
    parts, pen = [], False
    for x, y in zip(xs, ys, strict=True):
        if np.isfinite(y):
            parts.append(f"{'L' if pen else 'M'}{x:g} {y:.2f}" + ("" if pen else "h.01"))
        pen = bool(np.isfinite(y))
    return "".join(parts)


def text_panel(title: str, values: Shaped[np.ndarray, "..."], tokens: Sequence[str]) -> Panel:
    """Colour words by values (T,) or (T, E), summed over the embedding; NaN is written out."""
    values = values.sum(-1) if values.ndim == 2 else values
    if values.shape != (len(tokens),):
        return failure(title, f"Values of shape {values.shape} do not fit {len(tokens)} tokens.")
    values, tokens = without_padding(values, tokens)
    scale = scale_of(values)
    finite = np.clip(np.nan_to_num(values, nan=0.0), -scale.limit, scale.limit)
    words = [
        word if np.isfinite(value) else f"{word} [{'NaN' if np.isnan(value) else value}]"
        for word, value in zip(tokens, values, strict=True)
    ]
    kind = "relevance" if scale.signed else "attention"
    cmap = DIVERGING if scale.signed else SEQUENTIAL
    drawn = text(words, finite, kind=kind, limit=scale.limit, cmap=cmap)  # type: ignore[arg-type]
    body = Markup('<div class="words">{}</div>').format(Markup(drawn.html))
    return Panel(title, body, described(values).replace(" (black)", ""))


def without_padding(
    values: Float[np.ndarray, "... T"], tokens: Sequence[str]
) -> tuple[Float[np.ndarray, "... kept"], list[str]]:
    """Return values and tokens without those of empty tokens, which stand for padding."""
    kept = [i for i, token in enumerate(tokens) if token]
    return (values[..., kept], [tokens[i] for i in kept]) if kept else (values, list(tokens))


def joined(tokens: Sequence[str]) -> str:
    """Return tokens as one line: characters without gaps, words with spaces."""
    return ("" if max(map(len, tokens), default=0) < 2 else " ").join(tokens)


def input_text(tokens: list[str]) -> Panel:
    """Show the tokens of the input as text, without those of padding."""
    body = Markup('<p class="plain" dir="auto">{}</p>').format(
        joined([token for token in tokens if token])
    )
    padding = tokens.count("")
    caption = f"{len(tokens) - padding} tokens" + (f", {padding} of padding" if padding else "")
    return Panel("input", body, caption)


def note(text: str) -> Markup:
    """Return a text as a paragraph of HTML."""
    return Markup("<p>{}</p>").format(text)


def failure(title: str, why: str) -> Panel:
    """Return a panel that says why nothing is drawn."""
    return Panel(title, Markup('<p class="failed"><b>Failed.</b> {}</p>').format(why), "")


def legend(signed: bool) -> Panel:
    """Draw the colours from one end of the scale to the other."""
    ramp = np.linspace(-1 if signed else 0, 1, 101)[None]
    title = "signed values" if signed else "values without sign"
    caption = (
        "-1 opposes (blue) · 0 (white) · 1 supports (red), times the limit of a panel"
        if signed
        else "0 (white) · 1 (dark purple), times the limit of a panel"
    )
    return Panel(title, picture(colours(ramp), f"legend: {caption}", "ramp"), caption)
