"""Checks of what a report is about: examples, their kind, tokens and class names."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Shaped

Kind = Literal["auto", "image", "series", "text"]
_KINDS = ("auto", "image", "series", "text")
#: The shortest side, and the largest ratio of sides, of a matrix that is taken for an image.
_SIDE, _RATIO = 6, 2


def checked_examples(xs: Any) -> Shaped[np.ndarray, "B ..."]:
    """Return the examples as one numpy array with a leading axis of examples.

    Raises:
        TypeError: for a pytree of several arrays.
        ValueError: for no examples, or an array without an axis behind that of the examples.
    """
    leaves = jax.tree.leaves(xs)
    if len(leaves) != 1 or not hasattr(leaves[0], "shape"):
        raise TypeError(f"`xs` must be one array of examples, got {type(xs).__name__}.")
    array = np.asarray(leaves[0])
    if array.ndim < 2 or not array.size:
        raise ValueError(
            "`xs` must have a leading axis of examples, such as x[None] for one, got shape "
            f"{array.shape}."
        )
    return array


def checked_kind(kind: str, shape: tuple[int, ...], tokens: object) -> str:
    """Return the kind of examples of a shape: "image", "series" or "text".

    Raises:
        ValueError: for an unknown kind, a kind that the shape does not have, or text without
            tokens.
    """
    if kind not in _KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(_KINDS)}, got {kind!r}.")
    if kind == "text" and tokens is None:
        raise ValueError('`tokens` must be given for kind="text", got None.')
    if kind == "auto":
        kind = "text" if tokens is not None else _guessed(shape)
    axes = {"image": (2, 3), "series": (1, 2), "text": (1, 2)}[kind]
    if len(shape) not in axes:
        raise ValueError(
            f"`kind` {kind!r} requires examples of {axes[0]} or {axes[1]} axes, got {shape}."
        )
    return kind


def _guessed(shape: tuple[int, ...]) -> str:
    if len(shape) == 3:
        return "image"
    if len(shape) == 2 and min(shape) >= _SIDE and max(shape) <= _RATIO * min(shape):
        return "image"
    return "series"


def checked_tokens(
    tokens: Sequence[Sequence[str]] | None, count: int, length: int
) -> list[list[str]] | None:
    """Return the tokens as lists.

    Raises:
        ValueError: if there is not one list per example, each as long as the examples.
    """
    if tokens is None:
        return None
    found = [[str(token) for token in line] for line in tokens]
    if len(found) != count:
        raise ValueError(
            f"`tokens` must be one list for each of {count} examples, got {len(found)}."
        )
    for i, line in enumerate(found):
        if len(line) != length:
            raise ValueError(
                f"`tokens` must have {length} tokens per example, as `xs` does, got {len(line)} "
                f"for example {i}."
            )
    return found


def checked_names(names: Sequence[str] | None, count: int | None) -> list[str]:
    """Return the names of the classes, numbers by default.

    Raises:
        ValueError: if there is not one name per class.
    """
    if names is None:
        return [str(i) for i in range(count or 0)]
    found = [str(name) for name in names]
    if count is not None and len(found) != count:
        raise ValueError(f"`class_names` must be {count} names, got {len(found)}.")
    return found
