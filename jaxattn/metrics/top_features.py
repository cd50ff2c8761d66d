"""Predictions without, or with only, the features of the highest attributions."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree, Shaped

from jaxattn._types import Attribution, Inputs, RandomKey, Target
from jaxattn.engine.batch import chunked_map
from jaxattn.engine.explain import explain
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline
from jaxattn.engine.target import Score, index, scored, single_output
from jaxattn.metrics.rankings import features_of, flat, ranks, replaced, values_like, widened

#: One fraction, or several.
Fractions: TypeAlias = float | Sequence[float] | np.ndarray
#: What is compared: the score, all of the output, or whether the prediction is the target.
Quantity: TypeAlias = Literal["score", "output", "correct"]


class Compared(NamedTuple):
    """A quantity for the input, and for it after features were replaced.

    Attributes:
        before: of shape (B, 1, ...).
        after: of shape (B, fractions, ...).
        single: whether one fraction was given, not several.
    """

    before: Float[Array, "B 1 *q"]
    after: Float[Array, "B fractions *q"]
    single: bool

    def mean(self, size_of: Callable[[Array], Array]) -> Float[Array, "B fractions"]:
        """Return the mean size of the changes of all outputs."""
        sizes = size_of(self.after - self.before)
        return sizes.reshape(*sizes.shape[:2], -1).mean(2)

    def per_example(self, numbers: Float[Array, "B fractions"]) -> Float[Array, "B *fractions"]:
        """Return one number per example if one fraction was given."""
        return numbers[:, 0] if self.single else numbers


def top_counts(fraction: Fractions, features: int) -> list[int]:
    """Return how many features each fraction is, at least one.

    Raises:
        TypeError: for fractions that are not numbers.
        ValueError: for no fraction, or one that is not in (0, 1].
    """
    fractions = np.atleast_1d(np.asarray(fraction))
    if fractions.ndim != 1 or fractions.dtype.kind not in "iuf":
        raise TypeError(f"`fraction` must be a number or a list of numbers, got {fraction!r}.")
    if not fractions.size or not ((fractions > 0) & (fractions <= 1)).all():
        raise ValueError(f"`fraction` must be greater than 0 and at most 1, got {fraction!r}.")
    return [max(1, round(float(each) * features)) for each in fractions]


def compare(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    args: tuple[Any, ...],
    fraction: Fractions,
    baseline: PyTree[ArrayLike],
    batch_size: int | None,
    mesh: Mesh | None,
    *,
    keep: bool = False,
    quantity: Quantity = "score",
    score: Score = "logit",
) -> Compared:
    """Compare predictions without the top features, or with only these if `keep`."""
    values = values_like(attribution, xs)
    features = features_of(values)
    counts = top_counts(fraction, features)
    # The first range is empty: rounding differs between programs, so one computes both predictions.
    ranges = [(0, 0)] + [(count, features) if keep else (0, count) for count in counts]
    numbers = explain(
        _replaced_ranges,
        fn,
        xs,
        targets,
        ranking=values,
        ranges=np.asarray(ranges, np.int32),
        quantity=quantity,
        score=score,
        args=args,
        baseline=baseline,
        batch_size=batch_size,
        mesh=mesh,
    ).values
    return Compared(numbers[:, :1], numbers[:, 1:], np.ndim(fraction) == 0)


@method(
    evaluations=lambda x, output, o: len(o["ranges"]),
    per_example=("baseline", "ranking"),
)
def _replaced_ranges(
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
    ranges: Int[Array | np.ndarray, "ranges 2"],
    quantity: Quantity,
    score: Score,
) -> Attribution:
    """Compute a quantity after the features in ranges of the ranking are replaced."""
    places = ranks(flat(ranking))
    by = broadcast_baseline(baseline, x)

    def after(limits: Int[Array, "2"]) -> Array:
        changed = replaced(x, by, (places >= limits[0]) & (places < limits[1]))
        if quantity == "score":
            return widened(scored(fn, target, args, score=score)(changed)[0])
        output = fn(changed, *args)
        return flat(output) if quantity == "output" else _correct(output, target)

    return Attribution(chunked_map(after, jnp.asarray(ranges), batch_size), fn(x, *args))


def _correct(output: PyTree, target: Target) -> Float[Array, ""]:
    """Return whether the target is the class of the largest output, as 0 or 1.

    Raises:
        ValueError: for a target that is not the index of a class.
    """
    if target is None or callable(target):
        raise ValueError("`targets` must be indices of classes for the accuracy.")
    leaf = single_output(output, "targets")
    *row, label = index(target)
    logits = leaf[tuple(row)]
    if logits.size < 2:
        raise ValueError(
            f"`fn` must return at least two classes for the accuracy, got shape {leaf.shape}."
        )
    correct = logits.argmax().astype(jnp.int32) == jnp.asarray(label, jnp.int32)
    return correct.astype(jnp.result_type(float))
