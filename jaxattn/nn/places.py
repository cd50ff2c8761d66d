"""Pure functions of attention over the places of an image (Xu et al. 2015)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from jaxattn.nn.attending import checked_mask


class SpatialWeights(NamedTuple):
    """Weights of the scores of places: D annotation features, H units of the decoder."""

    annotation: Float[Array, "D units"]
    state: Float[Array, "H units"]
    bias: Float[Array, " units"]
    score: Float[Array, " units"]


def spatial_keys(
    weights: SpatialWeights, annotations: Float[Array, "L D"]
) -> Float[Array, "L units"]:
    """Compute the part of the scores that is the same at every step, $a W_a + b$.

    Args:
        weights: Weights of the scores.
        annotations: Annotations of one image, shape `(L, D)`.

    Returns:
        The keys for `spatial_scores`, shape `(L, units)`.

    Reference:
        Xu et al. 2015, Show, attend and tell, arXiv:1502.03044.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> layer = ja.nn.SoftSpatialAttention(8, 4, 6, rngs=nnx.Rngs(0))
        >>> ja.nn.spatial_keys(layer.weights(), jnp.ones((9, 8))).shape
        (9, 6)
    """
    return annotations @ weights.annotation + weights.bias[None]


def spatial_scores(
    weights: SpatialWeights, keys: Float[Array, "L units"], hidden: Float[Array, " H"]
) -> Float[Array, " L"]:
    r"""Compute the score of each place, $e_i = w \cdot \tanh(a_i W_a + h W_h + b)$.

    Args:
        weights: Weights with `state` $W_h$ and `score` $w$; the others are part of the keys.
        keys: Keys of the annotations from `spatial_keys`, shape `(L, units)`.
        hidden: Hidden state of the decoder, shape `(H,)`.

    Returns:
        The scores, shape `(L,)`.

    Reference:
        Xu et al. 2015, Show, attend and tell, arXiv:1502.03044.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> layer = ja.nn.SoftSpatialAttention(8, 4, 6, rngs=nnx.Rngs(0))
        >>> keys = ja.nn.spatial_keys(layer.weights(), jnp.ones((9, 8)))
        >>> ja.nn.spatial_scores(layer.weights(), keys, jnp.ones(4)).shape
        (9,)
    """
    return jnp.tanh(keys + (hidden @ weights.state)[None]) @ weights.score


def choose_position(
    weights: Float[Array, " L"], key: PRNGKeyArray | None = None
) -> Integer[Array, ""]:
    """Draw a place by its weight, or choose the one with the largest weight.

    Args:
        weights: Weights of the places, shape `(L,)`.
        key: Key of the draw; the place with the largest weight by default.

    Returns:
        The index of the place.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> int(ja.nn.choose_position(jnp.array([0.2, 0.7, 0.1])))
        1
    """
    if key is None:
        return weights.argmax().astype(jnp.int32)
    return jax.random.categorical(key, jnp.log(weights)).astype(jnp.int32)


def read_position(
    annotations: Float[Array, "L D"], position: Integer[Array, ""]
) -> Float[Array, " D"]:
    """Return the annotation of one place.

    Args:
        annotations: Annotations of one image, shape `(L, D)`.
        position: Index of the place.

    Returns:
        The annotation, shape `(D,)`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> ja.nn.read_position(jnp.eye(3), jnp.array(1)).tolist()
        [0.0, 1.0, 0.0]
    """
    # Relevance propagates through a selection, but not through an index computed from the input.
    chosen = jnp.arange(len(annotations), dtype=position.dtype) == position
    return jnp.where(chosen[:, None], annotations, 0).sum(0)


def doubly_stochastic_penalty(
    weights: Float[ArrayLike, "*batch T L"], mask: Bool[ArrayLike, "..."] | None = None
) -> Float[Array, "*batch"]:
    r"""Compute the doubly stochastic penalty, $\sum_i (1 - \sum_t \alpha_{ti})^2$.

    It is zero if the attention weights of each place sum to 1 over the steps.

    Args:
        weights: Attention weights of each step and place, shape `(..., T, L)`.
        mask: True at valid steps; broadcasts to `(..., T)`. All by default.

    Returns:
        The penalty of each example, shape `(...)`.

    Raises:
        TypeError: If `mask` is not boolean.
        ValueError: If `mask` does not broadcast to `(..., T)`.

    Reference:
        Xu et al. 2015, Show, attend and tell, arXiv:1502.03044, section 4.2.1.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> float(ja.nn.doubly_stochastic_penalty(jnp.eye(4)))
        0.0
    """
    weights = jnp.asarray(weights)
    if mask is not None:
        weights = jnp.where(checked_mask(mask, weights.shape[:-1])[..., None], weights, 0)
    return ((1 - weights.sum(-2)) ** 2).sum(-1)
