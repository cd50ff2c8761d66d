"""The result of attention layers, and the masked softmax of their scores."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float


class Attended(NamedTuple):
    """The result of an attention layer.

    Attributes:
        values: Weighted sums, one per query.
        weights: Non-negative attention weights of each query over the positions. They sum to 1
            unless the layer documents otherwise, and to 0 if all positions are masked.
    """

    values: Float[Array, "..."]
    weights: Float[Array, "*queries T"]


def masked_softmax(
    scores: Float[Array, "*queries T"], mask: Bool[ArrayLike, "..."] | None = None
) -> Float[Array, "*queries T"]:
    """Compute the softmax over unmasked positions.

    Scores at masked positions, NaN included, do not affect the result and have a gradient of zero.

    Args:
        scores: Scores of each query and position, shape `(*queries, T)`.
        mask: True at positions that may be attended to; broadcasts to `scores`. All by default.

    Returns:
        Weights of the shape of `scores`. They sum to 1 over the last axis, and are zero if all
        positions are masked.

    Raises:
        TypeError: If `mask` is not boolean.
        ValueError: If `mask` does not broadcast to `scores`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> weights = ja.nn.masked_softmax(jnp.zeros(4), jnp.array([True, True, False, False]))
        >>> weights.tolist()
        [0.5, 0.5, 0.0, 0.0]
    """
    if mask is None:
        return jax.nn.softmax(scores)
    mask = _broadcast(mask, scores.shape)
    # The least finite number instead of -inf: the softmax of a row of -inf is NaN.
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min))
    return jnp.where(mask, weights, 0)


def checked_mask(mask: ArrayLike, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Return a mask of sequences, broadcast over leading axes but not over time steps."""
    broadcast = _broadcast(mask, shape)
    if jnp.shape(mask)[-1:] != shape[-1:]:
        raise ValueError(
            f"`mask` must have shape {shape}, one entry per step, got {jnp.shape(mask)}."
        )
    return broadcast


def _broadcast(mask: ArrayLike, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"`mask` must be boolean, True at valid positions, got dtype {mask.dtype}.")
    fits = mask.ndim <= len(shape) and all(
        size in (1, full) for size, full in zip(mask.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(f"`mask` must broadcast to shape {shape}, got {mask.shape}.")
    return jnp.broadcast_to(mask, shape)
