"""A causal function of a series, as a function of each time step given the states before it.

A loop over time knows the past by its carry alone. With the carries of one run all time steps are
computed side by side, each from its own row of the input: a change of a row reaches the output of
its own time step, and the past of every step is that of the run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxattn.jaxpr.flat import (
    Flat,
    Step,
    Var,
    flatten,
    has_custom_derivative,
    is_replayable,
)
from jaxattn.jaxpr.interpreter import Value, bind, reemit
from jaxattn.jaxpr.reuse.extent_rules import Restricted, propagate
from jaxattn.jaxpr.reuse.extents import UNCHANGED, Rows
from jaxattn.jaxpr.reuse.step_values import Values, read

#: For each loop its carries before, or after, each time step; leaves (T, ...).
States: TypeAlias = list[list[jax.Array]]

# Custom derivative rules stay as they are.
_OPENED = ("jit", "closed_call", "core_call", "checkpoint", "remat", "remat2")


@dataclass(frozen=True)
class CausalSteps:
    """A function whose output at a time step depends on that row of the input and on earlier ones.

    Attributes:
        flat: the function, without steps that nothing reads.
        treedef: the structure of its output.
        loops: the scans over time.
    """

    flat: Flat
    treedef: jax.tree_util.PyTreeDef
    loops: Sequence[Step]

    @classmethod
    def of(cls, fn: Callable[[Any], PyTree], x: PyTree) -> "CausalSteps | None":
        """Analyse a function of a series.

        Args:
            fn: the function.
            x: its input, abstract or not; the first axis of each leaf is time.

        Returns:
            the function by time steps; `None` where rows of the input are mixed by anything but
            loops that run forward, or where the output has no leading axis of time.
        """
        # JAX caches the trace of a function by its identity; this one may have changed since.
        closed, output = jax.make_jaxpr(lambda x: fn(x), return_shape=True)(x)
        flat = _without_unread(flatten(closed, opened=_OPENED))
        length = flat.inputs[0].shape[0]
        if not is_replayable(flat):
            return None
        axes = _time_axes(flat, dict.fromkeys(flat.inputs, 0), length)
        if axes is None or any(out.aval.shape[:1] != (length,) for out in flat.outputs):
            return None
        if any(isinstance(out, Var) and axes.get(out, 0) != 0 for out in flat.outputs):
            return None
        loops = [s for s in flat.steps if s.name == "scan" and any(v in axes for v in s.variables)]
        return cls(flat, jax.tree.structure(output), loops)

    def states(self, x: PyTree) -> States:
        """Run the function, and return the carries of its loops before each time step."""
        found: States = []

        def run(step: Step, operands: Sequence[Value]) -> Sequence[Value]:
            outputs, carries = _scan_with_carries(step, operands)
            found.append(carries)
            return outputs

        self._run(x, run)
        return found

    def advance(self, x: PyTree, states: States) -> tuple[PyTree, States]:
        """Compute all time steps side by side.

        Args:
            x: a row for each time step.
            states: the carries of the loops before each time step.

        Returns:
            the output of each time step, and the carries after it.
        """
        before, after = iter(states), list[list[jax.Array]]()

        def run(step: Step, operands: Sequence[Value]) -> Sequence[Value]:
            n_consts, n_carry = step.counts
            consts, rows = operands[:n_consts], operands[n_consts + n_carry :]
            body = jex.jaxpr_as_fun(step.eqn.params["jaxpr"])
            in_axes = [*[None] * n_consts, *[0] * (n_carry + len(rows))]
            outputs = jax.vmap(body, in_axes)(*consts, *next(before), *rows)
            after.append(list(outputs[:n_carry]))
            return outputs

        return self._run(x, run), after

    def _run(
        self, x: PyTree, run_loop: Callable[[Step, Sequence[Value]], Sequence[Value]]
    ) -> PyTree:
        values: Values = {**self.flat.constants}
        values.update(zip(self.flat.inputs, jax.tree.leaves(x), strict=True))
        for step in self.flat.steps:
            operands = read(step.inputs, values)
            is_loop = step in self.loops
            outputs = run_loop(step, operands) if is_loop else bind(step.eqn, operands)
            values.update(zip(step.outputs, outputs, strict=True))
        return jax.tree.unflatten(self.treedef, read(self.flat.outputs, values))


def _scan_with_carries(
    step: Step, operands: Sequence[Value]
) -> tuple[Sequence[Value], list[jax.Array]]:
    """Run a scan, and return its outputs and its carries before each time step."""
    n_consts, n_carry = step.counts

    def inside(closed: jex.ClosedJaxpr) -> Callable[..., tuple[tuple[Value, ...], PyTree]]:
        def body(_: PyTree, *inputs: Value) -> tuple[tuple[Value, ...], PyTree]:
            outputs = jex.jaxpr_as_fun(closed)(*inputs)
            return tuple(outputs), list(inputs[n_consts : n_consts + n_carry])

        return body

    result = reemit(step.eqn, operands, inside)
    assert result is not None  # it is a scan
    outputs, carries = result
    return outputs, [jnp.asarray(carry) for carry in carries]


def _without_unread(flat: Flat) -> Flat:
    """Return a function without the steps that nothing reads: they may mix time steps."""
    needed = {out for out in flat.outputs if isinstance(out, Var)}
    kept = []
    for step in reversed(flat.steps):
        if step.eqn.effects or needed.intersection(step.outputs):
            kept.append(step)
            needed.update(step.variables)
    return Flat(flat.inputs, flat.constants, kept[::-1], flat.outputs, flat.opened)


def _time_axes(flat: Flat, axes: dict[Var, int], length: int) -> dict[Var, int] | None:
    """Return the axis of time of each value that depends on the input.

    Args:
        flat: a function without steps that nothing reads.
        axes: the axes of its inputs.
        length: the number of time steps.

    Returns:
        the axes; `None` if a row of a value may depend on another row of the input, other than
        through the carry of a loop that runs forward.
    """
    final: set[Var] = set()  # carries after the last time step, which depend on all rows
    for step in flat.steps:
        if final.intersection(step.variables):
            return None
        if not any(v in axes for v in step.variables):
            continue
        if step.name == "scan":
            if not _runs_over_time(step, axes, length):
                return None
            n_carry = step.counts[1]
            final.update(step.outputs[:n_carry])
            axes |= dict.fromkeys(step.outputs[n_carry:], 0)
            continue
        found = _axes_of_outputs(step, axes, length)
        if found is None:
            return None
        axes |= found
    return None if final.intersection(flat.outputs) else axes


def _runs_over_time(step: Step, axes: Mapping[Var, int], length: int) -> bool:
    """Return whether a scan runs forward over time, from a start that does not change."""
    first_row = sum(step.counts)
    params = step.eqn.params
    if params["reverse"] or params["length"] != length:
        return False
    return all(
        atom not in axes or (i >= first_row and axes[atom] == 0)
        for i, atom in enumerate(step.inputs)
        if isinstance(atom, Var)
    )


def _axes_of_outputs(step: Step, axes: Mapping[Var, int], length: int) -> dict[Var, int] | None:
    """Return the axis of time of the outputs of a step; `None` if it may mix time steps."""
    if has_custom_derivative(step):
        return _axes_of_call(step, axes, length)
    if step.bodies:
        return None
    found: dict[Var, int] = {}
    for t in (0, length - 1):  # no rule depends on the position otherwise
        extents = [
            Rows(axes[atom], t, t + 1) if isinstance(atom, Var) and atom in axes else UNCHANGED
            for atom in step.inputs
        ]
        how = propagate(step, extents)
        if not isinstance(how, Restricted):
            return None
        for out, extent in zip(step.outputs, how.outputs, strict=True):
            if not isinstance(extent, Rows) or (extent.lo, extent.hi) != (t, t + 1):
                return None
            if (
                out.shape[extent.axis] != length
                or found.setdefault(out, extent.axis) != extent.axis
            ):
                return None
    return found


def _axes_of_call(step: Step, axes: Mapping[Var, int], length: int) -> dict[Var, int] | None:
    """Return the axes of a function with a custom derivative rule, by those of its body."""
    body = _without_unread(step.bodies[0])
    if len(body.inputs) != len(step.inputs) or any(s.name == "scan" for s in body.steps):
        return None
    pairs = zip(body.inputs, step.inputs, strict=True)
    inner = {v: axes[atom] for v, atom in pairs if isinstance(atom, Var) and atom in axes}
    found = _time_axes(body, inner, length)
    if found is None:
        return None
    outputs = zip(step.outputs, body.outputs, strict=True)
    return {out: found[v] for out, v in outputs if isinstance(v, Var) and v in found}
