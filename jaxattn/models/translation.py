"""A translator: a bidirectional LSTM encoder and an attention decoder."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Integer, Shaped

from jaxattn import nn


class Translator(nnx.Module):
    """Sequence-to-sequence network: a bidirectional LSTM and an attention decoder.

    The attention weights of one example, shape (T_out, T_in), are tagged `"attention"`.

    Args:
        in_features: D, size of the input at each step, such as the size of the vocabulary.
        hidden_features: H, number of units of each direction of the encoder.
        num_classes: K, number of labels.
        decoder_features: Number of units of the decoder; H by default.
        output_length: T_out, number of labels of the output; T_in by default.
        param_dtype: Dtype of the weights.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If a size is below 1.

    Reference:
        Bahdanau, Cho and Bengio 2015, Neural machine translation by jointly learning to align and
        translate, arXiv:1409.0473.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> model = ja.models.Translator(3, 4, 5, output_length=6, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((7, 3))).shape
        (6, 5)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        num_classes: int,
        *,
        decoder_features: int | None = None,
        output_length: int | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if output_length is not None and output_length < 1:
            raise ValueError(f"`output_length` must be at least 1, got {output_length}.")
        self.output_length = output_length
        self.encoder = nn.LSTM(
            in_features, hidden_features, bidirectional=True, param_dtype=param_dtype, rngs=rngs
        )
        self.decoder = nn.AttentionDecoder(
            2 * hidden_features,
            hidden_features if decoder_features is None else decoder_features,
            num_classes,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Shaped[ArrayLike, "*batch T_in D"],
        lengths: Integer[ArrayLike, "*batch"] | None = None,
        *,
        teacher: Shaped[ArrayLike, "*batch T_out K"] | None = None,
    ) -> Float[Array, "*batch T_out K"]:
        """Compute the logits of the output sequence.

        Args:
            x: Sequence of shape `(T_in, D)`, or a batch `(..., T_in, D)`.
            lengths: Number of steps before the padding on the right, integers of shape `(...)`. No
                padding by default.
            teacher: One-hot labels of shape `(..., T_out, K)` for teacher forcing; see
                `jaxattn.nn.AttentionDecoder`.

        Returns:
            The logits, shape `(..., T_out, K)`.

        Raises:
            ValueError: As `jaxattn.nn.LSTM` and `jaxattn.nn.AttentionDecoder`.
            TypeError: As `jaxattn.nn.LSTM` and `jaxattn.nn.AttentionDecoder`.
        """
        annotations = self.encoder(x, lengths).outputs
        mask = None if lengths is None else nn.valid_steps(lengths, annotations.shape[-2])
        return self.decoder(
            annotations, mask, output_length=self.output_length, teacher=teacher
        ).logits
