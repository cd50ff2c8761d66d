"""Multivariate time series of several channels, as they come with the package aeon."""

from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Series(NamedTuple):
    """Series padded with zeros on the right, (B, T, D), their lengths (B,) and classes (B,)."""

    x: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


def load(name: str) -> tuple[Series, Series, list[str]]:
    """The archive's series to learn from and to test, each channel of mean 0 and variance 1.

    Both are scaled by what the series to learn from have, and padded to the longest of all. The
    third part are the names of the classes.
    """
    try:
        package = metadata.distribution("aeon")
    except metadata.PackageNotFoundError as error:
        raise SystemExit("the series come with a package: pip install --no-deps aeon") from error
    folder = f"aeon/datasets/data/{name}"
    found = [
        read(Path(str(package.locate_file(f"{folder}/{name}_{part}.ts"))))
        for part in ("TRAIN", "TEST")
    ]
    steps = np.concatenate(found[0][0])
    longest = max(len(x) for xs, *_ in found for x in xs)
    parts = []
    for xs, labels, _ in found:
        padded = np.zeros((len(xs), longest, steps.shape[1]), np.float32)
        for row, x in zip(padded, xs, strict=True):
            row[: len(x)] = (x - steps.mean(0)) / steps.std(0)
        parts.append(Series(padded, np.array(list(map(len, xs)), np.int32), labels))
    return parts[0], parts[1], found[0][2]


def read(path: Path) -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """The series (T, D) of a .ts file, the class of each, and the names of the classes.

    A line holds the channels, their values separated by commas, and the class, between colons.
    """
    head, _, body = path.read_text(encoding="utf-8").partition("@data\n")
    names = next(line.split()[2:] for line in head.splitlines() if line.startswith("@classLabel"))
    xs, labels = [], []
    for line in body.split():
        *channels, label = line.split(":")
        xs.append(np.array([channel.split(",") for channel in channels], np.float64).T)
        labels.append(names.index(label))
    return xs, np.array(labels, np.int32), names
