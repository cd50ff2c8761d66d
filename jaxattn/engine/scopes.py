"""Classes whose objects enter a named scope when they are called.

A library that gives no names to the operations of a module gets them from a subclass of the
module's class. Only traced copies of a user's modules have such a class.
"""

import functools
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

import jax

#: The attribute that holds the paths of a module, the first one first. The containers of nnx do not
#: list names that start like this.
PATHS = "_pytree__jaxattn_paths"
#: The path of the module that is being called.
_caller: ContextVar[str] = ContextVar("caller", default="")
#: The classes by those that they are made from, and by themselves. JAX keeps all of them.
_classes: dict[type, type] = {}


def scoped(kind: Any, *, attributes: dict[str, Any] | None = None, **options: Any) -> type:
    """Return the subclass of a class whose call enters a named scope.

    The scope is the path of the module below that of the module that calls it.

    Args:
        kind: the class, which may be such a subclass already.
        attributes: further attributes of the subclass.
        **options: those of the definition of the subclass.

    Returns:
        The subclass, the same one each time; `kind` itself if it cannot have one.
    """
    if kind not in _classes:
        # Threads that make it at the same time use the first one.
        made = _classes.setdefault(kind, _made(kind, attributes or {}, options))
        _classes[made] = made
    return _classes[kind]


def _made(kind: Any, attributes: dict[str, Any], options: dict[str, Any]) -> type:
    call = kind.__call__

    @functools.wraps(call)
    def scoped_call(self: Any, *args: Any, **options: Any) -> Any:
        paths, caller = getattr(self, PATHS, ("",)), _caller.get()
        inside = (p.removeprefix(f"{caller}/") for p in paths if p.startswith(f"{caller}/"))
        label = next(inside, paths[0]) if caller else paths[0]
        token = _caller.set(paths[0])
        try:
            with jax.named_scope(label) if label else nullcontext():
                return call(self, *args, **options)
        finally:
            _caller.reset(token)

    copied = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    namespace = copied | attributes | {"__call__": scoped_call}
    try:
        return type(kind)(kind.__name__, (kind,), namespace, **options)
    except TypeError:  # subclasses need arguments, or are not allowed: its modules have no names
        return kind
