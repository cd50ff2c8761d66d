"""Hashable keys for values that are not traced arrays.

Two keys are equal only if types and values are equal at every level. Python's own equality is not
enough: `1`, `1.0` and `True` are equal and share an entry of `jax.jit`'s cache.
"""

import dataclasses
import enum
import functools
import hashlib
import os
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, TypeAlias, cast

import jax
import numpy as np

#: Packages whose functions and globals do not change.
TRUSTED = frozenset(
    "chex einops equinox flax haiku jax jaxattn jaxlib jaxtyping ml_dtypes numpy optax".split()
)
_FOLDERS = (
    f"{Path(__file__).parent}/",
    *(
        f"{os.path.realpath(sysconfig.get_path(path))}/{name}/"
        for path in ("purelib", "platlib")
        for name in TRUSTED
    ),
)


@functools.lru_cache(maxsize=1024)
def is_trusted(path: str) -> bool:
    """Return whether a file of code belongs to one of the trusted packages."""
    return os.path.realpath(path).startswith(_FOLDERS)


class UnkeyableError(TypeError):
    """Raised for a value that may change while its key stays: no program can be cached by it."""


class HashedKey:
    """A key that hashes once; equal keys are one object while it is cached."""

    def __init__(self, key: Hashable) -> None:
        self._key, self._hash = key, hash(key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, HashedKey) and self._key == other._key)


_BY_VALUE = frozenset(
    (types.NoneType, bool, int, str, bytes, complex, types.EllipsisType, types.CodeType)
)
#: Types of immutable values without parts, whose equality is exact.
ATOMS = _BY_VALUE - {complex}
_DATA = (bool, int, float, complex, str, bytes, np.ndarray, np.generic, jax.Array)
_CONSTANT_FUNCTIONS: weakref.WeakSet[types.FunctionType] = weakref.WeakSet()
_CONSTANT = (
    np.dtype,
    enum.Enum,
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
    np.ufunc,
)


def typed_key(value: object) -> Hashable:
    """Return a hashable key that is equal for two values only if programs may exchange them.

    Raises:
        UnkeyableError: for objects that compare by identity and could change unseen.
    """
    kind = type(value)
    if kind in _BY_VALUE:
        return kind, value
    if kind is float:  # hex keeps nan equal to itself and -0.0 apart from 0.0
        return kind, cast(float, value).hex()
    if isinstance(value, (tuple, list)):
        # A module has hundreds of leaves, keyed at every call: fewer Python calls save time.
        return kind, *[(type(v), v) if type(v) in _BY_VALUE else typed_key(v) for v in value]
    if kind is types.FunctionType:
        return _function_key(cast(types.FunctionType, value))
    if isinstance(value, _CONSTANT):
        return kind, value
    if hasattr(kind, "__dataclass_fields__"):
        return kind, *[(name, typed_key(field)) for name, field in _attributes(value)]
    return _object_key(value)


def _object_key(value: object) -> Hashable:
    """Return the key of a container, a function or another object."""
    for kinds, key in _CONTAINERS_AND_FUNCTIONS:
        if isinstance(value, kinds):
            return key(value)
    kind = type(value)
    if is_importable(value):
        return kind, value
    for kinds, key in _COMPOSITE:
        if isinstance(value, kinds):
            return key(value)
    if _is_sentinel(value) or _compares_by_value(kind):
        return kind, value
    raise UnkeyableError(f"a {kind.__name__} compares by identity and may change unseen")


def _is_sentinel(value: object) -> bool:
    """Return whether an object has no attributes, so that it cannot change."""
    return getattr(value, "__dict__", None) == {} and not hasattr(type(value), "__slots__")


def _compares_by_value(kind: type) -> bool:
    return kind.__hash__ not in (None, object.__hash__) and kind.__eq__ is not object.__eq__


