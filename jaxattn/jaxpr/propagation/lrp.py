"""Layer-wise relevance propagation through any function: which rule meets which step."""

import fnmatch
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxattn.jaxpr.flat import Atom, Step, Var
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.propagation import modified_layer as maps
from jaxattn.jaxpr.propagation.layer_rules import (
    LRPRule,
    quotient,
    share,
    share_equally,
    stabilised,
)
from jaxattn.jaxpr.propagation.reverse import Memory
from jaxattn.jaxpr.structure.activations import activation
from jaxattn.jaxpr.structure.facts import CONTRACTING, SELECTING
from jaxattn.jaxpr.structure.graph import Affine, Structure

#: Where a rule holds: a depth, a sort of layer, or the name of one.
Where = int | str
Shares = list[tuple[Atom, Any]]

_SORTS = ("input", "conv", "dense")


class Options(NamedTuple):
    """How relevance is propagated; see `jaxattn.lrp`."""

    rules: Sequence[tuple[Where, LRPRule]]
    epsilon: Any
    conserve_bias: bool
    gates: str
    attention: str
    products: str | Mapping[str, str] | None
    layers: int


class Relevance:
    """The rules of one walk back through a function."""

    def __init__(self, options: Options, dtype: Any) -> None:
        self.options, self.dtype = options, dtype
        self._absorbed: list[list[Any]] = [[]]
        self.matched: set[Where] = set()
        self.names: set[str] = set()
        self._warned: set[Step] = set()

    def absorb(self, given: Any) -> None:
        """Adds up what does not reach the input."""
        self._absorbed[-1].append(jnp.sum(given).astype(self.dtype))

    def start(self, score: Any) -> Any:
        """Relevance starts as the score itself."""
        return score[0]

    def enter(self) -> None:
        """Begins a sum of its own, for the inside of a loop or a branch."""
        self._absorbed.append([])

    def leave(self) -> Any:
        """Ends that sum, and answers it."""
        return sum(self._absorbed.pop(), start=jnp.zeros((), self.dtype))

    def __call__(
        self, structure: Structure, step: Step, memory: Memory, given: list[Any]
    ) -> Shares:
        """Shares out the relevance of a step's outputs among its operands."""

        def read(atom: Atom) -> Any:
            return memory[atom][0]

        if step.name == "convert_element_type":
            return [(structure.actives(step)[0], given[0])]
        if any(structure.level(v) for v in step.outputs):
            shares: Shares = []
            for var, relevance in zip(step.outputs, given, strict=True):
                if relevance is not None:
                    layer = structure.affine(var)
                    shares += self._affine(structure, layer, read, relevance, self._rule(layer))
            return shares
        if structure.adds_nothing(step):
            return [(structure.actives(step)[0], given[0])]
        signal = structure.normalised(step)
        if signal is not None:
            return [(signal, given[0])]
        if structure.lays_out(step) or step.name in SELECTING:
            return self._route(structure, step, read, given)
        if len(given) != 1:
            raise ValueError(refusal(step, "relevance propagation"))
        (relevance,) = given
        if step in structure.softmaxes:
            return self._softmax(structure, step, read, relevance)
        if step.name in ("mul", "div", *CONTRACTING) and _operands(structure, step) == 2:
            return self._product(structure, step, read, relevance)
        mean = structure.is_mean(step.outputs[0])
        if structure.scales(step) and not mean:
            return self._scale(structure, step, read, relevance)
        if structure.shifts(step) or structure.adds(step) or mean:
            rule = LRPRule("epsilon", self.options.epsilon)
            return self._affine(structure, structure.affine(step.outputs[0]), read, relevance, rule)
        source = activation(structure, step)
        if source is not None and source.shape == step.outputs[0].shape:
            return [(source, relevance)]
        if step.name in ("max", "min", "select_n"):
            return self._route(structure, step, read, given)
        raise ValueError(refusal(step, "relevance propagation"))

    def _rule(self, layer: Affine) -> LRPRule:
        self.names.update(layer.names)
        chosen = [
            pair for pair in self.options.rules if _matches(pair[0], layer, self.options.layers)
        ]
        self.matched.update(where for where, _ in chosen)
        return chosen[0][1] if chosen else LRPRule("epsilon", self.options.epsilon)

    def _affine(
        self, structure: Structure, layer: Affine, read: maps.Read, relevance: Any, rule: LRPRule
    ) -> Shares:
        relevance = relevance.astype(layer.output.aval.dtype)
        shares, lost = share(rule, structure, layer, read, relevance)
        if self.options.conserve_bias:
            more, lost = share_equally(structure, layer, read, lost)
            shares = [a + b for a, b in zip(shares, more, strict=True)]
        self.absorb(lost)
        return list(zip(layer.inputs, shares, strict=True))

    def _route(self, structure: Structure, step: Step, read: maps.Read, given: list[Any]) -> Shares:
        """Relevance goes where the numbers came from."""
        actives = structure.actives(step)
        shares = pull(step, actives, read, given)
        constant = any(
            not structure.is_active(a) and jnp.issubdtype(a.aval.dtype, jnp.floating)
            for a in step.inputs
        )
        if constant or step.name == "gather":
            came = sum(jnp.sum(g) for g in given if g is not None)
            self.absorb(came - sum(jnp.sum(s) for s in shares))
        return list(zip(actives, shares, strict=True))

    def _scale(self, structure: Structure, step: Step, read: maps.Read, relevance: Any) -> Shares:
        (active,) = structure.actives(step)
        for atom in step.inputs:
            if isinstance(atom, Var) and atom is not active and step.name == "mul":
                kept = jnp.where(read(atom) == 0, 0, relevance)
                self.absorb(relevance - kept)
                relevance = kept
        return [(active, relevance)]

    def _softmax(self, structure: Structure, step: Step, read: maps.Read, relevance: Any) -> Shares:
        """Its Taylor expansion (Achtibat et al. 2024)."""
        logits, axes = structure.softmaxes[step]
        z, weights = (read(v).astype(self.dtype) for v in (logits, step.outputs[0]))
        whole = jnp.sum(relevance, axes, keepdims=True)
        # A masked cell has weight 0 and a logit beyond all bounds.
        shares = jnp.where(jnp.isfinite(z) & (weights > 0), z, 0) * (relevance - weights * whole)
        self.absorb(jnp.sum(relevance) - jnp.sum(shares))
        return [(logits, shares)]

    # Products.

    def _product(self, structure: Structure, step: Step, read: maps.Read, relevance: Any) -> Shares:
        gates = [structure.facts[v].is_gate for v in structure.actives(step)]
        choice = self._chosen(structure, step)
        source = None if choice or sum(gates) == 1 else activation(structure, step)
        if source is not None:  # x * f(x), with no gate in it
            return [(source, relevance)]
        choice = choice or self._choice(structure, step)
        if step.name in CONTRACTING:
            return self._contract(structure, step, read, relevance, choice)
        first, second = step.inputs
        if choice in ("first", "second"):
            return [(first if choice == "first" else second, relevance)]
        if choice == "half":
            half = relevance * jnp.asarray(0.5, relevance.dtype)
            return [(first, half), (second, half)]
        a, b = (read(atom).astype(self.dtype) for atom in step.inputs)
        s = quotient(relevance, stabilised(a + b, self.options.epsilon))
        lost = relevance - s * (a + b)
        if self.options.conserve_bias:
            each = lost * jnp.asarray(0.5, self.dtype)
            return [(first, a * s + each), (second, b * s + each)]
        self.absorb(lost)
        return [(first, a * s), (second, b * s)]

    def _chosen(self, structure: Structure, step: Step) -> str | None:
        """What the caller has chosen for a product."""
        products = self.options.products
        if products is None or isinstance(products, str):
            return None
        names = product_names(structure, step)
        for pattern, choice in products.items():
            if any(_names_match(pattern, name) for name in names):
                self.matched.add(pattern)
                return choice
        self.names.update(names)
        return None

    def _choice(self, structure: Structure, step: Step) -> str:
        """Which operand of a product takes how much."""
        a, b = (structure.fact(atom) for atom in step.inputs)
        first, second = step.inputs
        assert isinstance(first, Var)
        assert isinstance(second, Var)
        if step.name == "div" or b.norm:
            if structure.weighs_down(first, second):
                return "first"
        elif a.norm and structure.weighs_down(second, first):
            return "second"
        attentive = self.options.attention == "attnlrp" and step.name != "div"
        if attentive and (a.soft or b.soft):
            return "half"
        if a.is_gate != b.is_gate and step.name != "div":
            if self.options.gates == "all":
                return "second" if a.is_gate else "first"
            contracts = step.name in CONTRACTING
            return "half" if contracts else self.options.gates
        if attentive and step.name in CONTRACTING:
            return "half"
        if isinstance(self.options.products, str):
            return self.options.products
        if a.is_gate and b.is_gate and step.name != "div":
            if step not in self._warned:
                self._warned.add(step)
                warnings.warn(
                    f"{step} multiplies two gates, and which of them is the signal cannot be told: "
                    f"each gets half; choose by products={{{_shortest(structure, step)!r}: ...}}",
                    stacklevel=2,
                )
            return "half"
        raise ValueError(
            f"{step} joins two signals, neither of them a gate between 0 and 1, and no rule "
            "says which one takes the relevance: choose one by "
            f'products={{{_shortest(structure, step)!r}: "first" | "second" | "half" | '
            '"proportional"}, or products="half" for all'
        )

    def _contract(
        self, structure: Structure, step: Step, read: maps.Read, relevance: Any, choice: str
    ) -> Shares:
        """A matrix product of two active operands."""
        z = read(step.outputs[0])
        relevance = relevance.astype(z.dtype)
        s = quotient(relevance, stabilised(z, self.options.epsilon))
        lost = relevance - s * z
        operands = {"first": (0,), "second": (1,)}.get(choice, (0, 1))
        part = jnp.asarray(1 / len(operands), relevance.dtype)
        values = [read(atom) for atom in step.inputs]
        shares: Shares = []
        for i in operands:

            def apply(x: Any, other: Any = values[1 - i], i: int = i) -> Any:
                return bind(step.eqn, (x, other) if i == 0 else (other, x))[0]

            (slope,) = maps.transposed(apply, (values[i],), s)
            mine = values[i] * slope
            if self.options.conserve_bias:
                ones = jnp.ones_like(values[i])

                def count(x: Any, i: int = i) -> Any:
                    return apply(x, jnp.ones_like(values[1 - i]))

                (even,) = maps.transposed(count, (ones,), quotient(lost, count(ones)))
                mine = mine + even
            shares.append((step.inputs[i], part * mine))
        if not self.options.conserve_bias:
            self.absorb(lost)
        return shares


