"""Curves over fractions as one SVG drawing, with distinct lines that are labelled directly."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup, escape

from jaxattn.plot.method_styles import line_styles
from jaxattn.reporting.contents import DeletionCurve

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 320, 66, 210, 14, 40
_DASHES = {"-": "", "--": "7 4", ":": "2 3", "-.": "9 3 2 3"}
_LABEL_HEIGHT = 15


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart so that none overlaps, in their order, and between two ends if possible."""
    order = np.argsort(places, kind="stable")
    moved = np.asarray(places, float)[order]
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    if len(moved) and moved[-1] > high:
        moved[-1] = high
        for i in range(len(moved) - 2, -1, -1):
            moved[i] = min(moved[i], moved[i + 1] - gap)
    result = np.empty_like(moved)
    result[order] = moved
    return [float(place) for place in result]


def curves_svg(curves: Sequence[DeletionCurve]) -> Markup:
    """Draw curves, each with its name at its end."""
    drawn = [curve for curve in curves if np.isfinite(curve.scores).any()]
    if not drawn:
        return Markup("")
    scores = np.concatenate([curve.scores[np.isfinite(curve.scores)] for curve in drawn])
    low, high = float(scores.min()), float(scores.max())
    span = (high - low) or 1.0
    floor = _HEIGHT - _BOTTOM

    def down(score: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
        return floor - (score - low) / span * (floor - _TOP)

    ends = [float(down(curve.scores[np.isfinite(curve.scores)])[-1]) for curve in drawn]
    labels = spread(ends, _LABEL_HEIGHT, _TOP, floor)
    right = _WIDTH - _RIGHT
    parts = []
    for place in np.linspace(0, 1, 5):
        y, x = floor - place * (floor - _TOP), _LEFT + place * (right - _LEFT)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{low + place * span:.3g}</text>"
            f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{100 * place:.0f} %</text>'
        )
    styles = line_styles([curve.name for curve in drawn])
    for curve, end, label in zip(drawn, ends, labels, strict=True):
        xs = _LEFT + curve.fractions * (right - _LEFT)
        points = " ".join(
            f"{x:.1f},{y:.1f}" for x, y in zip(xs, down(curve.scores), strict=True) if y == y
        )
        colour, dashes = styles[curve.name].colour, _DASHES[styles[curve.name].line]
        parts.append(
            f'<polyline points="{points}" stroke="{colour}" stroke-dasharray="{dashes}"/>'
            f'<path class="lead" d="M{right} {end:.1f}L{right + 12} {label:.1f}h34" '
            f'stroke="{colour}" stroke-dasharray="{dashes}"/>'
            f'<text x="{right + 52}" y="{label + 4:.1f}">{escape(curve.name)}</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">'
        "features deleted</text>"
    )
    return Markup(
        f'<svg class="curves" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="deletion curves">{"".join(parts)}</svg>'
    )
