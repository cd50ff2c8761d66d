"""The contenders of the speed benchmark agree; failures are reported instead of timed."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxattn as ja
from benchmarks import (
    captum_peer,
    cells,
    chunks,
    contest,
    curves,
    handwritten,
    report,
    scaling,
    speed,
)

TINY = {
    "image-jacobian": {"network": cells.Network(6, 4, 3, 2, bidirectional=True), "batch": 3},
    "image-saliency": {"network": cells.Network(6, 4, 3, 2, bidirectional=True), "batch": 3},
    "image-occlusion": {"network": cells.Network(6, 8, 3, 2, bidirectional=True), "batch": 2},
    "image-integrated": {
        "network": cells.Network(6, 4, 3, 2, bidirectional=True),
        "batch": 2,
        "options": {"num_steps": 5},
    },
    "long-occlusion": {"network": cells.Network(16, 1, 3, 2), "batch": 2},
    "steps-jacobian": {"network": cells.Network(5, 2, 3, 2, per_step=True), "batch": 1},
}


@pytest.fixture(autouse=True)
def default_promotion():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def tiny(name):
    return cells.CELLS[name]._replace(**TINY[name])


def explained(work):
    return np.asarray(
        ja.explain(work.method, work.model, work.xs, work.targets, **work.options).values
    )


@pytest.fixture(params=TINY, scope="module")
def work(request):
    return cells.prepare(tiny(request.param))


@pytest.fixture(scope="module")
def reference(work):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return explained(work)


@pytest.mark.slow
@pytest.mark.parametrize(("chunk", "projection"), [(1, "before"), (2, "inside"), (3, "joined")])
@pytest.mark.representatives("image-saliency-1-before")
def test_handwritten_code_agrees(work, reference, chunk, projection):
    built = contest.by_hand(work, handwritten.Setting(chunk, projection))
    assert contest.compare("by hand", built.run(), reference, 1e-5) <= 1e-5
    assert built.flops > 0


@pytest.mark.slow
def test_captum_agrees(work, reference):
    pytest.importorskip("captum")
    for settings in captum_peer.kinds(work.cell, "cpu", [1, 3], contest.powers_of_two).values():
        for setting in settings:
            result = contest.by_peer("captum", work, setting, "cpu", False).run()
            assert contest.compare("Captum", result, reference, 1e-5) <= 1e-5


@pytest.mark.slow
@pytest.mark.representatives("image-saliency", "image-occlusion")
def test_work_is_deterministic(work):
    again = cells.prepare(work.cell)
    same = jax.tree.map(np.array_equal, (work.weights, work.xs), (again.weights, again.xs))
    assert jax.tree.all(same)


def test_size_of_the_work():
    image, long = cells.CELLS["image-occlusion"], cells.CELLS["long-occlusion"]
    assert (image.windows, long.windows) == (13 * 13, 63)
    assert image.masks().sum(0).min() == long.masks().sum(0).min() == 1  # every feature is covered
    assert handwritten.largest_chunk(cells.CELLS["steps-jacobian"]) == 128 * 3


def test_powers_of_two():
    assert contest.powers_of_two(10) == [1, 2, 4, 8, 10]
    assert contest.powers_of_two(8) == [1, 2, 4, 8]
    assert contest.powers_of_two(1) == [1]
    assert contest.powers_of_two(10, [16, 3, 32]) == [3, 10]


@pytest.mark.parametrize("wrong", [np.zeros(3), np.full(3, np.nan), np.ones((3, 1))])
def test_result_that_differs_raises(wrong):
    with pytest.raises(contest.DisagreementError, match=r"no time|has shape"):
        contest.compare("peer", wrong, np.ones(3), 1e-4)


def test_difference_is_relative_to_the_largest_value():
    assert contest.compare("peer", np.array([10.0, 1.5]), np.array([10.0, 1.0]), 0.1) == 0.05


def test_time_is_the_median_of_the_calls_that_fit(monkeypatch):
    clock = iter(np.cumsum([0, 0.04, 0, 0.01, 0, 0.02, 0, 0.08]).tolist())
    monkeypatch.setattr(contest, "perf_counter", clock.__next__)
    assert contest.seconds_of(lambda: None, 0.1) == pytest.approx(0.03)


def test_failing_settings_are_skipped():
    def fail():
        raise RuntimeError("out of memory")

    reference = np.ones(3)
    runs = [("1", fail), ("2", lambda: contest.Built("2", lambda: reference))]
    best, sweep, difference = contest._sweep("peer", runs, reference, 1e-4)
    assert (best.setting, sweep["1"], difference) == ("2", None, 0)
    with pytest.raises(RuntimeError, match="peer ran at none of its settings: out of memory"):
        contest._sweep("peer", runs[:1], reference, 1e-4)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(speed, "CELLS", {"image-saliency": tiny("image-saliency")})
    monkeypatch.setattr(speed.limits, "SECONDS", 1e-3)
    return ["--rounds", "2", "--chunks", "2"]


@pytest.mark.slow
def test_command_prints_and_writes(small, tmp_path, capsys):
    path, plot = tmp_path / "new" / "numbers.json", tmp_path / "new" / "times.png"
    speed.main([*small, "--json", str(path), "--plot", str(plot)])
    printed = capsys.readouterr().out
    assert "handwritten" in printed
    assert "image-saliency" in printed
    numbers = json.loads(path.read_text())
    (cell,) = numbers["cells"].values()
    assert set(cell["contenders"]) == {"jaxattn", "handwritten"}
    assert cell["contenders"]["jaxattn"]["ratio"] == 1
    by_hand = cell["contenders"]["handwritten"]
    assert by_hand["difference"] <= 1e-4
    assert len(by_hand["seconds"]) == len(by_hand["ratios"]) == 2
    assert by_hand["setting"] in by_hand["sweep"]
    assert {"compile_seconds", "run_seconds", "peak_bytes", "share_of_limit"} <= set(by_hand)
    assert cell["limit"]["product"] > 0
    assert numbers["failed"] == {}
    assert plot.stat().st_size > 0


@pytest.mark.slow
def test_disagreeing_cell_fails_without_a_time(small, tmp_path, capsys, monkeypatch):
    original = handwritten.build

    def build(cell, setting):
        right = original(cell, setting)
        return lambda *arguments: 1.01 * right(*arguments)

    monkeypatch.setattr(handwritten, "build", build)
    path = tmp_path / "numbers.json"
    with pytest.raises(SystemExit, match=r"image-saliency: handwritten .* differs from jaxattn"):
        speed.main([*small, "--json", str(path)])
    numbers = json.loads(path.read_text())
    assert (numbers["cells"], list(numbers["failed"])) == ({}, ["image-saliency"])
    assert "handwritten" not in capsys.readouterr().out


@pytest.mark.slow
def test_curves(tmp_path, capsys, monkeypatch):
    line = curves.Line(
        "Title", "examples", (1, 2), lambda n: tiny("image-saliency")._replace(batch=n)
    )
    monkeypatch.setattr(curves, "LINES", {"batch": line})
    path = tmp_path / "curves.json"
    curves.main(["--chunks", "2", "--rounds", "1", "--json", str(path)])
    (panel,) = json.loads(path.read_text())["curves"]
    assert (panel["sizes"], set(panel["seconds"])) == ([1, 2], {"jaxattn", "handwritten"})
    assert "examples 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "no tpu here: JAX sees cpu"),
        (["--cells", "image-lrp"], "invalid choice: 'image-lrp'"),
        (["--chunks", "0"], "--chunks: must be a positive int, got '0'"),
        (["--rounds", "0"], "--rounds: must be a positive int, got '0'"),
        (["--peers", "shap"], "invalid choice: 'shap'"),
    ],
)
def test_invalid_arguments_of_the_command(arguments, message, capsys):
    with pytest.raises(SystemExit):
        speed.main(arguments)
    assert message in " ".join(capsys.readouterr().err.split())


def unwritable(tmp_path, name):
    """Return a path in a folder that cannot be created: a file has its name."""
    (tmp_path / "file").touch()
    return str(tmp_path / "file" / name)


@pytest.mark.parametrize("command", [speed, curves, chunks, scaling])
def test_unwritable_numbers_fail_before_measuring(command, tmp_path, capsys):
    for path, message in (
        (unwritable(tmp_path, "numbers.json"), "--json: cannot write to the folder"),
        (str(tmp_path), "is a folder, give a file in it"),
    ):
        with pytest.raises(SystemExit):
            command.main(["--json", path])
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", [speed, curves])
def test_unwritable_plot_fails_before_measuring(command, tmp_path, capsys, monkeypatch):
    cases = [
        (unwritable(tmp_path, "times.png"), "--plot: cannot write to the folder"),
        (str(tmp_path / "times.xyz"), "--plot: matplotlib cannot save .xyz, it can"),
    ]
    for path, message in cases:
        with pytest.raises(SystemExit):
            command.main(["--plot", path])
        assert message in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        command.main(["--plot", str(tmp_path / "times.png")])
    assert "--plot: matplotlib is not installed" in capsys.readouterr().err


def test_read_only_file_fails(tmp_path, capsys, monkeypatch):
    path = tmp_path / "numbers.json"
    path.write_text("kept")
    monkeypatch.setattr(report.os, "access", lambda path, mode: False)
    with pytest.raises(SystemExit):
        speed.main(["--json", str(path)])
    assert f"--json: cannot write over {path}" in " ".join(capsys.readouterr().err.split())
    assert path.read_text() == "kept"


@pytest.mark.parametrize("name", ["times.PNG", "times.svg", "times"])
def test_valid_plot_path_is_accepted(name, tmp_path):
    path = tmp_path / "new" / name
    report.check_plot(argparse.ArgumentParser(), path)
    assert list(path.parent.iterdir()) == []


def test_unwritable_cache_fails(tmp_path, capsys):
    before = jax.config.jax_compilation_cache_dir
    with pytest.raises(SystemExit):
        speed.main(["--cache", unwritable(tmp_path, "cache")])
    assert "--cache: cannot write to the folder" in " ".join(capsys.readouterr().err.split())
    assert jax.config.jax_compilation_cache_dir == before


def test_missing_peer_names_its_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(SystemExit):
        speed.main(["--peers", "captum"])
    error = " ".join(capsys.readouterr().err.split())
    assert "not installed: pip install -e '.[peers]' installs Captum and torch" in error


def test_table(capsys):
    rows = [("a group",), ("a", "1.0"), ("long", "12.0")]
    report.table("title", ("name", "time\n(s)"), rows, "caption")
    assert capsys.readouterr().out.splitlines() == [
        "title",
        "----------",
        "      time",
        "name   (s)",
        "----------",
        "a group",
        "a      1.0",
        "long  12.0",
        "----------",
        "caption",
        "",
    ]


def test_printed_tables_fit_100_columns(capsys):
    """All names, and times of the largest plausible size, are printed in full."""
    builts = {
        name: contest.Built("384, joined", None, 123.45, 2**34, 10**12, 0, 123.4, 12.3)
        for name in ("jaxattn", "handwritten", "captum", "captum, repeated")
    }
    entries = {
        name: contest.Entry(built, {}, 1e-6, [12.34] * 3, [123.4] * 3)
        for name, built in builts.items()
    }
    result = speed.Result(entries, speed.limits.Limit(2e11, {}, 1e9))
    device = argparse.Namespace(device_kind="cpu")
    speed.show(dict.fromkeys(cells.CELLS, result), argparse.Namespace(device=device, rounds=9))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert {"image-integrated", "steps-jacobian"} <= set(lines)
    assert (
        sum("captum, repeated  384, joined   123.45  12,340  12,340 - 12,340" in s for s in lines)
        == 6
    )


@pytest.mark.slow
def test_benchmark_requires_only_jax_flax_and_numpy():
    """Importing jaxattn, too, requires neither jaxtyping nor matplotlib."""
    code = """
import sys

class Bare:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *where):
        return None if name.split(".")[0] in ("jaxtyping", "matplotlib") else (
            self.finder.find_spec(name, *where))

sys.meta_path = [Bare(finder) for finder in sys.meta_path if hasattr(finder, "find_spec")]
import benchmarks.speed, jaxattn, jax.numpy as jnp
print(jaxattn.saliency(lambda x: (x ** 2).sum(), jnp.ones(3)).values)
"""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "[2. 2. 2.]\n", done.stderr
