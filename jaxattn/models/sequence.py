"""A recurrent classifier with a linear readout, for signals, texts and rows of images."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Integer, Shaped

from jaxattn import nn

_CELLS: dict[str, type[nn.Recurrent]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class SequenceClassifier(nnx.Module):
    """Classifier of sequences: recurrent layers and a linear readout.

    Args:
        in_features: D, size of the input at each step.
        hidden_features: H, number of units of each direction.
        num_classes: K, number of classes.
        cell: "lstm", "gru" or "rnn".
        num_layers: Number of stacked recurrent layers.
        bidirectional: Whether to process the sequence in both directions.
        readout: Input of the linear layer: "last", the final state; "mean", the mean output over
            the valid steps; "steps", the output of each step.
        padding: The side on which padding lies, "right" or "left".
        param_dtype: Dtype of the weights.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If `cell`, `readout` or `padding` is unknown, or a size is below 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> model = ja.models.SequenceClassifier(3, 16, 5, cell="gru", rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 7, 3)), lengths=jnp.array([7, 4])).shape
        (2, 5)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        num_classes: int,
        *,
        cell: Literal["lstm", "gru", "rnn"] = "lstm",
        num_layers: int = 1,
        bidirectional: bool = False,
        readout: Literal["last", "mean", "steps"] = "last",
        padding: nn.Padding = "right",
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        choices = {"cell": (cell, _CELLS), "readout": (readout, ("last", "mean", "steps"))}
        for name, (got, allowed) in (choices | {"padding": (padding, ("right", "left"))}).items():
            if got not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {got!r}.")
        if num_classes < 1:
            raise ValueError(f"`num_classes` must be at least 1, got {num_classes}.")
        self.readout = readout
        self.padding = padding
        self.recurrent = _CELLS[cell](
            in_features,
            hidden_features,
            num_layers=num_layers,
            bidirectional=bidirectional,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        width = hidden_features * (2 if bidirectional else 1)
        self.head = nnx.Linear(width, num_classes, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self,
        x: Shaped[ArrayLike, "*batch T D"],
        lengths: Integer[ArrayLike, "*batch"] | None = None,
    ) -> Float[Array, "*batch K"] | Float[Array, "*batch T K"]:
        """Compute the logits.

        Args:
            x: Sequence of shape `(T, D)`, or a batch `(..., T, D)`.
            lengths: Number of valid steps of each example, integers of shape `(...)`, a scalar for
                one example. They may be traced. No padding by default.

        Returns:
            The logits, shape `(..., K)`; with `readout="steps"` `(..., T, K)`, zero at padding.

        Raises:
            ValueError: As `jaxattn.nn.LSTM`.
            TypeError: As `jaxattn.nn.LSTM`.
        """
        outputs, state = self.recurrent(x, lengths, padding=self.padding)
        read = state if self.readout == "last" else outputs
        if self.readout == "mean":
            count = outputs.shape[-2] if lengths is None else jnp.asarray(lengths)[..., None]
            read = outputs.sum(axis=-2) / jnp.maximum(count, 1).astype(outputs.dtype)
        with jax.numpy_dtype_promotion("standard"):  # x may be wider than the weights
            logits = self.head(read)
        if self.readout != "steps" or lengths is None:
            return logits
        valid = nn.valid_steps(lengths, outputs.shape[-2], self.padding)
        return jnp.where(valid[..., None], logits, 0)
