"""Activations: functions of single elements of a value, in one step or in several."""

from collections.abc import Callable

from jax import Array

from jaxattn.jaxpr.flat import Atom, Step, Var, is_elementwise
from jaxattn.jaxpr.interpreter import Value, bind
from jaxattn.jaxpr.structure.graph import Structure


def activation(structure: Structure, step: Step) -> Var | None:
    """Return the operand of the activation that a step completes.

    Args:
        structure: the function.
        step: a step of it with an active operand.

    Returns:
        The nearest value of whose single elements the step's output is a function, if there is one.
    """
    if not is_elementwise(step):
        return None
    operands = [v for v in step.inputs if structure.fact(v).depends_on_input]
    if len(operands) == 1:
        return next(iter(structure.actives(step)), None)
    return _common_source(structure, [v for v in operands if isinstance(v, Var)])


def function_between(
    structure: Structure, source: Var, output: Var, read: Callable[[Atom], Value]
) -> Callable[[Array], Array]:
    """Return the elementwise function from one value to another.

    Args:
        structure: the function that both are values of.
        source: the operand of the activation.
        output: its output, a function of single elements of `source`.
        read: returns the value of an operand that does not depend on `source`.
    """
    steps: set[Step] = set()
    queue, visited = [output], {source, output}
    while queue:
        step = structure.producers[queue.pop()]
        steps.add(step)
        new = [
            v for v in step.variables if structure.facts[v].depends_on_input and v not in visited
        ]
        visited.update(new)
        queue.extend(new)
    ordered = sorted(steps, key=structure.order.__getitem__)

    def apply(value: Array) -> Array:
        env: dict[Atom, Value] = {source: value}
        for step in ordered:
            operands = [env[a] if a in env else read(a) for a in step.inputs]
            env.update(zip(step.outputs, bind(step.eqn, operands), strict=True))
        return env[output]

    return apply


def _common_source(structure: Structure, operands: list[Var]) -> Var | None:
    """Return the latest active value that all operands are elementwise functions of."""
    sources = [_sources(structure, v) for v in operands]
    common = set(sources[0]).intersection(*sources[1:])
    for source in sources[0]:
        candidate = source in common and structure.facts[source].active
        if candidate and all(_passes_through(structure, v, source) for v in operands):
            return source
    return None


def _sources(structure: Structure, var: Var) -> list[Var]:
    """Return all values that a value is an elementwise function of, the latest first."""
    found, queue = {var}, [var]
    while queue:
        for operand in _elementwise_operands(structure, queue.pop()) or ():
            if operand not in found:
                found.add(operand)
                queue.append(operand)
    return sorted(found, key=lambda v: _position(structure, v), reverse=True)


def _position(structure: Structure, var: Var) -> int:
    step = structure.producers.get(var)
    return -1 if step is None else structure.order[step]


def _passes_through(structure: Structure, var: Var, source: Var) -> bool:
    """Return whether a value depends on the input by elementwise functions of `source` alone."""
    visited, queue = {var}, [var]
    while queue:
        current = queue.pop()
        if current is source:
            continue
        operands = _elementwise_operands(structure, current)
        if operands is None:
            return False
        queue.extend(v for v in operands if v not in visited)
        visited.update(operands)
    return True


def _elementwise_operands(structure: Structure, var: Var) -> list[Var] | None:
    """Return the operands of the elementwise step behind a value; `None` without such a step."""
    step = structure.producers.get(var)
    if step is None or not is_elementwise(step):
        return None
    return [v for v in step.variables if structure.facts[v].depends_on_input]
