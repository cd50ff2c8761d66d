"""Train captioners on the stamps of Tux Paint (`python -m examples.captioning --data stamps`).

The stamps, drawings and photographs with a caption each, are Debian's package
`tuxpaint-stamps-default`, under the GPL, version 2.
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

from examples.describing import (
    EXPLAINED,
    QUICK,
    bleu,
    exact,
    loss_rows,
    train_both,
    training_note,
    write,
)
from examples.gallery import Gallery, print_table
from examples.scenes import CANVAS, Vocabulary
from jaxattn import plot

FOLDER = Path("/usr/share/tuxpaint/stamps")
LONGEST = 8  # largest number of words of a caption


def load(folder: Path = FOLDER) -> tuple[np.ndarray, list[list[str]]]:
    """Return images on white (B, 64, 64, 3), integers up to 255, and their captions."""
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
        raise SystemExit(f"{folder} contains no stamps: apt-get install tuxpaint-stamps-default")
    return np.stack(images), captions


def on_white(path: Path) -> np.ndarray:
    """Return an image on a white canvas, scaled to its size."""
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
    test_fraction: float = 0.15,
) -> Path:
    """Train both kinds of attention on a part of the stamps, caption all, and write the page."""
    matplotlib.use("Agg")
    console = Console()
    images, captions = load()
    order = np.random.default_rng(0).permutation(len(images))
    test, train = np.split(order, [round(test_fraction * len(images))])
    vocabulary = Vocabulary(captions, LONGEST + 1)
    trained = train_both(
        out, images[train], [captions[i] for i in train], images, vocabulary, steps, sizes
    )
    counts = Counter(word for i in train for word in set(captions[i]))
    page = Gallery(
        out,
        "Captions of the stamps of Tux Paint, with attention",
        [
            f"{len(images)} stamps of Tux Paint have a caption of at most {LONGEST} words. The "
            f"networks, with soft and with hard attention, were trained on {len(train)} of them "
            f"and tested on {len(test)}. Most objects occur only once. Captions of test images "
            "therefore name similar objects of the training set; the attention shows which parts "
            "of an image are similar.",
            training_note(steps),
        ],
    )
    headings = {"learnt": "Training images", "new": "Test images"}
    rows = []
    for kind, (_, generated, _) in trained.items():
        for name, part in {"learnt": train, "new": test}.items():
            captions_of_part = [generated.captions[i] for i in part]
            references = [captions[i] for i in part]
            hits = [
                word in caption
                for caption, reference in zip(captions_of_part, references, strict=True)
                for word in set(reference)
                if 0 < counts[word] < len(train) / 20
            ]
            rows.append([
                f"{kind}, {headings[name].lower()}", f"{bleu(captions_of_part, references):.1f}",
                f"{exact(captions_of_part, references):.1%}",
                f"{np.mean(hits):.1%}" if hits else "–", f"{len(part)}",
            ])  # fmt: skip
    tables = {
        "The loss": loss_rows(trained),
        "Captions": (
            ["attention, images", "BLEU", "exact", "rare words", "images"],
            rows,
            "BLEU, the fraction of captions without an error, and the recall of rare words: words "
            "that occur in at most one training caption in twenty, but in at least one.",
        ),
    }
    for kind, (_, generated, _) in trained.items():
        correct_train = [
            i for i in train if generated.captions[i] == captions[i] and len(captions[i]) > 1
        ]
        wrong_test = [
            i for i in test if generated.captions[i] and generated.captions[i] != captions[i]
        ]
        for name, part in {"learnt": correct_train[:5], "new": wrong_test[:5]}.items():
            if not part:
                continue
            width = 1 + max(len(generated.captions[i]) for i in part)
            _, axes = plt.subplots(
                len(part), width, figsize=(1.35 * width, 1.75 * len(part)), layout="compressed",
                squeeze=False,
            )  # fmt: skip
            for i, line in zip(part, axes, strict=True):
                words = generated.captions[i]
                for unused in line[len(words) + 1 :]:
                    unused.remove()
                plot.captions(
                    images[i], words, generated.weights[i, : len(words)],
                    wrong=[word not in captions[i] for word in words], ax=line[: len(words) + 1],
                )  # fmt: skip
            references = "; ".join(" ".join(captions[i]) for i in part)
            page.figure(
                f"{name}-{kind}", f"{headings[name]}, {kind} attention", axes,
                "Each row is an image, each panel a word of the generated caption. Bright regions "
                "have large attention weights. Words in red with a cross are not in the reference "
                f"caption. The reference captions are: {references}.",
                alt="Stamps with a panel for each word, bright where attention is large.",
            )  # fmt: skip
    for name, table in tables.items():
        page.table(name, *table)
        print_table(console, name, *table[:2])
    shown = test[:EXPLAINED]
    references = [captions[i] for i in shown]
    path = write(page, trained["soft"].model, images[shown], references, vocabulary)
    console.print(f"The page is at [bold]{path.resolve()}", soft_wrap=True)
    return path
