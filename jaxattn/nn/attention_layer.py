"""What the attention layers share: named weights, checked sequences, scores, and reading."""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Shaped

from jaxattn.jaxpr.capture import tag
from jaxattn.nn.attending import Attended, checked_mask, masked_softmax

Activation = Callable[[Array], Array]
_GLOROT = initializers.glorot_normal()


class AttentionLayer(nnx.Module):
    """What the attention layers share: their weights by name, and how sequences come to them.

    A layer is a pure function of its weights and of one example, mapped over leading axes. Matrices
    are drawn by Glorot's normal rule unless told otherwise, biases start at 0.

    Args:
        shapes: the shape of each weight by its name; a bias has one axis.
        param_dtype: dtype of the weights.
        name: the tag under which `jaxattn.capture` and `jaxattn.intervene` find the attention.
        rngs: random streams; the weights are drawn from `params`. None, if there are no matrices.
        kernel_init: draws the matrices, `(key, shape, dtype) -> array`.

    Raises:
        TypeError: a `param_dtype` that is not floating.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        param_dtype: DTypeLike,
        name: str,
        rngs: nnx.Rngs | None = None,
        *,
        kernel_init: Callable[..., Array] = _GLOROT,
    ):
        if not jnp.issubdtype(param_dtype, jnp.floating):
            raise TypeError(f"param_dtype must be floating, got {param_dtype}")
        self.name = name
        self.weight_names = tuple(shapes)
        for key, shape in shapes.items():
            if len(shape) == 1 or rngs is None:
                weight = jnp.zeros(shape)
            else:
                weight = kernel_init(rngs.params(), shape, jnp.float32)
            setattr(self, key, nnx.Param(weight.astype(param_dtype)))

    def _attend(
        self,
        one: Callable[..., Any],
        sequences: Sequence[Array],
        masks: Sequence[Bool[ArrayLike, "..."] | None],
        *,
        blank: bool = True,
    ) -> Any:
        """Run `one(weights, *sequences, *masks)` over the leading axes.

        What is masked in a sequence is zero in there if `blank`: a NaN that meets a weight of zero
        is a NaN still.
        """
        weights = {key: getattr(self, key)[...] for key in self.weight_names}
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(*sequences, *weights.values())
        if not jnp.issubdtype(dtype, jnp.floating):
            dtype = jnp.float32
        batch = sequences[0].shape[:-2]
        found = [
            None if mask is None else checked_mask(mask, (*batch, x.shape[-2]))
            for mask, x in zip(masks, sequences, strict=True)
        ]
        shown = [x.astype(dtype) for x in sequences]
        if blank:
            shown = [
                x if mask is None else jnp.where(mask[..., None], x, 0)
                for mask, x in zip(found, shown, strict=True)
            ]
        run = partial(one, jax.tree.map(lambda w: w.astype(dtype), weights))
        for _ in batch:
            run = jax.vmap(run)
        return run(*shown, *found)


def as_sequence(
    name: str, x: ArrayLike, features: int | None, batch: tuple[int, ...] | None = None
) -> Shaped[Array, "*batch T D"]:
    """Check the sequence called `name`: (..., T, features), with these leading axes."""
    x = jnp.asarray(x)
    if x.ndim < 2 or features not in (None, x.shape[-1]) or x.shape[-2] < 1:
        wanted = "D" if features is None else features
        raise ValueError(f"{name} must have shape (..., T, {wanted}), T > 0, got {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating) and not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name} must be real numbers, got dtype {x.dtype}")
    if batch not in (None, x.shape[:-2]):
        raise ValueError(f"{name} must have leading axes {batch}, got shape {x.shape}")
    return x


def queried(
    queries: ArrayLike,
    keys: ArrayLike | None,
    values: ArrayLike | None,
    sizes: tuple[int | None, int | None, int | None],
    mask: ArrayLike | None,
) -> tuple[tuple[Array, Array, Array], tuple[Any, Any, Any]]:
    """Check queries, keys and values, each the one before it by default, and give each its mask.

    Queries of their own have none: nobody reads them.
    """
    first = as_sequence("queries", queries, sizes[0])
    batch = first.shape[:-2]
    second = as_sequence("keys", first if keys is None else keys, sizes[1], batch)
    third = as_sequence("values", second if values is None else values, sizes[2], batch)
    if third.shape[-2] != second.shape[-2]:
        raise ValueError(f"values must have one row a key, got {third.shape} and {second.shape}")
    return (first, second, third), (mask if keys is None else None, mask, mask)


def check_sizes(**sizes: int | None) -> None:
    """Refuse a size that is no whole number from 1 on; None passes."""
    for name, size in sizes.items():
        if size is None:
            continue
        try:
            size = operator.index(size)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {size!r}") from None
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_choice(name: str, got: Any, known: tuple[Any, ...]) -> None:
    """Refuse what is not among the `known`."""
    if got not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}; got {got!r}")


def as_activation(argument: str, given: Activation | str | None) -> Activation | None:
    """A function, or one of `jax.nn` by its name."""
    if given is None or callable(given):
        return given
    found = getattr(jax.nn, given, None) if isinstance(given, str) else None
    if not callable(found):
        raise ValueError(f"{argument} must be a function, or the name of one in jax.nn: {given!r}")
    return found


def additive_scores(
    queries: Float[Array, "T_out Q"],
    keys: Float[Array, "T_in K"],
    of_queries: Float[Array, "Q units"],
    of_keys: Float[Array, "K units"],
    bias: Float[Array, " units"] | None,
    vector: Float[Array, "units 1"],
) -> Float[Array, "T_out T_in"]:
    r"""Score every query against every key: $v^\top \tanh(W q_i + U k_j + b)$."""
    hidden = (queries @ of_queries)[:, None] + (keys @ of_keys)[None]
    if bias is not None:
        hidden = hidden + bias[None, None]
    return (jnp.tanh(hidden) @ vector)[..., 0]


def read(
    scores: Float[Array, "T_out T_in"],
    values: Float[Array, "T_in D"],
    mask: Bool[Array, "..."] | None,
    name: str,
) -> Attended:
    """Turn scores into tagged weights, and read values with them."""
    weights = tag(masked_softmax(scores, mask), name)
    return Attended(weights @ values, weights)
