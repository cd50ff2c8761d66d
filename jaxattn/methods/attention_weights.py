"""Methods that read attention weights, weight them by gradients, or zero what they read."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Scalar, Target
from jaxattn.engine.batch import chunked_map
from jaxattn.engine.method import method
from jaxattn.engine.target import scored, select
from jaxattn.jaxpr.attention.weights_by_name import select_attention
from jaxattn.jaxpr.capture import Selection, Traced, captured, expose_attention, intervened

#: Weights by full name: an array, or a list of arrays for a name that occurs several times.
NamedWeights: TypeAlias = dict[str, PyTree[Array]]
#: Names of attention weights: `None` for all that are found.
Names: TypeAlias = str | Sequence[str] | None


class Located(NamedTuple):
    """The attention weights of a function.

    Attributes:
        fn: the function, which tags the weights.
        names: their full names.
        output: the output of the function.
        weights: the weights.
        row_error: how far named weights are from being weights, which their structure does not
            show: the largest distance of a sum over keys from 1 (or from 0, if all are masked), or
            of a weight below 0. `None` if all weights were found by their structure.
    """

    fn: Traced
    names: Selection
    output: PyTree
    weights: NamedWeights
    row_error: Float[Array, ""] | None

    @property
    def info(self) -> dict[str, Array]:
        """The part of `Attribution.info` about the weights."""
        return {} if self.row_error is None else {"row_error": self.row_error}


def locate(fn: Callable[..., Any], inputs: tuple[Any, ...], at: Names) -> Located:
    """Find the attention weights of a function, and evaluate it.

    Args:
        fn: the function.
        inputs: its inputs.
        at: the names of weights, or of their layers.

    Raises:
        TypeError: if a name is not a string, or an intermediate is not a floating array.
        ValueError: if `fn` has no attention, or a name matches nothing.
    """
    traced, found = expose_attention(fn, inputs)
    names = select_attention(traced, found, None if at is None else names_of(at))
    output, weights = captured(traced, [f"/{name}" for name in names])(*inputs)
    recognised = {each.name for each in found}
    errors = []
    for path, matched in weights.items():
        for leaf in jax.tree.leaves(matched):
            if leaf.ndim == 0 or not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(
                    "`at` must name attention weights, floating arrays over positions, got "
                    f"{path!r} of type {leaf.dtype}{list(leaf.shape)}."
                )
            if path not in recognised and leaf.size:
                errors.append(_row_error(leaf))
    row_error = jnp.stack(errors).max() if errors else None
    return Located(traced, names, output, weights, row_error)


def _row_error(weights: Float[Array, "... T"]) -> Float[Array, ""]:
    """Compute how far rows are from being non-negative with a sum of 1, or of 0."""
    if jnp.finfo(weights.dtype).bits < 32:
        weights = weights.astype(jnp.float32)
    total = weights.sum(-1)
    return jnp.maximum(jnp.minimum(abs(total - 1), abs(total)).max(), -weights.min())


def names_of(at: str | Sequence[str]) -> tuple[str, ...]:
    """Return one name, or several, as a tuple."""
    names = tuple(at) if isinstance(at, list | tuple) else (at,)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"`at` must be the name of attention weights, or several, got {at!r}.")
    return names


def only(weights: NamedWeights) -> PyTree[Array]:
    """Return the weights of a single name without the dict."""
    return next(iter(weights.values())) if len(weights) == 1 else weights


@method(keeps_input=True, backward=False, per_example=())
def attention(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: Names = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
) -> Attribution:
    """Return the attention weights of a network.

    The weights are found in the traced program of `fn`, whatever library it was written with: a
    softmax or a sigmoid, perhaps scaled, capped or masked, whose output is contracted with values
    over the positions that it runs over. A softmax over the features of a dense layer, such as the
    words of a vocabulary or the experts of a router, is not attention. The weights do not depend on
    `target`.

    Cost: one evaluation of `fn` per example. Deterministic.

    Args:
        at: the name of weights or of their layer, or several, with patterns as for
            `jaxattn.capture`. `None` selects all weights that are found, and intermediates tagged
            "attention". Weights that cannot be found, such as those of a sparse softmax, have to be
            named. It does not replace the input.

    Returns:
        values (heads, T_out, T_in) for a layer with heads, (T_out, T_in) or (T_in,) for others;
        in a scan stacked over its steps; a list of arrays if a name occurs several times; a dict
        by full names if several names are matched. A name is the path of the layer and the tag of
        the weights, or "attention_weights" without a tag; numbered if several would be equal, such
        as "attention_weights_0".
        For weights that were named, but not found, `info["row_error"]` is the largest distance of a
        sum over T_in from 1 (from 0 if all are masked) or of a weight below 0.

    Raises:
        TypeError: if a matched intermediate is not a floating array.
        ValueError: if there are no weights, or a name matches nothing; outside of `jit`, if a named
            intermediate does not hold weights: `row_error` exceeds 0.01.

    Reference:
        Bahdanau et al. 2015, Neural machine translation by jointly learning to align and translate,
        arXiv:1409.0473.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return jax.nn.softmax(0 * x) @ x
        >>> print(ja.attention(fn, jnp.array([1.0, 2.0, 3.0, 4.0])).values)
        [0.25 0.25 0.25 0.25]
    """
    located = locate(fn, (x, *args), at)
    return Attribution(only(located.weights), located.output, located.info)


@method(keeps_input=True, per_example=())
def gradient_x_attention(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: Names = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
) -> Attribution:
    """Compute the attention weights times the gradient of the target with respect to them.

    Each weight is varied by itself: its effect on the weights of later layers or steps is not
    counted.

    Cost: two evaluations of `fn` and one vector-Jacobian product per example. Deterministic.

    Args:
        at: the name of the weights, or several, as for `jaxattn.attention`; all by default.

    Returns:
        values of the shape and structure of the weights, signed, in units of the output.

    Raises:
        TypeError: if a matched intermediate is not a floating array.
        ValueError: as `jaxattn.attention`, or if the target does not fit the output.

    Reference:
        Serrano and Smith 2019, Is attention interpretable?, arXiv:1906.03731.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return jax.nn.softmax(0 * x) @ x
        >>> print(ja.gradient_x_attention(fn, jnp.array([1.0, 2.0, 3.0, 4.0])).values)
        [0.25 0.5  0.75 1.  ]
    """
    inputs = (x, *args)
    located = locate(fn, inputs, at)

    def score(weights: NamedWeights) -> tuple[Scalar, PyTree]:
        named = {f"/{name}": array for name, array in weights.items()}
        output = intervened(located.fn, named)(*inputs)
        return select(output, target), output

    slope, output = jax.grad(score, has_aux=True)(located.weights)
    values = jax.tree.map(jnp.multiply, located.weights, slope)
    return Attribution(only(values), output, located.info)


def _evaluations(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    """Bound the number of positions by the length of the input."""
    return 1 + max((leaf.shape[0] for leaf in jax.tree.leaves(x) if leaf.ndim), default=1)


@method(evaluations=_evaluations, keeps_input=True, backward=False, per_example=())
def value_zeroing(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: Names = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    of: str | None = None,
) -> Attribution:
    """Compute value zeroing: the effect of zeroing the value vector of each position in attention.

    A zero value vector adds nothing to any weighted sum, and neither does a zero weight: the column
    of the position is set to zero in all weights that `at` names, and the other columns are kept.
    The last axis of the weights is T_in.

    Cost: one evaluation of `fn` per position, and two more. Deterministic.

    Args:
        at: the name of the weights, or several, as for `jaxattn.attention`: of one layer, as in the
            paper, or of several layers together. All by default.
        of: the name of representations (T_out, D), such as the output of a layer, whose change is
            measured instead of that of the target; `target` is not used then.

    Returns:
        values (T_in,), the decrease of the target, signed, in units of the output; or with `of`
        (T_out, T_in), the cosine distance between each representation and the changed one, from 0
        to 2.

    Raises:
        TypeError: if a matched intermediate is not a floating array, or `of` is not a string.
        ValueError: as `jaxattn.attention`, or if weights differ in T_in, the target does not fit
            the output, or `of` does not name one array of vectors.

    Reference:
        Mohebbi et al. 2023, Quantifying context mixing in transformers, arXiv:2301.12971.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return jax.nn.softmax(0 * x) @ x
        >>> print(ja.value_zeroing(fn, jnp.array([1.0, 2.0, 3.0, 4.0])).values)
        [0.25 0.5  0.75 1.  ]
    """
    if of is not None and not isinstance(of, str):
        raise TypeError(f"`of` must be the name of representations, got {of!r}.")
    inputs = (x, *args)
    located = locate(fn, inputs, at)
    length = _positions(located.weights)

    def zeroed(position: Int[Array, ""], names: Sequence[str] = ()) -> PyTree:
        def zero(weights: Array) -> Array:
            column = jax.lax.broadcasted_iota(jnp.int32, weights.shape, weights.ndim - 1)
            return jnp.where(column == position, 0, weights)

        changed = intervened(located.fn, {f"/{name}": zero for name in located.names})
        return (captured(changed, names) if names else changed)(*inputs)

    # Position -1 does not exist: the unperturbed run is a part of the same program.
    positions = jnp.arange(-1, length, dtype=jnp.int32)
    if of is None:
        score_of = scored(zeroed, target, ())
        scores, outputs = chunked_map(score_of, positions, batch_size)
        values = scores[0] - scores[1:]
    else:

        def representations(position: Int[Array, ""]) -> tuple[Array, PyTree]:
            output, captures = zeroed(position, (of,))
            return _vectors(captures, of), output

        vectors, outputs = chunked_map(representations, positions, batch_size)
        values = jax.vmap(_cosine_distance, (None, 0), 1)(vectors[0], vectors[1:])
    return Attribution(values, jax.tree.map(lambda leaf: leaf[0], outputs), located.info)


def _positions(weights: NamedWeights) -> int:
    """Return T_in, the length of the last axis of all weights."""
    lengths = {leaf.shape[-1] for leaf in jax.tree.leaves(weights)}
    if len(lengths) > 1:
        shapes = {path: [w.shape for w in jax.tree.leaves(ws)] for path, ws in weights.items()}
        raise ValueError(
            f"`at` must name weights over equally many positions, name one of them: got {shapes}."
        )
    return int(lengths.pop())


def _vectors(captures: Mapping[str, PyTree[Array]], of: str) -> Array:
    """Return the one array that a name matches, without a batch axis of length 1."""
    leaves: list[Array] = jax.tree.leaves(captures)
    shapes = [leaf.shape for leaf in leaves]
    if len(leaves) != 1 or len(shapes[0]) < 2 or any(size != 1 for size in shapes[0][:-2]):
        raise ValueError(f"`of` must name one array of vectors (T_out, D), got {of!r} of {shapes}.")
    (vectors,) = leaves
    if not jnp.issubdtype(vectors.dtype, jnp.floating):
        raise TypeError(f"`of` must name floating vectors, got {of!r} of {vectors.dtype}.")
    return vectors.reshape(vectors.shape[-2:])


def _cosine_distance(a: Float[Array, "T D"], b: Float[Array, "T D"]) -> Float[Array, " T"]:
    """Compute 1 - cosine for each pair of rows: 0 for two zeros, 1 for a zero and another."""

    def unit(vectors: Array) -> Array:
        # Squares far from 1 would leave the range of the dtype, above all of half precision.
        vectors = vectors.astype(jnp.float32 if jnp.finfo(a.dtype).bits < 32 else a.dtype)
        largest = jax.lax.stop_gradient(jnp.abs(vectors).max(-1, keepdims=True))
        vectors = vectors / jnp.where(largest > 0, largest, 1)
        squares = (vectors * vectors).sum(-1, keepdims=True)
        return vectors / jnp.sqrt(jnp.where(squares > 0, squares, 1))

    cosine = (unit(a) * unit(b)).sum(-1)
    distance = jnp.where((a == b).all(-1), 0, 1 - cosine)
    return jnp.clip(distance, 0, 2).astype(a.dtype)
