"""Runs of methods for a report, with their time, cost, warnings and errors."""

import dataclasses
import inspect
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from jaxattn._types import Attribution, Inputs, Method, Target
from jaxattn.engine.each import Each
from jaxattn.engine.explain import explain
from jaxattn.engine.options import Traits, count, name_of, without_partial


@dataclasses.dataclass(frozen=True)
class Explained:
    """One method: its values, or why it has none.

    Attributes:
        name: the name of the method.
        values: the values of all examples, or `None` if the method failed.
        error: the error of the method that failed.
        first_seconds: the time of the first call, with compilation.
        second_seconds: the time of a second call.
        evaluations: the evaluations of the function for one example, if the method declares them.
        notes: the warnings of the first call.
        given: whether the values were given, and no method ran.
    """

    name: str
    values: Shaped[np.ndarray, "B ..."] | None = None
    error: str = ""
    first_seconds: float = np.nan
    second_seconds: float = np.nan
    evaluations: int | None = None
    notes: tuple[str, ...] = ()
    given: bool = False


def methods_by_name(
    methods: Mapping[str, Method | Attribution] | Sequence[Method],
) -> dict[str, Method | Attribution]:
    """Return the methods by name; several of one name are numbered.

    Raises:
        TypeError: for something that is neither a method nor an `Attribution`.
        ValueError: for no methods.
    """
    if callable(methods) or isinstance(methods, str):
        raise TypeError(f"`methods` must be a list or a dict, got {name_of(methods)}.")
    found: dict[str, Method | Attribution] = {}
    if isinstance(methods, Mapping):
        found |= {str(name): each for name, each in methods.items()}
    else:
        for method_ in methods:
            name, number = name_of(method_), 2
            while name in found:
                name, number = f"{name_of(method_)} ({number})", number + 1
            found[name] = method_
    if not found:
        raise ValueError(f"`methods` must hold at least one method, got {methods!r}.")
    for name, each in found.items():
        if not callable(each) and not isinstance(each, Attribution):
            raise TypeError(f"`methods` must be methods, got {each!r} for {name!r}.")
    return found


def reason(error: Exception) -> str:
    """Return the type of an error and its message."""
    return f"{type(error).__name__}: {error}"


def explained_by(
    name: str,
    method_: Method | Attribution,
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    outputs: Any,
    call: dict[str, Any],
) -> Explained:
    """Run a method twice, and time both; an error becomes part of the result."""
    if isinstance(method_, Attribution):
        return _only_array(Explained(name, given=True), method_)

    def run() -> tuple[Attribution, float]:
        start = time.perf_counter()
        found = jax.block_until_ready(explain(method_, fn, xs, targets, **call))
        return found, time.perf_counter() - start

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            attribution, first = run()
            _, second = run()
    except Exception as error:  # whatever a model raises must not end the report
        return Explained(name, error=reason(error))
    notes = tuple(dict.fromkeys(str(each.message) for each in caught))
    number = _evaluations(method_, xs, outputs, targets)
    return _only_array(Explained(name, None, "", first, second, number, notes), attribution)


def _only_array(explained: Explained, attribution: Attribution) -> Explained:
    leaves = jax.tree.leaves(attribution.values)
    if len(leaves) == 1:
        return dataclasses.replace(explained, values=np.asarray(leaves[0]).astype(np.float64))
    return dataclasses.replace(
        explained, error=f"The values are {len(leaves)} arrays, of which no panel is drawn."
    )


def _evaluations(method_: Method, xs: Any, outputs: Any, targets: Target) -> int | None:
    """Return the declared evaluations for one example; `None` if they are not known."""
    inner: Any = without_partial(method_)
    if not isinstance(getattr(inner, "traits", None), Traits):
        return None
    one = [jax.ShapeDtypeStruct(np.shape(a)[1:], a.dtype) for a in (*jax.tree.leaves(xs), outputs)]
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(inner).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }
    options = {**defaults, **getattr(method_, "keywords", {}), "target": _first(targets)}
    try:
        return count("evaluations", inner, one[0], one[1], options)
    except (KeyError, TypeError, ValueError):  # of an option that `explain` completes
        return None


def _first(targets: Target) -> Target:
    """Return the target of the first example."""
    if targets is None or callable(targets) or isinstance(targets, Each):
        return targets
    return np.ravel(targets)[0]
