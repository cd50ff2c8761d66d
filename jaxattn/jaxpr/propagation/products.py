"""Redistribute the relevance of a product of two operands that both depend on the input."""

import warnings
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxattn.jaxpr.flat import Step, Var
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.propagation.layer_rules import quotient, stabilised
from jaxattn.jaxpr.propagation.modified_layer import transposed
from jaxattn.jaxpr.propagation.selection import ProductNames, Selected
from jaxattn.jaxpr.propagation.walk import Visit
from jaxattn.jaxpr.structure.facts import Fact
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.logarithms import multiplies_exponentials
from jaxattn.jaxpr.structure.normalisations import is_normalised_by
from jaxattn.jaxpr.structure.primitive_classes import CONTRACTING

#: Which operand gets a product's relevance: one, both equally, or both by their values.
Division = Literal["first", "second", "half", "proportional"]
#: How a product of a gate and a signal is divided: LRP-all, LRP-half or LRP-prop.
Gates = Literal["all", "half", "proportional"]
#: How attention is passed: CP-LRP or AttnLRP.
Attention = Literal["cp_lrp", "attnlrp"]


class ProductRelevance(NamedTuple):
    """The relevance of a product, redistributed.

    Attributes:
        first: the relevance of the first operand; `None` for zero.
        second: that of the second.
        absorbed: the relevance that neither got; `None` for zero.
    """

    first: Array | None
    second: Array | None
    absorbed: Array | None = None


class ProductRules:
    """Choose how the relevance of each product is divided.

    Args:
        gates: how products of a gate and a signal are divided.
        attention: how products in attention are divided.
        products: how products of two signals are divided, or any product by its name.
        selected: where the names of products are recorded.
        names: the names of the function's products.
    """

    def __init__(
        self,
        gates: Gates,
        attention: Attention,
        products: Division | Mapping[str, Division] | None,
        selected: Selected,
        names: ProductNames,
    ) -> None:
        self.gates, self.attention = gates, attention
        self.default = products if isinstance(products, str) else None
        self.by_name = products if isinstance(products, Mapping) else None
        self.selected, self.names = selected, names
        self._warned: set[Step] = set()

    def by_caller(self, step: Step, is_decided: bool) -> Division | None:
        """Return what the caller chose for a product by its name.

        Args:
            step: the product.
            is_decided: whether its division needs no choice. Then only its tag, or a name that is
                its alone, overrides the division; not one that it shares with other products.
        """
        if self.by_name is None:
            return None
        for pattern, division in self.by_name.items():
            if not self.names.match(pattern, step):
                continue
            if not is_decided or self.names.match_alone(pattern, step):
                self.selected.matched.add(pattern)
                return division
            self.selected.decided.add(pattern)
        self.selected.names.update(self.names.of(step))
        return None

    def needs_choice(self, structure: Structure, step: Step) -> bool:
        """Return whether no rule of gates, attention or normalisation divides a product."""
        return self._by_rule(structure, step) is None

    def choose(self, structure: Structure, step: Step) -> Division:
        """Return how a product is divided that the caller has not named.

        Raises:
            ValueError: if both operands are signals and there is no default.
        """
        division = self._by_rule(structure, step) or self.default
        if division is not None:
            return division
        facts = _factors(structure, step)
        name = self.names.own(step)
        if step.name not in ("div", "sub") and all(fact.is_gate for fact in facts):
            if step not in self._warned:
                self._warned.add(step)
                warnings.warn(
                    f"{step} multiplies two gates. Neither is known to be the signal, so each "
                    f"receives half of the relevance. Choose with products={{{name!r}: ...}}.",
                    stacklevel=2,
                )
            return "half"
        raise ValueError(
            f"{step} combines two signals. Neither is a gate between 0 and 1, so the division of "
            "its relevance is not defined. Choose with "
            f'products={{{name!r}: "first" | "second" | "half" | "proportional"}}, '
            'or products="half" for all products, or name one factor in `constants`.'
        )

    def _by_rule(self, structure: Structure, step: Step) -> Division | None:
        facts = _factors(structure, step)
        return _normalisation(structure, step, facts) or self._attention_or_gate(step, facts)

    def _attention_or_gate(self, step: Step, facts: list[Fact]) -> Division | None:
        first, second = facts
        if step.name == "sub":  # of logarithms
            return "first" if second.is_gate and not first.is_gate else None
        if step.name == "div":
            return None
        attnlrp, contracts = self.attention == "attnlrp", step.name in CONTRACTING
        if attnlrp and (first.softmax or second.softmax):
            return "half"
        if first.is_gate != second.is_gate:
            if self.gates == "all":
                return "second" if first.is_gate else "first"
            return "half" if contracts else self.gates
        return "half" if attnlrp and contracts else None


