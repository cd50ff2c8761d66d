"""Attributions as linear models of the score under random changes of the input."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree, Shaped

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_bool, check_count
from jaxattn.engine.batch import chunked_map
from jaxattn.engine.explain import explain
from jaxattn.engine.method import method
from jaxattn.engine.numbers import check_number
from jaxattn.engine.perturb import floating_leaves, is_floating
from jaxattn.engine.target import Score, scored
from jaxattn.metrics.direction import metric
from jaxattn.metrics.rankings import flat, values_like, widened
from jaxattn.metrics.subset_effects import Changes

#: Maps a key and an input to a change of the input.
Perturbation: TypeAlias = Callable[[RandomKey, Inputs], Inputs]


@metric(better="lower", low=0)
def infidelity(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    key: RandomKey,
    args: tuple[Any, ...] = (),
    perturbation: Perturbation | None = None,
    noise: ArrayLike = 0.2,
    num_samples: int = 100,
    rescale: bool = False,
    score: Score = "logit",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " B"]:
    """Compute infidelity: the mean squared error of the attribution as a linear model of the score.

    It is the mean of (d . v - (f(x) - f(x - d)))^2 over random changes d, for the attribution v.
    Lower is better, from 0 on. For noise, attributions are compared with those of a gradient, in
    units of the output per unit of `xs`. Further arguments and errors are those of
    `comprehensiveness`.

    Cost: `num_samples + 2` evaluations of `fn` per example. Draws changes: `key` is required.

    Args:
        fn: as for `comprehensiveness`.
        xs: as for `comprehensiveness`.
        targets: as for `comprehensiveness`.
        attribution: as for `comprehensiveness`.
        key: a random key, such as `jax.random.key(0)`. Example i draws with `fold_in(key, i)`.
        args: as for `comprehensiveness`.
        perturbation: maps a key and an example to the change d of the example, which is subtracted;
            by default Gaussian noise on each floating-point feature.
        noise: the standard deviation of the default perturbation, in units of `xs`.
        num_samples: the number of perturbations.
        rescale: whether the attribution of each example is first scaled by the factor that
            minimizes the result.
        score: as for `comprehensiveness`.
        batch_size: as for `comprehensiveness`.
        mesh: as for `comprehensiveness`.

    Returns:
        one number per example, in squared units of the score.

    Raises:
        TypeError: if `num_samples` is not an int or `rescale` not a bool, or for inputs without
            floating-point features.
        ValueError: for fewer than one sample or negative noise, or if `perturbation` returns
            another structure or shape than the example's.

    Reference:
        Yeh et al. 2019, On the (in)fidelity and sensitivity of explanations, arXiv:1901.09392.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] + 3 * x[1]
        >>> xs, values = jnp.array([[1.0, 2.0]]), jnp.array([[2.0, 6.0]])
        >>> metric, key = ja.metrics.infidelity, jax.random.key(0)
        >>> print(metric(fn, xs, None, values, key=key, rescale=True).round(3))
        [0.]
        >>> print(metric(fn, xs, None, values, key=key)[0] > 0.1)
        True
    """
    values = values_like(attribution, xs)
    check_bool("rescale", rescale)
    check_number("noise", noise)
    found = explain(
        _of_changes,
        fn,
        xs,
        targets,
        args=args,
        key=key,
        batch_size=batch_size,
        mesh=mesh,
        attribution=values,
        perturbation=perturbation,
        noise=jnp.asarray(noise),
        num_samples=check_count("num_samples", num_samples),
        score=score,
    ).values
    sums, decreases = found.sums, found.decreases
    if rescale:
        squares = jnp.square(sums).sum(1, keepdims=True)
        scale = (sums * decreases).sum(1, keepdims=True) / jnp.where(squares > 0, squares, 1)
        sums = scale * sums
    return jnp.square(sums - decreases).mean(1)


@method(
    draws=True,
    evaluations=lambda x, output, o: o["num_samples"] + 1,
    per_example=("attribution",),
)
def _of_changes(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    attribution: PyTree[Shaped[Array | np.ndarray, "..."]],
    perturbation: Perturbation | None,
    noise: Shaped[Array | np.ndarray, ""],
    num_samples: int,
    score: Score,
) -> Attribution:
    """Compute the products of attribution and change, and the decreases, for random changes."""
    if key is None:
        raise ValueError("`key` is missing: changes are drawn, give key=jax.random.key(0).")
    floating_leaves(x, "a change")
    values = flat(attribution)
    score_of = scored(fn, target, args, score=score)

    def gaussian(key: RandomKey, x: Inputs) -> Inputs:
        leaves, treedef = jax.tree.flatten(x)

        def draw(key: RandomKey, leaf: Array) -> Array:
            if not is_floating(leaf):
                return jnp.zeros_like(leaf)
            return jnp.asarray(noise, leaf.dtype) * jax.random.normal(key, leaf.shape, leaf.dtype)

        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(treedef, list(map(draw, keys, leaves)))

    def of_change(key: RandomKey) -> tuple[Array, Array]:
        change = (perturbation or gaussian)(key, x)
        if jax.tree.map(jnp.shape, change) != jax.tree.map(jnp.shape, x):
            raise ValueError(
                "`perturbation` must return arrays of the shape of the example, "
                f"{jax.tree.map(jnp.shape, x)}, got {jax.tree.map(jnp.shape, change)}."
            )
        moved = jax.tree.map(lambda leaf, d: leaf - jnp.asarray(d, leaf.dtype), x, change)
        product = jnp.sum(values * flat(change).astype(values.dtype))
        return product, widened(score_of(moved)[0])

    sums, scores = chunked_map(of_change, jax.random.split(key, num_samples), batch_size)
    here, output = score_of(x)
    return Attribution(Changes(sums, widened(here) - scores), output)
