"""Compare the automatic batch size with every power of two: `python -m benchmarks.chunks --help`.

Each power of two is measured as `batch_size`, and so is `None`. The sizes take turns, because a
busy or throttled machine then slows all of them. Each program is compiled before the first turn.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

import jaxattn as ja
from benchmarks import report
from benchmarks.progress import track
from jaxattn.engine.explain import prepare


class Series(nnx.Module):
    """An LSTM and a linear readout of its last hidden state or of that of each time step."""

    def __init__(self, features: int, units: int, classes: int, **options: Any):
        self.per_step = options.pop("per_step", False)
        rngs = nnx.Rngs(0)
        self.lstm = ja.nn.LSTM(features, units, rngs=rngs, **options)
        directions = 2 if options.get("bidirectional") else 1
        self.readout = nnx.Linear(directions * units, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        outputs, state = self.lstm(x)
        return self.readout(outputs if self.per_step else state)


class Attending(nnx.Module):
    """One layer of self-attention and a mean over the time steps."""

    def __init__(self, features: int, units: int, classes: int):
        rngs = nnx.Rngs(0)
        self.project = nnx.Linear(features, units, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, units, decode=False, rngs=rngs)
        self.readout = nnx.Linear(units, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        rows = self.project(x)
        return self.readout((rows + self.attention(rows)).mean(0))


class Dense(nnx.Module):
    """A perceptron with two hidden layers."""

    def __init__(self, features: int, units: int, classes: int):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(features, units, rngs=rngs)
        self.second = nnx.Linear(units, units, rngs=rngs)
        self.readout = nnx.Linear(units, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.readout(jax.nn.relu(self.second(jax.nn.relu(self.first(x.ravel())))))


class Convolving(nnx.Module):
    """Two convolutions and a mean over the positions."""

    def __init__(self, classes: int):
        rngs = nnx.Rngs(0)
        self.first = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.readout = nnx.Linear(32, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        maps = jax.nn.relu(self.second(jax.nn.relu(self.first(x[..., None]))))
        return self.readout(maps.mean((0, 1)))


class Cell(NamedTuple):
    """A method, a network, the number of examples, the shape of one, and the method's options."""

    method: str
    network: Callable[[], nnx.Module]
    batch: int
    shape: tuple[int, ...]
    options: dict[str, Any]


def _image(units: int) -> Callable[[], nnx.Module]:
    return lambda: Series(28, units, 10, bidirectional=True)


IMAGE, PATCH = (28, 28), {"window": (4, 4), "stride": (2, 2)}
CELLS: Mapping[str, Cell] = {
    "image-saliency": Cell("saliency", _image(128), 64, IMAGE, {}),
    "image-jacobian": Cell("jacobian", _image(128), 64, IMAGE, {}),
    "image-occlusion": Cell("occlusion", _image(128), 16, IMAGE, PATCH),
    "image-integrated": Cell("integrated_gradients", _image(128), 16, IMAGE, {}),
    "long-occlusion": Cell(
        "occlusion", lambda: Series(1, 128, 5), 16, (256, 1), {"window": 8, "stride": 4}
    ),
    "steps-jacobian": Cell("jacobian", lambda: Series(4, 64, 3, per_step=True), 1, (128, 4), {}),
    "small-saliency": Cell("saliency", _image(32), 256, IMAGE, {}),
    "small-occlusion": Cell("occlusion", _image(32), 16, IMAGE, PATCH),
    "small-integrated": Cell("integrated_gradients", _image(32), 32, IMAGE, {}),
    "large-saliency": Cell("saliency", _image(512), 64, IMAGE, {}),
    "large-occlusion": Cell("occlusion", _image(512), 1, IMAGE, PATCH),
    "large-integrated": Cell("integrated_gradients", _image(512), 4, IMAGE, {}),
    "attention-occlusion": Cell("occlusion", lambda: Attending(28, 64, 10), 16, IMAGE, PATCH),
    "attention-integrated": Cell(
        "integrated_gradients", lambda: Attending(28, 64, 10), 16, IMAGE, {}
    ),
    "dense-occlusion": Cell("occlusion", lambda: Dense(784, 256, 10), 64, IMAGE, PATCH),
    "dense-integrated": Cell("integrated_gradients", lambda: Dense(784, 256, 10), 64, IMAGE, {}),
    "convolution-occlusion": Cell("occlusion", lambda: Convolving(10), 4, IMAGE, PATCH),
    "convolution-integrated": Cell("integrated_gradients", lambda: Convolving(10), 4, IMAGE, {}),
}


