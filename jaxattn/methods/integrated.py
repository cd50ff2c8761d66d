"""Integrated gradients along a straight path, or along paths of time steps or words."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Scalar, Target, check_count
from jaxattn.engine.convergence import TOLERANCE, convergence
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline, floating_leaves
from jaxattn.engine.target import scored
from jaxattn.methods.paths import (
    Moving,
    PathName,
    StepPaths,
    check_vocabulary,
    integral_over_points,
    step_paths,
    temporal_paths,
    word_path,
)
from jaxattn.methods.prefixes import Prefixes, PrefixReduction, output_of_one_step
from jaxattn.methods.quadrature import (
    MORE_STEPS,
    Line,
    Quadrature,
    QuadratureRule,
    evaluations,
    integral,
)
from jaxattn.methods.temporal import series_length

#: The options that only some paths have, with their defaults.
_OF_PATHS: dict[str, dict[str, Any]] = {
    "temporal": {"reduction": "diagonal", "per_step": False, "length_arg": None},
    "discretised": {"vocabulary": None, "num_neighbors": 50},
}


def _check_path(path: str, options: dict[str, Any]) -> None:
    """Raise an error for an unknown path, or options of another one."""
    if not isinstance(path, str) or path not in get_args(PathName):
        choices = '"straight", "temporal", "sequential" or "discretised"'
        raise ValueError(f"`path` must be {choices}, got {path!r}.")
    for owner, defaults in _OF_PATHS.items():
        for name, default in defaults.items():
            value = options[name]
            given = value is not None if default is None else value != default
            if path != owner and given:
                shown = f"shape {value.shape}" if hasattr(value, "shape") else repr(value)
                raise ValueError(f'`{name}` must be left out unless path="{owner}", got {shown}.')
    if path == "discretised" and options["quadrature"] != "midpoint":
        raise ValueError(
            '`quadrature` must be left out for path="discretised", which has the trapezoidal rule, '
            f"got {options['quadrature']!r}."
        )
    reduction = options["reduction"]
    if reduction not in get_args(PrefixReduction):
        raise ValueError(f'`reduction` must be "diagonal" or "none", got {reduction!r}.')


def _evaluations(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    """Return the number of points on all paths."""
    steps = evaluations(x, output, options)
    each_step = options.get("path") in ("temporal", "sequential")
    return series_length(x) * steps if each_step else steps


@method(
    evaluations=_evaluations,
    selects_from=output_of_one_step,
    for_logits=True,
    remedy=MORE_STEPS,
)
def integrated_gradients(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    baseline: PyTree[ArrayLike] = 0.0,
    num_steps: int | Literal["auto"] = 64,
    quadrature: QuadratureRule = "midpoint",
    tolerance: ArrayLike = TOLERANCE,
    path: PathName = "straight",
    reduction: PrefixReduction = "diagonal",
    per_step: bool = False,
    length_arg: int | np.integer | None = None,
    vocabulary: ArrayLike | None = None,
    num_neighbors: int = 50,
) -> Attribution:
    """Compute integrated gradients (IG).

    Each value is the gradient of the target, averaged along the path from a baseline to the input,
    times the difference between input and baseline. The path is a straight line, or one of:

    - `"temporal"`, for series: one path for each time step t, along which x[t] alone moves, while
      earlier steps stay at `x`. The target is that of the series cut after t, as in
      `jaxattn.time_forward`. The values of x[t] sum to the change of the target at t.
    - `"sequential"`: one path for each time step, along which this step alone moves, while all
      others stay at `x`. The values of x[t] sum to the change of the target of the whole series.
    - `"discretised"`, for embeddings of words: each word visits words of a `vocabulary` on its way
      to the baseline. The next word is, of the nearest neighbours of the last, the one closest to a
      point that lies between the current point and the baseline in every dimension.

    Cost: `num_steps + 2` evaluations of `fn` and `num_steps` vector-Jacobian products per example.
    Products before the first nonlinearity, such as the input projection of a recurrent layer, are
    not repeated at each step. T times that for the temporal and sequential paths; but about
    `num_steps` for the temporal path of a causal function with an output per step whose time steps
    meet in forward loops alone: it computes one time step at each point. Deterministic.

    Args:
        baseline: where the path starts: a number or an array that broadcasts to `x`, or a pytree of
            these with the structure of `x`. Integer leaves keep their values.
        num_steps: the number of points on the path. With `"auto"` it grows from 32 until
            `info["relative_delta"]` is at most `tolerance`, for each example: threefold up to 2592
            points for `"midpoint"`, which reuses earlier points, and twofold up to 1024 for
            `"gauss_legendre"`. The result equals that of the final number. Such a call has no
            reverse-mode derivative.
        quadrature: where the points lie and how they are weighted; not for the discretised path,
            which has the trapezoidal rule.
        tolerance: the largest relative delta for `num_steps="auto"`.
        path: the path from the baseline to the input. Paths of time steps require a first axis of
            time.
        reduction: for the temporal path, `"diagonal"` for the values of x[t] at step t; `"none"`
            for those of all steps, with the mean gradients along the path of x[t].
        per_step: for the temporal path, whether `fn` returns one output per step, with time on the
            first axis. `target` then selects from the output of one step.
        length_arg: for the temporal path, which of `args` holds the length of the valid part of
            `x`. Without it, steps after t are replaced by the baseline unless `fn` is causal.
        vocabulary: for the discretised path, the embeddings of all words, of shape (V, E). The path
            has `num_steps` segments.
        num_neighbors: how many neighbours of a word are compared.

    Returns:
        values of the shape of `x`, signed, in units of the output. `info["delta"]` is the
        convergence delta: their sum minus the difference between the target at `x` and at the
        baseline; 0 for an exact integral. `info["relative_delta"]` is its magnitude relative to
        that difference; above 0.01 a `jaxattn.ConvergenceWarning` is shown, outside of `jit`.
        `info["num_steps"]` is the number of points. For a path of each time step, the target's
        changes are summed over the steps, their magnitudes for the relative delta, and
        `info["step_delta"]` has shape (T,). With `reduction="none"` the values have an axis of
        length T before that of time: values[t, s] belongs to x[s] for the target at step t.
        `info["words"]`, of shape (num_steps - 1, T), are the words that a discretised path visits.

    Raises:
        TypeError: if no leaf of `x` is floating.
        ValueError: if the target does not fit the output, the baseline does not broadcast to `x`,
            for fewer than one step, an unknown quadrature, path or reduction, an option of another
            path, or a vocabulary that is missing or does not fit `x`.

    Reference:
        Sundararajan et al. 2017, Axiomatic attribution for deep networks, arXiv:1703.01365;
        Enguehard 2023, arXiv:2306.02968 (temporal) and arXiv:2305.15853 (sequential); Sanyal and
        Ren 2021, Discretized integrated gradients for explaining language models, arXiv:2108.13654.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[0] ** 2 - 3 * x[1]
        >>> ig = ja.integrated_gradients(fn, jnp.array([1.0, 2.0]), num_steps=4)
        >>> print(ig.values, ig.info["delta"])
        [ 1. -6.] 0.0

        The outputs are sums of earlier steps, squared; x[t] accounts for their last change.

        >>> def sums(x):
        ...     return jnp.cumsum(x) ** 2
        >>> x = jnp.array([1.0, 1.0, -2.0])
        >>> ig = ja.integrated_gradients(sums, x, path="temporal", per_step=True, num_steps=4)
        >>> print(ig.values)
        [ 1.  3. -4.]
    """
    of_paths: dict[str, Any] = {"vocabulary": vocabulary, "num_neighbors": num_neighbors}
    of_paths |= {
        "quadrature": quadrature,
        "reduction": reduction,
        "per_step": per_step,
        "length_arg": length_arg,
    }
    _check_path(path, of_paths)
    start = broadcast_baseline(baseline, x, keep_integers=True)
    floating, merge = floating_leaves(x, "a gradient")
    starts, _ = floating_leaves(start, "a gradient")

    moving = Moving(floating, starts, merge, batch_size)
    rule = _Rule(quadrature, num_steps, tolerance)
    if path == "temporal":
        prefixes = Prefixes.of(fn, x, args, baseline, length_arg, per_step)
        paths = temporal_paths(prefixes, moving, target, reduction == "none")
        return _integrated_steps(paths, moving, rule, fn(x, *args), reduction == "none")
    score_of = scored(fn, target, args)
    if path == "sequential":
        steps = jnp.arange(series_length(x), dtype=jnp.int32)
        paths = step_paths(lambda leaves, t: score_of(merge(leaves))[0], steps, moving)
        return _integrated_steps(paths, moving, rule, score_of(x)[1])
    if path == "discretised":
        words = check_vocabulary(vocabulary, x, num_neighbors)
        return _integrated_words(score_of, moving, words, num_steps, num_neighbors)
    return _integrated_line(score_of, moving, rule)


class _Rule(NamedTuple):
    """The options of an integral over a line."""

    quadrature: QuadratureRule
    num_steps: int | Literal["auto"]
    tolerance: ArrayLike


#: From an input to the target and the output.
_ScoreOf: TypeAlias = Callable[[Inputs], tuple[Scalar, PyTree]]


def _integrated_line(score_of: _ScoreOf, moving: Moving, rule: _Rule) -> Attribution:
    """Integrate along the straight line from the baseline to the input."""
    merge, distances = moving.merge, moving.distances

    def score_at(*leaves: Array) -> Scalar:
        return score_of(merge(list(leaves)))[0]

    line = Line.of(score_at, moving.starts, distances)
    score, output = score_of(merge(moving.leaves))
    score_start, _ = score_of(merge(moving.starts))

    def converged(means: list[Array]) -> dict[str, Array]:
        parts = [(d.astype(g.dtype) * g) for d, g in zip(line.along, means, strict=True)]
        total = jnp.stack([part.sum().astype(score.dtype) for part in parts]).sum()
        return convergence(total, score, score_start)

    def integrate(nodes: Quadrature) -> list[Array]:
        return line.integrate(nodes, moving.batch_size)

    means, steps = integral(integrate, converged, *rule)
    slopes = line.to_input(means)
    products = [d.astype(g.dtype) * g for d, g in zip(distances, slopes, strict=True)]
    values = merge(products, lambda leaf: jnp.zeros(leaf.shape, score.dtype))
    total = jnp.stack([leaf.sum(dtype=score.dtype) for leaf in products]).sum()
    info = convergence(total, score, score_start)
    return Attribution(values, output, {**info, "num_steps": steps})


def _integrated_steps(
    paths: StepPaths, moving: Moving, rule: _Rule, output: PyTree, every_pair: bool = False
) -> Attribution:
    """Integrate along a path for each time step."""

    def converged(slopes: list[Array]) -> dict[str, Array]:
        return paths.convergence(slopes, moving.distances)

    slopes, steps = integral(paths.integrate, converged, *rule)
    lead = paths.scores.shape if every_pair else ()
    distances = [jnp.broadcast_to(d, (*lead, *d.shape)) for d in moving.distances]
    products = [d.astype(g.dtype) * g for d, g in zip(distances, slopes, strict=True)]
    values = moving.merge(
        products, lambda leaf: jnp.zeros((*lead, *leaf.shape), paths.scores.dtype)
    )
    return Attribution(values, output, {**converged(slopes), "num_steps": steps})


def _integrated_words(
    score_of: _ScoreOf,
    moving: Moving,
    vocabulary: Array,
    num_steps: int | Literal["auto"],
    num_neighbors: int,
) -> Attribution:
    """Integrate along the path through words of a vocabulary."""
    number = check_count("num_steps", num_steps)
    (x,), (start,) = moving.leaves, moving.starts
    path = word_path(x, start, vocabulary, number, num_neighbors)

    def gradient(point: Array) -> Array:
        return jax.grad(lambda leaf: score_of(moving.merge([leaf]))[0])(point)

    values = integral_over_points(gradient, path.points, moving.batch_size)
    score, output = score_of(moving.merge([x]))
    score_start, _ = score_of(moving.merge([start]))
    info = convergence(values.sum(dtype=score.dtype), score, score_start)
    info |= {"num_steps": jnp.asarray(number, jnp.int32), "words": path.words}
    return Attribution(moving.merge([values]), output, info)
