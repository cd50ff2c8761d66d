"""A recurrent network that looks back over a multivariate series, and classifies it."""

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
    """An LSTM, attention over its outputs, and a linear layer that reads all of it.

    With `attention="self"`, `SeqSelfAttention` has a value (H,) and weights (T,) for every step;
    with "weighted", `SeqWeightedAttention` has one value and its weights. The linear layer reads
    them flattened, values and weights both, as in the example of keras-self-attention that is most
    often copied; or, with `beside="outputs"`, the LSTM's outputs instead of the weights, whose only
    part is then to weigh. What belongs to padded steps is zero.

    For `jaxattn.capture`, "outputs" (T, H) are the LSTM's; "attention" the weights, (T, T) or (T,);
    and "attended" the values, (T, H) or (H,).

    Args:
        in_features: D, number of channels.
        num_steps: T, padding included.
        num_classes: K.
        hidden_features: H, number of units of the LSTM.
        attention: "self" or "weighted".
        units: size of the hidden layer of "self".
        beside: what is read with the attended values: "weights" or "outputs".
        param_dtype: dtype of the weights.
        rngs: random streams; the weights are drawn from `params`.

    Raises:
        ValueError: an unknown `attention` or `beside`, a size below 1.
        TypeError: a size that is not an integer.
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
        for name, (got, known) in choices.items():
            if got not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {got!r}")
        check_sizes(
            in_features=in_features,
            num_steps=num_steps,
            num_classes=num_classes,
            hidden_features=hidden_features,
        )
        self.num_steps = num_steps
        self.beside = beside
        given: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.recurrent = nn.LSTM(in_features, hidden_features, **given)
        self.attention: nn.SeqSelfAttention | nn.SeqWeightedAttention
        if attention == "self":
            self.attention = nn.SeqSelfAttention(hidden_features, units=units, **given)
        else:
            self.attention = nn.SeqWeightedAttention(hidden_features, **given)
        queries = num_steps if attention == "self" else 1
        others = queries * num_steps if beside == "weights" else num_steps * hidden_features
        self.head = nnx.Linear(queries * hidden_features + others, num_classes, **given)

    def __call__(
        self,
        x: Shaped[ArrayLike, "*batch T D"],
        lengths: Integer[ArrayLike, "*batch"] | None = None,
    ) -> Float[Array, "*batch K"]:
        """Return the logits.

        Args:
            x: one example (T, D), or a batch (..., T, D), padded on the right.
            lengths: number of valid steps of each example, integers of shape (...). They may be
                traced. None: no padding.

        Returns:
            Logits (..., K).

        Raises:
            ValueError: an `x` of another shape, or lengths that do not fit it.
            TypeError: an `x` that is not real numbers, lengths that are not integers.
        """
        x = jnp.asarray(x)
        if x.shape[-2:-1] != (self.num_steps,):
            raise ValueError(f"x must have shape (..., {self.num_steps}, D), got {x.shape}")
        outputs = checkpoint_name(self.recurrent(x, lengths).outputs, "outputs")
        valid = None if lengths is None else nn.valid_steps(lengths, self.num_steps)
        values, weights = self.attention(outputs, valid)
        if valid is not None and values.shape == outputs.shape:
            values, weights = (jnp.where(valid[..., None], part, 0) for part in (values, weights))
        values = checkpoint_name(values, "attended")
        others = outputs if self.beside == "outputs" else weights
        batch = x.shape[:-2]
        if values.ndim == others.ndim:  # step by step, as Keras concatenates them
            read = jnp.concatenate([values, others], axis=-1).reshape(*batch, -1)
        else:
            read = jnp.concatenate([values, others.reshape(*batch, -1)], axis=-1)
        with jax.numpy_dtype_promotion("standard"):  # x may be wider than the weights
            return self.head(read)
