"""A batch of examples: its length, one of its examples, and options with a value for each."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jaxtyping import PyTree

from jaxattn._static import is_array, is_concrete
from jaxattn._types import Inputs, Method
from jaxattn.engine.options import traits_of, without_partial


def batch_length(xs: Inputs, args: tuple[PyTree, ...]) -> int:
    """Return the length of the leading axis, which all leaves share."""
    lengths = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path({"xs": xs, "args": args}):
        if jnp.ndim(leaf) == 0:
            raise ValueError(
                f"`{_name(path)}` must have a leading axis of examples, got a scalar; to explain "
                "one example call the method itself."
            )
        lengths[_name(path)] = jnp.shape(leaf)[0]
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"`xs` and `args` must have leading axes of one length, that of the examples, got "
            f"{lengths}."
        )
    batch = next(iter(lengths.values()))
    if batch == 0:
        raise ValueError("`xs` must hold at least one example, got a leading axis of length 0.")
    return batch


def check_sharding(xs: PyTree, args: tuple[PyTree, ...]) -> None:
    """Raise an error for examples sharded over explicit axes of a mesh: vmap cannot divide them.

    Other axes than that of the examples may be sharded: the rules of JAX hold for them.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path({"xs": xs, "args": args}):
        if not (isinstance(leaf, jax.Array) and is_concrete(leaf)):
            continue
        if not (isinstance(leaf.sharding, NamedSharding) and leaf.sharding.spec):
            continue
        mesh, first = leaf.sharding.mesh, leaf.sharding.spec[0]
        kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
        names = first if isinstance(first, tuple) else (first,)
        explicit = tuple(name for name in names if kinds.get(name) == AxisType.Explicit)
        if explicit:
            name = _name(path)
            raise ValueError(
                f"`mesh` is missing: {name} is sharded over explicit mesh axes {explicit}. Pass "
                f"mesh={name}.sharding.mesh."
            )


def _name(path: tuple[Any, ...]) -> str:
    root: str = path[0].key
    return root + jax.tree_util.keystr(path[1:])


def example_structs(batch: PyTree) -> PyTree:
    """Return the shapes and dtypes of one example of a batch, without its leading axis."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], jnp.result_type(leaf)), batch
    )


def split_batched(
    method: Method, options: dict[str, Any], x: PyTree, batch: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the options that all examples share from those with one value for each example."""
    batched = {}
    inner = without_partial(options.get("method"))  # smooth_grad takes the options of this one too
    for name in (*traits_of(method).per_example, *traits_of(inner).per_example):
        leaves = jax.tree.leaves(options.get(name))
        inputs = jax.tree.leaves(x)
        if len(leaves) != len(inputs) or not all(map(is_array, leaves)):
            continue
        if all(o.ndim == 1 + i.ndim for o, i in zip(leaves, inputs, strict=True)):
            if any(leaf.shape[0] != batch for leaf in leaves):
                raise ValueError(
                    f"`{name}` must have as many examples as xs, {batch}, got {leaves[0].shape[0]}."
                )
            batched[name] = options[name]
    return {name: value for name, value in options.items() if name not in batched}, batched
