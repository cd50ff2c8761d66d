"""Layers and sums: the affine maps of a function.

A layer is not an equation. `x @ W + h @ U + b` is one affine map, in however many steps it is
written, and relevance is redistributed over the whole of it.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from jaxattn.jaxpr.flat import Step, Var
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.logarithms import multiplies_exponentials
from jaxattn.jaxpr.structure.normalisations import is_mean, normalised_signal
from jaxattn.jaxpr.structure.primitive_classes import SUMMING

#: Decides whether an affine map includes the step that computes a value.
_Includes: TypeAlias = Callable[[Structure, Var, Step], bool]


@dataclass(eq=False)
class Affine:
    """An affine map: a layer, which contracts once on each path through it, or a mere sum.

    Attributes:
        output: its output.
        inputs: the active values that it is a function of.
        steps: the steps that compute it, in order.
        is_layer: whether it contracts.
        is_convolution: whether it is a convolution.
        names: its tags, and the paths of its contractions.
        depth: the number of layers between the function's input and it.
    """

    output: Var
    inputs: list[Var]
    steps: list[Step]
    is_layer: bool
    is_convolution: bool
    names: list[str]
    depth: int


def find_preactivations(structure: Structure) -> set[Var]:
    """Find the values that layers compute.

    These are the results of contractions, however scaled, shifted, laid out and added to each
    other afterwards. A sum with anything else, such as a residual stream, belongs to no layer.
    """
    found: set[Var] = set()
    for step in structure.flat.steps:
        found.update(v for v in step.outputs if _is_preactivation(structure, v, step, found))
    return found


def _is_preactivation(structure: Structure, var: Var, step: Step, found: set[Var]) -> bool:
    if not structure.facts[var].active:
        return False
    if structure.contracts(step):
        return True
    if normalised_signal(structure, step) is not None:
        return False
    adds = structure.adds(step)
    if not (adds or structure.scales(step) or structure.shifts(step) or structure.lays_out(step)):
        return False
    actives = structure.actives(step)
    if adds and not all(_is_read_once(structure, v) for v in actives):
        return False  # one of them is a residual stream, which other steps read too
    return bool(actives) and found.issuperset(actives)


def _is_read_once(structure: Structure, var: Var) -> bool:
    return len(structure.users[var]) == 1 and var not in structure.flat.outputs


def affine_map(structure: Structure, output: Var) -> Affine:
    """Collect the affine map that a value is the output of.

    Args:
        structure: the function.
        output: a value of it.

    Returns:
        A layer if `output` is a pre-activation, else the sum that ends in it.
    """
    is_layer = structure.is_preactivation(output)
    steps: set[Step] = set()
    inputs: dict[Var, None] = {}
    visited: set[Var] = set()
    start = _after_contraction if is_layer else functools.partial(_within_sum, output)
    queue: list[tuple[Var, _Includes]] = [(output, start)]
    while queue:
        var, includes = queue.pop()
        if var in visited:
            continue
        visited.add(var)
        step = structure.producers.get(var)
        if step is None or not includes(structure, var, step):
            inputs[var] = None
            continue
        steps.add(step)
        if structure.contracts(step):
            includes = _before_contraction
        elif step.name in SUMMING:
            includes = _nothing
        queue += [(operand, includes) for operand in reversed(structure.actives(step))]
    ordered = sorted(steps, key=structure.order.__getitem__)
    contractions = [step for step in ordered if structure.contracts(step)]
    tags = [str(step.eqn.params["name"]) for step in ordered if step.name == "name"]
    paths = [step.path for step in (contractions or ordered) if step.path]
    return Affine(
        output,
        list(inputs),
        ordered,
        is_layer,
        any(step.name == "conv_general_dilated" for step in contractions),
        list(dict.fromkeys(tags + paths)),
        max(0, structure.facts[output].depth - 1),
    )


def _after_contraction(structure: Structure, var: Var, step: Step) -> bool:
    return structure.is_preactivation(var)


def _before_contraction(structure: Structure, var: Var, step: Step) -> bool:
    """Include the scale and the shift of one value, as those of a normalisation."""
    for output, producer in _through_layout(structure, var, step):
        if structure.is_preactivation(output) or not structure.has_one_active(producer):
            return False
        if structure.scales(producer):
            return not is_mean(structure, output)
        if structure.shifts(producer) or producer.name == "pad":
            return True  # elements that padding adds are no inputs
    return False


def _within_sum(output: Var, structure: Structure, var: Var, step: Step) -> bool:
    """Include what is added up to `output`, but no layer and no normalisation."""
    for value, producer in _through_layout(structure, var, step):
        if value is not output and structure.is_preactivation(value):
            return False
        if normalised_signal(structure, producer) is not None:
            return False
        if value is not output and multiplies_exponentials(structure, producer):
            return False
        if structure.scales(producer) or structure.shifts(producer) or producer.name in SUMMING:
            return True
        if structure.adds(producer):
            return value is output or _is_read_once(structure, value)
    return False


def _nothing(structure: Structure, var: Var, step: Step) -> bool:
    return False


def _through_layout(
    structure: Structure, var: Var, step: Step | None
) -> Iterator[tuple[Var, Step]]:
    """Yield a value and its step, and as long as a step lays out one value, that value's, too."""
    while step is not None:
        yield var, step
        actives = structure.actives(step)
        if not structure.lays_out(step) or len(actives) != 1:
            return
        (var,) = actives
        step = structure.producers.get(var)
