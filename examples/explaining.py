"""Explain a batch with every method, measure the time, and evaluate the attributions."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxattn as ja
from examples.training import bar, predict

Explainer = Callable[[np.ndarray, np.ndarray], ja.Attribution]


def every_method(
    model: nnx.Module, *, window: int | tuple[int, ...], stride: int | tuple[int, ...],
    mask_steps: int,
) -> dict[str, Explainer]:  # fmt: skip
    """Return every method as a function of inputs (B, T, D) and labels (B,)."""

    def method(method, **options):
        return lambda xs, labels: ja.explain(method, model, xs, labels, **options)

    def temporal(direction):
        def explain(xs, labels):
            lengths = np.full(len(xs), xs.shape[1], np.int32)
            return ja.explain(
                ja.temporal_output_score, model, xs, labels,
                args=(lengths,), length_arg=0, direction=direction,
            )  # fmt: skip

        return explain

    return {
        "gradient": method(ja.gradient),
        "saliency": method(ja.saliency),
        "input × gradient": method(ja.input_x_gradient),
        "integrated gradients": method(ja.integrated_gradients, num_steps=64),
        "smooth grad": method(ja.smooth_grad, num_samples=32, key=jax.random.key(0)),
        "Jacobian": lambda xs, labels: ja.explain(ja.jacobian, model, xs),
        "occlusion": method(ja.occlusion, window=window, stride=stride),
        "temporal score, forward": temporal("forward"),
        "temporal score, backward": temporal("backward"),
        "LRP": method(ja.lrp),
        "DeepLIFT": method(ja.deep_lift),
        "learned mask": method(ja.learned_mask, num_steps=mask_steps),
    }


def select_examples(
    labels: np.ndarray, correct: np.ndarray, classes: Sequence[int], per_class: int = 1
) -> np.ndarray:
    """Return the first rows of each class, correctly classified rows first.

    A class without rows is represented by rows of other classes.
    """
    order = np.argsort(~correct, kind="stable")
    members = [order[labels[order] == k] for k in classes]
    return np.concatenate([(rows if len(rows) else order)[:per_class] for rows in members])


def scores_over_time(model: nnx.Module, x: np.ndarray, classes: int, direction: str) -> np.ndarray:
    """Return the probability of every class (T, K) for each prefix or suffix of `x` (T, D)."""
    copies = np.broadcast_to(x, (classes, *x.shape))
    lengths = np.full(classes, len(x), np.int32)
    targets = np.arange(classes, dtype=np.int32)
    attribution = ja.explain(
        ja.temporal_output_score, model, copies, targets,
        args=(lengths,), length_arg=0, direction=direction,
    )  # fmt: skip
    return np.asarray(attribution.values).T


class TimedAttribution(NamedTuple):
    """The attributions of all inputs, and the seconds for the first and the second half."""

    attribution: ja.Attribution
    first_seconds: float
    next_seconds: float


def explain_all(
    methods: Mapping[str, Explainer], xs: np.ndarray, labels: np.ndarray
) -> dict[str, TimedAttribution]:
    """Explain an even number of inputs in two halves; only the first half compiles."""
    half = len(xs) // 2
    explained = {}
    with bar() as progress:
        task = progress.add_task("explaining", total=len(methods), note="")
        for name, method in methods.items():
            progress.update(task, note=name)
            parts, seconds = [], []
            for rows in (slice(half), slice(half, 2 * half)):
                start = time.perf_counter()
                parts.append(jax.block_until_ready(method(xs[rows], labels[rows])))
                seconds.append(time.perf_counter() - start)
            attribution = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
            explained[name] = TimedAttribution(attribution, *seconds)
            progress.advance(task)
        progress.update(task, note="")
    return explained


def feature_values(
    explained: Mapping[str, TimedAttribution],
    labels: np.ndarray,
    shape: tuple[int, ...],
    classes: int,
) -> dict[str, np.ndarray]:
    """Return one value per feature (B, T, D) for each method, for rankings of features.

    For the Jacobian, this is the row of the label, which is the gradient. For the temporal score,
    it is the increase at each time step, starting from `1 / classes`, for all features of a step.
    """
    values = {name: np.asarray(e.attribution.values) for name, e in explained.items()}
    if "Jacobian" in values:
        values["Jacobian"] = values["Jacobian"][np.arange(len(labels)), labels]
    for direction, side in (("forward", "prepend"), ("backward", "append")):
        if (name := f"temporal score, {direction}") in values:
            sign = 1 if direction == "forward" else -1
            rise = sign * np.diff(values[name], axis=1, **{side: np.float32(1 / classes)})
            values[name] = np.broadcast_to(rise[..., None], shape)
    return values


def deletion_curves(
    model: nnx.Module, xs: np.ndarray, labels: np.ndarray, values: Mapping[str, np.ndarray]
) -> dict[str, ja.metrics.Curve]:
    """Return the deletion curves of each method and of a random attribution."""
    noise = np.random.default_rng(0).normal(size=xs.shape).astype(xs.dtype)
    with bar() as progress:
        task = progress.add_task("deletion curves", total=len(values) + 1, note="")
        curves = {}
        for name, attribution in {**values, "random": noise}.items():
            curves[name] = ja.metrics.deletion(model, xs, labels, jnp.asarray(attribution))
            progress.advance(task)
    return curves


class EqualArea(NamedTuple):
    """The mean probability of the label before and after the deletion of equally many features.

    Attributes:
        features: mean number of deleted features.
        before: mean probability without deletion.
        after: by ranking, the mean probability after the deletion.
    """

    features: float
    before: float
    after: dict[str, float]


def at_equal_area(
    model: nnx.Module,
    xs: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    compared: Mapping[str, np.ndarray],
) -> EqualArea:
    """Delete as many features of each input as the learned mask's area, by each ranking."""
    size = xs[0].size
    flat = mask.reshape(-1, size)
    counts = np.ceil(flat.sum(1)).astype(int)

    def score(inputs):
        return float(predict(model, inputs)[np.arange(len(labels)), labels].mean())

    def after(values):
        order = np.argsort(-values.reshape(-1, size), axis=1, kind="stable")
        ranks = np.argsort(order, axis=1, kind="stable")
        return score(np.where((ranks < counts[:, None]).reshape(xs.shape), np.float32(0), xs))

    rankings = {"learned mask": mask, **compared}
    return EqualArea(float(counts.mean()), score(xs), {n: after(v) for n, v in rankings.items()})


