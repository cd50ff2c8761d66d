"""Run the code of the pages and keep their pictures: `python -m docs.guides [name ...]`."""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import matplotlib

from docs.pages import DOCS, blocks, keep, numbers_and_text, run

IMAGES = DOCS / "images" / "guides"


def pages() -> dict[str, Path]:
    """Return the pages with Python code, by their path without `.md`; methods have their own."""
    paths = [path for path in sorted(DOCS.rglob("*.md")) if path.parent.name != "methods"]
    return {
        path.relative_to(DOCS).with_suffix("").as_posix(): path
        for path in paths
        if blocks(path.read_text("utf-8"))
    }


def main(selected: list[str]) -> None:
    """Run some pages, or all, and replace their pictures; show where an output differs."""
    matplotlib.use("Agg")
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in selected or pages():
        start, page = time.perf_counter(), pages()[name]
        with tempfile.TemporaryDirectory() as folder:
            for printed, shown in run(page.read_text("utf-8"), f"{name}.md", Path(folder)):
                if numbers_and_text(printed) != numbers_and_text(shown):
                    print(f"{name} shows:\n{shown}\nand prints:\n{printed}")
            for picture in Path(folder).glob("*.png"):
                kept = Path(shutil.move(picture, IMAGES / picture.name))
                keep(kept, page)
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
