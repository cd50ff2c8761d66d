"""Gradient methods, and SmoothGrad, which averages any method over noisy inputs."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jaxattn._types import (
    Attribution,
    Inputs,
    RandomKey,
    Scalar,
    Target,
    check_bool,
    check_count,
)
from jaxattn.engine.batch import chunked_sum, wide
from jaxattn.engine.method import method
from jaxattn.engine.options import count
from jaxattn.engine.perturb import floating_leaves, is_floating
from jaxattn.engine.target import scored

Statistic: TypeAlias = Literal["mean", "mean_square", "variance"]


class Gradient(NamedTuple):
    """A target's value, the output of `fn`, and the gradient of the target by the input."""

    target: Scalar
    output: PyTree
    gradient: Inputs


def value_and_gradient(
    fn: Callable[..., Any], x: Inputs, target: Target, args: tuple[Any, ...]
) -> Gradient:
    """Compute the target, the output of `fn`, and the gradient of the target with respect to `x`.

    Integer leaves get zeros, of the target's dtype.

    Raises:
        TypeError: if no leaf of `x` is floating.
    """
    floating, merge = floating_leaves(x, "a gradient")

    def score(leaves: list[Array]) -> tuple[Array, PyTree]:
        return scored(fn, target, args)(merge(leaves))

    (value, output), slopes = jax.value_and_grad(score, has_aux=True)(floating)
    gradient = merge(slopes, lambda leaf: jnp.zeros(leaf.shape, value.dtype))
    return Gradient(value, output, gradient)


@method(for_logits=True)
def gradient(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
) -> Attribution:
    """Compute the gradient of the target with respect to the input.

    Each value is the first-order change of the target per unit change of that feature.

    Cost: one evaluation of `fn` and one vector-Jacobian product per example. Deterministic.

    Returns:
        values of the shape of `x`, signed, in units of the output per unit of `x`. Integer leaves
        get zeros.

    Raises:
        TypeError: if no leaf of `x` is floating.
        ValueError: if the target does not fit the output.

    Reference:
        Baehrens et al. 2010, How to explain individual classification decisions.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] ** 2 - 3 * x[1]
        >>> print(ja.gradient(fn, jnp.array([1.0, 2.0])).values)
        [ 2. -3.]
    """
    result = value_and_gradient(fn, x, target, args)
    return Attribution(result.gradient, result.output)


@method(for_logits=True)
def saliency(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
) -> Attribution:
    """Compute saliency, the magnitude of the gradient of the target.

    Each value is the sensitivity of the target to that feature, without its direction.

    Cost: one evaluation of `fn` and one vector-Jacobian product per example. Deterministic.

    Returns:
        values of the shape of `x`, non-negative, in units of the output per unit of `x`. Integer
        leaves get zeros.

    Raises:
        TypeError: if no leaf of `x` is floating.
        ValueError: if the target does not fit the output.

    Reference:
        Simonyan et al. 2014, Deep inside convolutional networks, arXiv:1312.6034.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] ** 2 - 3 * x[1]
        >>> print(ja.saliency(fn, jnp.array([1.0, 2.0])).values)
        [2. 3.]
    """
    result = value_and_gradient(fn, x, target, args)
    return Attribution(jax.tree.map(jnp.abs, result.gradient), result.output)


@method(for_logits=True)
def input_x_gradient(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
) -> Attribution:
    """Compute the input times the gradient of the target (input x gradient).

    Each value is that feature's term of the first-order Taylor expansion around zero.

    Cost: one evaluation of `fn` and one vector-Jacobian product per example. Deterministic.

    Returns:
        values of the shape of `x`, signed, in units of the output. Integer leaves get zeros.

    Raises:
        TypeError: if no leaf of `x` is floating.
        ValueError: if the target does not fit the output.

    Reference:
        Shrikumar et al. 2016, Not just a black box, arXiv:1605.01713.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] ** 2 - 3 * x[1]
        >>> print(ja.input_x_gradient(fn, jnp.array([1.0, 2.0])).values)
        [ 2. -6.]
    """
    result = value_and_gradient(fn, x, target, args)
    values = jax.tree.map(lambda leaf, g: leaf.astype(g.dtype) * g, x, result.gradient)
    return Attribution(values, result.output)


