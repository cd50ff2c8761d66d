"""Run the code blocks of the pages and keep their pictures: `python -m docs.methods [name ...]`."""

import contextlib
import re
import sys
import time
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from PIL import Image

FOLDER = Path(__file__).parent
IMAGES = FOLDER.parent / "images" / "methods"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PICTURE = re.compile(r'<img src="\.\./images/methods/(\w+)\.png" width="(\d+)"')
# A pixel of the page is two pixels of the picture.
STYLE = {"savefig.dpi": 180, "savefig.bbox": "tight", "savefig.facecolor": "white"}


def names() -> list[str]:
    """Return the methods that have a page."""
    return sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "README")


def page(name: str) -> str:
    """Return the text of a method's page."""
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    """Return the code of a method's page."""
    [code] = BLOCK.findall(page(name))
    return code


def draw(name: str, folder: Path) -> Path:
    """Run the code of a page in a folder, and return the picture that it saves there."""
    with contextlib.chdir(folder), matplotlib.rc_context(STYLE):
        exec(compile(block(name), f"{name}.md", "exec"), {"__name__": "__main__"})
    plt.close("all")
    return folder / f"{name}.png"


def main(selected: list[str]) -> None:
    """Draw the pictures of some pages, or of all, and write their width into the page."""
    matplotlib.use("Agg")
    IMAGES.mkdir(exist_ok=True)
    for name in selected or names():
        start = time.perf_counter()
        path = draw(name, IMAGES)
        picture = Image.open(path).convert("RGB")  # lossless: nothing is transparent
        picture.save(path, optimize=True)
        text = PICTURE.sub(
            f'<img src="../images/methods/{name}.png" width="{picture.width // 2}"', page(name)
        )
        (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
