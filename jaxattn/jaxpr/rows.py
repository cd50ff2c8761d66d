"""The batch size from which a function runs at full speed, estimated from its program."""

import math
from typing import NamedTuple

import jax.extend.core as jex

from jaxattn.jaxpr.interpreter import sub_jaxprs

#: Bytes of output at which to compute them takes as long as to start an operation, a microsecond.
_OPERATION = 2**14


class _Cost(NamedTuple):
    """The cost of an operation on one example.

    Attributes:
        times: how often it runs.
        flops: its floating-point operations, each time.
        rows: the number of examples that make up for reading its weights.
        bytes: the size of its output.
        convolves: whether it is a convolution.
        in_loop: whether it is in a scan.
    """

    times: int
    flops: int
    rows: float
    bytes: int
    convolves: bool
    in_loop: bool


class Rows(NamedTuple):
    """The number of examples that a function should take at once.

    Attributes:
        least: the number from which it runs at full speed.
        bytes: the size of the input and of all intermediates, of one example.
        flops: the floating-point operations of one example.
        convolves: whether it has a convolution.
        loops: whether it has a scan.
    """

    least: int
    bytes: int
    flops: int
    convolves: bool
    loops: bool


def worthwhile_rows(jaxpr: jex.Jaxpr) -> Rows:
    """Estimate from how many examples at once a function runs at full speed.

    A product with weights reads them once, however many rows it has. With fewer rows than make up
    three quarters of the weights' size, much of the time is spent on reading: a recurrent step of H
    units takes some 0.5 H rows. And an operation on a small array takes as long to start as to run.

    Args:
        jaxpr: the function of one example.

    Returns:
        The `Rows`. `least` is the larger of two numbers: a mean over the products, weighted by
        flops, and the rows that make up for starting operations.
    """
    costs = _costs(jaxpr, 1)
    flops = sum(cost.times * cost.flops for cost in costs)
    operations = sum(cost.times for cost in costs)
    written = sum(cost.times * cost.bytes for cost in costs)
    for_weights = sum(c.times * c.flops * c.rows for c in costs) / flops if flops else 1
    for_starts = _OPERATION * operations / written if written else 1
    inputs = sum(map(_bytes, jaxpr.invars))
    least = max(1, round(for_weights), round(for_starts))
    convolves, loops = any(c.convolves for c in costs), any(c.in_loop for c in costs)
    return Rows(least, inputs + written, flops, convolves, loops)


def _costs(jaxpr: jex.Jaxpr, times: int, in_loop: bool = False) -> list[_Cost]:
    costs: list[_Cost] = []
    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, sub_jaxprs(eqn)
        if inner and not name.startswith("reduce"):  # a reduction's is its scalar step
            inside = times * eqn.params["length"] if name == "scan" else times
            for body in inner:
                costs += _costs(body.jaxpr, inside, in_loop or name == "scan")
            continue
        shapes = [getattr(var.aval, "shape", ()) for var in eqn.invars]
        sizes = list(map(math.prod, shapes))
        out = sum(math.prod(getattr(var.aval, "shape", ())) for var in eqn.outvars)
        flops, rows = 0, 0.0
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            flops = 2 * out * math.prod(shapes[0][axis] for axis in contracted)
            # One example is smaller than the weights, or needs no others beside it.
            rows = 0.75 * max(sizes) / max(1, min(sizes) + out)
        elif name == "conv_general_dilated":
            features = shapes[1][eqn.params["dimension_numbers"].rhs_spec[0]]
            flops = 2 * out * sizes[1] // max(1, features)
            rows = 0.75 * sizes[1] / max(1, sizes[0] + out)
        written = sum(map(_bytes, eqn.outvars))
        convolves = name == "conv_general_dilated"
        costs.append(_Cost(times, flops, rows, written, convolves, in_loop))
    return costs


def _bytes(var: jex.Var) -> int:
    width: int = getattr(getattr(var.aval, "dtype", None), "itemsize", 1)
    return width * math.prod(getattr(var.aval, "shape", ()))
