"""Runs of a function that return the values inside of a recurrent layer, and may add to them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxattn.jaxpr.flat import Atom, Flat, Step, Var
from jaxattn.jaxpr.interpreter import Value, bind
from jaxattn.jaxpr.recurrence.affine_maps import read
from jaxattn.jaxpr.recurrence.polynomials import Piece, size_of
from jaxattn.jaxpr.recurrence.recurrent_layers import Layer

Env = dict[Var, Value]


class Changes(NamedTuple):
    """What is added to the values of a layer, each of shape `(T, H)` in the order of the scan.

    Attributes:
        preactivation: to the pre-activations, by gate.
        activation: to the values of gates, by gate.
        hidden: to the hidden states, as the output and the next steps read them.
        cell: to the cell states; `None` if there are none.
        output: to the outputs of the layer, not to the state of the next step.
    """

    preactivation: dict[str, Array]
    activation: dict[str, Array]
    hidden: Array | None
    cell: Array | None
    output: Array | None


class Observed(NamedTuple):
    """The values of a layer at each time step, in the order of the scan.

    Attributes:
        before: the carried values that each step starts from.
        after: those that it ends with.
        slices: the slices of the series that it reads.
        preactivation: the pre-activations `(T, H)`, by gate.
        activation: the values of gates `(T, H)`, by gate.
    """

    before: list[Array]
    after: list[Array]
    slices: list[Array]
    preactivation: dict[str, Array]
    activation: dict[str, Array]


class Run(NamedTuple):
    """A run of a whole function.

    Attributes:
        outputs: its outputs.
        env: all of its values.
        observed: the values of the layer.
    """

    outputs: list[Value]
    env: Env
    observed: Observed


def units(layer: Layer) -> int:
    """Return the number of units of a recognised layer."""
    assert layer.cell.new_hidden is not None
    return size_of(layer.cell.new_hidden)


def no_changes(layer: Layer) -> Changes:
    """Return changes of zero for everything that a recognised layer has."""

    def zeros(var: Var) -> Array:
        return jnp.zeros((layer.length, units(layer)), var.aval.dtype)

    cell = layer.cell
    assert cell.new_hidden is not None
    return Changes(
        {name: zeros(gate.preactivation.var) for name, gate in cell.gates.items()},
        {name: zeros(gate.activation.var) for name, gate in cell.gates.items()},
        zeros(cell.new_hidden),
        None if cell.new_cell is None else zeros(cell.new_cell),
        zeros(cell.new_hidden),
    )


def run(flat: Flat, inputs: Sequence[Value], layer: Layer, changes: Changes | None = None) -> Run:
    """Run a function, and observe a layer.

    Args:
        flat: the function.
        inputs: its inputs.
        layer: the layer.
        changes: what is added to the values of the layer.
    """
    env: Env = dict(zip(flat.inputs, inputs, strict=True)) | flat.constants
    observed: list[Observed] = []
    for step in flat.steps:
        operands = [read(atom, env) for atom in step.inputs]
        if step is layer.scan:
            outputs, seen = _scan(layer, operands, changes)
            observed.append(seen)
        else:
            outputs = bind(step.eqn, operands)
        env.update(zip(step.outputs, outputs, strict=True))
    return Run([read(atom, env) for atom in flat.outputs], env, observed[0])


def _scan(
    layer: Layer, operands: Sequence[Value], changes: Changes | None
) -> tuple[Sequence[Value], Observed]:
    n_consts, n_carry = layer.scan.counts
    stop = n_consts + n_carry
    consts = operands[:n_consts]

    def step(
        carry: tuple[Value, ...], x: tuple[Changes | None, tuple[Value, ...]]
    ) -> tuple[tuple[Value, ...], tuple[tuple[Value, ...], Observed]]:
        change, slices = x
        env = run_body(layer, [*consts, *carry, *slices], change)
        outputs = [read(atom, env) for atom in layer.body.outputs]
        gates = layer.cell.gates
        size = units(layer) if gates else 0
        observed = Observed(
            list(carry),
            list(outputs[:n_carry]),
            list(slices),
            {name: _part(env, gate.preactivation, size) for name, gate in gates.items()},
            {name: _part(env, gate.activation, size) for name, gate in gates.items()},
        )
        return tuple(outputs[:n_carry]), (tuple(outputs[n_carry:]), observed)

    inner = None if changes is None else changes._replace(output=None)
    xs = inner, tuple(operands[stop:])
    params = layer.scan.eqn.params
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    init = tuple(operands[n_consts:stop])
    carry, (ys, observed) = jax.lax.scan(step, init, xs, **options)
    outputs = [*carry, *ys]
    if changes is not None and changes.output is not None:
        outputs = _with_changed_output(layer, outputs, changes.output)
    return outputs, observed


def run_body(
    layer: Layer, inputs: Sequence[Value], change: Changes | None = None, fix_gates: bool = False
) -> Env:
    """Run the body of a layer's loop for one time step, and return all of its values.

    Args:
        layer: the layer.
        inputs: the inputs of the body.
        change: what is added at this time step.
        fix_gates: whether the values of gates count as constants for derivatives.
    """
    added = [] if change is None else _places(layer, change)
    fixed = {gate.activation.var for gate in layer.cell.gates.values()} if fix_gates else set()
    env: Env = dict(zip(layer.body.inputs, inputs, strict=True)) | layer.body.constants
    for step in layer.body.steps:
        outputs = bind(step.eqn, [read(atom, env) for atom in step.inputs])
        for var, value in zip(step.outputs, outputs, strict=True):
            for place, addend in added:
                if place.var is var:
                    value = _plus(value, addend, place.start)
            env[var] = jax.lax.stop_gradient(value) if var in fixed else value
    return env


def _places(layer: Layer, change: Changes) -> list[tuple[Piece, Array]]:
    """Return where something is added in the body, and what."""
    cell = layer.cell
    found = [(cell.gates[name].preactivation, c) for name, c in change.preactivation.items()]
    found += [(cell.gates[name].activation, c) for name, c in change.activation.items()]
    for state, addend in ((cell.new_hidden, change.hidden), (cell.new_cell, change.cell)):
        if state is not None and addend is not None:
            found.append((Piece(state), addend))
    return found


def _part(env: Env, piece: Piece, size: int) -> Array:
    return jnp.ravel(env[piece.var])[piece.start : piece.start + size]


def _plus(value: Array, addend: Array, start: int) -> Array:
    flat = jnp.ravel(value)
    padded = jnp.pad(addend, (start, flat.size - start - addend.size))
    return (flat + padded).reshape(value.shape)


def _with_changed_output(layer: Layer, outputs: Sequence[Value], addend: Array) -> list[Value]:
    """Add to the outputs of a loop that are its hidden states."""
    n_carry, changed = layer.scan.counts[1], list(outputs)
    last = 0 if layer.scan.eqn.params["reverse"] else -1
    final = changed[layer.cell.hidden]
    changed[layer.cell.hidden] = final + addend[last].reshape(final.shape)
    for i, atom in enumerate(layer.body.outputs[n_carry:], n_carry):
        if is_hidden(layer, atom):
            changed[i] = changed[i] + addend.reshape(changed[i].shape)
    return changed


def is_hidden(layer: Layer, atom: Atom) -> bool:
    """Return whether an output of a body is the new hidden state, perhaps masked."""
    if atom is layer.cell.new_hidden:
        return True
    step: Step | None = layer.structure.producers.get(atom) if isinstance(atom, Var) else None
    return step is not None and (
        step.name in ("select_n", "convert_element_type", "copy", "name", "reshape")
        and any(is_hidden(layer, operand) for operand in step.inputs)
    )


def own_preactivations(flat: Flat, inputs: Sequence[Value], layer: Layer) -> dict[str, Array]:
    """Compute the pre-activations `(T, H)` as functions of the input of the layer alone.

    The derivatives of the result with respect to the inputs of the function are those through the
    input of the layer at the same time step: the state and the gates count as constants.

    Args:
        flat: the function.
        inputs: its inputs.
        layer: the layer.
    """
    env: Env = dict(zip(flat.inputs, inputs, strict=True)) | flat.constants
    for step in flat.steps:
        operands = [read(atom, env) for atom in step.inputs]
        if step is layer.scan:
            return _own(layer, operands)
        env.update(zip(step.outputs, bind(step.eqn, operands), strict=True))
    raise AssertionError("the layer belongs to another function")


def _own(layer: Layer, operands: Sequence[Value]) -> dict[str, Array]:
    n_consts, n_carry = layer.scan.counts
    consts, init = operands[:n_consts], tuple(operands[n_consts : n_consts + n_carry])
    own = {layer.cell.hidden, layer.cell.cell}
    size = units(layer)

    def step(
        carry: tuple[Value, ...], slices: tuple[Value, ...]
    ) -> tuple[tuple[Value, ...], dict[str, Array]]:
        env = run_body(layer, [*consts, *carry, *slices])
        fixed = [jax.lax.stop_gradient(c) if i in own else c for i, c in enumerate(carry)]
        own_env = run_body(layer, [*consts, *fixed, *slices], fix_gates=True)
        gates = layer.cell.gates.items()
        outputs = {name: _part(own_env, gate.preactivation, size) for name, gate in gates}
        return tuple(read(atom, env) for atom in layer.body.outputs[:n_carry]), outputs

    params = layer.scan.eqn.params
    options = {name: params[name] for name in ("length", "reverse")}
    return jax.lax.scan(step, init, tuple(operands[n_consts + n_carry :]), **options)[1]


def step_jacobians(layer: Layer, run: Run, indices: Sequence[int]) -> Array:
    """Compute the Jacobian of each step's carried values with respect to those before it.

    Args:
        layer: the layer.
        run: a run of the function.
        indices: the positions of the carried values that vary; the others are constants.

    Returns:
        Shape `(T, S, S)`, in the order of the scan, for the S elements of all varying values.
    """
    n_consts = layer.scan.counts[0]
    consts = [read(atom, run.env) for atom in layer.scan.inputs[:n_consts]]
    shapes = [layer.carries[i].shape for i in indices]

    def advance(flat_state: Array, before: list[Array], slices: list[Array]) -> Array:
        carry, start = list(before), 0
        for i, shape in zip(indices, shapes, strict=True):
            size = size_of(layer.carries[i])
            carry[i] = flat_state[start : start + size].reshape(shape)
            start += size
        env = run_body(layer, [*consts, *carry, *slices])
        after = [read(layer.body.outputs[i], env) for i in indices]
        return jnp.concatenate([jnp.ravel(a) for a in after])

    def jacobian(before: list[Array], slices: list[Array]) -> Array:
        state = jnp.concatenate([jnp.ravel(before[i]) for i in indices])
        return jax.jacfwd(advance)(state, before, slices)

    return jax.vmap(jacobian)(run.observed.before, run.observed.slices)
