"""The data-flow graph of a function, with facts about its values and the roles of its steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax.numpy as jnp

from jaxattn.jaxpr.flat import Atom, Flat, Step, Var
from jaxattn.jaxpr.structure.facts import Fact, literal_fact
from jaxattn.jaxpr.structure.primitive_classes import ADDING, CHOOSING, CONTRACTING, LAYOUT
from jaxattn.jaxpr.structure.producers import literal_scalar, producer_behind
from jaxattn.jaxpr.structure.softmaxes import Softmax


@dataclass(eq=False)
class Structure:
    """A function as a graph of steps, with what holds for its values whatever the input.

    The methods are predicates of single steps: they depend on the facts of the operands alone.

    Attributes:
        flat: the function.
        facts: the fact of each value.
        producers: the step that computes each value.
        users: the steps that read each value.
        softmaxes: the softmaxes, by their last steps.
        exact: whether differences are propagated instead of derivatives; see `analyse`.
        inner: the structures of the bodies of loops and branches.
        preactivations: the values that are computed by layers; see `find_preactivations`.
        order: the position of each step.
    """

    flat: Flat
    facts: dict[Var, Fact]
    producers: dict[Var, Step]
    users: dict[Var, list[Step]]
    softmaxes: dict[Step, Softmax]
    exact: bool
    inner: dict[Step, list["Structure"]] = field(default_factory=dict)
    preactivations: set[Var] = field(default_factory=set)
    order: dict[Step, int] = field(init=False)

    def __post_init__(self) -> None:
        self.order = {step: i for i, step in enumerate(self.flat.steps)}

    def fact(self, atom: Atom) -> Fact:
        """Return the fact of an operand."""
        return self.facts[atom] if isinstance(atom, Var) else literal_fact(atom)

    def is_active(self, atom: Atom) -> bool:
        """Return whether relevance can be propagated through an operand to the input."""
        return isinstance(atom, Var) and self.facts[atom].active

    def actives(self, step: Step) -> list[Var]:
        """Return the active operands of a step, each once, without indices and predicates."""
        choices = self.choices(step)
        active = (v for v in step.variables if self.facts[v].active and v not in choices)
        return list(dict.fromkeys(active))

    def choices(self, step: Step) -> list[Atom]:
        """Return the operands of a step that select elements: indices and predicates."""
        return step.inputs[CHOOSING[step.name]] if step.name in CHOOSING else []

    def is_preactivation(self, atom: Atom) -> bool:
        """Return whether a value is computed by a layer."""
        return atom in self.preactivations

    def has_one_active(self, step: Step) -> bool:
        """Return whether exactly one operand of a step is active."""
        return sum(map(self.is_active, step.inputs)) == 1

    def scales(self, step: Step) -> bool:
        """Return whether the step multiplies one active operand by constants."""
        if not self.has_one_active(step):
            return False
        name = step.name
        return name in ("mul", "neg") or (name == "div" and self.is_active(step.inputs[0]))

    def shifts(self, step: Step) -> bool:
        """Return whether the step adds constants to one active operand."""
        return step.name in ADDING and self.has_one_active(step)

    def adds_nothing(self, step: Step) -> bool:
        """Return whether the step adds or subtracts a literal zero."""
        return self.shifts(step) and any(
            literal_scalar(atom, self.producers) == 0 for atom in step.inputs
        )

    def adds(self, step: Step) -> bool:
        """Return whether the step adds or subtracts active operands."""
        return step.name in ADDING and sum(map(self.is_active, step.inputs)) > 1

    def lays_out(self, step: Step) -> bool:
        """Return whether the step lays out active operands, by constant indices and predicates."""
        if any(self.fact(atom).depends_on_input for atom in self.choices(step)):
            return False
        facts = [self.facts[v] for v in step.variables if not v.is_floating]
        computed = any(fact.depends_on_input and not fact.active for fact in facts)
        return step.name in LAYOUT and not computed

    def contracts(self, step: Step) -> bool:
        """Return whether the step multiplies one active operand by weights and sums."""
        if step.name in CONTRACTING:
            return self.has_one_active(step)
        if step.name != "reduce_sum":
            return False
        product = producer_behind(step.inputs[0], self.producers, LAYOUT, "mul")
        if product is None or not self.scales(product):
            return False
        (weight,) = (atom for atom in product.inputs if not self.is_active(atom))
        return isinstance(weight, Var) and self._is_weight(weight, step.eqn.params["axes"])

    def _is_weight(self, factor: Var, axes: Sequence[int]) -> bool:
        """Return whether a factor varies along the summed axes, and is more than a mask."""
        step = self.producers.get(factor)
        while step is not None and step.name in ("broadcast_in_dim", "convert_element_type"):
            source = step.inputs[0]
            if not jnp.issubdtype(source.aval.dtype, jnp.floating):
                return False
            if step.name == "broadcast_in_dim":
                kept = step.eqn.params["broadcast_dimensions"]
                sizes = dict(zip(kept, source.aval.shape, strict=True))
                if all(sizes.get(axis, 1) == 1 for axis in axes):
                    return False
            step = self.producers.get(source) if isinstance(source, Var) else None
        return True
