"""A history over training: norms of weights and gradients, and what a probe measures."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Integer, PyTree


class History(NamedTuple):
    """What `record_history` recorded, with an entry for each training step.

    Attributes:
        taken: The number of steps so far.
        weight_norms: Euclidean norms `(num_steps,)` of the parameters before each step, one for
            each array; NaN for steps that have not been taken.
        gradient_norms: Euclidean norms `(num_steps,)` of the gradients.
        probes: What the probe returned, with a leading axis of steps; None without a probe.
    """

    taken: Integer[Array, ""]
    weight_norms: PyTree[Float[Array, " num_steps"]]
    gradient_norms: PyTree[Float[Array, " num_steps"]]
    probes: PyTree[Array]


def record_history(
    num_steps: int, probe: Callable[[PyTree], PyTree] | None = None
) -> optax.GradientTransformation:
    """Record norms of weights and gradients at each training step, inside of `jax.jit`.

    It is an optax transformation that leaves the updates unchanged. Place it first in
    `optax.chain`, where it receives the gradients; its state is then the first of the chain.

    Args:
        num_steps: The number of training steps to record; later steps overwrite the oldest entry,
            at the position of the step modulo `num_steps`.
        probe: A function of the parameters that returns arrays to record as well, such as the
            saturation of gates for a fixed example.

    Returns:
        The transformation; its state is a `History`. `update` needs the parameters.

    Raises:
        ValueError: If `num_steps` is below 1, or when `update` is called without the parameters.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, jaxattn as ja
        >>> optimizer = optax.chain(ja.introspect.record_history(3), optax.sgd(0.5))
        >>> weights = {"kernel": jnp.array([3.0, 4.0])}
        >>> state = optimizer.init(weights)
        >>> for _ in range(3):
        ...     gradients = jax.grad(lambda w: (w["kernel"] ** 2).sum() / 2)(weights)
        ...     updates, state = optimizer.update(gradients, state, weights)
        ...     weights = optax.apply_updates(weights, updates)
        >>> print(state[0].weight_norms["kernel"])
        [5.   2.5  1.25]
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1, got {num_steps}.")

    def empty(struct: jax.ShapeDtypeStruct) -> Array:
        fill = jnp.nan if jnp.issubdtype(struct.dtype, jnp.inexact) else 0
        return jnp.full((num_steps, *struct.shape), fill, struct.dtype)

    def init(params: PyTree) -> History:
        norms = jax.tree.map(empty, jax.eval_shape(_norms, params))
        probes = None if probe is None else jax.tree.map(empty, jax.eval_shape(probe, params))
        return History(jnp.zeros((), jnp.int32), norms, norms, probes)

    def update(
        updates: PyTree, state: History, params: PyTree | None = None
    ) -> tuple[PyTree, History]:
        if params is None:
            raise ValueError("`params` must be passed to `update` of `record_history`, got None.")
        entries = (_norms(params), _norms(updates), None if probe is None else probe(params))
        kept = state.weight_norms, state.gradient_norms, state.probes
        position = state.taken % num_steps
        recorded = jax.tree.map(lambda all_, entry: all_.at[position].set(entry), kept, entries)
        return updates, History(state.taken + 1, *recorded)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _norms(arrays: PyTree) -> PyTree[Any]:
    return jax.tree.map(lambda array: jnp.sqrt(jnp.square(jnp.abs(array)).sum()), arrays)
