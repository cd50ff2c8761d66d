"""Named intermediates: tags that a function carries into its jaxpr, found again there."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Shaped

from jaxattn.jaxpr.interpreter import evaluate, sub_jaxprs


def tag(x: Shaped[Array, "..."], name: str) -> Shaped[Array, "..."]:
    """Names an intermediate, so that methods can explain it with `at=name`; the value is unchanged.

    Args:
        x: an array. In a model that takes batches it keeps the batch axis, of length 1.
        name: what to call it.

    Returns:
        `x`.
    """
    return checkpoint_name(x, name)


def split_at(
    fn: Callable[..., Any], inputs: tuple[Any, ...], name: str
) -> tuple[Any, Callable[[Any], Any]]:
    """Cuts a function at a named intermediate.

    Args:
        fn: the function.
        inputs: what it is called with.
        name: the tag of one intermediate, outside of loops and branches.

    Returns:
        the intermediate, and the function from it to the output of `fn`; what reaches the output
        by another way keeps its value.

    Raises:
        ValueError: if no intermediate has that name, several have, or it lies inside of a loop or a
            branch.
    """
    leaves = jax.tree.leaves(inputs)
    fresh = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)
    closed, output = fresh(*inputs)
    _check_name(closed, name)
    seen: list[Any] = []

    def run(replacement: Any) -> list[Any]:
        def rule(eqn: jex.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any] | None:
            if _tag_of(eqn) == name:
                seen.append(inputs[0])
                return [inputs[0] if replacement is None else replacement]
            if any(name in _names(inner) for inner in sub_jaxprs(eqn)):
                (called,) = sub_jaxprs(eqn)
                return evaluate(called, inputs, rule)
            return None

        return evaluate(closed, leaves, rule)

    run(None)
    return seen[0], lambda value: jax.tree.unflatten(jax.tree.structure(output), run(value))


def _tag_of(eqn: jex.JaxprEqn) -> str | None:
    return str(eqn.params["name"]) if eqn.primitive.name == "name" else None


def _names(closed: jex.ClosedJaxpr) -> list[str]:
    return [name for name, _ in _tags(closed, ())]


def _tags(
    closed: jex.ClosedJaxpr, within: tuple[str, ...]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """All tags at any depth, each with the primitives that it lies in."""
    for eqn in closed.jaxpr.eqns:
        name = _tag_of(eqn)
        if name is not None:
            yield name, within
        for inner in sub_jaxprs(eqn):
            yield from _tags(inner, (*within, eqn.primitive.name))


def _check_name(closed: jex.ClosedJaxpr, name: str) -> None:
    tags = list(_tags(closed, ()))
    found = [within for tagged, within in tags if tagged == name]
    if len(found) != 1:
        known = sorted({tagged for tagged, _ in tags})
        raise ValueError(
            f"at={name!r} must name one intermediate, and {len(found)} have that name; "
            f"fn has {known}: name one with jaxattn.tag"
        )
    inside = [primitive for primitive in found[0] if primitive != "jit"]
    if inside:
        raise ValueError(
            f"at={name!r} lies inside of a `{inside[0]}`, where it has no single value: "
            "tag what goes in or comes out"
        )
