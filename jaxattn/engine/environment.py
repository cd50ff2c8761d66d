"""All that a function reads when it is traced, as a key: equal keys have equal traces.

JAX arrays are immutable and count by identity. Everything else counts by type and value, and is
read at each call, so that no change is missed: variables of closures, defaults, bound arguments,
globals that code names, attributes of objects, and the code of their classes. Packages that do not
change are not opened. A function that reads something else has no key.
"""

import collections
import dataclasses
import dis
import enum
import functools
import reprlib
import types
from collections.abc import Callable, Hashable, Mapping
from typing import Any, cast

import jax
import numpy as np
from flax import linen, nnx

from jaxattn._static import (
    ATOMS,
    TRUSTED,
    HashedKey,
    UnkeyableError,
    is_concrete,
    is_importable,
    is_trusted,
    typed_key,
)
from jaxattn.engine.nnx_modules import list_node, list_variable

#: Modules of Python whose functions have no state.
_PURE = frozenset(
    "abc builtins cmath collections dataclasses enum functools itertools math numbers operator "
    "types typing".split()
)
#: Functions that read what no name in the code shows.
_HIDDEN = frozenset(
    "__import__ breakpoint compile eval exec globals id input locals open vars".split()
)
#: Files of the guards of a dataclass's representation, which use `id`.
_GUARDS = (dataclasses.__file__, reprlib.__file__)
#: Bytes of a numpy array up to which it is compared faster than a function is traced.
_SMALL = 2**20
_JITTED = type(jax.jit(lambda: None))
_PARTIAL = functools.partial, jax.tree_util.Partial
_Example = collections.namedtuple("_Example", "field")
_DESCRIPTORS = types.GetSetDescriptorType, type(vars(_Example)["field"])
#: Attributes by which linen tells modules from each other.
_OF_LINEN = frozenset(("_id", "_state"))


