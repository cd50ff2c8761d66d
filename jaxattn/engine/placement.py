"""Which devices hold what: a mesh by examples and evaluations, and where arrays are."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxattn._static import is_concrete
from jaxattn.engine.compiled import EVALUATIONS, EXAMPLES, Plan


def part_struct(examples: Any, plan: Plan) -> Any:
    """As many examples as a plan takes, abstractly."""

    def struct(leaf: Any) -> jax.ShapeDtypeStruct:
        shape = jnp.shape(leaf) if plan.single else (plan.examples, *leaf.shape[1:])
        sharding = None if plan.mesh is None else over_examples(plan.mesh)
        if sharding is None and getattr(leaf, "committed", False) and len(leaf.devices()) == 1:
            sharding = leaf.sharding
        return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf), sharding=sharding)

    return jax.tree.map(struct, examples)


def divided(mesh: Mesh, batch: int, evaluations: int) -> Mesh:
    """The devices of a mesh by examples and, where it saves time, evaluations inside of each.

    Each device makes one evaluation an example beside its share: what they all need first.
    """

    def seconds(rows: int) -> int:
        return -(-batch // rows) * (1 - (-evaluations // (mesh.size // rows)))

    # Of equals the most rows: what a method does not put into chunks is shared out only by examples
    divisors = [rows for rows in range(mesh.size, 0, -1) if mesh.size % rows == 0]
    rows = min(divisors, key=seconds)
    return Mesh(mesh.devices.reshape(rows, -1), (EXAMPLES, EVALUATIONS))


def over_examples(mesh: Mesh) -> NamedSharding:
    """Examples spread over their axis of a mesh."""
    return NamedSharding(mesh, PartitionSpec(EXAMPLES))


def device_of(leaves: list[Any]) -> jax.Device:
    """The device that holds the first of some concrete arrays; JAX's default if there are none."""
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and is_concrete(leaf):
            return min(leaf.devices(), key=lambda device: device.id)
    config: Any = jax.config  # its flags are made at run time
    default = config.jax_default_device
    return default if isinstance(default, jax.Device) else jax.devices(default)[0]


def in_mesh() -> bool:
    """Whether the caller has set a mesh, which holds in its own thread only."""
    return not jax.sharding.get_abstract_mesh().empty