#: The options of `smooth_grad` itself; all others are passed to its `method`.
_OWN = ("method", "num_samples", "noise", "relative", "statistic")


def _samples_times(what: str, x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    """Count the evaluations of all samples: `what` is `"evaluations"` or `"in_flight"`."""
    inner = {name: value for name, value in options.items() if name not in _OWN}
    method = options.get("method", gradient)
    samples = check_count("num_samples", options.get("num_samples", 32))
    return samples * count(what, method, x, output, inner)


@method(
    draws=True,
    for_logits=True,
    numbers={"noise": "not negative"},
    evaluations=functools.partial(_samples_times, "evaluations"),
    in_flight=functools.partial(_samples_times, "in_flight"),
)
def smooth_grad(
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
    num_samples: int = 32,
    noise: ArrayLike = 0.15,
    relative: bool = True,
    statistic: Statistic = "mean",
    **options: Any,
) -> Attribution:
    """Compute SmoothGrad: a statistic of a method's values over noisy copies of the input.

    The noise is Gaussian and independent for each feature. Any method can be smoothed.

    Cost: `num_samples` times the cost of `method`, twice that for the variance, and one evaluation
    of `fn`. Draws the noise: `key` is required.

    Args:
        method: the method whose values are averaged.
        num_samples: the number of noisy copies.
        noise: the standard deviation of the noise.
        relative: whether `noise` is a fraction of the range (maximum minus minimum) of each leaf of
            `x`; otherwise it is in units of `x`.
        statistic: `"mean"` for SmoothGrad, `"mean_square"` for SmoothGrad-squared, `"variance"`
            (unbiased) for VarGrad.
        **options: options of `method`.

    Returns:
        values of the shape that `method` returns; in its units for the mean, otherwise in its units
        squared.

    Raises:
        TypeError: if no leaf of `x` is floating, or for an option that `method` does not have.
        ValueError: without a key, for fewer than one sample (two for the variance), negative noise,
            or an unknown statistic.

    Reference:
        Smilkov et al. 2017, SmoothGrad, arXiv:1706.03825; Adebayo et al. 2018, arXiv:1810.03307
        (VarGrad); Hooker et al. 2019, arXiv:1806.10758 (SmoothGrad-squared).

    Examples:
        The gradient of a linear function does not depend on the noise.

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] - 3 * x[1]
        >>> x, key = jnp.array([1.0, 2.0]), jax.random.key(0)
        >>> print(ja.smooth_grad(fn, x, key=key, num_samples=8).values)
        [ 1. -3.]
        >>> print(ja.smooth_grad(fn, x, key=key, num_samples=8, statistic="variance").values)
        [0. 0.]
    """
    key = _checked_key(key, method, num_samples, statistic)
    check_options("smooth_grad", _OWN, method, options)
    check_bool("relative", relative)
    floating_leaves(x, "noise")
    output = fn(x, *args)
    inner = count("in_flight", method, x, output, {"target": target, **options})
    inner_size = min(inner, batch_size) if batch_size else None

    def sample(key: RandomKey) -> PyTree:
        of_noise, of_method = jax.random.split(key)
        noisy = with_noise(of_noise, x, noise, relative)
        shared = {"args": args, "key": of_method, "batch_size": inner_size}
        return method(fn, noisy, target, **shared, **options).values

    size = max(1, batch_size // inner) if batch_size else None
    keys = jax.random.split(key, num_samples)
    return Attribution(_reduced(statistic, sample, keys, size), output)


def _checked_key(
    key: RandomKey | None,
    method: Callable[..., Attribution],
    num_samples: int,
    statistic: Statistic,
) -> RandomKey:
    """Return the key, once the options of `smooth_grad` are checked."""
    if key is None:
        raise ValueError("`key` is missing: smooth_grad draws noise, give key=jax.random.key(0).")
    if statistic not in get_args(Statistic):
        raise ValueError(
            f'`statistic` must be "mean", "mean_square" or "variance", got {statistic!r}.'
        )
    check_count("num_samples", num_samples, least=2 if statistic == "variance" else 1)
    if not callable(method):
        raise TypeError(f"`method` must be callable, got {type(method).__name__}.")
    return key


def check_options(
    wrapper: str, own: Sequence[str], method: Callable[..., Attribution], options: dict[str, Any]
) -> None:
    """Raise an error for options that a method does not have.

    Args:
        wrapper: the name of the method that calls it.
        own: the options of that method itself.
        method: the method.
        options: the options for it.
    """
    if not callable(method):
        raise TypeError(f"`method` must be callable, got {type(method).__name__}.")
    parameters = inspect.signature(method).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    shared = ("fn", "x", "target", "args", "at", "key", "batch_size", "check_finite")
    for name in options:
        if name not in parameters:
            known = ", ".join(n for n in dict.fromkeys([*own, *parameters]) if n not in shared)
            raise TypeError(f"{wrapper} has no option {name!r}; its options are {known}.")


def options_of_method(
    wrapper: str,
    own: Sequence[str],
    method: Callable[..., Attribution],
    options: dict[str, Any],
    baseline: PyTree[ArrayLike],
) -> dict[str, Any]:
    """Check the options for a method, as `check_options`, and add `baseline` if it has that.

    It is left out where the method has a baseline or a background of its own.
    """
    check_options(wrapper, own, method, options)
    given = {**(method.keywords if isinstance(method, functools.partial) else {}), **options}
    has_own = "baseline" in given or given.get("background") is not None
    takes_baseline = "baseline" in inspect.signature(method).parameters and not has_own
    return {"baseline": baseline, **options} if takes_baseline else options


def with_noise(key: RandomKey, x: Inputs, noise: ArrayLike, relative: bool) -> Inputs:
    """Return a noisy copy of the input; integer leaves are left unchanged."""
    leaves, treedef = jax.tree.flatten(x)

    def disturbed(key: RandomKey, leaf: Array) -> Array:
        if not is_floating(leaf) or leaf.size == 0:
            return leaf
        scale = jnp.asarray(noise, leaf.dtype)
        if relative:
            scale *= leaf.max() - leaf.min()
        return leaf + scale * jax.random.normal(key, leaf.shape, leaf.dtype)

    return jax.tree.unflatten(treedef, map(disturbed, jax.random.split(key, len(leaves)), leaves))


def _reduced(
    statistic: Statistic, sample: Callable[[RandomKey], PyTree], keys: Array, size: int | None
) -> PyTree:
    """Compute a statistic of the samples of some keys, of which at most `size` are in flight."""
    num_samples = keys.shape[0]

    def mean(f: Callable[[Array], Array]) -> PyTree:
        return chunked_sum(lambda key: jax.tree.map(f, sample(key)), keys, size, num_samples)

    def square(leaf: Array) -> Array:
        return jnp.square(leaf.astype(wide(leaf.dtype)))

    def squared_deviation(key: RandomKey) -> PyTree:
        return jax.tree.map(lambda v, m: square(v.astype(m.dtype) - m), sample(key), means)

    if statistic == "mean":
        return mean(lambda leaf: leaf)
    if statistic == "mean_square":
        values = mean(square)
    else:  # in two passes: in one, the difference of two large sums would lose a small variance
        means = mean(lambda leaf: leaf.astype(wide(leaf.dtype)))
        values = chunked_sum(squared_deviation, keys, size, num_samples - 1)
    shapes = jax.eval_shape(sample, keys[0])
    return jax.tree.map(lambda v, s: v.astype(s.dtype), values, shapes)
