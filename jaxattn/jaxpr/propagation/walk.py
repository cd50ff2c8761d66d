"""Walk through a function forwards and backwards, step by step, under a set of rules.

The forward pass computes the function and keeps what the backward pass reads. In the backward pass
a rule turns the cotangents of a step's outputs into cotangents of its operands. A *cotangent* is
whatever the rules propagate: relevance, a DeepLIFT multiplier, a signal. `None` is a zero.

Both passes are ordinary JAX code. They can be jitted, vmapped, sharded, and differentiated in both
modes and as often as needed.
"""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxattn.jaxpr.flat import Atom, Step, Var
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.structure.graph import Structure

#: The values of one variable in each run of the function: at the input, and perhaps at a baseline.
Runs: TypeAlias = tuple[ArrayLike, ...]
#: Returns the value of an operand.
Read: TypeAlias = Callable[[Atom], ArrayLike]
#: Computes the cotangents of a function's outputs from their values.
Seed: TypeAlias = Callable[[list[Runs]], Sequence[Array | None]]


class Cotangent(NamedTuple):
    """A cotangent and the operand that it belongs to."""

    operand: Atom
    value: Array


class Propagated(NamedTuple):
    """The result of a forward and a backward pass.

    Attributes:
        outputs: the function's outputs.
        inputs: the cotangents of its inputs.
        absorbed: the sum of what was absorbed by values that do not depend on the input.
    """

    outputs: list[Runs]
    inputs: list[Array | None]
    absorbed: Array


class Stored(NamedTuple):
    """The values that a loop stores for the backward pass, stacked over its steps.

    Attributes:
        values: the values of its body that its plan names.
        loops: the same for each loop in its body.
    """

    values: list[Runs]
    loops: list["Stored"]


@dataclass(eq=False)
class Memory:
    """The values of one evaluation of a function, in all runs.

    Attributes:
        structure: the function.
        number: the number of runs.
        values: the values by variable.
        reads: the variables that were read since the forward pass.
        bodies: the values in each loop's body at its first step; while planning only.
        stored: what each loop stored; not while planning.
    """

    structure: Structure
    number: int
    values: dict[Var, Runs] = field(default_factory=dict)
    reads: set[Var] = field(default_factory=set)
    bodies: dict[Step, "Memory"] = field(default_factory=dict)
    stored: dict[Step, Stored] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for var, constant in self.structure.flat.constants.items():
            self.values[var] = (constant,) * self.number

    def __getitem__(self, atom: Atom) -> Runs:
        """Return an operand's value in all runs."""
        if not isinstance(atom, Var):
            return (atom.val,) * self.number
        self.reads.add(atom)
        if atom not in self.values:  # in the backward pass through a loop: recompute it
            self.compute(self.structure.producers[atom])
        return self.values[atom]

    def compute(self, step: Step) -> None:
        """Compute a step in all runs; once where the runs cannot differ."""
        operands = [self[atom] for atom in step.inputs]
        same = all(value is runs[0] for runs in operands for value in runs)
        with jax.named_scope(step.stack):
            outputs = [
                bind(step.eqn, [runs[i] for runs in operands])
                for i in range(1 if same else self.number)
            ]
        for var, *runs in zip(step.outputs, *outputs, strict=True):
            self.values[var] = tuple(runs) * (self.number if same else 1)


@dataclass(frozen=True, eq=False)
class Visit:
    """A step that the backward pass has reached.

    Attributes:
        structure: the function that the step belongs to.
        step: the step.
        memory: the values of the forward pass.
        cotangents: of the step's outputs.
    """

    structure: Structure
    step: Step
    memory: Memory
    cotangents: list[Array | None]

    @property
    def actives(self) -> list[Var]:
        """The operands through which the step depends on the input, each once."""
        return self.structure.actives(self.step)

    @property
    def output(self) -> Var:
        """The first output."""
        return self.step.outputs[0]

    @property
    def cotangent(self) -> Array:
        """The cotangent of the first output."""
        first = self.cotangents[0]
        assert first is not None
        return first

    def read(self, atom: Atom) -> ArrayLike:
        """Return an operand's value at the input."""
        return self.memory[atom][0]

    def runs(self, var: Var) -> list[Array]:
        """Return the value of a variable that depends on the input, in all runs."""
        values = [value for value in self.memory[var] if isinstance(value, Array)]
        assert len(values) == self.memory.number
        return values

    def array(self, var: Var) -> Array:
        """Return the value of a variable that depends on the input, at the input."""
        return self.runs(var)[0]

    def transpose(self) -> list[Cotangent]:
        """Apply the transpose of the step's ordinary derivative."""
        values = transpose_step(self.step, self.actives, self.read, self.cotangents)
        return cotangents_of(self.actives, values)


class Rules(abc.ABC):
    """Rules that turn the cotangents of a step's outputs into those of its operands.

    Args:
        dtype: of all cotangents, whatever precision a step in between computes in.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype
        self._absorbed: list[list[Array]] = [[]]

    @abc.abstractmethod
    def __call__(self, visit: Visit) -> list[Cotangent]:
        """Return the cotangents of a step's operands."""

    def absorb(self, value: Array) -> None:
        """Add up a cotangent that belongs to a value that does not depend on the input."""
        self._absorbed[-1].append(jnp.sum(value).astype(self.dtype))

    def enter(self) -> None:
        """Begin a separate sum, for the body of a loop or a branch."""
        self._absorbed.append([])

    def leave(self) -> Array:
        """End the separate sum and return it."""
        return sum(self._absorbed.pop(), start=jnp.zeros((), self.dtype))


