"""What each neuron of a layer listens for: its pattern, fitted from data, and the ways back by it.

A neuron is one cell of a whole affine map: `x @ W + h @ U + b` has one output and patterns for both
weights. What the map scales its inputs and its sums by is a part of the neuron, too: its whole
coefficients are replaced.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxattn.jaxpr.capture import split_at
from jaxattn.jaxpr.flat import Atom, Step, Var
from jaxattn.jaxpr.propagation import modified_layer as maps
from jaxattn.jaxpr.propagation.layer_rules import quotient
from jaxattn.jaxpr.propagation.lrp import pull, refusal
from jaxattn.jaxpr.propagation.reverse import Memory, Reverse, Rules, Runs
from jaxattn.jaxpr.propagation.score import check_path, structure_of
from jaxattn.jaxpr.structure.affine import Affine, affine_map
from jaxattn.jaxpr.structure.facts import Fact
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.primitive_classes import CONTRACTING, SUMMING

Shares = list[tuple[Atom, Any]]


class Network:
    """A function of one example, and its contractions with constant weights, in order.

    Args:
        fn: maps `x` and `args` to an output.
        x: one example.
        args: further inputs.
        at: the name of an intermediate to go back to instead of `x`.
    """

    def __init__(self, fn: Callable[..., Any], x: Any, args: tuple[Any, ...], at: str | None):
        self.inputs: tuple[Any, ...] = (x, *args)
        if at is not None:
            example, whole, name = self.inputs, fn, at
            self.inputs = (split_at(whole, example, name)[0], *example)

            def fn(value: Any, *example: Any) -> Any:
                return split_at(whole, example, name)[1](value)

        explained = jax.tree.leaves(self.inputs[0])
        facts = [Fact()] * len(jax.tree.leaves(self.inputs))
        for i, leaf in enumerate(explained):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                facts[i] = Fact(active=True, depends_on_input=True)
        self.structure, self.treedef = structure_of(fn, self.inputs, facts)
        check_path(self.structure, self.structure.flat.outputs)
        self.weights = list(_find(self.structure, {}))

    def send_back(
        self, rules: Rules, seed: Callable[[list[Runs]], list[Any]]
    ) -> tuple[Any, list[Any], Any]:
        """The answer; what each leaf of the input got; and what was absorbed."""
        leaves = jax.tree.leaves(self.inputs)
        outputs, got, absorbed = Reverse(rules)(self.structure, [(x,) for x in leaves], seed)
        answer = jax.tree.unflatten(self.treedef, [value for (value,) in outputs])
        return answer, got[: len(jax.tree.leaves(self.inputs[0]))], absorbed


class Weights(NamedTuple):
    """The constant operand of a contraction.

    Attributes:
        step: the contraction.
        shape: the operand's.
        dtype: the operand's.
        axes: which of its axes tell neurons apart.
        cells: which axes of what the contraction gives these are.
    """

    step: Step
    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[int, ...]
    cells: tuple[int, ...]

    @property
    def units(self) -> tuple[int, ...]:
        """The shape of one number for each neuron, which broadcasts to the weights."""
        return tuple(n if axis in self.axes else 1 for axis, n in enumerate(self.shape))

    def over_cells(self, values: Any) -> Any:
        """Each neuron's number at all the cells that it makes."""
        out = self.step.outputs[0].aval
        others = tuple(axis for axis in range(len(self.shape)) if axis not in self.axes)
        order = [sorted(self.axes).index(axis) for axis in self.axes]
        numbers = values.astype(out.dtype).squeeze(others).transpose(order)
        return jax.lax.broadcast_in_dim(numbers, out.shape, self.cells)


def _find(structure: Structure, turns: dict[Var, bool]) -> Iterator[Weights]:
    """The contractions with constant weights, whatever the example.

    `turns` holds the inputs that are constant; those that are another constant at each turn of a
    loop are true.
    """
    turns = turns | dict.fromkeys(structure.flat.constants, False)
    for step in structure.flat.steps:
        if all(v in turns for v in step.variables):
            turns |= dict.fromkeys(step.outputs, any(turns[v] for v in step.variables))
        for inner in structure.inner.get(step, []):
            yield from _find(inner, _inside(step, inner, turns))
        if step.name in CONTRACTING and structure.contracts(step):
            (position,) = (i for i, a in enumerate(step.inputs) if not structure.is_active(a))
            operand = step.inputs[position]
            if operand not in turns or (step.name != "dot_general" and position == 0):
                continue
            if turns[operand]:
                raise ValueError(
                    f"{step} takes other weights at each turn of a loop, and has no pattern: "
                    "write the loop's turns one after the other"
                )
            axes, cells = _units(step, position)
            yield Weights(step, operand.shape, operand.aval.dtype, axes, cells)


