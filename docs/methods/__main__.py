"""Run the code blocks of the pages and keep their pictures: `python -m docs.methods [name ...]`."""

import sys
import time
from pathlib import Path

import matplotlib

from docs.pages import DOCS, blocks, keep, run

FOLDER = Path(__file__).parent
IMAGES = DOCS / "images" / "methods"


def names() -> list[str]:
    """Return the methods that have a page."""
    return sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "README")


def page(name: str) -> str:
    """Return the text of a method's page."""
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """Return the code of a method's page."""
    [(code, _)] = blocks(page(name))
    return code


def draw(name: str, folder: Path) -> Path:
    """Run the code of a page in a folder, and return the picture that it saves there."""
    for _ in run(page(name), f"{name}.md", folder):
        pass
    return folder / f"{name}.png"


def main(selected: list[str]) -> None:
    """Draw the pictures of some pages, or of all, and write their width into the page."""
    matplotlib.use("Agg")
    IMAGES.mkdir(exist_ok=True)
    for name in selected or names():
        start = time.perf_counter()
        keep(draw(name, IMAGES), FOLDER / f"{name}.md")
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
