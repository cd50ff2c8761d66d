"""Layer-wise relevance propagation through any function: the rule of each kind of step."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxattn.jaxpr.flat import Step, Var, is_elementwise
from jaxattn.jaxpr.propagation.layer_rules import LRPRule, redistribute, redistribute_equally
from jaxattn.jaxpr.propagation.modified_layer import Layer
from jaxattn.jaxpr.propagation.products import (
    Attention,
    Division,
    Gates,
    ProductRules,
    redistribute_product,
)
from jaxattn.jaxpr.propagation.score import ScoreRules
from jaxattn.jaxpr.propagation.selection import (
    ProductNames,
    Selected,
    Where,
    is_product,
    selects,
)
from jaxattn.jaxpr.propagation.walk import Cotangent, Runs, Visit, cotangents_of, unsupported
from jaxattn.jaxpr.structure.activations import activation
from jaxattn.jaxpr.structure.affine import Affine, affine_map
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.logarithms import adds_exponentials, multiplies_exponentials
from jaxattn.jaxpr.structure.normalisations import is_mean, normalised_signal
from jaxattn.jaxpr.structure.primitive_classes import INDEXING, SELECTING


class Options(NamedTuple):
    """The options of a relevance propagation; see `jaxattn.lrp`.

    Attributes:
        rules: the rules of layers, of which the first that selects a layer holds.
        epsilon: the stabiliser of sums, products, and layers that no rule selects.
        conserve_bias: whether what biases and stabilisers absorb is redistributed equally.
        gates: how products of a gate and a signal are divided.
        attention: how attention is passed.
        products: how products of two signals are divided, or any product by its name.
        layers: the number of layers between the input and the score.
    """

    rules: Sequence[tuple[Where, LRPRule]]
    epsilon: ArrayLike
    conserve_bias: bool
    gates: Gates
    attention: Attention
    products: Division | Mapping[str, Division] | None
    layers: int


class Relevance(ScoreRules):
    """The rules of LRP.

    Each method named after a kind of step returns the relevance of the operands of such a step, and
    `None` for any other step.

    Args:
        options: the options of the propagation.
        structure: the function that returns the score.

    Attributes:
        selected: the caller's selectors that matched, and the names that exist.
    """

    def __init__(self, options: Options, structure: Structure) -> None:
        super().__init__(structure.flat.outputs[0].aval.dtype)
        self.options = options
        self.selected = Selected()
        self._products = ProductRules(
            options.gates,
            options.attention,
            options.products,
            self.selected,
            ProductNames(structure),
        )
        # In the order in which they are tried.
        self._any_outputs = (
            self._softmax,
            self._cast,
            self._logarithm_of_product,
            self._layers,
            self._zero_shift,
            self._normalisation,
            self._layout,
        )
        self._one_output = (
            self._logarithm_of_sum,
            self._product,
            self._scale,
            self._sum,
            self._activation,
            self._maximum,
        )

    def start(self, score: Runs) -> Array:
        """Return the score: its relevance is itself."""
        return jnp.asarray(score[0])

    def __call__(self, visit: Visit) -> list[Cotangent]:
        """Redistribute the relevance of a step's outputs among its operands."""
        single = len(visit.cotangents) == 1
        for rule in (*self._any_outputs, *(self._one_output if single else ())):
            relevance = rule(visit)
            if relevance is not None:
                return relevance
        message = unsupported(visit.step, "relevance propagation")
        if is_elementwise(visit.step) and len(visit.actives) > 1:
            message += (
                f", which combines {len(visit.actives)} signals. Name operands that are to receive "
                "no relevance with `jaxattn.tag`, and pass their names as `constants`."
            )
        raise ValueError(message)

    # Steps with any number of outputs.

    def _softmax(self, visit: Visit) -> list[Cotangent] | None:
        """Redistribute by the Taylor expansion of a softmax (Achtibat et al. 2024)."""
        softmax = visit.structure.softmaxes.get(visit.step)
        if softmax is None:
            return None
        relevance, weights = map(softmax.of_output, (visit.cotangent, visit.array(visit.output)))
        z = visit.array(softmax.logits).astype(self.dtype) * jnp.asarray(softmax.scale, self.dtype)
        weights = weights.astype(self.dtype)
        whole = jnp.sum(relevance, softmax.axes, keepdims=True)
        # A masked element has weight 0 and a logit of minus infinity.
        z = jnp.where(jnp.isfinite(z) & (weights > 0), z, 0)
        redistributed = z * (relevance - weights * whole)
        self.absorb(jnp.sum(relevance) - jnp.sum(redistributed))
        return [Cotangent(softmax.logits, redistributed)]

    def _cast(self, visit: Visit) -> list[Cotangent] | None:
        return _pass_on(visit) if visit.step.name == "convert_element_type" else None

    def _layers(self, visit: Visit) -> list[Cotangent] | None:
        if not any(visit.structure.is_preactivation(var) for var in visit.step.outputs):
            return None
        redistributed: list[Cotangent] = []
        for var, relevance in zip(visit.step.outputs, visit.cotangents, strict=True):
            if relevance is not None:
                layer = affine_map(visit.structure, var)
                redistributed += self._affine(visit, layer, relevance, self._rule(layer))
        return redistributed

    def _zero_shift(self, visit: Visit) -> list[Cotangent] | None:
        return _pass_on(visit) if visit.structure.adds_nothing(visit.step) else None

    def _normalisation(self, visit: Visit) -> list[Cotangent] | None:
        """Pass relevance to the signal of which a mean is subtracted."""
        signal = normalised_signal(visit.structure, visit.step)
        return None if signal is None else [Cotangent(signal, visit.cotangent)]

    def _layout(self, visit: Visit) -> list[Cotangent] | None:
        """Pass relevance on to the elements that were moved; their indices receive none."""
        routes = visit.structure.lays_out(visit.step) or visit.step.name in SELECTING | INDEXING
        return self._route(visit) if routes else None

    # Steps with one output.

    def _logarithm_of_sum(self, visit: Visit) -> list[Cotangent] | None:
        """Redistribute among logarithms what their exponentials would get."""
        every = len(visit.actives) == len(visit.step.inputs)
        # The derivative by a is exp(a) / (exp(a) + exp(b)).
        return visit.transpose() if every and adds_exponentials(visit.step) else None

    def _logarithm_of_product(self, visit: Visit) -> list[Cotangent] | None:
        """Redistribute among logarithms as among the factors of the product."""
        structure, step = visit.structure, visit.step
        if not multiplies_exponentials(structure, step):
            return None
        if len(visit.actives) == 1:
            return _pass_on(visit)
        products, relevance = self._products, visit.cotangent
        division = products.by_caller(step, not products.needs_choice(structure, step))
        division = division or products.choose(structure, step)
        if division == "proportional":
            a, b = (visit.array(v).astype(self.dtype) for v in visit.actives)
            first = relevance * jax.nn.sigmoid(a - b)
            return cotangents_of(step.inputs, (first, relevance - first))
        return cotangents_of(step.inputs, redistribute_product(visit, division, 0.0, False)[:2])

    def _product(self, visit: Visit) -> list[Cotangent] | None:
        structure, step = visit.structure, visit.step
        if not is_product(structure, step):
            return None
        source = _source_of_product(structure, step)
        is_decided = source is not None or not self._products.needs_choice(structure, step)
        division = self._products.by_caller(step, is_decided)
        if division is None:
            if source is not None:  # x * f(x)
                return [Cotangent(source, visit.cotangent)]
            division = self._products.choose(structure, step)
        options = self.options
        redistributed = redistribute_product(
            visit, division, options.epsilon, options.conserve_bias
        )
        if redistributed.absorbed is not None:
            self.absorb(redistributed.absorbed)
        return cotangents_of(step.inputs, redistributed[:2])

    def _scale(self, visit: Visit) -> list[Cotangent] | None:
        """Pass relevance on to what is multiplied by constants, except where these are zero."""
        structure, step = visit.structure, visit.step
        if not structure.scales(step) or is_mean(structure, visit.output):
            return None
        relevance = visit.cotangent
        (active,) = visit.actives
        for atom in step.inputs:
            if isinstance(atom, Var) and atom is not active and step.name == "mul":
                kept = jnp.where(visit.read(atom) == 0, 0, relevance)
                self.absorb(relevance - kept)
                relevance = kept
        return [Cotangent(active, relevance)]

    def _sum(self, visit: Visit) -> list[Cotangent] | None:
        """Redistribute the relevance of a sum or a mean by LRP-epsilon."""
        structure, step = visit.structure, visit.step
        if not (structure.shifts(step) or structure.adds(step) or is_mean(structure, visit.output)):
            return None
        rule = LRPRule("epsilon", self.options.epsilon)
        return self._affine(visit, affine_map(structure, visit.output), visit.cotangent, rule)

    def _activation(self, visit: Visit) -> list[Cotangent] | None:
        """Pass relevance on through an elementwise function of one active value."""
        source = activation(visit.structure, visit.step)
        computes = is_elementwise(visit.step) and visit.step.name != "select_n"
        if source is None and computes and len(visit.actives) == 1:
            (source,) = visit.actives  # the others are results of `stop_gradient`
        if source is None or source.shape != visit.output.shape:
            return None
        return [Cotangent(source, visit.cotangent)]

    def _maximum(self, visit: Visit) -> list[Cotangent] | None:
        chooses = visit.step.name in ("clamp", "max", "min", "select_n")
        return self._route(visit) if chooses else None

    # What these have in common.

    def _rule(self, layer: Affine) -> LRPRule:
        """Return the first rule that selects a layer."""
        self.selected.names.update(layer.names)
        rules = [
            (where, rule)
            for where, rule in self.options.rules
            if selects(where, layer, self.options.layers)
        ]
        self.selected.matched.update(where for where, _ in rules)
        return rules[0][1] if rules else LRPRule("epsilon", self.options.epsilon)

    def _affine(
        self, visit: Visit, affine: Affine, relevance: Array, rule: LRPRule
    ) -> list[Cotangent]:
        """Redistribute the relevance of an affine map's output by a rule."""
        layer = Layer(visit.structure, affine, visit.read)
        inputs, absorbed = redistribute(rule, layer, relevance.astype(layer.dtype))
        if self.options.conserve_bias:
            equal, absorbed = redistribute_equally(layer, absorbed)
            inputs = [a + b for a, b in zip(inputs, equal, strict=True)]
        self.absorb(absorbed)
        return cotangents_of(affine.inputs, inputs)

    def _route(self, visit: Visit) -> list[Cotangent]:
        """Pass relevance back to the elements that were put out."""
        redistributed = visit.transpose()
        constant = any(
            not visit.structure.is_active(atom) and jnp.issubdtype(atom.aval.dtype, jnp.floating)
            for atom in visit.step.inputs
        )
        if constant or visit.step.name == "gather":
            total = _total([value for value in visit.cotangents if value is not None])
            self.absorb(total - _total([value for _, value in redistributed]))
        return redistributed


def _source_of_product(structure: Structure, step: Step) -> Var | None:
    """Return the operand of the activation that a product completes, such as SiLU or GELU.

    The product of a gate and another function of its pre-activation is divided like other gated
    products.
    """
    source = activation(structure, step)
    gates = sum(structure.facts[var].is_gate for var in structure.actives(step))
    return source if gates != 1 or source in step.inputs else None


def _total(values: Sequence[Array]) -> Array:
    """Return the sum over the elements of all values."""
    first, *rest = map(jnp.sum, values)
    return sum(rest, start=first)


def _pass_on(visit: Visit) -> list[Cotangent]:
    """Pass relevance on to the only operand."""
    return [Cotangent(visit.actives[0], visit.cotangent)]
