"""Feature groups for the option `groups` of methods: windows, channels, spans, superpixels."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

__all__ = ["channels", "spans", "superpixels", "windows"]


def windows(shape: Sequence[int], window: int | Sequence[int]) -> Int[np.ndarray, "..."]:
    """Return groups that are windows side by side.

    Args:
        shape: the shape of one example.
        window: the size of a window along the first axis, or along each of the first axes; axes
            that are not named are covered whole. The last window along an axis may be smaller.

    Returns:
        the number of the window of each feature, in row-major order, of `shape`.

    Raises:
        TypeError: for sizes that are not ints.
        ValueError: for a window with more axes than `shape`, or a size below 1.

    Examples:
        >>> import jaxattn as ja
        >>> ja.groups.windows((5,), 2)
        array([0, 0, 1, 1, 2], dtype=int32)
        >>> ja.groups.windows((2, 4), (1, 2))
        array([[0, 0, 1, 1],
               [2, 2, 3, 3]], dtype=int32)
    """
    shape = _shape(shape)
    sizes = tuple(window) if isinstance(window, (tuple, list, np.ndarray)) else (window,)
    if not 1 <= len(sizes) <= len(shape):
        raise ValueError(
            f"`window` must have at least one and at most as many axes as shape {shape}, got "
            f"{window!r}."
        )
    ids = np.zeros(shape, np.int32)
    for axis, (length, size) in enumerate(zip(shape, sizes, strict=False)):
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
            raise TypeError(f"`window` must hold ints, got {size!r}.")
        if size < 1:
            raise ValueError(f"`window` must be at least 1 along each axis, got {window!r}.")
        numbers = np.arange(length, dtype=np.int32) // np.int32(size)
        ids = ids * np.int32(-(-length // size)) + _along(numbers, axis, len(shape))
    return ids


def channels(shape: Sequence[int], axis: int = -1) -> Int[np.ndarray, "..."]:
    """Return groups that are the channels of one axis.

    Args:
        shape: the shape of one example.
        axis: the axis of the channels.

    Returns:
        the channel of each feature, of `shape`.

    Raises:
        TypeError: for an axis that is not an int.
        ValueError: for an axis that `shape` does not have.

    Examples:
        >>> import jaxattn as ja
        >>> ja.groups.channels((2, 3))
        array([[0, 1, 2],
               [0, 1, 2]], dtype=int32)
    """
    shape = _shape(shape)
    if not isinstance(axis, (int, np.integer)):
        raise TypeError(f"`axis` must be an int, got {axis!r}.")
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"`axis` must be an axis of shape {shape}, got {axis}.")
    numbers = np.arange(shape[axis], dtype=np.int32)
    return np.zeros(shape, np.int32) + _along(numbers, axis % len(shape), len(shape))


def spans(
    lengths: Sequence[int] | None = None, *, words: Sequence[int | None] | None = None
) -> Int[np.ndarray, " tokens"]:
    """Return groups that are spans of consecutive tokens, such as words or sentences.

    Args:
        lengths: the number of tokens of each span.
        words: instead of lengths, the word of each token, as tokenizers return it. Consecutive
            tokens of one word form a span; each token without a word (`None`), such as a separator,
            becomes a group of its own.

    Returns:
        the span of each token. For features of tokens add an axis: `spans(...)[:, None]`.

    Raises:
        ValueError: if not exactly one of both is given, and for a length below 1.

    Examples:
        >>> import jaxattn as ja
        >>> ja.groups.spans([2, 1, 2])
        array([0, 0, 1, 2, 2], dtype=int32)
        >>> ja.groups.spans(words=[None, 0, 0, 1, None])
        array([0, 1, 1, 2, 3], dtype=int32)
    """
    if (lengths is None) == (words is None):
        raise ValueError("`lengths` or `words` must be given, and not both.")
    if lengths is not None:
        sizes = np.asarray(lengths)
        if sizes.ndim != 1 or not np.issubdtype(sizes.dtype, np.integer) or (sizes < 1).any():
            raise ValueError(f"`lengths` must be ints of at least 1, got {lengths!r}.")
        return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    tokens = list(words or ())
    starts = [i == 0 or word is None or word != tokens[i - 1] for i, word in enumerate(tokens)]
    return np.cumsum(starts, dtype=np.int32) - np.int32(1)


def superpixels(image: Any, num_segments: int = 50, **options: Any) -> Int[np.ndarray, "..."]:
    """Return groups that are superpixels of an image, by SLIC of scikit-image.

    Args:
        image: an image of shape (height, width) or (height, width, channels).
        num_segments: the approximate number of superpixels.
        **options: options of `skimage.segmentation.slic`.

    Returns:
        the superpixel of each feature, from 0, of the shape of `image`.

    Raises:
        ImportError: if scikit-image is not installed.
        ValueError: for an array that is no image.

    Reference:
        Achanta et al. 2012, SLIC superpixels compared to state-of-the-art superpixel methods,
        doi:10.1109/TPAMI.2012.120.

    Examples:
        A superpixel does not extend over the edge of an object.

        >>> import numpy as np
        >>> import jaxattn as ja
        >>> image = np.zeros((8, 8))
        >>> image[:, 5:] = 1.0
        >>> print(ja.groups.superpixels(image, 4)[0])
        [0 0 0 0 0 1 1 1]
    """
    pixels = np.asarray(image)
    if pixels.ndim not in (2, 3):
        raise ValueError(
            "`image` must have shape (height, width) or (height, width, channels), got "
            f"{pixels.shape}."
        )
    try:
        segmentation = importlib.import_module("skimage.segmentation")
    except ImportError as error:
        raise ImportError(
            "jaxattn.groups.superpixels requires scikit-image: pip install scikit-image."
        ) from error
    channel_axis = -1 if pixels.ndim == 3 else None
    settings = {"start_label": 0, "channel_axis": channel_axis, **options}
    labels = segmentation.slic(pixels.astype(np.float32), n_segments=num_segments, **settings)
    labels = np.asarray(labels, np.int32)
    return np.broadcast_to(labels if pixels.ndim == 2 else labels[..., None], pixels.shape).copy()


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape as a tuple of ints."""
    if not isinstance(shape, (tuple, list)) or not shape:
        raise ValueError(f"`shape` must be the shape of an array, such as x.shape, got {shape!r}.")
    return tuple(map(int, shape))


def _along(numbers: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Return numbers along one axis of an array of some rank."""
    return numbers.reshape([-1 if a == axis else 1 for a in range(rank)])
