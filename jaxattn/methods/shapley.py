"""Shapley values of feature groups: exact, and sampled over permutations."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_bool, check_count
from jaxattn.engine.coalition_reuse import scores_of_members, window_game
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
from jaxattn.methods.ablation import PER_EXAMPLE, standard_error

#: The largest number of groups for exact values: 65,536 coalitions.
MOST_GROUPS = 16


def members_of_bits(coalitions: Int[Array, " N"], number: int) -> Bool[Array, "N number"]:
    """Return the members of coalitions that are given by the bits of integers."""
    bits = jnp.right_shift(coalitions[:, None], jnp.arange(number, dtype=coalitions.dtype)[None])
    return (bits & 1).astype(bool)


def exact_values(scores: Float[Array, " coalitions"], number: int) -> Float[Array, " number"]:
    """Return Shapley values from the scores of all coalitions, ordered by their bits."""
    rest = jnp.arange(2 ** (number - 1), dtype=jnp.int32)[None]
    group = jnp.arange(number, dtype=jnp.int32)[:, None]
    low = jnp.left_shift(1, group) - 1
    without = jnp.left_shift(rest & ~low, 1) | (rest & low)
    sizes = jax.lax.population_count(rest)
    weights = [1 / (number * math.comb(number - 1, size)) for size in range(number)]
    # Differences first: a group without influence gets exactly zero.
    marginal = scores[without | jnp.left_shift(1, group)] - scores[without]
    return (jnp.asarray(weights, scores.dtype)[sizes] * marginal).sum(1)


def _coalitions(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    return 2 ** _few_groups(number_of_groups(x, options)) + 1


def _few_groups(number: int) -> int:
    """Return the number of groups, and raise an error if there are too many for exact values."""
    if number > MOST_GROUPS:
        raise ValueError(
            f"`groups` must hold at most {MOST_GROUPS} groups for exact Shapley values, got "
            f"{number}: use jaxattn.shapley_value_sampling, or fewer groups."
        )
    return number


@method(
    evaluations=_coalitions,
    per_example=PER_EXAMPLE,
    backward=False,
    shares_states=True,
    prepare=prepare_groups,
)
def shapley_values(
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
    reuse: bool = True,
) -> Attribution:
    """Compute exact Shapley values of up to 16 feature groups.

    The Shapley value of a group is its marginal contribution f(S + group) - f(S), averaged over
    the coalitions S of other groups in all orders. Groups outside a coalition take the value of the
    baseline. The values of all groups sum to f(x) - f(baseline).

    Cost: 2^n evaluations of `fn` for n groups, and one more. Deterministic.

    Args:
        groups: as for `jaxattn.feature_ablation`; at most 16 groups.
        num_groups: as for `jaxattn.feature_ablation`.
        baseline: the values of absent features: a number or an array that broadcasts to `x`, or a
            pytree of these with the structure of `x`.
        reuse: whether coalitions share the states of loops over time, if `x` is one array and each
            group is a window of whole rows (time steps). The state after a window depends only on
            which of the windows up to it are present. Values agree up to rounding.

    Returns:
        values of the shape of `x`, signed, in units of the output: each feature gets the Shapley
        value of its group. `info["groups"]` holds the value of each group, in the order of the ids;
        these sum to the difference. `info["baseline_score"]` is the target at the baseline.

    Raises:
        TypeError: for groups that are not integers, or a `reuse` that is not a bool.
        ValueError: for more than 16 groups, and as `jaxattn.feature_ablation`.

    Reference:
        Shapley 1953, A value for n-person games; Lundberg and Lee 2017, arXiv:1705.07874.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] * x[1] + 4 * x[2]
        >>> print(ja.shapley_values(fn, jnp.array([2.0, 3.0, 1.0])).values)
        [3. 3. 4.]
    """
    check_bool("reuse", reuse)
    members = feature_groups(x, groups, num_groups)
    number = _few_groups(members.number)
    score_of = scored(fn, target, args)
    score, output = score_of(x)
    game = Game(score_of, x, broadcast_baseline(baseline, x), members)
    coalitions = members_of_bits(jnp.arange(2**number, dtype=jnp.int32), number)
    scores = scores_of_members(game, coalitions, batch_size, reuse)
    values, of_groups = values_of_groups(members, exact_values(scores, number), x, score)
    return Attribution(values, output, {"groups": of_groups, "baseline_score": scores[0]})


def _checked_samples(num_samples: object, antithetic: bool) -> int:
    """Return the number of permutations, checked."""
    check_bool("antithetic", antithetic)
    count = check_count("num_samples", num_samples)
    if antithetic and count % 2:
        raise ValueError(
            "`num_samples` must be even with antithetic=True, which pairs each permutation with "
            f"its reverse, got {count}."
        )
    return count


def _along_permutations(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    samples = check_count("num_samples", options.get("num_samples", 32))
    return samples * (number_of_groups(x, options) - 1) + 3


@method(
    evaluations=_along_permutations,
    per_example=PER_EXAMPLE,
    backward=False,
    shares_states=True,
    draws=True,
    prepare=prepare_groups,
)
def shapley_value_sampling(
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
    num_samples: int = 32,
    antithetic: bool = True,
    reuse: bool = True,
) -> Attribution:
    """Estimate Shapley values of feature groups by sampling permutations.

    Along each permutation the groups are added one after the other, and the change of the target is
    the contribution of the added group. The mean over permutations is an unbiased estimate of the
    Shapley value, and the values of all groups sum to f(x) - f(baseline) for any number of
    permutations.

    Cost: `num_samples * (n - 1) + 3` evaluations of `fn` for n groups. Draws permutations: `key` is
    required.

    Args:
        groups: as for `jaxattn.feature_ablation`.
        num_groups: as for `jaxattn.feature_ablation`.
        baseline: the values of absent features: a number or an array that broadcasts to `x`, or a
            pytree of these with the structure of `x`.
        num_samples: the number of permutations.
        antithetic: whether each second permutation is the reverse of another, which lowers the
            variance in most cases; `num_samples` must be even then.
        reuse: as for `jaxattn.shapley_values`. The coalitions along a permutation are nested, which
            halves the operations.

    Returns:
        values of the shape of `x`, signed, in units of the output: each feature gets the value of
        its group. `info["groups"]` holds the value of each group, in the order of the ids;
        `info["standard_error"]` its standard error (NaN for a single permutation or pair);
        `info["baseline_score"]` the target at the baseline.

    Raises:
        TypeError: for groups that are not integers, or flags that are not bools.
        ValueError: without a key, for fewer than one sample or an odd number of antithetic ones,
            and as `jaxattn.feature_ablation`.

    Reference:
        Castro et al. 2009, Polynomial calculation of the Shapley value based on sampling; Mitchell
        et al. 2022, Sampling permutations for Shapley value estimation, arXiv:2104.12199
        (antithetic pairs).

    Examples:
        A permutation and its reverse are exact for interactions of two groups.

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] * x[1] + 4 * x[2]
        >>> x, key = jnp.array([2.0, 3.0, 1.0]), jax.random.key(0)
        >>> print(ja.shapley_value_sampling(fn, x, key=key, num_samples=2).values)
        [3. 3. 4.]
    """
    check_bool("reuse", reuse)
    count = _checked_samples(num_samples, antithetic)
    if key is None:
        raise ValueError(
            "`key` is missing: shapley_value_sampling draws permutations, give "
            "key=jax.random.key(0)."
        )
    members = feature_groups(x, groups, num_groups)
    score_of = scored(fn, target, args)
    score, output = score_of(x)
    game = Game(score_of, x, broadcast_baseline(baseline, x), members)
    places = _places(key, count, members.number, antithetic)
    windows = window_game(game) if reuse else None
    along = None if windows is None else windows.along_permutations(places, batch_size)
    if along is None:
        along = _scores_along(game, places, batch_size)
    marginal = jnp.diff(along, axis=1)[jnp.arange(count, dtype=jnp.int32)[:, None], places]
    if antithetic:
        marginal = marginal.reshape(2, count // 2, -1).mean(0)
    values, of_groups = values_of_groups(members, marginal.mean(0), x, score)
    info = {
        "groups": of_groups,
        "standard_error": standard_error(marginal.T),
        "baseline_score": along[0, 0],
    }
    return Attribution(values, output, info)


def _places(
    key: RandomKey, count: int, number: int, antithetic: bool
) -> Int[Array, "samples groups"]:
    """Return the position of each group in each permutation; the second half are reverses."""
    drawn = jax.random.bits(key, (count // 2 if antithetic else count, number), jnp.uint32)
    places = jnp.argsort(drawn, 1).astype(jnp.int32)
    return jnp.concatenate([places, number - 1 - places]) if antithetic else places


def _scores_along(
    game: Game, places: Int[Array, "samples groups"], batch_size: int | None
) -> Float[Array, "samples coalitions"]:
    """Return the scores of the first 0, 1, ... groups of each permutation."""
    samples, number = places.shape
    # The empty and the full coalition are those of all permutations.
    inner = np.indices((samples, number - 1)).reshape(2, -1).T + [[0, 1]]
    pairs = np.concatenate([[[0, 0], [0, number]], inner]).astype(np.int32)

    def present(pair: Int[Array, "2"]) -> Bool[Array, " groups"]:
        return places[pair[0]] < pair[1]

    scores = game.scores(present, jnp.asarray(pairs), batch_size)
    empty, full = (jnp.full((samples, 1), scores[i]) for i in (0, 1))
    return jnp.concatenate([empty, scores[2:].reshape(samples, number - 1), full], 1)
