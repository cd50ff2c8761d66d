"""The pseudo-inverse of a symmetric matrix; on a CPU, one matrix of a batch at a time."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_product = functools.partial(jnp.linalg.multi_dot, precision=jax.lax.Precision.HIGHEST)


@jax.custom_jvp
def pseudo_inverse(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Return the Moore-Penrose inverse of a symmetric matrix.

    On a CPU JAX decomposes a batch of matrices in the threads of XLA, for which parts of a call in
    several threads would wait: there the matrices are decomposed one after the other.
    """
    return _decomposed(matrix)


@pseudo_inverse.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Differentiate at constant rank (Golub and Pereyra 1973, equation 4.12)."""
    (matrix,), (change,) = primals, tangents
    inverse, change = pseudo_inverse(matrix), (change + change.T) / 2
    beside = jnp.eye(len(matrix), dtype=matrix.dtype) - _product([matrix, inverse])
    outside = _product([inverse, inverse, change, beside])
    return inverse, outside + outside.T - _product([inverse, change, inverse])


def _plain(matrix: Array) -> Array:
    inverse: Array = jnp.linalg.pinv(matrix, hermitian=True)
    return inverse


@jax.custom_batching.custom_vmap
def _decomposed(matrix: Array) -> Array:
    return _plain(matrix)


@_decomposed.def_vmap
def _(size: int, batched: list[bool], matrices: Array) -> tuple[Array, bool]:
    return jax.lax.platform_dependent(
        matrices,
        cpu=functools.partial(jax.lax.map, _decomposed),
        default=jax.vmap(_plain),
    ), True
