"""The Python blocks of a page: the output shown for each, and the pictures that they save."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from PIL import Image

DOCS = Path(__file__).parent
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
PRINTED = re.compile(r"^print\(.*\)  +# (.*)$", re.MULTILINE)
# Progress of the training of a network of the examples, which happens once.
PROGRESS = re.compile(r"^training .*\n", re.MULTILINE)
NUMBER = re.compile(r"-?\d+\.\d*(?:e-?\d+)?|-?\d+")
# The path of a picture behind `images/`, and the width at which the page shows it.
PICTURE = re.compile(r'<img src="(?:\.\./)*images/([\w/]+)\.png" width="(\d+)"')
# A pixel of the page is two pixels of the picture.
STYLE = {"savefig.dpi": 180, "savefig.bbox": "tight", "savefig.facecolor": "white"}


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the code of each Python block and the output shown for it.

    The output is the text block that follows, or the comments behind the calls of `print`.
    """
    return [
        (code, output or "\n".join(PRINTED.findall(code))) for code, output in BLOCK.findall(text)
    ]


def numbers_and_text(output: str) -> tuple[list[float], list[str]]:
    """Separate the numbers of an output from its words."""
    return [float(n) for n in NUMBER.findall(output)], NUMBER.sub("#", output).split()


def run(text: str, name: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Run the blocks of a page one after the other, and yield what each prints and what is shown.

    They share their variables, run in `folder`, and save their pictures there.
    """
    namespace = {"__name__": "__main__"}
    for code, shown in blocks(text):
        printed = io.StringIO()
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stdout(printed),
            matplotlib.rc_context(STYLE),
        ):
            exec(compile(code, name, "exec"), namespace)
        plt.close("all")
        yield PROGRESS.sub("", printed.getvalue()), shown


def keep(picture: Path, page: Path) -> None:
    """Compress a picture without loss, and write its width into the page that shows it."""
    image = Image.open(picture).convert("RGB")  # nothing is transparent
    image.save(picture, optimize=True)

    def resized(match: re.Match[str]) -> str:
        if Path(match[1]).stem != picture.stem:
            return match[0]
        return match[0].replace(f'width="{match[2]}"', f'width="{image.width // 2}"')

    page.write_text(PICTURE.sub(resized, page.read_text("utf-8")), "utf-8")
