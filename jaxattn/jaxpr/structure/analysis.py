"""Abstract evaluation of a function: facts of its values, through loops and branches."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from jaxattn.jaxpr.flat import ELEMENTWISE, Flat, Step, Var, has_custom_derivative
from jaxattn.jaxpr.literals import check_literals
from jaxattn.jaxpr.structure.affine import find_preactivations
from jaxattn.jaxpr.structure.bounds import Bounds
from jaxattn.jaxpr.structure.facts import Fact, join, transfer, widen_bounds
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.logarithms import adds_exponentials
from jaxattn.jaxpr.structure.normalisations import is_normalised_by
from jaxattn.jaxpr.structure.primitive_classes import CHOOSING, COUNTING, LAYOUT
from jaxattn.jaxpr.structure.softmaxes import find_softmaxes, is_maximum

#: Primitives whose results have differences even where they are integers or truth values.
_COUNTING = COUNTING | ELEMENTWISE | LAYOUT

#: Computes the facts of a step's outputs from those of its operands.
_Evaluate: TypeAlias = Callable[[Structure, Step, Sequence[Fact]], list[Fact]]


def analyse(flat: Flat, inputs: Sequence[Fact], exact: bool = False) -> Structure:
    """Find the structure of a function from the facts of its inputs.

    Args:
        flat: the function.
        inputs: the facts of its inputs.
        exact: whether differences are propagated instead of derivatives. Then the maximum that a
            softmax subtracts counts as a function of the input, although there is a `stop_gradient`
            around it, and so do truth values and the integers that are computed from them.
    """
    check_literals()
    producers = {var: step for step in flat.steps for var in step.outputs}
    users: dict[Var, list[Step]] = {var: [] for var in (*flat.inputs, *flat.constants, *producers)}
    for step in flat.steps:
        for var in dict.fromkeys(step.variables):
            users[var].append(step)
    facts = dict(zip(flat.inputs, inputs, strict=True)) | {v: Fact() for v in flat.constants}
    softmaxes = find_softmaxes(flat, producers)
    structure = Structure(flat, facts, producers, users, softmaxes, exact)
    for step in flat.steps:
        operands = [structure.fact(atom) for atom in step.inputs]
        evaluate = _CONTROL_FLOW.get(step.name, _evaluate_step)
        for var, fact in zip(step.outputs, evaluate(structure, step, operands), strict=True):
            counts = exact and (step.name in _COUNTING or step.name in ("cond", "scan"))
            facts[var] = fact._replace(active=fact.active and (var.is_floating or counts))
    structure.preactivations = find_preactivations(structure)
    return structure


def _evaluate_step(structure: Structure, step: Step, operands: Sequence[Fact]) -> list[Fact]:
    """Compute the facts of the outputs of a step without control flow."""
    softmax = structure.softmaxes.get(step)
    if softmax is not None and any(map(structure.is_active, softmax.constants)):
        del structure.softmaxes[step]
        softmax = None
    if softmax is not None and structure.is_active(softmax.logits):
        depth = max(fact.depth for fact in operands)
        return [Fact(True, True, Bounds(0.0, 1.0), gate=True, softmax=True, depth=depth)]
    if has_custom_derivative(step):
        body = analyse(step.bodies[0], operands, structure.exact)
        outputs = [body.fact(atom) for atom in body.flat.outputs]
        return [_log_of_sum(outputs[0], operands)] if adds_exponentials(step) else outputs
    differs = step.name == "stop_gradient" and structure.exact
    if differs and is_maximum(step.inputs[0], structure.producers):
        return list(operands)
    fact = transfer(step, _without_indices(step, operands))
    if step.name == "div" and operands[0].is_gate and _is_normalised(structure, step):
        fact = fact._replace(gate=True)
    if step.name == "reduce_sum" and structure.contracts(step):
        fact = fact._replace(depth=fact.depth + 1)
    return [fact] * len(step.outputs)


def _log_of_sum(output: Fact, operands: Sequence[Fact]) -> Fact:
    """Return the fact of log(exp(a) + exp(b)), which is above both."""
    bounds = Bounds(max(fact.bounds.low for fact in operands), output.bounds.high)
    return output._replace(bounds=bounds, logarithm=output.depends_on_input)


def _without_indices(step: Step, operands: Sequence[Fact]) -> list[Fact]:
    """Return the facts of a step's operands, with indices as inactive: they are no quantities."""
    operands = list(operands)
    if step.name in CHOOSING and step.name != "select_n":
        where = CHOOSING[step.name]
        operands[where] = [fact._replace(active=False) for fact in operands[where]]
    return operands


def _is_normalised(structure: Structure, step: Step) -> bool:
    """Return whether a quotient is that of gates and a statistic of them, such as their sum."""
    gates, scale = step.inputs
    both = structure.is_active(gates) and structure.is_active(scale)
    return both and is_normalised_by(structure, gates, scale)  # type: ignore[arg-type]


def _evaluate_scan(structure: Structure, step: Step, operands: Sequence[Fact]) -> list[Fact]:
    """Evaluate a scan's body until the facts of the carry no longer change."""
    n_consts, n_carry = step.counts
    consts, carry = list(operands[:n_consts]), list(operands[n_consts : n_consts + n_carry])
    xs = list(operands[n_consts + n_carry :])
    turns = 0
    while True:
        body = analyse(step.bodies[0], [*consts, *carry, *xs], structure.exact)
        outputs = [body.fact(atom) for atom in body.flat.outputs]
        # The turns of a loop do not add layers.
        joined = [
            join((before, after._replace(depth=before.depth)))
            for before, after in zip(carry, outputs, strict=False)
        ]
        if turns:
            joined = [widen_bounds(*pair) for pair in zip(carry, joined, strict=True)]
        if joined == carry:
            structure.inner[step] = [body]
            return outputs
        carry = joined
        turns += 1


def _evaluate_while(structure: Structure, step: Step, operands: Sequence[Fact]) -> list[Fact]:
    """Let every output of a `while` depend on all operands: its body is not analysed."""
    one = join(operands)
    return [Fact(one.active, one.depends_on_input)] * len(step.outputs)


def _evaluate_cond(structure: Structure, step: Step, operands: Sequence[Fact]) -> list[Fact]:
    """Join the facts of the outputs of all branches."""
    index, *inputs = operands
    branches = [analyse(body, inputs, structure.exact) for body in step.bodies]
    structure.inner[step] = branches
    outputs = []
    for atoms in zip(*(branch.flat.outputs for branch in branches), strict=True):
        fact = join(branch.fact(atom) for branch, atom in zip(branches, atoms, strict=True))
        depends = fact.depends_on_input or index.depends_on_input
        active = fact.active or index.active
        outputs.append(fact._replace(active=active, depends_on_input=depends))
    return outputs


_CONTROL_FLOW: dict[str, _Evaluate] = {
    "cond": _evaluate_cond,
    "scan": _evaluate_scan,
    "while": _evaluate_while,
}
