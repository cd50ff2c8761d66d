"""Explain a batch with every method, with its time, and judge what they say."""

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
    """Every method of the library as a function of inputs (B, T, D) and labels (B,)."""

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


def pick(
    labels: np.ndarray, right: np.ndarray, classes: Sequence[int], each: int = 1
) -> np.ndarray:
    """The first rows of each class, those answered rightly before others; any if it has none."""
    order = np.argsort(~right, kind="stable")
    members = [order[labels[order] == k] for k in classes]
    return np.concatenate([(rows if len(rows) else order)[:each] for rows in members])


def scores_over_time(model: nnx.Module, x: np.ndarray, classes: int, direction: str) -> np.ndarray:
    """The probability of every class (T, K) after reading a part of one input (T, D)."""
    copies = np.broadcast_to(x, (classes, *x.shape))
    lengths = np.full(classes, len(x), np.int32)
    every = np.arange(classes, dtype=np.int32)
    found = ja.explain(
        ja.temporal_output_score, model, copies, every,
        args=(lengths,), length_arg=0, direction=direction,
    )  # fmt: skip
    return np.asarray(found.values).T


class Explained(NamedTuple):
    """What a method says about all inputs, and how long each half of them took."""

    attribution: ja.Attribution
    first_seconds: float
    again_seconds: float


def explain_all(
    methods: Mapping[str, Explainer], xs: np.ndarray, labels: np.ndarray
) -> dict[str, Explained]:
    """Explains an even number of inputs in two halves, of which only the first compiles."""
    half = len(xs) // 2
    found = {}
    with bar() as progress:
        task = progress.add_task("explaining", total=len(methods), note="")
        for name, method in methods.items():
            progress.update(task, note=name)
            parts, seconds = [], []
            for rows in (slice(half), slice(half, 2 * half)):
                start = time.perf_counter()
                parts.append(jax.block_until_ready(method(xs[rows], labels[rows])))
                seconds.append(time.perf_counter() - start)
            whole = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
            found[name] = Explained(whole, *seconds)
            progress.advance(task)
        progress.update(task, note="")
    return found


def cell_values(
    explained: Mapping[str, Explained], labels: np.ndarray, shape: tuple[int, ...], classes: int
) -> dict[str, np.ndarray]:
    """A value for each cell (B, T, D): what each method says, so that all can be ranked alike.

    Of the Jacobian it is the row of the label, which is the gradient. Of the temporal score it is
    the rise at each step, beginning from chance, the same for all cells of a step.
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
    """The deletion curve of each method, and of a random attribution."""
    noise = np.random.default_rng(0).normal(size=xs.shape).astype(xs.dtype)
    with bar() as progress:
        task = progress.add_task("deleting what they name", total=len(values) + 1, note="")
        curves = {}
        for name, cells in {**values, "random": noise}.items():
            curves[name] = ja.metrics.deletion(model, xs, labels, jnp.asarray(cells))
            progress.advance(task)
    return curves


class EqualArea(NamedTuple):
    """The mean probability of the label, before and after equally many cells are deleted."""

    cells: float
    before: float
    after: dict[str, float]


def at_equal_area(
    model: nnx.Module,
    xs: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    rivals: Mapping[str, np.ndarray],
) -> EqualArea:
    """Deletes in each input as many cells as the learned mask's area, by each ranking."""
    size = xs[0].size
    flat = mask.reshape(-1, size)
    counts = np.ceil(flat.sum(1)).astype(int)

    def score(inputs):
        return float(predict(model, inputs)[np.arange(len(labels)), labels].mean())

    def after(values):
        order = np.argsort(-values.reshape(-1, size), axis=1, kind="stable")
        ranks = np.argsort(order, axis=1, kind="stable")
        return score(np.where((ranks < counts[:, None]).reshape(xs.shape), np.float32(0), xs))

    rankings = {"learned mask": mask, **rivals}
    return EqualArea(float(counts.mean()), score(xs), {n: after(v) for n, v in rankings.items()})


RIVALS = (
    "saliency",
    "gradient",
    "input × gradient",
    "integrated gradients",
    "LRP",
    "DeepLIFT",
    "occlusion",
)


class Judged(NamedTuple):
    """What every method says about some inputs, and how far it can be trusted."""

    explained: dict[str, Explained]
    values: dict[str, np.ndarray]
    curves: dict[str, ja.metrics.Curve]
    area: EqualArea


def judge(
    model: nnx.Module,
    xs: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    window: int | tuple[int, ...],
    stride: int | tuple[int, ...],
    mask_steps: int,
) -> Judged:
    """Explains an even number of inputs with every method, and deletes what they name."""
    methods = every_method(model, window=window, stride=stride, mask_steps=mask_steps)
    explained = explain_all(methods, xs, labels)
    values = cell_values(explained, labels, xs.shape, classes)
    curves = deletion_curves(model, xs, labels, values)
    rivals = {name: values[name] for name in RIVALS}
    area = at_equal_area(model, xs, labels, values["learned mask"], rivals)
    return Judged(explained, values, curves, area)
