"""Propagate cotangents back through a function: plan first, then compute."""

from collections.abc import Sequence

import jax

from jaxattn.jaxpr.propagation.loop_plans import Planner
from jaxattn.jaxpr.propagation.loops import Runner
from jaxattn.jaxpr.propagation.walk import Propagated, Rules, Runs, Seed
from jaxattn.jaxpr.structure.graph import Structure


def propagate(rules: Rules, structure: Structure, inputs: Sequence[Runs], seed: Seed) -> Propagated:
    """Run a function forwards, and propagate cotangents from its outputs back to its inputs.

    Args:
        rules: turn the cotangents of a step's outputs into those of its operands.
        structure: the function.
        inputs: its inputs, each in all runs.
        seed: computes the cotangents of its outputs from their values.

    Returns:
        the outputs, the cotangents of the inputs, and what was absorbed.
    """
    planner = Planner(rules)
    jax.eval_shape(lambda inputs: planner(structure, inputs, seed), list(inputs))
    return Runner(rules, planner.plans)(structure, list(inputs), seed)
