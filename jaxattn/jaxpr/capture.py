"""Reads and replaces named intermediates of any JAX function."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.tree_util import Partial
from jaxtyping import Array, Shaped

from jaxattn.jaxpr.interpreter import bind, evaluate, reemit, scopes, sub_jaxprs
from jaxattn.jaxpr.names import Place, choose, joined, layer_outputs, places, places_of, tag_of


def tag(x: Shaped[Array | np.ndarray, "..."], name: str) -> Shaped[Array, "..."]:
    """Names an intermediate, so that it can be explained (`at=name`), captured and replaced.

    Args:
        x: an array. In a model that takes batches it keeps the batch axis, of length 1.
        name: what to call it.

    Returns:
        `x`, unchanged.

    Raises:
        TypeError: if the name is no string.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}")
    return checkpoint_name(jnp.asarray(x), name)


def captured(fn: Callable[..., Any], names: Sequence[str]) -> Callable[..., tuple[Any, Any]]:
    """The function that answers named intermediates too; see `jaxattn.capture`."""

    def call(*inputs: Any) -> tuple[Any, dict[str, Any]]:
        closed, treedef, found = _trace(fn, inputs)
        wanted = choose(names, found, "capture")
        outputs, seen = _walk(closed, jax.tree.leaves(inputs), "", wanted, {})
        values = {name: seen[name][0] if len(seen[name]) == 1 else seen[name] for name in wanted}
        return jax.tree.unflatten(treedef, outputs), values

    return call


def intervened(fn: Callable[..., Any], replacements: dict[str, Any]) -> Callable[..., Any]:
    """The function with other intermediates; see `jaxattn.intervene`."""

    def call(*inputs: Any) -> Any:
        closed, treedef, found = _trace(fn, inputs)
        wanted: dict[str, bool] = {}
        given: dict[str, list[Any]] = {}
        for pattern, replacement in replacements.items():
            chosen = choose([pattern], found, "intervene")
            for name, is_tag in chosen.items():
                if name in wanted:
                    raise ValueError(f"intervene: {name!r} is replaced twice")
                calls = [p for p in found if (p.name, p.is_tag) == (name, is_tag)]
                given[name] = _for_each(calls, replacement)
            wanted |= chosen
        outputs, _ = _walk(closed, jax.tree.leaves(inputs), "", wanted, given)
        return jax.tree.unflatten(treedef, outputs)

    return call


def split_at(
    fn: Callable[..., Any], inputs: tuple[Any, ...], name: str
) -> tuple[Any, Callable[[Any], Any]]:
    """Cuts a function at a named intermediate.

    Args:
        fn: the function.
        inputs: what it is called with.
        name: a tag or a layer, as `jaxattn.capture` finds it: one intermediate, one array.

    Returns:
        the intermediate, stacked over the steps of the scans around it, and the function from it to
        the output of `fn`; what reaches the output by another way keeps its value. Every step
        gets its own value: what a step's value would do through those of later steps is cut.

    Raises:
        ValueError: if no intermediate has that name, or several have.
    """
    closed, treedef, found = _trace(fn, inputs)
    wanted = choose([name], found, "at")
    meant = [p for p in found if wanted.get(p.name) is p.is_tag]
    if len(meant) > 1 or len(meant[0].structs) > 1:
        several = [f"{p.name} {[s.shape for s in p.structs]}" for p in meant]
        raise ValueError(f"at={name!r} must name one array, and names {'; '.join(several)}")
    (full_name,) = wanted
    leaves = jax.tree.leaves(inputs)

    def run(value: Any) -> Any:
        outputs, _ = _walk(closed, leaves, "", wanted, {full_name: [value]})
        return jax.tree.unflatten(treedef, outputs)

    return _walk(closed, leaves, "", wanted, {})[1][full_name][0], run


def _trace(fn: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[Any, Any, list[Place]]:
    """The jaxpr of a function, the structure of its output, and its named intermediates."""
    # JAX remembers the trace of a function that it has seen: it must not know this one.
    fresh = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)
    closed, output = fresh(*inputs)
    return closed, jax.tree.structure(output), places(closed)


