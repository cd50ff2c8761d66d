"""What a report shows: predictions, explanations, their cost and metrics, as numpy arrays."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from jaxattn._types import Attribution, Inputs, Method, RandomKey, Target
from jaxattn.engine.explain import explain
from jaxattn.engine.method import method
from jaxattn.engine.options import count, name_of, traits_of, without_partial
from jaxattn.methods.attention_weights import attention
from jaxattn.methods.jacobian import jacobian
from jaxattn.metrics.faithfulness import deletion
from jaxattn.metrics.method_table import Comparison, table

#: The largest output whose Jacobian gets one panel per entry.
MOST_CLASSES = 20


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
    """

    name: str
    values: Shaped[np.ndarray, "B ..."] | None = None
    error: str = ""
    first_seconds: float = np.nan
    second_seconds: float = np.nan
    evaluations: int | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class DeletionCurve:
    """The mean score over the examples while features are deleted, most important first."""

    name: str
    fractions: Float[np.ndarray, " steps"]
    scores: Float[np.ndarray, " steps"]


@dataclasses.dataclass(frozen=True)
class Contents:
    """All that a report shows.

    Attributes:
        xs: the examples.
        outputs: the output for each.
        targets: the explained entry of each, or `None` for an output of size 1 or a callable.
        explained: the methods in the order in which they were given.
        jacobian: the derivative of each class with respect to the input, or `None`.
        attention: the attention weights by name, each with a leading axis of examples.
        table: the metrics of the methods, or `None`.
        curves: the deletion curves.
        problems: parts that could not be computed, and why.
    """

    xs: Shaped[np.ndarray, "B ..."]
    outputs: Float[np.ndarray, "B ..."]
    targets: Shaped[np.ndarray, " B"] | None
    explained: tuple[Explained, ...]
    jacobian: Float[np.ndarray, "B K ..."] | None = None
    attention: Mapping[str, Float[np.ndarray, "B ..."]] = dataclasses.field(default_factory=dict)
    table: Comparison | None = None
    curves: tuple[DeletionCurve, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()

    @property
    def classes(self) -> int | None:
        """The number of classes, or `None` if the output of an example is not a vector."""
        return self.outputs.shape[1] if self.outputs.ndim == 2 else None


@method(backward=False)
def evaluated(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
) -> Attribution:
    """Evaluate the function, and explain nothing: the values are zero."""
    return Attribution(jax.tree.map(lambda leaf: leaf * 0, x), fn(x, *args))


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


def default_targets(targets: Target, outputs: Float[np.ndarray, "B ..."]) -> Target:
    """Return the targets; by default the largest entry of each output that is a vector."""
    if targets is None and outputs.ndim == 2 and outputs.shape[1] > 1:
        return np.asarray(outputs).argmax(1)
    return targets


def shown_targets(targets: Target, batch: int) -> Shaped[np.ndarray, " B"] | None:
    """Return the target of each example if they are single indices."""
    if targets is None or callable(targets):
        return None
    array = np.asarray(targets)
    if array.dtype.kind not in "iu" or array.ndim > 1:
        return None
    return np.broadcast_to(array, (batch,)) if array.ndim == 0 else array


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
        return _only_array(Explained(name), method_)

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
    if traits_of(without_partial(method_)).evaluations is None:
        return None
    one = [jax.ShapeDtypeStruct(np.shape(a)[1:], a.dtype) for a in (*jax.tree.leaves(xs), outputs)]
    target = targets if targets is None or callable(targets) else np.ravel(targets)[0]
    try:
        return count("evaluations", method_, one[0], one[1], {"target": target})
    except (KeyError, TypeError, ValueError):  # needs an option that has only a default
        return None


def class_derivatives(
    fn: Callable[..., Any], xs: Inputs, call: dict[str, Any]
) -> Float[np.ndarray, "B K ..."]:
    """Compute the derivative of each class with respect to the input."""
    found = explain(jacobian, fn, xs, None, **call)
    return np.asarray(found.values).astype(np.float64)


def attention_maps(
    fn: Callable[..., Any], xs: Inputs, call: dict[str, Any]
) -> dict[str, Float[np.ndarray, "B ..."]]:
    """Compute the attention weights of a function by name; none if it has no attention."""
    try:
        found = explain(attention, fn, xs, None, **call).values
    except (TypeError, ValueError):
        return {}
    named = found if isinstance(found, dict) else {"attention": found}
    return {
        name if len(leaves) == 1 else f"{name} ({i})": np.asarray(leaf).astype(np.float64)
        for name, tree in named.items()
        for leaves in [jax.tree.leaves(tree)]
        for i, leaf in enumerate(leaves)
        if np.ndim(leaf) >= 3
    }


def measured(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    explained: Sequence[Explained],
    metrics: Any,
    call: dict[str, Any],
    key: RandomKey | None,
) -> tuple[Comparison | None, tuple[DeletionCurve, ...], list[tuple[str, str]]]:
    """Compute the table of metrics, the deletion curves, and why some are missing."""
    score: Any = "logit" if targets is None else "probability"
    curves, problems = [], []
    usable: dict[str, Method | Attribution] = {}
    for each in explained:
        if each.values is None:
            continue
        if each.values.shape != np.shape(xs):
            problems.append((f"Metrics of {each.name}", "the values lack the shape of the input"))
            continue
        values = each.values.astype(np.float32)
        try:
            curve = deletion(fn, xs, targets, values, score=score, **call)
        except Exception as error:  # as for a method
            problems.append((f"Deletion curve of {each.name}", reason(error)))
            continue
        usable[each.name] = Attribution(jnp.asarray(values), jnp.zeros(len(values)))
        scores = np.asarray(curve.scores).astype(np.float64).mean(0)
        curves.append(DeletionCurve(each.name, np.asarray(curve.fractions), scores))
    if not usable or (metrics is not None and not len(metrics)):
        return None, tuple(curves), problems
    try:
        found = table(usable, fn, xs, targets, metrics, score=score, key=key, show=False, **call)
    except Exception as error:  # as for a method
        return None, tuple(curves), [*problems, ("Metrics", reason(error))]
    return found, tuple(curves), problems


def contents(
    fn: Callable[..., Any],
    xs: Any,
    targets: Target,
    methods: Mapping[str, Method | Attribution],
    *,
    metrics: Any,
    with_jacobian: bool,
    args: tuple[Any, ...],
    key: RandomKey | None,
    batch_size: int | None,
) -> Contents:
    """Compute all that a report shows.

    Raises:
        TypeError: if the output of the function is not one array.
    """
    call: dict[str, Any] = {"args": args, "batch_size": batch_size}
    output = explain(evaluated, fn, xs, None, check_finite=False, **call).output
    leaves = jax.tree.leaves(output)
    if len(leaves) != 1:
        raise TypeError(f"`fn` must return one array, got {len(leaves)}.")
    outputs = np.asarray(leaves[0])
    targets = default_targets(targets, outputs)
    keyed = call | {"key": key}
    explained = tuple(
        explained_by(name, each, fn, xs, targets, outputs, keyed) for name, each in methods.items()
    )
    problems: list[tuple[str, str]] = []
    derivatives = None
    if with_jacobian and outputs.ndim == 2 and 1 < outputs.shape[1] <= MOST_CLASSES:
        try:
            derivatives = class_derivatives(fn, xs, call)
        except Exception as error:  # as for a method
            problems.append(("Jacobian", reason(error)))
    elif with_jacobian:
        problems.append(("Jacobian", f"not shown for an output of shape {outputs.shape[1:]}"))
    comparison, curves, missing = measured(fn, xs, targets, explained, metrics, call, key)
    return Contents(
        xs=np.asarray(jax.tree.leaves(xs)[0]),
        outputs=outputs.astype(np.float64),
        targets=shown_targets(targets, len(outputs)),
        explained=explained,
        jacobian=derivatives,
        attention=attention_maps(fn, xs, call),
        table=comparison,
        curves=curves,
        problems=(*problems, *missing),
    )
