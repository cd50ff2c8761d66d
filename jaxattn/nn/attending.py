"""What every attention layer answers, and the softmax that makes its weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float


class Attended(NamedTuple):
    """What an attention layer returns.

    Attributes:
        values: the weighted sums, one for each query.
        weights: how much of each position every query reads: not negative; over the positions they
            sum to 1, unless the layer says otherwise, or to 0 for a query that may read none.
    """

    values: Float[Array, "..."]
    weights: Float[Array, "*queries T"]


def masked_softmax(
    scores: Float[Array, "*queries T"], mask: Bool[ArrayLike, "..."] | None = None
) -> Float[Array, "*queries T"]:
    """Turn scores into weights over the positions that may be read.

    What stands at the other positions changes nothing, NaN included, and gets no gradient.

    Args:
        scores: one for each query and position.
        mask: True at positions that may be read; broadcasts to `scores`. None: at all.

    Returns:
        Weights that sum to 1 over the last axis; all zero where nothing may be read.

    Raises:
        TypeError: a mask that is not boolean.
        ValueError: a mask that does not broadcast to `scores`.
    """
    if mask is None:
        return jax.nn.softmax(scores)
    mask = _broadcast(mask, scores.shape)
    # The least finite number, not -inf: the softmax of a row of -inf is NaN.
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min))
    return jnp.where(mask, weights, 0)


def checked_mask(mask: ArrayLike, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """The mask of sequences: over leading axes it is broadcast, but each step has its own entry."""
    found = _broadcast(mask, shape)
    if jnp.shape(mask)[-1:] != shape[-1:]:
        raise ValueError(f"mask must have shape {shape}, an entry a step, got {jnp.shape(mask)}")
    return found


def _broadcast(mask: ArrayLike, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"mask must be boolean, True at what may be read; got dtype {mask.dtype}")
    fits = mask.ndim <= len(shape) and all(
        size in (1, wanted) for size, wanted in zip(mask.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"mask must broadcast to shape {shape}, got {mask.shape}")
    return jnp.broadcast_to(mask, shape)
