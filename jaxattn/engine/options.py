"""A method's options: arrays apart from what is static, and what they say of its work."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from jaxattn._static import UnkeyableError, is_array, typed_key
from jaxattn._types import Attribution
from jaxattn.engine.callable import Recipe, known


class Count(Protocol):
    """A number of evaluations of `fn`, from the abstract input and output, and the options."""

    def __call__(self, x: Any, output: Any, options: dict[str, Any], /) -> int:
        """Return the number for one example."""
        ...


@dataclasses.dataclass(frozen=True)
class Traits:
    """What a method declares to the engine; see `jaxattn.method`."""

    evaluations: Count | None = None
    in_flight: Count | None = None
    per_example: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    takes_at: bool = True
    needs_at: bool = False
    keeps_input: bool = False
    draws: bool = False


_UNDECLARED = Traits()


def traits_of(method: Any) -> Traits:
    """Return the traits of a method; those of a function without the decorator are the defaults."""
    traits: Traits = getattr(method, "traits", _UNDECLARED)
    return traits


def count(
    what: str, method: Callable[..., Attribution], x: Any, output: Any, options: dict[str, Any]
) -> int:
    """How many evaluations of `fn` a method makes for one example, or has in flight at once.

    Args:
        what: `"evaluations"` or `"in_flight"`.
        method: the method; one that does not say makes 1.
        x: what is explained, abstract or not.
        output: what `fn` answers.
        options: the method's own, and `target`.
    """
    if isinstance(method, functools.partial):
        return count(what, method.func, x, output, {**method.keywords, **options})
    stated: Count | None = getattr(traits_of(method), what)
    return 1 if stated is None else max(1, int(stated(x, output, options)))


def with_sizes(method: Callable[..., Attribution], options: dict[str, Any]) -> dict[str, Any]:
    """The options, numpy arrays of sizes as tuples: shapes rest on them, so they are not traced."""
    inner = options.get("method")  # whose options smooth_grad takes beside its own
    names = (*traits_of(method).sizes, *traits_of(inner).sizes)
    return options | {name: as_tuples(options[name]) for name in names if name in options}


def as_tuples(sizes: Any) -> Any:
    """Sizes for each leaf, those in numpy arrays of one axis or none as tuples and numbers."""

    def of_leaf(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray) or leaf.ndim > 1:
            return leaf
        return tuple(leaf.tolist()) if leaf.ndim else leaf.item()

    return jax.tree.map(of_leaf, sizes)


def static(value: Any) -> Recipe:
    """A recipe for what never changes; what may change gets one that equals no other."""
    try:
        return known(Recipe(typed_key(value), lambda arrays: value))
    except (UnkeyableError, RecursionError):
        return Recipe(object(), lambda arrays: value)


def split_options(options: dict[str, Any]) -> tuple[list[Any], Recipe]:
    """Parts the arrays in the options, which are traced, from the rest, which is static."""
    leaves, treedef = jax.tree.flatten(options)
    arrays = [leaf for leaf in leaves if is_array(leaf)]
    statics = [None if is_array(leaf) else static(leaf) for leaf in leaves]

    def rebuild(arrays: Any) -> Any:
        rest = iter(arrays)
        return jax.tree.unflatten(
            treedef, [next(rest) if s is None else s.rebuild(()) for s in statics]
        )

    return arrays, known(Recipe((static(treedef), *statics), rebuild))
