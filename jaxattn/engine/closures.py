"""Modules in the closure of a function, and the function with other modules in it.

An nnx module may change its own state, such as a count of random numbers, only in the trace in
which it was made. A function that closes over a module is therefore traced as a copy of itself that
closes over a module of that trace. The function itself is never changed.
"""

import copy
import functools
import os
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from jaxattn._static import code_names
from jaxattn.engine.equinox_modules import is_equinox

#: Modules, and what else of nnx holds a state.
_STATEFUL = nnx.Pytree, nnx.Variable
_LIBRARIES = (
    str(Path(__file__).parents[1]),
    *(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")),
)
#: What holds code. Other objects are opened only where code reads them itself.
_CODE = types.FunctionType, types.MethodType, functools.partial
_ATOMS = frozenset((types.NoneType, bool, int, float, complex, str, bytes))
_CLOSED = type, types.ModuleType


@functools.lru_cache(maxsize=1024)
def is_library(path: str) -> bool:
    """Return whether a file belongs to Python, to jaxattn or to an installed package."""
    return os.path.realpath(path).startswith(_LIBRARIES)


class Closure:
    """A function and what it reaches.

    It reaches its variables, defaults and bound arguments, the globals that it names, what lists,
    tuples, dicts and other objects among these hold, and what functions among these reach. A jitted
    function is not opened, as it has its own cache of traces.

    Attributes:
        modules: the modules of nnx and equinox that it reaches, and other stateful objects of nnx,
            by the name of the variable, argument or attribute that holds them.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.modules: dict[str, Any] = {}
        self._function = function
        self._values: dict[int, object] = {}
        self._holders: dict[int, set[int]] = {}
        self._visit(function, "", in_code=True)

    def _visit(self, value: object, name: str, *, in_code: bool) -> None:
        is_code = isinstance(value, _CODE)
        if id(value) in self._values or not (in_code or is_code or _is_container(value)):
            return
        self._values[id(value)] = value
        for key, part in _parts(value):
            self._holders.setdefault(id(part), set()).add(id(value))
            # A variable of a function has a name by itself.
            path = key or name if is_code or not name else f"{name}/{key}"
            if isinstance(part, _STATEFUL) or is_equinox(part):
                if id(part) not in self._values:
                    self._values[id(part)] = part
                    self.modules[_unused(path, self.modules)] = part
            else:
                self._visit(part, path, in_code=is_code)

    def replaced(self, modules: Mapping[str, Any]) -> Callable[..., Any]:
        """Return the function with other modules in place of those of the same names."""
        new = {id(self.modules[name]): module for name, module in modules.items()}
        affected, queue = set(new), list(new)
        while queue:
            holders = self._holders.get(queue.pop(), set()) - affected
            affected |= holders
            queue += holders

        return _Copier(new, affected).of(self._function)


class _Copier:
    """Copies values that hold replaced ones; all others are shared with the copies."""

    def __init__(self, new: dict[int, Any], affected: set[int]) -> None:
        self._new, self._affected = new, affected

    def of(self, value: Any) -> Any:
        """Return the replacement of a value, its copy, or the value itself."""
        identity = id(value)
        if identity not in self._affected or identity in self._new:
            return self._new.get(identity, value)
        match value:
            case types.FunctionType():
                return self._function(value)
            case types.MethodType():
                return types.MethodType(self.of(value.__func__), self.of(value.__self__))
            case functools.partial():
                keywords = {name: self.of(part) for name, part in value.keywords.items()}
                return type(value)(self.of(value.func), *map(self.of, value.args), **keywords)
            case tuple():
                return getattr(type(value), "_make", type(value))(map(self.of, value))
        made = self._new[identity] = copy.copy(value)  # before its parts, which may hold it
        if isinstance(value, list):
            made[:] = map(self.of, value)
        else:
            items = made if isinstance(value, dict) else vars(made)
            items.update({key: self.of(part) for key, part in items.items()})
        return made

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        scope, closure = function.__globals__, function.__closure__ or ()
        names = [n for n in code_names(function.__code__) if id(scope.get(n)) in self._affected]
        changed = [_is_set(cell) and id(cell.cell_contents) in self._affected for cell in closure]
        made = types.FunctionType(
            function.__code__,
            dict(scope) if names else scope,
            function.__name__,
            closure=tuple(
                types.CellType() if is_changed else cell
                for cell, is_changed in zip(closure, changed, strict=True)
            ),
        )
        self._new[id(function)] = made  # before its parts, which may hold it
        made.__globals__.update({name: self.of(scope[name]) for name in names})
        for cell, new, is_changed in zip(closure, made.__closure__ or (), changed, strict=True):
            if is_changed:
                new.cell_contents = self.of(cell.cell_contents)
        made.__defaults__ = function.__defaults__ and tuple(map(self.of, function.__defaults__))
        keywords = function.__kwdefaults__
        made.__kwdefaults__ = keywords and {name: self.of(v) for name, v in keywords.items()}
        vars(made).update(vars(function))
        return made


def _is_container(value: object) -> bool:
    return isinstance(value, (list, tuple, dict))


def _unused(name: str, names: Mapping[str, Any]) -> str:
    candidates = (f"{name}_{i}" if i else name for i in range(len(names) + 1))
    return next(candidate for candidate in candidates if candidate not in names)


def _parts(value: Any) -> Iterator[tuple[str, object]]:
    """Yield what a value holds, by name; the name is empty if it says nothing."""
    match value:
        case types.FunctionType():
            yield from _reached(value)
        case types.MethodType():
            yield from (("", value.__func__), ("", value.__self__))
        case functools.partial():
            yield "", value.func
            yield from ((_parameter(value.func, i), part) for i, part in enumerate(value.args))
            yield from value.keywords.items()
        case list() | tuple() | dict():
            items = list(value.items() if isinstance(value, dict) else enumerate(value))
            yield from ((str(key), part) for key, part in items if type(part) not in _ATOMS)
        case _ if _is_opened(value):
            yield from list(vars(value).items())  # another thread may add attributes


def _is_opened(value: object) -> bool:
    """Return whether the attributes of an object that holds no code are read."""
    of_jaxattn = type(value).__module__.partition(".")[0] == "jaxattn"  # which splits its own
    return not isinstance(value, _CLOSED) and hasattr(value, "__dict__") and not of_jaxattn


def _reached(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """Yield the values that a function closes over, its defaults, and the globals that it names.

    The globals of a library are constants, and its variables have no names that a user knows.
    """
    code, named = function.__code__, not is_library(function.__code__.co_filename)
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    variables = {name: cell.cell_contents for name, cell in cells if _is_set(cell)}
    defaults = function.__defaults__ or ()
    arguments = code.co_varnames[: code.co_argcount][code.co_argcount - len(defaults) :]
    variables |= dict(zip(arguments, defaults, strict=True)) | (function.__kwdefaults__ or {})
    if named:
        scope = function.__globals__
        variables = {n: scope[n] for n in code_names(code) if n in scope} | variables
    yield from ((name if named else "", v) for name, v in variables.items())


def _is_set(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # raises an error for a variable without a value
    except ValueError:
        return False
    return True


def _parameter(function: object, position: int) -> str:
    code = getattr(function, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code is not None else ()
    return names[position] if position < len(names) else str(position)
