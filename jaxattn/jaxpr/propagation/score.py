"""Sends a score back through the function that it comes out of."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxattn.jaxpr.flat import Atom, Step
from jaxattn.jaxpr.propagation.reverse import Reverse, Rules, Runs
from jaxattn.jaxpr.structure.facts import Fact
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.hoisted import analyse_whole


class ScoreRules(Rules, Protocol):
    """Rules that begin at a score."""

    def start(self, score: Runs) -> Any:
        """What the score itself gets."""


def send_back(
    score: Callable[..., Any],
    runs: Sequence[Sequence[Any]],
    rules: Callable[[Structure], ScoreRules],
) -> tuple[list[Any], Any, list[Any]]:
    """Sends a score back to what it is a function of.

    Args:
        score: answers the score, and what else is wanted of it.
        runs: the arguments of `score`, arrays, in each run.
        rules: makes the rules from the structure of `score`.

    Returns:
        what each argument got, zeros where that is nothing; what was absorbed; and the answers of
        `score`, in each run.

    Raises:
        ValueError: if the score depends on the arguments through no differentiable path, or if the
            function has side effects in an order.
    """
    facts = [Fact(active=True, depends_on_input=True)] * len(runs[0])
    structure, treedef = structure_of(score, runs[0], facts, exact=len(runs) > 1)
    check_path(structure, structure.flat.outputs[:1])
    rule = rules(structure)
    inputs = [tuple(values) for values in zip(*runs, strict=True)]

    def seed(outputs: list[Runs]) -> list[Any]:
        return [rule.start(outputs[0]), *[None] * (len(outputs) - 1)]

    outputs, got, absorbed = Reverse(rule)(structure, inputs, seed)
    answers = [
        jax.tree.unflatten(treedef, [values[i] for values in outputs]) for i in range(len(runs))
    ]
    shares = [
        jnp.zeros_like(x) if g is None else g.astype(x.dtype)
        for g, x in zip(got, runs[0], strict=True)
    ]
    return shares, absorbed, answers


def structure_of(
    fn: Callable[..., Any], inputs: Sequence[Any], facts: Sequence[Fact], exact: bool = False
) -> tuple[Structure, Any]:
    """What a function is made of, and the structure of its answer.

    Args:
        fn: the function.
        inputs: what it is called with, pytrees of arrays.
        facts: what is known about each of these arrays.
        exact: as for `analyse`.

    Raises:
        ValueError: if the function has side effects in an order.
    """
    fresh = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)
    closed, shape = fresh(*inputs)
    if closed.effects:
        raise ValueError(
            f"fn has side effects ({', '.join(sorted(map(str, closed.effects)))}), which cannot "
            "be sent back through: leave them out (jax.debug.print, io_callback)"
        )
    return analyse_whole(closed, facts, exact), jax.tree.structure(shape)


def check_path(structure: Structure, outputs: Sequence[Atom]) -> None:
    """Refuses outputs that depend on the input through no differentiable path.

    Raises:
        ValueError: if they do.
    """
    facts = [structure.fact(atom) for atom in outputs]
    if any(f.depends_on_input for f in facts) and not any(f.active for f in facts):
        last = [s for s in structure.flat.steps if _ends(structure, s)]
        raise ValueError(
            "fn has no differentiable path from x to the target: "
            + (f"{last[0]} ends it" if last else "integers and stop_gradient carry no relevance")
        )


def _ends(structure: Structure, step: Step) -> bool:
    """Whether relevance could come to a step, and go no further."""
    inside = any(structure.is_active(atom) for atom in step.inputs)
    return inside and not any(structure.is_active(var) for var in step.outputs)
