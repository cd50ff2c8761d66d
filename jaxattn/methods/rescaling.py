"""Temporal saliency rescaling: the relevance of time steps times that of their features."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Scalar, Target
from jaxattn.engine.batch import chunked_map, wide
from jaxattn.engine.method import method
from jaxattn.engine.options import count
from jaxattn.engine.perturb import broadcast_baseline, floating_leaves, is_floating
from jaxattn.methods.gradients import gradient, options_of_method
from jaxattn.methods.temporal import length_position, series_length

#: The options of `temporal_saliency_rescaling` itself; all others are passed to its `method`.
_OWN = ("method", "length_arg", "baseline")


def _channels(leaf: Any) -> int:
    """Return the number of features of a time step."""
    return int(np.prod(leaf.shape[1:]))


def _masked_times(what: str, x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    """Count the evaluations of all masked inputs: `what` is `"evaluations"` or `"in_flight"`."""
    inner = {name: value for name, value in options.items() if name not in _OWN}
    features = sum(_channels(leaf) for leaf in jax.tree.leaves(x) if is_floating(leaf))
    masked = 1 + series_length(x) * (1 + features)
    return masked * count(what, options.get("method", gradient), x, output, inner)


@method(
    for_logits=True,
    evaluations=functools.partial(_masked_times, "evaluations"),
    in_flight=functools.partial(_masked_times, "in_flight"),
)
def temporal_saliency_rescaling(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    method: Callable[..., Attribution] = gradient,
    length_arg: int | np.integer | None = None,
    baseline: PyTree[ArrayLike] = 0.0,
    **options: Any,
) -> Attribution:
    """Compute temporal saliency rescaling (TSR) of a method.

    The relevance of a time step is the sum of |R(x) - R(x with the step replaced)| over all
    features, where R are the values of the method. That of a feature of the step is the same for
    the feature alone. The result is their product for steps whose relevance is above the mean of
    all steps, and zero for others. `x` holds time on the first axis of every leaf.

    Cost: 1 + T (1 + D) times the cost of `method`, for D features per step, all in one program, and
    one evaluation of `fn`. Draws with `key` if `method` does, the same for all inputs.

    Args:
        key: a random key for a `method` that draws.
        method: the method R.
        length_arg: which of `args` holds the length of the valid part of `x`, padded on the right:
            the mean is taken over valid steps, and padding has no value.
        baseline: what replaces a step or a feature, and the baseline of `method` if it takes one
            and has none of its own: a number or an array that broadcasts to `x`, or a pytree of
            these with the structure of `x`. Integer leaves are not replaced.
        **options: options of `method`.

    Returns:
        values of the shape of `x`, non-negative, in units of the method squared; integer leaves get
        zeros. `info["time_relevance"]`, of shape (T,), and `info["feature_relevance"]`, like `x`,
        are the two factors.

    Raises:
        TypeError: if no leaf of `x` is floating, for a length that is no integer, or for an option
            that `method` does not have.
        ValueError: if the target does not fit the output, the baseline does not broadcast to `x`,
            for series of different lengths, or a `length_arg` that is out of range.

    Reference:
        Ismail et al. 2020, Benchmarking deep learning interpretability in time series predictions,
        arXiv:2010.13924.

    Examples:
        Only the first step counts, and in it mostly the second feature.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0, 0] ** 2 + 3 * x[0, 1] ** 2 + x[1, 0]
        >>> x = jnp.ones((3, 2))
        >>> print(ja.temporal_saliency_rescaling(fn, x).values)
        [[16. 48.]
         [ 0.  0.]
         [ 0.  0.]]
    """
    options = options_of_method("temporal_saliency_rescaling", _OWN, method, options, baseline)
    total = series_length(x)
    leaves, merge = floating_leaves(x, "a relevance of features")
    replacements, _ = floating_leaves(
        broadcast_baseline(baseline, x, keep_integers=True), "a relevance of features"
    )
    output = fn(x, *args)
    inner = count("in_flight", method, x, output, {"target": target, **options})
    inner_size = min(inner, batch_size) if batch_size else None

    def values_of(x: Inputs) -> PyTree:
        shared = {"args": args, "key": key, "batch_size": inner_size}
        return method(fn, x, target, **shared, **options).values

    unmasked = values_of(x)

    def relevance(masked: list[Array]) -> Scalar:
        """Return how far the method's values are from those of the input."""

        def distance(one: Array, other: Array) -> Scalar:
            exact = wide(one.dtype)
            return jnp.abs(one.astype(exact) - other.astype(exact)).sum()

        distances = jax.tree.map(distance, unmasked, values_of(merge(masked)))
        return jnp.stack(jax.tree.leaves(distances)).sum()

    def of_step(t: Int[Array, ""]) -> Scalar:
        pairs = zip(leaves, replacements, strict=True)
        return relevance([leaf.at[t].set(new[t]) for leaf, new in pairs])

    def of_features(i: int) -> Array:
        """Return the relevance of each feature of a leaf in each step."""
        leaf, new = leaves[i], replacements[i]

        def of_feature(place: Int[Array, ""]) -> Scalar:
            chosen = (jnp.arange(leaf.size, dtype=jnp.int32) == place).reshape(leaf.shape)
            return relevance([*leaves[:i], jnp.where(chosen, new, leaf), *leaves[i + 1 :]])

        places = jnp.arange(leaf.size, dtype=jnp.int32)
        return chunked_map(of_feature, places, size).reshape(leaf.shape)

    size = max(1, batch_size // inner) if batch_size else None
    steps = jnp.arange(total, dtype=jnp.int32)
    by_time: Array = chunked_map(of_step, steps, size)
    by_feature = [of_features(i) for i in range(len(leaves))]
    valid = jnp.ones(total, bool)
    if length_arg is not None:
        length = jnp.asarray(args[length_position(length_arg, args)])
        valid = steps < length.astype(jnp.int32)
    mean = jnp.where(valid, by_time, 0).sum() / jnp.maximum(valid.sum(), 1).astype(by_time.dtype)
    kept = jnp.where(valid & (by_time > mean), by_time, 0)
    like = jax.tree.leaves(unmasked)[0].dtype

    def product(feature: Array, leaf: Array) -> Array:
        return (kept.reshape(-1, *[1] * (leaf.ndim - 1)) * feature).astype(like)

    def zeros(leaf: Array) -> Array:
        return jnp.zeros(leaf.shape, like)

    values = merge(list(map(product, by_feature, leaves)), zeros)
    relevances = {"time_relevance": by_time, "feature_relevance": merge(by_feature, zeros)}
    return Attribution(values, output, relevances)
