"""Callables that can be explained: modules of every JAX library, Keras models, functions.

A callable is split into arrays, which are traced, and a recipe, which is static and hashable and
rebuilds the callable from arrays. Equal recipes share a compiled program, so nothing that may
change is part of a recipe.
"""

import functools
import sys
import types
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import PyTree

from jaxattn._static import HashedKey, UnkeyableError, is_array, typed_key
from jaxattn.engine.closures import Closure
from jaxattn.engine.environment import Environment, Settings
from jaxattn.engine.equinox_modules import inference, is_equinox, named
from jaxattn.engine.memo import MEMOS, KnownTrace
from jaxattn.engine.nnx_modules import merged, split_module
from jaxattn.jaxpr.program import Program, Signature, trace
from jaxattn.jaxpr.readout import before_softmax

Arrays = list[Any]
Entry = TypeVar("Entry")


class Recipe:
    """A recipe that rebuilds a callable from its arrays; recipes of equal keys are equivalent."""

    def __init__(self, key: Hashable, rebuild: Callable[[Sequence[Any]], Any]) -> None:
        self.key, self.rebuild, self._hash = key, rebuild, hash(key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Recipe) and self.key == other.key)


@functools.lru_cache(maxsize=1024)
def _first(value: Entry) -> Entry:
    return value


def known(value: Entry) -> Entry:
    """Return an equal recipe or program whose later comparisons are by identity.

    A program is the first of equal ones. A recipe has only its key from the first: what it rebuilds
    may have changed since then.
    """
    if isinstance(value, Recipe):
        return type(value)(_first(HashedKey(value.key)), value.rebuild)
    return _first(value)


def bind(
    fn: Callable[..., Any], signatures: Sequence[Signature], lift: bool = True
) -> tuple[Arrays, Recipe | Program]:
    """Split a callable into arrays and a hashable recipe or program with a `rebuild` method.

    Args:
        fn: the callable.
        signatures: those of its inputs; only a function that is identified by its trace needs them.
        lift: whether literals of its trace that change between calls become arrays.

    Raises:
        TypeError: if `fn` cannot be called.
    """
    try:
        arrays, recipe = split(fn)
    except UnkeyableError:
        return _traced(fn, signatures, lift)
    # The output of a callable depends on the shapes of its arrays too.
    shapes = tuple((array.shape, array.dtype) for array in arrays)
    return arrays, known(Recipe((recipe.key, shapes), recipe.rebuild))


def _traced(
    fn: Callable[..., Any], signatures: Sequence[Signature], lift: bool
) -> tuple[Arrays, Program]:
    """Trace a function, unless all that it reads is as it was at an earlier trace."""
    try:
        environment = Environment(fn)
    except UnkeyableError:
        constants, program = trace(as_function(fn), signatures, lift)
        return constants, known(program)
    key = environment.key, Settings(), tuple(signatures), lift
    found = MEMOS.traces.get(key)
    arrays = found and found.arrays(environment)
    if found and arrays is not None:
        return arrays, found.program
    constants, program = trace(as_function(fn), signatures, lift)
    program = known(program)
    kept = KnownTrace.of(program, constants, environment)
    if kept:
        MEMOS.traces[key] = kept
    return constants, program


