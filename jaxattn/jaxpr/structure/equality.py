"""Equality of values that are computed twice, by equal steps."""

from collections.abc import Mapping

from jaxattn.jaxpr.flat import Atom, Step, Var
from jaxattn.jaxpr.structure.producers import literal_scalar

#: Longer chains of steps are not compared.
_MOST_STEPS = 64


class Equality:
    """Whether two values of a function are equal because equal steps compute them.

    Args:
        producers: the step that computes each value.
    """

    def __init__(self, producers: Mapping[Var, Step]) -> None:
        self._producers = producers
        self._compared: dict[tuple[Var, Var], bool] = {}

    def __call__(self, a: Atom, b: Atom, depth: int = 0) -> bool:
        """Return whether two values are equal."""
        if a is b:
            return True
        if not isinstance(a, Var) or not isinstance(b, Var):
            values = literal_scalar(a, self._producers), literal_scalar(b, self._producers)
            return values[0] is not None and bool(values[0] == values[1])
        if (a, b) not in self._compared:
            self._compared[a, b] = False  # of a chain that is too long
            self._compared[a, b] = depth < _MOST_STEPS and self._equal_steps(a, b, depth)
        return self._compared[a, b]

    def _equal_steps(self, a: Var, b: Var, depth: int) -> bool:
        first, second = self._producers.get(a), self._producers.get(b)
        if first is None or second is None or first.name != second.name or a.aval != b.aval:
            return False
        if any(body.constants for step in (first, second) for body in step.bodies):
            return False
        if _parameters(first) != _parameters(second):
            return False
        if first.outputs.index(a) != second.outputs.index(b):
            return False
        pairs = zip(first.inputs, second.inputs, strict=True)
        return all(self(x, y, depth + 1) for x, y in pairs)


def _parameters(step: Step) -> str:
    # The functions that derive a custom rule differ between two calls of one function.
    return str(step.eqn.params.get("call_jaxpr", step.eqn.params))
