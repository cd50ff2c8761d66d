"""Test the progress of benchmarks: lines on standard error, at most one per ten seconds."""

import itertools

import pytest

from benchmarks import __main__ as methods, progress
from examples import training


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances by four seconds at every reading."""
    monkeypatch.setattr(progress, "perf_counter", itertools.count(0, 4).__next__)


def test_track_prints_progress_lines(clock, capsys):
    steps = ["gradient", "occlusion", "lrp", "jacobian", "saliency"]
    assert list(progress.track(steps, "methods")) == steps
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "1/5 methods, gradient ... 4 s",
        "4/5 methods, jacobian ... 16 s",
        "5 methods in 24 s",
    ]
    assert printed.out == ""


def test_short_inner_loop_prints_nothing(clock, capsys):
    assert list(progress.track([1, 2], "turns", None, inside="cell")) == [1, 2]
    assert capsys.readouterr().err == ""


def test_long_inner_loop_prints_the_outer_name(clock, capsys):
    assert list(progress.track(range(4), "turns", None, inside="cell")) == [0, 1, 2, 3]
    assert capsys.readouterr().err.splitlines() == [
        "  cell: 3/4 turns ... 12 s",
        "  cell: 4 turns in 20 s",
    ]


def test_track_without_steps(capsys):
    assert list(progress.track([], "methods")) == []
    assert capsys.readouterr().err == "0 methods in 0 s\n"


@pytest.mark.slow
def test_command_prints_progress_and_a_table_within_100_columns(capsys, monkeypatch):
    monkeypatch.setattr(methods, "METHODS", {"saliency": {}})
    methods.main(["--batch", "2", "--repeats", "1", "--methods", "saliency"])
    printed = capsys.readouterr()
    assert "1/1 methods, saliency ... 0 s" in printed.err
    assert max(map(len, printed.out.splitlines())) <= 100


def test_table_of_methods_fits_100_columns(capsys):
    row = methods.ja.Benchmark(
        "contextual_decomposition", "cpu", "cpu", 1, 64, 10**6, 99.99, 5, 99.9, 99.8, 99.99, 2**34,
        10**13, True,
    )  # fmt: skip
    methods.show([row])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("contextual_decomposition  ") for line in lines)


def test_training_prints_lines_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(training, "monotonic", itertools.count(0, 6).__next__)
    with training.bar() as bar:
        task = bar.add_task("training", total=3, note="loss 0.5")
        for _ in range(3):
            bar.advance(task)
    lines = [line for line in capsys.readouterr().out.splitlines() if " ... " in line]
    assert lines == ["training 2/3 ... 0 s loss 0.5"]