def _factors(structure: Structure, step: Step) -> list[Fact]:
    """Return the facts of a product's factors, which may be given by their logarithms."""
    facts = [structure.fact(atom) for atom in step.inputs]
    if multiplies_exponentials(structure, step):
        return [fact.of_exponential for fact in facts]
    return facts


def _normalisation(structure: Structure, step: Step, facts: list[Fact]) -> Division | None:
    """Give all relevance to the signal that is divided by a statistic over its own features."""
    first, second = step.inputs
    assert isinstance(first, Var)
    assert isinstance(second, Var)
    if step.name == "div" or facts[1].norm:
        return "first" if is_normalised_by(structure, first, second) else None
    return "second" if facts[0].norm and is_normalised_by(structure, second, first) else None


def redistribute_product(
    visit: Visit, division: Division, epsilon: ArrayLike, conserve_bias: bool
) -> ProductRelevance:
    """Redistribute the relevance of a product among its two operands.

    Args:
        visit: the product.
        division: how its relevance is divided.
        epsilon: the stabiliser.
        conserve_bias: whether the operands share what the stabiliser would absorb.
    """
    if visit.step.name in CONTRACTING:
        return _contraction(visit, division, epsilon, conserve_bias)
    relevance = visit.cotangent
    if division == "first":
        return ProductRelevance(relevance, None)
    if division == "second":
        return ProductRelevance(None, relevance)
    if division == "half":
        half = relevance * jnp.asarray(0.5, relevance.dtype)
        return ProductRelevance(half, half)
    a, b = (jnp.asarray(visit.read(atom)).astype(relevance.dtype) for atom in visit.step.inputs)
    s = quotient(relevance, stabilised(a + b, epsilon))
    lost = relevance - s * (a + b)
    if conserve_bias:
        each = lost * jnp.asarray(0.5, relevance.dtype)
        return ProductRelevance(a * s + each, b * s + each)
    return ProductRelevance(a * s, b * s, lost)


def _contraction(
    visit: Visit, division: Division, epsilon: ArrayLike, conserve_bias: bool
) -> ProductRelevance:
    """Redistribute the relevance of a matrix product or a convolution."""
    step, z = visit.step, visit.array(visit.output)
    relevance = visit.cotangent.astype(z.dtype)
    s = quotient(relevance, stabilised(z, epsilon))
    lost = relevance - s * z
    positions = {"first": (0,), "second": (1,)}.get(division, (0, 1))
    part = jnp.asarray(1 / len(positions), relevance.dtype)
    values = [jnp.asarray(visit.read(atom)) for atom in step.inputs]
    redistributed: dict[int, Array] = {}
    for i in positions:
        (slope,) = transposed(_times(step, i, values[1 - i]), (values[i],), s)
        contribution = values[i] * slope
        if conserve_bias:
            ones = jnp.ones_like(values[i])
            count = _times(step, i, jnp.ones_like(values[1 - i]))
            (equal,) = transposed(count, (ones,), quotient(lost, count(ones)))
            contribution = contribution + equal
        redistributed[i] = part * contribution
    absorbed = None if conserve_bias else lost
    return ProductRelevance(redistributed.get(0), redistributed.get(1), absorbed)


def _times(step: Step, position: int, other: Array) -> Callable[[Array], Array]:
    """Return a product as a function of one operand."""

    def apply(x: Array) -> Array:
        return bind(step.eqn, (x, other) if position == 0 else (other, x))[0]

    return apply
