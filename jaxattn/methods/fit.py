"""Feature importance in time: how the predicted distribution changes with an observation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_count
from jaxattn.engine.batch import chunked_map, chunked_sum
from jaxattn.engine.method import method
from jaxattn.methods.drawn_series import (
    Draw,
    DrawnSeries,
    Generator,
    class_logits,
    evaluations_of_draws,
    gaussian_draws,
    kl_divergence,
    members_in_flight,
)
from jaxattn.methods.prefixes import Prefixes, output_of_one_step


@method(
    evaluations=evaluations_of_draws, selects_from=output_of_one_step, backward=False, draws=True
)
def fit(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    generator: Generator | None = None,
    num_samples: int = 10,
    per_step: bool = False,
    length_arg: int | np.integer | None = None,
    baseline: PyTree[ArrayLike] = 0.0,
) -> Attribution:
    """Compute feature importance in time (FIT).

    The importance of feature i at step t is the share of the change of the prediction at t that
    this observation explains: I = KL(p(y | x[:t + 1]) || p(y | x[:t])) minus the mean of
    KL(p(y | x[:t + 1]) || p(y | x[:t], x[t, i])), where the other features of step t are drawn from
    a generator, given the past and x[t, i]. `fn` returns logits; a single one is that of the
    positive class.

    Cost: T D `num_samples` evaluations of `fn`, and `num_samples` of the generator. For a causal
    function with an output per step whose time steps meet in forward loops alone, each evaluation
    computes one time step. Draws: `key` is required.

    Args:
        target: not used; the whole distribution is explained.
        generator: `generator(x, key)` returns the mean, of shape (T, D), and the covariance, of
            shape (T, D, D), of the step after each step of `x`, such as a trained
            `jaxattn.models.FeatureGenerator`. The covariance must be positive
            definite; otherwise values are NaN.
        num_samples: the number of draws.
        per_step: whether `fn` returns one output per step, with time on the first axis.
        length_arg: which of `args` holds the length of the valid part of `x`. Without it, and
            unless `fn` is causal, the steps after a prefix are replaced by the baseline.
        baseline: what stands after a prefix without `length_arg`: a number or an array that
            broadcasts to `x`.

    Returns:
        values 2 / (1 + exp(-5 I)) - 1 of shape (T, D), in (-1, 1); zero for the first step, which
        has no past, and for padding. `info["importance"]` is I, in nats, and `info["shift"]`, of
        shape (T,), its first term.

    Raises:
        TypeError: if `x` holds integers, or the generator cannot be called.
        ValueError: without a key or a generator, for an `x` that is not one series of shape (T, D),
            an `fn` that ends in a softmax, fewer than one sample, or a generator of another shape.

    Reference:
        Tonekaboni et al. 2020, What went wrong and when? Instance-wise feature importance for
        time-series black-box models, arXiv:2003.02821.

    Examples:
        The logit is that of the first feature, which is independent of the second.

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[:, 0]
        >>> def generator(x, key):
        ...     return jnp.zeros_like(x), jnp.tile(jnp.eye(2), (len(x), 1, 1))
        >>> x = jnp.array([[0.0, 1.0], [2.0, 1.0], [2.0, 3.0]])
        >>> options = {"generator": generator, "per_step": True, "num_samples": 100}
        >>> fit = ja.fit(fn, x, key=jax.random.key(0), **options)
        >>> print(f"{fit.info['shift'][1]:.2f}", fit.values[1, 0] > fit.values[1, 1])
        0.33 True
    """
    if key is None:
        raise ValueError("`key` is missing: fit draws observations, give key=jax.random.key(0).")
    check_count("num_samples", num_samples)
    prefixes = Prefixes.of(fn, x, args, baseline, length_arg, per_step)
    series = DrawnSeries.of(x, prefixes, generator, batch_size)
    clean = series.logits(series.x)
    before = jnp.concatenate([clean[:1], clean[:-1]])
    divergences = _conditional_divergences(series, clean, series.draws(key, num_samples))
    # The first step has no past, and padding no prediction.
    valid = (series.steps > 0) & (series.steps < prefixes.length)
    shift = jnp.where(valid, kl_divergence(clean, before), 0)
    importance = jnp.where(valid[:, None], shift[:, None] - divergences, 0)
    values = 2 * jax.nn.sigmoid(5 * importance) - 1
    info = {"importance": importance.astype(clean.dtype), "shift": shift.astype(clean.dtype)}
    whole = values.astype(series.x.dtype)
    return Attribution(jax.tree.map(lambda _: whole, x), fn(x, *args), info)


def _conditional_divergences(
    series: DrawnSeries, clean: Float[Array, "T K"], draws: Draw
) -> Float[Array, "T D"]:
    """Return the mean divergence with one feature of a step known and the others drawn."""
    x, number = series.x, draws.noise.shape[0]
    total, size = x.shape
    exact = x.astype(draws.noise.dtype)

    def of_sample(draw: Draw) -> Float[Array, "D T D"]:
        """Return each step drawn given each of its features."""
        mean, covariance = (
            jnp.concatenate([part[:1], part[:-1]]) for part in series.generator(x, draw.key)
        )
        joint = gaussian_draws(mean, covariance, draw.noise)
        variances = (covariance * jnp.eye(size, dtype=covariance.dtype)[None]).sum(-1)
        gains = covariance / variances[:, None]  # of each feature (rows) by each known one
        # A joint draw, corrected for the known feature, is a draw given that feature.
        drawn = (
            joint[:, None]
            + jnp.swapaxes(gains, 1, 2).astype(joint.dtype) * (exact - joint)[..., None]
        )
        known = jnp.eye(size, dtype=bool)[None]
        return jnp.swapaxes(jnp.where(known, exact[:, None], drawn), 0, 1).astype(x.dtype)

    causal = series.prefixes.causal
    if causal is not None:
        states = causal.states(x)

        def of_rows(rows: Float[Array, "T D"]) -> Float[Array, " T"]:
            outputs, _ = causal.advance(rows, states)
            return kl_divergence(clean, class_logits(outputs, per_step=True))

    else:

        def of_rows(rows: Float[Array, "T D"]) -> Float[Array, " T"]:
            def of_step(t: Int[Array, ""]) -> Float[Array, ""]:
                return kl_divergence(clean[t], series.logits_at(x.at[t].set(rows[t]), t))

            divergences: Array = chunked_map(of_step, series.steps, series.batch_size)
            return divergences

    def of_draw(draw: Draw) -> Float[Array, "D T"]:
        at_once = members_in_flight(series, inner=of_each)
        divergences: Array = chunked_map(of_rows, of_sample(draw), at_once)
        return divergences

    of_each = 1 if causal is not None else total
    at_once = members_in_flight(series, inner=size * of_each)
    return chunked_sum(of_draw, draws, at_once, number).T
