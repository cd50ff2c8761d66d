"""Tables of methods by metrics."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import rich
from jax.sharding import Mesh
from jaxtyping import Bool, Float, PyTree
from rich.markup import escape
from rich.table import Table

from jaxattn._types import Attribution, Inputs, Method, RandomKey, Target, check_bool
from jaxattn.engine.explain import explain
from jaxattn.engine.options import name_of, without_partial
from jaxattn.engine.target import Score
from jaxattn.metrics.conciseness import complexity, sparseness
from jaxattn.metrics.direction import Direction, properties
from jaxattn.metrics.faithfulness import deletion, insertion
from jaxattn.metrics.perturbation import comprehensiveness, cross_entropy, log_odds, sufficiency
from jaxattn.metrics.randomisation import Randomisation
from jaxattn.metrics.score_curves import Curve
from jaxattn.metrics.truth import aup, auprc, aur, auroc, entropy, information

Metric = Callable[..., Any]

_WITH_TRUTH: tuple[Metric, ...] = (auprc, auroc, aup, aur, information, entropy)
_WITHOUT_TRUTH: tuple[Metric, ...] = (
    deletion,
    insertion,
    comprehensiveness,
    sufficiency,
    sparseness,
    complexity,
)
_ARROWS: dict[Direction, str] = {"higher": "↑", "lower": "↓", "zero": "→0"}


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """Metrics of several methods, the best method by the first metric first.

    A notebook shows the table.

    Attributes:
        methods: the names of the methods.
        metrics: the names of the metrics.
        better: the direction in which each metric is better.
        values: the metrics of each method for each example.
    """

    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    better: tuple[Direction, ...]
    values: Float[np.ndarray, "methods metrics B"]

    @property
    def mean(self) -> Float[np.ndarray, "methods metrics"]:
        """The mean over the examples for which a metric is defined."""
        return self.values.sum(2, where=self._defined) / self._number

    @property
    def standard_error(self) -> Float[np.ndarray, "methods metrics"]:
        """The standard error of the mean; NaN for fewer than two examples."""
        squares = np.square(self.values - self.mean[..., None])
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = squares.sum(2, where=self._defined) / np.maximum(self._number - 1, 0)
            return np.sqrt(variance / self._number)

    @property
    def best(self) -> Bool[np.ndarray, "methods metrics"]:
        """Whether a method has the best mean of a metric, or of its magnitude if 0 is best."""
        highest = np.where(np.isnan(self.merits), -np.inf, self.merits).max(0)
        return (self.merits == highest) & ~np.isnan(self.merits)

    @property
    def merits(self) -> Float[np.ndarray, "methods metrics"]:
        """Means of numbers that are higher where a metric is better: errors do not cancel."""
        by_metric = zip(self.better, self.values.swapaxes(0, 1), strict=True)
        merits = np.stack([_merit(better, values) for better, values in by_metric], 1)
        return merits.sum(2, where=self._defined) / self._number

    def __repr__(self) -> str:
        return (
            f"Comparison(methods={self.methods}, metrics={self.metrics}, "
            f"examples={self.values.shape[2]})"
        )

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def to_markdown(self) -> str:
        """Return the table in Markdown: means with standard errors, the best ones in bold type."""
        rows = [["method", *self._titles], ["---"] * (1 + len(self.metrics))]
        rows += [
            [name, *(f"**{text}**" if best else text for text, best in cells)]
            for name, cells in self._rows()
        ]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def __rich__(self) -> Table:
        """Return the table for a terminal."""
        table = Table("method", *map(escape, self._titles))
        for name, cells in self._rows():
            table.add_row(
                escape(name), *(f"[bold]{text}[/]" if best else text for text, best in cells)
            )
        return table

    @property
    def _defined(self) -> Bool[np.ndarray, "methods metrics B"]:
        return ~np.isnan(self.values)

    @property
    def _number(self) -> Float[np.ndarray, "methods metrics"]:
        """The number of examples for which a metric is defined; NaN for none."""
        number = self._defined.sum(2).astype(float)
        return np.where(number > 0, number, np.nan)

    @property
    def _titles(self) -> list[str]:
        return [f"{n} {_ARROWS[b]}" for n, b in zip(self.metrics, self.better, strict=True)]

    def _rows(self) -> list[tuple[str, list[tuple[str, bool]]]]:
        """Return for each method its name and cells: a text, and whether it is the best."""
        rows = []
        for i, name in enumerate(self.methods):
            numbers = zip(self.mean[i], self.standard_error[i], self.best[i], strict=True)
            cells = [
                (f"{mean:.3g}" + ("" if np.isnan(error) else f" ± {error:.2g}"), bool(best))
                for mean, error, best in numbers
            ]
            rows.append((name, cells))
        return rows


def table(
    methods: Mapping[str, Method | Attribution] | Sequence[Method],
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target = None,
    metrics: Mapping[str, Metric] | Sequence[Metric] | None = None,
    *,
    truth: PyTree[Any] = None,
    score: Score | None = None,
    key: RandomKey | None = None,
    args: tuple[Any, ...] = (),
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    show: bool = True,
) -> Comparison:
    """Compare methods by several metrics, and print the table.

    The best method by the first metric comes first. The best mean of each metric is marked; see
    `properties` for the direction of a metric. Options of a method or a metric are bound by
    `functools.partial`.

    Cost: one explanation per method and example, and the cost of each metric.

    Args:
        methods: the methods, or a dict of methods or attributions by name.
        fn: maps one example to an output, as for `jaxattn.explain`.
        xs: the examples, each leaf with a leading axis of length B.
        targets: the entry of the output that is explained, as for `jaxattn.explain`.
        metrics: the metrics, or a dict of metrics by name. By default `auprc`, `auroc`, `aup`,
            `aur`, `information` and `entropy` if `truth` is given, otherwise `deletion`,
            `insertion`, `comprehensiveness`, `sufficiency`, `sparseness` and `complexity`.
        truth: which features are true, for metrics that compare with the truth.
        score: the score of all metrics that have one: `"logit"`, `"probability"` or
            `"log_probability"`; by default that of each metric. `log_odds` and `cross_entropy` take
            the logarithm of a probability.
        key: a random key, for methods and metrics that draw.
        args: further inputs of `fn`, each leaf with a leading axis of length B.
        batch_size: how many evaluations of `fn` are in flight.
        mesh: devices over which the examples are distributed.
        show: whether to print the table.

    Returns:
        a `Comparison`: the numbers of all examples, means, standard errors, and the table as
        Markdown. The area of a curve, the mean over several fractions, and the mean over layers
        count as the number of an example.

    Raises:
        TypeError: for a metric that is not declared by `metric`, or an attribution where a metric
            requires a method.
        ValueError: for no methods or metrics, two of one name, or a metric that requires a `truth`
            or a `key` which is missing.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return 3 * x[0] + x[1] ** 2
        >>> xs = jnp.array([[1.0, 1.0, 2.0], [0.5, 1.0, 3.0]])
        >>> methods = {"gradient": ja.gradient, "input": ja.Attribution(xs, xs)}
        >>> metrics = [ja.metrics.deletion, ja.metrics.sparseness]
        >>> found = ja.metrics.table(methods, fn, xs, None, metrics, score="logit", show=False)
        >>> print(found.to_markdown())
        | method | deletion ↓ | sparseness ↑ |
        | --- | --- | --- |
        | gradient | **0.875 ± 0.12** | **0.4 ± 0** |
        | input | 2.04 ± 0.29 | 0.269 ± 0.1 |
    """
    check_bool("show", show)
    if metrics is None:
        metrics = _WITHOUT_TRUTH if truth is None else _WITH_TRUTH
    measures, explained = _by_name("metrics", metrics), _by_name("methods", methods)
    better = tuple(properties(measure).better for measure in measures.values())
    shared: dict[str, Any] = {"args": args, "key": key}
    shared |= {"batch_size": batch_size, "mesh": mesh}
    given = shared | ({} if score is None else {"score": score})
    numbers = []
    for name, method in explained.items():
        attribution = method
        if not isinstance(method, Attribution):
            attribution = explain(method, fn, xs, targets, **shared)
        inputs = {
            "method": None if isinstance(method, Attribution) else method,
            "fn": fn,
            "model": fn,
            "xs": xs,
            "targets": targets,
            "attribution": attribution,
            "truth": truth,
        }
        numbers.append([_measured(name, m, inputs, given) for m in measures.values()])
    values = np.asarray(numbers, float)
    found = Comparison(tuple(explained), tuple(measures), better, values)
    merit = found.merits[:, 0]
    order = np.argsort(-np.where(np.isnan(merit), -np.inf, merit), kind="stable")
    found = dataclasses.replace(
        found, methods=tuple(found.methods[i] for i in order), values=values[order]
    )
    if show:
        rich.print(found)
    return found


def _by_name(argument: str, given: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """Return methods or metrics by their names."""
    if callable(given):
        raise TypeError(f"`{argument}` must be a list or a dict, got {name_of(given)}.")
    if isinstance(given, Mapping):
        found = dict(given)
    else:
        names = [name_of(each) for each in given]
        if len(set(names)) < len(names):
            raise ValueError(f"`{argument}` must be a dict if names occur twice, got {names}.")
        found = dict(zip(names, given, strict=True))
    if not found:
        raise ValueError(f"`{argument}` must hold at least one of them, got {given!r}.")
    for each in found.values():
        if not callable(each) and not isinstance(each, Attribution):
            raise TypeError(f"`{argument}` must hold functions or attributions, got {each!r}.")
    return found


def _measured(
    name: str, measure: Metric, inputs: dict[str, Any], given: dict[str, Any]
) -> Float[np.ndarray, " B"]:
    """Return one number per example of a metric of one method."""
    parameters = inspect.signature(measure).parameters
    positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    label = name_of(measure)
    for required in ("truth", "method"):
        if required in positional and inputs[required] is None:
            if required == "truth":
                raise ValueError(f"`truth` is missing: {label} compares with it.")
            raise TypeError(
                f"`methods` must hold methods for {label}, got an attribution {name!r}."
            )
    draws = "key" in parameters and parameters["key"].default is inspect.Parameter.empty
    if draws and given["key"] is None:
        raise ValueError(f"`key` is missing: {label} draws, give key=jax.random.key(0).")
    bound = measure.keywords if isinstance(measure, functools.partial) else {}
    options = {n: v for n, v in given.items() if n in parameters and n not in bound}
    if (
        without_partial(measure) in (cross_entropy, log_odds)
        and options.get("score") == "probability"
    ):
        del options["score"]
    found = measure(*(inputs[n] for n in positional), **options)
    if isinstance(found, Curve):
        found = found.auc
    if isinstance(found, Randomisation):
        found = found.mean
    array = np.asarray(found.astype(jnp.float32), float)
    if array.ndim == 0:
        raise ValueError(f"`metrics` must return a number per example, got one number of {label}.")
    return array.reshape(array.shape[0], -1).mean(1)


def _merit(
    better: Direction, values: Float[np.ndarray, "methods B"]
) -> Float[np.ndarray, "methods B"]:
    """Return numbers that are higher where a value is better."""
    if better == "zero":
        return -np.abs(values)
    return values if better == "higher" else -values
