"""What a report shows: predictions, explanations, their cost and metrics, as numpy arrays."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer, Shaped

from jaxattn._types import Attribution, Inputs, Method, RandomKey, Target
from jaxattn.engine.each import Each, checked_targets, each
from jaxattn.engine.explain import explain
from jaxattn.engine.method import method
from jaxattn.jaxpr.attention.weights_by_name import NoAttentionError
from jaxattn.methods.attention_weights import attention
from jaxattn.methods.jacobian import jacobian
from jaxattn.metrics.faithfulness import deletion
from jaxattn.metrics.method_table import Comparison, table
from jaxattn.reporting.method_runs import Explained, explained_by, reason

#: The largest output whose Jacobian gets one panel per entry.
MOST_CLASSES = 20
#: The longest output sequence of which all positions are explained by default.
MOST_POSITIONS = 100


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
        targets: the explained entry of each, or `None` for an output of size 1, a callable, or
            several targets.
        several: the indices of the targets of each example if it has several, or `None`.
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
    several: Integer[np.ndarray, "B targets rank"] | None
    explained: tuple[Explained, ...]
    jacobian: Float[np.ndarray, "B K ..."] | None = None
    attention: Mapping[str, Float[np.ndarray, "B ..."]] = dataclasses.field(default_factory=dict)
    table: Comparison | None = None
    curves: tuple[DeletionCurve, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()

    @property
    def classes(self) -> int | None:
        """The number of classes, or of symbols of a sequence; `None` for outputs of other ranks."""
        return classes_of(self.outputs)


def classes_of(outputs: Float[np.ndarray, "B ..."]) -> int | None:
    """Return the length of the last axis of outputs that are vectors or sequences of vectors."""
    return outputs.shape[-1] if outputs.ndim in (2, 3) else None


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


def outputs_of(
    fn: Callable[..., Any], xs: Inputs, args: tuple[Any, ...], batch_size: int | None
) -> Float[np.ndarray, "B ..."]:
    """Compute the output of each example.

    Raises:
        TypeError: if the output of the function is not one array.
    """
    call: dict[str, Any] = {"args": args, "batch_size": batch_size, "check_finite": False}
    leaves = jax.tree.leaves(explain(evaluated, fn, xs, None, **call).output)
    if len(leaves) != 1:
        raise TypeError(f"`fn` must return one array, got {len(leaves)}.")
    return np.asarray(leaves[0]).astype(np.float64)


def default_targets(targets: Target, outputs: Float[np.ndarray, "B ..."]) -> Target:
    """Return the targets; by default the largest entry of an output, or of each of its positions.

    Outputs that are neither vectors nor sequences of vectors have no default.
    """
    if targets is not None or outputs.ndim not in (2, 3) or outputs.shape[-1] < 2:
        return targets
    best = outputs.argmax(-1)
    if outputs.ndim == 2:
        return best
    if best.shape[1] > MOST_POSITIONS:
        return targets
    return each(np.stack([np.broadcast_to(np.arange(best.shape[1]), best.shape), best], -1))


def shown_targets(targets: Target, batch: int) -> Shaped[np.ndarray, " B"] | None:
    """Return the target of each example if they are single indices."""
    if targets is None or callable(targets) or isinstance(targets, Each):
        return None
    array = np.asarray(targets)
    if array.dtype.kind not in "iu" or array.ndim > 1:
        return None
    return np.broadcast_to(array, (batch,)) if array.ndim == 0 else array


def several_targets(
    targets: Target, outputs: Float[np.ndarray, "B ..."]
) -> Integer[np.ndarray, "B targets rank"] | None:
    """Return the indices of several targets of each example, or `None` for a single one."""
    if not isinstance(targets, Each):
        return None
    output = jax.ShapeDtypeStruct(outputs.shape[1:], np.float32)
    return np.asarray(checked_targets(targets, output, len(outputs)).indices)


def class_derivatives(
    fn: Callable[..., Any], xs: Inputs, call: dict[str, Any]
) -> Float[np.ndarray, "B K ..."]:
    """Compute the derivative of each class with respect to the input."""
    found = explain(jacobian, fn, xs, None, **call)
    return np.asarray(found.values).astype(np.float64)


def attention_maps(
    fn: Callable[..., Any], xs: Inputs, call: dict[str, Any]
) -> tuple[dict[str, Float[np.ndarray, "B ..."]], list[tuple[str, str]]]:
    """Compute the attention weights of a function by name, and why some are not shown."""
    try:
        found = explain(attention, fn, xs, None, **call).values
    except NoAttentionError as error:
        fused = [("Attention", f"not shown: the function calls `{error.fused}`")]
        return {}, fused if error.fused else []
    except Exception as error:  # as for a method
        return {}, [("Attention", reason(error))]
    named = found if isinstance(found, dict) else {"attention": found}
    maps, problems = {}, []
    for name, tree in named.items():
        leaves = jax.tree.leaves(tree)
        for i, leaf in enumerate(leaves):
            whole = name if len(leaves) == 1 else f"{name} ({i})"
            if np.ndim(leaf) >= 3:
                maps[whole] = np.asarray(leaf).astype(np.float64)
            else:
                problems.append((f"Attention {whole}", f"not shown for shape {leaf.shape[1:]}"))
    return maps, problems


def measured(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    explained: Sequence[Explained],
    metrics: Any,
    with_curves: bool,
    call: dict[str, Any],
    key: RandomKey | None,
) -> tuple[Comparison | None, tuple[DeletionCurve, ...], list[tuple[str, str]]]:
    """Compute the table of metrics, the deletion curves, and why some are missing."""
    if isinstance(targets, Each):
        return None, (), [("Metrics", "not computed for several targets of each example")]
    unmeasured = metrics is not None and not len(metrics)
    if unmeasured and not with_curves:
        return None, (), []
    score: Any = "logit" if targets is None else "probability"
    curves, problems = [], []
    usable: dict[str, Method | Attribution] = {}
    for one in explained:
        if one.values is None:
            continue
        if one.values.shape != np.shape(xs):
            problems.append((f"Metrics of {one.name}", "the values lack the shape of the input"))
            continue
        values = one.values.astype(np.float32)
        try:
            curve = deletion(fn, xs, targets, values, score=score, **call)
        except Exception as error:  # as for a method
            problems.append((f"Deletion curve of {one.name}", reason(error)))
            continue
        usable[one.name] = Attribution(jnp.asarray(values), jnp.zeros(len(values)))
        scores = np.asarray(curve.scores).astype(np.float64).mean(0)
        curves.append(DeletionCurve(one.name, np.asarray(curve.fractions), scores))
    curves = curves if with_curves else []
    if not usable or unmeasured:
        return None, tuple(curves), problems
    try:
        found = table(usable, fn, xs, targets, metrics, score=score, key=key, show=False, **call)
    except Exception as error:  # as for a method
        return None, tuple(curves), [*problems, ("Metrics", reason(error))]
    return found, tuple(curves), problems


def contents(
    fn: Callable[..., Any],
    xs: Any,
    outputs: Float[np.ndarray, "B ..."],
    targets: Target,
    methods: Mapping[str, Method | Attribution],
    *,
    metrics: Any,
    with_curves: bool,
    with_jacobian: bool,
    args: tuple[Any, ...],
    key: RandomKey | None,
    batch_size: int | None,
) -> Contents:
    """Compute all that a report shows.

    An error of a method, a metric or the Jacobian becomes part of the result.
    """
    call: dict[str, Any] = {"args": args, "batch_size": batch_size}
    targets = default_targets(targets, outputs)
    keyed = call | {"key": key}
    explained = tuple(
        explained_by(name, one, fn, xs, targets, outputs, keyed) for name, one in methods.items()
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
    comparison, curves, missing = measured(
        fn, xs, targets, explained, metrics, with_curves, call, key
    )
    maps, unshown = attention_maps(fn, xs, call)
    return Contents(
        xs=np.asarray(jax.tree.leaves(xs)[0]),
        outputs=outputs,
        targets=shown_targets(targets, len(outputs)),
        several=several_targets(targets, outputs),
        explained=explained,
        jacobian=derivatives,
        attention=maps,
        table=comparison,
        curves=curves,
        problems=(*problems, *missing, *unshown),
    )
