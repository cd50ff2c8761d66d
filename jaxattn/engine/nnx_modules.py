"""nnx modules as they are traced: in inference mode, and each under its path as a named scope.

nnx gives no names to the operations of a module. A traced module has a subclass of its class whose
call enters a named scope; the modules of the user are never changed.
"""

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

import jax
from flax import nnx
from jaxtyping import PyTree

#: The attribute that holds the paths of a module. nnx does not list names that start like this.
_PATHS = "_pytree__jaxattn_paths"
_INFERENCE = {"deterministic": True, "use_running_average": True}
#: The types of attributes that hold no module.
_CLOSED = frozenset((types.NoneType, bool, int, float, str, types.FunctionType, nnx.Param))
#: The path of the module that is being called.
_caller: ContextVar[str] = ContextVar("caller", default="")


def merged(graphdef: nnx.GraphDef[Any], state: PyTree) -> Any:
    """Return the module of a graph, or its pytree of modules, in inference mode and with names."""
    tree = nnx.merge(graphdef, state)
    found: dict[int, tuple[nnx.Pytree, list[str]]] = {}
    for path, node in _nodes(tree):
        _collect(node, path, found)
    for node, paths in found.values():
        _set_inference_mode(node)
        if isinstance(node, nnx.Module) and callable(node):
            _name(node, tuple(paths))
    return tree


def _collect(node: nnx.Pytree, path: str, found: dict[int, tuple[nnx.Pytree, list[str]]]) -> None:
    """Collect the nodes of a graph, with the paths that lead to them, the first one first.

    The paths of a shared module's parts go through the first path of the module only.
    """
    paths = found.setdefault(id(node), (node, []))[1]
    paths.append(path)
    if len(paths) > 1:
        return
    for name, value in vars(node).items():
        if type(value) not in _CLOSED and not name.startswith("_pytree__"):
            for inner, child in _nodes(value):
                _collect(child, "/".join(filter(None, (path, name, inner))), found)


def _nodes(value: PyTree) -> Iterator[tuple[str, nnx.Pytree]]:
    """Yield a graph node, or those in a pytree, with their paths in it."""
    if isinstance(value, nnx.Pytree):
        yield "", value
    elif not isinstance(value, nnx.Variable):
        is_node = functools.partial(_is_instance, kinds=(nnx.Pytree, nnx.Variable))
        for keys, leaf in jax.tree.leaves_with_path(value, is_leaf=is_node):
            if isinstance(leaf, nnx.Pytree):
                yield jax.tree_util.keystr(keys, simple=True, separator="/"), leaf


def _is_instance(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds)


def _set_inference_mode(node: nnx.Pytree) -> None:
    """Do what `nnx.view` does, in place."""
    set_view = getattr(type(node), "set_view", None)
    if set_view is not None:
        names = _accepted(set_view)
        set_view(node, **{name: value for name, value in _INFERENCE.items() if name in names})


@functools.lru_cache(maxsize=1024)
def _accepted(set_view: Callable[..., Any]) -> frozenset[str]:
    """Return the options of inference that a module's `set_view` takes."""
    parameters = inspect.signature(set_view).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return frozenset(name for name in _INFERENCE if takes_all or name in parameters)


#: The class of the traced modules, by the class of the user's and by itself. JAX keeps all of them.
_classes: dict[type, type] = {}


def _name(module: nnx.Module, paths: tuple[str, ...]) -> None:
    kind = type(module)
    if kind not in _classes:
        # Threads that make it at the same time use the first one.
        scoped = _classes.setdefault(kind, _scoped(kind))
        _classes[scoped] = scoped
    object.__setattr__(module, "__class__", _classes[kind])
    object.__setattr__(module, _PATHS, paths)


def _scoped(kind: Any) -> type:
    """Return the subclass of a class of modules that enters a named scope when it is called."""
    call = kind.__call__

    @functools.wraps(call)
    def scoped_call(self: Any, *args: Any, **options: Any) -> Any:
        path, *others = getattr(self, _PATHS, ("",))
        caller = _caller.get()
        inside = (
            p.removeprefix(f"{caller}/") for p in (path, *others) if p.startswith(f"{caller}/")
        )
        label = next(inside, path) if caller else path
        token = _caller.set(path)
        try:
            with jax.named_scope(label) if label else nullcontext():
                return call(self, *args, **options)
        finally:
            _caller.reset(token)

    names = ("__module__", "__qualname__", "__doc__")
    namespace = {name: getattr(kind, name) for name in names} | {"__call__": scoped_call}
    options = {} if kind._pytree__is_pytree else {"pytree": False}
    try:
        return type(kind)(kind.__name__, (kind,), namespace, **options)
    except TypeError:  # a class whose subclasses need arguments: its modules have no names
        return kind
