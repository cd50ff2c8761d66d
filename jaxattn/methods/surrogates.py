"""Linear surrogates of the score over coalitions of feature groups: KernelSHAP and LIME."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_bool, check_count
from jaxattn.engine.coalition_reuse import scores_of_members
from jaxattn.engine.coalitions import Game
from jaxattn.engine.feature_groups import (
    Groups,
    feature_groups,
    number_of_groups,
    prepare_groups,
    values_of_groups,
)
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline
from jaxattn.engine.target import scored
from jaxattn.methods.ablation import PER_EXAMPLE
from jaxattn.methods.coalition_draws import (
    WeightedCoalitions,
    coalitions_of_existing,
    kernel_coalitions,
    kernel_size,
)
from jaxattn.methods.linear_fits import Penalty, fit_with_penalty, fit_with_sum

Distance: TypeAlias = Literal["cosine", "euclidean"]

#: The default strength of each penalty.
_ALPHA = {"ridge": 1.0, "lasso": 0.01}


def _kernel_evaluations(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    samples = check_count("num_samples", options.get("num_samples", 512), least=2)
    return kernel_size(number_of_groups(x, options), samples) + 3


@method(
    evaluations=_kernel_evaluations,
    per_example=PER_EXAMPLE,
    backward=False,
    shares_states=True,
    draws=True,
    prepare=prepare_groups,
)
def kernel_shap(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    groups: Groups = None,
    num_groups: int | None = None,
    baseline: PyTree[ArrayLike] = 0.0,
    num_samples: int = 512,
    reuse: bool = True,
) -> Attribution:
    """Estimate Shapley values of feature groups by weighted linear regression (KernelSHAP).

    A linear function of which groups are present is fitted to the target over coalitions, with the
    weights (n - 1) / (C(n, s) s (n - s)) for s of n groups and under the constraint that the values
    sum to f(x) - f(baseline). Sizes of coalitions that fit `num_samples` are enumerated, from the
    smallest and largest on; the rest is drawn in pairs of a coalition and its complement. With all
    2^n - 2 coalitions the values are exact Shapley values.

    Cost: at most `num_samples + 3` evaluations of `fn`. Draws coalitions: `key` is required, unless
    `num_samples` is at least 2^n - 2.

    Args:
        groups: as for `jaxattn.feature_ablation`. If some example lacks a group, its coalitions are
            either all enumerated or all drawn.
        num_groups: as for `jaxattn.feature_ablation`.
        baseline: the values of absent features: a number or an array that broadcasts to `x`, or a
            pytree of these with the structure of `x`.
        num_samples: the largest number of coalitions.
        reuse: as for `jaxattn.shapley_values`.

    Returns:
        values of the shape of `x`, signed, in units of the output: each feature gets the value of
        its group. `info["groups"]` holds the value of each group, in the order of the ids; these
        sum to f(x) - f(baseline). `info["baseline_score"]` is the target at the baseline.

    Raises:
        TypeError: for groups that are not integers, or a `reuse` that is not a bool.
        ValueError: without a key where coalitions are drawn, for fewer than two samples, and as
            `jaxattn.feature_ablation`.

    Reference:
        Lundberg and Lee 2017, A unified approach to interpreting model predictions,
        arXiv:1705.07874.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] * x[1] + 4 * x[2]
        >>> x, key = jnp.array([2.0, 3.0, 1.0]), jax.random.key(0)
        >>> print(ja.kernel_shap(fn, x, key=key).values.round())
        [3. 3. 4.]
    """
    check_bool("reuse", reuse)
    samples = check_count("num_samples", num_samples, least=2)
    members = feature_groups(x, groups, num_groups)
    if key is None:
        if samples < 2**members.number - 2:
            raise ValueError(
                "`key` is missing: kernel_shap draws coalitions, give key=jax.random.key(0), or "
                f"num_samples of at least 2^n - 2 for n = {members.number} groups."
            )
        key = jax.random.key(0)  # draws nothing
    score_of = scored(fn, target, args)
    score, output = score_of(x)
    game = Game(score_of, x, broadcast_baseline(baseline, x), members)
    if members.complete:
        exists = jnp.ones(members.number, bool)
        coalitions = kernel_coalitions(key, members.number, samples)
    else:
        exists = members.exists
        coalitions = coalitions_of_existing(key, exists, samples)
    scores = scores_of_members(game, with_ends(coalitions), batch_size, reuse)
    found, empty = kernel_values(scores, coalitions, exists)
    values, of_groups = values_of_groups(members, found, x, score)
    return Attribution(values, output, {"groups": of_groups, "baseline_score": empty})


def with_ends(coalitions: WeightedCoalitions) -> Bool[Array, "coalitions groups"]:
    """Return the empty and the full coalition, and then the others."""
    number = coalitions.members.shape[1]
    ends = np.stack([np.zeros(number, bool), np.ones(number, bool)])
    return jnp.concatenate([jnp.asarray(ends), coalitions.members])


def kernel_values(
    scores: Float[Array, " coalitions"],
    coalitions: WeightedCoalitions,
    exists: Bool[Array, " groups"],
) -> tuple[Float[Array, " groups"], Float[Array, ""]]:
    """Return the values of the groups by KernelSHAP, and the score of the empty coalition.

    Args:
        scores: the scores of the empty and the full coalition, and of the others.
        coalitions: the others.
        exists: the groups of this example.
    """
    empty, full = scores[0], scores[1]
    values = fit_with_sum(
        coalitions.members, coalitions.weights, scores[2:] - empty, full - empty, exists
    )
    return values, empty


def _lime_evaluations(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    return check_count("num_samples", options.get("num_samples", 512)) + 2


@method(
    evaluations=_lime_evaluations,
    per_example=PER_EXAMPLE,
    backward=False,
    shares_states=True,
    draws=True,
    numbers={"width": "positive", "alpha": "not negative"},
    prepare=prepare_groups,
)
def lime(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    groups: Groups = None,
    num_groups: int | None = None,
    baseline: PyTree[ArrayLike] = 0.0,
    num_samples: int = 512,
    distance: Distance = "cosine",
    width: ArrayLike | None = None,
    penalty: Penalty = "ridge",
    alpha: ArrayLike | None = None,
    reuse: bool = True,
) -> Attribution:
    """Fit a local linear model of the target over the presence of feature groups (LIME).

    Coalitions are drawn in which each group is present with probability 1/2; the full one is added.
    A linear function is fitted to the target with weights exp(-d^2 / width^2), where d is the
    distance of a coalition from the full one, and a penalty on the coefficients.

    Cost: `num_samples + 2` evaluations of `fn`. Draws coalitions: `key` is required.

    Args:
        groups: as for `jaxattn.feature_ablation`.
        num_groups: as for `jaxattn.feature_ablation`.
        baseline: the values of absent features: a number or an array that broadcasts to `x`, or a
            pytree of these with the structure of `x`.
        num_samples: the number of coalitions that are drawn.
        distance: `"cosine"`, 1 - sqrt(s / n) for s of n groups, or `"euclidean"`, sqrt(n - s).
        width: the width of the kernel; by default 0.25 for the cosine distance and 0.75 sqrt(n) for
            the Euclidean distance. Infinity gives equal weights.
        penalty: `"ridge"`, which minimises sum w r^2 + alpha |c|_2^2 for residuals r and
            coefficients c, or `"lasso"`, sum w r^2 / (2 sum w) + alpha |c|_1. The intercept is not
            penalised.
        alpha: the strength of the penalty; by default 1 for ridge and 0.01 for lasso.
        reuse: as for `jaxattn.shapley_values`.

    Returns:
        values of the shape of `x`, signed, in units of the output: each feature gets the
        coefficient of its group. `info["groups"]` holds the coefficients, in the order of the ids;
        `info["intercept"]` the intercept; `info["r_squared"]` the weighted coefficient of
        determination (1 if the target is constant).

    Raises:
        TypeError: for groups that are not integers.
        ValueError: without a key, for fewer than one sample, an unknown distance or penalty, a
            width that is not positive, a negative `alpha`, and as `jaxattn.feature_ablation`.

    Reference:
        Ribeiro et al. 2016, "Why should I trust you?", arXiv:1602.04938.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return 2 * x[0] - 4 * x[1]
        >>> x, key = jnp.array([1.0, 1.0]), jax.random.key(0)
        >>> fit = ja.lime(fn, x, key=key, alpha=0.0)
        >>> print(fit.values.round(2), fit.info["r_squared"].round(2))
        [ 2. -4.] 1.0
    """
    check_bool("reuse", reuse)
    count = check_count("num_samples", num_samples)
    alpha = _checked_fit(distance, width, penalty, alpha)
    if key is None:
        raise ValueError("`key` is missing: lime draws coalitions, give key=jax.random.key(0).")
    members = feature_groups(x, groups, num_groups)
    score_of = scored(fn, target, args)
    score, output = score_of(x)
    game = Game(score_of, x, broadcast_baseline(baseline, x), members)
    exists = jnp.ones(members.number, bool) if members.complete else members.exists
    drawn = jax.random.bernoulli(key, 0.5, (count, members.number)) & exists[None]
    coalitions = jnp.concatenate([exists[None], drawn])
    scores = scores_of_members(game, coalitions, batch_size, reuse)
    weights = _closeness(coalitions, exists, distance, width)
    # Without the score of the input, a constant function has coefficients of exactly zero.
    fit = fit_with_penalty(coalitions, weights, scores - scores[0], penalty, alpha)
    values, of_groups = values_of_groups(members, fit.coefficients, x, score)
    intercept = fit.intercept + scores[0]
    info = {"groups": of_groups, "intercept": intercept, "r_squared": fit.r_squared}
    return Attribution(values, output, info)


def _checked_fit(
    distance: object, width: ArrayLike | None, penalty: str, alpha: ArrayLike | None
) -> ArrayLike:
    """Return the strength of the penalty, once the options of `lime` are checked."""
    if distance not in get_args(Distance):
        raise ValueError(f'`distance` must be "cosine" or "euclidean", got {distance!r}.')
    if penalty not in get_args(Penalty):
        raise ValueError(f'`penalty` must be "ridge" or "lasso", got {penalty!r}.')
    return _ALPHA[penalty] if alpha is None else alpha


def _closeness(
    members: Bool[Array, "coalitions groups"],
    exists: Bool[Array, " groups"],
    distance: Distance,
    width: ArrayLike | None,
) -> Float[Array, " coalitions"]:
    """Return the weight of each coalition by its distance from the full one."""
    dtype = jnp.result_type(float)
    size, number = members.sum(1).astype(dtype), exists.sum().astype(dtype)
    if distance == "cosine":
        far, usual = 1 - jnp.sqrt(size / number), jnp.asarray(0.25, dtype)
    else:
        far, usual = jnp.sqrt(number - size), 0.75 * jnp.sqrt(number)
    scale = usual if width is None else jnp.asarray(width, dtype)
    return jnp.exp(-jnp.square(far / scale))
