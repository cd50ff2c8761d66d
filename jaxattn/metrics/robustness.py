"""Robustness: how much explanations change with small changes of the input."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxattn._types import Inputs, Method, RandomKey, Target
from jaxattn.engine.examples import example_structs
from jaxattn.engine.explain import explain
from jaxattn.engine.perturb import broadcast_baseline, is_floating
from jaxattn.metrics.direction import metric
from jaxattn.metrics.explanation_changes import ratios_of_changes
from jaxattn.metrics.rankings import flat, norm


@metric(better="lower", low=0)
def max_sensitivity(
    method: Method,
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target = None,
    *,
    key: RandomKey,
    args: tuple[Any, ...] = (),
    radius: ArrayLike = 0.02,
    num_samples: int = 10,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Float[Array, " B"]:
    """Compute the maximum sensitivity of explanations to small changes of the input.

    It is the largest ||v(x + d) - v(x)|| / ||v(x)|| over random changes d, for the values v of a
    method and Euclidean norms. Lower is better: 0 if the explanation does not change.

    Cost: `num_samples + 1` times the cost of `method`, per example. Draws changes: `key` is
    required.

    Args:
        method: any method of jaxattn, whose values are compared.
        fn: maps one example to an output, as for `jaxattn.explain`.
        xs: the examples, each leaf with a leading axis of length B.
        targets: the entry of the output that is explained, as for `jaxattn.explain`.
        key: a random key, such as `jax.random.key(0)`. Example i draws with `fold_in(key, i)`. A
            method that draws uses one key for the input and all changed inputs.
        args: further inputs of `fn`, each leaf with a leading axis of length B.
        radius: the largest change of a feature, in units of `xs`. Changes are uniform between
            -radius and radius; integer leaves keep their values.
        num_samples: the number of changed inputs.
        batch_size: how many evaluations of `fn` are in flight.
        mesh: devices over which the examples are distributed.
        **options: options of `method`.

    Returns:
        one number per example; NaN if the explanation of the input is zero.

    Raises:
        TypeError: if no leaf of `xs` is floating, or for an option that `method` does not have.
        ValueError: for a radius that is not positive, fewer than one sample, and as
            `jaxattn.explain`.

    Reference:
        Yeh et al. 2019, On the (in)fidelity and sensitivity of explanations, arXiv:1901.09392.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> xs, key = jnp.array([[1.0, 2.0]]), jax.random.key(0)
        >>> print(ja.metrics.max_sensitivity(ja.gradient, jnp.sum, xs, key=key))
        [0.]
    """
    ratios = ratios_of_changes(
        method,
        fn,
        xs,
        targets,
        args,
        key,
        radius,
        num_samples,
        batch_size,
        mesh,
        "explanation",
        options,
    )
    return ratios.max(1)


@metric(better="lower", low=0)
def average_sensitivity(
    method: Method,
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target = None,
    *,
    key: RandomKey,
    args: tuple[Any, ...] = (),
    radius: ArrayLike = 0.02,
    num_samples: int = 10,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Float[Array, " B"]:
    """Compute the average sensitivity of explanations to small changes of the input.

    It is the mean of ||v(x + d) - v(x)|| / ||v(x)|| over random changes d; see `max_sensitivity`,
    also for arguments and errors. Lower is better: 0 if the explanation does not change.

    Cost: `num_samples + 1` times the cost of `method`, per example. Draws changes: `key` is
    required.

    Returns:
        one number per example; NaN if the explanation of the input is zero.

    Reference:
        Bhatt et al. 2020, Evaluating and aggregating feature-based model explanations,
        arXiv:2005.00631.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> xs, key = jnp.array([[1.0, 2.0]]), jax.random.key(0)
        >>> print(ja.metrics.average_sensitivity(ja.gradient, jnp.sum, xs, key=key))
        [0.]
    """
    ratios = ratios_of_changes(
        method,
        fn,
        xs,
        targets,
        args,
        key,
        radius,
        num_samples,
        batch_size,
        mesh,
        "explanation",
        options,
    )
    return ratios.mean(1)


@metric(better="lower", low=0)
def local_lipschitz(
    method: Method,
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target = None,
    *,
    key: RandomKey,
    args: tuple[Any, ...] = (),
    radius: ArrayLike = 0.1,
    num_samples: int = 10,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Float[Array, " B"]:
    """Compute an estimate of the local Lipschitz constant of explanations.

    It is the largest ||v(x + d) - v(x)|| / ||d|| over random changes d, for the values v of a
    method and Euclidean norms. Lower is better: 0 if the explanation does not change. Arguments and
    errors are those of `max_sensitivity`.

    Cost: `num_samples + 1` times the cost of `method`, per example. Draws changes: `key` is
    required.

    Returns:
        one number per example, in units of the values per unit of `xs`.

    Reference:
        Alvarez-Melis and Jaakkola 2018, On the robustness of interpretability methods,
        arXiv:1806.08049.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return (x**2).sum()
        >>> xs, key = jnp.array([[1.0, 2.0]]), jax.random.key(0)
        >>> print(ja.metrics.local_lipschitz(ja.gradient, fn, xs, key=key).round(3))
        [2.]
    """
    ratios = ratios_of_changes(
        method,
        fn,
        xs,
        targets,
        args,
        key,
        radius,
        num_samples,
        batch_size,
        mesh,
        "distance",
        options,
    )
    return ratios.max(1)


@metric(better="lower", low=0)
def relative_input_stability(
    method: Method,
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target = None,
    *,
    key: RandomKey,
    args: tuple[Any, ...] = (),
    radius: ArrayLike = 0.05,
    num_samples: int = 10,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Float[Array, " B"]:
    """Compute the relative input stability (RIS) of explanations.

    It is the largest ratio of the relative change of the explanation, ||(v(x) - v(x')) / v(x)||, to
    that of the input, ||(x - x') / x||, over changed inputs x' of the same predicted class.
    Elements of 0 in denominators, and denominators below 1e-6, count as 1e-6. Lower is better: 0 if
    the explanation does not change. Arguments and errors are those of `max_sensitivity`.

    Cost: `num_samples + 1` times the cost of `method`, per example. Draws changes: `key` is
    required.

    Returns:
        one number per example; NaN if every change alters the predicted class.

    Reference:
        Agarwal et al. 2022, Rethinking stability for attribution-based explanations,
        arXiv:2203.06877.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return (x**2).sum()
        >>> xs, key = jnp.array([[1.0, 2.0]]), jax.random.key(0)
        >>> print(ja.metrics.relative_input_stability(ja.gradient, fn, xs, key=key).round(2))
        [1.]
    """
    ratios = ratios_of_changes(
        method, fn, xs, targets, args, key, radius, num_samples, batch_size, mesh, "input", options
    )
    return _largest_valid(ratios)


@metric(better="lower", low=0)
def relative_output_stability(
    method: Method,
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target = None,
    *,
    key: RandomKey,
    args: tuple[Any, ...] = (),
    radius: ArrayLike = 0.05,
    num_samples: int = 10,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Float[Array, " B"]:
    """Compute the relative output stability (ROS) of explanations.

    It is the largest ratio of the relative change of the explanation, ||(v(x) - v(x')) / v(x)||, to
    the change of the output, ||f(x) - f(x')||, over changed inputs x' of the same predicted class.
    The output is that of `fn`, for which the authors take logits. Elements of 0 in denominators,
    and denominators below 1e-6, count as 1e-6. Lower is better: 0 if the explanation does not
    change. Arguments and errors are those of `max_sensitivity`.

    Cost: `num_samples + 1` times the cost of `method`, per example. Draws changes: `key` is
    required.

    Returns:
        one number per example, per unit of the output; NaN if every change alters the predicted
        class.

    Reference:
        Agarwal et al. 2022, Rethinking stability for attribution-based explanations,
        arXiv:2203.06877.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> xs, key = jnp.array([[1.0, 2.0]]), jax.random.key(0)
        >>> print(ja.metrics.relative_output_stability(ja.gradient, jnp.sum, xs, key=key))
        [0.]
    """
    ratios = ratios_of_changes(
        method, fn, xs, targets, args, key, radius, num_samples, batch_size, mesh, "output", options
    )
    return _largest_valid(ratios)


@metric(better="lower", low=0)
def input_invariance(
    method: Method,
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target = None,
    *,
    shift: PyTree[ArrayLike],
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Float[Array, " B"]:
    """Compute input invariance: the change of explanations when a constant is added to inputs.

    The function g(x) = f(x - shift) returns the same at x + shift as f at x. The result is
    ||v_g(x + shift) - v_f(x)|| / ||v_f(x)||, for the values v of a method and Euclidean norms.
    Lower is better: 0 if the explanation is the same. A method with a baseline at a fixed point, or
    one that multiplies by the input, is not invariant. Further arguments and errors are those of
    `max_sensitivity`.

    Cost: twice the cost of `method`, per example. Draws only if `method` does.

    Args:
        method: as for `max_sensitivity`.
        fn: as for `max_sensitivity`.
        xs: as for `max_sensitivity`.
        targets: as for `max_sensitivity`.
        shift: the constant, in units of `xs`: a number or an array that broadcasts to an example,
            or a pytree of these. Integer leaves keep their values.
        args: as for `max_sensitivity`.
        key: a random key for a method that draws; both explanations use the same.
        batch_size: as for `max_sensitivity`.
        mesh: as for `max_sensitivity`.
        **options: options of `method`.

    Returns:
        one number per example; NaN if the explanation of the input is zero.

    Reference:
        Kindermans et al. 2019, The (un)reliability of saliency methods, arXiv:1711.00867.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return 3 * x[0] + 4 * x[1]
        >>> xs = jnp.array([[1.0, 1.0]])
        >>> print(ja.metrics.input_invariance(ja.gradient, fn, xs, shift=2.0))
        [0.]
        >>> print(ja.metrics.input_invariance(ja.input_x_gradient, fn, xs, shift=2.0))
        [2.]
    """
    if key is not None:
        options["key"] = key
    shared = {"args": args, "batch_size": batch_size, "mesh": mesh, **options}
    one = example_structs(xs)
    offset = broadcast_baseline(shift, one, keep_integers=True, name="shift")
    offset = jax.tree.map(
        lambda leaf, d: d if is_floating(leaf) else jnp.zeros_like(leaf), one, offset
    )

    def shifted(x: Inputs, *args: Any) -> PyTree:
        return fn(jax.tree.map(jnp.subtract, x, offset), *args)

    moved = jax.tree.map(lambda leaf, d: leaf + d[None], xs, offset)
    here = explain(method, fn, xs, targets, **shared).values
    there = explain(method, shifted, moved, targets, **shared).values
    before, after = (jax.vmap(flat)(values) for values in (here, there))
    size = norm(before)
    return norm(after - before) / jnp.where(size > 0, size, jnp.nan)


def _largest_valid(ratios: Float[Array, "B samples"]) -> Float[Array, " B"]:
    """Return the largest ratio; NaN where all are -inf, those of another class."""
    largest = ratios.max(1)
    return jnp.where(jnp.isneginf(largest), jnp.nan, largest)
