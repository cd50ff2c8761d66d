"""Operation counts of a traced program.

XLA's `cost_analysis` counts the body of a loop once, however often it runs. Here a body counts as
often as it runs.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from jaxattn.jaxpr.interpreter import JaxprAtom

_MOVES_DATA = frozenset(
    """after_all all_gather all_to_all axis_index bitcast_convert_type broadcast_in_dim complex
    concatenate convert_element_type copy create_token device_put dynamic_slice
    dynamic_update_slice empty empty2 gather get imag iota mesh_cast name optimization_barrier pad
    pbroadcast ppermute pvary random_unwrap random_wrap real reshape reshard rev scatter
    sharding_constraint slice split squeeze stack stop_gradient swap tile transpose
    unstack""".split()
)


class Flops(NamedTuple):
    """The operations of a program, on all its devices together.

    Attributes:
        total: the number of operations.
        by_primitive: the number for each primitive that costs anything, the costliest first.
        unbounded: whether a loop of unknown length (`while`, a Pallas kernel's grid) was counted as
            if it ran once. `total` is then a lower bound.
    """

    total: int
    by_primitive: dict[str, int]
    unbounded: bool


def count_flops(closed_jaxpr: ClosedJaxpr | Jaxpr) -> Flops:
    """Count the operations of a program before compilation, loops included.

    A multiplication and an addition are one operation each, of any dtype. So is an elementwise
    function, transcendental or not, for each element of its output. A reduction costs one operation
    for each element of its input, a windowed one its window for each output. Moving data costs
    nothing. A convolution counts its padding. A `cond` costs its most expensive branch, a
    `shard_map` the sum over its devices. Any other primitive, such as a matrix decomposition, costs
    one operation for each element of its output.

    Args:
        closed_jaxpr: the program, as `jax.make_jaxpr(fn)(*args)` returns it.

    Returns:
        The `Flops`.

    Raises:
        TypeError: if `closed_jaxpr` is not a jaxpr.
    """
    if not isinstance(closed_jaxpr, ClosedJaxpr | Jaxpr):
        raise TypeError(
            "`closed_jaxpr` must be a jaxpr, as jax.make_jaxpr(fn)(*args) returns it, "
            f"got {type(closed_jaxpr).__name__}."
        )
    flops, unbounded = _count(closed_jaxpr.eqns)
    by_primitive = {name: count for name, count in flops.most_common() if count}
    return Flops(flops.total(), by_primitive, unbounded)


def count_equations(eqns: Iterable[JaxprEqn]) -> int:
    """Count the operations of some equations as `count_flops` does."""
    return _count(eqns).flops.total()


class _Count(NamedTuple):
    """Operations by primitive, and whether a loop of unknown length is among them."""

    flops: Counter[str]
    unbounded: bool


def _count(eqns: Iterable[JaxprEqn]) -> _Count:
    flops: Counter[str] = Counter()
    unbounded = False
    for eqn in eqns:
        name = eqn.primitive.name
        # Known costs come first: a reduction, too, holds a jaxpr, that of its scalar step.
        cost = _cost(eqn)
        bodies = [_count(body.eqns) for body in _bodies(eqn)] if cost is None else []
        if bodies:
            unbounded |= name in ("while", "pallas_call") or any(body.unbounded for body in bodies)
            if name == "cond":
                bodies = [max(bodies, key=lambda body: body.flops.total())]
            times = _times(eqn)
            for body in bodies:
                flops.update({key: times * count for key, count in body.flops.items()})
        else:
            flops[name] += _outputs(eqn) if cost is None else cost
    return _Count(flops, unbounded)


def _cost(eqn: JaxprEqn) -> int | None:
    """Return the cost of an equation; `None` where its jaxprs or its output determine it."""
    params = eqn.params
    match eqn.primitive.name:
        case "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            lhs = _shape(eqn.invars[0])
            return 2 * _outputs(eqn) * math.prod(lhs[axis] for axis in contracted)
        case "conv_general_dilated":
            features, *window = params["dimension_numbers"].rhs_spec[1:]
            kernel = _shape(eqn.invars[1])  # its input features are those of one group
            return 2 * _outputs(eqn) * math.prod(kernel[axis] for axis in (features, *window))
        case "select_and_scatter_add":
            return _size(eqn.invars[0]) * math.prod(params["window_dimensions"])
        case "select_and_gather_add":
            return _outputs(eqn) * math.prod(params["window_dimensions"])
        case "argmax" | "argmin":
            return _size(eqn.invars[0])
        case "reduce_precision":
            return _outputs(eqn)
        case name if name in _MOVES_DATA:
            return 0
        case name if name.startswith("scatter"):
            return _size(eqn.invars[2])
        case name if name.startswith("reduce_window"):
            return _outputs(eqn) * math.prod(params["window_dimensions"])
        case name if name.startswith("reduce"):
            return _size(eqn.invars[0])
    return None


def _bodies(eqn: JaxprEqn) -> Iterator[ClosedJaxpr | Jaxpr]:
    if eqn.primitive.name == "custom_linear_solve":
        yield eqn.params["jaxprs"].solve  # the others are for its derivative
        return
    for param in eqn.params.values():
        for body in param if isinstance(param, tuple | list) else (param,):
            if isinstance(body, ClosedJaxpr | Jaxpr):
                yield body


def _times(eqn: JaxprEqn) -> int:
    """Return how often the body of an equation runs."""
    match eqn.primitive.name:
        case "scan":
            return eqn.params["length"]
        case "shard_map":
            mesh = eqn.params["mesh"].shape
            renamed = "newly_manual_axes" if "newly_manual_axes" in eqn.params else "manual_axes"
            return math.prod(mesh[axis] for axis in eqn.params[renamed])  # after jax 0.10.0
    return 1


def _shape(var: JaxprAtom) -> tuple[int, ...]:
    return getattr(var.aval, "shape", (0,))  # a token has no shape


def _size(var: JaxprAtom) -> int:
    return math.prod(_shape(var))


def _outputs(eqn: JaxprEqn) -> int:
    return sum(map(_size, eqn.outvars))
