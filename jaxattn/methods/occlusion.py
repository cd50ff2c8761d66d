"""Methods that replace parts of the input and watch the output."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_bool
from jaxattn.engine.batch import chunked_map, wide
from jaxattn.engine.method import method
from jaxattn.engine.options import as_tuples
from jaxattn.engine.perturb import Windows, broadcast_baseline, leaves_like, sliding_windows
from jaxattn.engine.target import scored
from jaxattn.engine.window_groups import best_grouping


def _windows(x: Any, window: Any, stride: Any) -> list[Windows | None]:
    """The windows of each leaf of `x`; `None` for a leaf that is left alone."""
    windows = leaves_like(x, as_tuples(window), "window", _is_one)
    strides = leaves_like(x, as_tuples(stride), "stride", _is_one)
    if all(one is None for one in windows):
        raise ValueError("window must name cells of at least one leaf of x, got None")
    return [
        None if w is None else sliding_windows(leaf.shape, w, s)
        for leaf, w, s in zip(jax.tree.leaves(x), windows, strides, strict=True)
    ]


def _is_one(value: Any) -> bool:
    """Whether this is the window of one leaf: nothing, a number or numbers of cells."""
    if isinstance(value, (tuple, list)):
        return all(isinstance(v, int | float | np.integer) for v in value)
    return value is None or isinstance(value, int | float | np.integer)


def _evaluations(x: Any, output: Any, options: dict[str, Any]) -> int:
    windows = _windows(x, options.get("window", 1), options.get("stride"))
    return max(w.number + 1 if w else 1 for w in windows)


@method(evaluations=_evaluations, sizes=("window", "stride"))
def occlusion(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    window: int | Sequence[int] | Any = 1,
    stride: int | Sequence[int] | Any = None,
    baseline: Any = 0.0,
    reuse: bool = True,
) -> Attribution:
    """How much the score falls when a window of the input is replaced by a baseline.

    Each cell gets the mean of the differences over the windows that cover it. The last window along
    an axis may reach over the end and covers what is left.

    Args:
        fn: maps `x` to an output.
        x: one example, of floating numbers or integers of any rank.
        target: which number of the output is explained; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: how many evaluations of `fn` are in flight.
        window: cells along each axis; an int is the length along the first axis, and axes that are
            not named are covered whole: `window=8` takes 8 steps of a series with all channels,
            `window=(4, 4)` a square of an image. For a pytree one for all leaves, or a pytree like
            `x`; `None` leaves a leaf alone. Each leaf is occluded by itself.
        stride: from one window to the next, likewise; 1 by default.
        baseline: what a window is replaced by; a number or an array that broadcasts to `x`, or a
            pytree of such.
        reuse: whether what a window leaves unchanged is taken from one clean run of `fn`: loops
            over time start where a window begins, and products are made of its rows alone. The
            values are the same but for rounding. `False` runs `fn` whole for each window, and so
            does `True` where `fn` prints or calls back, or nothing worth while is saved.

    Returns:
        values of the shape of `x`, in units of the output. `info["flops_saved"]` is how many
        operations `reuse` left out, of those that whole runs would make.

    Raises:
        ValueError: if the target does not fit the output, the baseline does not broadcast, or a
            window or stride is not positive or too large.
        TypeError: for a window or stride that holds no ints, or `reuse` that is no bool.

    Reference:
        Zeiler and Fergus 2014, Visualizing and understanding convolutional networks,
        arXiv:1311.2901.
    """
    check_bool("reuse", reuse)
    score_of = scored(fn, target, args)
    score, output = score_of(x)
    info = {"flops_saved": jnp.zeros((), wide(score.dtype))}
    leaves, treedef = jax.tree.flatten(x)
    replacements = jax.tree.leaves(broadcast_baseline(baseline, x))

    def of_leaf(i: int, windows: Windows | None) -> Any:
        if windows is None:
            return jnp.zeros(leaves[i].shape, score.dtype)

        def score_with(leaf: Any) -> tuple[Any, Any]:
            return score_of(jax.tree.unflatten(treedef, [*leaves[:i], leaf, *leaves[i + 1 :]]))

        def occluded(leaf: Any, replacement: Any, position: Any) -> Any:
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
        # The unperturbed score comes out of the same program: rounding differs between programs.
        nowhere = np.array([windows.shape], np.int32)
        positions = np.concatenate([nowhere, positions])
        scores = chunked_map(
            lambda position: score_with(occluded(leaves[i], replacements[i], position))[0],
            jnp.asarray(positions),
            batch_size,
        )
        return windows.mean(scores[0] - scores[1:])

    values = [of_leaf(i, w) for i, w in enumerate(_windows(x, window, stride))]
    return Attribution(jax.tree.unflatten(treedef, values), output, info)
