"""The score while features, or groups of features, are replaced one after the other."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree, Shaped

from jaxattn._types import Attribution, Inputs, RandomKey, Scalar, Target
from jaxattn.engine.batch import chunked_map
from jaxattn.engine.feature_groups import Groups, feature_groups
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline
from jaxattn.engine.target import Score, scored
from jaxattn.metrics.rankings import flat, ranks, unflat, widened

#: How the value of a group follows from those of its features.
OfGroup: TypeAlias = Literal["sum", "mean"]


class Curve(NamedTuple):
    """Scores of each example while features are deleted or inserted one after the other.

    Attributes:
        scores: the score of each example after each step, from no feature changed to all.
        fractions: the fraction of changed features, from 0 to 1.
        auc: the area under the curve of each example by the trapezoidal rule, in units of the
            score.
    """

    scores: Float[Array, "B steps"]
    fractions: Float[np.ndarray, " steps"]
    auc: Float[Array, " B"]


class WholeGroups(NamedTuple):
    """Groups of features, numbered from 0.

    Attributes:
        ids: the group of each feature, in the structure and shape of one example or of a batch.
        number: the number of groups.
    """

    ids: PyTree[Int[np.ndarray, "..."]]
    number: int


def whole_groups(groups: Groups, xs: Inputs) -> WholeGroups:
    """Number groups that are known before tracing, and give each feature the number of its group.

    Args:
        groups: as for `jaxattn.feature_ablation`, but not `None`.
        xs: the examples.

    Raises:
        TypeError: for groups that are not integers.
        ValueError: for groups that do not broadcast to an example, or a single group.
    """
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], leaf.dtype), xs)
    numbered = feature_groups(example, groups)
    leaves, treedef = jax.tree.flatten(example)
    ids = [
        np.broadcast_to(each, (*each.shape[: each.ndim - leaf.ndim], *leaf.shape))
        for each, leaf in zip(numbered.ids, leaves, strict=True)
    ]
    return WholeGroups(jax.tree.unflatten(treedef, ids), numbered.number)


def group_values(
    values: Float[Array, " n"], ids: Int[Array, " n"], number: int, of_group: OfGroup
) -> Float[Array, " groups"]:
    """Return the value of each group, and -inf for one without a feature in this example."""
    sizes = jnp.zeros(number, values.dtype).at[ids].add(1)
    total = jnp.zeros(number, values.dtype).at[ids].add(values)
    return jnp.where(sizes > 0, total / sizes if of_group == "mean" else total, -jnp.inf)


@method(
    evaluations=lambda x, output, o: len(o["counts"]),
    per_example=("baseline", "ranking", "groups"),
)
def scores_after(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    ranking: PyTree[Shaped[Array | np.ndarray, "..."]],
    baseline: PyTree[ArrayLike],
    counts: Int[Array | np.ndarray, " steps"],
    score: Score,
    insert: bool,
    groups: PyTree[Shaped[Array | np.ndarray, "..."]] = None,
    num_groups: int = 0,
    of_group: OfGroup = "mean",
) -> Attribution:
    """Compute the scores of one example after each number of changed features, or of groups.

    Features of all leaves are ranked together. `info["groups"]` is the number of groups that the
    example has.
    """
    changed = broadcast_baseline(baseline, x)
    before, after = (changed, x) if insert else (x, changed)
    values = flat(ranking)
    places, number = ranks(values), jnp.asarray(values.size)
    if groups is not None:
        ids = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(groups)])
        of_groups = group_values(values, ids, num_groups, of_group)
        places, number = ranks(of_groups)[ids], jnp.isfinite(of_groups).sum()
    rank = unflat(places, x)
    score_of = scored(fn, target, args, score=score)

    def score_after(count: Int[Array, ""]) -> Scalar:
        mixed = jax.tree.map(lambda r, a, b: jnp.where(r < count, a, b), rank, after, before)
        return widened(score_of(mixed)[0])

    scores = chunked_map(score_after, jnp.asarray(counts, jnp.int32), batch_size)
    return Attribution(scores, fn(x, *args), {"groups": number})