class Sweep(NamedTuple):
    """The automatic size, its median seconds per call, and those of each size that was tried."""

    chosen: int
    seconds: float
    by_size: dict[int, float]

    @property
    def best(self) -> int:
        return min(self.by_size, key=self.by_size.__getitem__)

    @property
    def ratio(self) -> float:
        return self.seconds / self.by_size[self.best]


def measure(
    cell: Cell, repeats: int, name: str = "", smallest: int = 8, most_chunks: int = 256
) -> Sweep:
    """Measure a cell at all sizes.

    Raises:
        AssertionError: if the results of two sizes differ.
    """
    model, method = cell.network(), getattr(ja, cell.method)
    xs = jax.device_put(np.random.default_rng(0).normal(size=(cell.batch, *cell.shape)).astype("f"))
    targets = None if cell.method == "jacobian" else 0
    work = prepare(method, model, xs, targets, **cell.options)
    total = work.load.evaluations * cell.batch
    sizes: dict[int | None, list[float]] = {None: []}
    size = smallest
    while size < 2 * total:
        if total <= most_chunks * size:
            sizes[min(size, total)] = []
        size *= 2

    def call(size: int | None) -> Any:
        attribution = ja.explain(method, model, xs, targets, batch_size=size, **cell.options)
        return jax.block_until_ready(attribution.values)

    expected = call(None)
    scale = float(abs(expected).max())
    for size in track(sizes, "sizes compiled", inside=name):
        np.testing.assert_allclose(call(size), expected, rtol=0, atol=1e-4 * scale)
    for _ in track(range(repeats), "turns", None, inside=name):
        for size, spent in sizes.items():
            start = perf_counter()
            call(size)
            spent.append(perf_counter() - start)
    medians = {size: float(np.median(spent)) for size, spent in sizes.items()}
    by_size = {size: seconds for size, seconds in medians.items() if size is not None}
    return Sweep(work.plan.in_flight, medians[None], by_size)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.chunks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="CELL")
    parser.add_argument("--repeats", type=report.positive, default=7, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the numbers")
    arguments = parser.parse_args(argv)
    report.check_file(parser, "--json", arguments.json)
    sweeps = {
        name: measure(CELLS[name], arguments.repeats, name)
        for name in track(arguments.cells, "cells")
    }
    device = jax.devices()[0].device_kind
    report.table(
        f"Automatic and best batch size on {device}, JAX {jax.__version__}",
        ("cell", "automatic", "(ms)", "best", "(ms)", "automatic /\nbest"),
        [
            (
                name,
                f"{sweep.chosen}",
                report.milliseconds(sweep.seconds),
                f"{sweep.best}",
                report.milliseconds(sweep.by_size[sweep.best]),
                f"{sweep.ratio:.2f}",
            )
            for name, sweep in sweeps.items()
        ],
        f"evaluations in flight; medians of {arguments.repeats} calls, the sizes take turns",
    )
    print("Time of each size / best:")
    for name, sweep in sweeps.items():
        ratios = (
            f"{n} {seconds / sweep.by_size[sweep.best]:.2f}" for n, seconds in sweep.by_size.items()
        )
        print(report.paragraph(f"{name}: {', '.join(ratios)}"))
    report.write(
        arguments.json,
        {
            "device": device,
            "cells": {n: sweep._asdict() | {"ratio": sweep.ratio} for n, sweep in sweeps.items()},
        },
    )


if __name__ == "__main__":
    main()
