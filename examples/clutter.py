"""Handwritten digits, and digits lost among fragments of others on a wide canvas."""

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples import digits, training

FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


class Digits(NamedTuple):
    """Digits (B, 28, 28) in [0, 1], and their labels (B,)."""

    images: np.ndarray
    labels: np.ndarray


class Scenes(NamedTuple):
    """Canvases (B, H, W) in [0, 1], labels (B,), and the top left corner (B, 2) of each digit."""

    images: np.ndarray
    labels: np.ndarray
    corners: np.ndarray


def load(folder: str | Path | None = None) -> tuple[Digits, Digits]:
    """Digits to train and to test on: of MNIST's files in a folder, or 5,000 that are installed."""
    if folder is None:
        images, labels = digits.load()
        return tuple(  # type: ignore[return-value]
            Digits(images[rows], labels[rows])
            for rows in training.stratified_split(labels, 0.2, seed=0)
        )
    found = [_read(Path(folder), name) for name in FILES]
    for images, labels in (found[:2], found[2:]):
        if images.shape != (len(labels), 28, 28) or labels.shape != (len(labels),):
            raise SystemExit(f"{folder}: images {images.shape} do not fit labels {labels.shape}")
    parts = [Digits((x / 255).astype(np.float32), y.astype(np.int32))
             for x, y in (found[:2], found[2:])]  # fmt: skip
    return parts[0], parts[1]


def _read(folder: Path, name: str) -> np.ndarray:
    """An IDX file of bytes: a magic number that ends in the rank, the sizes, the bytes."""
    stems = (name, name.replace("-idx", ".idx"))
    paths = [folder / f"{stem}-ubyte{end}" for stem in stems for end in ("", ".gz")]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        raise SystemExit(f"{folder} has no {name}-ubyte, nor {name}-ubyte.gz: it is part of MNIST")
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    rank = raw[3] if raw[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(raw[4 : 4 + 4 * rank], ">u4")
    if not rank or len(raw) != 4 + 4 * rank + shape.prod():
        raise SystemExit(f"{path} is no IDX file of bytes, or only a part of one")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def shifted(found: Digits, rng: np.random.Generator, by: int = 2) -> Digits:
    """Each digit moved by up to so many pixels, zeros following it in."""
    images, sides = found.images, found.images.shape[1:]
    canvas = np.pad(images, ((0, 0), (by, by), (by, by)))
    starts = rng.integers(0, 2 * by + 1, (len(images), 2))
    return Digits(canvas[_block(starts, sides)], found.labels)


def scattered(
    found: Digits, rng: np.random.Generator, *, size: int = 60, fragments: int = 4, width: int = 8
) -> Scenes:
    """Each digit at a random place of a canvas, among pieces of other digits (Mnih et al. 2014).

    The pieces are cut from the middle of the other digits, where there is ink.
    """
    count, *sides = found.images.shape
    canvas = np.zeros((count, size, size), np.float32)
    corners = rng.integers(0, size - np.array(sides) + 1, (count, 2))
    canvas[_block(corners, sides)] = found.images
    for _ in range(fragments):
        others = (np.arange(count) + rng.integers(1, max(count, 2), count)) % count
        cut = rng.integers(4, np.array(sides) - width - 3, (count, 2))
        pieces = found.images[others][_block(cut, (width, width))]
        place = _block(rng.integers(0, size - width + 1, (count, 2)), (width, width))
        canvas[place] = np.maximum(canvas[place], pieces)
    return Scenes(canvas, found.labels, corners)


def _block(starts: np.ndarray, sides) -> tuple[np.ndarray, ...]:
    """The index of a block of this shape in each of B images, from its own start (B, 2)."""
    rows = starts[:, 0, None] + np.arange(sides[0])
    columns = starts[:, 1, None] + np.arange(sides[1])
    return np.arange(len(starts))[:, None, None], rows[:, :, None], columns[:, None, :]
