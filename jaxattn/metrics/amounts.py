"""The check of an option that is a number, such as the strength of noise."""

from typing import Any

import jax.numpy as jnp

from jaxattn._static import is_concrete


def check_amount(name: str, value: Any, *, positive: bool = False) -> None:
    """Raise an error for a value that is not a number, or is negative; it may be traced.

    Args:
        name: the name of the option.
        value: its value.
        positive: whether zero is an error, too.
    """
    if value is None or isinstance(value, str):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    is_number = jnp.ndim(value) == 0
    if not is_number or (is_concrete(value) and not (value > 0 if positive else value >= 0)):
        what = "a positive number" if positive else "a number and not negative"
        raise ValueError(f"`{name}` must be {what}, got {value}.")