def _walk(
    closed: jex.ClosedJaxpr,
    args: Sequence[Any],
    prefix: str,
    wanted: dict[str, bool],
    given: dict[str, list[Any]],
) -> tuple[tuple[Any, ...], dict[str, list[Any]]]:
    """Evaluates a jaxpr.

    Args:
        closed: the jaxpr.
        args: its inputs.
        prefix: the path of the equation that it belongs to.
        wanted: the names to look for, each with whether it is a tag's.
        given: what to replace, for every call in order, by name.

    Returns:
        the outputs, and the values of every call in order, by name.
    """
    seen: dict[str, list[Any]] = {name: [] for name in wanted}
    rest = {name: iter(replacements) for name, replacements in given.items()}
    given_out = layer_outputs(closed.jaxpr)

    def rule(eqn: jex.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any] | None:
        inner = [p for p in places_of(eqn, prefix) if wanted.get(p.name) is p.is_tag]
        if not inner:
            return None
        name = tag_of(eqn)
        if name is not None:
            if name in rest:
                inputs = [_replaced(name, inputs[0], next(rest[name]))]
            outputs = bind(eqn, inputs)
            seen[name] += outputs
            return outputs
        path = joined(prefix, [label for label, *_ in scopes(eqn)])
        times = Counter(place.name for place in inner)
        taken = {name: [next(rest[name]) for _ in range(times[name])] for name in rest}

        def inside(body: jex.ClosedJaxpr) -> Callable[..., Any]:
            return lambda taken, *args: _walk(body, args, path, wanted, taken)

        found = reemit(eqn, inputs, inside, taken)
        # A derivative rule of its own would not know of what happens inside: it is given up.
        outputs, values = found or inside(sub_jaxprs(eqn)[0])(taken, *inputs)
        for name in wanted:
            seen[name] += values[name]
        return outputs

    def leave(path: tuple[str, ...], eqns: Sequence[jex.JaxprEqn], values: dict[Any, Any]) -> None:
        name = joined(prefix, path)
        outputs = given_out(eqns) if wanted.get(name) is False else []
        if not outputs:
            return
        value: Any = tuple(values[var] for var in outputs)
        value = value if len(value) > 1 else value[0]
        if name in rest:
            # A copy is an equation of this layer: it has an output again for whoever looks next.
            value = jax.tree.map(jnp.copy, _replaced(name, value, next(rest[name])))
            values.update(zip(outputs, jax.tree.leaves(value), strict=True))
        seen[name].append(value)

    return tuple(evaluate(closed, args, rule, leave)), seen


def _for_each(calls: Sequence[Place], replacement: Any) -> list[Any]:
    """What replaces the value of each call: a pytree of full-shaped arrays, or a `Partial`."""
    name = calls[0].name
    each = replacement if isinstance(replacement, list) else [replacement] * len(calls)
    if len(each) != len(calls):
        raise ValueError(
            f"intervene: {name!r} occurs {len(calls)} times, got a list of {len(each)}"
        )
    return [_fitted(place, one) for place, one in zip(calls, each, strict=True)]


def _fitted(place: Place, replacement: Any) -> Any:
    """Checks a replacement, and stretches arrays over all steps of the scans around."""
    if callable(replacement):
        # What a Partial holds itself must not be taken for the steps of a scan.
        return Partial(lambda value: replacement(value))
    arrays = replacement if isinstance(replacement, tuple) else (replacement,)
    if len(arrays) != len(place.structs):
        raise ValueError(
            f"intervene: {place.name!r} gives out {len(place.structs)} arrays, of shapes "
            f"{[s.shape for s in place.structs]}, got {len(arrays)}"
        )
    full = []
    for array, struct in zip(map(jnp.asarray, arrays), place.structs, strict=True):
        shapes = [struct.shape[i:] for i in range(place.steps + 1)]
        if array.shape not in shapes:
            wanted = " or, the same for all steps, ".join(map(str, shapes))
            raise ValueError(
                f"intervene: {place.name!r} got an array of shape {array.shape}, wanted {wanted}"
            )
        real = jnp.issubdtype(struct.dtype, jnp.floating) and not jnp.iscomplexobj(array)
        if array.dtype != struct.dtype and not real:
            raise TypeError(
                f"intervene: {place.name!r} got an array of {array.dtype}, wanted {struct.dtype}"
            )
        full.append(jnp.broadcast_to(array.astype(struct.dtype), struct.shape))
    return tuple(full) if len(full) > 1 else full[0]


def _replaced(name: str, value: Any, replacement: Any) -> Any:
    """What stands for a value: an array that fits already, or what a function makes of it."""
    if not callable(replacement):
        return replacement
    answer = jax.tree.map(jnp.asarray, replacement(value))
    got, wanted = (
        jax.tree.map(lambda array: f"{array.dtype}{list(array.shape)}", tree)
        for tree in (answer, value)
    )
    if got != wanted:
        raise ValueError(
            f"intervene: the function for {name!r} must answer what it gets, {wanted}, got {got}"
        )
    return answer
