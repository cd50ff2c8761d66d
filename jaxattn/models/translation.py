"""A bidirectional LSTM that reads, and an attention decoder that writes: a translator."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Integer, Shaped

from jaxattn import nn


class Translator(nnx.Module):
    """Reads a sequence in both directions, and writes another with attention to what it read.

    The attention weights are tagged `"attention"`: of one example `jaxattn.capture` gives them as
    (T_out, T_in).

    Args:
        in_features: D, size of the input at each step: of a vocabulary, for one-hot characters.
        hidden_features: H, number of units of each direction of the encoder.
        num_classes: K, number of labels.
        decoder_features: number of units of the decoder; by default H.
        output_length: how many labels it writes; by default as many as the input has steps.
        param_dtype: dtype of the weights.
        rngs: random streams; the weights are drawn from `params`.

    Raises:
        ValueError: a size below 1.
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
            raise ValueError(f"output_length must be at least 1, got {output_length}")
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
        """Return the logits of each label that is written.

        Args:
            x: one example (T_in, D), or a batch (..., T_in, D).
            lengths: number of steps before the padding on the right, integers of shape (...).
                None: no padding.
            teacher: the right labels, fed back instead of its own predictions; see
                `nn.AttentionDecoder`.

        Returns:
            Logits (..., T_out, K).

        Raises:
            ValueError: as `nn.LSTM` and `nn.AttentionDecoder` do.
            TypeError: likewise.
        """
        annotations = self.encoder(x, lengths).outputs
        mask = None if lengths is None else nn.valid_steps(lengths, annotations.shape[-2])
        return self.decoder(
            annotations, mask, output_length=self.output_length, teacher=teacher
        ).logits
