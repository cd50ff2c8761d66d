"""Flowcharts of Mermaid, drawn as SVG while the site is built: Mermaid itself is a script."""

import html
import re

NODE = r'(\w+)(?:\(?\["(.*?)"\]\)?)?'
EDGE = re.compile(rf'^\s*{NODE}\s*-->\s*(?:\|"(.*?)"\|\s*)?{NODE}\s*$', re.MULTILINE)
WIDTH, HEIGHT, GAP_X, GAP_Y = 300, 52, 24, 44


def svg(text: str) -> str:
    """Return a flowchart from top to bottom: a row for each depth, an arrow for each edge.

    Args:
        text: lines of the form `a["text"] -->|"label"| b["text"]`.

    Raises:
        ValueError: for a text without edges.
    """
    edges = EDGE.findall(text)
    if not edges:
        raise ValueError(f"`text` must be a flowchart with edges, got {text!r}.")
    texts = {node: node for a, _, _, b, _ in edges for node in (a, b)}
    for a, of_a, _, b, of_b in edges:
        texts |= {node: found for node, found in ((a, of_a), (b, of_b)) if found}
    depth = dict.fromkeys(texts, 0)
    for _ in texts:
        for a, _, _, b, _ in edges:
            depth[b] = max(depth[b], depth[a] + 1)
    rows = [[node for node in texts if depth[node] == d] for d in range(max(depth.values()) + 1)]
    full = max(map(len, rows)) * (WIDTH + GAP_X) - GAP_X
    place = {}
    for d, row in enumerate(rows):
        start = (full - len(row) * (WIDTH + GAP_X) + GAP_X) / 2
        for i, node in enumerate(row):
            place[node] = (start + i * (WIDTH + GAP_X), 1 + d * (HEIGHT + GAP_Y))
    boxes = [_box(texts[node], *place[node]) for node in texts]
    arrows = [_arrow(label, place[a], place[b]) for a, _, label, b, _ in edges]
    tall = len(rows) * (HEIGHT + GAP_Y) - GAP_Y + 2
    return (
        f'<svg class="flowchart" viewBox="-1 0 {full + 2} {tall}" role="img" '
        'aria-label="Flowchart"><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>'
        + "".join(arrows + boxes)
        + "</svg>"
    )


def _box(text: str, x: float, y: float) -> str:
    lines = [html.escape(html.unescape(line)) for line in text.split("<br/>")]
    first = y + HEIGHT / 2 + 5 - 9 * (len(lines) - 1)
    words = [
        f'<text x="{x + WIDTH / 2}" y="{first + 18 * i}">{line}</text>'
        for i, line in enumerate(lines)
    ]
    return f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>' + "".join(words)


def _arrow(label: str, start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y, u, v = start[0] + WIDTH / 2, start[1] + HEIGHT, end[0] + WIDTH / 2, end[1]
    between = (x + u) / 2
    # An arrow over several rows passes between the columns of the last one.
    way = f"{between} {v - GAP_Y - HEIGHT} {between} {v - GAP_Y}" if v - y > GAP_Y else ""
    line = f'<path class="edge" d="M{x} {y} {way} {u} {v}" marker-end="url(#tip)"/>'
    if not label:
        return line
    # Beside the arrow, on the side from which it does not come.
    side, anchor = (25, "end") if u < x else (-25, "start")
    place = f'x="{u + side}" y="{v - 12}" style="text-anchor: {anchor}"'
    return line + f"<text {place}>{html.escape(label)}</text>"
