"""The base class of attention layers, checks of their inputs, and additive scores."""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Shaped

from jaxattn.jaxpr.capture import tag
from jaxattn.nn.attending import Attended, checked_mask, masked_softmax

#: A function of arrays, applied elementwise.
Activation: TypeAlias = Callable[[Array], Array]
Result = TypeVar("Result")
_GLOROT = initializers.glorot_normal()


class AttentionLayer(nnx.Module):
    """Base class of attention layers: named weights, and a map over leading axes.

    A layer is a pure function of its weights and of one example, vectorised over leading axes.
    Biases start at 0.

    Args:
        shapes: Shape of each weight by its name; a bias has one axis.
        param_dtype: Dtype of the weights.
        name: Tag of the attention weights for `jaxattn.capture` and `jaxattn.intervene`.
        rngs: Random streams; weights are drawn from `params`. None for layers without matrices.
        kernel_init: Initialiser of the matrices, `(key, shape, dtype) -> array`; Glorot's normal
            initialiser by default.

    Raises:
        TypeError: If `param_dtype` is not floating.
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
            raise TypeError(f"`param_dtype` must be floating, got {param_dtype}.")
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
        single: Callable[..., Result],
        sequences: Sequence[Array],
        masks: Sequence[ArrayLike | None],
        *,
        zero_masked: bool = True,
    ) -> Result:
        """Vectorise `single(weights, *sequences, *masks)`, which takes one example.

        Args:
            single: The attention of one example.
            sequences: Arrays of shape `(*batch, T, features)`.
            masks: The mask of each sequence.
            zero_masked: Whether to set masked steps to zero. NaN times a weight of zero is NaN.

        Returns:
            The result of `single` with the leading axes.
        """
        weights = {key: getattr(self, key)[...] for key in self.weight_names}
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(*sequences, *weights.values())
        if not jnp.issubdtype(dtype, jnp.floating):
            dtype = jnp.float32
        batch = sequences[0].shape[:-2]
        full_masks = [
            None if mask is None else checked_mask(mask, (*batch, x.shape[-2]))
            for mask, x in zip(masks, sequences, strict=True)
        ]
        inputs = [x.astype(dtype) for x in sequences]
        if zero_masked:
            inputs = [
                x if mask is None else jnp.where(mask[..., None], x, 0)
                for mask, x in zip(full_masks, inputs, strict=True)
            ]
        run: Callable[..., Result] = partial(
            single, jax.tree.map(lambda w: w.astype(dtype), weights)
        )
        for _ in batch:
            run = jax.vmap(run)
        return run(*inputs, *full_masks)


def as_sequence(
    name: str, x: ArrayLike, features: int | None, batch: tuple[int, ...] | None = None
) -> Shaped[Array, "*batch T D"]:
    """Return the sequence called `name`, checked for shape `(*batch, T, features)` and dtype."""
    x = jnp.asarray(x)
    if x.ndim < 2 or features not in (None, x.shape[-1]) or x.shape[-2] < 1:
        size = "D" if features is None else features
        raise ValueError(f"`{name}` must have shape (..., T, {size}), T > 0, got {x.shape}.")
    if not jnp.issubdtype(x.dtype, jnp.floating) and not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"`{name}` must be real numbers, got dtype {x.dtype}.")
    if batch not in (None, x.shape[:-2]):
        raise ValueError(f"`{name}` must have leading axes {batch}, got shape {x.shape}.")
    return x


class Sizes(NamedTuple):
    """The sizes of a query, a key and a value; None for any size."""

    query: int | None = None
    key: int | None = None
    value: int | None = None


class Queried(NamedTuple):
    """Queries, keys and values, and the mask of each."""

    sequences: tuple[Array, Array, Array]
    masks: tuple[ArrayLike | None, ArrayLike | None, ArrayLike | None]


def check_queried(
    queries: ArrayLike,
    keys: ArrayLike | None,
    values: ArrayLike | None,
    sizes: Sizes,
    mask: ArrayLike | None,
) -> Queried:
    """Check queries, keys and values; keys default to queries, and values to keys.

    The mask is that of keys and values. Separate queries have none, as nothing attends to them.
    """
    checked_queries = as_sequence("queries", queries, sizes.query)
    batch = checked_queries.shape[:-2]
    checked_keys = as_sequence("keys", checked_queries if keys is None else keys, sizes.key, batch)
    checked_values = as_sequence(
        "values", checked_keys if values is None else values, sizes.value, batch
    )
    if checked_values.shape[-2] != checked_keys.shape[-2]:
        raise ValueError(
            f"`values` must have one row per key, got shape {checked_values.shape} for keys of "
            f"shape {checked_keys.shape}."
        )
    masks = mask if keys is None else None, mask, mask
    return Queried((checked_queries, checked_keys, checked_values), masks)


def check_sizes(**sizes: int | None) -> None:
    """Raise an error for a size that is not an integer of at least 1; None passes."""
    for name, size in sizes.items():
        if size is None:
            continue
        try:
            size = operator.index(size)
        except TypeError:
            raise TypeError(f"`{name}` must be an integer, got {size!r}.") from None
        if size < 1:
            raise ValueError(f"`{name}` must be at least 1, got {size}.")


def check_choice(name: str, choice: object, choices: Sequence[object]) -> None:
    """Raise ValueError for a choice that is not among the choices."""
    if choice not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"`{name}` must be one of {listed}; got {choice!r}.")


def as_activation(name: str, activation: Activation | str | None) -> Activation | None:
    """Return a function: the activation itself, or the one in `jax.nn` with this name."""
    if activation is None or callable(activation):
        return activation
    function = getattr(jax.nn, activation, None) if isinstance(activation, str) else None
    if not callable(function):
        raise ValueError(
            f"`{name}` must be a function, or the name of one in jax.nn, got {activation!r}."
        )
    return function


def additive_scores(
    queries: Float[Array, "T_out Q"],
    keys: Float[Array, "T_in K"],
    query_kernel: Float[Array, "Q units"],
    key_kernel: Float[Array, "K units"],
    bias: Float[Array, " units"] | None,
    vector: Float[Array, "units 1"],
) -> Float[Array, "T_out T_in"]:
    r"""Compute additive scores, $v^\top \tanh(W q_i + U k_j + b)$ (arXiv:1409.0473)."""
    hidden = (queries @ query_kernel)[:, None] + (keys @ key_kernel)[None]
    if bias is not None:
        hidden = hidden + bias[None, None]
    return (jnp.tanh(hidden) @ vector)[..., 0]


def attend(
    scores: Float[Array, "T_out T_in"],
    values: Float[Array, "T_in D"],
    mask: Bool[Array, "..."] | None,
    name: str,
) -> Attended:
    """Return the softmax of scores, tagged, and the values weighted by it."""
    weights = tag(masked_softmax(scores, mask), name)
    return Attended(weights @ values, weights)
