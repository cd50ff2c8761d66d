"""Patterns of neurons: the sums that they are fitted by, and the backward passes that use them.

A neuron is one output element of a whole affine map. `x @ W + h @ U + b` has one output and
patterns for both weights. Constant factors of the inputs and of the sums belong to the neuron:
its whole coefficients are replaced.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import PyTree

from jaxattn.jaxpr.capture import split_at
from jaxattn.jaxpr.flat import Step, Var
from jaxattn.jaxpr.propagation.layer_rules import quotient
from jaxattn.jaxpr.propagation.modified_layer import Change, Layer, transposed
from jaxattn.jaxpr.propagation.reverse import propagate
from jaxattn.jaxpr.propagation.score import check_path, structure_of
from jaxattn.jaxpr.propagation.walk import (
    Cotangent,
    Rules,
    Seed,
    Visit,
    cotangents_of,
    unsupported,
)
from jaxattn.jaxpr.structure.affine import Affine, affine_map
from jaxattn.jaxpr.structure.facts import Fact
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.primitive_classes import CONTRACTING, SUMMING


class Network:
    """A function of one example, and its contractions with constant weights, in order.

    Args:
        fn: maps `x` and `args` to an output.
        x: one example.
        args: further inputs.
        at: the name of an intermediate to propagate to instead of `x`.
    """

    def __init__(
        self, fn: Callable[..., Any], x: PyTree, args: tuple[PyTree, ...], at: str | None
    ) -> None:
        self.inputs: tuple[PyTree, ...] = (x, *args)
        if at is not None:
            example, whole, name = self.inputs, fn, at
            self.inputs = (split_at(whole, example, name)[0], *example)

            def fn(value: PyTree, *example: PyTree) -> PyTree:
                return split_at(whole, example, name)[1](value)

        explained = jax.tree.leaves(self.inputs[0])
        facts = [Fact()] * len(jax.tree.leaves(self.inputs))
        for i, leaf in enumerate(explained):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                facts[i] = Fact(active=True, depends_on_input=True)
        self.structure, self.treedef = structure_of(fn, self.inputs, facts)
        check_path(self.structure, self.structure.flat.outputs)
        self.weights = list(_find(self.structure, {}))

    def send_back(self, rules: Rules, seed: Seed) -> "NetworkCotangents":
        """Propagate cotangents from the outputs back to the explained input."""
        leaves = jax.tree.leaves(self.inputs)
        runs = [(jnp.asarray(leaf),) for leaf in leaves]
        outputs, cotangents, absorbed = propagate(rules, self.structure, runs, seed)
        output = jax.tree.unflatten(self.treedef, [value for (value,) in outputs])
        explained = len(jax.tree.leaves(self.inputs[0]))
        return NetworkCotangents(output, cotangents[:explained], absorbed)


class NetworkCotangents(NamedTuple):
    """The result of a backward pass through a network.

    Attributes:
        output: what the network returned.
        inputs: the cotangent of each leaf of the explained input; `None` for zero.
        absorbed: the sum of what was absorbed.
    """

    output: PyTree
    inputs: list[Array | None]
    absorbed: Array


class Weights(NamedTuple):
    """The constant operand of a contraction.

    Attributes:
        step: the contraction.
        shape: of the operand.
        dtype: of the operand.
        axes: those of its axes along which neurons differ.
        output_axes: the axes of the contraction's output that correspond to them.
    """

    step: Step
    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[int, ...]
    output_axes: tuple[int, ...]

    @property
    def units(self) -> tuple[int, ...]:
        """The shape of one number for each neuron, which broadcasts to the weights."""
        return tuple(n if axis in self.axes else 1 for axis, n in enumerate(self.shape))

    def over_outputs(self, values: Array) -> Array:
        """Broadcast one number for each neuron to all outputs that it computes."""
        out = self.step.outputs[0].aval
        others = tuple(axis for axis in range(len(self.shape)) if axis not in self.axes)
        order = [sorted(self.axes).index(axis) for axis in self.axes]
        numbers = values.astype(out.dtype).squeeze(others).transpose(order)
        return jax.lax.broadcast_in_dim(numbers, out.shape, self.output_axes)


def _find(structure: Structure, varies: dict[Var, bool]) -> Iterator[Weights]:
    """Find the contractions with weights that do not depend on the example.

    Args:
        structure: the function.
        varies: for each input that does not depend on the example, whether it differs between the
            steps of a loop.
    """
    varies = varies | dict.fromkeys(structure.flat.constants, False)
    for step in structure.flat.steps:
        if all(v in varies for v in step.variables):
            varies |= dict.fromkeys(step.outputs, any(varies[v] for v in step.variables))
        for inner in structure.inner.get(step, []):
            yield from _find(inner, _inside(step, inner, varies))
        if step.name in CONTRACTING and structure.contracts(step):
            (position,) = (i for i, a in enumerate(step.inputs) if not structure.is_active(a))
            operand = step.inputs[position]
            if operand not in varies or (step.name != "dot_general" and position == 0):
                continue
            if varies[operand]:
                raise ValueError(
                    f"{step} has different weights at each step of a loop, so it has no pattern. "
                    "Unroll the loop."
                )
            units = _units(step, position)
            yield Weights(step, operand.shape, operand.aval.dtype, units.axes, units.output_axes)


def _inside(step: Step, inner: Structure, varies: dict[Var, bool]) -> dict[Var, bool]:
    """Return `varies` for the inputs of a loop's body, or of a branch."""
    atoms = step.inputs if step.name == "scan" else step.inputs[1:]
    n_consts, n_carry = step.counts if step.name == "scan" else (len(atoms), 0)
    return {
        var: varies[atom] or i >= n_consts
        for i, (var, atom) in enumerate(zip(inner.flat.inputs, atoms, strict=True))
        if atom in varies and not n_consts <= i < n_consts + n_carry
    }


