"""Affine maps inside of a loop's body: the values that they read, and their computation."""

from collections.abc import Collection, Iterable, Mapping

from jaxattn.jaxpr.flat import Atom, Flat, Step, Var
from jaxattn.jaxpr.interpreter import Value, bind
from jaxattn.jaxpr.structure.primitive_classes import ADDING, CONTRACTING, INDEXING, LAYOUT

_PASSING = LAYOUT | ADDING | {"neg", "reduce_sum"}


def dependents(flat: Flat, of: Iterable[Var], constants: Collection[Var] = ()) -> set[Var]:
    """Return the values that depend on some values, these included.

    Args:
        flat: the function.
        of: the values.
        constants: values that count as constants.
    """
    found = set(of).difference(constants)
    for step in flat.steps:
        if not found.isdisjoint(step.variables):
            found.update(v for v in step.outputs if v not in constants)
    return found


def read(atom: Atom, env: Mapping[Var, Value]) -> Value:
    """Return the value of an operand."""
    return env[atom] if isinstance(atom, Var) else atom.val


class AffineMap:
    """The affine map whose output a value is, as far back as the steps are affine.

    A step that masks padding, `where(valid, x, 0)`, counts as its operand.

    Attributes:
        sources: the varying values that it is a function of: inputs, or results of other steps.

    Args:
        flat: the function or body.
        output: the value.
        inputs: the inputs of the function that vary.
        constants: values that count as constants, such as a reset gate.
    """

    def __init__(
        self, flat: Flat, output: Var, inputs: Iterable[Var], constants: Collection[Var] = ()
    ) -> None:
        producers = {var: step for step in flat.steps for var in step.outputs}
        self.output = output
        self._varying = dependents(flat, inputs, constants)
        sources: dict[Var, None] = {}
        needed: set[Step] = set()
        queue, visited = [output], {output, *constants}
        while queue:
            var = queue.pop(0)
            step = producers.get(var)
            operands = [] if step is None else self._operands(step)
            if var in self._varying and not operands:
                sources[var] = None
                continue
            if step is None:
                continue
            needed.add(step)
            is_mask = self._masked(step) is not None
            new = [v for v in (operands if is_mask else step.variables) if v not in visited]
            visited.update(new)
            queue += new
        self.sources = list(sources)
        self._steps = [step for step in flat.steps if step in needed]

    @property
    def contracts(self) -> bool:
        """Return whether it multiplies varying values by matrices."""
        return any(
            step.name in CONTRACTING and not self._varying.isdisjoint(step.variables)
            for step in self._steps
        )

    def __call__(self, values: Mapping[Var, Value]) -> Value:
        """Return the output for values of the sources and of all constants."""
        env = dict(values)
        for step in self._steps:
            masked = self._masked(step)
            if masked is not None:
                env[step.outputs[0]] = env[masked]
                continue
            outputs = bind(step.eqn, [read(atom, env) for atom in step.inputs])
            env.update((v, o) for v, o in zip(step.outputs, outputs, strict=True) if v not in env)
        return env[self.output]

    def _operands(self, step: Step) -> list[Var]:
        """Return the varying operands of an affine step; none for a step that is not affine."""
        operands = [a for a in step.inputs if isinstance(a, Var) and a in self._varying]
        if step.name == "select_n":
            masked = self._masked(step)
            return (
                operands
                if masked is None and step.inputs[0] not in operands
                else ([] if masked is None else [masked])
            )
        if step.name in CONTRACTING or step.name == "mul" or step.name in INDEXING:
            return operands if len(operands) == 1 and operands[0].is_floating else []
        if step.name == "div":
            return operands if operands == [step.inputs[0]] else []
        floating = all(v.is_floating for v in operands)
        return operands if floating and step.name in _PASSING and not step.bodies else []

    def _masked(self, step: Step) -> Var | None:
        """Return the one varying operand of a selection by a varying mask."""
        if step.name != "select_n" or step.inputs[0] not in self._varying:
            return None
        cases = [a for a in step.inputs[1:] if isinstance(a, Var) and a in self._varying]
        return cases[0] if len(cases) == 1 and cases[0].is_floating else None


def contracts_between(flat: Flat, of: Var, var: Var) -> bool:
    """Return whether a matrix product lies between a value and a later one.

    Args:
        flat: the function or body.
        of: the earlier value.
        var: the later value.
    """
    varying = dependents(flat, [of])
    producers = {output: step for step in flat.steps for output in step.outputs}
    queue, visited = [var], {var, of}
    while queue:
        step = producers.get(queue.pop())
        if step is None or varying.isdisjoint(step.variables):
            continue
        if step.name in CONTRACTING:
            return True
        new = [v for v in step.variables if v in varying and v not in visited]
        visited.update(new)
        queue += new
    return False
