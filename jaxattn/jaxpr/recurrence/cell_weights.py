"""The weights of a recurrent layer by gate: Jacobians of its affine pre-activations."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxattn.jaxpr.flat import Flat, Var
from jaxattn.jaxpr.recurrence.affine_maps import AffineMap, dependents, read
from jaxattn.jaxpr.recurrence.cells import Gate
from jaxattn.jaxpr.recurrence.observed_runs import Env, Run, units
from jaxattn.jaxpr.recurrence.polynomials import size_of
from jaxattn.jaxpr.recurrence.recurrent_layers import Layer
from jaxattn.jaxpr.recurrence.time_axis import Series, follow


class CellWeights(NamedTuple):
    """The weights of one gate.

    Attributes:
        kernel: shape `(D, H)`.
        recurrent: shape `(H, H)`.
        bias: shape `(H,)`, the sum of all constants.
        recurrent_bias: shape `(H,)`, the constants that the reset gate of a GRU multiplies.
    """

    kernel: Array
    recurrent: Array
    bias: Array
    recurrent_bias: Array


class Projection(NamedTuple):
    """The affine map from the input of a layer to the pre-activation of one gate.

    Attributes:
        gate: the gate.
        affine: the map inside of the loop.
        source: the variable of the body that its input is, beside the hidden state.
        series: the series outside of the loop, if the product with the kernel was computed for all
            time steps before the loop.
    """

    gate: Gate
    affine: AffineMap
    source: Var
    series: Series | None


def projections(flat: Flat, layer: Layer) -> dict[str, Projection]:
    """Find the affine map of each gate.

    Args:
        flat: the function.
        layer: the layer.

    Raises:
        ValueError: if a pre-activation is no affine map of one input and the hidden state.
    """
    cut = {layer.cell.gates["reset"].activation.var} if layer.cell.kind == "gru" else set()
    found: dict[str, Projection] = {}
    hidden = layer.carries[layer.cell.hidden]
    for name, gate in layer.cell.gates.items():
        constants = cut if name == "new" else ()
        affine = AffineMap(layer.body, gate.preactivation.var, layer.varying, constants)
        others = [v for v in affine.sources if v is not hidden]
        depends = dependents(layer.body, [hidden], constants)
        if len(others) != 1 or hidden not in affine.sources or others[0] in depends:
            raise ValueError(
                f"`layer` {layer.name!r} must have pre-activations that are affine in its input "
                f"and its hidden state; that of the gate {name!r} is not."
            )
        found[name] = Projection(gate, affine, others[0], _hoisted(flat, layer, others[0]))
    if len({p.series.var if p.series else p.source for p in found.values()}) > 1:
        raise ValueError(f"`layer` {layer.name!r} must have one input for all of its gates.")
    return found


def _hoisted(flat: Flat, layer: Layer, source: Var) -> Series | None:
    """Return the series of which the source is a projection that was computed before the loop."""
    is_slice = source in layer.body.inputs[sum(layer.scan.counts) :]
    if not is_slice or _is_contracted(layer, source):
        return None
    operand = layer.scan.inputs[layer.body.inputs.index(source)]
    if not isinstance(operand, Var):
        return None
    series = follow(flat, operand, dependents(flat, flat.inputs))
    return series if series.feature_axis is not None else None


def _is_contracted(layer: Layer, source: Var) -> bool:
    """Return whether the body multiplies an input by a matrix on the way to a pre-activation."""
    for gate in layer.cell.gates.values():
        affine = AffineMap(layer.body, gate.preactivation.var, [source])
        if affine.contracts:
            return True
    return False


def cell_weights(flat: Flat, layer: Layer, run: Run) -> dict[str, CellWeights]:
    """Compute the weights of each gate.

    NaN and infinity stand where they stand in the parameters: a Jacobian would spread them over
    rows and columns, so their places are found by Jacobians of their own.

    Args:
        flat: the function.
        layer: the layer.
        run: a run of the function, for the constants of the loop.
    """
    found = projections(flat, layer)
    n_consts = layer.scan.counts[0]
    inner = dict(zip(layer.body.inputs[:n_consts], layer.scan.inputs[:n_consts], strict=True))
    body = {var: read(atom, run.env) for var, atom in inner.items()} | layer.body.constants
    varying = dependents(flat, flat.inputs)
    outside = {v: value for v, value in run.env.items() if v not in varying}
    return {
        name: _with_non_finite(partial(_extract, flat, layer, projection), body, outside)
        for name, projection in found.items()
    }


def _with_non_finite(
    extract: Callable[[Env, Env], CellWeights], body: Env, outside: Env
) -> CellWeights:
    """Compute weights from constants of the body and of the function, NaN and infinity in place."""

    def mapped(change: Callable[[Array], Array]) -> CellWeights:
        return extract(
            *(
                {v: change(c) if v.is_floating else c for v, c in part.items()}
                for part in (body, outside)
            )
        )

    def flag(is_special: Callable[[Array], Array]) -> CellWeights:
        return mapped(lambda c: is_special(c).astype(c.dtype))

    none = mapped(jnp.zeros_like)
    values = mapped(lambda c: jnp.where(jnp.isfinite(c), c, 0))
    for special, number in (
        (jnp.isposinf, jnp.inf),
        (jnp.isneginf, -jnp.inf),
        (jnp.isnan, jnp.nan),
    ):
        places = jax.tree.map(lambda a, b: a != b, flag(special), none)
        values = jax.tree.map(
            lambda value, place, number=number: jnp.where(
                place, jnp.asarray(number, value.dtype), value
            ),
            values,
            places,
        )
    return values


def _extract(
    flat: Flat,
    layer: Layer,
    projection: Projection,
    body: Env,
    outside: Env,
) -> CellWeights:
    """Compute the weights of one gate from the constants of the body and of the function."""
    size, gate = units(layer), projection.gate
    hidden = layer.carries[layer.cell.hidden]
    reset = layer.cell.gates["reset"].activation.var if layer.cell.kind == "gru" else None
    start = gate.preactivation.start
    dtype = projection.source.aval.dtype

    def value(x: Array, h: Array, r: float = 1.0) -> Array:
        env = dict(body)
        if reset is not None:
            env[reset] = jnp.full(reset.shape, r, reset.aval.dtype)
        env[projection.source] = x.reshape(projection.source.shape)
        env[hidden] = h.reshape(hidden.shape)
        return jnp.ravel(projection.affine(env))[start : start + size]

    no_x = jnp.zeros(size_of(projection.source), dtype)
    no_h = jnp.zeros(size_of(hidden), hidden.aval.dtype)
    kernel = jax.jacfwd(value, 0)(no_x, no_h).T
    recurrent = jax.jacfwd(value, 1)(no_x, no_h).T
    bias = value(no_x, no_h, 0.0)
    recurrent_bias = value(no_x, no_h) - bias
    if projection.series is not None:
        rows, shift = _projected(flat, layer, projection, outside)
        kernel, bias = rows @ kernel, bias + shift @ kernel
    return CellWeights(kernel, recurrent, bias, recurrent_bias)


def _projected(
    flat: Flat, layer: Layer, projection: Projection, outside: Env
) -> tuple[Array, Array]:
    """Return the kernel `(D, P)` and the bias `(P,)` of a projection before the loop."""
    series = projection.series
    assert series is not None and series.feature_axis is not None
    operand = layer.scan.inputs[layer.body.inputs.index(projection.source)]
    assert isinstance(operand, Var)
    affine = AffineMap(flat, operand, [series.var])
    shape, axis = series.var.shape, series.feature_axis

    def first_step(x: Array) -> Array:
        wide = jnp.expand_dims(x, [i for i in range(len(shape)) if i != axis])
        env = {**outside, series.var: jnp.broadcast_to(wide, shape)}
        return jnp.ravel(affine(env)[0])

    zeros = jnp.zeros(shape[axis], series.var.aval.dtype)
    return jax.jacfwd(first_step)(zeros).T, first_step(zeros)


def layer_inputs(flat: Flat, layer: Layer, run: Run, bodies: Callable[[Var], Array]) -> Array:
    """Return the input of the layer at each time step, `(T, D)`, in the order of the scan.

    Args:
        flat: the function.
        layer: the layer.
        run: a run of the function.
        bodies: returns the values of a variable of the body at all time steps.
    """
    projection = next(iter(projections(flat, layer).values()))
    series = projection.series
    if series is None:
        return bodies(projection.source).reshape(layer.length, -1)
    assert series.feature_axis is not None
    values = jnp.moveaxis(run.env[series.var], (series.axis, series.feature_axis), (0, -1))
    values = values.reshape(layer.length, -1)
    return values[::-1] if series.flipped else values
