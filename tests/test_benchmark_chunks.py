"""The sweeps over chunks and devices: their command lines, tables and numbers."""

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
def test_a_sweep_of_chunks(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(chunks, "CELLS", {"tiny": TINY})
    path = tmp_path / "new" / "chunks.json"
    chunks.main(["--cells", "tiny", "--repeats", "1", "--json", str(path)])
    shown = capsys.readouterr().out
    assert "tiny" in shown
    assert "best" in shown
    (found,) = json.loads(path.read_text())["cells"].values()
    assert list(found["by_size"]) == ["8", "16", "24"]  # 5 windows and none, of 4 examples
    assert found["chosen"] == 24
    assert found["ratio"] == found["seconds"] / min(found["by_size"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", chunks.CELLS)
def test_every_cell_is_a_network_that_takes_its_examples(name):
    cell = chunks.CELLS[name]
    one = jax.ShapeDtypeStruct(cell.shape, np.float32)
    output = jax.eval_shape(lambda x: cell.network()(x), one)
    assert output.shape[-1] in (3, 5, 10)


def test_the_same_work_has_the_same_name():
    assert set(cells.CELLS) <= set(chunks.CELLS)


def test_a_sweep_whose_sizes_disagree_fails(monkeypatch):
    answers = iter(range(100))

    def explain(*given, **options):
        return chunks.ja.Attribution(jnp.full(3, next(answers) + 1.0), jnp.zeros(3))

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
def test_bad_options(module, argv, message, capsys):
    with pytest.raises(SystemExit):
        module.main(argv)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_scaling_says_that_virtual_devices_share_the_cores(capsys, tmp_path):
    path = tmp_path / "scaling.json"
    options = "--devices 1 8 --methods saliency occlusion --batches 1 --units 2 --repeats 1"
    scaling.main([*options.split(), "--json", str(path)])
    shown = capsys.readouterr().out
    assert "shared cores" in shown
    assert "virtual devices that share" in shown
    numbers = json.loads(path.read_text())
    assert numbers["virtual"]
    assert [(s["method"], list(s["seconds"])) for s in numbers["scaling"]] == [
        ("saliency", ["1", "8"]),
        ("occlusion", ["1", "8"]),
    ]


def test_efficiency_is_the_speed_up_by_the_devices():
    found = scaling.Scaling("saliency", 64, {1: 8.0, 2: 4.0, 4: 4.0}, 0.0)
    assert [found.efficiency(n) for n in (1, 2, 4)] == [1, 1, 0.5]


def rows(network, *shape):
    model = network()
    return worthwhile_rows(jax.make_jaxpr(lambda x: model(x))(np.zeros(shape, np.float32)).jaxpr)


@pytest.mark.slow
def test_rows_grow_with_the_units_and_bytes_with_the_steps():
    few, many = (rows(lambda n=n: chunks.Series(4, n, 2), 9, 4) for n in (64, 512))
    assert 200 < many.least < 400
    assert few.least < many.least / 4
    longer = rows(lambda: chunks.Series(4, 64, 2), 90, 4)
    assert 8 < longer.bytes / few.bytes < 11
    assert abs(longer.least - few.least) <= 1


def test_what_one_example_fills_needs_no_others():
    assert rows(lambda: chunks.Convolving(10), 28, 28).least == 1
    assert rows(lambda: chunks.Attending(28, 64, 10), 64, 28).least < 8


def test_tiny_operations_want_many_rows():
    assert worthwhile_rows(jax.make_jaxpr(lambda x: x + 1)(np.float32(0)).jaxpr).least > 1000
    assert worthwhile_rows(jax.make_jaxpr(lambda x: x)(np.float32(0)).jaxpr) == (1, 4, 0, False)


def test_who_convolves_has_an_example_s_evaluations_together():
    kernel, xs = np.ones((1, 1, 3, 3), np.float32), np.ones((64, 1, 5, 5), np.float32)

    def convolve(x):
        return jax.lax.conv(x[None], kernel, (1, 1), "SAME").sum()

    plan = prepare(ja.integrated_gradients, convolve, xs, num_steps=40, batch_size=160).plan
    assert plan.inside == 40
    plan = prepare(ja.integrated_gradients, jnp.sum, xs, num_steps=40, batch_size=160).plan
    assert plan.inside < 40


def test_the_caches_decide_above_what_a_function_needs(monkeypatch):
    monkeypatch.setattr(memory, "_caches", lambda: 2**24)
    cpu = jax.devices("cpu")[0]
    assert memory.fewer_in_flight(cpu, 50, 256, 2**24) == 256
    assert memory.fewer_in_flight(cpu, 50, 256, 2**25) == 128
    assert memory.fewer_in_flight(cpu, 50, 256, 2**28) == 64
    assert memory.fewer_in_flight(cpu, 50, 40, 2**28) == 40
    assert memory.fewer_in_flight(cpu, 300, 256, 2**28) == 256
    monkeypatch.setattr(memory, "budget", lambda device: 2**20)
    assert memory.fewer_in_flight(cpu, 300, 256, 2**28) == 128


def test_caches_of_a_machine_that_does_not_say(monkeypatch):
    monkeypatch.setattr(memory.os, "sysconf_names", {})
    assert memory._caches.__wrapped__() == 2**24
