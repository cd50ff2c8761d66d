"""nnx modules: their graph and arrays, and how they are traced.

A module is traced in inference mode, and each of its parts under its path as a named scope. Only
modules that were rebuilt for a trace are changed, never those of the user.
"""

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import PyTree

from jaxattn._static import ATOMS, HashedKey, UnkeyableError, is_array, typed_key
from jaxattn.engine.scopes import PATHS, scoped

_NODES = nnx.Pytree, nnx.Variable
_INFERENCE = {"deterministic": True, "use_running_average": True}
#: The types of attributes that hold no module.
_CLOSED = frozenset((types.NoneType, bool, int, float, str, types.FunctionType, nnx.Param))


class Graph(NamedTuple):
    """All of a module but its arrays.

    Attributes:
        key: equal for modules only if programs may exchange their graphs.
        graphdef: the graph as nnx describes it.
        treedef: the structure of its state.
    """

    key: Hashable
    graphdef: nnx.GraphDef[Any]
    treedef: jax.tree_util.PyTreeDef


def split_module(module: nnx.Module) -> tuple[list[Any], Graph]:
    """Return the arrays of a module and its graph.

    The attributes are read at each call. `nnx.split`, which takes much longer, is called only for a
    graph that is new.
    """
    parts: list[Hashable] = []
    arrays: list[Any] = []
    try:
        list_node(module, parts, arrays, {})
    except UnkeyableError:  # such as a pytree of modules
        return _split_by_nnx(module)
    key = HashedKey(tuple(parts))
    seen = _seen(key)
    if not seen:
        leaves, graph = _split_by_nnx(module)
        position = {id(array): i for i, array in enumerate(arrays)}
        if not len(position) == len(arrays) == len(leaves) or any(
            id(leaf) not in position for leaf in leaves
        ):
            return leaves, graph
        order = [position[id(leaf)] for leaf in leaves]
        seen.append((graph._replace(key=key), order))
    graph, order = seen[0]
    return [arrays[i] for i in order], graph


@functools.lru_cache(maxsize=1024)
def _seen(key: HashedKey) -> list[tuple[Graph, list[int]]]:
    """Return the same list for equal keys: of the graph and the order of its arrays, once known."""
    return []


def _split_by_nnx(module: nnx.Module) -> tuple[list[Any], Graph]:
    graphdef, state = nnx.split(module)
    arrays, treedef = jax.tree.flatten(nnx.as_pure(state))
    return arrays, Graph((typed_key(graphdef), typed_key(treedef)), graphdef, treedef)


def list_node(
    node: nnx.Pytree,
    parts: list[Hashable],
    arrays: list[Any],
    numbers: dict[int, int],
    key: Callable[[Any], Hashable] = typed_key,
) -> None:
    """List all of a node that makes up its graph, and the arrays of its variables.

    Raises:
        UnkeyableError: for an attribute that holds arrays or nodes in another way.
    """
    number = numbers.get(id(node))
    parts += type(node), number
    if number is not None:  # listed already
        return
    numbers[id(node)] = len(numbers)
    attributes = vars(node)
    parts.append(len(attributes))
    for name, value in attributes.items():
        kind: Any = type(value)
        parts.append(name)
        if kind in ATOMS:
            parts.extend((kind, value))
        elif name == "_pytree__nodes":  # which attributes nnx looks into
            parts.append(tuple(value.items()))
        elif name != "_pytree__state":  # whether the node is being initialized
            role = _ROLES.get(type(value)) or _role(value)
            if role == "other":
                parts.append(key(value))
            elif role == "node":
                list_node(value, parts, arrays, numbers, key)
            else:
                list_variable(value, parts, arrays, numbers, key)


#: What the attributes of a type are: the tests of nnx take long.
_ROLES: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()


def _role(value: object) -> str:
    if is_array(value):
        raise UnkeyableError("an array that is no variable")
    role = "other"
    if isinstance(value, nnx.Variable):
        role = "variable"
    elif isinstance(value, nnx.Pytree):
        role = "node"
    return _ROLES.setdefault(type(value), role)


def list_variable(
    variable: nnx.Variable[Any],
    parts: list[Hashable],
    arrays: list[Any],
    numbers: dict[int, int],
    key: Callable[[Any], Hashable] = typed_key,
) -> None:
    """List the type and metadata of a variable, and its array."""
    number = numbers.get(id(variable))
    parts += type(variable), number
    if number is not None:  # listed already
        return
    numbers[id(variable)] = len(numbers)
    value = variable.get_raw_value()
    if not is_array(value):
        raise UnkeyableError("a variable that holds no array")
    arrays.append(value)
    metadata = variable.get_metadata()
    parts.append(len(metadata))
    for name, entry in metadata.items():
        parts += name, (type(entry), entry) if type(entry) in ATOMS else key(entry)


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
