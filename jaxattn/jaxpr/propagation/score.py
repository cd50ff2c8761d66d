"""Propagate a score back to the inputs of the function that computes it."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from jaxattn.jaxpr.flat import Atom, Step
from jaxattn.jaxpr.propagation.reverse import propagate
from jaxattn.jaxpr.propagation.walk import Rules, Runs
from jaxattn.jaxpr.real_pairs import with_real_pairs
from jaxattn.jaxpr.structure.facts import Fact
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.hoisted import analyse_whole


class ScoreRules(Rules):
    """Rules of a walk that starts at the score of one target."""

    @abc.abstractmethod
    def start(self, score: Runs) -> Array:
        """Return the cotangent of the score itself."""


class SentBack(NamedTuple):
    """The result of propagating a score.

    Attributes:
        inputs: the cotangent of each input, of its shape and dtype.
        absorbed: the sum of what was absorbed by values that do not depend on the input.
        outputs: what the scored function returned, in each run.
    """

    inputs: list[Array]
    absorbed: Array
    outputs: list[PyTree]


class Analysed(NamedTuple):
    """A function's structure, and the tree structure of its output."""

    structure: Structure
    treedef: jax.tree_util.PyTreeDef


def send_back(
    score: Callable[..., Any],
    runs: Sequence[Sequence[Array]],
    rules: Callable[[Structure], ScoreRules],
) -> SentBack:
    """Propagate a score back to the inputs that it is a function of.

    Args:
        score: returns the score first, and other outputs.
        runs: the arguments of `score` in each run.
        rules: returns the rules, given the structure of `score`.

    Raises:
        ValueError: if the score depends on the arguments through no differentiable path, or if the
            function has ordered side effects.
    """
    facts = [Fact(active=True, depends_on_input=True)] * len(runs[0])
    structure, treedef = structure_of(score, runs[0], facts, exact=len(runs) > 1)
    check_path(structure, structure.flat.outputs[:1])
    rule = rules(structure)
    inputs = [tuple(jnp.asarray(x) for x in values) for values in zip(*runs, strict=True)]

    def seed(outputs: list[Runs]) -> list[Array | None]:
        return [rule.start(outputs[0]), *[None] * (len(outputs) - 1)]

    outputs, cotangents, absorbed = propagate(rule, structure, inputs, seed)
    of_inputs = [
        jnp.zeros_like(x) if cotangent is None else cotangent.astype(x.dtype)
        for cotangent, x in zip(cotangents, runs[0], strict=True)
    ]
    of_runs = [
        jax.tree.unflatten(treedef, [values[i] for values in outputs]) for i in range(len(runs))
    ]
    return SentBack(of_inputs, absorbed, of_runs)


def structure_of(
    fn: Callable[..., Any], inputs: Sequence[PyTree], facts: Sequence[Fact], exact: bool = False
) -> Analysed:
    """Trace a function and analyse its structure.

    Args:
        fn: the function.
        inputs: its arguments, pytrees of arrays.
        facts: what is known about each of these arrays.
        exact: as for `analyse`.

    Raises:
        ValueError: if the function has ordered side effects.
    """
    fresh = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)
    closed, shape = fresh(*inputs)
    if closed.effects:
        raise ValueError(side_effects(closed.effects, "propagated back through"))
    closed = with_real_pairs(closed)
    return Analysed(analyse_whole(closed, facts, exact), jax.tree.structure(shape))


def side_effects(effects: set[Any], what: str) -> str:
    """Return the message of the error that a function has ordered side effects."""
    names = ", ".join(sorted(map(str, effects)))
    return (
        f"`fn` has side effects ({names}), which cannot be {what}: remove them (jax.debug.print, "
        "io_callback)"
    )


def check_path(structure: Structure, outputs: Sequence[Atom]) -> None:
    """Raise if outputs depend on the input through no differentiable path.

    Raises:
        ValueError: if they do.
    """
    facts = [structure.fact(atom) for atom in outputs]
    if any(f.depends_on_input for f in facts) and not any(f.active for f in facts):
        last = [step for step in structure.flat.steps if _ends(structure, step)]
        raise ValueError(
            "`fn` has no differentiable path from x to the target: "
            + (f"{last[0]} ends it" if last else "integers and stop_gradient have no derivative")
        )


def _ends(structure: Structure, step: Step) -> bool:
    """Return whether a path from the input ends at a step."""
    inside = any(structure.is_active(atom) for atom in step.inputs)
    return inside and not any(structure.is_active(var) for var in step.outputs)
