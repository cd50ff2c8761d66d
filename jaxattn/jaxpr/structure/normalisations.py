"""Normalisations: which step centres a signal, and which factor is a statistic of it.

Layer, group and RMS norms have no primitive. Libraries write them as differences from a mean and
products with the inverse root of a variance, in different orders.
"""

from typing import NamedTuple

from jaxattn.jaxpr.flat import Atom, Step, Var, is_elementwise
from jaxattn.jaxpr.structure.facts import takes_root
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.primitive_classes import LAYOUT, POOLING, SUMMING


class _Normalised(NamedTuple):
    """A product of a factor and the scale of a normalisation."""

    factor: Var
    norm: Var


def normalised_signal(structure: Structure, step: Step) -> Var | None:
    """Return the signal that a step of a normalisation centres.

    Args:
        structure: the function.
        step: a step of it.

    Returns:
        The operand that is the signal, where the other operand is its mean; `None` elsewhere.
    """
    if step.name not in ("add", "sub") or len(structure.actives(step)) != 2:
        return None
    first, second = step.inputs
    if not isinstance(first, Var) or not isinstance(second, Var):
        return None
    for operand, other in ((first, second), (second, first)):
        signal, mean = _normalised(structure, operand), _normalised(structure, other)
        # x / std and mean / std: one norm, and the mean of the same x.
        if signal is None or mean is None or signal.norm is not mean.norm:
            continue
        if _is_mean_of(structure, mean.factor, signal.factor):
            return operand
    if step.name == "sub" and _is_mean_of(structure, second, first):
        return first if _meets_norm(structure, step.outputs[0], set()) else None
    return None


def is_normalised_by(structure: Structure, signal: Var, scale: Var) -> bool:
    """Return whether the factor `scale` is a statistic over the elements of `signal`."""
    fact = structure.facts[scale]
    if not (fact.norm or fact.statistic):
        return False
    sources = _elementwise_sources(structure, signal)
    if structure.facts[signal].statistic:
        sources |= _pooled_values(structure, signal)
    return bool(sources & _pooled_values(structure, scale))


def is_mean(structure: Structure, var: Var) -> bool:
    """Return whether a value is a sum over elements, perhaps multiplied by constants."""
    step = structure.producers.get(var)
    while step is not None and (structure.scales(step) or structure.lays_out(step)):
        if len(structure.actives(step)) != 1:
            return False
        step = structure.producers.get(structure.actives(step)[0])
    return step is not None and step.name in SUMMING and not structure.contracts(step)


def is_root(structure: Structure, atom: Atom) -> bool:
    """Return whether a value is a square root or the inverse of one, perhaps scaled or shifted."""
    while isinstance(atom, Var) and structure.is_active(atom):
        step = structure.producers.get(atom)
        if step is None or takes_root(step):
            return step is not None
        inverts = step.name == "div" or (step.name == "integer_pow" and step.eqn.params["y"] == -1)
        passes = structure.scales(step) or structure.shifts(step) or structure.lays_out(step)
        if not (inverts or passes or step.name in ("max", "min")) or not structure.has_one_active(
            step
        ):
            return False
        (atom,) = structure.actives(step)
    return False


def _pooled_values(structure: Structure, var: Var) -> set[Var]:
    """Return the values over whose elements a value is a statistic."""
    operands = [v for step in _reductions(structure, var) for v in structure.actives(step)]
    return set().union(*(_elementwise_sources(structure, v) for v in operands))


def _reductions(structure: Structure, var: Var) -> list[Step]:
    """Return the nearest sums and extremes over elements that a value is a function of."""
    reductions: list[Step] = []
    queue, visited = [var], {var}
    while queue:
        step = structure.producers.get(queue.pop())
        if step is None:
            continue
        if step.name in POOLING:
            reductions.append(step)
            continue
        new = [
            v for v in step.variables if structure.facts[v].depends_on_input and v not in visited
        ]
        visited.update(new)
        queue.extend(new)
    return reductions


def _elementwise_sources(structure: Structure, var: Var) -> set[Var]:
    """Return the values whose elements a value is an elementwise function of, laid out or not."""
    sources, queue = {var}, [var]
    while queue:
        step = structure.producers.get(queue.pop())
        if step is None or not (is_elementwise(step) or step.name in LAYOUT):
            continue
        new = [v for v in step.variables if structure.facts[v].active and v not in sources]
        sources.update(new)
        queue.extend(new)
    return sources


def _normalised(structure: Structure, var: Var) -> _Normalised | None:
    """Return the factor and the norm that a value is a product of, perhaps with constants."""
    step = structure.producers.get(var)
    while step is not None:
        actives = structure.actives(step)
        if step.name == "mul" and len(actives) == 2:
            norms = [v for v in actives if structure.facts[v].norm]
            if len(norms) != 1:
                return None
            (factor,) = (v for v in actives if v is not norms[0])
            return _Normalised(factor, _root(structure, norms[0]))
        passes = structure.scales(step) or structure.shifts(step) or structure.lays_out(step)
        if len(actives) != 1 or not passes:
            return None
        step = structure.producers.get(actives[0])
    return None


def _root(structure: Structure, norm: Var) -> Var:
    """Return the root that a norm is, before constants and layout."""
    step = structure.producers.get(norm)
    while step is not None and (structure.scales(step) or structure.lays_out(step)):
        (norm,) = structure.actives(step)
        step = structure.producers.get(norm)
    return norm


def _is_mean_of(structure: Structure, var: Var, signal: Var) -> bool:
    step = structure.producers.get(var)
    while step is not None:
        if step.name == "reduce_sum":
            return _before_casts(structure, step.inputs[0]) is _before_casts(structure, signal)
        passes = structure.scales(step) or structure.lays_out(step)
        if not passes or not structure.actives(step):
            return False
        step = structure.producers.get(structure.actives(step)[0])
    return False


def _before_casts(structure: Structure, atom: Atom) -> Atom:
    """Return the value that a value is a cast or a copy of."""
    while isinstance(atom, Var):
        step = structure.producers.get(atom)
        if step is None or step.name not in ("convert_element_type", "copy", "name"):
            break
        atom = step.inputs[0]
    return atom


def _meets_norm(structure: Structure, var: Var, visited: set[Var]) -> bool:
    """Return whether a value is divided by a root, or multiplied by the inverse of one."""
    for user in structure.users[var]:
        others = [v for v in structure.actives(user) if v is not var]
        if user.name in ("mul", "div") and any(structure.facts[v].norm for v in others):
            return True
        output = user.outputs[0]
        passes = structure.scales(user) or structure.lays_out(user)
        if passes and output not in visited:
            visited.add(output)
            if _meets_norm(structure, output, visited):
                return True
    return False
