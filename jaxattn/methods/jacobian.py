"""The derivative of every output with respect to every input."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_bool
from jaxattn.engine.batch import chunked_map, varying_as, wide
from jaxattn.engine.method import method
from jaxattn.engine.perturb import floating_leaves
from jaxattn.engine.target import scored
from jaxattn.jaxpr.flat import primitives
from jaxattn.jaxpr.reuse.reuse_plan import Traced
from jaxattn.methods.stepwise import Stepwise, every_image

Mode = Literal["auto", "forward", "reverse"]


def _size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _is_forward(mode: str, x: Any, output: Any) -> bool:
    if mode not in ("auto", "forward", "reverse"):
        raise ValueError(f'mode must be "auto", "forward" or "reverse", got {mode!r}')
    return mode == "forward" or (mode == "auto" and _size(x) < _size(output))


def _evaluations(x: Any, output: Any, options: dict[str, Any]) -> int:
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
    key: RandomKey | None = None,
    batch_size: int | None = None,
    mode: Mode = "auto",
    reduction: Literal["norm"] | None = None,
    reuse: bool = True,
) -> Attribution:
    """The derivative of every number of the output with respect to every number of the input.

    For an output per step, (T, K), and a series (T, D), this is the temporal Jacobian
    (T, K, T, D): how step t of the output depends on step s of the input. Where a step depends on
    none behind it, that half is zero, and neither computed nor, with a `reduction`, held in memory.

    Args:
        fn: maps `x` to an output of any rank, or a pytree of outputs.
        x: one example.
        target: `None` for all outputs; otherwise the one number that is differentiated.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: how many rows (or columns, forwards) are in flight.
        mode: `"reverse"` works row by row, one for each output; `"forward"` column by column, one
            for each input; `"auto"` takes whichever are fewer, or, where there is a half to leave
            out, whichever cost fewer operations.
        reduction: `"norm"` for the root of the sum of squares over all axes but the first of the
            output and the first of the input, one number for each pair of steps: (T, T). Of all the
            other numbers there is never more than a chunk.
        reuse: whether what a step cannot reach is left out; `False` computes all.

    Returns:
        values of shape (*output axes, *input axes): a pytree like the output, of pytrees like `x`.
        Integer leaves of `x` get zeros.

    Raises:
        TypeError: if `x` holds integers only, or a part of the output does.
        ValueError: if the target does not fit the output, for an unknown mode or reduction, or a
            reduction where the output or `x` is not one array with an axis of steps.
    """
    inputs, merge = floating_leaves(x, "a Jacobian")

    def answer(leaves: list[Any]) -> tuple[Any, Any]:
        if target is not None:
            return scored(fn, target, args)(merge(leaves))
        output = fn(merge(leaves), *args)
        return output, output

    def flat(leaves: list[Any]) -> tuple[Any, Any]:
        explained, output = answer(leaves)
        numbers = jax.tree.leaves(explained)
        if not numbers:
            raise ValueError("fn must answer at least one array, got none")
        if not all(jnp.issubdtype(n.dtype, jnp.floating) for n in numbers):
            raise TypeError(f"fn must answer floating numbers, got {[n.dtype for n in numbers]}")
        dtype = jnp.result_type(*numbers)
        return jnp.concatenate([n.astype(dtype).ravel() for n in numbers]), (explained, output)

    explained, output = jax.eval_shape(flat, inputs)[1]
    check_bool("reuse", reuse)
    if reduction not in (None, "norm"):
        raise ValueError(f'reduction must be "norm" or None, got {reduction!r}')
    if _is_series(x) and _is_series(explained):

        def series(leaf: Any) -> tuple[Any, Any]:
            explained, output = answer([leaf])
            return jax.tree.leaves(explained)[0], output

        found = _by_steps(series, inputs[0], mode, reduction is not None, reuse, batch_size)
        if found is not None:
            values, output = found
            if reduction is None:
                values = jax.tree.unflatten(jax.tree.structure(explained), [merge([values])])
            return Attribution(values, output)
    elif reduction is not None and not (_has_steps(x) and _has_steps(explained)):
        shapes = jax.tree.map(jnp.shape, (x, explained))
        raise ValueError(
            "reduction wants one array with an axis of steps both for x and for what fn answers, "
            f"got shapes {shapes[0]} and {shapes[1]}"
        )
    elif reduction is not None:  # of steps of which there are none
        (answers,), (leaf,) = map(jax.tree.leaves, (explained, x))
        pairs = jnp.zeros((answers.shape[0], leaf.shape[0]), answers.dtype)
        return Attribution(pairs, flat(inputs)[1][1])
    by_columns = _is_forward(mode, x, explained)
    matrices, output = (_columns if by_columns else _rows)(flat, inputs, batch_size)
    parts = jax.tree.leaves(explained)
    ends = np.cumsum(list(map(_size, parts)))

    def block(part: Any, end: int) -> Any:
        rows = [matrix[end - _size(part) : end] for matrix in matrices]
        shaped = [r.reshape(*part.shape, *r.shape[1:]) for r in rows]
        return merge(shaped, lambda leaf: jnp.zeros((*part.shape, *leaf.shape), part.dtype))

    blocks = [block(part, int(end)) for part, end in zip(parts, ends, strict=True)]
    return Attribution(jax.tree.unflatten(jax.tree.structure(explained), blocks), output)


Flat = Callable[[list[Any]], tuple[Any, Any]]


def _has_steps(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree)
    return len(leaves) == 1 and leaves[0].ndim > 0


def _is_series(tree: Any) -> bool:
    return _has_steps(tree) and jax.tree.leaves(tree)[0].size > 0


def _by_steps(
    series: Callable[[Any], tuple[Any, Any]],
    leaf: Any,
    mode: Mode,
    reduced: bool,
    reuse: bool,
    batch_size: int | None,
) -> tuple[Any, Any] | None:
    """The Jacobian of a series over a series, or its norm for each pair of steps.

    Returns:
        it and the output; or `None` where it is asked for whole and has no part to leave out.
    """
    size = jax.eval_shape(series, leaf)[0].size
    ways: dict[str, tuple[Callable[[Any], Any], Any]] = {}
    # A function may have one mode alone, so neither is looked at where it could not be the cheaper.
    if mode == "forward" or (mode == "auto" and leaf.size < size):
        _, forward, output = jax.linearize(series, leaf, has_aux=True)
        ways["forward"] = forward, leaf
    if mode == "reverse" or (mode == "auto" and not (ways and _loops_on(forward, leaf))):
        value, pullback, output = jax.vjp(series, leaf, has_aux=True)
        ways = {"reverse": (lambda cotangent: pullback(cotangent)[0], value), **ways}
    stepwise = {
        way: Stepwise.of(linear, given, batch_size)
        for way, (linear, given) in ways.items()
        if reuse
    }
    found = {way: steps for way, steps in stepwise.items() if steps is not None}
    norms = _norms if reduced else None
    if found:
        way = min(found, key=lambda way: found[way].flops)
        images = found[way].images(norms, batch_size)
    elif reduced:
        way = list(ways)[-1]
        images = every_image(*ways[way], norms, batch_size)
    else:
        return None
    given = ways[way][1]
    if reduced:  # of its own axes the function left the first
        pairs = _norm(images, tuple(range(1, given.ndim)))
        return pairs.T if way == "forward" else pairs, output
    if way == "forward":
        axes = range(images.ndim)
        images = images.transpose(*axes[given.ndim :], *axes[: given.ndim])
    return images, output


def _loops_on(linear: Callable[[Any], Any], leaf: Any) -> bool:
    """Whether a linear function holds a loop of unknown length, which has no transpose."""
    return "while" in primitives(Traced.of(linear, leaf).flat)


def _norms(rows: Any) -> Any:
    """The norm of each row."""
    return _norm(rows, tuple(range(1, rows.ndim)))


def _norm(numbers: Any, axes: tuple[int, ...]) -> Any:
    """The Frobenius norm over some axes, without a square that overflows or vanishes."""
    wider = numbers.astype(wide(numbers.dtype))
    largest = jax.lax.stop_gradient(jnp.abs(wider).max(axes, keepdims=True, initial=0))
    scale = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1)
    total = jnp.square(wider / scale).sum(axes)
    # The root has no slope at zero, where nothing depends on anything.
    root = jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total)))
    return (root * scale.reshape(root.shape)).astype(numbers.dtype)


def _rows(flat: Flat, inputs: list[Any], batch_size: int | None) -> tuple[list[Any], Any]:
    """The Jacobian (outputs, *leaf) of each leaf, a row a pull-back."""
    numbers, pullback, (_, output) = jax.vjp(flat, inputs, has_aux=True)

    def row(i: Any) -> list[Any]:
        seed = (jnp.arange(numbers.size) == i).astype(numbers.dtype)
        (gradient,) = pullback(varying_as(numbers, seed))
        return list(gradient)

    return chunked_map(row, jnp.arange(numbers.size), batch_size), output


def _columns(flat: Flat, inputs: list[Any], batch_size: int | None) -> tuple[list[Any], Any]:
    """The Jacobian (outputs, *leaf) of each leaf, a column a push-forward."""
    numbers, pushforward, (_, output) = jax.linearize(flat, inputs, has_aux=True)
    ends = np.cumsum([leaf.size for leaf in inputs])

    def column(i: Any) -> Any:
        tangents = [
            varying_as(
                leaf,
                (jnp.arange(leaf.size) + (end - leaf.size) == i)
                .astype(leaf.dtype)
                .reshape(leaf.shape),
            )
            for leaf, end in zip(inputs, ends, strict=True)
        ]
        return pushforward(tangents)

    columns = chunked_map(column, jnp.arange(int(ends[-1])), batch_size).T
    blocks = [
        columns[:, end - leaf.size : end].reshape(numbers.size, *leaf.shape)
        for leaf, end in zip(inputs, ends, strict=True)
    ]
    return blocks, output
