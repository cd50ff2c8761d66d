"""Test the benchmarks of chunk sizes and devices, and the choice of chunk sizes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxattn as ja
from benchmarks import cells, chunks, scaling
from jaxattn.engine import memory
from jaxattn.engine.explain import prepare
from jaxattn.jaxpr.rows import worthwhile_rows

TINY = chunks.Cell("occlusion", lambda: chunks.Series(2, 3, 2), 4, (6, 2), {"window": 2})


@pytest.mark.slow
def test_sweep_of_chunk_sizes(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(chunks, "CELLS", {"tiny": TINY})
    path = tmp_path / "new" / "chunks.json"
    chunks.main(["--cells", "tiny", "--repeats", "1", "--json", str(path)])
    printed = capsys.readouterr().out
    assert "tiny" in printed
    assert "best" in printed
    (result,) = json.loads(path.read_text())["cells"].values()
    # 4 examples with 6 evaluations each: 5 windows and the unchanged input.
    assert list(result["by_size"]) == ["8", "16", "24"]
    assert result["chosen"] == 24
    assert result["ratio"] == result["seconds"] / min(result["by_size"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", chunks.CELLS)
def test_every_workload_runs_on_its_examples(name):
    cell = chunks.CELLS[name]
    one = jax.ShapeDtypeStruct(cell.shape, np.float32)
    output = jax.eval_shape(lambda x: cell.network()(x), one)
    assert output.shape[-1] in (3, 5, 10)


def test_workload_names_are_shared_between_benchmarks():
    assert set(cells.CELLS) <= set(chunks.CELLS)


def test_sweep_with_inconsistent_values_fails(monkeypatch):
    values = iter(range(100))

    def explain(*args, **options):
        return chunks.ja.Attribution(jnp.full(3, next(values) + 1.0), jnp.zeros(3))

    monkeypatch.setattr(chunks.ja, "explain", explain)
    with pytest.raises(AssertionError, match="tolerance"):
        chunks.measure(TINY, 1)


@pytest.mark.parametrize(
    "module, argv, message",
    [
        (chunks, ["--cells", "nowhere"], "invalid choice: 'nowhere'"),
        (chunks, ["--repeats", "0"], "must be a positive int, got '0'"),
        (scaling, ["--devices", "0"], "must be a positive int, got '0'"),
        (scaling, ["--devices", "4096"], "no 4096 devices here: JAX sees 8"),
        (scaling, ["--methods", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_invalid_arguments_are_rejected(module, argv, message, capsys):
    with pytest.raises(SystemExit):
        module.main(argv)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_scaling_reports_virtual_devices(capsys, tmp_path):
    path = tmp_path / "scaling.json"
    options = "--devices 1 8 --methods saliency occlusion --batches 1 --units 2 --repeats 1"
    scaling.main([*options.split(), "--json", str(path)])
    printed = capsys.readouterr().out
    assert "shared cores" in printed
    assert "virtual devices that share" in printed
    numbers = json.loads(path.read_text())
    assert numbers["virtual"]
    assert [(s["method"], list(s["seconds"])) for s in numbers["scaling"]] == [
        ("saliency", ["1", "8"]),
        ("occlusion", ["1", "8"]),
    ]


def test_efficiency_is_speedup_per_device():
    result = scaling.Scaling("saliency", 64, {1: 8.0, 2: 4.0, 4: 4.0}, 0.0)
    assert [result.efficiency(n) for n in (1, 2, 4)] == [1, 1, 0.5]


def rows(network, *shape):
    model = network()
    return worthwhile_rows(jax.make_jaxpr(lambda x: model(x))(np.zeros(shape, np.float32)).jaxpr)


@pytest.mark.slow
def test_rows_scale_with_units_and_bytes_with_steps():
    few, many = (rows(lambda n=n: chunks.Series(4, n, 2), 9, 4) for n in (64, 512))
    assert 200 < many.least < 400
    assert few.least < many.least / 4
    longer = rows(lambda: chunks.Series(4, 64, 2), 90, 4)
    assert 8 < longer.bytes / few.bytes < 11
    assert abs(longer.least - few.least) <= 1


def test_large_operations_require_few_rows():
    assert rows(lambda: chunks.Convolving(10), 28, 28).least == 1
    assert rows(lambda: chunks.Attending(28, 64, 10), 64, 28).least < 8


def test_tiny_operations_require_many_rows():
    assert worthwhile_rows(jax.make_jaxpr(lambda x: x + 1)(np.float32(0)).jaxpr).least > 1000
    identity = jax.make_jaxpr(lambda x: x)(np.float32(0)).jaxpr
    assert worthwhile_rows(identity) == (1, 4, 0, False, False)


def test_convolutions_keep_evaluations_of_an_example_together():
    kernel, xs = np.ones((1, 1, 3, 3), np.float32), np.ones((64, 1, 5, 5), np.float32)

    def convolve(x):
        return jax.lax.conv(x[None], kernel, (1, 1), "SAME").sum()

    plan = prepare(ja.integrated_gradients, convolve, xs, num_steps=40, batch_size=160).plan
    assert plan.inside == 40
    plan = prepare(ja.integrated_gradients, jnp.sum, xs, num_steps=40, batch_size=160).plan
    assert plan.inside < 40


def test_fewer_in_flight_fit_the_cache(monkeypatch):
    monkeypatch.setattr(memory, "_caches", lambda: 2**24)
    cpu = jax.devices("cpu")[0]
    assert memory.fewer_in_flight(cpu, 50, 256, 2**24) == 256
    assert memory.fewer_in_flight(cpu, 50, 256, 2**25) == 128
    assert memory.fewer_in_flight(cpu, 50, 256, 2**28) == 64
    assert memory.fewer_in_flight(cpu, 50, 40, 2**28) == 40
    assert memory.fewer_in_flight(cpu, 300, 256, 2**28) == 256
    monkeypatch.setattr(memory, "budget", lambda device: 2**20)
    assert memory.fewer_in_flight(cpu, 300, 256, 2**28) == 128


def test_default_cache_size_without_sysconf(monkeypatch):
    monkeypatch.setattr(memory.os, "sysconf_names", {})
    assert memory._caches.__wrapped__() == 2**24
