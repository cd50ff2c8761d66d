"""Deletion and insertion curves, and the completeness of attributions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_count
from jaxattn.engine.explain import explain
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline, is_floating
from jaxattn.engine.target import Score, scored
from jaxattn.metrics.direction import metric
from jaxattn.metrics.rankings import features_of, flat, values_like, widened
from jaxattn.metrics.score_curves import Curve, scores_after


@metric(better="lower")
def deletion(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    args: tuple[Any, ...] = (),
    baseline: PyTree[ArrayLike] = 0.0,
    num_steps: int = 28,
    score: Score = "probability",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Curve:
    """Compute deletion curves: the score while features are replaced, highest attribution first.

    Lower areas are better: the features with the highest attributions are those that the network
    needs. For a probability the area lies between 0 and 1; otherwise it is in the range of the
    score. Features of all leaves are ranked together; ties keep their order.

    Cost: `num_steps + 2` evaluations of `fn` per example. Deterministic.

    Args:
        fn: maps one example to an output, as for `jaxattn.explain`.
        xs: the examples, each leaf with a leading axis of length B.
        targets: which entry of the output is the score, as for `jaxattn.explain`.
        attribution: an `Attribution`, or values of the structure and shape of `xs`.
        args: further inputs of `fn`, each leaf with a leading axis of length B.
        baseline: the values of deleted features: a number or an array that broadcasts to an
            example, or a pytree of these; it may have a leading axis of length B.
        num_steps: the number of steps in which the features are deleted, equally many in each.
        score: what of the output is the score: `"probability"` and `"log_probability"` apply a
            softmax over the last axis of the output; `"logit"` takes the output as it is, also for
            a network that ends in a softmax.
        batch_size: how many evaluations of `fn` are in flight.
        mesh: devices over which the examples are distributed.

    Returns:
        a `Curve` of `num_steps + 1` points per example.

    Raises:
        ValueError: if the attribution has another shape than `xs` or is not finite, for fewer than
            one step or an unknown score, and as `jaxattn.explain`.

    Reference:
        Petsiuk et al. 2018, RISE, arXiv:1806.07421.

    Examples:
        The first attribution ranks the features by their effect, the second the other way round.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return 3 * x[0] + x[1]
        >>> xs, good, bad = (jnp.array([pair]) for pair in ([1.0, 1.0], [3.0, 1.0], [1.0, 3.0]))
        >>> curve = ja.metrics.deletion(fn, xs, None, good, num_steps=2, score="logit")
        >>> print(curve.scores, curve.auc)
        [[4. 1. 0.]] [1.5]
        >>> print(ja.metrics.deletion(fn, xs, None, bad, num_steps=2, score="logit").auc)
        [2.5]
    """
    options = {"baseline": baseline, "num_steps": num_steps, "score": score, "insert": False}
    return _curve(fn, xs, targets, attribution, args, options, batch_size, mesh)


@metric(better="higher")
def insertion(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    args: tuple[Any, ...] = (),
    baseline: PyTree[ArrayLike] = 0.0,
    num_steps: int = 28,
    score: Score = "probability",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Curve:
    """Compute insertion curves: the score while features are added, highest attribution first.

    The curve starts at the baseline and ends at the input. Higher areas are better: the features
    with the highest attributions suffice for the score. For a probability the area lies between 0
    and 1; otherwise it is in the range of the score. Arguments and errors are those of `deletion`.

    Cost: `num_steps + 2` evaluations of `fn` per example. Deterministic.

    Returns:
        a `Curve` of `num_steps + 1` points per example.

    Reference:
        Petsiuk et al. 2018, RISE, arXiv:1806.07421.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return 3 * x[0] + x[1]
        >>> xs, values = jnp.array([[1.0, 1.0]]), jnp.array([[3.0, 1.0]])
        >>> curve = ja.metrics.insertion(fn, xs, None, values, num_steps=2, score="logit")
        >>> print(curve.scores, curve.auc)
        [[0. 3. 4.]] [2.5]
    """
    options = {"baseline": baseline, "num_steps": num_steps, "score": score, "insert": True}
    return _curve(fn, xs, targets, attribution, args, options, batch_size, mesh)


@metric(better="zero")
def completeness(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    args: tuple[Any, ...] = (),
    baseline: PyTree[ArrayLike] = 0.0,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, " B"]:
    """Compute the completeness residual (convergence delta) of attributions.

    The residual is the sum of the values minus the difference between the target at the input and
    at the baseline. Closer to zero is better; it is unbounded in both directions. Arguments and
    errors are those of `deletion`.

    Cost: two evaluations of `fn` per example. Deterministic.

    Returns:
        the residual of each example, signed, in units of the output; 0 for a complete attribution.

    Reference:
        Sundararajan et al. 2017, Axiomatic attribution for deep networks, arXiv:1703.01365.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] * x[1]
        >>> xs = jnp.array([[2.0, 3.0]])
        >>> values = ja.explain(ja.input_x_gradient, fn, xs)
        >>> print(ja.metrics.completeness(fn, xs, None, values))
        [6.]
    """
    values = values_like(attribution, xs)
    ends = explain(
        _ends, fn, xs, targets, args=args, batch_size=batch_size, mesh=mesh, baseline=baseline
    )
    return jax.vmap(flat)(values).sum(1) - ends.values


def _curve(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    args: tuple[Any, ...],
    options: dict[str, Any],
    batch_size: int | None,
    mesh: Mesh | None,
) -> Curve:
    num_steps = check_count("num_steps", options.pop("num_steps"))
    values = values_like(attribution, xs)
    features = features_of(values)
    counts = np.rint(np.linspace(0, features, num_steps + 1)).astype(np.int32)
    scores = explain(
        scores_after,
        fn,
        xs,
        targets,
        args=args,
        batch_size=batch_size,
        mesh=mesh,
        ranking=values,
        counts=counts,
        **options,
    ).values
    fractions = counts / features
    auc = jnp.trapezoid(scores, jnp.asarray(fractions, scores.dtype)[None], axis=1)
    return Curve(scores, fractions, auc)


@method(evaluations=lambda x, output, options: 2)
def _ends(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    baseline: PyTree[ArrayLike],
) -> Attribution:
    """Compute the difference between the target at the input and at the baseline."""
    score_of = scored(fn, target, args)
    here, output = score_of(x)
    # As in the gradient methods: beside floating leaves, integer leaves keep their values.
    mixed = any(map(is_floating, jax.tree.leaves(x)))
    start = broadcast_baseline(baseline, x, keep_integers=mixed)
    return Attribution(widened(here) - widened(score_of(start)[0]), output)
