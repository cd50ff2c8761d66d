"""Capture and replacement of the named intermediates of any JAX function."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.tree_util import Partial, PyTreeDef
from jaxtyping import Array, PyTree, Shaped

from jaxattn.jaxpr.attention.discovery import Weights, find_attention
from jaxattn.jaxpr.attention.exposed import exposed
from jaxattn.jaxpr.interpreter import (
    Body,
    Env,
    Value,
    bind,
    evaluate,
    reemit,
    scopes,
    sub_jaxprs,
)
from jaxattn.jaxpr.names import (
    Place,
    choose,
    is_glob,
    is_named,
    joined,
    layer_outputs,
    listed,
    places,
    places_of,
    tag_of,
)

#: Selected names of intermediates, each with whether it is a tag.
Selection: TypeAlias = dict[str, bool]
#: Arrays or a function, for one call of an intermediate.
Replacement: TypeAlias = PyTree
#: For each name the value, or the replacement, of every call in order.
ByCall: TypeAlias = dict[str, list[PyTree]]


class Split(NamedTuple):
    """A function cut at an intermediate.

    Attributes:
        value: the intermediate, stacked over the steps of the enclosing scans.
        rest: the function from the intermediate to the output.
    """

    value: Array
    rest: Callable[[Array], PyTree]


@dataclass(frozen=True, eq=False)
class Traced:
    """A traced function: its jaxpr, the structure of its output, its named intermediates."""

    closed: jex.ClosedJaxpr
    treedef: PyTreeDef
    places: list[Place]

    def __call__(self, *inputs: PyTree) -> PyTree:
        """Evaluate the function again."""
        outputs = jex.jaxpr_as_fun(self.closed)(*jax.tree.leaves(inputs))
        return jax.tree.unflatten(self.treedef, outputs)


class Exposed(NamedTuple):
    """A traced function that tags its attention weights, and these weights."""

    fn: Traced
    weights: list[Weights]


def tag(x: Shaped[Array | np.ndarray, "..."], name: str) -> Shaped[Array, "..."]:
    """Name an intermediate, to explain it (`at=name`), to capture or to replace it.

    Args:
        x: an array. In a model that takes batches it has the batch axis, of length 1.
        name: its name.

    Returns:
        `x`, unchanged.

    Raises:
        TypeError: if `name` is not a string.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return ja.tag(2 * x, "hidden").sum()
        >>> print(ja.input_x_gradient(fn, jnp.ones(3), at="hidden").values)
        [2. 2. 2.]
    """
    if not isinstance(name, str):
        raise TypeError(f"`name` must be a string, got {name!r}.")
    return checkpoint_name(jnp.asarray(x), name)


def captured(
    fn: Callable[..., PyTree], names: Sequence[str]
) -> Callable[..., tuple[PyTree, dict[str, PyTree]]]:
    """Return the function that returns named intermediates as well; see `jaxattn.capture`."""

    def call(*inputs: PyTree) -> tuple[PyTree, dict[str, PyTree]]:
        traced = _trace(fn, inputs, names)
        selection = choose(names, traced.places, "capture")
        outputs, values = _walk(traced.closed, jax.tree.leaves(inputs), "", selection, {})
        single = {name: calls[0] if len(calls) == 1 else calls for name, calls in values.items()}
        return jax.tree.unflatten(traced.treedef, outputs), single

    return call


def intervened(
    fn: Callable[..., PyTree],
    replacements: dict[str, Replacement | list[Replacement]],
) -> Callable[..., PyTree]:
    """Return the function with other intermediates; see `jaxattn.intervene`."""

    def call(*inputs: PyTree) -> PyTree:
        traced = _trace(fn, inputs, list(replacements))
        selection: Selection = {}
        by_call: ByCall = {}
        for pattern, replacement in replacements.items():
            chosen = choose([pattern], traced.places, "intervene")
            if len(chosen) > 1 and not is_glob(pattern):
                several = listed([p for p in traced.places if chosen.get(p.name) is p.is_tag])
                raise ValueError(
                    f"intervene: {pattern!r} must name one intermediate, got {several}"
                )
            for name, is_tag in chosen.items():
                if name in selection:
                    raise ValueError(f"intervene: {name!r} is replaced twice.")
                calls = [p for p in traced.places if (p.name, p.is_tag) == (name, is_tag)]
                by_call[name] = _for_each_call(calls, replacement)
            selection |= chosen
        outputs, _ = _walk(traced.closed, jax.tree.leaves(inputs), "", selection, by_call)
        return jax.tree.unflatten(traced.treedef, outputs)

    return call


def with_constants(fn: Callable[..., PyTree], names: Sequence[str]) -> Callable[..., PyTree]:
    """Return the function with `stop_gradient` around named intermediates.

    Args:
        fn: the function.
        names: the intermediates, as in `jaxattn.capture`.
    """

    def call(*inputs: PyTree) -> PyTree:
        traced = _trace(fn, inputs, names)
        selection = choose(names, traced.places, "constants")
        calls = [p.name for p in traced.places if selection.get(p.name) is p.is_tag]
        stops = {name: [Partial(jax.lax.stop_gradient)] * calls.count(name) for name in selection}
        outputs, _ = _walk(traced.closed, jax.tree.leaves(inputs), "", selection, stops)
        return jax.tree.unflatten(traced.treedef, outputs)

    return call


def split_at(fn: Callable[..., PyTree], inputs: tuple[PyTree, ...], name: str) -> Split:
    """Cut a function at a named intermediate.

    Values that reach the output on other paths are constants of the second part. In a scan each
    time step has a value of its own: the effect of one step's value through those of later steps is
    cut.

    Args:
        fn: the function.
        inputs: its inputs.
        name: a tag or a layer, as in `jaxattn.capture`: one intermediate, one array.

    Returns:
        The intermediate and the function from it to the output of `fn`.

    Raises:
        ValueError: if no intermediate has that name, or several have.
    """
    traced = _trace(fn, inputs, [name])
    selection = choose([name], traced.places, "at")
    calls = [p for p in traced.places if selection.get(p.name) is p.is_tag]
    if len(calls) > 1 or len(calls[0].structs) > 1:
        raise ValueError(f"at={name!r} must name one array, got {listed(calls)}")
    (full_name,) = selection
    leaves = jax.tree.leaves(inputs)

    def rest(value: Array) -> PyTree:
        outputs, _ = _walk(traced.closed, leaves, "", selection, {full_name: [value]})
        return jax.tree.unflatten(traced.treedef, outputs)

    _, values = _walk(traced.closed, leaves, "", selection, {})
    return Split(values[full_name][0], rest)


def expose_attention(fn: Callable[..., PyTree], inputs: tuple[PyTree, ...]) -> Exposed:
    """Find the attention weights of a function, and tag them as (heads, queries, keys).

    Args:
        fn: the function.
        inputs: its inputs.
    """
    traced = _trace(fn, inputs)
    weights = find_attention(traced.closed)
    if not weights:
        return Exposed(traced, [])
    closed = exposed(traced.closed, weights)
    return Exposed(Traced(closed, traced.treedef, places(closed)), weights)


def _trace(
    fn: Callable[..., PyTree], inputs: tuple[PyTree, ...], names: Iterable[str] = ()
) -> Traced:
    """Trace a function; tag its attention weights, if a name matches nothing else."""
    if isinstance(fn, Traced):
        return fn
    # JAX caches the traces of functions by identity: a new function is traced anew.
    fresh = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)
    closed, output = fresh(*inputs)
    traced = Traced(closed, jax.tree.structure(output), places(closed))
    if all(is_named(name, traced.places) for name in names):
        return traced
    return expose_attention(traced, inputs).fn


def _walk(
    closed: jex.ClosedJaxpr,
    args: Sequence[Value],
    prefix: str,
    selection: Selection,
    replacements: ByCall,
) -> tuple[tuple[Value, ...], ByCall]:
    """Evaluate a jaxpr, and capture or replace intermediates.

    Args:
        closed: the jaxpr.
        args: its inputs.
        prefix: the path of the equation that it belongs to.
        selection: the intermediates.
        replacements: their replacements, if they are replaced.

    Returns:
        The outputs, and the values of the intermediates.
    """
    captured: ByCall = {name: [] for name in selection}
    remaining = {name: iter(each) for name, each in replacements.items()}
    outputs_of = layer_outputs(closed.jaxpr)

    def rule(eqn: jex.JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value] | None:
        inner = [p for p in places_of(eqn, prefix) if selection.get(p.name) is p.is_tag]
        if not inner:
            return None
        name = tag_of(eqn)
        if name is not None:
            if name in remaining:
                inputs = [_replaced(name, inputs[0], next(remaining[name]))]
            outputs = bind(eqn, inputs)
            captured[name] += outputs
            return outputs
        path = joined(prefix, [label for label, *_ in scopes(eqn)])
        calls = Counter(place.name for place in inner)
        taken = {name: [next(remaining[name]) for _ in range(calls[name])] for name in remaining}

        def inside(body: jex.ClosedJaxpr) -> Body:
            return lambda taken, *args: _walk(body, args, path, selection, taken)

        results = reemit(eqn, inputs, inside, taken)
        # A custom derivative rule does not include the replacements inside: it is dropped.
        outputs, values = results or inside(sub_jaxprs(eqn)[0])(taken, *inputs)
        for name in selection:
            captured[name] += values[name]
        return outputs

    def leave(path: tuple[str, ...], eqns: Sequence[jex.JaxprEqn], values: Env) -> None:
        name = joined(prefix, path)
        outputs = outputs_of(eqns) if selection.get(name) is False else []
        if not outputs:
            return
        arrays = tuple(values[var] for var in outputs)
        value: PyTree = arrays if len(arrays) > 1 else arrays[0]
        if name in remaining:
            # A copy is an equation of this layer, which later calls then find as its output.
            value = jax.tree.map(jnp.copy, _replaced(name, value, next(remaining[name])))
            values.update(zip(outputs, jax.tree.leaves(value), strict=True))
        captured[name].append(value)

    return tuple(evaluate(closed, args, rule, leave)), captured


def _for_each_call(
    calls: Sequence[Place], replacement: Replacement | list[Replacement]
) -> list[Replacement]:
    """Return the replacement of each call: full-shaped arrays, or a `Partial`."""
    name = calls[0].name
    each = replacement if isinstance(replacement, list) else [replacement] * len(calls)
    if len(each) != len(calls):
        raise ValueError(
            f"intervene: {name!r} occurs {len(calls)} times, got a list of {len(each)}."
        )
    return [_fitted(place, one) for place, one in zip(calls, each, strict=True)]


def _fitted(place: Place, replacement: Replacement) -> Replacement:
    """Check a replacement, and broadcast arrays over the steps of the enclosing scans."""
    if callable(replacement):
        # The arrays inside a `Partial` must not be sliced over the steps of a scan.
        return Partial(lambda value: replacement(value))
    arrays = replacement if isinstance(replacement, tuple) else (replacement,)
    if len(arrays) != len(place.structs):
        raise ValueError(
            f"intervene: {place.name!r} returns {len(place.structs)} arrays, of shapes "
            f"{[s.shape for s in place.structs]}, got {len(arrays)}."
        )
    full = tuple(
        _fitted_array(place, jnp.asarray(array), struct)
        for array, struct in zip(arrays, place.structs, strict=True)
    )
    return full if len(full) > 1 else full[0]


def _fitted_array(place: Place, array: Array, struct: jax.ShapeDtypeStruct) -> Array:
    shapes = [struct.shape[i:] for i in range(place.steps + 1)]
    if array.shape not in shapes:
        expected = " or, the same for all steps, ".join(map(str, shapes))
        raise ValueError(
            f"intervene: the replacement of {place.name!r} must have shape {expected}, "
            f"got {array.shape}."
        )
    real = jnp.issubdtype(struct.dtype, jnp.floating) and not jnp.iscomplexobj(array)
    if array.dtype != struct.dtype and not real:
        raise TypeError(
            f"intervene: the replacement of {place.name!r} must have dtype {struct.dtype}, "
            f"got {array.dtype}."
        )
    return jnp.broadcast_to(array.astype(struct.dtype), struct.shape)


def _replaced(name: str, value: PyTree, replacement: Replacement) -> PyTree:
    """Return an array that replaces a value, or apply the function that does."""
    if not callable(replacement):
        return replacement
    result = jax.tree.map(jnp.asarray, replacement(value))
    got, expected = (
        jax.tree.map(lambda array: f"{array.dtype}{list(array.shape)}", tree)
        for tree in (result, value)
    )
    if got != expected:
        raise ValueError(
            f"intervene: the function for {name!r} must return arrays like its argument's, "
            f"{expected}, got {got}."
        )
    return result