class Environment:
    """Everything that a function reads when it is traced.

    Attributes:
        key: equal for two functions only if both read the same.
        held: the JAX arrays among it, and jitted functions, which count by identity as in JAX.
    """

    key: HashedKey
    held: list[Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        """Read all that a function reads.

        Raises:
            UnkeyableError: if it may read something else.
        """
        self.held = []
        self._parts: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._nodes: dict[int, int] = {}
        try:
            self._visit(function)
            self._parts.extend(map(id, self.held))
            self.key = HashedKey(tuple(self._parts))
        except (RuntimeError, TypeError, ValueError) as error:  # too deep, changed, or unhashable
            raise UnkeyableError("a function that reads what has no key") from error

    def _visit(self, value: Any) -> None:
        kind = type(value)
        if kind in ATOMS:
            self._parts.extend((kind, value))
            return
        if kind in (float, complex):
            self._parts.append(typed_key(value))
            return
        if id(value) in self._numbers:
            self._parts.append(self._numbers[id(value)])
            return
        if _is_stateful(cast(Hashable, kind)):
            self._module(value)
            return
        self._numbers[id(value)] = len(self._numbers)
        if isinstance(value, jax.Array) and not is_concrete(value):
            raise UnkeyableError("a traced array")
        if isinstance(value, jax.Array) or (kind is _JITTED and not _is_constant(value)):
            self._parts.append(kind)
            self.held.append(value)
        elif _is_constant(value):
            self._parts.append(value)
        elif kind is np.ndarray and value.nbytes > _SMALL:
            raise UnkeyableError("a large array that may change")
        elif kind is np.ndarray or isinstance(value, np.generic | np.dtype):
            self._parts.append(typed_key(value))
        elif isinstance(value, type):
            self._class(value)
        else:
            self._compound(value)

    def _compound(self, value: Any) -> None:
        kind = type(value)
        self._parts.append(kind)
        if kind is types.FunctionType:
            self._function(value)
        elif kind is types.MethodType:
            self._all(value.__func__, value.__self__)
        elif kind in _PARTIAL:
            self._all(value.func, *value.args, value.keywords)
        elif kind is list or isinstance(value, tuple):
            self._visit(kind)
            self._all(*value)
        elif kind is dict or (isinstance(value, Mapping) and _is_constant(kind)):
            self._all(*value.keys(), *value.values())
        elif kind in (set, frozenset) and all(type(element) in ATOMS for element in value):
            self._parts.append(frozenset((type(element), element) for element in value))
        elif kind in (staticmethod, classmethod):
            self._visit(value.__func__)
        elif kind is property:
            self._all(value.fget, value.fset, value.fdel)
        else:
            self._object(value)

    def _all(self, *values: Any) -> None:
        self._parts.append(len(values))
        for value in values:
            self._visit(value)

    def _function(self, function: types.FunctionType) -> None:
        code, scope = function.__code__, function.__globals__
        if code.co_filename in _GUARDS and hasattr(function, "__wrapped__"):
            self._visit(function.__wrapped__)
            return
        self._parts.append(code)
        self._all(*(cell.cell_contents for cell in function.__closure__ or ()))
        self._all(function.__defaults__, function.__kwdefaults__)
        if is_trusted(code.co_filename):
            return
        attributes = vars(function).items()
        self._all(*(part for pair in attributes if pair[0] != "__signature__" for part in pair))
        names = _names(code)
        reached = [name for name in names if name in scope]
        self._parts.append(tuple(reached))
        for name in reached:
            value = scope[name]
            if value is np and "random" in names:
                raise UnkeyableError("random numbers of numpy")
            self._visit(value)

    def _class(self, kind: type) -> None:
        if not _is_constant(type(kind)):
            raise UnkeyableError("a class that another class makes")
        self._parts.append(kind)
        for base in kind.__mro__:
            self._parts.append(base)
            if _is_constant(base):
                continue
            for name, value in list(vars(base).items()):
                is_code = isinstance(value, types.FunctionType | classmethod | staticmethod)
                is_special = name.startswith("__") or name == "_abc_impl"
                if (is_special and not is_code) or isinstance(value, _DESCRIPTORS):
                    continue
                self._parts.append(name)
                self._visit(value)

    def _module(self, module: Any) -> None:
        """Read a module of nnx: its graph, its arrays and its classes."""
        parts: list[Hashable] = []
        arrays: list[Any] = []
        listed = list_variable if isinstance(module, nnx.Variable) else list_node
        listed(module, parts, arrays, self._nodes, self._visit)
        if not all(isinstance(array, jax.Array) and is_concrete(array) for array in arrays):
            raise UnkeyableError("a variable whose array may change")
        self.held += arrays
        self._parts.append(tuple(parts))
        for kind in dict.fromkeys(part for part in parts if isinstance(part, type)):
            self._visit(kind)

    def _object(self, value: Any) -> None:
        """Read the attributes of an object, all of whose state they are."""
        kind = type(value)
        if not _holds_attributes(cast(Hashable, kind)):
            raise UnkeyableError(f"a {kind.__name__} may change unseen")
        hidden = _OF_LINEN if isinstance(value, linen.Module) else ()
        attributes = {name: part for name, part in vars(value).items() if name not in hidden}
        self._visit(kind)
        self._all(*attributes.keys(), *attributes.values())


def _is_constant(value: Any) -> bool:
    """Return whether a module, a class or an importable value belongs to an unchanging package."""
    if isinstance(value, types.ModuleType):
        root = value.__name__.partition(".")[0]
        if root not in TRUSTED | _PURE or value.__name__.startswith("numpy.random"):
            raise UnkeyableError(f"the module {value.__name__} may change")
        return True
    if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, type):
        return _is_constant(value.__self__)  # such as `tuple.__new__` in a named tuple
    module = getattr(value, "__module__", None)
    if not isinstance(module, str) or module.partition(".")[0] not in TRUSTED | _PURE:
        return False
    if isinstance(value, types.BuiltinFunctionType):
        return isinstance(value.__self__, types.ModuleType)
    if isinstance(value, enum.Enum):
        return _is_constant(type(value))
    return is_importable(value) and not module.startswith("numpy.random")


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> frozenset[str]:
    """Return the names of globals and attributes that code reads.

    Raises:
        UnkeyableError: if it may read others, or changes globals.
    """
    names = set(code.co_names)
    for instruction in dis.get_instructions(code):
        name, operation = str(instruction.argval), instruction.opname
        is_hidden = operation.startswith(("LOAD_GLOBAL", "LOAD_NAME")) and name in _HIDDEN
        imports = operation == "IMPORT_NAME" and name.partition(".")[0] not in TRUSTED | _PURE
        if is_hidden or imports or operation == "STORE_GLOBAL":
            raise UnkeyableError("a function that may read anything, or sets globals")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return frozenset(names)


@functools.lru_cache(maxsize=1024)
def _is_stateful(kind: Any) -> bool:
    return issubclass(kind, (nnx.Pytree, nnx.Variable))


@functools.lru_cache(maxsize=1024)
def _holds_attributes(kind: Any) -> bool:
    """Return whether all state of a class's objects is in their attributes."""
    if kind is types.SimpleNamespace:
        return True
    bases = [base for base in kind.__mro__ if base is not object]
    opened = ("flax.linen", "equinox", "jaxattn", "typing", "abc")
    return (
        kind.__dictoffset__ != 0
        and all("__slots__" not in vars(base) or not vars(base)["__slots__"] for base in bases)
        and all(not _is_constant(base) or base.__module__.startswith(opened) for base in bases)
    )


_probe = jax.jit(lambda: None)


class Settings:
    """The settings of JAX in the present context, on which a trace depends too.

    JAX traces a function anew if one of them changes, and else returns the same trace.
    """

    def __init__(self) -> None:
        self._trace = _probe.trace().jaxpr

    def __hash__(self) -> int:
        return id(self._trace)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self._trace is other._trace
