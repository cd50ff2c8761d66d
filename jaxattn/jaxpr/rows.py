"""From how many rows on a function is worth running: what each of its operations costs anyway."""

import math
from typing import Any, NamedTuple

import jax.extend.core as jex

from jaxattn.jaxpr.interpreter import sub_jaxprs

#: Bytes of output at which to compute them takes as long as to start an operation, a microsecond.
_OPERATION = 2**14


class _Cost(NamedTuple):
    """An operation on one row: how often it runs, its flops, and the rows that its weights want."""

    times: int
    flops: int
    rows: float
    bytes: int
    convolves: bool


class Rows(NamedTuple):
    """How many examples a function should take at once.

    Attributes:
        least: from so many on it runs at full speed.
        bytes: of the input and of all that is computed from it, of one example.
        flops: of one example.
        convolves: whether it does.
    """

    least: int
    bytes: int
    flops: int
    convolves: bool


def worthwhile_rows(jaxpr: jex.Jaxpr) -> Rows:
    """From how many examples at once a function runs at full speed, on a device with caches.

    A product with weights reads them once, however many rows it has: with fewer rows than make up
    three quarters of the weights' size, much of the time goes into reading. A recurrent step of H
    units wants some 0.5 H. And an operation on a small array takes as long to start as to run.

    Args:
        jaxpr: the function of one example.

    Returns:
        the larger of the two numbers: the first is a mean over the products, weighted by flops.
        With it goes what an example takes at most.
    """
    costs = _costs(jaxpr, 1)
    flops = sum(cost.times * cost.flops for cost in costs)
    operations = sum(cost.times for cost in costs)
    written = sum(cost.times * cost.bytes for cost in costs)
    of_weights = sum(c.times * c.flops * c.rows for c in costs) / flops if flops else 1
    of_starts = _OPERATION * operations / written if written else 1
    inputs = sum(_bytes(var.aval) for var in jaxpr.invars)
    least = max(1, round(of_weights), round(of_starts))
    return Rows(least, inputs + written, flops, any(cost.convolves for cost in costs))


def _costs(jaxpr: jex.Jaxpr, times: int) -> list[_Cost]:
    costs: list[_Cost] = []
    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, sub_jaxprs(eqn)
        if inner and not name.startswith("reduce"):  # a reduction's is its scalar step
            inside = times * eqn.params["length"] if name == "scan" else times
            for body in inner:
                costs += _costs(body.jaxpr, inside)
            continue
        shapes = [getattr(var.aval, "shape", ()) for var in eqn.invars]
        sizes = list(map(math.prod, shapes))
        out = sum(math.prod(getattr(var.aval, "shape", ())) for var in eqn.outvars)
        flops, rows = 0, 0.0
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            flops = 2 * out * math.prod(shapes[0][axis] for axis in contracted)
            # Of one example there is less than of the weights, or it needs no others beside it.
            rows = 0.75 * max(sizes) / max(1, min(sizes) + out)
        elif name == "conv_general_dilated":
            features = shapes[1][eqn.params["dimension_numbers"].rhs_spec[0]]
            flops = 2 * out * sizes[1] // max(1, features)
            rows = 0.75 * sizes[1] / max(1, sizes[0] + out)
        written = sum(_bytes(var.aval) for var in eqn.outvars)
        costs.append(_Cost(times, flops, rows, written, name == "conv_general_dilated"))
    return costs


def _bytes(aval: Any) -> int:
    width: int = getattr(getattr(aval, "dtype", None), "itemsize", 1)
    return width * math.prod(getattr(aval, "shape", ()))
