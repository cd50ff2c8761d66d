"""The step behind a value: its producer, past steps that only lay the value out."""

from collections.abc import Mapping, Set

import numpy as np

from jaxattn.jaxpr.flat import Atom, Step, Var
from jaxattn.jaxpr.interpreter import Value


def producer_behind(
    atom: Atom, producers: Mapping[Var, Step], through: Set[str], name: str | None = None
) -> Step | None:
    """Return the step that computed the elements of a value.

    Args:
        atom: the value.
        producers: the step that computes each value.
        through: the primitives to look through.
        name: the primitive that the step must be of; `None` for any.

    Returns:
        The step, or `None` for a literal, an input, a constant or a step of another primitive.
    """
    while isinstance(atom, Var):
        step = producers.get(atom)
        if step is None or step.name not in through:
            return step if step is None or name in (None, step.name) else None
        data = [a for a in step.variables if a.aval.dtype == step.outputs[0].aval.dtype]
        varying = [a for a in data if literal_scalar(a, producers) is None]
        atom = (varying or data or step.inputs)[0]
    return None


def literal_scalar(atom: Atom, producers: Mapping[Var, Step]) -> Value:
    """Return the literal that fills a value; `None` if the value is not such a constant."""
    while isinstance(atom, Var):
        step = producers.get(atom)
        if step is None or step.name not in ("broadcast_in_dim", "convert_element_type", "reshape"):
            return None
        atom = step.inputs[0]
    return atom.val if np.ndim(atom.val) == 0 else None
