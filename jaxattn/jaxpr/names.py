"""The named intermediates of a jaxpr: tags, and what layers give out under their path."""

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from jaxattn.jaxpr.interpreter import by_scope, scopes, sub_jaxprs

#: Equations with one inner jaxpr that is run once, in place.
_CALLS = ("jit", "checkpoint", "remat", "remat2", "closed_call", "core_call")


class Place(NamedTuple):
    """Where a named intermediate is made.

    Attributes:
        name: the tag, or the path of the layer.
        is_tag: which of the two.
        structs: its arrays, abstractly, stacked over the steps of the scans around: a tag's one, or
            as many as leave a layer's call.
        steps: how many scans are around.
        flaw: why it has no value, if it has none.
    """

    name: str
    is_tag: bool
    structs: tuple[jax.ShapeDtypeStruct, ...]
    steps: int = 0
    flaw: str | None = None


def tag_of(eqn: jex.JaxprEqn) -> str | None:
    """The name that a tag gives."""
    return str(eqn.params["name"]) if eqn.primitive.name == "name" else None


def joined(prefix: str, labels: Sequence[str]) -> str:
    """The path of an equation or layer; name stacks inside of an equation start from it anew."""
    return "/".join([*filter(None, [prefix]), *labels])


def places(closed: jex.ClosedJaxpr, prefix: str = "") -> list[Place]:
    """All named intermediates at any depth, in the order in which they are made.

    Args:
        closed: the jaxpr.
        prefix: the path of the equation that it belongs to.
    """
    given_out = layer_outputs(closed.jaxpr)

    def visit(eqns: Sequence[jex.JaxprEqn], path: tuple[str, ...]) -> Iterator[Place]:
        for name, part in by_scope(eqns, len(path)):
            if name is None:
                for eqn in part:
                    yield from places_of(eqn, prefix)
                continue
            yield from visit(part, (*path, name))
            outputs = given_out(part)
            if outputs:
                yield Place(joined(prefix, (*path, name)), False, tuple(map(_struct, outputs)))

    return list(visit(closed.jaxpr.eqns, ()))


def places_of(eqn: jex.JaxprEqn, prefix: str) -> list[Place]:
    """The named intermediates that are made by one equation, and inside of it."""
    name = tag_of(eqn)
    if name is not None:
        return [Place(name, True, (_struct(eqn.outvars[0]),))]
    bodies = sub_jaxprs(eqn)
    if not bodies:
        return []
    path = joined(prefix, [label for label, *_ in scopes(eqn)])
    inner = [places(body, path) for body in bodies]
    primitive = eqn.primitive.name
    if primitive == "scan":
        return [_stacked(place, eqn.params["length"]) for place in inner[0]]
    if primitive == "cond":
        return _in_every_branch(inner)
    if primitive in _CALLS or primitive.startswith(("custom_jvp_call", "custom_vjp_call")):
        return inner[0]
    why = f"lies inside of a `{primitive}`, which is not opened"
    if primitive == "while":
        why = "lies inside of a `while`, which has no fixed number of steps to stack"
    return [place._replace(flaw=place.flaw or why) for part in inner for place in part]


def layer_outputs(jaxpr: jex.Jaxpr) -> Callable[[Sequence[jex.JaxprEqn]], list[Any]]:
    """Tells which variables leave some consecutive equations: those that later ones read.

    Where any of them is floating, the others, such as masks and keys, do not count.
    """
    last_use = {atom: eqn for eqn in jaxpr.eqns for atom in _variables(eqn.invars)}
    last_use |= dict.fromkeys(_variables(jaxpr.outvars))

    def given_out(eqns: Sequence[jex.JaxprEqn]) -> list[Any]:
        inside = set(map(id, eqns))
        made: list[Any] = [var for eqn in eqns for var in eqn.outvars]
        leaving = [var for var in made if var in last_use and id(last_use[var]) not in inside]
        floating = [var for var in leaving if jnp.issubdtype(var.aval.dtype, jnp.inexact)]
        return floating or leaving

    return given_out


def choose(patterns: Sequence[str], found: Sequence[Place], what: str) -> dict[str, bool]:
    """The names that match, each with whether it is a tag's; without patterns all tags.

    A pattern is a name; or the end of a path; or a glob of either; or a part of a tag, or of a
    layer's path that reaches into its last component. The first of these that finds anything
    counts. A tag goes before a layer of the same name.

    Args:
        patterns: what was asked for.
        found: what there is.
        what: the argument that asked, for the errors.

    Raises:
        ValueError: for a pattern that matches nothing, or something that has no value.
    """
    kinds = {place.name: False for place in found} | {p.name: True for p in found if p.is_tag}
    tags = [name for name, is_tag in kinds.items() if is_tag]
    chosen: set[str] = set() if patterns else set(tags)
    for pattern in patterns:
        matching = _matching(pattern, kinds)
        if not matching:
            layers = [name for name, is_tag in kinds.items() if not is_tag]
            raise ValueError(
                f"{what}: fn has no intermediate {pattern!r}; it has the tags {tags} and the "
                f"layers {layers}; jaxattn.tag names others"
            )
        chosen |= set(matching)
    for place in found:
        if place.flaw and place.name in chosen and place.is_tag is kinds[place.name]:
            raise ValueError(f"{what}: {place.name!r} {place.flaw}")
    return {name: is_tag for name, is_tag in kinds.items() if name in chosen}


def _matching(pattern: str, kinds: dict[str, bool]) -> list[str]:
    """The names that the pattern means."""
    is_glob = any(sign in pattern for sign in "*?[")

    def is_part(name: str) -> bool:
        # A layer's parts have its path in theirs: they are not meant.
        own = 0 if kinds[name] else name.rfind("/") + 1
        return pattern in name and name.rfind(pattern) + len(pattern) > own

    tests: tuple[Callable[[str], bool], ...] = (
        lambda name: name == pattern,
        lambda name: name.endswith("/" + pattern),
        lambda name: is_glob and fnmatch.fnmatchcase(name, pattern),
        lambda name: is_glob and fnmatch.fnmatchcase(name, "*/" + pattern),
        lambda name: not is_glob and is_part(name),
    )
    matches = ([name for name in kinds if test(name)] for test in tests)
    return next(filter(None, matches), [])


def _stacked(place: Place, length: int) -> Place:
    structs = tuple(jax.ShapeDtypeStruct((length, *s.shape), s.dtype) for s in place.structs)
    return place._replace(structs=structs, steps=place.steps + 1)


def _in_every_branch(branches: Sequence[Sequence[Place]]) -> list[Place]:
    """What the branches of a `cond` have in common; the rest is flawed."""
    why = "does not occur equally often, with equal shapes, in every branch of a `cond`"
    kept: list[Place] = []
    for key in dict.fromkeys((p.name, p.is_tag) for branch in branches for p in branch):
        each = [[p for p in branch if (p.name, p.is_tag) == key] for branch in branches]
        equal = all(part == each[0] for part in each)
        kept += each[0] if equal else [Place(*key, structs=(), flaw=why)]
    return kept


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [atom for atom in atoms if not isinstance(atom, jex.Literal)]


def _struct(var: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype)
