"""Whether an attribution names what the network uses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_count
from jaxattn.engine.batch import chunked_map
from jaxattn.engine.explain import explain
from jaxattn.engine.inputs import check_finite_numbers
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline, is_floating
from jaxattn.engine.target import scored


class Curve(NamedTuple):
    """Scores while more and more of each input is deleted or inserted.

    Attributes:
        scores: one row an example, from nothing changed to everything.
        fractions: the changed share of the cells, from 0 to 1.
        auc: the area under each row by the trapezoidal rule, in units of the score.
    """

    scores: Float[Array, "B steps"]
    fractions: Float[np.ndarray, " steps"]
    auc: Float[Array, " B"]


def deletion(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Any,
    *,
    args: tuple[Any, ...] = (),
    baseline: Any = 0.0,
    num_steps: int = 28,
    softmax: bool = True,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Curve:
    """The score while the highest-valued cells are replaced by a baseline, the highest first.

    Low areas are good: what the attribution names first is what the network needs.

    Args:
        fn: maps one example to an output.
        xs: the examples, each leaf with a leading axis of length B.
        targets: which number of the output is watched; see `jaxattn.explain`.
        attribution: an `Attribution`, or values of the structure and shape of `xs`.
        args: further inputs of `fn`, each leaf with a leading axis of length B.
        baseline: what deleted cells become.
        num_steps: how many equal shares of the cells are deleted one after the other.
        softmax: whether to watch a probability, the softmax over the output's last axis; `False`
            for a network that ends in one.
        batch_size: how many evaluations of `fn` are in flight.
        mesh: devices over which the examples are spread.

    Returns:
        a `Curve` of num_steps + 1 points an example.

    Raises:
        ValueError: if the attribution has another shape than `xs`, for fewer than one step, and as
            `jaxattn.explain`.

    Reference:
        Petsiuk et al. 2018, RISE, arXiv:1806.07421.
    """
    options = {"baseline": baseline, "num_steps": num_steps, "softmax": softmax, "insert": False}
    return _curve(fn, xs, targets, attribution, args, options, batch_size, mesh)


def insertion(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Any,
    *,
    args: tuple[Any, ...] = (),
    baseline: Any = 0.0,
    num_steps: int = 28,
    softmax: bool = True,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Curve:
    """The score while the highest-valued cells are put into a baseline, the highest first.

    High areas are good. Arguments, result and errors are those of `deletion`.

    Reference:
        Petsiuk et al. 2018, RISE, arXiv:1806.07421.
    """
    options = {"baseline": baseline, "num_steps": num_steps, "softmax": softmax, "insert": True}
    return _curve(fn, xs, targets, attribution, args, options, batch_size, mesh)


def completeness(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Any,
    *,
    args: tuple[Any, ...] = (),
    baseline: Any = 0.0,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " B"]:
    """The sum of the values less the difference of the scores at the input and at the baseline.

    Arguments and errors are those of `deletion`.

    Returns:
        the residual of each example, in units of the output; 0 for a complete attribution.

    Reference:
        Sundararajan et al. 2017, Axiomatic attribution for deep networks, arXiv:1703.01365.
    """
    values = _values(attribution, xs)
    ends = explain(
        _ends, fn, xs, targets, args=args, batch_size=batch_size, mesh=mesh, baseline=baseline
    )
    sums = [
        leaf.reshape(leaf.shape[0], -1).sum(1) for leaf in map(jnp.asarray, jax.tree.leaves(values))
    ]
    return sum(sums[1:], sums[0]) - ends.values


def _values(attribution: Any, xs: Inputs) -> Any:
    values = attribution.values if isinstance(attribution, Attribution) else attribution
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (values, xs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"attribution has shape {shapes[0]}, xs has {shapes[1]}; values of an intermediate "
            "(at=) are to be summed over the axes that xs has not"
        )
    check_finite_numbers("attribution", values)
    return values


def _curve(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Any,
    args: tuple[Any, ...],
    options: dict[str, Any],
    batch_size: int | None,
    mesh: Mesh | None,
) -> Curve:
    check_count("num_steps", options["num_steps"])
    values = _values(attribution, xs)
    scores = explain(
        _scores,
        fn,
        xs,
        targets,
        args=args,
        batch_size=batch_size,
        mesh=mesh,
        ranking=values,
        **options,
    ).values
    cells = sum(leaf[0].size for leaf in jax.tree.leaves(values))
    fractions = _counts(cells, options["num_steps"]) / cells
    auc = jnp.trapezoid(scores, jnp.asarray(fractions, scores.dtype)[None], axis=1)
    return Curve(scores, fractions, auc)


def _counts(cells: int, num_steps: int) -> np.ndarray:
    """How many cells are changed at each step."""
    return np.rint(np.linspace(0, cells, num_steps + 1)).astype(np.int32)


@method(evaluations=lambda x, output, o: o["num_steps"] + 1, per_example=("baseline", "ranking"))
def _scores(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    ranking: Any,
    baseline: Any,
    num_steps: int,
    softmax: bool,
    insert: bool,
) -> Attribution:
    """The curve of one example; cells of all leaves are ranked together."""
    replaced = broadcast_baseline(baseline, x)
    before, after = (replaced, x) if insert else (x, replaced)
    leaves, treedef = jax.tree.flatten(x)
    flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(ranking)])
    order = jnp.argsort(flat, descending=True, stable=True)
    rank = jnp.zeros(flat.size, jnp.int32).at[order].set(jnp.arange(flat.size, dtype=jnp.int32))
    ends = np.cumsum([leaf.size for leaf in leaves])
    ranks = jax.tree.unflatten(
        treedef,
        [
            part.reshape(leaf.shape)
            for part, leaf in zip(jnp.split(rank, ends[:-1]), leaves, strict=True)
        ],
    )
    score = scored(fn, target, args, softmax=softmax)

    def at(count: Any) -> Any:
        mixed = jax.tree.map(lambda r, a, b: jnp.where(r < count, a, b), ranks, after, before)
        return score(mixed)[0]

    counts = jnp.asarray(_counts(flat.size, num_steps))
    return Attribution(chunked_map(at, counts, batch_size), fn(x, *args))


@method(evaluations=lambda x, output, options: 2)
def _ends(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    baseline: Any,
) -> Attribution:
    """The difference of the scores at the input and at the baseline."""
    score = scored(fn, target, args)
    here, output = score(x)
    # As the gradient methods do: beside floating numbers, integers stay what they are.
    mixed = any(map(is_floating, jax.tree.leaves(x)))
    start = broadcast_baseline(baseline, x, keep_integers=mixed)
    return Attribution(here - score(start)[0], output)
