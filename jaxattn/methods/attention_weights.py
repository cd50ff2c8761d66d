"""Methods that read, weigh and silence the attention weights of a network."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxattn._types import Attribution, Inputs, RandomKey, Target
from jaxattn.engine.batch import chunked_map
from jaxattn.engine.method import method
from jaxattn.engine.target import scored, select
from jaxattn.jaxpr.capture import captured, intervened


def named_weights(
    fn: Callable[..., Any], inputs: tuple[Any, ...], name: str | Sequence[str]
) -> tuple[Any, dict[str, Any]]:
    """The output of `fn`, and every intermediate that a name, or one of several, finds.

    Raises:
        TypeError: if a name is no string, or what it finds holds integers.
        ValueError: if a name finds nothing.
    """
    output, seen = captured(fn, names_of(name))(*inputs)
    for path, found in seen.items():
        for leaf in jax.tree.leaves(found):
            if leaf.ndim == 0 or not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(
                    f"name must find attention weights, floating arrays over positions; {path!r} "
                    f"is {leaf.dtype}{list(leaf.shape)}"
                )
    return output, seen


def names_of(name: str | Sequence[str]) -> tuple[str, ...]:
    """One name, or several, as a tuple."""
    names = tuple(name) if isinstance(name, list | tuple) else (name,)
    if not names or not all(isinstance(n, str) for n in names):
        raise TypeError(f"name must be the name of attention weights, or several, got {name!r}")
    return names


def only(seen: dict[str, Any]) -> Any:
    """What one name found as it is; what several found in a dict."""
    return next(iter(seen.values())) if len(seen) == 1 else seen


@method(per_example=())
def attention(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    name: str | Sequence[str] = "attention",
) -> Attribution:
    """The attention weights themselves, read from inside of the network.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: not used: the weights are the same whatever is explained.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is taken for the input; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: not used: one evaluation is needed.
        name: the tag or layer whose value the weights are, or several, as `jaxattn.capture` finds
            them. The layers of `jaxattn.nn` call theirs "attention"; in Keras they are the
            "softmax" of a `MultiHeadAttention`, if it has a dropout: without, it is fused.

    Returns:
        values are the weights, (T_in,), (T_out, T_in), (heads, T_out, T_in), ... as the network has
        them; a list where one name occurs several times; a dict by full names where several names
        are found.

    Raises:
        TypeError: if what is found is no floating array.
        ValueError: if nothing has that name.

    Reference:
        Bahdanau et al. 2015, Neural machine translation by jointly learning to align and translate,
        arXiv:1409.0473.
    """
    output, seen = named_weights(fn, (x, *args), name)
    return Attribution(only(seen), output)


@method(per_example=())
def gradient_x_attention(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    name: str | Sequence[str] = "attention",
) -> Attribution:
    """Attention weights, each times the gradient of the score with respect to it.

    All weights are varied by themselves: what one would do to the weights of later layers or steps
    is not counted.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is taken for the input; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: not used: two evaluations are needed.
        name: the tag or layer whose value the weights are, or several, as for `jaxattn.attention`.

    Returns:
        values in the structure of the weights, signed, in units of the output.

    Raises:
        TypeError: if what is found is no floating array.
        ValueError: if nothing has that name, or the target does not fit the output.

    Reference:
        Serrano and Smith 2019, Is attention interpretable?, arXiv:1906.03731.
    """
    inputs = (x, *args)
    _, seen = named_weights(fn, inputs, name)

    def score(weights: dict[str, Any]) -> tuple[Any, Any]:
        output = intervened(fn, weights)(*inputs)
        return select(output, target), output

    slope, output = jax.grad(score, has_aux=True)(seen)
    return Attribution(only(jax.tree.map(jnp.multiply, seen, slope)), output)


def _columns(x: Any, output: Any, options: dict[str, Any]) -> int:
    """How many positions there are to read: at most as many as the input is long."""
    return 1 + max((leaf.shape[0] for leaf in jax.tree.leaves(x) if leaf.ndim), default=1)


@method(evaluations=_columns, per_example=())
def value_zeroing(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    name: str | Sequence[str] = "attention",
    of: str | None = None,
) -> Attribution:
    """What changes when the value vector of a position is zeroed in the attention.

    A zero value adds nothing to any weighted sum, as a zero weight does: the column of the position
    is zeroed in all weights that `name` finds, and the others are left as they are.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`. With `of` it is not
            used.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is taken for the input; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: how many evaluations of `fn` are in flight; one is needed for each position.
        name: the tag or layer whose value the weights are, or several, as for `jaxattn.attention`.
            Of one layer alone, as in the paper, or of all together. Their last axis is T_in.
        of: the name of representations (T_out, D), such as a layer's output, whose change is
            measured; by default it is the score's.

    Returns:
        values (T_in,), the fall of the score, in units of the output; or with `of` (T_out, T_in),
        the cosine distance between each representation and what becomes of it, from 0 to 2.

    Raises:
        TypeError: if what is found is no floating array, or `of` is no string.
        ValueError: if nothing has that name, weights differ in T_in, the target does not fit the
            output, or `of` is no array of vectors.

    Reference:
        Mohebbi et al. 2023, Quantifying context mixing in transformers, arXiv:2301.12971.
    """
    if of is not None and not isinstance(of, str):
        raise TypeError(f"of must be the name of representations, got {of!r}")
    inputs = (x, *args)
    _, seen = named_weights(fn, inputs, name)
    lengths = {leaf.shape[-1] for leaf in jax.tree.leaves(seen)}
    if len(lengths) > 1:
        shapes = {path: [w.shape for w in jax.tree.leaves(found)] for path, found in seen.items()}
        raise ValueError(
            f"name must find weights over equally many positions, got {shapes}; name one of them"
        )
    (length,) = lengths

    def silenced(function: Callable[..., Any], position: Any) -> Any:
        def zero(weights: Array) -> Array:
            column = jax.lax.broadcasted_iota(jnp.int32, weights.shape, weights.ndim - 1)
            return jnp.where(column == position, 0, weights)

        # Position -1 is nowhere: the unperturbed run comes out of the same program.
        return intervened(function, dict.fromkeys(seen, zero))(*inputs)

    positions = jnp.arange(-1, length, dtype=jnp.int32)
    if of is None:
        score_of = scored(lambda position: silenced(fn, position), target, ())
        scores, outputs = chunked_map(score_of, positions, batch_size)
        values = scores[0] - scores[1:]
    else:

        def representations(position: Any) -> tuple[Any, Any]:
            output, found = silenced(captured(fn, (of,)), position)
            return _vectors(found, of), output

        vectors, outputs = chunked_map(representations, positions, batch_size)
        values = jax.vmap(_cosine_distance, (None, 0), 1)(vectors[0], vectors[1:])
    return Attribution(values, jax.tree.map(lambda leaf: leaf[0], outputs))


def _vectors(found: dict[str, Any], of: str) -> Array:
    """The one array that a name found, without the batch axis of length 1 that it may have."""
    leaves = jax.tree.leaves(found)
    shapes = [leaf.shape for leaf in leaves]
    if len(leaves) != 1 or len(shapes[0]) < 2 or any(size != 1 for size in shapes[0][:-2]):
        raise ValueError(f"of={of!r} must name one array of vectors (T_out, D), got {shapes}")
    vectors: Array = leaves[0]
    if not jnp.issubdtype(vectors.dtype, jnp.floating):
        raise TypeError(f"of={of!r} must name floating vectors, got {vectors.dtype}")
    return vectors.reshape(vectors.shape[-2:])


def _cosine_distance(a: Float[Array, "T D"], b: Float[Array, "T D"]) -> Float[Array, " T"]:
    """1 less the cosine of each pair of rows; of two zeros 0, of a zero and another vector 1."""

    def unit(vectors: Array) -> Array:
        # Squares of what is not near 1 would leave the range, that of half precision above all.
        vectors = vectors.astype(jnp.float32 if jnp.finfo(a.dtype).bits < 32 else a.dtype)
        largest = jax.lax.stop_gradient(jnp.abs(vectors).max(-1, keepdims=True))
        vectors = vectors / jnp.where(largest > 0, largest, 1)
        squares = (vectors * vectors).sum(-1, keepdims=True)
        return vectors / jnp.sqrt(jnp.where(squares > 0, squares, 1))

    cosine = (unit(a) * unit(b)).sum(-1)
    distance = jnp.where((a == b).all(-1), 0, 1 - cosine)
    return jnp.clip(distance, 0, 2).astype(a.dtype)
