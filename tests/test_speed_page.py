"""The tables of docs/speed.md hold the committed numbers."""

import json
from pathlib import Path

import pytest

from benchmarks import markdown

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/speed.md").read_text().splitlines()


@pytest.mark.parametrize("network", ["image", "long", "state"])
def test_page_has_the_row_of_each_contender(network):
    path = ROOT / f"benchmarks/results/methods-{network}-cpu-2-cores.json"
    rows = [f"| {' | '.join(row)} |" for row in markdown.rows(json.loads(path.read_text()))]
    assert rows
    assert [row for row in rows if row not in PAGE] == []
