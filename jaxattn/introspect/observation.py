"""A traced model, one of its recurrent layers, and a run that observes it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from jaxattn.introspect.results import Gates, gates_of
from jaxattn.jaxpr.flat import Flat, Var, flatten
from jaxattn.jaxpr.interpreter import Value
from jaxattn.jaxpr.recurrence.observed_runs import Changes, Run, run, run_body, units
from jaxattn.jaxpr.recurrence.recurrent_layers import Layer, choose, find_layers, nested_layers


@dataclasses.dataclass(frozen=True, eq=False)
class Observation:
    """A model that is traced for an input, and one of its recurrent layers.

    Attributes:
        flat: the program of the model.
        treedef: the structure of its output.
        inputs: its inputs, flattened.
        layer: the layer.
    """

    flat: Flat
    treedef: jax.tree_util.PyTreeDef
    inputs: list[Value]
    layer: Layer

    def run(self, changes: Changes | None = None, inputs: list[Value] | None = None) -> Run:
        """Run the model, and observe the layer."""
        return run(self.flat, self.inputs if inputs is None else inputs, self.layer, changes)

    def output(self, run: Run) -> PyTree:
        """Return the output of the model in its structure."""
        return jax.tree.unflatten(self.treedef, run.outputs)

    def in_time(self, values: Array) -> Array:
        """Return values of the steps of the scan in the order of the layer's input."""
        return values[::-1] if self.layer.flipped else values

    def by_gate(self, values: dict[str, Any]) -> Gates[Any]:
        """Return values by gate."""
        return gates_of(self.layer.cell.kind, values)

    def over_time(self, run: Run, var: Var) -> Array:
        """Return the values of a variable of the body at all steps, in the order of the scan."""
        n_consts = self.layer.scan.counts[0]
        consts = [
            run.env[atom] if isinstance(atom, Var) else atom.val
            for atom in self.layer.scan.inputs[:n_consts]
        ]

        def value(before: list[Array], slices: list[Array]) -> Array:
            return jnp.asarray(run_body(self.layer, [*consts, *before, *slices])[var])

        return jax.vmap(value)(run.observed.before, run.observed.slices)

    def hidden_before(self, run: Run) -> Array:
        """Return the hidden states `(T, H)` before each step, in the order of the scan."""
        before = run.observed.before[self.layer.cell.hidden]
        return before.reshape(self.layer.length, -1)


def layers_of(fn: Callable[..., PyTree], inputs: tuple[PyTree, ...]) -> list[Layer]:
    """Return the recurrent layers of a function, traced for abstract inputs."""
    return find_layers(flatten(jax.make_jaxpr(lambda *args: fn(*args))(*inputs)))


def observe(
    fn: Callable[..., PyTree], inputs: tuple[PyTree, ...], name: str | None, gates: bool = True
) -> Observation:
    """Trace a function, and select one of its recurrent layers.

    Args:
        fn: the function.
        inputs: its inputs.
        name: the name of the layer; `None` for the only one.
        gates: whether its gates have to be known.

    Raises:
        ValueError: if there is no such layer, or its gates are not recognised.
    """
    closed, output = jax.make_jaxpr(lambda *args: fn(*args), return_shape=True)(*inputs)
    flat = flatten(closed)
    found = find_layers(flat)
    layer = choose(found, name, 0 if found else nested_layers(flat))
    if gates and layer.cell.kind == "unknown":
        raise ValueError(
            f"`layer` {layer.name!r} must be an LSTM, a GRU or a simple recurrent network; its "
            "equations are of another kind, which has `states` and `state_jacobians` alone."
        )
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(inputs)]
    return Observation(flat, jax.tree.structure(output), leaves, layer)


def units_of(layer: Layer) -> int:
    """Return the number of units of a layer; 0 for an unknown kind."""
    return 0 if layer.cell.kind == "unknown" else units(layer)
