"""Keys for everything that is not a traced array.

Two keys are equal only if types and values agree all the way down. Python's own equality would not
do: `1`, `1.0` and `True` are equal and share an entry of `jax.jit`'s cache.
"""

import dataclasses
import enum
import functools
import hashlib
import sys
import types
from collections.abc import Hashable, Iterator, Mapping, Set
from typing import Any, cast

import jax
import numpy as np


class UnkeyableError(TypeError):
    """The value can change without its key changing, so no compiled program may rest on it."""


_BY_VALUE = frozenset(
    (types.NoneType, bool, int, str, bytes, complex, types.EllipsisType, types.CodeType)
)
_DATA = (bool, int, float, complex, str, bytes, np.ndarray, np.generic, jax.Array)
_BY_IDENTITY = (
    np.dtype,
    enum.Enum,
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
    np.ufunc,
)


def typed_key(value: Any) -> Any:
    """A hashable key that two values share only if they may stand for each other in a program.

    Raises:
        UnkeyableError: for objects that compare by identity and could change unseen.
    """
    kind = type(value)
    if kind in _BY_VALUE:
        return kind, value
    if kind is float:  # hex keeps nan equal to itself and -0.0 apart from 0.0
        return kind, value.hex()
    if isinstance(value, (tuple, list)):
        # A module has hundreds of leaves, keyed at every call: each spared call of Python counts.
        return kind, *[(type(v), v) if type(v) in _BY_VALUE else typed_key(v) for v in value]
    if isinstance(value, _BY_IDENTITY):
        return kind, value
    if hasattr(kind, "__dataclass_fields__"):
        return kind, *[(name, typed_key(given)) for name, given in _attributes(value)]
    if isinstance(value, Mapping):
        return kind, tuple((typed_key(k), typed_key(v)) for k, v in value.items())
    if isinstance(value, Set):
        return kind, frozenset(map(typed_key, value))
    if isinstance(value, types.FunctionType):
        return _function_key(value)
    if _is_importable(value):
        return kind, value
    if isinstance(value, types.MethodType):
        return kind, typed_key(value.__func__), typed_key(value.__self__)
    if isinstance(value, functools.partial):
        return kind, typed_key(value.func), typed_key(value.args), typed_key(value.keywords)
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _array_key(value)
    if isinstance(value, jax.tree_util.PyTreeDef):
        return kind, typed_key(value.node_data()), *map(typed_key, value.children())
    if getattr(value, "__dict__", None) == {} and not hasattr(kind, "__slots__"):
        return kind, value  # a sentinel: it holds nothing that could change
    if kind.__hash__ not in (None, object.__hash__) and kind.__eq__ is not object.__eq__:
        return kind, value
    raise UnkeyableError(f"a {kind.__name__} compares by identity and may change unseen")


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """A dataclass instance's fields, and what it was given beside them but for private names."""
    names = _field_names(cast(Hashable, type(value)))
    beside = [n for n in getattr(value, "__dict__", ()) if n not in names and n[0] != "_"]
    for name in (*names, *sorted(beside)):
        if hasattr(value, name):
            yield name, getattr(value, name)


@functools.lru_cache(maxsize=1024)
def _field_names(kind: Hashable) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cast(Any, kind)))


def _is_importable(value: Any) -> bool:
    """Whether the value is what its module holds under its name: one object for ever."""
    found: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    path = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if found is None or not isinstance(path, str):
        return False
    for name in path.split("."):
        found = getattr(found, name, None)
    return found is value


def _function_key(function: types.FunctionType) -> Hashable:
    """The code together with the data that it can reach: defaults, closure, globals that it names.

    A function that its module holds under its name stands for itself; of the globals only plain
    data counts then, since what else a module holds is as constant as the function.
    """
    scope = function.__globals__
    reached = {name: scope[name] for name in _names(function.__code__) if name in scope}
    if _is_importable(function):
        data = {n: typed_key(v) for n, v in reached.items() if isinstance(v, _DATA)}
        return types.FunctionType, function, tuple(data.items())
    try:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError as error:
        raise UnkeyableError("a closure over a variable that is not yet set") from error
    if any(cell is function for cell in cells):
        raise UnkeyableError("a function that closes over itself")
    return (
        types.FunctionType,
        function.__code__,
        typed_key(function.__defaults__),
        typed_key(function.__kwdefaults__),
        typed_key(cells),
        typed_key(reached),
    )


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _array_key(array: Any) -> Hashable:
    if not is_concrete(array):
        raise UnkeyableError("a traced array")
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    data = np.ascontiguousarray(array)
    if data.dtype == object:
        raise UnkeyableError("an array of Python objects")
    return type(array), str(data.dtype), np.shape(array), hashlib.sha256(data.tobytes()).digest()


@functools.cache
def _concrete_types() -> tuple[type, ...]:
    with jax.ensure_compile_time_eval():  # the first caller may be inside of a trace
        return type(jax.device_put(np.zeros(()))), type(jax.random.key(0))


def is_array(value: Any) -> bool:
    """Whether the value is a JAX or numpy array, traced or not."""
    return isinstance(value, (jax.Array, np.ndarray))


def is_concrete(value: Any) -> bool:
    """Whether the value holds numbers now, not a tracer that stands for later ones."""
    return not isinstance(value, jax.Array) or isinstance(value, _concrete_types())