class _Units(NamedTuple):
    """The axes along which neurons differ; see `Weights`."""

    axes: tuple[int, ...]
    output_axes: tuple[int, ...]


def _units(step: Step, position: int) -> _Units:
    """Return the axes along which the neurons of a contraction differ."""
    numbers = step.eqn.params["dimension_numbers"]
    if step.name == "conv_general_dilated":
        return _Units((numbers.rhs_spec[0],), (numbers.out_spec[1],))
    contracted, batch = numbers[0][position], tuple(numbers[1][position])
    rank, last = len(step.inputs[position].aval.shape), len(step.outputs[0].shape)
    free = tuple(axis for axis in range(rank) if axis not in (*contracted, *batch))
    start = len(batch) if position == 0 else last - len(free)
    return _Units((*batch, *free), (*range(len(batch)), *range(start, start + len(free))))


class Neurons(Rules):
    """Rules for a pass from layer to layer; that of layers with patterns is left open.

    Attributes:
        weights: the weights of the network, in order.
        index: the position of each contraction among them.
    """

    def __init__(self, network: Network) -> None:
        structure = network.structure
        active = filter(structure.is_active, structure.flat.outputs)
        super().__init__(next((v.aval.dtype for v in active), jnp.dtype(jnp.float32)))
        self.weights = network.weights
        self.index = {weights.step: i for i, weights in enumerate(network.weights)}

    def __call__(self, visit: Visit) -> list[Cotangent]:
        """Return the cotangents of a step's operands, by its layer or by its derivative."""
        structure, step = visit.structure, visit.step
        if step.name == "while":
            raise ValueError(unsupported(step, "PatternNet"))
        of_operands: list[Cotangent] = []
        rest = list(visit.cotangents)
        for i, (var, cotangent) in enumerate(zip(step.outputs, visit.cotangents, strict=True)):
            if cotangent is None or not structure.is_preactivation(var):
                continue
            affine = affine_map(structure, var)
            contractions = [s for s in affine.steps if structure.contracts(s)]
            if all(s in self.index for s in contractions):
                affine = _without_means(structure, affine, contractions)
                layer = Layer(structure, affine, visit.read)
                indices = [self.index[s] for s in contractions]
                of_operands += cotangents_of(affine.inputs, self.layer(layer, indices, cotangent))
                rest[i] = None
        if any(cotangent is not None for cotangent in rest):
            of_operands += self.derivative(dataclasses.replace(visit, cotangents=rest))
        return of_operands

    @abc.abstractmethod
    def layer(self, layer: Layer, indices: list[int], cotangent: Array) -> Sequence[Array]:
        """Return the cotangents of a layer's inputs.

        Args:
            layer: the layer.
            indices: the positions of its contractions' weights in `weights`.
            cotangent: of its output.
        """

    def derivative(self, visit: Visit) -> list[Cotangent]:
        """Return the cotangents of the operands of any other step."""
        return visit.transpose()


def _replacing(patterns: Sequence[Any], multiply: bool = False) -> Change:
    """Replace a layer's coefficients by patterns, or multiply them."""
    rest = iter(patterns)

    def change(weight: Array, contracts: bool) -> Array:
        pattern = next(rest) if contracts else (weight != 0)
        pattern = pattern.astype(weight.dtype)
        return pattern * weight if multiply else pattern

    return change


