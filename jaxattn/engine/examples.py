"""A batch of examples: how long it is, what one of them is, and what each has for itself."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jaxtyping import Array, Shaped

from jaxattn._static import is_array, is_concrete
from jaxattn._types import Attribution, Inputs, RandomKey
from jaxattn.engine.options import traits_of


def batch_length(xs: Inputs, args: Any) -> int:
    """The length of the leading axis that all leaves share."""
    lengths = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path({"xs": xs, "args": args}):
        if jnp.ndim(leaf) == 0:
            raise ValueError(
                f"{_name(path)} must have a leading axis of examples, got a scalar; "
                "to explain one example call the method itself"
            )
        lengths[_name(path)] = jnp.shape(leaf)[0]
    if len(set(lengths.values())) > 1:
        raise ValueError(f"xs and args must have equally many examples, got {lengths}")
    batch = next(iter(lengths.values()))
    if batch == 0:
        raise ValueError("xs holds no examples: its leading axis has length 0")
    return batch


def check_sharding(xs: Inputs, args: Any) -> None:
    """Refuses examples spread over explicit axes of a mesh, which vmap and chunks cannot divide.

    Other axes than that of the examples may be spread: JAX's own rules hold for them.
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
                f"{name} is sharded over explicit mesh axes {explicit}: "
                f"give mesh=..., such as {name}.sharding.mesh"
            )


def _name(path: tuple[Any, ...]) -> str:
    return path[0].key + jax.tree_util.keystr(path[1:])


@functools.partial(jax.jit, static_argnums=1)
def example_keys(key: RandomKey, batch: int) -> Shaped[Array, "B ..."]:
    """A random key for each example, by its index: chunks and devices change no draw."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch))


def example_structs(batch: Any) -> Any:
    """The shapes and dtypes of one example of a batch, without its leading axis."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], jnp.result_type(leaf)), batch
    )


def split_batched(
    method: Callable[..., Attribution], options: dict[str, Any], x: Any, batch: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts the options that all examples share from those with one value for each example."""
    batched = {}
    for name in traits_of(method).per_example:
        leaves = jax.tree.leaves(options.get(name))
        inputs = jax.tree.leaves(x)
        if len(leaves) != len(inputs) or not all(map(is_array, leaves)):
            continue
        if all(o.ndim == 1 + i.ndim for o, i in zip(leaves, inputs, strict=True)):
            if any(leaf.shape[0] != batch for leaf in leaves):
                raise ValueError(f"{name} has {leaves[0].shape[0]} examples where xs has {batch}")
            batched[name] = options[name]
    return {name: value for name, value in options.items() if name not in batched}, batched
