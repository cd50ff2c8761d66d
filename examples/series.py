"""Multivariate time series of the UEA archive, read from the package aeon."""

from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Series(NamedTuple):
    """A data set of time series.

    Attributes:
        x: series, padded with zeros on the right, (B, T, D).
        lengths: number of valid time steps, (B,).
        labels: classes, (B,).
    """

    x: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


def load(name: str) -> tuple[Series, Series, list[str]]:
    """Return the training series, the test series and the names of the classes.

    Each channel is standardized with the mean and the standard deviation of the training series.
    All series are padded to the length of the longest one.
    """
    try:
        package = metadata.distribution("aeon")
    except metadata.PackageNotFoundError as error:
        raise SystemExit("the series are part of a package: pip install --no-deps aeon") from error
    stem = f"aeon/datasets/data/{name}"
    splits = [
        read(Path(str(package.locate_file(f"{stem}/{name}_{part}.ts"))))
        for part in ("TRAIN", "TEST")
    ]
    all_steps = np.concatenate(splits[0][0])
    max_length = max(len(x) for xs, *_ in splits for x in xs)
    parts = []
    for xs, labels, _ in splits:
        padded = np.zeros((len(xs), max_length, all_steps.shape[1]), np.float32)
        for row, x in zip(padded, xs, strict=True):
            row[: len(x)] = (x - all_steps.mean(0)) / all_steps.std(0)
        parts.append(Series(padded, np.array(list(map(len, xs)), np.int32), labels))
    return parts[0], parts[1], splits[0][2]


def read(path: Path) -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """Read a .ts file: its series (T, D), the class of each, and the names of the classes.

    Each line holds the channels and the class, separated by colons. The values of a channel are
    separated by commas.
    """
    head, _, body = path.read_text(encoding="utf-8").partition("@data\n")
    names = next(line.split()[2:] for line in head.splitlines() if line.startswith("@classLabel"))
    xs, labels = [], []
    for line in body.split():
        *channels, label = line.split(":")
        xs.append(np.array([channel.split(",") for channel in channels], np.float64).T)
        labels.append(names.index(label))
    return xs, np.array(labels, np.int32), names
