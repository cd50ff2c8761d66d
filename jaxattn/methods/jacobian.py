"""Jacobians: the derivative of every entry of the output with respect to every feature."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_bool
from jaxattn.engine.batch import chunked_map, varying_as, wide
from jaxattn.engine.method import method
from jaxattn.engine.perturb import floating_leaves
from jaxattn.engine.target import scored
from jaxattn.jaxpr.flat import primitives
from jaxattn.jaxpr.reuse.reuse_plan import Traced
from jaxattn.methods.stepwise import Linear, Stepwise, every_image

Mode: TypeAlias = Literal["auto", "forward", "reverse"]
#: From the floating leaves of the input to what is differentiated, and the whole output.
Function: TypeAlias = Callable[[list[Array]], tuple[PyTree, PyTree]]


def _size(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _is_forward(mode: Mode, x: PyTree, output: PyTree) -> bool:
    if mode not in get_args(Mode):
        raise ValueError(f'`mode` must be "auto", "forward" or "reverse", got {mode!r}.')
    return mode == "forward" or (mode == "auto" and _size(x) < _size(output))


def _evaluations(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    if options.get("target") is not None:
        output = jax.ShapeDtypeStruct((), jnp.float32)
    return _size(x if _is_forward(options.get("mode", "auto"), x, output) else output)


@method(evaluations=_evaluations)
def jacobian(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    mode: Mode = "auto",
    reduction: Literal["norm"] | None = None,
    reuse: bool = True,
) -> Attribution:
    """Compute the Jacobian of the output with respect to the input.

    For an output per time step, (T, K), and a series (T, D), this is the temporal Jacobian
    (T, K, T, D): the dependence of each output step on each input step. If the network is causal,
    half of it is zero; that half is neither computed nor, with a `reduction`, held in memory.

    Cost: one evaluation of `fn`, and one vector-Jacobian product per entry of the output or one
    Jacobian-vector product per feature. Deterministic.

    Args:
        mode: `"reverse"` computes rows, one per entry of the output; `"forward"` computes columns,
            one per feature. `"auto"` chooses whichever are fewer or, where zeros can be left out,
            whichever cost fewer operations. Through a `while` loop, which has no reverse mode, it
            chooses `"forward"`.
        reduction: `None` for the whole Jacobian. `"norm"` for its Frobenius norm over all axes but
            the first of the output and the first of the input: one number for each pair of time
            steps, of which the unreduced entries are held only for a chunk.
        reuse: whether entries that must be zero, because an output step cannot depend on an input
            step, are left out of the computation.

    Returns:
        values of shape (*output axes, *input axes), in units of the output per unit of `x`: a
        pytree like the output, of pytrees like `x`. Integer leaves of `x` get zeros. With
        `reduction="norm"` an array (T_out, T_in). With a `target` the output is that one entry.

    Raises:
        TypeError: if no leaf of `x` is floating, or a part of the output is not.
        ValueError: if the target does not fit the output; for an unknown mode or reduction; or for
            a reduction where the output or `x` is not one array with an axis of time steps; or if
            `mode` is `"reverse"` and a `while` loop depends on `x`.

    Reference:
        Griewank and Walther 2008, Evaluating derivatives.

    Examples:
        A cumulative sum: each step depends on itself and on all steps before it.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> x = jnp.array([[1.0], [2.0], [3.0]])
        >>> print(ja.jacobian(lambda x: x.cumsum(0), x, reduction="norm").values)
        [[1. 0. 0.]
         [1. 1. 0.]
         [1. 1. 1.]]
    """
    inputs, merge = floating_leaves(x, "a Jacobian")

    def function(leaves: list[Array]) -> tuple[PyTree, PyTree]:
        if target is not None:
            return scored(fn, target, args)(merge(leaves))
        output = fn(merge(leaves), *args)
        return output, output

    explained = _checked(jax.eval_shape(function, inputs)[0])
    check_bool("reuse", reuse)
    if reduction not in (None, "norm"):
        raise ValueError(f'`reduction` must be "norm" or None, got {reduction!r}.')
    by_columns = _is_forward(mode, x, explained)
    if not _has_reverse_mode(function, inputs, mode):
        mode, by_columns = "forward", True
    has_steps = _has_steps(x) and _has_steps(explained)
    if reduction is not None:
        if not has_steps:
            shapes = jax.tree.map(jnp.shape, (x, explained))
            raise ValueError(
                "`reduction` must be None unless x and the output of fn are each one array with "
                f"an axis of time steps, got shapes {shapes[0]} and {shapes[1]}."
            )
        return Attribution(*_norms_by_steps(function, inputs, explained, mode, reuse, batch_size))
    if has_steps and reuse and _size(x) and _size(explained):
        causal = _without_zeros(function, inputs, mode, batch_size)
        if causal is not None:
            values = jax.tree.unflatten(jax.tree.structure(explained), [merge([causal.entries])])
            return Attribution(values, causal.output)
    rows, output = _whole(function, inputs, by_columns, batch_size)
    return Attribution(_blocks(rows, explained, merge), output)


def _has_reverse_mode(function: Function, inputs: list[Array], mode: Mode) -> bool:
    """Return whether a function can be differentiated in reverse mode.

    Raises:
        ValueError: if it cannot although the mode is `"reverse"`.
    """

    def explained(leaves: list[Array]) -> PyTree:
        return function(leaves)[0]

    if mode == "forward" or "while" not in primitives(Traced.of(explained, inputs).flat):
        return True
    _, pushforward = jax.linearize(explained, inputs)  # without the loops that no derivative enters
    if "while" not in primitives(Traced.of(pushforward, inputs).flat):
        return True
    if mode == "reverse":
        raise ValueError(
            '`mode` must be "forward" or "auto" for an fn with a `while` loop or a `fori_loop` of '
            'unknown length that depends on x: these have no reverse mode, got "reverse".'
        )
    return False


def _checked(explained: PyTree) -> PyTree:
    """Return the shapes of what is differentiated, once their dtypes are checked."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(explained)]
    if not dtypes:
        raise ValueError("`fn` must return at least one array, got none.")
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise TypeError(f"`fn` must return floating arrays, got {dtypes}.")
    return explained


