"""What a function is made of: layers, sums, activations, products, softmaxes, loops.

A layer is not an equation. `x @ W + h @ U + b` is one affine map, in however many steps it was
written, and relevance is shared out over the whole of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxattn.jaxpr.flat import Atom, Flat, Step, Var, is_cellwise
from jaxattn.jaxpr.structure.facts import (
    CONTRACTING,
    LAYOUT,
    POOLING,
    SUMMING,
    Fact,
    literal_fact,
)

#: What may lie between a softmax's logits and the maximum that it subtracts.
TO_MAXIMUM = LAYOUT | {"stop_gradient", "max"}


@dataclass(eq=False)
class Affine:
    """An affine map: a layer, with one contraction on each way through it, or a mere sum.

    Attributes:
        output: what it answers.
        inputs: the active values that it is a function of.
        steps: the steps that compute it, in order.
        is_layer: whether it contracts.
        is_convolution: whether it convolves.
        names: its tags, and the paths of its contractions.
        depth: how many layers lie below it.
    """

    output: Var
    inputs: list[Var]
    steps: list[Step]
    is_layer: bool
    is_convolution: bool
    names: list[str]
    depth: int


class Softmax(NamedTuple):
    """What a softmax is taken of, and over which axes."""

    logits: Var
    axes: tuple[int, ...]


@dataclass(eq=False)
class Structure:
    """A function with what is known about it.

    Attributes:
        flat: the function.
        facts: what is known about each value.
        producers: the step that made a value.
        users: the steps that read a value.
        softmaxes: by their last steps.
        inner: the insides of loops and branches.
        exact: whether the maximum that a softmax subtracts counts as a function of the input.
    """

    flat: Flat
    facts: dict[Var, Fact]
    producers: dict[Var, Step]
    users: dict[Var, list[Step]]
    softmaxes: dict[Step, Softmax]
    inner: dict[Step, list["Structure"]]
    exact: bool

    def fact(self, atom: Atom) -> Fact:
        """What is known about an operand."""
        return self.facts[atom] if isinstance(atom, Var) else literal_fact(atom)

    def is_active(self, atom: Atom) -> bool:
        """Whether relevance can go through an operand to the input."""
        return isinstance(atom, Var) and self.facts[atom].active

    def actives(self, step: Step) -> list[Var]:
        """The operands of a step through which relevance can go, each once."""
        return list(dict.fromkeys(v for v in step.variables if self.facts[v].active))

    def scales(self, step: Step) -> bool:
        """Whether the step multiplies one active operand by constants."""
        if len(self._operands(step)) != 1:
            return False
        name = step.name
        return name in ("mul", "neg") or (name == "div" and self.is_active(step.inputs[0]))

    def shifts(self, step: Step) -> bool:
        """Whether the step adds constants to one active operand."""
        return step.name in ("add", "add_any", "sub") and len(self._operands(step)) == 1

    def adds_nothing(self, step: Step) -> bool:
        """Whether the step adds or takes away zeros that are written in the program."""
        return self.shifts(step) and any(_number(a, self.producers) == 0 for a in step.inputs)

    def adds(self, step: Step) -> bool:
        """Whether the step adds active operands up."""
        return step.name in ("add", "add_any", "sub") and len(self._operands(step)) > 1

    def lays_out(self, step: Step) -> bool:
        """Whether the step only lays out active operands, by indices and choices that are given."""
        return step.name in LAYOUT and not any(
            self.fact(a).touched and not self.is_active(a) for a in step.inputs
        )

    def contracts(self, step: Step) -> bool:
        """Whether the step sums an active operand's cells with weights."""
        if step.name in CONTRACTING:
            return len(self._operands(step)) == 1
        if step.name != "reduce_sum":
            return False
        source = maker_of(step.inputs[0], self.producers, LAYOUT)
        if source is None or source.name != "mul" or not self.scales(source):
            return False
        (weight,) = (a for a in source.inputs if not self.is_active(a))
        return isinstance(weight, Var) and self._weighs(weight, step.eqn.params["axes"])

    def _weighs(self, weight: Var, axes: Sequence[int]) -> bool:
        """Whether a factor is more than one number along summed axes, and more than a mask."""
        maker = self.producers.get(weight)
        while maker is not None and maker.name in ("broadcast_in_dim", "convert_element_type"):
            source = maker.inputs[0]
            if not jnp.issubdtype(source.aval.dtype, jnp.floating):
                return False
            if maker.name == "broadcast_in_dim":
                kept = maker.eqn.params["broadcast_dimensions"]
                sizes = dict(zip(kept, source.aval.shape, strict=True))
                if all(sizes.get(axis, 1) == 1 for axis in axes):
                    return False
            maker = self.producers.get(source) if isinstance(source, Var) else None
        return True

    def _operands(self, step: Step) -> list[Atom]:
        return [atom for atom in step.inputs if self.is_active(atom)]

    def level(self, var: Var) -> int:
        """1 for what a contraction gives, however scaled, shifted, laid out and added; else 0."""
        if var not in self._levels:
            step = self.producers.get(var)
            level = 0
            if step is not None and self.facts[var].active:
                if self.contracts(step):
                    level = 1
                elif self.normalised(step) is None and (
                    self.scales(step) or self.shifts(step) or self.adds(step) or self.lays_out(step)
                ):
                    level = min((self.level(v) for v in self.actives(step)), default=0)
                    if self.adds(step) and not all(map(self._ends_here, self.actives(step))):
                        level = 0  # a residual stream goes on beside
            self._levels[var] = level
        return self._levels[var]

    def _ends_here(self, var: Var) -> bool:
        return len(self.users[var]) == 1 and var not in self.flat.outputs

    def __post_init__(self) -> None:
        self._levels: dict[Var, int] = {}
        self.order = {step: i for i, step in enumerate(self.flat.steps)}

    def affine(self, output: Var) -> Affine:
        """The affine map that a value comes out of."""
        is_layer = self.level(output) == 1
        steps: set[Step] = set()
        inputs: dict[Var, None] = {}
        seen: set[Var] = set()

        goes_on = self._after if is_layer else self._within_sum(output)
        queue: list[tuple[Var, Callable[[Var, Step], bool]]] = [(output, goes_on)]
        while queue:
            var, goes_on = queue.pop()
            if var in seen:
                continue
            seen.add(var)
            step = self.producers.get(var)
            if step is None or not goes_on(var, step):
                inputs[var] = None
                continue
            steps.add(step)
            if self.contracts(step):
                goes_on = self._before
            elif step.name in SUMMING:
                goes_on = _stops
            queue += [(operand, goes_on) for operand in reversed(self.actives(step))]
        ordered = sorted(steps, key=self.order.__getitem__)
        contractions = [step for step in ordered if self.contracts(step)]
        tags = [str(step.eqn.params["name"]) for step in ordered if step.name == "name"]
        paths = [step.path for step in (contractions or ordered) if step.path]
        return Affine(
            output,
            list(inputs),
            ordered,
            is_layer,
            any(step.name == "conv_general_dilated" for step in contractions),
            list(dict.fromkeys(tags + paths)),
            max(0, self.facts[output].depth - 1),
        )

    def _after(self, var: Var, step: Step) -> bool:
        return self.level(var) == 1

    def _before(self, var: Var, step: Step) -> bool:
        """Below a contraction one value's scale and shift belong to it, as of a normalisation."""
        if self.level(var) == 1 or len(self._operands(step)) != 1:
            return False
        if self.scales(step) and self.is_mean(var):
            return False
        if self.scales(step) or self.shifts(step) or step.name == "pad":
            return True  # cells that are only padded on are no inputs
        return self.lays_out(step) and self._leads_on(step, self._before)

    def is_mean(self, var: Var) -> bool:
        """Whether a value is a sum over cells, but for constant factors."""
        step = self.producers.get(var)
        while step is not None and (self.scales(step) or self.lays_out(step)):
            if len(self.actives(step)) != 1:
                return False
            step = self.producers.get(self.actives(step)[0])
        return step is not None and step.name in SUMMING and not self.contracts(step)

    def _within_sum(self, output: Var) -> Callable[[Var, Step], bool]:
        def goes_on(var: Var, step: Step) -> bool:
            if var is not output and self.level(var) == 1:
                return False
            if self.normalised(step) is not None:
                return False
            if self.scales(step) or self.shifts(step) or step.name in SUMMING:
                return True
            if self.adds(step):
                return var is output or self._ends_here(var)
            return self.lays_out(step) and self._leads_on(step, goes_on)

        return goes_on

    def _leads_on(self, step: Step, goes_on: Callable[[Var, Step], bool]) -> bool:
        """Whether behind a step that only lays out there is something to go on to."""
        (operand, *more) = self.actives(step)
        maker = self.producers.get(operand)
        return not more and maker is not None and goes_on(operand, maker)

    def normalised(self, step: Step) -> Var | None:
        """The signal of a normalisation, where the other operand is a statistic over its cells."""
        if step.name not in ("add", "sub") or len(self.actives(step)) != 2:
            return None
        first, second = step.inputs
        if not isinstance(first, Var) or not isinstance(second, Var):
            return None
        for operand, other in ((first, second), (second, first)):
            scaled, shift = self._times_norm(operand), self._times_norm(other)
            # x / std and mean / std: one norm, and the mean of the same x.
            if scaled and shift and scaled[1] is shift[1] and self._is_mean_of(shift[0], scaled[0]):
                return operand
        if step.name == "sub" and self._is_mean_of(second, first):
            return first if self._meets_norm(step.outputs[0], set()) else None
        return None

    def weighs_down(self, signal: Var, scale: Var) -> bool:
        """Whether a value is a statistic over the cells of the signal beside it."""
        fact = self.facts[scale]
        if not (fact.norm or fact.pooled):
            return False
        own = self._cells_around(signal)
        if self.facts[signal].pooled:
            own |= self._measured(signal)
        return bool(own & self._measured(scale))

    def _measured(self, var: Var) -> set[Var]:
        """The values whose cells a value is a statistic of."""
        steps = self._statistics_behind(var)
        return set().union(*(self._cells_around(v) for step in steps for v in self.actives(step)))

    def _statistics_behind(self, var: Var) -> list[Step]:
        """The sums and extremes over cells that a value is a function of."""
        found, queue, seen = [], [var], {var}
        while queue:
            step = self.producers.get(queue.pop())
            if step is None:
                continue
            if step.name in POOLING:
                found.append(step)
                continue
            new = [v for v in step.variables if self.facts[v].touched and v not in seen]
            seen.update(new)
            queue.extend(new)
        return found

    def _cells_around(self, var: Var) -> set[Var]:
        """The values whose cells a value's are functions of, wherever these are laid out."""
        found, queue = {var}, [var]
        while queue:
            step = self.producers.get(queue.pop())
            if step is None or not (is_cellwise(step) or step.name in LAYOUT):
                continue
            new = [v for v in step.variables if self.facts[v].active and v not in found]
            found.update(new)
            queue.extend(new)
        return found

    def _times_norm(self, var: Var) -> tuple[Var, Var] | None:
        """A value's factor and norm, if it is such a product, perhaps with constants beside."""
        step = self.producers.get(var)
        while step is not None:
            actives = self.actives(step)
            if step.name == "mul" and len(actives) == 2:
                norms = [v for v in actives if self.facts[v].norm]
                if len(norms) != 1:
                    return None
                (factor,) = (v for v in actives if v is not norms[0])
                return factor, self._root(norms[0])
            if len(actives) != 1 or not (
                self.scales(step) or self.shifts(step) or self.lays_out(step)
            ):
                return None
            step = self.producers.get(actives[0])
        return None

    def _root(self, norm: Var) -> Var:
        """The root that a norm is, before constants and layout."""
        step = self.producers.get(norm)
        while step is not None and (self.scales(step) or self.lays_out(step)):
            (norm,) = self.actives(step)
            step = self.producers.get(norm)
        return norm

    def _is_mean_of(self, var: Var, of: Var) -> bool:
        step = self.producers.get(var)
        while step is not None:
            if step.name == "reduce_sum":
                return self._source(step.inputs[0]) is self._source(of)
            if not (self.scales(step) or self.lays_out(step)) or not self.actives(step):
                return False
            step = self.producers.get(self.actives(step)[0])
        return False

    def _source(self, atom: Atom) -> Atom:
        """What a value is a cast of."""
        while isinstance(atom, Var):
            step = self.producers.get(atom)
            if step is None or step.name not in ("convert_element_type", "copy", "name"):
                break
            atom = step.inputs[0]
        return atom

    def _meets_norm(self, var: Var, seen: set[Var]) -> bool:
        """Whether a value is divided by a root, or multiplied by the inverse of one."""
        for user in self.users[var]:
            others = [v for v in self.actives(user) if v is not var]
            if user.name in ("mul", "div") and any(self.facts[v].norm for v in others):
                return True
            out = user.outputs[0]
            if (self.scales(user) or self.lays_out(user)) and out not in seen:
                seen.add(out)
                if self._meets_norm(out, seen):
                    return True
        return False

    def follows_maximum(self, step: Step) -> bool:
        """Whether the step's operand is a maximum over cells."""
        largest = maker_of(step.inputs[0], self.producers, TO_MAXIMUM)
        return largest is not None and largest.name == "reduce_max"


def _stops(var: Var, step: Step) -> bool:
    return False


def maker_of(
    atom: Atom, producers: dict[Var, Step], through: frozenset[str] | set[str]
) -> Step | None:
    """The step that made a value's numbers, past those that are named in `through`."""
    while isinstance(atom, Var):
        step = producers.get(atom)
        if step is None or step.name not in through:
            return step
        data = [a for a in step.variables if a.aval.dtype == step.outputs[0].aval.dtype]
        atom = ([a for a in data if _number(a, producers) is None] or data or step.inputs)[0]
    return None


def _number(atom: Atom, producers: dict[Var, Step]) -> Any:
    """The number of the program that a value is, however often; `None` if it is none."""
    while isinstance(atom, Var):
        step = producers.get(atom)
        if step is None or step.name not in ("broadcast_in_dim", "convert_element_type", "reshape"):
            return None
        atom = step.inputs[0]
    return atom.val if np.ndim(atom.val) == 0 else None
