"""The declarations of a metric: in which direction it is better, and its range."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, get_args

P = ParamSpec("P")
Result = TypeVar("Result")

#: Which values of a metric are better: higher ones, lower ones, or those closer to zero.
Direction: TypeAlias = Literal["higher", "lower", "zero"]


@dataclasses.dataclass(frozen=True)
class Properties:
    """The direction and the range of a metric, as `jaxattn.metrics.table` reads them.

    Attributes:
        better: `"higher"`, `"lower"` or `"zero"` (closer to zero).
        low: the lowest value.
        high: the highest value.
    """

    better: Direction
    low: float = -math.inf
    high: float = math.inf


def metric(
    *, better: Direction, low: float = -math.inf, high: float = math.inf
) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Declare the direction and the range of a function that measures attributions.

    The names of its first parameters say what the function takes:
    `(attribution)`, `(attribution, truth)`, `(fn, xs, targets, attribution)` or
    `(method, fn, xs, targets)`. It returns one number per example, an array with a leading axis of
    examples, or a `Curve`.

    Args:
        better: which values are better: `"higher"`, `"lower"` or `"zero"` (closer to zero).
        low: the lowest value.
        high: the highest value.

    Returns:
        a decorator, which returns the function itself.

    Raises:
        ValueError: for another direction.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> @ja.metrics.metric(better="lower", low=0)
        ... def size(attribution):
        ...     return jnp.abs(attribution.values).sum(-1)
        >>> ja.metrics.properties(size)
        Properties(better='lower', low=0, high=inf)
    """
    if better not in get_args(Direction):
        raise ValueError(f'`better` must be "higher", "lower" or "zero", got {better!r}.')

    def declare(function: Callable[P, Result]) -> Callable[P, Result]:
        vars(function)["properties"] = Properties(better, low, high)
        return function

    return declare


def properties(function: Callable[..., Any]) -> Properties:
    """Return the direction and the range of a metric.

    Args:
        function: a metric of jaxattn, a function that `metric` decorates, or a `functools.partial`
            of one.

    Raises:
        TypeError: for a function that is not a metric.

    Examples:
        >>> import jaxattn as ja
        >>> ja.metrics.properties(ja.metrics.sufficiency).better
        'lower'
    """
    while isinstance(function, functools.partial):
        function = function.func
    found = getattr(function, "properties", None)
    if not isinstance(found, Properties):
        name = getattr(function, "__name__", repr(function))
        raise TypeError(
            f"`function` must be a metric, got {name}: declare it with jaxattn.metrics.metric."
        )
    return found
