"""The check of an option that is one number, such as the strength of noise."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from jaxattn._static import is_concrete

#: What a number must be, as errors say it.
Condition: TypeAlias = Literal[
    "not negative", "positive", "finite and not negative", "in (0, 1)", "in [0, 1]"
]

_HOLDS: dict[Condition, Callable[[Any], Any]] = {
    "not negative": lambda value: value >= 0,
    "positive": lambda value: value > 0,
    "finite and not negative": lambda value: 0 <= value < np.inf,
    "in (0, 1)": lambda value: 0 < value < 1,
    "in [0, 1]": lambda value: 0 <= value <= 1,
}


def check_number(name: str, value: object, condition: Condition = "not negative") -> None:
    """Raise an error for a value that is not one number, or not as it must be.

    Args:
        name: the name of the option.
        value: its value; of a traced one only the shape is checked.
        condition: what must hold.
    """
    if not isinstance(value, (int, float, np.generic, np.ndarray, jax.Array)):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    if np.ndim(value) != 0:  # type: ignore[arg-type]
        raise ValueError(f"`{name}` must be one number, got shape {np.shape(value)}.")  # type: ignore[arg-type]
    if is_concrete(value) and not _HOLDS[condition](np.asarray(value)):
        raise ValueError(f"`{name}` must be a number and {condition}, got {value}.")