class Walk(abc.ABC):
    """A forward and a backward pass; how loops and branches are passed is left to subclasses."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    @abc.abstractmethod
    def forward_scan(self, structure: Structure, step: Step, memory: Memory) -> list[Runs]:
        """Compute the outputs of a loop, and remember what the backward pass needs."""

    @abc.abstractmethod
    def backward_scan(self, visit: Visit) -> list[Cotangent]:
        """Return the cotangents of a loop's operands."""

    @abc.abstractmethod
    def backward_cond(self, visit: Visit) -> list[Cotangent]:
        """Return the cotangents of a branch's operands."""

    def __call__(self, structure: Structure, inputs: Sequence[Runs], seed: Seed) -> Propagated:
        """Run both passes through a whole function."""
        memory = self.forward(structure, inputs)
        outputs = [memory[atom] for atom in structure.flat.outputs]
        return Propagated(outputs, *self.inside(structure, memory, seed(outputs)))

    def forward(self, structure: Structure, inputs: Sequence[Runs]) -> Memory:
        """Compute a function in all runs."""
        memory = Memory(structure, len(inputs[0]) if inputs else 1)
        memory.values.update(zip(structure.flat.inputs, inputs, strict=True))
        for step in structure.flat.steps:
            repeats = step.name == "scan" and step.eqn.params["length"] > 0
            if repeats and any(map(structure.is_active, step.outputs)):
                with jax.named_scope(step.stack):
                    outputs = self.forward_scan(structure, step, memory)
                memory.values.update(zip(step.outputs, outputs, strict=True))
            else:
                memory.compute(step)
        memory.reads.clear()
        return memory

    def inside(
        self, structure: Structure, memory: Memory, cotangents: Sequence[Array | None]
    ) -> tuple[list[Array | None], Array]:
        """Return the cotangents of a function's inputs, and what was absorbed inside of it."""
        self.rules.enter()
        inputs = self.backward(structure, memory, cotangents)
        return inputs, self.rules.leave()

    def backward(
        self, structure: Structure, memory: Memory, cotangents: Sequence[Array | None]
    ) -> list[Array | None]:
        """Return the cotangents of a function's inputs, given those of its outputs."""
        sums: dict[Var, Array] = {}

        def add(operand: Atom, value: Array) -> None:
            if not isinstance(operand, Var) or not structure.is_active(operand):
                self.rules.absorb(value)
                return
            value = _summed_to(value.astype(self.rules.dtype), operand.shape)
            sums[operand] = sums[operand] + value if operand in sums else value

        for atom, value in zip(structure.flat.outputs, cotangents, strict=True):
            if value is not None:
                add(atom, value)
        for step in reversed(structure.flat.steps):
            of_outputs = [sums.pop(var, None) for var in step.outputs]
            if all(value is None for value in of_outputs):
                continue
            with jax.named_scope(step.stack):
                of_operands = self._backward_step(Visit(structure, step, memory, of_outputs))
            for operand, value in of_operands:
                add(operand, value)
        return [sums.get(var) for var in structure.flat.inputs]

    def _backward_step(self, visit: Visit) -> list[Cotangent]:
        step = visit.step
        if step.name == "cond":
            return self.backward_cond(visit)
        if step.name != "scan":
            return self.rules(visit)
        if step.eqn.params["length"] > 0:
            return self.backward_scan(visit)
        n_consts, n_carry = step.counts
        init = step.inputs[n_consts : n_consts + n_carry]
        return cotangents_of(init, visit.cotangents[:n_carry])


def cotangents_of(operands: Sequence[Atom], values: Sequence[Array | None]) -> list[Cotangent]:
    """Pair operands with their cotangents, without those that are zero."""
    pairs = zip(operands, values, strict=True)
    return [Cotangent(operand, value) for operand, value in pairs if value is not None]


def transpose_step(
    step: Step,
    actives: Sequence[Var],
    read: Read,
    cotangents: Sequence[Array | None],
    apply: Callable[..., Sequence[Array]] | None = None,
) -> list[Array]:
    """Apply the transpose of a step's ordinary derivative.

    Args:
        step: the step.
        actives: the operands to differentiate with respect to.
        read: returns the value of an operand.
        cotangents: of the step's outputs.
        apply: computes the outputs of the step from its operands, if not its primitive.

    Returns:
        the cotangents of `actives`.
    """

    def run(*inputs: Array) -> list[Array]:
        values: dict[Atom, ArrayLike] = dict(zip(actives, inputs, strict=True))
        operands = [values[a] if a in values else read(a) for a in step.inputs]
        outputs = bind(step.eqn, operands) if apply is None else apply(*operands)
        return [o for o, given in zip(outputs, cotangents, strict=True) if given is not None]

    outputs, transpose = jax.vjp(run, *(read(v) for v in actives))
    given = [cotangent for cotangent in cotangents if cotangent is not None]
    return list(transpose([g.astype(y.dtype) for y, g in zip(outputs, given, strict=True)]))


def unsupported(step: Step, method: str) -> str:
    """Return the message of the error that a method has no rule for a step."""
    if step.name == "while":
        return (
            f"{step} runs for a number of iterations that depends on the data, so nothing can be "
            "propagated back through it: use a fixed number (jax.lax.scan, or jax.lax.fori_loop "
            "with static bounds), or a method that only evaluates fn, such as occlusion"
        )
    return (
        f"{method} has no rule for {step}: make the value a constant for relevance "
        "(jax.lax.stop_gradient), or use a method that only evaluates or differentiates fn, such "
        "as occlusion or integrated_gradients"
    )


def _summed_to(value: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an operand was broadcast."""
    if value.shape == shape:
        return value
    if not shape:
        return jnp.sum(value)
    longer = tuple(i for i, (n, m) in enumerate(zip(value.shape, shape, strict=True)) if n != m)
    return jnp.sum(value, longer, keepdims=True)
