"""Puts a projection that was taken out of a loop back into it.

`x @ W + b` for all steps at once, ahead of a recurrence, is faster on some devices. It is one layer
with what the recurrence adds to it, and relevance is shared out over both together.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from jaxattn.jaxpr.flat import Atom, Flat, Step, Var, flatten
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.structure.analysis import analyse
from jaxattn.jaxpr.structure.facts import Fact
from jaxattn.jaxpr.structure.graph import Affine, Structure

#: Steps that treat every time step alike and alone; `dot_general` does unless it sums over time.
_STEPWISE = frozenset(
    "add add_any convert_element_type copy div dot_general mul name neg sub".split()
)


def analyse_whole(closed: jex.ClosedJaxpr, facts: Sequence[Fact], exact: bool = False) -> Structure:
    """What a function is made of, each layer in one place; see `analyse`."""
    found = analyse(flatten(closed), facts, exact)
    restored = _restored(found)
    return found if restored is found.flat else analyse(restored, facts, exact)


def _restored(structure: Structure) -> Flat:
    """The function with the projections of its loops inside of them; itself if there are none."""
    flat, steps = structure.flat, list(structure.flat.steps)
    for i, step in enumerate(steps):
        if step.name == "scan" and step in structure.inner:
            steps[i] = _with_projections(structure, step)
    if steps == flat.steps:
        return flat
    return Flat(flat.inputs, flat.constants, steps, flat.outputs)


def _with_projections(structure: Structure, step: Step) -> Step:
    (inner,) = structure.inner[step]
    n_consts, n_carry = step.counts
    stop = n_consts + n_carry
    outside: tuple[list[Atom], list[Atom]] = list(step.inputs[:n_consts]), []
    body = _restored(inner)
    inside: tuple[list[Var], list[Var]] = list(body.inputs[:n_consts]), []
    ahead: list[Step] = []
    constants = dict(body.constants)
    for atom, var in zip(step.inputs[stop:], body.inputs[stop:], strict=True):
        layer = _projection(structure, atom) if _is_added(inner, var) else None
        if layer is None:
            outside[1].append(atom)
            inside[1].append(var)
            continue
        length = step.eqn.params["length"]
        operands = list(layer.inputs)
        for part in layer.steps:
            own = {*operands, *(out for s in layer.steps for out in s.outputs)}
            operands += [v for v in part.variables if v not in own]
        moving = [_moves(v, layer, length) for v in operands]
        turn = _turn(layer, operands, moving, var, step.path)
        constants |= turn.constants
        ahead += turn.steps
        for operand, given, moves in zip(operands, turn.inputs, moving, strict=True):
            outside[moves].append(operand)
            inside[moves].append(given)
    if not ahead and body is inner.flat:
        return step
    whole = Flat(
        [*inside[0], *body.inputs[n_consts:stop], *inside[1]],
        constants,
        [*ahead, *body.steps],
        body.outputs,
    )
    inputs = [*outside[0], *step.inputs[n_consts:stop], *outside[1]]
    counts = len(outside[0]), n_carry
    return Step(step.eqn, inputs, step.outputs, step.path, step.stack, counts, [whole])


def _is_added(inner: Structure, var: Var) -> bool:
    """Whether the loop adds something to what it is given for each step."""
    for user in inner.users[var]:
        if inner.adds(user):
            return True
        on = inner.scales(user) or inner.shifts(user) or inner.lays_out(user)
        if on and any(_is_added(inner, out) for out in user.outputs):
            return True
    return False


def _projection(structure: Structure, atom: Atom) -> Affine | None:
    """The layer that a value comes out of, if each time step of it is by itself."""
    if not isinstance(atom, Var) or structure.level(atom) == 0:
        return None
    layer = structure.affine(atom)
    if any(v.shape[:1] != atom.shape[:1] for v in layer.inputs):
        return None
    for step in layer.steps:
        if step.name not in _STEPWISE:
            return None
        if step.name == "dot_general":
            (over, _), (batch, _) = step.eqn.params["dimension_numbers"]
            if not structure.is_active(step.inputs[0]) or 0 in over or batch:
                return None
    return layer


def _moves(operand: Var, layer: Affine, length: int) -> bool:
    """Whether an operand of a projection has a value for each step."""
    if operand in layer.inputs:
        return True
    weighs = any(s.name == "dot_general" and operand in s.inputs for s in layer.steps)
    return (
        not weighs
        and operand.shape[:1] == (length,)
        and len(operand.shape) == len(layer.output.shape)
    )


def _turn(layer: Affine, operands: list[Var], moving: list[bool], output: Var, path: str) -> Flat:
    """The projection of one time step, which makes the value `output`."""

    def project(*values: Any) -> Any:
        env: dict[Any, Any] = {
            v: value[None] if moves else value
            for v, value, moves in zip(operands, values, moving, strict=True)
        }
        for step in layer.steps:
            given = [env[a] if isinstance(a, Var) else a.val for a in step.inputs]
            with jax.named_scope(step.stack):
                env.update(zip(step.outputs, bind(step.eqn, given), strict=True))
        return jnp.squeeze(env[layer.output], 0)

    structs = [
        jax.ShapeDtypeStruct(v.shape[1:] if moves else v.shape, v.aval.dtype)
        for v, moves in zip(operands, moving, strict=True)
    ]
    flat = flatten(jax.make_jaxpr(project)(*structs), path)
    (made,) = flat.outputs
    for step in flat.steps:
        step.outputs = [output if var is made else var for var in step.outputs]
    return flat
