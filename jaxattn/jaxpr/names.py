"""The named intermediates of a jaxpr: tags, and the outputs of layers by path."""

import difflib
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from jaxattn.jaxpr.interpreter import JaxprAtom, by_scope, scopes, struct_of, sub_jaxprs

#: Primitives with one inner jaxpr, which is evaluated once, in place.
_CALLS = ("jit", "checkpoint", "remat", "remat2", "closed_call", "core_call")
#: The names of either kind that an error message lists.
_LISTED = 50


class Place(NamedTuple):
    """A place where a named intermediate is computed.

    Attributes:
        name: the tag, or the path of the layer.
        is_tag: which of the two.
        structs: the shapes and dtypes of its arrays, stacked over the steps of the enclosing scans.
            A tag has one array, a layer as many as its call returns.
        steps: the number of enclosing scans.
        flaw: why it has no value, if it has none.
    """

    name: str
    is_tag: bool
    structs: tuple[jax.ShapeDtypeStruct, ...]
    steps: int = 0
    flaw: str | None = None


def tag_of(eqn: jex.JaxprEqn) -> str | None:
    """Return the name of the tag that an equation is, if it is one."""
    return str(eqn.params["name"]) if eqn.primitive.name == "name" else None


def joined(prefix: str, labels: Sequence[str]) -> str:
    """Return the path of an equation or layer: name stacks inside an equation start empty."""
    return "/".join([*filter(None, [prefix]), *labels])


def places(closed: jex.ClosedJaxpr, prefix: str = "") -> list[Place]:
    """Find all named intermediates at any depth, in the order in which they are computed.

    Args:
        closed: the jaxpr.
        prefix: the path of the equation that it belongs to.
    """
    outputs_of = layer_outputs(closed.jaxpr)

    def visit(
        eqns: Sequence[jex.JaxprEqn], path: tuple[str, ...], around: list[jex.Var]
    ) -> Iterator[Place]:
        for name, part in by_scope(eqns, len(path)):
            if name is None:
                for eqn in part:
                    yield from places_of(eqn, prefix)
                continue
            outputs = outputs_of(part)
            yield from visit(part, (*path, name), outputs)
            _, _, labels_left = scopes(part[0])[len(path)]
            # linen enters the scope of a layer again where its call calls that of its base class.
            is_repeated = path[-1:] == (name,) and outputs == around
            if outputs and not labels_left and not is_repeated:
                yield Place(joined(prefix, (*path, name)), False, tuple(map(struct_of, outputs)))

    return list(visit(closed.jaxpr.eqns, (), []))


def places_of(eqn: jex.JaxprEqn, prefix: str) -> list[Place]:
    """Find the named intermediates that one equation computes, also inside of it."""
    name = tag_of(eqn)
    if name is not None:
        return [Place(name, True, (struct_of(eqn.outvars[0]),))]
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
    why = f"is inside a `{primitive}`, which is not opened"
    if primitive == "while":
        why = "is inside a `while`, which has no fixed number of steps to stack"
    return [place._replace(flaw=place.flaw or why) for part in inner for place in part]


def layer_outputs(jaxpr: jex.Jaxpr) -> Callable[[Sequence[jex.JaxprEqn]], list[jex.Var]]:
    """Return a function that finds the outputs of consecutive equations of a jaxpr.

    Outputs are the variables that later equations read. If some of them are floating-point arrays,
    the others, such as masks and random keys, are left out.
    """
    last_use: dict[jex.Var, jex.JaxprEqn | None] = {
        var: eqn for eqn in jaxpr.eqns for var in _variables(eqn.invars)
    }
    last_use |= dict.fromkeys(_variables(jaxpr.outvars))

    def outputs_of(eqns: Sequence[jex.JaxprEqn]) -> list[jex.Var]:
        inside = set(map(id, eqns))
        computed = [var for eqn in eqns for var in eqn.outvars]
        outputs = [var for var in computed if var in last_use and id(last_use[var]) not in inside]
        floating = [var for var in outputs if jnp.issubdtype(struct_of(var).dtype, jnp.inexact)]
        return floating or outputs

    return outputs_of


