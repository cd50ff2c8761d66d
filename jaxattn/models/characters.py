"""A character-level classifier with attention over its steps."""

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
    r"""Embeds characters, reads them with a GRU, and judges an attended sum of its states.

    $\alpha$ is the softmax of $\tanh(w \cdot h_t + b)$ over the steps, tagged `"attention_vec"`;
    the answer is $\sigma(W \sum_t \alpha_t h_t + c)$. Texts are padded on the left. The network is
    known from a Stack Overflow question, 'How to visualize attention weights?', where V characters
    are read 250 at a time and padding is read like anything else. The embeddings are tagged
    `"embedding"`.

    Args:
        num_characters: V, size of the vocabulary.
        embedding_features: size of an embedding.
        hidden_features: H, number of units of the GRU.
        param_dtype: dtype of the weights.
        rngs: random streams; the weights are drawn from `params`.

    Raises:
        ValueError: a size below 1.
        TypeError: a `param_dtype` that is not floating.
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
            raise ValueError(f"num_characters must be at least 1, got {num_characters}")
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
        """Return the probability of the positive class; arguments and errors as in `logits`."""
        return jax.nn.sigmoid(self.logits(ids, lengths))

    def logits(
        self,
        ids: Integer[ArrayLike, "*batch T"],
        lengths: Integer[ArrayLike, "*batch"] | None = None,
    ) -> Float[Array, "*batch 1"]:
        """Return the score whose sigmoid is the answer.

        Args:
            ids: one text (T,), or a batch (..., T), padded on the left.
            lengths: number of characters of each text, integers of shape (...): what stands before
                them is neither read nor attended. They may be traced. None: padding is read too.

        Returns:
            Logits (..., 1).

        Raises:
            TypeError: ids or lengths that are not integers.
            ValueError: ids outside of [0, V), unless they are traced; no ids; lengths that do not
                match their leading axes or lie outside [0, T].
        """
        ids = jnp.asarray(ids)
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise TypeError(f"ids must be integers, got dtype {ids.dtype}")
        if not (ids.ndim and ids.shape[-1]):
            raise ValueError(f"ids must have shape (..., T), got {ids.shape}")
        size = self.embedding.num_embeddings
        try:
            concrete = np.asarray(ids)
        except jax.errors.TracerArrayConversionError:
            pass  # traced ids have no values to check
        else:
            if ((concrete < 0) | (concrete >= size)).any():
                span = f"{concrete.min()} to {concrete.max()}"
                raise ValueError(f"ids must lie in [0, {size}), got {span}")
        # JAX would count traced negative ids from the end; now they give NaN, as those past it do.
        ids = ids.astype(jnp.int32)
        ids = jnp.where(ids < 0, size, ids)
        embedded = checkpoint_name(self.embedding(ids), "embedding")  # as `jaxattn.tag` does
        outputs = self.gru(embedded, lengths, padding="left").outputs
        mask = None if lengths is None else nn.valid_steps(lengths, ids.shape[-1], "left")
        return self.head(self.attention(outputs, mask).values)
