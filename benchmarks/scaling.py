"""Measure how time depends on the number of devices: `python -m benchmarks.scaling --help`.

A batch is divided by examples, a single example by its evaluations. If JAX has a CPU only, it is
divided into virtual devices. These share its cores, so the times show the cost of dividing the
work, and not the speed of more devices.
"""

import argparse
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

import jaxattn as ja
from benchmarks import report
from benchmarks.cells import digits
from benchmarks.progress import track

METHODS: Mapping[str, dict[str, Any]] = {
    "occlusion": {"window": (4, 4), "stride": (2, 2)},
    "integrated_gradients": {"num_steps": 64},
    "jacobian": {},
    "saliency": {},
}


class Scaling(NamedTuple):
    """Median seconds of a call for each number of devices, and the largest relative difference."""

    method: str
    batch: int
    seconds: dict[int, float]
    difference: float

    def efficiency(self, devices: int) -> float:
        """Return the speed-up over the fewest devices, divided by the ratio of their numbers."""
        first = min(self.seconds)
        return self.seconds[first] * first / (self.seconds[devices] * devices)


def measure(
    name: str, model: nnx.Module, xs: jax.Array, counts: list[int], repeats: int
) -> Scaling:
    """Measure a method on meshes of several sizes, which take turns.

    Raises:
        AssertionError: if the values depend on the number of devices.
    """
    targets = None if name == "jacobian" else jnp.argmax(model(xs), axis=-1)
    meshes = {n: Mesh(np.asarray(jax.devices()[:n]), ("devices",)) for n in counts}

    def call(mesh: Mesh | None) -> Any:
        explained = ja.explain(getattr(ja, name), model, xs, targets, mesh=mesh, **METHODS[name])
        return jax.block_until_ready(explained.values)

    expected = np.asarray(call(None))
    scale = float(abs(expected).max())
    difference = 0.0
    for mesh in meshes.values():
        values = np.asarray(call(mesh))
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-4 * scale)
        difference = max(difference, float(abs(values - expected).max()) / scale)
    spent: dict[int, list[float]] = {n: [] for n in counts}
    for _ in range(repeats):
        for n, mesh in meshes.items():
            start = perf_counter()
            call(mesh)
            spent[n].append(perf_counter() - start)
    medians = {n: float(np.median(seconds)) for n, seconds in spent.items()}
    return Scaling(name, len(xs), medians, difference)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.scaling", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--devices", nargs="+", type=report.positive, default=[1, 2, 4, 8], help="default: 1 2 4 8"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--batches", nargs="+", type=report.positive, default=[64, 1], help="default: 64 1"
    )
    parser.add_argument("--units", type=report.positive, default=128, help="default: %(default)s")
    parser.add_argument("--repeats", type=report.positive, default=7, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the numbers")
    arguments = parser.parse_args(argv)
    report.check_file(parser, "--json", arguments.json)
    arguments.devices = sorted(set(arguments.devices))
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX is initialized already
            jax.config.update("jax_num_cpu_devices", arguments.devices[-1])
    if arguments.devices[-1] > jax.device_count():
        parser.error(
            f"no {arguments.devices[-1]} devices here: JAX sees {jax.device_count()} of platform "
            f"{jax.default_backend()}"
        )
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    model = ja.models.SequenceClassifier(
        28, arguments.units, 10, bidirectional=True, rngs=nnx.Rngs(0)
    )
    runs = [(name, batch) for name in arguments.methods for batch in arguments.batches]
    scalings = [
        measure(name, model, jax.device_put(digits(batch)), arguments.devices, arguments.repeats)
        for name, batch in track(runs, "runs", lambda run: f"{run[0]} of {run[1]} examples")
    ]
    counts = arguments.devices
    virtual = jax.default_backend() == "cpu"
    device = jax.devices()[0].device_kind
    report.table(
        f"Time on several devices, {device}, JAX {jax.__version__}",
        ("method, examples", "devices", "run\n(ms)", "time / that of\nthe fewest", "efficiency"),
        [
            (
                f"{scaling.method}, {scaling.batch}",
                f"{n}",
                report.milliseconds(seconds),
                f"{seconds / scaling.seconds[arguments.devices[0]]:.2f}",
                "shared cores" if virtual else f"{scaling.efficiency(n):.2f}",
            )
            for scaling in scalings
            for n, seconds in scaling.seconds.items()
        ],
        f"virtual devices that share {os.cpu_count()} CPU cores: 1.00 is the best possible"
        if virtual
        else f"medians of {arguments.repeats} calls, the numbers of devices take turns",
    )
    report.write(
        arguments.json,
        {
            "device": device,
            "virtual": virtual,
            "scaling": [
                scaling._asdict()
                | {"efficiency": {} if virtual else {n: scaling.efficiency(n) for n in counts}}
                for scaling in scalings
            ],
        },
    )


if __name__ == "__main__":
    main()
