"""Similarities of two explanations of the same examples."""

import functools
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn.metrics.rankings import correlation, mean_ranks, scaled

#: How two explanations are compared.
Similarity: TypeAlias = Literal["spearman", "pearson", "cosine"]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise an error for a value that is not one of a `Literal`."""
    if value not in get_args(choices):
        allowed = ", ".join(f'"{each}"' for each in get_args(choices))
        raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}.")


@functools.partial(jax.jit, static_argnames="kind")
def similarity_of(
    a: Float[Array, "B n"], b: Float[Array, "B n"], *, kind: Similarity
) -> Float[Array, " B"]:
    """Return the similarity of two explanations of each example."""
    if kind == "cosine":
        a, b = scaled(a), scaled(b)
        norms = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
        return jnp.clip((a * b).sum(1) / norms, -1, 1)
    if kind == "spearman":
        a, b = jax.vmap(mean_ranks)(a), jax.vmap(mean_ranks)(b)
    return correlation(a, b)
