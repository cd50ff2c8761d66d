"""The page on recurrent layers runs, prints what it shows, and names tests that exist."""

import ast
import re
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from test_readme import blocks, numbers_and_text

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "inside_a_layer.md").read_text()


@pytest.mark.slow
def test_page_runs_and_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    """The blocks run one after the other, in an empty folder and with JAX's defaults."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    found = blocks(PAGE)
    assert len(found) == 7
    for code, expected in found:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            exec(compile(code, "inside_a_layer.md", "exec"), namespace)
        (numbers, words), (shown, shown_words) = map(
            numbers_and_text, (capsys.readouterr().out, expected)
        )
        assert words == shown_words
        np.testing.assert_allclose(numbers, shown, atol=1e-3)
        for name in re.findall(r'savefig\("(.*?)"\)', code):
            assert (tmp_path / name).stat().st_size > 0
    plt.close("all")


def test_page_names_tests_and_pictures_that_exist():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)
    assert len(named) >= 20
    for file, test in named:
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    links = re.findall(r"\]\((?!http)([^)#]+)\)", PAGE)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
