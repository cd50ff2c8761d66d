"""Methods that read one gradient, and the noise that smooths any method."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_count
from jaxattn.engine.batch import chunked_sum, wide
from jaxattn.engine.method import method
from jaxattn.engine.options import count
from jaxattn.engine.perturb import floating_leaves, is_floating
from jaxattn.engine.target import scored


def value_and_gradient(
    fn: Callable[..., Any], x: Inputs, target: Target, args: tuple[Any, ...]
) -> tuple[Any, Any, Inputs]:
    """The explained scalar, the output of `fn`, and the gradient of the scalar with respect to `x`.

    Integer leaves get zeros, of the scalar's dtype.

    Raises:
        TypeError: if no leaf of `x` is a floating number.
    """
    floating, merge = floating_leaves(x, "a gradient")

    def score(leaves: list[Any]) -> tuple[Any, Any]:
        return scored(fn, target, args)(merge(leaves))

    (value, output), gradients = jax.value_and_grad(score, has_aux=True)(floating)
    return value, output, merge(gradients, lambda leaf: jnp.zeros(leaf.shape, value.dtype))


@method
def gradient(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
) -> Attribution:
    """The signed gradient of the explained number with respect to the input.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: not used: one evaluation is needed.

    Returns:
        values of the shape of `x`, in units of the output per unit of `x`.

    Raises:
        TypeError: if `x` holds integers only.
        ValueError: if the target does not fit the output.

    Reference:
        Baehrens et al. 2010, How to explain individual classification decisions.
    """
    _, output, slope = value_and_gradient(fn, x, target, args)
    return Attribution(slope, output)


@method
def saliency(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
) -> Attribution:
    """The magnitude of the gradient of the explained number with respect to the input.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: not used: one evaluation is needed.

    Returns:
        non-negative values of the shape of `x`.

    Raises:
        TypeError: if `x` holds integers only.
        ValueError: if the target does not fit the output.

    Reference:
        Simonyan et al. 2014, Deep inside convolutional networks, arXiv:1312.6034.
    """
    _, output, slope = value_and_gradient(fn, x, target, args)
    return Attribution(jax.tree.map(jnp.abs, slope), output)


@method
def input_x_gradient(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
) -> Attribution:
    """The input times the gradient: each cell's share of a first-order expansion around zero.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: not used: one evaluation is needed.

    Returns:
        values of the shape of `x`, in units of the output.

    Raises:
        TypeError: if `x` holds integers only.
        ValueError: if the target does not fit the output.

    Reference:
        Shrikumar et al. 2016, Not just a black box, arXiv:1605.01713.
    """
    _, output, slope = value_and_gradient(fn, x, target, args)
    return Attribution(jax.tree.map(lambda a, g: a.astype(g.dtype) * g, x, slope), output)


def _samples_times(what: str, x: Any, output: Any, options: dict[str, Any]) -> int:
    own = ("method", "num_samples", "noise", "relative", "reduction")
    inner = {name: value for name, value in options.items() if name not in own}
    method = options.get("method", gradient)
    samples = check_count("num_samples", options.get("num_samples", 32))
    return samples * count(what, method, x, output, inner)


@method(
    evaluations=functools.partial(_samples_times, "evaluations"),
    in_flight=functools.partial(_samples_times, "in_flight"),
    draws=True,
)
def smooth_grad(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    method: Callable[..., Attribution] = gradient,
    num_samples: int = 32,
    noise: float = 0.15,
    relative: bool = True,
    reduction: Literal["mean", "mean_square", "variance"] = "mean",
    **options: Any,
) -> Attribution:
    """The mean of a method's values over noisy copies of the input.

    Args:
        fn: maps `x` to an output.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: the random key of the noise.
        batch_size: how many evaluations of `fn` are in flight.
        method: whose values are averaged.
        num_samples: how many noisy copies.
        noise: standard deviation of the Gaussian noise.
        relative: whether `noise` is a fraction of the range (largest minus smallest number) of each
            leaf of `x`, or in units of `x`.
        reduction: `"mean"`; `"mean_square"` for SmoothGrad-squared; `"variance"` for VarGrad.
        **options: the method's own.

    Returns:
        the reduced values, of the shape that `method` gives.

    Raises:
        ValueError: without a key, for fewer than one sample (two for the variance), negative noise,
            or an unknown reduction.

    Reference:
        Smilkov et al. 2017, SmoothGrad, arXiv:1706.03825; Adebayo et al. 2018, arXiv:1810.03307
        (VarGrad); Hooker et al. 2019, arXiv:1806.10758 (squared).
    """
    if key is None:
        raise ValueError("key is missing: smooth_grad draws noise, give key=jax.random.key(0)")
    least = 2 if reduction == "variance" else 1
    check_count("num_samples", num_samples, least)
    if not callable(method):
        raise TypeError(f"method must be callable, got {type(method).__name__}")
    if jnp.ndim(noise) != 0:
        raise ValueError(f"noise must be one number, got shape {jnp.shape(noise)}")
    if isinstance(noise, (int, float)) and not noise >= 0:
        raise ValueError(f"noise must not be negative, got {noise}")
    if reduction not in ("mean", "mean_square", "variance"):
        raise ValueError(
            f'reduction must be "mean", "mean_square" or "variance", got {reduction!r}'
        )
    floating_leaves(x, "noise")
    output = fn(x, *args)
    inner = count("in_flight", method, x, output, {"target": target, **options})
    inner_size = min(inner, batch_size) if batch_size else None

    def disturb(key: RandomKey, leaf: Any) -> Any:
        if not is_floating(leaf) or leaf.size == 0:
            return leaf
        scale = jnp.asarray(noise, leaf.dtype)
        if relative:
            scale *= leaf.max() - leaf.min()
        return leaf + scale * jax.random.normal(key, leaf.shape, leaf.dtype)

    def sample(key: RandomKey) -> PyTree[Any]:
        of_noise, of_method = jax.random.split(key)
        leaves, treedef = jax.tree.flatten(x)
        noisy = jax.tree.unflatten(
            treedef, map(disturb, jax.random.split(of_noise, len(leaves)), leaves)
        )
        return method(
            fn, noisy, target, args=args, key=of_method, batch_size=inner_size, **options
        ).values

    size = max(1, batch_size // inner) if batch_size else None
    keys = jax.random.split(key, num_samples)

    def mean(f: Callable[[Any], Any]) -> PyTree[Any]:
        return chunked_sum(lambda key: jax.tree.map(f, sample(key)), keys, size, num_samples)

    def square(leaf: Any) -> Any:
        return jnp.square(leaf.astype(wide(leaf.dtype)))

    if reduction == "mean":
        return Attribution(mean(lambda leaf: leaf), output)
    if reduction == "mean_square":
        values = mean(square)
    else:  # in two passes: in one, the difference of two large sums would lose a small variance
        means = mean(lambda leaf: leaf.astype(wide(leaf.dtype)))

        def squares(key: RandomKey) -> PyTree[Any]:
            return jax.tree.map(lambda v, m: square(v.astype(m.dtype) - m), sample(key), means)

        values = chunked_sum(squares, keys, size, num_samples - 1)
    shapes = jax.eval_shape(sample, key)
    return Attribution(jax.tree.map(lambda v, s: v.astype(s.dtype), values, shapes), output)
