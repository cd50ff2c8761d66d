"""nnx modules as they are traced: in inference mode, and each under its path as a named scope.

Only modules that were rebuilt for a trace are changed, never those of the user.
"""

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx
from jaxtyping import PyTree

from jaxattn.engine.scopes import PATHS, scoped

_NODES = nnx.Pytree, nnx.Variable
_INFERENCE = {"deterministic": True, "use_running_average": True}
#: The types of attributes that hold no module.
_CLOSED = frozenset((types.NoneType, bool, int, float, str, types.FunctionType, nnx.Param))


def merged(graphdef: nnx.GraphDef[Any], state: PyTree) -> Any:
    """Return the module of a graph, or its pytree of modules, in inference mode and with names."""
    tree = nnx.merge(graphdef, state)
    found: dict[int, tuple[nnx.Pytree, list[str]]] = {}
    for path, node in _nodes(tree):
        _collect(node, path, found)
    for node, paths in found.values():
        _set_inference_mode(node)
        if isinstance(node, nnx.Module) and callable(node):
            options: dict[str, Any] = {} if node._pytree__is_pytree else {"pytree": False}
            object.__setattr__(node, "__class__", scoped(type(node), **options))
            object.__setattr__(node, PATHS, tuple(paths))
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
        leaves = jax.tree.leaves_with_path(value, is_leaf=lambda node: isinstance(node, _NODES))
        for keys, leaf in leaves:
            if isinstance(leaf, nnx.Pytree):
                yield jax.tree_util.keystr(keys, simple=True, separator="/"), leaf


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