def _attributes(value: object) -> Iterator[tuple[str, object]]:
    """Yield the fields of a dataclass instance, and its other attributes without private ones."""
    names = _field_names(cast(Hashable, type(value)))
    beside = [n for n in getattr(value, "__dict__", ()) if n not in names and n[0] != "_"]
    for name in (*names, *sorted(beside)):
        if hasattr(value, name):
            yield name, getattr(value, name)


@functools.lru_cache(maxsize=1024)
def _field_names(kind: Hashable) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cast(Any, kind)))


def is_importable(value: object) -> bool:
    """Return whether a value is its module's attribute of its name, and thus a constant."""
    found: object = sys.modules.get(getattr(value, "__module__", None) or "")
    path = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if found is None or not isinstance(path, str):
        return False
    for name in path.split("."):
        found = getattr(found, name, None)
    return found is value


def _function_key(function: types.FunctionType) -> Hashable:
    """Return the key of a function's code with its defaults, its closure and the globals it names.

    An importable function is its own key. Of its globals only plain data is added: the module's
    other attributes are as constant as the function. Those of `TRUSTED` packages have no such data.
    """
    if function in _CONSTANT_FUNCTIONS:
        return types.FunctionType, function
    if is_trusted(function.__code__.co_filename) and is_importable(function):
        _CONSTANT_FUNCTIONS.add(function)
        return types.FunctionType, function
    scope = function.__globals__
    reached = {name: scope[name] for name in code_names(function.__code__) if name in scope}
    if is_importable(function):
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


def code_names(code: types.CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes that code reads, also in functions inside of it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_names(constant)


def _mapping_key(value: Mapping[Hashable, object]) -> Hashable:
    return type(value), tuple((typed_key(k), typed_key(v)) for k, v in value.items())


def _set_key(value: Set[Hashable]) -> Hashable:
    return type(value), frozenset(map(typed_key, value))


def _method_key(method: types.MethodType) -> Hashable:
    return type(method), typed_key(method.__func__), typed_key(method.__self__)


def _partial_key(value: functools.partial[object]) -> Hashable:
    return type(value), typed_key(value.func), typed_key(value.args), typed_key(value.keywords)


def _treedef_key(treedef: jax.tree_util.PyTreeDef) -> Hashable:
    kind = cast(Hashable, type(treedef))
    return kind, typed_key(treedef.node_data()), *map(typed_key, treedef.children())


def _array_key(array: np.ndarray | np.generic | jax.Array) -> Hashable:
    if not is_concrete(array):
        raise UnkeyableError("a traced array")
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(cast(jax.Array, array))
    data = np.ascontiguousarray(array)
    if data.dtype == object:
        raise UnkeyableError("an array of Python objects")
    return type(array), str(data.dtype), np.shape(array), hashlib.sha256(data.tobytes()).digest()


_Kinds: TypeAlias = type | tuple[type, ...]
_Key: TypeAlias = Callable[[Any], Hashable]
#: The keys of these precede the check for importable values: a dict or a function of a module may
#: change although the module always holds the same object.
_CONTAINERS_AND_FUNCTIONS: tuple[tuple[_Kinds, _Key], ...] = (
    (Mapping, _mapping_key),
    (Set, _set_key),
    (types.FunctionType, _function_key),
)
_COMPOSITE: tuple[tuple[_Kinds, _Key], ...] = (
    (types.MethodType, _method_key),
    (functools.partial, _partial_key),
    ((np.ndarray, np.generic, jax.Array), _array_key),
    (jax.tree_util.PyTreeDef, _treedef_key),
)


@functools.cache
def _concrete_types() -> tuple[type, ...]:
    with jax.ensure_compile_time_eval():  # the first caller may be inside of a trace
        return type(jax.device_put(np.zeros(()))), type(jax.random.key(0))


def is_array(value: object) -> bool:
    """Return whether a value is a JAX or numpy array, traced or not."""
    return isinstance(value, (jax.Array, np.ndarray))


def is_concrete(value: object) -> bool:
    """Return whether a value is not a tracer."""
    return not isinstance(value, jax.Array) or isinstance(value, _concrete_types())