def _inside(step: Step, inner: Structure, turns: dict[Var, bool]) -> dict[Var, bool]:
    """Which inputs of a loop's body, or of a branch, are constant."""
    atoms = step.inputs if step.name == "scan" else step.inputs[1:]
    n_consts, n_carry = step.counts if step.name == "scan" else (len(atoms), 0)
    return {
        var: turns[atom] or i >= n_consts
        for i, (var, atom) in enumerate(zip(inner.flat.inputs, atoms, strict=True))
        if atom in turns and not n_consts <= i < n_consts + n_carry
    }


def _units(step: Step, position: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of the weights that tell neurons apart, and where they are in the output."""
    numbers = step.eqn.params["dimension_numbers"]
    if step.name == "conv_general_dilated":
        return (numbers.rhs_spec[0],), (numbers.out_spec[1],)
    contracted, batch = numbers[0][position], tuple(numbers[1][position])
    rank, last = len(step.inputs[position].aval.shape), len(step.outputs[0].shape)
    free = tuple(axis for axis in range(rank) if axis not in (*contracted, *batch))
    start = len(batch) if position == 0 else last - len(free)
    return (*batch, *free), (*range(len(batch)), *range(start, start + len(free)))


class Neurons(abc.ABC):
    """The rules of one walk back from layer to layer; what a layer gives is left open.

    Attributes:
        index: the place of a contraction among those with constant weights.
    """

    def __init__(self, network: Network) -> None:
        self.weights = network.weights
        self.index = {weights.step: i for i, weights in enumerate(network.weights)}
        structure = network.structure
        active = filter(structure.is_active, structure.flat.outputs)
        self.dtype: Any = next((v.aval.dtype for v in active), jnp.float32)
        self._absorbed: list[list[Any]] = [[]]

    def absorb(self, given: Any) -> None:
        """Adds up."""
        self._absorbed[-1].append(jnp.sum(given).astype(self.dtype))

    def enter(self) -> None:
        """Begins a sum of its own, for the inside of a loop or a branch."""
        self._absorbed.append([])

    def leave(self) -> Any:
        """Ends that sum, and answers it."""
        return sum(self._absorbed.pop(), start=jnp.zeros((), self.dtype))

    def __call__(
        self, structure: Structure, step: Step, memory: Memory, given: list[Any]
    ) -> Shares:
        """What the operands of a step get: by its layer if it has patterns, else its slope."""

        def read(atom: Atom) -> Any:
            return memory[atom][0]

        if step.name == "while":
            raise ValueError(refusal(step, "PatternNet"))
        shares: Shares = []
        rest = list(given)
        for i, (var, value) in enumerate(zip(step.outputs, given, strict=True)):
            if value is not None and structure.is_preactivation(var):
                layer = affine_map(structure, var)
                steps = [s for s in layer.steps if structure.contracts(s)]
                if all(s in self.index for s in steps):
                    layer = _without_means(structure, layer, steps)
                    weights = [self.index[s] for s in steps]
                    found = self.layer(structure, layer, weights, read, value)
                    shares += zip(layer.inputs, found, strict=True)
                    rest[i] = None
        if any(value is not None for value in rest):
            actives = structure.actives(step)
            shares += zip(actives, self.slope(step, actives, read, rest), strict=True)
        return shares

    @abc.abstractmethod
    def layer(
        self, structure: Structure, layer: Affine, weights: list[int], read: maps.Read, given: Any
    ) -> Sequence[Any]:
        """What the inputs of a layer get; `weights` are the places of its contractions."""

    def slope(
        self, step: Step, actives: Sequence[Var], read: maps.Read, given: list[Any]
    ) -> Sequence[Any]:
        """What the operands of any other step get."""
        return pull(step, actives, read, given)


def _with(patterns: Sequence[Any], attribution: bool = False) -> maps.Change:
    """Puts patterns in the place of a layer's coefficients, or multiplies by them."""
    rest = iter(patterns)

    def change(weight: Any, contracts: bool) -> Any:
        pattern = next(rest) if contracts else (weight != 0)
        pattern = pattern.astype(weight.dtype)
        return pattern * weight if attribution else pattern

    return change


def _without_means(structure: Structure, layer: Affine, contractions: list[Step]) -> Affine:
    """The map without what turns a sum into a mean before its weights: a pool keeps its slope."""
    inputs: dict[Var, None] = {}
    apart: set[Step] = set()
    for contraction in contractions:
        (operand,) = structure.actives(contraction)
        below, source = [], operand
        while source not in layer.inputs:
            below.append(structure.producers[source])
            (source,) = structure.actives(below[-1])
        maker = structure.producers.get(source)
        if below and maker is not None and maker.name in SUMMING:
            source = operand
            apart.update(below)
        inputs[source] = None
    steps = [step for step in layer.steps if step not in apart]
    return dataclasses.replace(layer, inputs=list(inputs), steps=steps)


class PatternNet(Neurons):
    """The way back of the gradient, with patterns instead of weights, or times them."""

    def __init__(self, network: Network, patterns: Sequence[Any], attribution: bool) -> None:
        super().__init__(network)
        self.patterns, self.attribution = patterns, attribution

    def layer(
        self, structure: Structure, layer: Affine, weights: list[int], read: maps.Read, given: Any
    ) -> Sequence[Any]:
        """What the layer with other coefficients sends back."""
        change = _with([self.patterns[i] for i in weights], self.attribution)
        run = maps.changed(structure, layer, read, change)
        given = given.astype(layer.output.aval.dtype)
        return maps.transposed(run, [read(v) for v in layer.inputs], given)


class Sums(Neurons):
    """Sums over all cells that a neuron makes, as slopes with respect to `probes`.

    What is absorbed is linear in the probes, so that JAX itself sums their slopes over places,
    loops and examples.

    Args:
        network: the function.
        probes: zeros, a pair of lists: without `means` two numbers for each neuron, whose slopes
            are the sum of its linear part u and the number of cells; else an array like the
            weights, of inputs times u - mean, and a number for each neuron, of u times u - mean.
        positive: whether only cells above zero count; for the means all do.
        means: the mean of u for each neuron.
    """

    def __init__(
        self, network: Network, probes: Any, positive: bool, means: Sequence[Any] | None
    ) -> None:
        super().__init__(network)
        self.probes, self.positive, self.means = probes, positive, means

    def slope(
        self, step: Step, actives: Sequence[Var], read: maps.Read, given: list[Any]
    ) -> Sequence[Any]:
        """Nothing: only where the way leads counts."""
        return [jnp.zeros(v.shape, self.dtype) for v in actives]

    def layer(
        self, structure: Structure, layer: Affine, weights: list[int], read: maps.Read, given: Any
    ) -> Sequence[Any]:
        """Measures the layer."""
        made = [self.weights[i].step for i in weights]
        after = [
            s for s in layer.steps if structure.is_preactivation(s.outputs[0]) and s not in made
        ]
        sums = dataclasses.replace(layer, inputs=[s.outputs[0] for s in made], steps=after)

        def over_cells(values: Sequence[Any]) -> Any:
            spread = [self.weights[i].over_cells(values[i]) for i in weights]
            return maps.changed(structure, sums, read, _with([]))(*spread)

        y, bias = read(layer.output), maps.shift(structure, layer, read)
        u = y if bias is None else y - bias
        first, second = self.probes
        if self.means is None:
            self.absorb(u * over_cells(first) + over_cells(second))
        else:
            ones = over_cells([jnp.ones_like(mean) for mean in self.means])
            centred = u - quotient(over_cells(self.means), ones)
            if self.positive:
                centred = jnp.where(y > 0, centred, 0)
            inputs = [read(v) for v in layer.inputs]
            run = maps.changed(structure, layer, read, _with([first[i] for i in weights]))
            self.absorb(centred * run(*inputs))
            self.absorb(centred * u * over_cells(second))
        return [jnp.zeros(v.shape, self.dtype) for v in layer.inputs]
