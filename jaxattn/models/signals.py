"""A classifier of multivariate series with an LSTM and attention."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Integer, Shaped

from jaxattn import nn
from jaxattn.nn.attention_layer import check_sizes


class SignalClassifier(nnx.Module):
    """Classifier of series: an LSTM, attention over its outputs, and a linear layer.

    With `attention="self"`, `SeqSelfAttention` has values (H,) and weights (T,) for each step; with
    "weighted", `SeqWeightedAttention` has values and weights for the series. The linear layer is
    applied to the flattened values and weights, as in the example of keras-self-attention, or with
    `beside="outputs"` to the values and the outputs of the LSTM. All are zero at padded steps.

    The tags for `jaxattn.capture` are "outputs" for the outputs of the LSTM (T, H), "attention" for
    the weights, (T, T) or (T,), and "attended" for the values, (T, H) or (H,).

    Args:
        in_features: D, number of channels.
        num_steps: T, padding included.
        num_classes: K, number of classes.
        hidden_features: H, number of units of the LSTM.
        attention: "self" or "weighted".
        units: Size of the hidden layer of "self".
        beside: The second input of the linear layer: "weights" or "outputs".
        param_dtype: Dtype of the weights.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If `attention` or `beside` is unknown, or a size is below 1.
        TypeError: If a size is not an integer.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> model = ja.models.SignalClassifier(2, 7, 5, hidden_features=4, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((7, 2))).shape
        (5,)
    """

    def __init__(
        self,
        in_features: int,
        num_steps: int,
        num_classes: int,
        *,
        hidden_features: int = 60,
        attention: Literal["self", "weighted"] = "self",
        units: int = 32,
        beside: Literal["weights", "outputs"] = "weights",
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        choices = {
            "attention": (attention, ("self", "weighted")),
            "beside": (beside, ("weights", "outputs")),
        }
        for name, (got, allowed) in choices.items():
            if got not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {got!r}.")
        check_sizes(
            in_features=in_features,
            num_steps=num_steps,
            num_classes=num_classes,
            hidden_features=hidden_features,
        )
        self.num_steps = num_steps
        self.beside = beside
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.recurrent = nn.LSTM(in_features, hidden_features, **options)
        self.attention: nn.SeqSelfAttention | nn.SeqWeightedAttention
        if attention == "self":
            self.attention = nn.SeqSelfAttention(hidden_features, units=units, **options)
        else:
            self.attention = nn.SeqWeightedAttention(hidden_features, **options)
        queries = num_steps if attention == "self" else 1
        others = queries * num_steps if beside == "weights" else num_steps * hidden_features
        self.head = nnx.Linear(queries * hidden_features + others, num_classes, **options)

    def __call__(
        self,
        x: Shaped[ArrayLike, "*batch T D"],
        lengths: Integer[ArrayLike, "*batch"] | None = None,
    ) -> Float[Array, "*batch K"]:
        """Compute the logits.

        Args:
            x: Series of shape `(T, D)`, or a batch `(..., T, D)`, padded on the right.
            lengths: Number of valid steps of each example, integers of shape `(...)`. They may be
                traced. No padding by default.

        Returns:
            The logits, shape `(..., K)`.

        Raises:
            ValueError: If `x` has another shape, or `lengths` does not fit it.
            TypeError: If `x` does not hold real numbers, or `lengths` does not hold integers.
        """
        x = jnp.asarray(x)
        if x.shape[-2:-1] != (self.num_steps,):
            raise ValueError(f"`x` must have shape (..., {self.num_steps}, D), got {x.shape}.")
        outputs = checkpoint_name(self.recurrent(x, lengths).outputs, "outputs")
        valid = None if lengths is None else nn.valid_steps(lengths, self.num_steps)
        values, weights = self.attention(outputs, valid)
        if valid is not None and values.shape == outputs.shape:
            values, weights = (jnp.where(valid[..., None], part, 0) for part in (values, weights))
        values = checkpoint_name(values, "attended")
        others = outputs if self.beside == "outputs" else weights
        batch = x.shape[:-2]
        if values.ndim == others.ndim:  # step by step, as Keras concatenates them
            features = jnp.concatenate([values, others], axis=-1).reshape(*batch, -1)
        else:
            features = jnp.concatenate([values, others.reshape(*batch, -1)], axis=-1)
        with jax.numpy_dtype_promotion("standard"):  # x may be wider than the weights
            return self.head(features)