def _has_steps(tree: PyTree) -> bool:
    leaves = jax.tree.leaves(tree)
    return len(leaves) == 1 and leaves[0].ndim > 0


class _Entries(NamedTuple):
    """Entries of a Jacobian, or of its norms, and the output of the function."""

    entries: Array
    output: PyTree


class _LinearMap(NamedTuple):
    """A linearised function (`"forward"`) or its transpose, and an array like its operand."""

    mode: Mode
    apply: Linear
    operand: Array


def _linear_maps(
    function: Function, leaf: Array, mode: Mode
) -> tuple[dict[Mode, _LinearMap], PyTree]:
    """Linearise a function of one array in the modes that may be the cheaper, and run it.

    The reverse mode comes first.
    """

    def series(leaf: Array) -> tuple[Array, PyTree]:
        explained, output = function([leaf])
        return jax.tree.leaves(explained)[0], output

    size = jax.eval_shape(series, leaf)[0].size
    maps: dict[Mode, _LinearMap] = {}
    # A function may support one mode alone, so neither is traced where it cannot be the cheaper.
    if mode == "forward" or (mode == "auto" and leaf.size < size):
        _, pushforward, output = jax.linearize(series, leaf, has_aux=True)
        maps["forward"] = _LinearMap("forward", pushforward, leaf)
    if mode != "forward":
        value, pullback, output = jax.vjp(series, leaf, has_aux=True)
        reverse = _LinearMap("reverse", lambda cotangent: pullback(cotangent)[0], value)
        maps = {"reverse": reverse, **maps}
    return maps, output


def _cheapest(
    maps: dict[Mode, _LinearMap], batch_size: int | None
) -> tuple[_LinearMap, Stepwise] | None:
    """Choose the map with the fewest operations; `None` where no zeros can be left out."""
    stepwise = [(m, Stepwise.of(m.apply, m.operand, batch_size)) for m in maps.values()]
    causal = [(m, steps) for m, steps in stepwise if steps is not None]
    return min(causal, key=lambda pair: pair[1].flops, default=None)


def _norms_by_steps(
    function: Function,
    inputs: list[Array],
    explained: PyTree,
    mode: Mode,
    reuse: bool,
    batch_size: int | None,
) -> _Entries:
    """Compute the norm of the Jacobian for each pair of steps, (T_out, T_in)."""
    (leaf,), (result,) = inputs, jax.tree.leaves(explained)
    if not leaf.size or not result.size:
        _, output = function(inputs)
        return _Entries(jnp.zeros((result.shape[0], leaf.shape[0]), result.dtype), output)
    maps, output = _linear_maps(function, leaf, mode)
    causal = _cheapest(maps, batch_size) if reuse else None
    if causal is not None:
        linear, steps = causal
        images = steps.images(_row_norms, batch_size)
    else:
        linear = list(maps.values())[-1]
        images = every_image(linear.apply, linear.operand, _row_norms, batch_size)
    # Of the operand's own axes the images keep all, and of the result's only the first.
    pairs = _norm(images, tuple(range(1, linear.operand.ndim)))
    return _Entries(pairs.T if linear.mode == "forward" else pairs, output)


