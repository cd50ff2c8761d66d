"""Projections that were hoisted out of a loop, put back into its body.

Computing `x @ W + b` for all time steps at once, ahead of a recurrence, is faster on some devices.
It is one layer with what the recurrence adds to it, and relevance is redistributed over both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from jaxattn.jaxpr.flat import Atom, Flat, Step, Var, flatten
from jaxattn.jaxpr.interpreter import Value, bind
from jaxattn.jaxpr.structure.affine import Affine, affine_map
from jaxattn.jaxpr.structure.analysis import analyse
from jaxattn.jaxpr.structure.facts import Fact
from jaxattn.jaxpr.structure.graph import Structure

#: Primitives that treat all time steps alike; `dot_general` does unless it sums over time.
_STEPWISE = frozenset(
    "add add_any convert_element_type copy div dot_general mul name neg sub".split()
)


def analyse_whole(closed: jex.ClosedJaxpr, facts: Sequence[Fact], exact: bool = False) -> Structure:
    """Find the structure of a function, with hoisted projections back in their loops.

    Args:
        closed: the function.
        facts: the facts of its inputs.
        exact: see `analyse`.
    """
    structure = analyse(flatten(closed), facts, exact)
    restored = _restore(structure)
    return structure if restored is structure.flat else analyse(restored, facts, exact)


@dataclass
class _Operands:
    """Operands of a scan other than its carry, and the body's variables for them.

    Attributes:
        outside: the operands.
        inside: the variables of the body.
    """

    outside: list[Atom] = field(default_factory=list)
    inside: list[Var] = field(default_factory=list)

    def add(self, operand: Atom, variable: Var) -> None:
        """Add one operand."""
        self.outside.append(operand)
        self.inside.append(variable)


def _restore(structure: Structure) -> Flat:
    """Return the function with projections inside its loops; itself if there are none."""
    flat = structure.flat
    steps = [
        _restore_projections(structure, step)
        if step.name == "scan" and step in structure.inner
        else step
        for step in flat.steps
    ]
    if steps == flat.steps:
        return flat
    return Flat(flat.inputs, flat.constants, steps, flat.outputs)


def _restore_projections(structure: Structure, scan: Step) -> Step:
    """Return the scan with the projections of its inputs inside its body."""
    (inner,) = structure.inner[scan]
    n_consts, n_carry = scan.counts
    stop = n_consts + n_carry
    body = _restore(inner)
    consts = _Operands(list(scan.inputs[:n_consts]), list(body.inputs[:n_consts]))
    xs = _Operands()
    constants = dict(body.constants)
    projections: list[Step] = []
    for atom, var in zip(scan.inputs[stop:], body.inputs[stop:], strict=True):
        layer = _projection(structure, atom) if _is_added(inner, var) else None
        if layer is None:
            xs.add(atom, var)
            continue
        length = scan.eqn.params["length"]
        operands = _layer_operands(layer)
        varying = [_varies_over_steps(v, layer, length) for v in operands]
        one = _project_one_step(layer, operands, varying, var, scan.path)
        constants |= one.constants
        projections += one.steps
        for operand, variable, varies in zip(operands, one.inputs, varying, strict=True):
            (xs if varies else consts).add(operand, variable)
    if not projections and body is inner.flat:
        return scan
    whole = Flat(
        [*consts.inside, *body.inputs[n_consts:stop], *xs.inside],
        constants,
        [*projections, *body.steps],
        body.outputs,
    )
    inputs = [*consts.outside, *scan.inputs[n_consts:stop], *xs.outside]
    counts = len(consts.outside), n_carry
    return Step(scan.eqn, inputs, scan.outputs, scan.path, scan.stack, counts, [whole])


def _is_added(body: Structure, var: Var) -> bool:
    """Return whether a scan's body adds something to one of its inputs."""
    for user in body.users[var]:
        if body.adds(user):
            return True
        passes = body.scales(user) or body.shifts(user) or body.lays_out(user)
        if passes and any(_is_added(body, output) for output in user.outputs):
            return True
    return False


def _projection(structure: Structure, atom: Atom) -> Affine | None:
    """Return the layer that computes a value, if it treats all time steps alike."""
    if not isinstance(atom, Var) or not structure.is_preactivation(atom):
        return None
    layer = affine_map(structure, atom)
    if any(v.shape[:1] != atom.shape[:1] for v in layer.inputs):
        return None
    for step in layer.steps:
        if step.name not in _STEPWISE:
            return None
        if step.name == "dot_general":
            (contracted, _), (batch, _) = step.eqn.params["dimension_numbers"]
            if not structure.is_active(step.inputs[0]) or 0 in contracted or batch:
                return None
    return layer


def _layer_operands(layer: Affine) -> list[Var]:
    """Return a layer's inputs and its constants, such as weights and biases."""
    operands = list(layer.inputs)
    computed = {output for step in layer.steps for output in step.outputs}
    for step in layer.steps:
        own = {*operands, *computed}
        operands += [v for v in step.variables if v not in own]
    return operands


def _varies_over_steps(operand: Var, layer: Affine, length: int) -> bool:
    """Return whether an operand of a projection has a value for each time step."""
    if operand in layer.inputs:
        return True
    is_weight = any(s.name == "dot_general" and operand in s.inputs for s in layer.steps)
    return (
        not is_weight
        and operand.shape[:1] == (length,)
        and len(operand.shape) == len(layer.output.shape)
    )


def _project_one_step(
    layer: Affine, operands: list[Var], varying: list[bool], output: Var, path: str
) -> Flat:
    """Return the projection of a single time step.

    Args:
        layer: the projection of all time steps.
        operands: its operands.
        varying: which of them have a value for each time step.
        output: the variable for the result.
        path: the path of the loop.
    """

    def project(*values: Value) -> Value:
        env: dict[Atom, Value] = {
            v: value[None] if varies else value
            for v, value, varies in zip(operands, values, varying, strict=True)
        }
        for step in layer.steps:
            inputs = [env[a] if isinstance(a, Var) else a.val for a in step.inputs]
            with jax.named_scope(step.stack):
                env.update(zip(step.outputs, bind(step.eqn, inputs), strict=True))
        return jnp.squeeze(env[layer.output], 0)

    structs = [
        jax.ShapeDtypeStruct(v.shape[1:] if varies else v.shape, v.aval.dtype)
        for v, varies in zip(operands, varying, strict=True)
    ]
    flat = flatten(jax.make_jaxpr(project)(*structs), path)
    (result,) = flat.outputs
    for step in flat.steps:
        step.outputs = [output if var is result else var for var in step.outputs]
    return flat
