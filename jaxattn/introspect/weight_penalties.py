"""Penalties of the weights of a recurrent layer, by gate."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxattn.introspect.results import Weights

_PARTS = ("kernel", "recurrent", "bias")


def weight_penalty(
    weights: Weights,
    *,
    l1: float = 0.0,
    l2: float = 0.0,
    parts: Sequence[str] = ("kernel", "recurrent"),
    gates: Sequence[str] | None = None,
) -> Float[Array, ""]:
    """Compute a penalty of weights, to add to a loss.

    Args:
        weights: The weights of a layer, such as those that `weights` returns. That function can be
            differentiated, so a penalty of single gates works with every library.
        l1: Factor of the sum of magnitudes.
        l2: Factor of the sum of squares.
        parts: Which weights: "kernel", "recurrent", "bias".
        gates: Names of the gates; all by default.

    Returns:
        l1 * sum |w| + l2 * sum w^2 over the chosen weights.

    Raises:
        ValueError: If a part or a gate does not exist.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> lstm = ja.nn.LSTM(1, 2, rngs=nnx.Rngs(0))
        >>> weights = ja.introspect.weights(lstm, jnp.ones((3, 1)))
        >>> print(ja.introspect.weight_penalty(weights, l2=0.5, parts=["bias"], gates=["forget"]))
        1.0
    """
    names = [name for name, _ in weights.kernel.items()]
    chosen = names if gates is None else list(gates)
    for argument, given, known in (("parts", parts, _PARTS), ("gates", chosen, names)):
        unknown = [name for name in given if name not in known]
        if unknown or isinstance(given, str):
            raise ValueError(f"`{argument}` must be some of {list(known)}, got {given!r}.")
    total: Array = jnp.zeros((), getattr(weights.kernel, names[0]).dtype)
    for part in parts:
        for gate in chosen:
            values = getattr(getattr(weights, part), gate)
            total += l1 * jnp.abs(values).sum() + l2 * jnp.square(values).sum()
    return total
