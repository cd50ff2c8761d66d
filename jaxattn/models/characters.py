"""A character-level classifier with attention over time steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Integer

from jaxattn import nn


class CharacterClassifier(nnx.Module):
    r"""Binary classifier of texts: character embeddings, a GRU, and feed-forward attention.

    The output is $\sigma(W \sum_t \alpha_t h_t + c)$, where $\alpha$ is the softmax of
    $\tanh(w \cdot h_t + b)$ over the steps. Texts are padded on the left. The attention weights
    are tagged `"attention_vec"`, the embeddings `"embedding"`. The network is that of the Stack
    Overflow question "How to visualize attention weights?", with texts of 250 characters whose
    padding is not masked.

    Args:
        num_characters: V, size of the vocabulary.
        embedding_features: Size of an embedding.
        hidden_features: H, number of units of the GRU.
        param_dtype: Dtype of the weights.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If a size is below 1.
        TypeError: If a size is not an integer, or `param_dtype` is not floating.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> model = ja.models.CharacterClassifier(9, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 5), int), lengths=jnp.array([5, 3])).shape
        (2, 1)
    """

    def __init__(
        self,
        num_characters: int,
        *,
        embedding_features: int = 100,
        hidden_features: int = 250,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if num_characters < 1:
            raise ValueError(f"`num_characters` must be at least 1, got {num_characters}.")
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.gru = nn.GRU(embedding_features, hidden_features, **options)
        self.embedding = nnx.Embed(num_characters, embedding_features, **options)
        self.attention = nn.FeedForwardAttention(hidden_features, name="attention_vec", **options)
        self.head = nnx.Linear(hidden_features, 1, **options)

    def __call__(
        self,
        ids: Integer[ArrayLike, "*batch T"],
        lengths: Integer[ArrayLike, "*batch"] | None = None,
    ) -> Float[Array, "*batch 1"]:
        """Compute the probability of the positive class; arguments and errors as in `logits`."""
        return jax.nn.sigmoid(self.logits(ids, lengths))

    def logits(
        self,
        ids: Integer[ArrayLike, "*batch T"],
        lengths: Integer[ArrayLike, "*batch"] | None = None,
    ) -> Float[Array, "*batch 1"]:
        """Compute the logit of the positive class.

        Args:
            ids: Ids of the characters of a text, shape `(T,)`, or a batch `(..., T)`, padded on the
                left.
            lengths: Number of characters of each text, integers of shape `(...)`. They may be
                traced. By default padding is not masked.

        Returns:
            The logits, shape `(..., 1)`.

        Raises:
            TypeError: If `ids` or `lengths` does not hold integers.
            ValueError: If ids that are not traced lie outside [0, V), `ids` is empty, or `lengths`
                does not match its leading axes or lies outside [0, T].
        """
        ids = jnp.asarray(ids)
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise TypeError(f"`ids` must be integers, got dtype {ids.dtype}.")
        if not (ids.ndim and ids.shape[-1]):
            raise ValueError(f"`ids` must have shape (..., T), got {ids.shape}.")
        size = self.embedding.num_embeddings
        try:
            concrete = np.asarray(ids)
        except jax.errors.TracerArrayConversionError:
            pass  # traced ids are not checked
        else:
            if ((concrete < 0) | (concrete >= size)).any():
                span = f"{concrete.min()} to {concrete.max()}"
                raise ValueError(f"`ids` must lie in [0, {size}), got {span}.")
        # JAX indexes negative traced ids from the end; here they yield NaN, as ids past the end do.
        ids = ids.astype(jnp.int32)
        ids = jnp.where(ids < 0, size, ids)
        embedded = checkpoint_name(self.embedding(ids), "embedding")  # as `jaxattn.tag` does
        outputs = self.gru(embedded, lengths, padding="left").outputs
        mask = None if lengths is None else nn.valid_steps(lengths, ids.shape[-1], "left")
        return self.head(self.attention(outputs, mask).values)
