"""Finds out what a function is made of: facts of its values, softmaxes, loops and branches."""

from collections.abc import Iterator, Sequence

from jaxattn.jaxpr.flat import Atom, Flat, Step, Var, is_atomic
from jaxattn.jaxpr.structure.facts import LAYOUT, Fact, join, joined, transfer, widened
from jaxattn.jaxpr.structure.graph import TO_MAXIMUM, Softmax, Structure, maker_of


def _find_softmaxes(flat: Flat, producers: dict[Var, Step]) -> Iterator[tuple[Step, Softmax]]:
    """Softmaxes have no primitive: a maximum, a difference, an exponential, a sum, a quotient."""

    def behind(atom: Atom, name: str) -> Step | None:
        maker = maker_of(atom, producers, LAYOUT)
        return maker if maker is not None and maker.name == name else None

    for step in flat.steps:
        if step.name == "div":
            exponential = behind(step.inputs[0], "exp")
            total = behind(step.inputs[1], "reduce_sum")
        elif step.name == "exp" and (difference := behind(step.inputs[0], "sub")):
            # The exponential of a log-softmax: z - log(sum(exp(z))).
            logarithm = behind(difference.inputs[1], "log")
            total = None if logarithm is None else behind(logarithm.inputs[0], "reduce_sum")
            exponential = None if total is None else behind(total.inputs[0], "exp")
            if exponential is None or exponential.inputs[0] is not difference.inputs[0]:
                continue
        else:
            continue
        if exponential is None or total is None:
            continue
        if behind(total.inputs[0], "exp") is not exponential:
            continue
        logits = exponential.inputs[0]
        if shifted := behind(logits, "sub"):
            largest = maker_of(shifted.inputs[1], producers, TO_MAXIMUM)
            if largest is not None and largest.name == "reduce_max":
                logits = shifted.inputs[0]
        if isinstance(logits, Var) and logits.shape == step.outputs[0].shape:
            yield step, Softmax(logits, tuple(total.eqn.params["axes"]))


def analyse(flat: Flat, inputs: Sequence[Fact], exact: bool = False) -> Structure:
    """Finds out what a function is made of, from what is known about its inputs.

    Args:
        flat: the function.
        inputs: what is known about its inputs.
        exact: whether the maximum that a softmax subtracts counts as a function of the input, as
            for differences it must; slopes do not see it, with a `stop_gradient` around it.
    """
    producers = {var: step for step in flat.steps for var in step.outputs}
    users: dict[Var, list[Step]] = {var: [] for var in (*flat.inputs, *flat.constants, *producers)}
    for step in flat.steps:
        for var in dict.fromkeys(step.variables):
            users[var].append(step)
    facts = dict(zip(flat.inputs, inputs, strict=True)) | {v: Fact() for v in flat.constants}
    softmaxes = dict(_find_softmaxes(flat, producers))
    found = Structure(flat, facts, producers, users, softmaxes, {}, exact)
    for step in flat.steps:
        given = [found.fact(atom) for atom in step.inputs]
        if step.name == "scan":
            outputs = _through_scan(found, step, given)
        elif step.name == "cond":
            outputs = _through_branches(found, step, given)
        elif step.name == "while":
            one = joined(given)
            outputs = [Fact(one.active, one.touched)] * len(step.outputs)
        elif step in softmaxes and found.is_active(softmaxes[step].logits):
            depth = max(f.depth for f in given)
            outputs = [Fact(True, True, 0.0, 1.0, gate=True, soft=True, depth=depth)]
        elif is_atomic(step):
            inner = analyse(step.bodies[0], given, exact)
            outputs = [inner.fact(atom) for atom in inner.flat.outputs]
        elif step.name == "stop_gradient" and exact and found.follows_maximum(step):
            outputs = given
        else:
            fact = transfer(step, given)
            if step.name == "reduce_sum" and found.contracts(step):
                fact = fact._replace(depth=fact.depth + 1)
            outputs = [fact] * len(step.outputs)
        for var, fact in zip(step.outputs, outputs, strict=True):
            facts[var] = fact._replace(active=fact.active and var.is_floating)
    for var in producers:  # in order, so that no level waits for many others
        found.level(var)
    return found


def _through_scan(found: Structure, step: Step, given: list[Fact]) -> list[Fact]:
    n_consts, n_carry = step.counts
    carried = slice(n_consts, n_consts + n_carry)
    turns = 0
    while True:
        inner = analyse(step.bodies[0], given, found.exact)
        outputs = [inner.fact(atom) for atom in inner.flat.outputs]
        carry = []
        for before, after in zip(given[carried], outputs, strict=False):
            # A loop does not add layers by going round.
            both = join(before, after._replace(depth=before.depth))
            carry.append(widened(before, both) if turns else both)
        if carry == given[carried]:
            found.inner[step] = [inner]
            return outputs
        given = [*given[: carried.start], *carry, *given[carried.stop :]]
        turns += 1


def _through_branches(found: Structure, step: Step, given: list[Fact]) -> list[Fact]:
    found.inner[step] = branches = [analyse(body, given[1:], found.exact) for body in step.bodies]
    outputs = []
    for atoms in zip(*(branch.flat.outputs for branch in branches), strict=True):
        fact = joined([b.fact(atom) for b, atom in zip(branches, atoms, strict=True)])
        outputs.append(fact._replace(touched=fact.touched or given[0].touched))
    return outputs