def choose(patterns: Sequence[str], found: Sequence[Place], what: str) -> dict[str, bool]:
    """Select named intermediates by patterns.

    A pattern is a name or the end of a path; or a glob of either; or a part of a tag, or of a
    layer's path that reaches into its last component. The first of these interpretations that
    matches anything is taken. A pattern that starts with a slash is a full name, or a glob of one.
    A dot in a path equals a slash. A tag of exactly the name takes precedence over layers.

    Args:
        patterns: the patterns; all tags are selected if there are none.
        found: the intermediates to select from.
        what: the argument or function that takes the patterns, for error messages.

    Returns:
        The selected names, each with whether it is a tag.

    Raises:
        ValueError: if a pattern matches nothing, or an intermediate that has no value.
    """
    kinds = {place.name: False for place in found} | {p.name: True for p in found if p.is_tag}
    chosen: set[str] = set() if patterns else {name for name, is_tag in kinds.items() if is_tag}
    for pattern in patterns:
        matching = _matching(pattern, kinds)
        if not matching:
            raise ValueError(
                f"{what}: `fn` has no intermediate {pattern!r}. {_existing(pattern, kinds)}"
            )
        chosen |= set(matching)
    for place in found:
        if place.flaw and place.name in chosen and place.is_tag is kinds[place.name]:
            raise ValueError(f"{what}: {place.name!r} {place.flaw}.")
    return {name: is_tag for name, is_tag in kinds.items() if name in chosen}


def is_named(pattern: str, found: Sequence[Place]) -> bool:
    """Return whether a pattern matches any of the named intermediates."""
    return bool(_matching(pattern, {place.name: place.is_tag for place in found}))


def is_glob(pattern: str) -> bool:
    """Return whether a pattern is meant to match several names."""
    return any(sign in pattern for sign in "*?[")


def listed(calls: Sequence[Place]) -> str:
    """Return the calls of intermediates with their shapes, and how to select one of them."""
    shown = "; ".join(f"{place.name} {[s.shape for s in place.structs]}" for place in calls)
    names = list(dict.fromkeys(place.name for place in calls))
    if len(names) > 1:
        return f"{shown}. A leading slash selects a full name, such as {'/' + names[0]!r}."
    return f"{shown}. Use `jaxattn.tag` to name one of them."


def _matching(pattern: str, kinds: dict[str, bool]) -> list[str]:
    """Return the names that a pattern matches."""
    full, wanted = pattern.startswith("/"), _path(pattern.removeprefix("/"))

    def is_part(name: str) -> bool:
        # The paths of a layer's parts contain its own path, but the pattern means the layer.
        own = 0 if kinds[name] else _path(name).rfind("/") + 1
        return wanted in _path(name) and _path(name).rfind(wanted) + len(wanted) > own

    def ends(name: str) -> bool:
        return _path(name) == wanted or (not full and _path(name).endswith(f"/{wanted}"))

    def fits(name: str) -> bool:
        patterns = [wanted] if full else [wanted, f"*/{wanted}"]
        return any(fnmatch.fnmatchcase(_path(name), each) for each in patterns)

    exact = pattern.removeprefix("/" if full else "")
    matching = [name for name in kinds if ends(name)]
    if kinds.get(exact):
        return [name for name in matching if kinds[name]]
    if not matching and is_glob(pattern):
        return [name for name in kinds if fits(name)]
    return matching or [name for name in kinds if not full and is_part(name)]


def _path(name: str) -> str:
    return name.replace(".", "/")


def _existing(pattern: str, kinds: dict[str, bool]) -> str:
    """Return which intermediates there are, those with similar names first."""
    by_end = {name: name for name in kinds} | {name.rpartition("/")[2]: name for name in kinds}
    close = difflib.get_close_matches(_path(pattern).strip("/*"), list(by_end), 3)
    similar = " or ".join(repr(name) for name in dict.fromkeys(by_end[end] for end in close))
    hint = f"Is it {similar}? " if similar else ""
    tags, layers = ([n for n, kind in kinds.items() if kind is is_tag] for is_tag in (True, False))
    return (
        f"{hint}It has the tags {_shortened(tags)} and the layers {_shortened(layers)}. Use "
        "`jaxattn.tag` to name others."
    )


def _shortened(names: list[str]) -> str:
    more = len(names) - _LISTED
    return f"{names}" if more <= 0 else f"{names[:_LISTED]} and {more} more"


def _stacked(place: Place, length: int) -> Place:
    structs = tuple(jax.ShapeDtypeStruct((length, *s.shape), s.dtype) for s in place.structs)
    return place._replace(structs=structs, steps=place.steps + 1)


def _in_every_branch(branches: Sequence[Sequence[Place]]) -> list[Place]:
    """Return the intermediates of a `cond`: those that not every branch has get a flaw."""
    why = "does not occur equally often, with equal shapes, in every branch of a `cond`"
    kept: list[Place] = []
    for key in dict.fromkeys((p.name, p.is_tag) for branch in branches for p in branch):
        each = [[p for p in branch if (p.name, p.is_tag) == key] for branch in branches]
        equal = all(part == each[0] for part in each)
        kept += each[0] if equal else [Place(*key, structs=(), flaw=why)]
    return kept


def _variables(atoms: Sequence[JaxprAtom]) -> list[jex.Var]:
    return [atom for atom in atoms if not isinstance(atom, jex.Literal)]