def _without_means(structure: Structure, layer: Affine, contractions: list[Step]) -> Affine:
    """Take the factor of a mean before the weights out of a layer: pooling keeps its derivative."""
    inputs: dict[Var, None] = {}
    apart: set[Step] = set()
    for contraction in contractions:
        (operand,) = structure.actives(contraction)
        below, source = [], operand
        while source not in layer.inputs:
            below.append(structure.producers[source])
            (source,) = structure.actives(below[-1])
        producer = structure.producers.get(source)
        if below and producer is not None and producer.name in SUMMING:
            source = operand
            apart.update(below)
        inputs[source] = None
    steps = [step for step in layer.steps if step not in apart]
    return dataclasses.replace(layer, inputs=list(inputs), steps=steps)


class PatternNet(Neurons):
    """The backward pass of PatternNet or PatternAttribution.

    Args:
        network: the network.
        patterns: one array for each of its weights.
        attribution: whether weights are multiplied by their patterns (PatternAttribution), not
            replaced by them (PatternNet).
    """

    def __init__(self, network: Network, patterns: Sequence[Any], attribution: bool) -> None:
        super().__init__(network)
        self.patterns, self.attribution = patterns, attribution

    def layer(self, layer: Layer, indices: list[int], cotangent: Array) -> Sequence[Array]:
        """Apply the transpose of the layer with patterns for coefficients."""
        change = _replacing([self.patterns[i] for i in indices], self.attribution)
        run = layer.with_coefficients(change)
        return transposed(run, layer.inputs, cotangent.astype(layer.dtype))


class Sums(Neurons):
    """Sums over all outputs of each neuron, as derivatives with respect to probes.

    What is absorbed is linear in the probes, so JAX itself sums their derivatives over places,
    loops and examples.

    Args:
        network: the network.
        probes: zeros for each weight, of the shapes of the numerators and of the denominators that
            are summed.
    """

    def __init__(self, network: Network, probes: tuple[Sequence[Array], Sequence[Array]]) -> None:
        super().__init__(network)
        self.numerators, self.denominators = probes

    def derivative(self, visit: Visit) -> list[Cotangent]:
        """Return zeros: only which layers are reached matters."""
        return cotangents_of(visit.actives, [self._zeros(var) for var in visit.actives])

    def layer(self, layer: Layer, indices: list[int], cotangent: Array) -> Sequence[Array]:
        """Absorb the sums of a layer's neurons."""
        output, bias = layer.output, layer.bias()
        self.measure(layer, indices, output, output if bias is None else output - bias)
        return [self._zeros(var) for var in layer.affine.inputs]

    @abc.abstractmethod
    def measure(self, layer: Layer, indices: list[int], output: Array, linear: Array) -> None:
        """Absorb the sums of a layer's neurons, given their outputs and these without biases."""

    def over_outputs(self, layer: Layer, indices: list[int], values: Sequence[Array]) -> Array:
        """Broadcast one number for each neuron to all outputs of a layer."""
        structure = layer.structure
        contractions = [self.weights[i].step for i in indices]
        after = [
            step
            for step in layer.affine.steps
            if structure.is_preactivation(step.outputs[0]) and step not in contractions
        ]
        inputs = [step.outputs[0] for step in contractions]
        affine = dataclasses.replace(layer.affine, inputs=inputs, steps=after)
        sums = dataclasses.replace(layer, affine=affine).with_coefficients(_replacing([]))
        return sums(*(self.weights[i].over_outputs(values[i]) for i in indices))

    def _zeros(self, var: Var) -> Array:
        return jnp.zeros(var.shape, self.dtype)


class MeanSums(Sums):
    """The sum of each neuron's linear part u, and the number of its outputs."""

    def measure(self, layer: Layer, indices: list[int], output: Array, linear: Array) -> None:
        """Absorb both sums."""
        numerator = linear * self.over_outputs(layer, indices, self.numerators)
        self.absorb(numerator + self.over_outputs(layer, indices, self.denominators))


class PatternSums(Sums):
    """The sums of each neuron's inputs and of its linear part u, both times u - mean.

    Args:
        network: the network.
        probes: zeros; the numerators have the shapes of the weights.
        means: the mean of u for each neuron.
        positive: whether only positive outputs count.
    """

    def __init__(
        self,
        network: Network,
        probes: tuple[Sequence[Array], Sequence[Array]],
        means: Sequence[Array],
        positive: bool,
    ) -> None:
        super().__init__(network, probes)
        self.means, self.positive = means, positive

    def measure(self, layer: Layer, indices: list[int], output: Array, linear: Array) -> None:
        """Absorb both sums."""
        ones = self.over_outputs(layer, indices, [jnp.ones_like(mean) for mean in self.means])
        mean = quotient(self.over_outputs(layer, indices, self.means), ones)
        centred = linear - mean
        if self.positive:
            centred = jnp.where(output > 0, centred, 0)
        run = layer.with_coefficients(_replacing([self.numerators[i] for i in indices]))
        self.absorb(centred * run(*layer.inputs))
        denominators = self.over_outputs(layer, indices, self.denominators)
        self.absorb(centred * linear * denominators)
