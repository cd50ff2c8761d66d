"""Functions of single cells: activations, in one step or in several."""

from collections.abc import Callable
from typing import Any

from jaxattn.jaxpr.flat import Atom, Step, Var, is_cellwise
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.structure.graph import Structure


def activation(structure: Structure, step: Step) -> Var | None:
    """The one value whose single cells the step's output is a function of, the nearest such."""
    if is_cellwise(step):
        operands = [a for a in step.inputs if structure.fact(a).touched]
        if len(operands) == 1:
            return structure.actives(step)[0] if structure.actives(step) else None
        return _common_source(structure, [v for v in operands if isinstance(v, Var)])
    return None


def function_between(
    structure: Structure, source: Var, output: Var, read: Callable[[Atom], Any]
) -> Callable[[Any], Any]:
    """The function from a value to one whose cells are functions of its cells."""
    found, queue, seen = set(), [output], {source, output}
    while queue:
        step = structure.producers[queue.pop()]
        found.add(step)
        new = [v for v in step.variables if structure.facts[v].touched and v not in seen]
        seen.update(new)
        queue.extend(new)
    steps = sorted(found, key=structure.order.__getitem__)

    def apply(value: Any) -> Any:
        env: dict[Any, Any] = {source: value}
        for step in steps:
            operands = [env[a] if a in env else read(a) for a in step.inputs]
            env.update(zip(step.outputs, bind(step.eqn, operands), strict=True))
        return env[output]

    return apply


def _common_source(structure: Structure, operands: list[Var]) -> Var | None:
    ancestors = [_cells_behind(structure, v) for v in operands]
    common = set(ancestors[0]).intersection(*ancestors[1:])
    for source in ancestors[0]:
        candidate = source in common and structure.facts[source].active
        if candidate and all(_passes(structure, v, source) for v in operands):
            return source
    return None


def _cells_behind(structure: Structure, var: Var) -> list[Var]:
    """All values of whose cells the cells of a value are functions, later ones first."""
    found, queue = {var}, [var]
    while queue:
        for operand in _cellwise(structure, queue.pop()) or ():
            if operand not in found:
                found.add(operand)
                queue.append(operand)
    return sorted(found, key=lambda v: _made(structure, v), reverse=True)


def _made(structure: Structure, var: Var) -> int:
    step = structure.producers.get(var)
    return -1 if step is None else structure.order[step]


def _passes(structure: Structure, var: Var, source: Var) -> bool:
    """Whether all ways from a value back to the input go through `source`, cell by cell."""
    seen, queue = {var}, [var]
    while queue:
        here = queue.pop()
        if here is source:
            continue
        operands = _cellwise(structure, here)
        if operands is None:
            return False
        queue.extend(v for v in operands if v not in seen)
        seen.update(operands)
    return True


def _cellwise(structure: Structure, var: Var) -> list[Var] | None:
    """What the cells of a value are functions of, one by one; `None` if not so."""
    step = structure.producers.get(var)
    if step is None or not is_cellwise(step):
        return None
    return [v for v in step.variables if structure.facts[v].touched]
