"""Measure the cost of every method on one network: `python -m benchmarks --help`."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import jaxattn as ja
from benchmarks import report
from benchmarks.cells import digits
from benchmarks.progress import track

METHODS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "saliency": {},
    "input_x_gradient": {},
    "integrated_gradients": {"num_steps": 64},
    "smooth_grad": {"num_samples": 32},
    "jacobian": {},
    "lrp": {},
    "deep_taylor": {},
    "deep_lift": {},
    "contextual_decomposition": {},
    "occlusion": {"window": (4, 4), "stride": (2, 2)},
    "temporal_output_score": {"length_arg": 0},
    "learned_mask": {"num_steps": 300},
}
COLUMNS = (
    "method",
    "compile\n(s)",
    "run\n(ms)",
    "quartiles\n(ms)",
    "examples\n/s",
    "evaluations\n/s",
    "Gflop/s",
    "peak\n(MiB)",
)
RATES = "examples_per_second", "evaluations_per_second", "flops_per_second"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    with jax.default_device(arguments.device):
        rows = measure(arguments)
    show(rows)
    report.write(
        arguments.json,
        {"methods": [asdict(row) | {rate: getattr(row, rate) for rate in RATES} for row in rows]},
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    report.add_device(parser)
    parser.add_argument("--batch", type=report.positive, default=64, help="default: %(default)s")
    parser.add_argument("--repeats", type=report.positive, default=5, help="default: %(default)s")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the numbers")
    arguments = parser.parse_args(argv)
    arguments.device = report.device(parser, arguments.device)
    report.check_file(parser, "--json", arguments.json)
    return arguments


def measure(arguments: argparse.Namespace) -> list[ja.Benchmark]:
    model = ja.models.SequenceClassifier(28, 128, 10, bidirectional=True, rngs=nnx.Rngs(0))
    xs = jax.device_put(digits(arguments.batch))
    targets = jnp.argmax(model(xs), axis=-1)
    rows = []
    for name in track(arguments.methods, "methods"):
        options: dict[str, Any] = {**METHODS[name], "repeats": arguments.repeats}
        if name == "temporal_output_score":
            options["args"] = (jnp.full(arguments.batch, xs.shape[1]),)
        if name == "smooth_grad":
            options["key"] = jax.random.key(0)
        target = None if name == "jacobian" else targets
        rows.append(ja.benchmark(getattr(ja, name), model, xs, target, **options))
    return rows


def show(rows: list[ja.Benchmark]) -> None:
    first = rows[0]
    report.table(
        f"{first.examples} digits, bidirectional LSTM of 128 units per direction, "
        f"{first.device_count} x {first.device}, JAX {jax.__version__}",
        COLUMNS,
        [
            (
                row.method,
                f"{row.compile_seconds:.2f}",
                report.milliseconds(row.run_seconds),
                f"{report.milliseconds(row.run_seconds_q1)} - "
                f"{report.milliseconds(row.run_seconds_q3)}",
                f"{row.examples_per_second:,.0f}",
                f"{row.evaluations_per_second:,.0f}",
                f"{row.flops_per_second / 1e9:,.1f}",
                "?" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f}",
            )
            for row in rows
        ],
        f"run: median of {first.repeats} calls of explain, each on all digits",
    )


if __name__ == "__main__":
    main()
