"""Feature ablation and permutation: groups of features are replaced, one at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_bool, check_count
from jaxattn.engine.background import background_size, check_background
from jaxattn.engine.batch import chunked_map, wide
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
from jaxattn.engine.window_groups import best_grouping

#: The options that may differ between examples.
PER_EXAMPLE = ("baseline", "groups")


@method(
    evaluations=lambda x, output, options: number_of_groups(x, options) + 2,
    per_example=PER_EXAMPLE,
    backward=False,
    prepare=prepare_groups,
)
def feature_ablation(
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
    """Compute feature ablation: the decrease of the target when a group of features is replaced.

    Each feature gets the decrease that its group causes, f(x) - f(x with the group replaced).
    Windows that overlap are the subject of `jaxattn.occlusion`.

    Cost: one evaluation of `fn` per group, and two more; with `reuse` only the part of each
    evaluation that the group changes is recomputed. Deterministic.

    Args:
        groups: an integer array that broadcasts to `x`, or a pytree of these with the structure of
            `x`. Features with equal ids, in all leaves, form a group. `None` makes each feature a
            group. Under `jaxattn.explain` it may have a leading axis of examples. `jaxattn.groups`
            makes groups.
        num_groups: the number of groups, required if `groups` is traced. It must then be at least
            the number of different ids: the largest ids beyond that number join the last group.
        baseline: the replacement: a number or an array that broadcasts to `x`, or a pytree of these
            with the structure of `x`.
        reuse: whether values that a group leaves unchanged are taken from one unperturbed
            evaluation, if `x` is one array and each group lies in an interval of its own along an
            axis; see `jaxattn.occlusion`.

    Returns:
        values of the shape of `x`, signed, in units of the output. `info["groups"]` holds the value
        of each group, in the order of the ids, and `info["flops_saved"]` the number of operations
        that `reuse` saved. A group that one example lacks has the value 0.

    Raises:
        TypeError: for groups that are not integers, or a `reuse` that is not a bool.
        ValueError: for groups or a baseline that do not broadcast to `x`, for a single group, or if
            the target does not fit the output.

    Reference:
        Captum's `FeatureAblation`; Zeiler and Fergus 2014, arXiv:1311.2901, for windows.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] * x[1] + 4 * x[2]
        >>> ablation = ja.feature_ablation(fn, jnp.array([2.0, 3.0, 1.0]), groups=[0, 0, 1])
        >>> print(ablation.values, ablation.info["groups"])
        [6. 6. 4.] [6. 4.]
    """
    check_bool("reuse", reuse)
    members = feature_groups(x, groups, num_groups)
    score_of = scored(fn, target, args)
    score, output = score_of(x)
    game = Game(score_of, x, broadcast_baseline(baseline, x), members)
    reused = _reused(game, batch_size) if reuse else None
    if reused is None:
        # A number beyond the groups gives the unperturbed score from the same program: rounding
        # differs between programs.
        numbers = jnp.arange(members.number + 1, dtype=jnp.int32)
        scores = game.scores(
            lambda g: jnp.arange(members.number, dtype=jnp.int32) != g, numbers, batch_size
        )
        reused = scores[-1] - scores[:-1], 0
    decreases, saved = reused
    values, of_groups = values_of_groups(members, decreases, x, score)
    info = {"groups": of_groups, "flops_saved": jnp.asarray(float(saved), wide(score.dtype))}
    return Attribution(values, output, info)


def _reused(game: Game, batch_size: int | None) -> tuple[Array, int] | None:
    """Return the decreases and the operations saved; `None` if nothing can be reused."""
    groups = game.groups
    if not groups.intervals or groups.number < 2:
        return None
    (leaf,), treedef = jax.tree.flatten(game.x)
    (replacement,), (ids,) = jax.tree.leaves(game.replacement), groups.ids
    everywhere = np.zeros(groups.number, np.int32)
    spans = [(everywhere, everywhere + np.int32(size)) for size in leaf.shape]
    for each in groups.intervals:
        spans[each.axis] = each.begin, each.end
    found = best_grouping(
        lambda leaf: game.score_of(jax.tree.unflatten(treedef, [leaf])), leaf, spans, batch_size
    )
    if found is None:
        return None

    def without(leaf: Array, shared: tuple[Array, Array], group: Int[Array, ""]) -> Array:
        ids, replacement = shared
        return jnp.where(ids == group, replacement, leaf)

    numbers = jnp.arange(groups.number, dtype=jnp.int32)
    shared = jnp.asarray(ids), replacement
    changed, none = found.scores(leaf, without, shared, numbers, batch_size)
    dtype = wide(none.dtype)
    return none.astype(dtype) - changed.astype(dtype), found.saved


def _replacements(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    size, num_samples = background_size(options.get("background"), x), options.get("num_samples")
    of_group = size if num_samples is None else check_count("num_samples", num_samples)
    return number_of_groups(x, options) * of_group + 2


@method(
    evaluations=_replacements,
    per_example=("groups",),
    backward=False,
    draws=True,
    prepare=prepare_groups,
)
def feature_permutation(
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
    groups: Groups = None,
    num_groups: int | None = None,
    num_samples: int | None = None,
) -> Attribution:
    """Compute feature permutation: the decrease when a group takes values of other examples.

    Each feature gets the mean decrease of the target when its group is replaced by the same
    features of examples of a background set.

    Cost: the number of groups times that of background examples, and two more evaluations of `fn`.
    Deterministic, unless `num_samples` is given: it draws background examples, with replacement,
    the same for all groups, and requires `key`.

    Args:
        background: the background set, a pytree like `x`, each leaf with a leading axis.
        groups: as for `jaxattn.feature_ablation`.
        num_groups: as for `jaxattn.feature_ablation`.
        num_samples: how many background examples are drawn; by default each is taken once.

    Returns:
        values of the shape of `x`, signed, in units of the output. `info["groups"]` holds the value
        of each group and `info["standard_error"]` its standard error over background examples
        (NaN for a single one).

    Raises:
        TypeError: for groups that are not integers, or a background that holds no arrays.
        ValueError: without a background set, for one of another structure or shape or a single
            example without a leading axis, for `num_samples` without a key, and as
            `jaxattn.feature_ablation`.

    Reference:
        Fisher et al. 2019, All models are wrong, but many are useful, arXiv:1801.01489; Captum's
        `FeaturePermutation`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return 2 * x[0] + x[1]
        >>> background = jnp.array([[0.0, 0.0], [1.0, 4.0]])
        >>> print(ja.feature_permutation(fn, jnp.array([1.0, 1.0]), background=background).values)
        [ 1. -1.]
    """
    members = feature_groups(x, groups, num_groups)
    others = check_background(background, x)
    score_of = scored(fn, target, args)
    score, output = score_of(x)
    rows = jnp.arange(background_size(background, x), dtype=jnp.int32)
    if num_samples is not None:
        if key is None:
            raise ValueError(
                "`key` is missing: num_samples draws background examples, give "
                "key=jax.random.key(0)."
            )
        count = check_count("num_samples", num_samples)
        rows = jax.random.randint(key, (count,), 0, len(rows), dtype=jnp.int32)

    def score_with(pair: tuple[Array, Array]) -> Array:
        group, row = pair
        new = jax.tree.map(lambda leaf: leaf[row], others)
        present = jnp.arange(members.number, dtype=jnp.int32) != group
        changed: Array = score_of(members.replaced(present, x, new))[0]
        return changed

    numbers = jnp.arange(members.number, dtype=jnp.int32)
    pairs = jnp.repeat(numbers, len(rows)), jnp.tile(rows, members.number)
    # One more pair, of no group, gives the unperturbed score from the same program.
    ends = jnp.full(1, members.number, jnp.int32), rows[:1]
    scores = chunked_map(
        score_with, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), pairs, ends), batch_size
    )
    scores = scores.astype(wide(scores.dtype))
    decreases = scores[-1] - scores[:-1].reshape(members.number, len(rows))
    values, of_groups = values_of_groups(members, decreases.mean(1), x, score)
    info = {"groups": of_groups, "standard_error": standard_error(decreases)}
    return Attribution(values, output, info)


def standard_error(samples: Array) -> Array:
    """Return the standard error of the mean over the last axis; NaN for a single sample."""
    count = samples.shape[-1]
    mean = samples.mean(-1, keepdims=True)
    variance = jnp.square(samples - mean).sum(-1) / jnp.asarray(max(count - 1, 0), samples.dtype)
    return jnp.sqrt(variance / jnp.asarray(count, samples.dtype))