def pull(step: Step, actives: Sequence[Var], read: maps.Read, given: list[Any]) -> list[Any]:
    """The ordinary derivative of a step, transposed."""

    def run(*inputs: Any) -> list[Any]:
        values = dict(zip(actives, inputs, strict=True))
        operands = [values[a] if a in values else read(a) for a in step.inputs]  # type: ignore[index]
        outputs = bind(step.eqn, operands)
        return [o for o, g in zip(outputs, given, strict=True) if g is not None]

    _, transpose = jax.vjp(run, *(read(v) for v in actives))
    came = zip(step.outputs, given, strict=True)
    return list(transpose([g.astype(v.aval.dtype) for v, g in came if g is not None]))


def _operands(structure: Structure, step: Step) -> int:
    return sum(structure.is_active(atom) for atom in step.inputs)


def product_names(structure: Structure, step: Step) -> list[str]:
    """What a product may be called by: its tags, its layer's path, its line of code."""
    tags = [
        str(user.eqn.params["name"])
        for var in step.outputs
        for user in structure.users[var]
        if user.name == "name"
    ]
    return [*tags, *filter(None, [step.path, step.line]), str(step)]


def _shortest(structure: Structure, step: Step) -> str:
    return product_names(structure, step)[0]


def _names_match(pattern: str, name: str) -> bool:
    """Whether a pattern is a name, a part of a path, or a glob of one."""
    return f"/{pattern}/" in f"/{name}/" or fnmatch.fnmatchcase(name, pattern)


def _matches(where: Where, layer: Affine, layers: int) -> bool:
    if isinstance(where, int):
        return layer.depth == (where if where >= 0 else layers + where)
    if where in _SORTS:
        found = {"input": layer.depth == 0, "conv": layer.is_convolution}
        return found.get(where, not layer.is_convolution)
    return where == "*" or any(_names_match(where, name) for name in layer.names)


def refusal(step: Step, method: str) -> str:
    """Why a method cannot go through a step, and what to do about it."""
    if step.name == "while":
        return (
            f"{step} runs for a number of turns that depends on the data, so that nothing can be "
            "sent back through it: give it a fixed number (jax.lax.scan, or jax.lax.fori_loop with "
            "bounds that are known), or take a method that only evaluates fn, such as occlusion"
        )
    return f"{method} has no rule for {step}"
