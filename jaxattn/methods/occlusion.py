"""Occlusion: windows of the input are replaced by a baseline."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_bool
from jaxattn.engine.batch import chunked_map, wide
from jaxattn.engine.method import method
from jaxattn.engine.options import as_tuples
from jaxattn.engine.perturb import Windows, broadcast_baseline, leaves_like, sliding_windows
from jaxattn.engine.target import scored
from jaxattn.engine.window_groups import best_grouping

#: The window, or the stride, of one leaf: along the first axis, or along each of the first axes.
Extent: TypeAlias = int | np.integer | np.ndarray | Sequence[int | np.integer] | None


def _windows(x: PyTree, window: PyTree[Extent], stride: PyTree[Extent]) -> list[Windows | None]:
    """Return the windows of each leaf of `x`; `None` for a leaf that is not occluded."""
    windows = leaves_like(x, as_tuples(window), "window", _is_extent)
    strides = leaves_like(x, as_tuples(stride), "stride", _is_extent)
    if all(one is None for one in windows):
        raise ValueError("`window` must be given for at least one leaf of x, got None.")
    return [
        None if w is None else sliding_windows(leaf.shape, w, s)
        for leaf, w, s in zip(jax.tree.leaves(x), windows, strides, strict=True)
    ]


def _is_extent(value: object) -> bool:
    """Return whether a value is the window of one leaf, not a pytree of such."""
    if isinstance(value, (tuple, list)):
        return all(isinstance(v, int | float | np.integer) for v in value)
    return value is None or isinstance(value, int | float | np.integer)


def _evaluations(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    windows = _windows(x, options.get("window", 1), options.get("stride"))
    return max(w.number + 1 if w else 1 for w in windows)


@method(evaluations=_evaluations, sizes=("window", "stride"), backward=False)
def occlusion(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    window: PyTree[Extent] = 1,
    stride: PyTree[Extent] = None,
    baseline: PyTree[ArrayLike] = 0.0,
    reuse: bool = True,
) -> Attribution:
    """Compute occlusion: the decrease of the target when a window of features is replaced.

    A window slides over the input and is replaced by a baseline. Each feature gets the mean of the
    decreases over the windows that cover it. The last window along an axis may reach beyond the
    end; it covers the rest. `x` may hold floating numbers or integers, such as token ids.

    Cost: one evaluation of `fn` per window, and one more; with `reuse` only the part of each
    evaluation that the window changes is recomputed. Deterministic.

    Args:
        window: the size of the window along each axis. An int is the length along the first axis;
            axes that are not named are covered whole: `window=8` covers 8 time steps of a series
            with all channels, `window=(4, 4)` a square of an image. For a pytree, one for all
            leaves or a pytree like `x`; `None` leaves a leaf unchanged. Each leaf is occluded
            separately.
        stride: the distance between windows along each axis, in the same format; 1 by default.
        baseline: the replacement: a number or an array that broadcasts to `x`, or a pytree of these
            with the structure of `x`.
        reuse: whether values that a window leaves unchanged are taken from one unperturbed
            evaluation: loops over time start where the window begins, and products are computed for
            its rows alone. Values agree up to rounding. `False` evaluates `fn` in full for each
            window, and so does `True` where `fn` prints or calls back, or where too little is
            saved.

    Returns:
        values of the shape of `x`, signed, in units of the output. `info["flops_saved"]` is the
        number of operations that `reuse` saved.

    Raises:
        TypeError: for a window or stride that does not hold ints, or a `reuse` that is not a bool.
        ValueError: if the target does not fit the output, the baseline does not broadcast to `x`,
            or a window or stride is not positive or too large.

    Reference:
        Zeiler and Fergus 2014, Visualizing and understanding convolutional networks,
        arXiv:1311.2901.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] * x[1] + 4 * x[3]
        >>> x = jnp.array([1.0, 2.0, 3.0, 1.0])
        >>> print(ja.occlusion(fn, x).values)
        [2. 2. 0. 4.]
        >>> print(ja.occlusion(fn, x, window=2, stride=2).values)
        [2. 2. 4. 4.]
    """
    check_bool("reuse", reuse)
    score_of = scored(fn, target, args)
    score, output = score_of(x)
    info = {"flops_saved": jnp.zeros((), wide(score.dtype))}
    leaves, treedef = jax.tree.flatten(x)
    replacements = jax.tree.leaves(broadcast_baseline(baseline, x))

    def values_of(i: int, windows: Windows | None) -> Array:
        if windows is None:
            return jnp.zeros(leaves[i].shape, score.dtype)

        def score_with(leaf: Array) -> tuple[Array, PyTree]:
            return score_of(jax.tree.unflatten(treedef, [*leaves[:i], leaf, *leaves[i + 1 :]]))

        def occluded(leaf: Array, replacement: Array, position: Int[Array, " rank"]) -> Array:
            return jnp.where(windows.mask(position), replacement, leaf)

        positions = windows.positions()
        if reuse and windows.number > 1:
            ends = np.minimum(positions + windows.window, windows.shape)
            spans = list(zip(positions.T, ends.T, strict=True))
            found = best_grouping(score_with, leaves[i], spans, batch_size)
            if found is not None:
                info["flops_saved"] += float(found.saved)  # more than an int32 holds
                changed, none = found.scores(
                    leaves[i], occluded, replacements[i], jnp.asarray(positions), batch_size
                )
                return windows.mean(none - changed)

        def occluded_score(position: Int[Array, " rank"]) -> Float[Array, ""]:
            return score_with(occluded(leaves[i], replacements[i], position))[0]

        # A window that lies outside gives the unperturbed score from the same program: rounding
        # differs between programs.
        outside = np.array([windows.shape], np.int32)
        positions = np.concatenate([outside, positions])
        scores = chunked_map(occluded_score, jnp.asarray(positions), batch_size)
        return windows.mean(scores[0] - scores[1:])

    values = [values_of(i, w) for i, w in enumerate(_windows(x, window, stride))]
    return Attribution(jax.tree.unflatten(treedef, values), output, info)
