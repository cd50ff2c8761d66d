"""Matrices with a label for each row and column, as one SVG drawing."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from jaxattn.reporting.panels import Panel, colours, data_uri, described, sign_marks

_CELL, _LETTER, _LONGEST = 15, 7.5, 16
#: The most labels on one side; of more, every second, third, ... is written.
_MOST_LABELS = 120


def matrix_panel(
    title: str,
    values: Float[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
) -> Panel:
    """Draw a matrix, one square per entry, with its labels."""
    caption = described(values)
    left = 8 + _LETTER * max(map(len, map(_short, rows)))
    width, height = _CELL * len(columns), _CELL * len(rows)
    upright = max(map(len, columns)) <= 2
    bottom = _CELL + 4 if upright else 8 + _LETTER * max(map(len, map(_short, columns)))
    parts = [_image(colours(values), left, width, height, "")]
    marks = sign_marks(values)
    if marks is not None:
        parts.append(_image(marks, left, width, height, "signs"))
    for i in range(0, len(rows), -(-len(rows) // _MOST_LABELS)):
        y = _CELL * (i + 0.5) + 4
        parts.append(
            Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(
                left - 4, y, _short(rows[i])
            )
        )
    for i in range(0, len(columns), -(-len(columns) // _MOST_LABELS)):
        x = left + _CELL * (i + 0.5)
        place = (
            f'x="{x:.1f}" y="{height + _CELL - 2}" text-anchor="middle"'
            if upright
            else f'transform="translate({x + 4:.1f} {height + 4}) rotate(-90)" text-anchor="end"'
        )
        parts.append(Markup("<text {}>{}</text>").format(Markup(place), _short(columns[i])))
    drawing = Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="{}"><svg class="matrix" '
        'width="{:.0f}" height="{:.0f}" role="img" aria-label="{}">{}</svg></div>'
    ).format(title, left + width, height + bottom, f"{title}: {caption}", Markup("").join(parts))
    return Panel(title, drawing, f"{caption}; {len(rows)} rows, {len(columns)} columns", full=True)


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"


def _image(pixels: np.ndarray, left: float, width: int, height: int, kind: str) -> Markup:
    return Markup(
        '<image class="{}" x="{:.1f}" width="{}" height="{}" preserveAspectRatio="none" href="{}"/>'
    ).format(kind, left, width, height, data_uri(pixels))
