"""Declarations of a method, and its options: arrays separate from static values."""

import dataclasses
import functools
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxattn._static import UnkeyableError, is_array, typed_key
from jaxattn._types import Method
from jaxattn.engine.callable import Recipe, known
from jaxattn.engine.numbers import Condition, check_number


class Prepare(Protocol):
    """Options as a method takes them, from the abstract input and the options of a call."""

    def __call__(self, x: PyTree, options: dict[str, Any], /) -> dict[str, Any]:
        """Return the options in their final form."""
        ...


class Count(Protocol):
    """A number of evaluations of `fn`, from the abstract input and output, and the options."""

    def __call__(self, x: PyTree, output: PyTree, options: dict[str, Any], /) -> int:
        """Return the number for one example."""
        ...


class Selection(Protocol):
    """The part of an output that a target selects from, from the output and the options."""

    def __call__(self, output: PyTree, options: dict[str, Any], /) -> PyTree:
        """Return the part, abstract like the output."""
        ...


@dataclasses.dataclass(frozen=True)
class Traits:
    """The declarations of a method to the engine; see `jaxattn.method`."""

    evaluations: Count | None = None
    in_flight: Count | None = None
    selects_from: Selection | None = None
    per_example: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    takes_at: bool = True
    needs_at: bool = False
    keeps_input: bool = False
    backward: bool = True
    shares_states: bool = False
    draws: bool = False
    for_logits: bool = False
    remedy: str = ""
    numbers: Mapping[str, Condition] = dataclasses.field(default_factory=dict)
    prepare: Prepare | None = None


_UNDECLARED = Traits()


def traits_of(method: object) -> Traits:
    """Return the traits of a method; a function without the decorator has the defaults."""
    traits = getattr(method, "traits", None)
    return traits if isinstance(traits, Traits) else _UNDECLARED


def without_partial(method: object) -> object:
    """Return the method that a `functools.partial` binds options of."""
    while isinstance(method, functools.partial):
        method = method.func
    return method


def name_of(method: object) -> str:
    """Return the name of a method."""
    method = without_partial(method)
    return str(getattr(method, "__name__", type(method).__name__))


def is_method(function: object) -> bool:
    """Return whether a function was made a method by `jaxattn.method`."""
    return isinstance(getattr(function, "traits", None), Traits)


def count(what: str, method: Any, x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    """Return how many evaluations of `fn` a method makes for one example, or has in flight.

    Args:
        what: `"evaluations"` or `"in_flight"`.
        method: the method; without a declaration the number is 1.
        x: what is explained, abstract or not.
        output: the output of `fn`.
        options: the method's own, and `target`.
    """
    if isinstance(method, functools.partial):
        return count(what, method.func, x, output, {**method.keywords, **options})
    declared: Count | None = getattr(traits_of(method), what)
    return 1 if declared is None else max(1, int(declared(x, output, options)))


def selected_part(method: Method, output: PyTree, options: dict[str, Any]) -> PyTree:
    """Return the part of the abstract output of `fn` that a target selects from."""
    if isinstance(method, functools.partial):
        return selected_part(method.func, output, {**method.keywords, **options})
    inner = options.get("method")  # smooth_grad explains what this one does
    selects_from = traits_of(method).selects_from or traits_of(inner).selects_from
    return output if selects_from is None else selects_from(output, options)


def with_sizes(method: Method, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with numpy arrays of sizes as tuples: shapes depend on them."""
    inner = without_partial(options.get("method"))  # smooth_grad takes the options of this one too
    names = (*traits_of(method).sizes, *traits_of(inner).sizes)
    return options | {name: as_tuples(options[name]) for name in names if name in options}


def prepared(method: Method, x: PyTree, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options, checked, as the method prepares them outside of `jit`.

    Args:
        method: the method; one that it wraps (`method=`) prepares its own options, too.
        x: what is explained of one example, abstract or not.
        options: those of a call, which may have a leading axis of examples.
    """
    for each in (method, without_partial(options.get("method"))):
        check_numbers(each, options)
        prepare = traits_of(each).prepare
        if prepare is not None:
            options = prepare(x, options)
    return options


def check_numbers(method: Any, options: dict[str, Any]) -> None:
    """Check options that a method declares as numbers; `None` is valid if annotated so."""
    for name, condition in traits_of(method).numbers.items():
        if name not in options:
            continue
        if options[name] is None:
            annotation = inspect.signature(method).parameters[name].annotation
            if types.NoneType in get_args(annotation):
                continue
        check_number(name, options[name], condition)


def as_tuples(sizes: PyTree) -> PyTree:
    """Return the sizes of each leaf, numpy arrays of at most one axis as tuples or numbers."""

    def of_leaf(leaf: PyTree) -> PyTree:
        if not isinstance(leaf, np.ndarray) or leaf.ndim > 1:
            return leaf
        return tuple(leaf.tolist()) if leaf.ndim else leaf.item()

    return jax.tree.map(of_leaf, sizes)


def static(value: object) -> Recipe:
    """Return a recipe of a constant; a value that may change gets one that equals no other."""
    try:
        return known(Recipe(typed_key(value), lambda arrays: value))
    except (UnkeyableError, RecursionError):
        return Recipe(object(), lambda arrays: value)


def static_method(method: Method) -> Recipe:
    """Return a recipe of a method; one that is not importable goes by its undecorated function."""
    core = getattr(method, "__wrapped__", None)
    if core is None or not is_method(method):
        return static(method)
    for value in (method, (core, traits_of(method))):
        try:
            return known(Recipe(typed_key(value), lambda arrays: method))
        except (UnkeyableError, RecursionError):
            continue
    return Recipe(object(), lambda arrays: method)


def with_baseline_array(
    method: Method, options: dict[str, Any], explained: PyTree
) -> dict[str, Any]:
    """Return the options with a number as `baseline` as an array, where the method takes one.

    An array is traced, so another number needs no other program. For integers Python's numbers are
    kept, because a fraction is an error there.
    """
    floating = all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(explained))
    if "baseline" not in traits_of(method).per_example or not floating:
        return options

    def of_leaf(leaf: PyTree) -> PyTree:
        plain = isinstance(leaf, (int, float, np.floating)) and not isinstance(leaf, bool)
        return np.asarray(leaf, jnp.result_type(float)) if plain else leaf

    return {
        name: jax.tree.map(of_leaf, value) if name == "baseline" else value
        for name, value in options.items()
    }


def split_options(options: dict[str, Any]) -> tuple[list[Any], Recipe]:
    """Split the arrays in the options, which are traced, from the rest, which is static."""
    leaves, treedef = jax.tree.flatten(options)
    arrays = [leaf for leaf in leaves if is_array(leaf)]
    statics = [None if is_array(leaf) else static(leaf) for leaf in leaves]

    def rebuild(arrays: Sequence[Any]) -> PyTree:
        rest = iter(arrays)
        return jax.tree.unflatten(
            treedef, [next(rest) if s is None else s.rebuild(()) for s in statics]
        )

    return arrays, known(Recipe((static(treedef), *statics), rebuild))
