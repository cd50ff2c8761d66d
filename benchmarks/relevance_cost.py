"""Compare the cost of LRP and DeepLIFT with the gradient's: `python -m benchmarks.relevance_cost`.

The methods take turns, and each time is divided by the gradient's of the same turn. A busy or
throttled machine then slows both.
"""

import argparse
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxattn as ja
from benchmarks import report
from benchmarks.cells import digits
from benchmarks.progress import track

METHODS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gradient": ("gradient", {}),
    "LRP": ("lrp", {}),
    "LRP, conserved bias": ("lrp", {"conserve_bias": True}),
    "DeepLIFT": ("deep_lift", {}),
}
NETWORKS = {"LSTM": False, "bidirectional LSTM": True}
UNITS = 128


class Cost(NamedTuple):
    """Seconds to compile, seconds of each call, and their ratios to the gradient's seconds."""

    compile_seconds: float
    run_seconds: list[float]
    ratios: list[float]


def measure(model: nnx.Module, xs: jax.Array, repeats: int, network: str = "") -> dict[str, Cost]:
    targets = jnp.argmax(model(xs), axis=-1)
    calls = {name: (getattr(ja, method), options) for name, (method, options) in METHODS.items()}
    compiled = {
        name: ja.benchmark(method, model, xs, targets, repeats=1, **options).compile_seconds
        for name, (method, options) in calls.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in track(range(repeats), "turns", None, inside=network):
        for name, (method, options) in calls.items():
            start = perf_counter()
            jax.block_until_ready(ja.explain(method, model, xs, targets, **options))
            seconds[name].append(perf_counter() - start)
    gradient = np.asarray(seconds["gradient"])
    return {
        name: Cost(compiled[name], spent, (np.asarray(spent) / gradient).tolist())
        for name, spent in seconds.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.relevance_cost", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--batch", type=report.positive, default=64, help="default: %(default)s")
    parser.add_argument("--repeats", type=report.positive, default=31, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the numbers")
    arguments = parser.parse_args(argv)
    report.check_file(parser, "--json", arguments.json)
    xs = jax.device_put(digits(arguments.batch))
    costs = {}
    for network, both in track(NETWORKS.items(), "networks", itemgetter(0)):
        model = ja.models.SequenceClassifier(28, UNITS, 10, bidirectional=both, rngs=nnx.Rngs(0))
        costs[network] = measure(model, xs, arguments.repeats, network)
    rows = []
    for network, of_methods in costs.items():
        for name, cost in of_methods.items():
            low, middle, high = np.percentile(cost.ratios, (25, 50, 75))
            rows.append(
                (
                    f"{network}, {name}",
                    f"{cost.compile_seconds:.2f}",
                    report.milliseconds(float(np.median(cost.run_seconds))),
                    f"{middle:.2f}",
                    f"{low:.2f} - {high:.2f}",
                )
            )
    device = jax.devices()[0].device_kind
    report.table(
        f"{arguments.batch} digits, {UNITS} units per direction, {device}, JAX {jax.__version__}",
        ("method", "compile\n(s)", "run\n(ms)", "time /\ngradient's", "quartiles"),
        rows,
        f"medians of {arguments.repeats} calls of explain, the methods take turns",
    )
    report.write(
        arguments.json,
        {
            "batch": arguments.batch,
            "networks": {
                network: {name: cost._asdict() for name, cost in of_methods.items()}
                for network, of_methods in costs.items()
            },
        },
    )


if __name__ == "__main__":
    main()
