"""The pictures of Tux Paint, drawn and photographed, with a sentence each.

They are Debian's package `tuxpaint-stamps-default`, under the GPL, version 2.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from rich.console import Console

from examples.describing import QUICK, bleu, exact, how_taught, loss_rows, teach_both
from examples.gallery import Gallery, show
from examples.scenes import CANVAS, Vocabulary
from jaxattn import plot

FOLDER = Path("/usr/share/tuxpaint/stamps")
LONGEST = 8  # words of a caption that is kept


def load(folder: Path = FOLDER) -> tuple[np.ndarray, list[list[str]]]:
    """Pictures (B, 64, 64, 3) on white, integers up to 255, and their captions in words."""
    images, captions = [], []
    for path in sorted(folder.rglob("*.png")):
        text = path.with_suffix(".txt")
        if not text.exists() or path.stem.endswith(("_mirror", "_flip")):
            continue
        line = text.read_text(encoding="utf-8").splitlines()[0]
        words = re.findall(r"[^\W_]+(?:[’'-][^\W_]+)*", line.lower())
        if 1 <= len(words) <= LONGEST:
            images.append(on_white(path))
            captions.append(words)
    if not images:
        raise SystemExit(f"{folder} holds no pictures: apt-get install tuxpaint-stamps-default")
    return np.stack(images), captions


def on_white(path: Path) -> np.ndarray:
    """A picture on white paper, as large as it fits."""
    picture = Image.open(path).convert("RGBA")
    picture.thumbnail((CANVAS, CANVAS))
    paper = Image.new("RGBA", (CANVAS, CANVAS), "white")
    corner = (CANVAS - picture.width) // 2, (CANVAS - picture.height) // 2
    paper.alpha_composite(picture, corner)
    return np.asarray(paper.convert("RGB"))


def main(
    out: str | Path = "out/captioning-stamps",
    *,
    steps: int = 1_500,
    sizes: Mapping[str, Any] = QUICK,
    tests: float = 0.15,
) -> Path:
    """Teaches both kinds of attention some of the stamps, and shows what they say of all."""
    matplotlib.use("Agg")
    console = Console()
    images, captions = load()
    order = np.random.default_rng(0).permutation(len(images))
    test, train = np.split(order, [round(tests * len(images))])
    vocabulary = Vocabulary(captions, LONGEST + 1)
    taught = teach_both(
        out, images[train], [captions[i] for i in train], images, vocabulary, steps, sizes
    )
    counts = Counter(word for i in train for word in set(captions[i]))
    page = Gallery(
        out,
        "What a network says of the stamps of Tux Paint, and where it looks",
        [
            f"{len(images)} pictures of Tux Paint have a caption of at most {LONGEST} words. The "
            f"networks, with soft and with hard attention, learnt {len(train)} of them; "
            f"{len(test)} they see for the first time. Most things are drawn "
            "only once, so that of new pictures little more than a likeness can be said; where it "
            "looked shows which.",
            how_taught(steps),
        ],
    )
    rows = []
    for kind, (_, said, _) in taught.items():
        for name, part in {"learnt": train, "new": test}.items():
            answers = [said.captions[i] for i in part]
            truths = [captions[i] for i in part]
            pairs = [
                word in answer
                for answer, truth in zip(answers, truths, strict=True)
                for word in set(truth)
                if 0 < counts[word] < len(train) / 20
            ]
            rows.append([
                f"{kind}, {name}", f"{bleu(answers, truths):.1f}", f"{exact(answers, truths):.1%}",
                f"{np.mean(pairs):.1%}" if pairs else "–", f"{len(part)}",
            ])  # fmt: skip
    tables = {
        "The loss": loss_rows(taught),
        "Captions": (
            ["attention, pictures", "BLEU", "exact", "telling words", "pictures"],
            rows,
            "BLEU, and the share of wholly right captions. Telling words are those that at most "
            "one caption in twenty has, and that some caption to learn from had: the share of "
            "them that was said.",
        ),
    }
    for kind, (_, said, _) in taught.items():
        learnt = [i for i in train if said.captions[i] == captions[i] and len(captions[i]) > 1]
        wrong = [i for i in test if said.captions[i] and said.captions[i] != captions[i]]
        for name, part in {"learnt": learnt[:5], "new": wrong[:5]}.items():
            if not part:
                continue
            width = 1 + max(len(said.captions[i]) for i in part)
            _, axes = plt.subplots(
                len(part), width, figsize=(1.35 * width, 1.75 * len(part)), layout="compressed",
                squeeze=False,
            )  # fmt: skip
            for i, line in zip(part, axes, strict=True):
                words = said.captions[i]
                for spare in line[len(words) + 1 :]:
                    spare.remove()
                plot.captions(
                    images[i], words, said.weights[i, : len(words)],
                    wrong=[word not in captions[i] for word in words], ax=line[: len(words) + 1],
                )  # fmt: skip
            right = "; ".join(" ".join(captions[i]) for i in part)
            page.figure(
                f"{name}-{kind}", f"{name.capitalize()} pictures, {kind} attention", axes,
                "A row is a picture, a panel a word that the network said of it, lit where it "
                "looked. Words in red with a cross are not in the caption that belongs there; what "
                f"is lit is what was read for them. The captions that belong there: {right}.",
                alt="Stamps with a panel for each word, lit where the network looked.",
            )  # fmt: skip
    for name, table in tables.items():
        page.table(name.lower().replace(" ", "-"), name, *table)
        show(console, name, *table[:2])
    path = page.write()
    console.print(f"The page is at [bold]{path.resolve()}", soft_wrap=True)
    return path
