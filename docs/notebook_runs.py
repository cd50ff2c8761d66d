"""Run the notebooks and keep their outputs: `python -m docs.notebook_runs [name ...]`."""

import base64
import json
import os
import re
import sys
import time
from typing import Any

from docs.pages import DOCS

FOLDER = DOCS / "notebooks"
#: The progress of the training of a network, and the warning that it is shown without widgets.
PROGRESS = re.compile(r"^\s*training |ipywidgets")


def names() -> list[str]:
    """Return the names of the notebooks."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name: str) -> dict[str, Any]:
    """Return a notebook as nested dicts."""
    notebook: dict[str, Any] = json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))
    return notebook


def executed(name: str) -> dict[str, Any]:
    """Run a notebook in a kernel of its own, and return it with its outputs."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    root = str(DOCS.parent)
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
    where = {"metadata": {"path": root}}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where)
    client.extra_arguments = ["--InlineBackend.figure_format=retina"]  # two pixels for one
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata = {}  # the times of the run
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if _is_kept(each)]
    result: dict[str, Any] = json.loads(nbformat.writes(notebook))
    result["metadata"]["language_info"] = {"name": "python"}
    return result


def _is_kept(output: Any) -> bool:
    """Return whether an output is neither a warning nor the progress of a training."""
    if output.get("name") == "stderr":
        return False
    shown = output.get("text", output.get("data", {}).get("text/plain", ""))
    return not PROGRESS.search(shown) and shown != ""


def text_of(output: dict[str, Any]) -> str:
    """Return the text of an output, or "" for a picture or HTML."""
    if output["output_type"] == "stream":
        return "".join(output["text"])
    data = output.get("data", {})
    if data.keys() & {"image/png", "text/html", "text/markdown"}:
        return ""
    return "".join(data.get("text/plain", ""))


def markdown(name: str) -> str:
    """Return a notebook as a page of the site; pictures lie inside of the page."""
    parts = []
    for cell in read(name)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_shown(output) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        png = "".join(data["image/png"]).replace("\n", "")
        pixels = int.from_bytes(base64.b64decode(png)[16:20], "big")
        width = output["metadata"].get("image/png", {}).get("width", pixels)
        source = f"data:image/png;base64,{png}"
        return f'<img alt="Figure drawn by the code above." width="{width}" src="{source}">'
    if "text/html" in data:
        return f'<div markdown="0" class="shown">\n{"".join(data["text/html"]).strip()}\n</div>'
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    return f"```text\n{text_of(output).rstrip()}\n```"


def main(selected: list[str]) -> None:
    """Run some notebooks, or all, and write their outputs."""
    for name in selected or names():
        start = time.perf_counter()
        text = json.dumps(executed(name), indent=1, ensure_ascii=False, sort_keys=True)
        (FOLDER / f"{name}.ipynb").write_text(f"{text}\n", encoding="utf-8")
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
