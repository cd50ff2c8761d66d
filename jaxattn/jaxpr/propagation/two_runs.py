"""The values of two runs of a function, and the rule for elements that each run chooses."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxattn.jaxpr.flat import Atom
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.propagation.score import ScoreRules
from jaxattn.jaxpr.propagation.secants import bounded, secant
from jaxattn.jaxpr.propagation.walk import (
    Cotangent,
    Read,
    Visit,
    cotangents_of,
    transpose_step,
)
from jaxattn.jaxpr.structure.primitive_classes import CHOOSING, SELECTING


class TwoRuns(ScoreRules):
    """Rules for differences between two runs, at the input and at a baseline."""

    def wide(self, value: ArrayLike) -> Array:
        """Return a value in at least the precision of the multipliers; a truth value as 0 or 1."""
        value = jnp.asarray(value)
        floating = jnp.issubdtype(value.dtype, jnp.inexact)
        return value.astype(jnp.promote_types(value.dtype, self.dtype) if floating else self.dtype)

    def wide_runs(self, visit: Visit, atom: Atom) -> list[Array]:
        """Return the value of an operand in both runs, as numbers; see `wide`."""
        return [self.wide(value) for value in visit.memory[atom]]

    def reads(self, visit: Visit) -> list[Read]:
        """Return what reads the operands of a step in each run, truth values as numbers."""
        choices = visit.structure.choices(visit.step)

        def read(run: int, atom: Atom) -> ArrayLike:
            value = visit.memory[atom][run]
            if atom in choices or jnp.issubdtype(jnp.result_type(value), jnp.inexact):
                return value
            return self.wide(value)

        return [functools.partial(read, run) for run in (0, 1)]

    def choice(self, visit: Visit) -> list[Cotangent] | None:
        """Pass on the multipliers of the elements that a mask, indices or an order choose.

        If the runs choose differently, take the mean over both choices. A mask gets the rest of the
        change. That of indices and of an order is not propagated; there is none where the choice
        of one run is right for the other too, as among equal elements of a baseline.
        """
        step, structure = visit.step, visit.structure
        if not (step.name in CHOOSING or step.name in SELECTING):
            return None
        actives, reads = visit.actives, self.reads(visit)
        masked = step.name == "select_n" and structure.is_active(step.inputs[0])
        weights = None if masked else self._agreement(visit, reads)
        sums: list[Array] = []
        for run, read in enumerate(reads):
            parts = [
                None if g is None else g * (w if run == 0 else 1 - w)
                for g, w in zip(visit.cotangents, weights or [0.5] * len(step.outputs), strict=True)
            ]
            values = transpose_step(step, actives, read, parts)
            sums = [a + b for a, b in zip(sums, values, strict=True)] if sums else values
        multipliers = cotangents_of(actives, sums)
        if masked:
            multipliers.append(Cotangent(step.inputs[0], self._of_mask(visit)))
        return multipliers

    def _agreement(self, visit: Visit, reads: list[Read]) -> list[ArrayLike]:
        """Return the weight of the choice of the first run, for each element of the outputs.

        It is 1 where that choice is right for both runs, 0 where that of the other run is, and one
        half elsewhere.
        """
        step, choices = visit.step, visit.structure.choices(visit.step)
        quantities = [
            atom
            for atom in dict.fromkeys(step.inputs)
            if atom not in choices and jnp.issubdtype(atom.aval.dtype, jnp.inexact)
        ]

        def chosen(by: Read, of: Read) -> list[Array]:
            """Return what the choice of one run takes from the values of another."""

            def run(*values: Array) -> list[Array]:
                given = dict(zip(quantities, values, strict=True))
                operands = [given[a] if a in given else by(a) for a in step.inputs]
                return list(bind(step.eqn, operands))

            points, others = ([jnp.asarray(read(a)) for a in quantities] for read in (by, of))
            return jax.jvp(run, points, others)[1]

        first, second = reads
        own, other = chosen(first, first), chosen(second, second)
        by_first, by_second = chosen(first, second), chosen(second, first)
        half = jnp.asarray(0.5, self.dtype)
        return [
            jnp.where(b == y0, 1, jnp.where(a == y, 0, half)) if var.is_floating else 0.5
            for var, y, y0, b, a in zip(step.outputs, own, other, by_first, by_second, strict=True)
        ]

    def _of_mask(self, visit: Visit) -> Array:
        """Return the multiplier of the mask of a `select_n`."""
        (mask, mask0), *cases = (visit.memory[atom] for atom in visit.step.inputs)
        changes = []
        for run in (0, 1):
            chosen, chosen0 = (
                bounded(self.wide(jax.lax.select_n(m, *(case[run] for case in cases))))
                for m in (mask, mask0)
            )
            changes.append(chosen - chosen0)
        change = jnp.asarray(0.5, changes[0].dtype) * (changes[0] + changes[1])
        m, m0 = (jnp.broadcast_to(self.wide(m), change.shape) for m in (mask, mask0))
        return visit.cotangent * secant(change, m, m0, None).astype(self.dtype)
