"""The placement of arrays on devices: a mesh by examples and evaluations."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxattn._static import is_concrete
from jaxattn.engine.compiled import EVALUATIONS, EXAMPLES, Plan


def part_struct(examples: PyTree, plan: Plan) -> PyTree:
    """Return the abstract value of as many examples as a plan takes."""

    def struct(leaf: PyTree) -> jax.ShapeDtypeStruct:
        shape = jnp.shape(leaf) if plan.single else (plan.examples, *leaf.shape[1:])
        sharding = None if plan.mesh is None else over_examples(plan.mesh)
        if sharding is None and getattr(leaf, "committed", False) and len(leaf.devices()) == 1:
            sharding = leaf.sharding
        return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf), sharding=sharding)

    return jax.tree.map(struct, examples)


def divided(mesh: Mesh, batch: int, evaluations: int) -> Mesh:
    """Return a mesh of the same devices by examples and, if it saves time, evaluations of each.

    Each device makes one evaluation of an example beside its share: all of them need its result.
    """

    def seconds(rows: int) -> int:
        return -(-batch // rows) * (1 - (-evaluations // (mesh.size // rows)))

    # Of equals the most rows: what a method does not chunk is divided by examples only.
    divisors = [rows for rows in range(mesh.size, 0, -1) if mesh.size % rows == 0]
    rows = min(divisors, key=seconds)
    return Mesh(mesh.devices.reshape(rows, -1), (EXAMPLES, EVALUATIONS))


def over_examples(mesh: Mesh) -> NamedSharding:
    """Return the sharding of examples over their axis of a mesh."""
    return NamedSharding(mesh, PartitionSpec(EXAMPLES))


def device_of(leaves: list[Any]) -> jax.Device:
    """Return the device of the first concrete array; the default device if there is none."""
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and is_concrete(leaf):
            return min(leaf.devices(), key=lambda device: device.id)
    default = getattr(jax.config, "jax_default_device")  # noqa: B009  # made at run time
    return default if isinstance(default, jax.Device) else jax.devices(default)[0]


def in_mesh() -> bool:
    """Return whether the caller has set a mesh, which holds in its own thread only."""
    return not jax.sharding.get_abstract_mesh().empty
