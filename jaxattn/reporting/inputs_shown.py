"""Checks of what a report is about: examples, their kind, tokens and class names."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float, Integer, Shaped

from jaxattn.reporting.panels import joined

Kind = Literal["auto", "image", "series", "text"]
_KINDS = ("auto", "image", "series", "text")
#: The shortest side, and the largest ratio of sides, of a matrix that is taken for an image.
_SIDE, _RATIO = 6, 2


@dataclasses.dataclass(frozen=True)
class Labels:
    """The kind of the examples, and the names of all that is shown.

    Attributes:
        kind: "image", "series" or "text".
        classes: the names of classes, or of the symbols of an output sequence.
        tokens: the tokens of each example, or `None`.
        output_tokens: the tokens of each output sequence, or `None` for the best symbols.
    """

    kind: str
    classes: list[str]
    tokens: list[list[str]] | None = None
    output_tokens: list[list[str]] | None = None

    def line(self, i: int) -> list[str] | None:
        """Return the tokens of one example."""
        return None if self.tokens is None else self.tokens[i]

    def symbols(self, i: int, output: Float[np.ndarray, "positions symbols"]) -> list[str]:
        """Return the tokens of an output sequence."""
        if self.output_tokens is not None:
            return self.output_tokens[i]
        return [self.classes[k] for k in output.argmax(-1)]

    def sequence(self, i: int, output: Float[np.ndarray, "positions symbols"]) -> str:
        """Return an output sequence as one line."""
        return joined([symbol for symbol in self.symbols(i, output) if symbol])

    def of_targets(self, i: int, indices: Integer[np.ndarray, "targets rank"]) -> list[str]:
        """Return the name of each target: its token, its class or its index."""
        if indices.shape[1] == 1:
            named = len(self.classes)
            return [self.classes[k] if k < named else str(k) for k in indices[:, 0]]
        if indices.shape[1] > 2:
            return [", ".join(map(str, index)) for index in indices]
        if self.output_tokens is not None:
            return [self.output_tokens[i][position] for position, _ in indices]
        return [self.classes[k] for _, k in indices]


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
    tokens: Sequence[Sequence[str]] | None, count: int, length: int, name: str = "tokens"
) -> list[list[str]] | None:
    """Return the tokens as lists.

    Args:
        tokens: the tokens of each example.
        count: the number of examples.
        length: the number of tokens of each.
        name: the name of the argument.

    Raises:
        ValueError: if there is not one list of that length per example.
    """
    if tokens is None:
        return None
    found = [[str(token) for token in line] for line in tokens]
    if len(found) != count:
        raise ValueError(
            f"`{name}` must be one list for each of {count} examples, got {len(found)}."
        )
    for i, line in enumerate(found):
        if len(line) != length:
            raise ValueError(
                f"`{name}` must have {length} tokens per example, as "
                f"{'the output' if name == 'output_tokens' else '`xs`'} has, got {len(line)} for "
                f"example {i}."
            )
    return found


def checked_outputs(
    tokens: Sequence[Sequence[str]] | None, shape: tuple[int, ...]
) -> list[list[str]] | None:
    """Return the tokens of output sequences as lists.

    Raises:
        ValueError: if the outputs of a shape (B, ...) are not sequences, or of another length.
    """
    if tokens is not None and len(shape) != 3:
        raise ValueError(
            "`output_tokens` must be None unless `fn` returns a sequence of scores (S, V), got "
            f"tokens for an output of shape {shape[1:]}."
        )
    return checked_tokens(tokens, shape[0], shape[1] if tokens else 0, "output_tokens")


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
