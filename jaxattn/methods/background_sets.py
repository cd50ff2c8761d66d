"""Methods that compare an input with a background set, examples that stand for the data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_count
from jaxattn.engine.background import background_size, check_background
from jaxattn.engine.batch import chunked_sum, wide
from jaxattn.engine.convergence import convergence
from jaxattn.engine.method import method
from jaxattn.engine.options import count
from jaxattn.engine.perturb import floating_leaves, is_floating
from jaxattn.engine.target import scored
from jaxattn.methods.differences import Multiplier, deep_lift
from jaxattn.methods.gradients import value_and_gradient, with_noise
from jaxattn.methods.occlusion import Extent, occlusion
from jaxattn.methods.quadrature import straight_line


def _num_samples(options: dict[str, Any], default: int) -> int:
    return check_count("num_samples", options.get("num_samples", default))


def _checked_key(key: RandomKey | None, method: str) -> RandomKey:
    if key is None:
        raise ValueError(f"`key` is missing: {method} draws examples, give key=jax.random.key(0).")
    return key


@method(
    evaluations=lambda x, output, options: _num_samples(options, 64),
    per_example=(),
    draws=True,
    numbers={"noise": "not negative"},
    for_logits=True,
)
def expected_gradients(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    background: PyTree[ArrayLike] = None,
    num_samples: int = 64,
    noise: ArrayLike = 0.0,
) -> Attribution:
    """Compute expected gradients (GradientSHAP): integrated gradients, averaged over a background.

    For each sample an example of the background set and a point on the line from it to the input
    are drawn. The value is the gradient at the point times the difference between input and
    example, averaged over samples. In expectation it equals the mean of integrated gradients with
    each example of the set as baseline.

    Cost: `2 * num_samples + 1` evaluations of `fn` and `num_samples + 1` vector-Jacobian products
    per example. Draws examples, points and noise: `key` is required.

    Args:
        background: the background set: a pytree like `x` with a leading axis of N examples, one set
            for all examples of a batch. With `at`, values of the intermediate. Integer leaves are
            not used: those of `x` keep their values.
        num_samples: the number of samples.
        noise: the standard deviation of Gaussian noise on the input of each sample, in units of
            `x`.

    Returns:
        values of the shape of `x`, signed, in units of the output. Integer leaves get zeros.
        `info["standard_error"]`, of the same shape, is the standard error of each value, NaN for
        one sample. `info["delta"]` is the sum of the values minus the difference between the target
        at `x` and its mean over the drawn examples; its expectation is 0.

    Raises:
        TypeError: if no leaf of `x` is floating.
        ValueError: without a key or a background, for a background of another structure or shape,
            fewer than one sample or negative noise, or if the target does not fit the output.

    Reference:
        Erion et al. 2021, Improving performance of deep learning models with axiomatic attribution
        priors and expected gradients, arXiv:1906.10670; Lundberg and Lee 2017, arXiv:1705.07874.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return 2 * x[0] - 3 * x[1]
        >>> x, background = jnp.array([1.0, 2.0]), jnp.array([[0.0, 1.0]])
        >>> got = ja.expected_gradients(fn, x, background=background, key=jax.random.key(0))
        >>> print(got.values, got.info["standard_error"])
        [ 2. -3.] [0. 0.]
    """
    key = _checked_key(key, "expected_gradients")
    check_count("num_samples", num_samples)
    noiseless = isinstance(noise, (int, float)) and noise == 0
    floating_leaves(x, "a gradient")
    size, examples = background_size(background, x), check_background(background, x)
    score_of = scored(fn, target, args)
    at_x = value_and_gradient(fn, x, target, args)

    def times_distance(slope: PyTree, end: PyTree, start: PyTree) -> PyTree:
        return jax.tree.map(
            lambda g, a, b: g * (a - b).astype(g.dtype) if is_floating(a) else jnp.zeros_like(g),
            slope,
            end,
            start,
        )

    means = jax.tree.map(
        lambda leaf, set_: set_.mean(0) if is_floating(leaf) else leaf, x, examples
    )
    # Squared deviations from a value that is close keep a small variance, and are exactly 0 where
    # all samples equal it.
    near = times_distance(at_x.gradient, x, means)

    def sample(key: RandomKey) -> tuple[PyTree, PyTree, Array]:
        of_example, of_point, of_noise = jax.random.split(key, 3)
        drawn = jax.random.randint(of_example, (), 0, size)
        start = jax.tree.map(
            lambda leaf, set_: set_[drawn] if is_floating(leaf) else leaf, x, examples
        )
        end = x if noiseless else with_noise(of_noise, x, noise, relative=False)
        point = straight_line(start, end)(jax.random.uniform(of_point))
        slope = value_and_gradient(fn, point, target, args).gradient
        values = times_distance(slope, end, start)
        deviations = jax.tree.map(lambda v, n: (v - n).astype(wide(v.dtype)), values, near)
        return deviations, jax.tree.map(jnp.square, deviations), score_of(start)[0]

    keys = jax.random.split(key, num_samples)
    deviation, square, score_start = chunked_sum(sample, keys, batch_size, num_samples)
    values = jax.tree.map(lambda n, d: n + d.astype(n.dtype), near, deviation)

    def standard_error(square: Array, deviation: Array, value: Array) -> Array:
        variance = jnp.maximum(square - jnp.square(deviation), 0)
        return jnp.sqrt(variance / (num_samples - jnp.ones((), variance.dtype))).astype(value.dtype)

    error = jax.tree.map(standard_error, square, deviation, values)
    total = sum(leaf.sum().astype(at_x.target.dtype) for leaf in jax.tree.leaves(values))
    info = {"delta": total - (at_x.target - score_start), "standard_error": error}
    return Attribution(values, at_x.output, info)


@method(
    evaluations=lambda x, output, options: background_size(options.get("background"), x),
    per_example=(),
    remedy=(
        "An index, an order or a stop_gradient may differ between the input and an example of the "
        "`background`: choose examples that share them, or compute in float64."
    ),
)
def deep_shap(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    background: PyTree[ArrayLike] = None,
    multiplier: Multiplier = "rescale",
) -> Attribution:
    """Compute DeepSHAP: the mean of DeepLIFT over a background set.

    Each example of the set is the baseline of one DeepLIFT. The values sum to the difference
    between the target at the input and its mean over the set.

    Cost: `N + 2` evaluations of `fn` and N backward passes per example, for N examples of the
    background set. Deterministic.

    Args:
        background: the background set: a pytree like `x` with a leading axis of N examples, one set
            for all examples of a batch. With `at`, values of the intermediate. Integer leaves are
            not used: those of `x` keep their values.
        multiplier: how activations are treated; see `jaxattn.deep_lift`.

    Returns:
        values of the shape of `x`, signed, in units of the output. `info["delta"]` is the
        convergence delta: their sum minus the difference between the target at `x` and its mean
        over the set; 0 up to rounding, as for `jaxattn.deep_lift`. `info["relative_delta"]` is its
        magnitude relative to that difference; above 0.01 a `jaxattn.ConvergenceWarning` is shown,
        outside of `jit`.

    Raises:
        TypeError: if no leaf of `x` is floating.
        ValueError: without a background, for one of another structure or shape, and where
            `jaxattn.deep_lift` raises one.

    Reference:
        Lundberg and Lee 2017, A unified approach to interpreting model predictions,
        arXiv:1705.07874.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] * x[1] + jnp.maximum(x[2] - 1, 0)
        >>> x, background = jnp.array([1.0, 2.0, 2.0]), jnp.array([[0.0, 0, 0], [1, 2, 0]])
        >>> print(ja.deep_shap(fn, x, background=background).values)
        [0.5 0.5 1. ]
    """
    size, examples = background_size(background, x), check_background(background, x)

    def lifted(start: PyTree) -> tuple[PyTree, Array]:
        one = deep_lift(fn, x, target, args=args, baseline=start, multiplier=multiplier)
        return one.values, one.info["delta"]

    values, delta = chunked_sum(lifted, examples, batch_size, size)
    score, output = scored(fn, target, args)(x)
    total = sum(leaf.sum().astype(score.dtype) for leaf in jax.tree.leaves(values))
    return Attribution(values, output, convergence(total, score, score - (total - delta)))


def _draws_times(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    return _num_samples(options, 16) * count("evaluations", occlusion, x, output, options)


@method(
    evaluations=_draws_times,
    per_example=(),
    sizes=("window", "stride"),
    backward=False,
    draws=True,
)
def augmented_occlusion(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    background: PyTree[ArrayLike] = None,
    num_samples: int = 16,
    window: PyTree[Extent] = 1,
    stride: PyTree[Extent] = None,
    reuse: bool = True,
) -> Attribution:
    """Compute augmented occlusion: occlusion with replacements drawn from a background set.

    A window that slides over the input is replaced by the same window of an example that is drawn
    from the set. The value is the decrease of the target, averaged over draws; all windows of a
    draw take the same example. Replacements are thereby features that occur in the data.

    Cost: `num_samples` times that of `jaxattn.occlusion`. Draws the examples: `key` is required.

    Args:
        background: the background set: a pytree like `x` with a leading axis of N examples, one set
            for all examples of a batch. With `at`, values of the intermediate.
        num_samples: the number of draws, with replacement.
        window: the size of the window along each axis; see `jaxattn.occlusion`. An int is the size
            along the first axis, such as time steps with all their features; `(1, 1)` replaces
            single features of a series.
        stride: the distance between windows along each axis; 1 by default.
        reuse: whether values that a window leaves unchanged are taken from one unperturbed
            evaluation; see `jaxattn.occlusion`.

    Returns:
        values of the shape of `x`, signed, in units of the output. `info["flops_saved"]` is the
        number of operations that `reuse` saved.

    Raises:
        TypeError: for a window or stride that does not hold ints, or a `reuse` that is not a bool.
        ValueError: without a key or a background, for a background of another structure or shape,
            fewer than one sample, if the target does not fit the output, or if a window or stride
            is not positive or too large.

    Reference:
        Tonekaboni et al. 2020, What went wrong and when? Instance-wise feature importance for
        time-series black-box models, arXiv:2003.02821.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] * x[1] + 4 * x[2]
        >>> x, background = jnp.array([1.0, 2.0, 1.0]), jnp.array([[0.0, 1.0, 0.5]])
        >>> key = jax.random.key(0)
        >>> print(ja.augmented_occlusion(fn, x, background=background, key=key).values)
        [2. 1. 2.]
    """
    key = _checked_key(key, "augmented_occlusion")
    check_count("num_samples", num_samples)
    size, examples = background_size(background, x), check_background(background, x)
    output = fn(x, *args)
    windows = {"window": window, "stride": stride}
    inner = count("in_flight", occlusion, x, output, windows)
    at_once = None if batch_size is None else max(1, batch_size // inner)
    inside = None if batch_size is None else min(inner, batch_size)

    def occluded(drawn: Int[Array, ""]) -> tuple[PyTree, Array]:
        replacement = jax.tree.map(lambda set_: set_[drawn], examples)
        options = {**windows, "baseline": replacement, "reuse": reuse, "batch_size": inside}
        one = occlusion(fn, x, target, args=args, **options)
        return one.values, one.info["flops_saved"]

    drawn = jax.random.randint(key, (num_samples,), 0, size)
    values, saved = chunked_sum(occluded, drawn, at_once, num_samples)
    return Attribution(values, output, {"flops_saved": num_samples * saved})
