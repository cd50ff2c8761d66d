"""The score while features, or groups of features, are replaced one after the other."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree, Shaped

from jaxattn._static import is_array
from jaxattn._types import Attribution, Inputs, RandomKey, Scalar, Target
from jaxattn.engine.batch import chunked_map
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline, leaves_like
from jaxattn.engine.target import Score, scored
from jaxattn.metrics.rankings import flat, ranks, unflat

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


class Grouping(NamedTuple):
    """Groups of features, numbered from 0.

    Attributes:
        ids: the group of each feature, in the structure and shape of one example or of a batch.
        number: the number of groups.
    """

    ids: PyTree[Int[np.ndarray, "..."]]
    number: int

    @classmethod
    def of(cls, groups: PyTree[Any], xs: Inputs) -> "Grouping":
        """Number groups.

        Args:
            groups: integers that broadcast to an example, or with a leading axis of examples; one
                array for all leaves of `xs`, or a pytree like `xs`.
            xs: the examples.

        Raises:
            TypeError: for groups that are not integers.
            ValueError: for groups that do not broadcast to an example, or a single group.
        """
        leaves, treedef = jax.tree.flatten(xs)
        arrays = [np.asarray(each) for each in leaves_like(xs, groups, "groups", is_array)]
        per_example = any(a.ndim == jnp.ndim(leaf) for a, leaf in zip(arrays, leaves, strict=True))
        spread = []
        for ids, leaf in zip(arrays, leaves, strict=True):
            if not np.issubdtype(ids.dtype, np.integer):
                raise TypeError(f"`groups` must hold integers, got {ids.dtype}.")
            shape = jnp.shape(leaf) if per_example else jnp.shape(leaf)[1:]
            try:
                spread.append(np.broadcast_to(ids, shape))
            except ValueError as error:
                raise ValueError(
                    f"`groups` must broadcast to the shape {jnp.shape(leaf)[1:]} of an example, or "
                    f"have a leading axis of {jnp.shape(leaf)[0]} examples in addition, got shape "
                    f"{ids.shape}."
                ) from error
        found, numbers = np.unique(
            np.concatenate([each.ravel() for each in spread]), return_inverse=True
        )
        if len(found) < 2:
            raise ValueError(f"`groups` must hold at least two groups, got {found.tolist()} alone.")
        parts = np.split(numbers.astype(np.int32), np.cumsum([e.size for e in spread])[:-1])
        ids_of = [part.reshape(each.shape) for part, each in zip(parts, spread, strict=True)]
        return cls(jax.tree.unflatten(treedef, ids_of), len(found))


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
        return score_of(mixed)[0]

    scores = chunked_map(score_after, jnp.asarray(counts, jnp.int32), batch_size)
    return Attribution(scores, fn(x, *args), {"groups": number})
