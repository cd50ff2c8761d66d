"""The Python blocks of README and CONTRIBUTING run; those of README print the output shown."""

import re
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxattn as ja
from docs.pages import blocks, numbers_and_text

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

BLOCKS = blocks(README.read_text())
QUICK = {0, 3}  # the first example, and the named intermediates


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param(*block, id=f"block{i}", marks=() if i in QUICK else pytest.mark.slow)
        for i, block in enumerate(BLOCKS)
    ],
)
def test_block_prints_the_output_shown(code, expected, tmp_path, monkeypatch, capsys):
    """Each block runs in a namespace of its own, in an empty folder and with JAX's defaults."""
    monkeypatch.chdir(tmp_path)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        exec(compile(code, str(README), "exec"), {"__name__": "__main__"})
    plt.close("all")
    printed = capsys.readouterr().out
    assert expected.strip(), "a block must print its result"
    (numbers, words), (shown, shown_words) = map(numbers_and_text, (printed, expected))
    assert words == shown_words
    np.testing.assert_allclose(numbers, shown, atol=1e-3)
    for name in re.findall(r'(?:savefig|save)\("(.*?)"\)', code):
        assert (tmp_path / name).stat().st_size > 0


def test_example_method_of_contributing():
    [(code, _)] = blocks((ROOT / "CONTRIBUTING.md").read_text())
    namespace: dict[str, Any] = {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), namespace)
    x = jax.numpy.array([1.0, -2.0, 3.0])

    def fn(x):
        return jax.numpy.sin(x).sum()

    values = namespace["absolute_input_x_gradient"](fn, x).values
    np.testing.assert_allclose(values, abs(ja.input_x_gradient(fn, x).values), rtol=1e-6)


def test_links_point_to_files():
    links = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", README.read_text())
    assert "docs/architecture.md" in links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_layout_in_the_docs_lists_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text()
    layout = text.partition("```\njaxattn/")[2].partition("```")[0]
    listed = set(re.findall(r"(\w+)\.py", layout)) - {"__init__"}
    package = ROOT / "jaxattn"
    folders = [package / name for name in ("engine", "jaxpr", "metrics", "reporting")]
    paths = [*package.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    assert listed == {path.stem for path in paths} - {"__init__"}