def _without_zeros(
    function: Function, inputs: list[Array], mode: Mode, batch_size: int | None
) -> _Entries | None:
    """Compute the whole Jacobian of a series; `None` where no zeros can be left out."""
    maps, output = _linear_maps(function, inputs[0], mode)
    causal = _cheapest(maps, batch_size)
    if causal is None:
        return None
    linear, steps = causal
    images = steps.images(None, batch_size)
    if linear.mode == "forward":
        axes, rank = range(images.ndim), linear.operand.ndim
        images = images.transpose(*axes[rank:], *axes[:rank])
    return _Entries(images, output)


def _row_norms(rows: Array) -> Array:
    """Compute the norm of each row."""
    return _norm(rows, tuple(range(1, rows.ndim)))


def _norm(entries: Array, axes: tuple[int, ...]) -> Array:
    """Compute the Frobenius norm over some axes, without overflow or underflow of the squares."""
    wider = entries.astype(wide(entries.dtype))
    largest = jax.lax.stop_gradient(jnp.abs(wider).max(axes, keepdims=True, initial=0))
    scale = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1)
    total = jnp.square(wider / scale).sum(axes)
    # The root has no derivative at zero, where nothing depends on anything.
    root = jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total)))
    return (root * scale.reshape(root.shape)).astype(entries.dtype)


def _whole(
    function: Function, inputs: list[Array], by_columns: bool, batch_size: int | None
) -> tuple[list[Array], PyTree]:
    """Compute the Jacobian (entries, *leaf axes) of each leaf, and the output."""

    def flat(leaves: list[Array]) -> tuple[Array, PyTree]:
        explained, output = function(leaves)
        parts = jax.tree.leaves(explained)
        dtype = jnp.result_type(*parts)
        return jnp.concatenate([part.astype(dtype).ravel() for part in parts]), output

    return (_columns if by_columns else _rows)(flat, inputs, batch_size)


def _rows(
    flat: Function, inputs: list[Array], batch_size: int | None
) -> tuple[list[Array], PyTree]:
    """Compute a Jacobian by vector-Jacobian products."""
    entries, pullback, output = jax.vjp(flat, inputs, has_aux=True)

    def row(i: Array) -> list[Array]:
        cotangent = (jnp.arange(entries.size) == i).astype(entries.dtype)
        (gradient,) = pullback(varying_as(entries, cotangent))
        return list(gradient)

    return chunked_map(row, jnp.arange(entries.size), batch_size), output


def _columns(
    flat: Function, inputs: list[Array], batch_size: int | None
) -> tuple[list[Array], PyTree]:
    """Compute a Jacobian by Jacobian-vector products."""
    entries, pushforward, output = jax.linearize(flat, inputs, has_aux=True)
    ends = np.cumsum([leaf.size for leaf in inputs])

    def tangent(leaf: Array, start: int, i: Array) -> Array:
        one_hot = (jnp.arange(leaf.size) + start == i).astype(leaf.dtype)
        return varying_as(leaf, one_hot.reshape(leaf.shape))

    def column(i: Array) -> Array:
        starts = (int(end) - leaf.size for leaf, end in zip(inputs, ends, strict=True))
        tangents = [tangent(leaf, start, i) for leaf, start in zip(inputs, starts, strict=True)]
        pushed: Array = pushforward(tangents)
        return pushed

    columns = chunked_map(column, jnp.arange(int(ends[-1])), batch_size).T
    blocks = [
        columns[:, end - leaf.size : end].reshape(entries.size, *leaf.shape)
        for leaf, end in zip(inputs, ends, strict=True)
    ]
    return blocks, output


def _blocks(rows: list[Array], explained: PyTree, merge: Callable[..., Inputs]) -> PyTree:
    """Arrange the rows as a pytree like the output, of pytrees like the input."""
    parts, treedef = jax.tree.flatten(explained)
    ends = np.cumsum(list(map(_size, parts)))

    def block(part: jax.ShapeDtypeStruct, end: int) -> Inputs:
        own = [row[end - _size(part) : end] for row in rows]
        shaped = [r.reshape(*part.shape, *r.shape[1:]) for r in own]
        return merge(shaped, lambda leaf: jnp.zeros((*part.shape, *leaf.shape), part.dtype))

    return jax.tree.unflatten(
        treedef, [block(part, int(end)) for part, end in zip(parts, ends, strict=True)]
    )
