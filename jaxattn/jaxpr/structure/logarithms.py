"""Arithmetic of logarithms: which steps add or multiply the numbers that they are logarithms of.

A recurrence may be computed in logarithms, as those of a minimal GRU are. Its sums are then
`logaddexp`, and its products are sums.
"""

from jaxattn.jaxpr.flat import Step, Var, has_custom_derivative, primitives
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.primitive_classes import ADDING

#: Primitives of `jnp.logaddexp`, which has a custom derivative rule: those that tell it from other
#: functions, and the others.
_LOGADDEXP = frozenset({"abs", "exp", "log1p", "max"})
_WITH_LOGADDEXP = frozenset({"add", "ne", "neg", "select_n", "sub"})


def adds_exponentials(step: Step) -> bool:
    """Return whether a step computes the logarithm of a sum of exponentials."""
    if step.name == "cumlogsumexp":
        return True
    if not has_custom_derivative(step) or len(step.inputs) != 2:
        return False
    return _LOGADDEXP <= primitives(step.bodies[0]) <= _LOGADDEXP | _WITH_LOGADDEXP


def multiplies_exponentials(structure: Structure, step: Step) -> bool:
    """Return whether a step adds logarithms of which nothing but the exponential is read.

    Such a sum is the logarithm of a product: a constant scales, and a gate weights.
    """
    if step.name not in ADDING or _interleaves(structure, step):
        return False
    logarithms = all(structure.facts[v].logarithm for v in structure.actives(step))
    return logarithms and _is_read_as_exponential(structure, step.outputs[0])


def _interleaves(structure: Structure, step: Step) -> bool:
    """Return whether a step adds padded values, as an associative scan joins its halves."""
    producers = [structure.producers.get(v) for v in step.variables]
    return step.name in ADDING and all(p is not None and p.name == "pad" for p in producers)


def _is_read_as_exponential(structure: Structure, var: Var) -> bool:
    users = [u for u in structure.users[var] if any(map(structure.is_active, u.outputs))]
    return (
        bool(users)
        and var not in structure.flat.outputs
        and all(_exponentiates(structure, user, var) for user in users)
    )


def _exponentiates(structure: Structure, user: Step, var: Var) -> bool:
    """Return whether a step reads no more of a value than its exponential."""
    if user.name == "exp" or adds_exponentials(user):
        return True
    if user in structure.inner:  # the first operand of a branch is its index
        return all(
            _is_read_as_exponential(body, inside)
            for body in structure.inner[user]
            for inside, atom in zip(body.flat.inputs[::-1], user.inputs[::-1], strict=False)
            if atom is var
        )
    if multiplies_exponentials(structure, user):
        return True
    passes = user.name == "neg" or structure.lays_out(user) or _interleaves(structure, user)
    return passes and all(_is_read_as_exponential(structure, v) for v in user.outputs)
