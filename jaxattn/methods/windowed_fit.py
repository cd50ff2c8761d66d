"""Windowed feature importance in time: the effect of an observation on later predictions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_count
from jaxattn.engine.batch import chunked_map, chunked_sum
from jaxattn.engine.method import method
from jaxattn.jaxpr.reuse.causal_steps import CausalSteps, States
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


def _windowed_evaluations(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    window = check_count("window", options.get("window", 10))
    return evaluations_of_draws(x, output, options) * window


@method(
    evaluations=_windowed_evaluations, selects_from=output_of_one_step, backward=False, draws=True
)
def windowed_fit(
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
    window: int = 10,
    num_samples: int = 10,
    per_step: bool = False,
    length_arg: int | np.integer | None = None,
    baseline: PyTree[ArrayLike] = 0.0,
) -> Attribution:
    """Compute windowed feature importance in time (WinIT).

    The importance of feature i at step t for the prediction at a later step s is the difference of
    two divergences: KL(p(y | x[:s + 1]) || p(y | x[:s + 1] without x[t:s + 1, i])) minus the same
    without x[t + 1:s + 1, i]. A feature is left out by draws from a generator, one step after the
    other. The value is the mean over the predictions at s from t to t + `window` - 1. `fn` returns
    logits; a single one is that of the positive class.

    Cost: T D `window` `num_samples` evaluations of `fn` and of the generator. If both are causal
    functions with an output per step whose time steps meet in forward loops alone, each evaluation
    computes one time step. Draws: `key` is required.

    Args:
        target: not used; the whole distribution is explained.
        generator: `generator(x, key)` returns the mean, of shape (T, D), and the covariance, of
            shape (T, D, D), of the step after each step of `x`, such as a trained
            `jaxattn.models.FeatureGenerator`. The covariance must be positive
            definite; otherwise values are NaN.
        window: the number of predictions that an observation may affect.
        num_samples: the number of draws.
        per_step: whether `fn` returns one output per step, with time on the first axis.
        length_arg: which of `args` holds the length of the valid part of `x`. Without it, and
            unless `fn` is causal, the steps after a prefix are replaced by the baseline.
        baseline: what stands after a prefix without `length_arg`: a number or an array that
            broadcasts to `x`.

    Returns:
        values of shape (T, D), in nats; zero for the first step, which has no past, and for
        padding. `info["divergence"]`, of shape (window, T, D), holds the divergences without
        feature i from step t on, for the prediction at t + w; zero beyond the end.

    Raises:
        TypeError: if `x` holds integers, or the generator cannot be called.
        ValueError: without a key or a generator, for an `x` that is not one series of shape (T, D),
            an `fn` that ends in a softmax, fewer than one sample, a generator of another shape, or
            a window that is longer than the series.

    Reference:
        Leung et al. 2023, Temporal dependencies in feature importance for time series prediction,
        arXiv:2107.14317.

    Examples:
        The last step has a logit that depends on the first feature of the step before.

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return jnp.array([0.0, 0.0, 1.0]) * x[1, 0]
        >>> def generator(x, key):
        ...     return jnp.zeros_like(x), 0.01 * jnp.tile(jnp.eye(2), (len(x), 1, 1))
        >>> x = jnp.array([[0.0, 1.0], [2.0, 1.0], [2.0, 3.0]])
        >>> options = {"generator": generator, "per_step": True, "window": 2}
        >>> fit = ja.windowed_fit(fn, x, key=jax.random.key(0), **options)
        >>> print(fit.values.round(1) + 0)
        [[0.  0. ]
         [0.2 0. ]
         [0.  0. ]]
    """
    if key is None:
        raise ValueError(
            "`key` is missing: windowed_fit draws observations, give key=jax.random.key(0)."
        )
    check_count("num_samples", num_samples)
    prefixes = Prefixes.of(fn, x, args, baseline, length_arg, per_step)
    series = DrawnSeries.of(x, prefixes, generator, batch_size)
    total = prefixes.total
    if check_count("window", window) > total:
        raise ValueError(f"`window` must be at most {total}, the number of steps, got {window}.")
    clean, draws = series.logits(series.x), series.draws(key, num_samples)
    by_offset = _windowed_divergences(series, clean, draws, window)
    ends = series.steps[None] + jnp.arange(window, dtype=jnp.int32)[:, None]
    counts = (series.steps[None] > 0) & (ends < prefixes.length)
    by_offset = jnp.where(counts[..., None], by_offset, 0)
    # Without the feature from the next step on, for the same prediction.
    later = jnp.concatenate([jnp.zeros_like(by_offset[:1]), jnp.roll(by_offset, -1, 1)[:-1]])
    number = jnp.maximum(counts.sum(0), 1).astype(by_offset.dtype)[:, None]
    values = (jnp.where(counts[..., None], by_offset - later, 0).sum(0) / number).astype(
        series.x.dtype
    )
    info = {"divergence": by_offset.astype(clean.dtype)}
    return Attribution(jax.tree.map(lambda _: values, x), fn(x, *args), info)


def _windowed_divergences(
    series: DrawnSeries, clean: Float[Array, "T K"], draws: Draw, window: int
) -> Float[Array, "window T D"]:
    """Return the mean divergences without a feature from a step on, by the offset of the output."""
    x, generator, number = series.x, series.generator, draws.noise.shape[0]
    size = x.shape[1]
    causal = series.prefixes.causal
    generated = None
    if causal is not None:
        generated = CausalSteps.of(lambda x: tuple(generator(x, draws.key[0])), x)
    features = jnp.arange(size, dtype=jnp.int32)
    if causal is None or generated is None:
        whole = _Whole(series, clean, window)

        def of_draw(draw: Draw) -> Array:
            return chunked_map(lambda i: whole.divergences(draw, i), features, 1)

        at_once: int | None = 1
    else:
        rolling = _Rolling(series, clean, window, causal)

        def of_draw(draw: Draw) -> Array:
            of_key = CausalSteps.of(lambda x: tuple(generator(x, draw.key)), x)
            assert of_key is not None  # another key changes no dependence
            run = rolling.starting_with(draw, of_key)
            return chunked_map(run, features, members_in_flight(series, inner=1))

        at_once = members_in_flight(series, inner=size)
    return jnp.moveaxis(chunked_sum(of_draw, draws, at_once, number), 0, -1)


class _Whole(NamedTuple):
    """Divergences by evaluations of whole series, one for each start, feature and offset."""

    series: DrawnSeries
    clean: Float[Array, "T K"]
    window: int

    def divergences(self, draw: Draw, i: Int[Array, ""]) -> Float[Array, "window T"]:
        """Return the divergences without feature `i`."""
        series, total = self.series, self.series.prefixes.total

        def of_start(start: Int[Array, ""]) -> Float[Array, " window"]:
            def step(x: Array, offset: Int[Array, ""]) -> tuple[Array, Array]:
                t = jnp.minimum(start + offset, total - 1)
                past = jnp.maximum(t - 1, 0)
                mean, covariance = (part[past] for part in series.generator(x, draw.key))
                new = gaussian_draws(mean, covariance, draw.noise[t])[i].astype(x.dtype)
                x = x.at[t, i].set(new)
                return x, kl_divergence(self.clean[t], series.logits_at(x, t))

            offsets = jnp.arange(self.window, dtype=jnp.int32)
            return jax.lax.scan(step, series.x, offsets)[1]

        divergences: Array = chunked_map(of_start, series.steps, series.batch_size)
        return divergences.T


class _Rolling(NamedTuple):
    """Divergences of causal functions: all starts advance by one time step at each offset."""

    series: DrawnSeries
    clean: Float[Array, "T K"]
    window: int
    classifier: CausalSteps

    def starting_with(
        self, draw: Draw, generator: CausalSteps
    ) -> Callable[[Int[Array, ""]], Float[Array, "window T"]]:
        """Return the function from a feature to the divergences without it, for one draw."""
        x, size = self.series.x, self.series.x.shape[1]
        states = self.classifier.states(x)
        (mean, covariance), after = generator.advance(x, generator.states(x))
        first = states, _next_rows(after), *_next_rows((mean, covariance))

        def step(
            state: tuple[States, States, Array, Array], i: Int[Array, ""]
        ) -> tuple[tuple[States, States, Array, Array], Array]:
            of_classifier, of_generator, mean, covariance = state
            drawn = gaussian_draws(mean, covariance, draw.noise).astype(x.dtype)
            without = jnp.arange(size, dtype=jnp.int32)[None] == i
            rows = jnp.where(without, drawn, x)
            outputs, of_classifier = self.classifier.advance(rows, of_classifier)
            divergences = kl_divergence(self.clean, class_logits(outputs, per_step=True))
            distribution, of_generator = generator.advance(rows, of_generator)
            advanced = of_classifier, of_generator, *distribution
            return _next_rows(advanced), divergences

        def run(i: Int[Array, ""]) -> Float[Array, "window T"]:
            _, by_row = jax.lax.scan(lambda s, _: step(s, i), first, length=self.window)
            # Row r at offset w belongs to the start r - w.
            offsets = jnp.arange(self.window, dtype=jnp.int32)
            return jax.vmap(lambda row, w: jnp.roll(row, -w))(by_row, offsets)

        return run


def _next_rows(tree: PyTree) -> PyTree:
    """Move what was computed at each time step to the next one."""
    return jax.tree.map(lambda leaf: jnp.roll(leaf, 1, 0), tree)
