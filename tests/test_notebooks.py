"""The notebooks of the documentation run, and show what they print."""

import importlib.util
import json
import re

import pytest

from docs import notebook_runs
from docs.pages import numbers_and_text

NAMES = notebook_runs.names()
# A path of a home or temporary folder, or of an environment.
PATH = re.compile(r"/(?:home|root|tmp|Users|usr)/|site-packages")


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_complete_and_small(name):
    path = notebook_runs.FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 1_500_000
    cells = notebook_runs.read(name)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 8 and len(cells) - len(code) >= 6
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {
        "display_data", "execute_result", "stream",
    }  # fmt: skip
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    for output in outputs:
        assert len("".join(output.get("data", {}).get("image/png", ""))) < 4 / 3 * 300_000
    pictures = re.compile(r'(?<=base64,)[^"]+|"image/png": "[^"]*"')
    assert not PATH.search(pictures.sub("", json.dumps(outputs)))


def test_pages_have_every_cell():
    for name in NAMES:
        page = notebook_runs.markdown(name)
        code = [c for c in notebook_runs.read(name)["cells"] if c["cell_type"] == "code"]
        assert page.startswith("# ") and page.count("```python\n") == len(code)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_shows_the_committed_outputs(name):
    if (
        importlib.util.find_spec("nbclient") is None
        or importlib.util.find_spec("ipykernel") is None
    ):
        pytest.skip("nbclient and ipykernel are not installed")
    committed, found = notebook_runs.read(name), notebook_runs.executed(name)
    for cell, again in zip(committed["cells"], found["cells"], strict=True):
        if cell["cell_type"] != "code":
            continue
        kinds = [[sorted(o.get("data", {})) for o in c["outputs"]] for c in (cell, again)]
        assert kinds[0] == kinds[1], "".join(cell["source"])
        for shown, output in zip(cell["outputs"], again["outputs"], strict=True):
            expected, words = numbers_and_text(notebook_runs.text_of(shown))
            numbers, again_words = numbers_and_text(notebook_runs.text_of(output))
            assert words == again_words
            # Training amplifies differences of rounding between versions.
            assert numbers == pytest.approx(expected, rel=0.3, abs=0.3)
