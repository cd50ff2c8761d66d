"""The arguments of a call, checked before anything is traced."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxattn._static import is_array
from jaxattn._types import Method, RandomKey, Target, check_bool
from jaxattn.engine.compiled import in_engine
from jaxattn.engine.examples import check_sharding
from jaxattn.engine.inputs import check_inputs
from jaxattn.engine.options import is_method, traits_of, with_sizes

#: The arguments that all methods share.
SHARED = ("fn", "x", "target", "args", "at", "key", "batch_size", "check_finite")


class Request(NamedTuple):
    """The arguments of a method, or of `jaxattn.explain` if `batched`.

    Attributes:
        method: the method.
        fn: the function that is explained.
        x: one example, or the examples with a leading axis.
        target: the entry of the output.
        args: further inputs of `fn`, with a leading axis if `x` has one.
        at: the name of an intermediate, or names.
        key: a random key.
        batch_size: the maximum number of evaluations of `fn` in flight.
        mesh: devices over which the examples are spread.
        check_finite: whether to raise an error for NaN and infinity.
        options: the method's own.
        batched: whether there is a leading axis of examples.
    """

    method: Method
    fn: Callable[..., Any]
    x: PyTree
    target: Target
    args: tuple[PyTree, ...]
    at: str | Sequence[str] | None
    key: RandomKey | None
    batch_size: int | None
    mesh: Mesh | None
    check_finite: bool
    options: dict[str, Any]
    batched: bool

    @property
    def name(self) -> str:
        """The name of the argument that holds the input or inputs."""
        return "xs" if self.batched else "x"


def check_request(request: Request) -> Request:
    """Check the arguments of a call by themselves, and return them in their final form.

    Options that a `functools.partial` binds become options of the call.

    Raises:
        TypeError: for arguments of a wrong kind and options that the method does not have.
        ValueError: for `at` or `mesh` where it cannot be given, and examples sharded over explicit
            axes without a `mesh`.
    """
    _check_order(request)
    check_inputs(request.name, request.x, request.args, request.key)
    method, options, args = request.method, request.options, tuple(request.args)
    while isinstance(method, functools.partial) and not method.args:
        # An option that it binds is like others: an array is traced then, not a constant.
        options = {**method.keywords, **options}
        method = method.func
    if not callable(method):
        raise TypeError(f"`method` must be callable, got {type(method).__name__}.")
    if not callable(request.fn):
        raise TypeError(f"`fn` must be callable, got {type(request.fn).__name__}.")
    check_bool("check_finite", request.check_finite)
    mesh = _checked_mesh(request.mesh)
    if request.batched and mesh is None and not in_engine.get():
        check_sharding(request.x, args)
    check_at(method, request.at)
    _check_names(method, options)
    options = with_sizes(method, _with_inner_options(method, options))
    return request._replace(method=method, options=options, args=args, mesh=mesh)


def _with_inner_options(method: Method, options: dict[str, Any]) -> dict[str, Any]:
    """Return options with those that a partial inner method binds, unless `method` has them too."""
    inner, own = options.get("method"), inspect.signature(method).parameters
    passes_on = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in own.values())
    while passes_on and isinstance(inner, functools.partial) and not inner.args:
        kept = {name: inner.keywords[name] for name in inner.keywords.keys() & own.keys()}
        moved = {name: inner.keywords[name] for name in inner.keywords.keys() - own.keys()}
        inner = functools.partial(inner.func, **kept) if kept else inner.func
        options = {**moved, **options, "method": inner}
        if kept:
            break
    return options


def _check_order(request: Request) -> None:
    """Raise an error for `fn`, `x`, the target and the method in another order than documented."""
    order = "explain(method, fn, xs, targets)" if request.batched else "method(fn, x, target)"
    if _is_index(request.x, request.target):
        raise TypeError(
            f"`{request.name}` must hold arrays, got {request.x!r}, and `target` must be an "
            f"index, got an array of {request.target.dtype}: the order is {order}."
        )
    if callable(request.x) and not callable(request.fn):
        raise TypeError(
            f"`fn` must be callable, got {type(request.fn).__name__}, and `{request.name}` must "
            f"hold arrays, got {type(request.x).__name__}: the order is {order}."
        )
    if is_method(request.fn) and not is_method(request.method):
        if isinstance(request.method, functools.partial):
            return
        raise TypeError(
            f"`fn` must be the function that is explained, got the method {request.fn.__name__}: "
            "the order is explain(method, fn, xs, targets)."
        )


def _is_index(x: Any, target: Any) -> bool:
    """Return whether an input can only be a target: integers, with floats of more axes as target.

    Token ids with one-hot targets have as many axes as these.
    """
    if not is_array(target) or not jnp.issubdtype(target.dtype, jnp.floating):
        return False
    if isinstance(x, int | np.integer):
        return True
    return is_array(x) and bool(jnp.issubdtype(x.dtype, jnp.integer)) and x.ndim < target.ndim


def _checked_mesh(mesh: object) -> Mesh | None:
    """Return the mesh with automatic axes, which `jax.shard_map` requires."""
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise TypeError(f"`mesh` must be a jax.sharding.Mesh, got {type(mesh).__name__}.")
    if in_engine.get():
        raise ValueError("`mesh` must be left out inside of an fn that is itself explained.")
    return Mesh(mesh.devices, mesh.axis_names)


def check_at(method: Method, at: object) -> None:
    """Raise an error for an `at` that the method does not take, and for a missing one."""
    traits = traits_of(method)
    if at is None:
        if traits.needs_at:
            raise ValueError(
                f"`at` is missing: {_name(method)} explains an intermediate. Pass its name, as "
                "given by jaxattn.tag."
            )
        return
    names = at if traits.keeps_input and isinstance(at, list | tuple) and at else [at]
    if not all(isinstance(name, str) for name in names):
        several = " or a sequence of names" if traits.keeps_input else ""
        raise TypeError(f"`at` must be the name of an intermediate{several}, got {at!r}.")
    if not traits.takes_at:
        raise ValueError(
            f"`at` must be None for {_name(method)}, which cuts the input itself, got at={at!r}."
        )


def _check_names(method: Method, options: dict[str, Any]) -> None:
    """Raise an error for options that a decorated method does not have, with those it has."""
    if not options or not is_method(method):
        return
    own = inspect.signature(method).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own.values()):
        return
    for option in options:
        if option not in own or option in SHARED:
            known = ", ".join(name for name in own if name not in SHARED) or "none of its own"
            hint = ": explain calls it targets" if option == "target" else ""
            raise TypeError(
                f"{_name(method)} has no option {option!r}{hint}; its options are {known}."
            )


def _name(method: Method) -> str:
    return getattr(method, "__name__", type(method).__name__)