def as_function(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the callable as a pure function of one example, in inference mode.

    Raises:
        TypeError: if `fn` cannot be called.
    """
    if is_keras(fn):
        return functools.partial(_call_keras, fn)
    if isinstance(fn, Unbatched) and is_keras(fn.fn):
        return as_function(fn.fn)
    if isinstance(fn, Wrapper):
        return type(fn)(as_function(fn.fn), fn.options)
    try:
        arrays, recipe = split(fn)
    except UnkeyableError:
        closure = Closure(fn)
        return functools.partial(_call_closure, closure) if closure.modules else fn
    return rebuilding(recipe, arrays)


def _call_closure(closure: Closure, *inputs: PyTree) -> PyTree:
    """Call a function with modules of the present trace in its closure.

    Those of nnx run in inference mode, as their random numbers could not change between calls.
    """
    new = {name: named(part, name) for name, part in closure.modules.items() if is_equinox(part)}
    graphdef, state = nnx.split({n: m for n, m in closure.modules.items() if n not in new})
    return closure.replaced(new | merged(graphdef, nnx.as_pure(state)))(*inputs)


def rebuilding(recipe: Recipe | Program, arrays: Sequence[Any]) -> Callable[..., Any]:
    """Return the callable of a recipe, rebuilt at each call.

    An nnx module may change its own state, such as a count of random numbers, only in the trace in
    which it was rebuilt.
    """
    return lambda *inputs: recipe.rebuild(arrays)(*inputs)


def split(fn: object) -> tuple[Arrays, Recipe]:
    """Split a module, a `Partial`, a method of one, or a callable pytree.

    Raises:
        UnkeyableError: for a callable that only its trace identifies.
        TypeError: if `fn` cannot be called.
    """
    if not callable(fn):
        raise TypeError(f"`fn` must be callable, got {type(fn).__name__}.")
    if isinstance(fn, Wrapper):
        wrapper = type(fn)
        options, treedef = jax.tree.flatten(fn.options, is_leaf=callable)
        parts = [split(part) if callable(part) else _split_tree(part) for part in options]
        arrays, all_parts = _joined([split(fn.fn), *parts])

        def rebuild(arrays: Sequence[Any]) -> Wrapper:
            inner, *options = all_parts.rebuild(arrays)
            return wrapper(inner, jax.tree.unflatten(treedef, options))

        return arrays, Recipe((wrapper, typed_key(treedef), all_parts), rebuild)
    if is_keras(fn) or _is_plain(fn):
        raise UnkeyableError("a function may close over anything")
    return _split_tree(fn)


def _is_plain(fn: object) -> bool:
    """Return whether the innermost callable is a function or an unknown object."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    is_known = isinstance(fn, (nnx.Module, types.MethodType))
    return not is_known and jax.tree_util.all_leaves([fn])


def _split_tree(value: PyTree) -> tuple[Arrays, Recipe]:
    """Split any part of a callable."""
    if isinstance(value, nnx.Module):
        return _split_nnx(value)
    if isinstance(value, functools.partial):  # also jax.tree_util.Partial
        kind = type(value)
        arrays, parts = _split_all([value.func, value.args, value.keywords])
        return arrays, Recipe(
            (kind, parts.key),
            lambda a: (lambda f, args, kw: kind(f, *args, **kw))(*parts.rebuild(a)),
        )
    if isinstance(value, types.MethodType):
        function = value.__func__
        arrays, self = _split_tree(value.__self__)
        return arrays, Recipe(
            (types.MethodType, typed_key(function), self),
            lambda a: types.MethodType(function, self.rebuild(a)),
        )
    if is_array(value):
        return [value], Recipe("array", lambda a: a[0])
    if jax.tree_util.all_leaves([value]):
        return [], Recipe(typed_key(value), lambda a: value)
    leaves, treedef = jax.tree.flatten(value, is_leaf=lambda x: x is not value and _is_atomic(x))
    arrays, parts = _split_all(leaves)
    return arrays, Recipe(
        (typed_key(treedef), parts.key),
        lambda a: inference(jax.tree.unflatten(treedef, parts.rebuild(a))),
    )


def _is_atomic(value: object) -> bool:
    return isinstance(value, (nnx.Module, functools.partial, types.MethodType))


def _split_all(values: Sequence[Any]) -> tuple[Arrays, Recipe]:
    return _joined([_split_tree(value) for value in values])


def _joined(splits: Sequence[tuple[Arrays, Recipe]]) -> tuple[Arrays, Recipe]:
    sizes = [len(arrays) for arrays, _ in splits]

    def rebuild(arrays: Sequence[Any]) -> list[Any]:
        rest = iter(arrays)
        return [
            recipe.rebuild([next(rest) for _ in range(size)])
            for size, (_, recipe) in zip(sizes, splits, strict=True)
        ]

    key = tuple((size, recipe.key) for size, (_, recipe) in zip(sizes, splits, strict=True))
    return [array for arrays, _ in splits for array in arrays], Recipe(key, rebuild)


def _split_nnx(module: nnx.Module) -> tuple[Arrays, Recipe]:
    arrays, (key, graphdef, treedef) = split_module(module)

    def rebuild(arrays: Sequence[Any]) -> nnx.Module:
        return merged(graphdef, jax.tree.unflatten(treedef, arrays))

    return arrays, Recipe(key, rebuild)


def is_keras(fn: object) -> bool:
    """Return whether a callable is a layer or a model of Keras."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(fn, keras.Layer)


def _call_keras(model: PyTree, *inputs: PyTree) -> PyTree:
    """Run a Keras model on one example, with its current weights."""
    return Unbatched(functools.partial(_call_keras_batch, model))(*inputs)


def _call_keras_batch(model: PyTree, *inputs: PyTree) -> PyTree:
    import keras

    if keras.backend.backend() != "jax":
        raise TypeError(
            f"`fn` must be a Keras model on the JAX backend, got one on {keras.backend.backend()}: "
            'set KERAS_BACKEND="jax" before Keras is imported.'
        )
    trainable = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    batch = inputs[0] if len(inputs) == 1 else list(inputs)
    output, _ = model.stateless_call(trainable, others, batch, training=False)
    return output


class Wrapper:
    """A callable around another, split and traced together with it.

    Its options are a pytree of arrays, callables and statics.
    """

    def __init__(self, fn: Callable[..., Any], options: PyTree = ()) -> None:
        if not callable(fn):
            raise TypeError(f"`fn` must be callable, got {type(fn).__name__}.")
        self.fn, self.options = fn, options

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.fn!r})"


class Unbatched(Wrapper):
    """The result of `unbatched`: `fn` called with a batch of one example."""

    def __call__(self, *inputs: PyTree) -> PyTree:
        """Call `fn` with a batch of one example."""
        batched = jax.tree.map(lambda leaf: leaf[None], inputs)
        return jax.tree.map(lambda leaf: leaf[0], self.fn(*batched))


class WithoutSoftmax(Wrapper):
    """The result of `without_softmax`: `fn` with the logits of its last softmax as output."""

    def __call__(self, *inputs: PyTree) -> PyTree:
        """Return the logits of `fn`'s last softmax."""
        return before_softmax(as_function(self.fn))(*inputs)


def unbatched(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Convert a model that takes only batches to a function of one example.

    Args:
        fn: maps arrays with a leading batch axis to outputs with one.

    Returns:
        a callable of one example, which every method and `jaxattn.explain` take.

    Raises:
        TypeError: if `fn` cannot be called.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> def model(xs):
        ...     return jnp.einsum("bi->b", xs**2)
        >>> ja.gradient(ja.unbatched(model), jnp.array([1.0, 3.0])).values
        Array([2., 6.], dtype=float32)
    """
    return Unbatched(fn)


def without_softmax(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Convert a model that ends in a softmax or a sigmoid to one that returns its logits.

    A softmax saturates: the more certain the network is, the smaller is the gradient of its
    probabilities. The last softmax or sigmoid is found in the traced program and left out,
    whatever library the model was written with.

    Args:
        fn: a model whose output is a softmax over its last axis, or a sigmoid.

    Returns:
        a callable that returns the logits. For a sigmoid with one output z these are two, (-z, z):
        the logits of the negative class 0 and of the positive class 1.

    Raises:
        TypeError: if `fn` cannot be called.
        ValueError: when called, if the output is not that of a softmax or a sigmoid.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxattn as ja
        >>> def model(x):
        ...     return jax.nn.softmax(2 * x)
        >>> ja.without_softmax(model)(jnp.array([1.0, 3.0]))
        Array([2., 6.], dtype=float32)
    """
    return WithoutSoftmax(fn)
