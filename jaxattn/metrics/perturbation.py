"""How much a prediction changes without, or with only, the features of the highest attributions."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxattn._types import Attribution, Inputs, Target
from jaxattn.engine.target import Score
from jaxattn.metrics.direction import metric
from jaxattn.metrics.top_features import Fractions, compare


@metric(better="higher")
def comprehensiveness(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    args: tuple[Any, ...] = (),
    fraction: Fractions = 0.2,
    baseline: PyTree[ArrayLike] = 0.0,
    score: Score = "probability",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B *fractions"]:
    """Compute comprehensiveness: the decrease of the score without the top features.

    It is p(x) - p(x without the top fraction). Higher is better: the features with the highest
    attributions are needed. For a probability it lies between -1 and 1. It is 0 where the baseline
    equals the input.

    Cost: one evaluation of `fn` per fraction, and two more, per example. Deterministic.

    Args:
        fn: maps one example to an output, as for `jaxattn.explain`.
        xs: the examples, each leaf with a leading axis of length B.
        targets: which entry of the output is the score, as for `jaxattn.explain`.
        attribution: an `Attribution`, or values of the structure and shape of `xs`. Features of all
            leaves are ranked together; ties keep their order.
        args: further inputs of `fn`, each leaf with a leading axis of length B.
        fraction: the fraction of the features that counts as the top, in (0, 1], or several. The
            number of features is rounded, and at least 1.
        baseline: the values of replaced features: a number or an array that broadcasts to an
            example, or a pytree of these; it may have a leading axis of length B, as that of
            `moving_average(xs, window)` or `channel_mean(xs)`.
        score: what of the output is the score: `"probability"` and `"log_probability"` apply a
            softmax over the last axis of the output; `"logit"` takes the output as it is, also for
            a network that ends in a softmax.
        batch_size: how many evaluations of `fn` are in flight.
        mesh: devices over which the examples are distributed.

    Returns:
        one number per example, or an array (B, fractions) for a list of fractions; in units of the
        score.

    Raises:
        TypeError: for fractions that are not numbers.
        ValueError: if the attribution has another shape than `xs` or is not finite, for a fraction
            outside (0, 1] or an unknown score, and as `jaxattn.explain`.

    Reference:
        DeYoung et al. 2020, ERASER: a benchmark to evaluate rationalized NLP models,
        arXiv:1911.03429.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> xs, values = jnp.array([[1.0, 2.0, 3.0, 4.0]]), jnp.array([[4.0, 3.0, 2.0, 1.0]])
        >>> metric = ja.metrics.comprehensiveness
        >>> print(metric(jnp.sum, xs, None, values, fraction=0.5, score="logit"))
        [3.]
        >>> print(metric(jnp.sum, xs, None, values, fraction=[0.25, 1.0], score="logit"))
        [[ 1. 10.]]
    """
    found = compare(
        fn, xs, targets, attribution, args, fraction, baseline, batch_size, mesh, score=score
    )
    return found.per_example(found.before - found.after)


@metric(better="lower")
def sufficiency(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    args: tuple[Any, ...] = (),
    fraction: Fractions = 0.2,
    baseline: PyTree[ArrayLike] = 0.0,
    score: Score = "probability",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B *fractions"]:
    """Compute sufficiency: the decrease of the score with only the top features.

    It is p(x) - p(x with only the top fraction). Lower is better: the features with the highest
    attributions suffice. For a probability it lies between -1 and 1. It is 0 where the baseline
    equals the input. Arguments and errors are those of `comprehensiveness`.

    Cost: one evaluation of `fn` per fraction, and two more, per example. Deterministic.

    Returns:
        one number per example, or an array (B, fractions) for a list of fractions; in units of the
        score.

    Reference:
        DeYoung et al. 2020, ERASER: a benchmark to evaluate rationalized NLP models,
        arXiv:1911.03429.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> xs, values = jnp.array([[1.0, 2.0, 3.0, 4.0]]), jnp.array([[4.0, 3.0, 2.0, 1.0]])
        >>> print(ja.metrics.sufficiency(jnp.sum, xs, None, values, fraction=0.5, score="logit"))
        [7.]
    """
    found = compare(
        fn,
        xs,
        targets,
        attribution,
        args,
        fraction,
        baseline,
        batch_size,
        mesh,
        keep=True,
        score=score,
    )
    return found.per_example(found.before - found.after)


@metric(better="lower")
def log_odds(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    args: tuple[Any, ...] = (),
    fraction: Fractions = 0.2,
    baseline: PyTree[ArrayLike] = 0.0,
    score: Score = "log_probability",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B *fractions"]:
    """Compute log-odds: the change of the log probability without the top features.

    It is log p(x without the top fraction) - log p(x). Lower is better: the features with the
    highest attributions are needed. It is 0 where the baseline equals the input. Arguments and
    errors are those of `comprehensiveness`; for a network that returns probabilities pass
    `targets=lambda output: jnp.log(output[0])` and `score="logit"`. A score of `"probability"` is
    an error.

    Cost: one evaluation of `fn` per fraction, and two more, per example. Deterministic.

    Returns:
        one number per example, or an array (B, fractions) for a list of fractions; in nats.

    Reference:
        Shrikumar et al. 2017, Learning important features through propagating activation
        differences, arXiv:1704.02685.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return jnp.stack([x.sum(), -x.sum()])
        >>> xs, values = jnp.array([[1.0, 1.0]]), jnp.array([[4.0, 3.0]])
        >>> print(ja.metrics.log_odds(fn, xs, 0, values, fraction=0.5).round(3))
        [-0.109]
    """
    _check_logarithmic(score)
    found = compare(
        fn, xs, targets, attribution, args, fraction, baseline, batch_size, mesh, score=score
    )
    return found.per_example(found.after - found.before)


@metric(better="lower", low=0, high=1)
def accuracy(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    args: tuple[Any, ...] = (),
    fraction: Fractions = 0.2,
    baseline: PyTree[ArrayLike] = 0.0,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B *fractions"]:
    """Compute the accuracy without the top features: whether the target is still predicted.

    It is 1 if the class of the largest output for x without the top fraction is the target, and 0
    otherwise, so that the mean is an accuracy. Lower is better: the features with the highest
    attributions are needed. Targets must be indices of classes, for instance the labels. Arguments
    and errors are those of `comprehensiveness`.

    Cost: one evaluation of `fn` per fraction, and two more, per example. Deterministic.

    Returns:
        one number per example, or an array (B, fractions) for a list of fractions; 0 or 1.

    Reference:
        Crabbé and van der Schaar 2021, Explaining time series predictions with dynamic masks,
        arXiv:2106.05303.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return jnp.stack([x.sum(), jnp.ones(())])
        >>> xs, values = jnp.array([[0.5, 2.0]]), jnp.array([[1.0, 3.0]])
        >>> print(ja.metrics.accuracy(fn, xs, 0, values, fraction=[0.5, 1.0], baseline=0.0))
        [[0. 0.]]
    """
    found = compare(
        fn, xs, targets, attribution, args, fraction, baseline, batch_size, mesh, quantity="correct"
    )
    return found.per_example(found.after)


@metric(better="higher")
def cross_entropy(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    args: tuple[Any, ...] = (),
    fraction: Fractions = 0.2,
    baseline: PyTree[ArrayLike] = 0.0,
    score: Score = "log_probability",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B *fractions"]:
    """Compute the cross-entropy without the top features.

    It is -log p(x without the top fraction), for the probability of the target. Higher is better:
    the features with the highest attributions are needed. With the default score it is at least 0.
    Arguments and errors are those of `log_odds`.

    Cost: one evaluation of `fn` per fraction, and two more, per example. Deterministic.

    Returns:
        one number per example, or an array (B, fractions) for a list of fractions; in nats.

    Reference:
        Crabbé and van der Schaar 2021, Explaining time series predictions with dynamic masks,
        arXiv:2106.05303.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return jnp.stack([x.sum(), -x.sum()])
        >>> xs, values = jnp.array([[1.0, 1.0]]), jnp.array([[4.0, 3.0]])
        >>> print(ja.metrics.cross_entropy(fn, xs, 0, values, fraction=1.0).round(3))
        [0.693]
    """
    _check_logarithmic(score)
    found = compare(
        fn, xs, targets, attribution, args, fraction, baseline, batch_size, mesh, score=score
    )
    return found.per_example(-found.after)


@metric(better="higher", low=0)
def mse(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    args: tuple[Any, ...] = (),
    fraction: Fractions = 0.2,
    baseline: PyTree[ArrayLike] = 0.0,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B *fractions"]:
    """Compute the mean squared error of the prediction without the top features.

    It is the squared difference between the outputs for x without the top fraction and for x: of
    the target, or the mean over all of the output if `targets` is `None`. Higher is better: the
    features with the highest attributions are needed. It is 0 where the baseline equals the input.
    Arguments and errors are those of `comprehensiveness`.

    Cost: one evaluation of `fn` per fraction, and two more, per example. Deterministic.

    Returns:
        one number per example, or an array (B, fractions) for a list of fractions; in squared units
        of the output.

    Reference:
        Crabbé and van der Schaar 2021, Explaining time series predictions with dynamic masks,
        arXiv:2106.05303.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> xs, values = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 3.0]])
        >>> print(ja.metrics.mse(lambda x: 3 * x, xs, None, values, fraction=0.5))
        [18.]
    """
    found = compare(
        fn,
        xs,
        targets,
        attribution,
        args,
        fraction,
        baseline,
        batch_size,
        mesh,
        quantity="output" if targets is None else "score",
    )
    return found.per_example(found.mean(jnp.square))


@metric(better="higher", low=0)
def mae(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target,
    attribution: Attribution | PyTree[ArrayLike],
    *,
    args: tuple[Any, ...] = (),
    fraction: Fractions = 0.2,
    baseline: PyTree[ArrayLike] = 0.0,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B *fractions"]:
    """Compute the mean absolute error of the prediction without the top features.

    As `mse`, with magnitudes of the differences instead of squares. Higher is better: the features
    with the highest attributions are needed. It is 0 where the baseline equals the input. Arguments
    and errors are those of `comprehensiveness`.

    Cost: one evaluation of `fn` per fraction, and two more, per example. Deterministic.

    Returns:
        one number per example, or an array (B, fractions) for a list of fractions; in units of the
        output.

    Reference:
        Crabbé and van der Schaar 2021, Explaining time series predictions with dynamic masks,
        arXiv:2106.05303.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> xs, values = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 3.0]])
        >>> print(ja.metrics.mae(lambda x: 3 * x, xs, None, values, fraction=0.5))
        [3.]
    """
    found = compare(
        fn,
        xs,
        targets,
        attribution,
        args,
        fraction,
        baseline,
        batch_size,
        mesh,
        quantity="output" if targets is None else "score",
    )
    return found.per_example(found.mean(jnp.abs))


def _check_logarithmic(score: Score) -> None:
    if score == "probability":
        raise ValueError(f'`score` must be "log_probability" or "logit", got {score!r}.')