COMPARED = (
    "saliency",
    "gradient",
    "input × gradient",
    "integrated gradients",
    "LRP",
    "DeepLIFT",
    "occlusion",
)


class Evaluation(NamedTuple):
    """Attributions of every method and measures of their faithfulness.

    Attributes:
        explained: by method, the attributions and the times.
        values: by method, one value per feature, (B, T, D).
        curves: by method, and for a random ranking, the deletion curves.
        area: the comparison with the learned mask.
    """

    explained: dict[str, TimedAttribution]
    values: dict[str, np.ndarray]
    curves: dict[str, ja.metrics.Curve]
    area: EqualArea


def evaluate(
    model: nnx.Module,
    xs: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    window: int | tuple[int, ...],
    stride: int | tuple[int, ...],
    mask_steps: int,
) -> Evaluation:
    """Explain an even number of inputs with every method and compute the deletion metrics."""
    methods = every_method(model, window=window, stride=stride, mask_steps=mask_steps)
    explained = explain_all(methods, xs, labels)
    values = feature_values(explained, labels, xs.shape, classes)
    curves = deletion_curves(model, xs, labels, values)
    compared = {name: values[name] for name in COMPARED}
    area = at_equal_area(model, xs, labels, values["learned mask"], compared)
    return Evaluation(explained, values, curves, area)
