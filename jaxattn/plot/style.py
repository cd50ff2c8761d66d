"""What the figures share: checked arrays, the colour scale, axes, and colour bars."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, Normalize

DIVERGING, SEQUENTIAL = "RdBu_r", "Blues"
INK, PALE, HIGHLIGHT = "0.25", "0.7", "#d62728"
# Okabe and Ito's colours, which stay distinct for colour-blind readers; black goes last.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")


def real(name: str, array: Any) -> np.ndarray:
    """The argument called `name` as a finite float64 array; an `Attribution` gives its values."""
    if hasattr(array, "values") and hasattr(array, "output"):
        array = array.values
    try:
        found = np.asarray(array)
    except ValueError:
        raise ValueError(f"{name} must be one array, got rows of different lengths") from None
    if found.dtype.kind in "OUScMm":
        kind = type(array).__name__ if found.dtype.kind == "O" else found.dtype
        raise TypeError(f"{name} must be one array of real numbers, got {kind}")
    found = found.astype(np.float64)
    if not found.size:
        raise ValueError(f"{name} must not be empty, got shape {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite, got {(~np.isfinite(found)).sum()} NaN or inf")
    return found


def examples(name: str, batch: Any) -> list:
    """One array an example, from a batch (B, ...) or a sequence of B arrays or attributions."""
    if hasattr(batch, "values") and hasattr(batch, "output"):
        batch = batch.values
    found = list(batch) if isinstance(batch, list | tuple) else list(np.atleast_1d(batch))
    if not found:
        raise ValueError(f"{name} must hold at least one example, got none")
    return found


def same_length(name: str, found: Sequence | np.ndarray | None, count: int, of: str) -> None:
    """Refuse a `found` that does not have one entry for each of `count`; `None` passes."""
    if found is not None and len(found) != count:
        raise ValueError(f"{name} must have one entry for each of {count} {of}, got {len(found)}")


def largest(*arrays: np.ndarray) -> float:
    """The largest magnitude, or 1 where everything is zero."""
    return max(float(np.abs(array).max()) for array in arrays) or 1.0


def symmetric(limit: float | None, *arrays: np.ndarray) -> Normalize:
    """The colour scale from `-limit` to `limit`, by default the largest magnitude."""
    if limit is None:
        limit = largest(*arrays)
    if not (math.isfinite(limit) and limit > 0):
        raise ValueError(f"limit must be a positive number, got {limit}")
    return Normalize(-float(limit), float(limit))


def panels(ax: Any, shape: tuple[int, ...], rows: int, columns: int, **figure: Any) -> np.ndarray:
    """`ax` as an array of Axes of this shape; without it, of a new figure, spare cells removed."""
    if ax is None:
        _, grid = plt.subplots(rows, columns, squeeze=False, **figure)
        for spare in grid.flat[math.prod(shape) :]:
            spare.remove()
        return grid.flat[: math.prod(shape)].reshape(shape)
    given = np.asarray(ax, dtype=object)
    if given.shape != shape:
        wanted = f"an array of Axes of shape {shape}" if shape else "one Axes"
        raise ValueError(f"ax must be {wanted}, got shape {given.shape}")
    return given


def borders(marked: np.ndarray) -> np.ndarray:
    """The lines (n, 2 ends, x and y) between marked cells and others."""
    padded = np.pad(marked, 1)
    upright = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])[:, ::-1] - 0.5
    level = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])[:, ::-1] - 0.5
    along_y, along_x = np.array([0, 1]), np.array([1, 0])
    return np.concatenate([
        np.stack([upright, upright + along_y], axis=1),
        np.stack([level, level + along_x], axis=1),
    ])  # fmt: skip


def colorbar(
    axes: Axes | np.ndarray,
    norm: Normalize,
    arrays: Sequence[np.ndarray],
    label: str,
    cmap: str | Colormap = DIVERGING,
    **options: Any,
) -> Colorbar:
    """Add the one colour bar of `axes`; only its upper (lower) half where no value is negative."""
    low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
    limit = float(norm.vmax or 1)
    below, above = low < -limit, high > limit
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]
    owner = np.asarray(axes, dtype=object).flat[0].figure
    bar = owner.colorbar(
        ScalarMappable(norm, cmap),
        ax=None if "cax" in options else np.asarray(axes, dtype=object).ravel().tolist(),
        extend=extend,
        label=label,
        **options,
    )
    if low >= 0 and high > 0:
        bar.ax.set_ylim(0, limit)
    elif high <= 0 and low < 0:
        bar.ax.set_ylim(-limit, 0)
    bar.outline.set_visible(False)
    bar.formatter.set_powerlimits((-2, 3))
    bar.ax.tick_params(labelsize="small")
    return bar


def is_series(kind: str, shape: tuple[int, ...]) -> bool:
    """Whether an input is drawn as traces: by `kind`, or, if "auto", for shapes (T,) and (T, 1)."""
    if kind not in ("auto", "image", "series"):
        raise ValueError(f'kind must be "auto", "image" or "series", got {kind!r}')
    return kind == "series" or (kind == "auto" and (len(shape) == 1 or shape[1:] == (1,)))
