"""Train image captioners and evaluate their attention (`make captions`).

Show, Attend and Tell (Xu et al. 2015) with soft and hard attention, on synthetic images of digits
and symbols with known locations. `--data stamps` uses the stamps of Tux Paint instead.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

import jaxattn as ja
from examples import describing, stamps
from examples.describing import (
    FULL,
    KINDS,
    QUICK,
    Captions,
    PointingScores,
    Rows,
    TrainedCaptioner,
    WordError,
    bleu,
    exact,
    find_errors,
    first_images,
    generate,
    network_input,
    peaks_on_black,
    planted_errors,
    repeats_planted_error,
    select,
    train_both,
)
from examples.gallery import Gallery, print_table
from examples.scenes import CELL, SPRITE, Scenes, Vocabulary, compose, word_cells
from jaxattn import plot

MAX_LENGTH = 10
# Required of both networks: the fraction of correct captions; the attention on the named object as
# a multiple of chance; how often the largest weight of a planted error is on the black object.
MINIMUM = {"exact": 0.5, "pointing": 3.0, "peak": 0.5}


def load(count: int, tests: int) -> tuple[Scenes, Scenes]:
    """Return training scenes, and test scenes with other digits and angles."""
    return compose(count, seed=0), compose(tests, test=True, seed=1)


def main(
    out: str | Path = "out/captioning",
    *,
    train_scenes: int = 12_000,
    test_scenes: int = 600,
    steps: int = 5_000,
    sizes: Mapping[str, Any] = QUICK,
    minimum: Mapping[str, float] = MINIMUM,
) -> Path:
    """Train both kinds of attention, caption the test scenes, and write the page."""
    matplotlib.use("Agg")
    console = Console()
    train, test = load(train_scenes, test_scenes)
    vocabulary = Vocabulary(train.captions, MAX_LENGTH)
    trained = train_both(out, train.images, train.captions, test.images, vocabulary, steps, sizes)
    clean = np.flatnonzero(~test.mislabelled)
    scores = check(trained, test, clean, vocabulary, minimum)

    page = Gallery(
        out,
        "Attention of image captioners, and planted errors",
        [
            "A convolutional network encodes an image as 8 × 8 annotation vectors, and an LSTM "
            "generates the caption word by word. Before each word, attention weights are computed "
            "for the locations. Soft attention reads the weighted mean of the annotation vectors, "
            "hard attention reads one location, sampled with the weights as probabilities.",
            "The images are composed of MNIST digits and of glyphs of the DejaVu fonts: "
            f"{len(train.images):,} for training, and {len(test.images):,} with other digits and "
            "angles for testing. A reference caption names the one or two coloured objects, the "
            "upper or left one first; grey and black objects are not named. The training captions "
            "contain a planted error: in images with two coloured objects and a black one, the "
            "second object has the name of the black one. The cause of the corresponding wrong "
            "words is therefore known.",
            f"The LSTM has {sizes['hidden_features']} units, and annotation vectors have "
            f"{sizes['channels'][-1]} features (published: at least 1,000 units, 196 locations, "
            "512 features).",
            f"{describing.training_note(steps)} Otherwise the LSTM reads the name of an object "
            "together with its colour, and attention is elsewhere when the name is generated: in "
            "a run without this change, soft attention had 93.5 % of its mass on the object for "
            "colours, and 2.4 % for names.",
        ],
    )
    tables = [
        ("The loss", *describing.loss_rows(trained)),
        ("Captions", *quality_rows(trained, test, clean, vocabulary)),
        ("Pointing", *pointing_rows(scores)),
    ]
    examples(page, trained, test, clean)
    planted_table, other = planted_figures(page, trained, test)
    tables.append(("Planted wrong words", *planted_table))
    tables.append(("Other wrong words", *other_errors(page, trained, test, other)))
    tables.append(("Explaining a word", *explain_names(page, trained, test, vocabulary)))
    for name, columns, rows, reading in tables:
        page.table(name, columns, rows, reading)
    shown = clean[: describing.EXPLAINED]
    references = [test.references[i] for i in shown]
    path = describing.write(page, trained["soft"].model, test.images[shown], references, vocabulary)
    for name, columns, rows, _ in tables:
        print_table(console, name, columns, rows)
    console.print(f"The page is at [bold]{path.resolve()}", soft_wrap=True)
    return path


def check(
    trained: Mapping[str, TrainedCaptioner],
    test: Scenes,
    clean: np.ndarray,
    vocabulary: Vocabulary,
    minimum: Mapping[str, float],
) -> dict[str, PointingScores]:
    """Return the pointing scores of each network.

    Raises:
        SystemExit: If a network is below one of the `minimum` scores.
    """
    share = min(
        exact(*select(clean, trained[k].generated.captions, test.references)) for k in KINDS
    )
    if share < minimum["exact"]:
        needed = f"{minimum['exact']:.0%}"
        raise SystemExit(f"{share:.0%} of the captions are correct, needed at least {needed}")
    ids = vocabulary.encode(test.references)
    scores = {}
    for kind, (model, *_) in trained.items():
        attention = describing.caption_attention(model, test.images, ids)
        scores[kind] = describing.pointing(test, attention, clean)
    ratio = min(mass / area for of_kind in scores.values() for mass, area, *_ in of_kind.values())
    if ratio < minimum["pointing"]:
        needed = f"{minimum['pointing']:.1f}"
        raise SystemExit(
            f"attention on named objects is {ratio:.1f} times chance, needed at least {needed}"
        )
    peak = min(
        np.mean(peaks_on_black(test, generated, planted_errors(test, generated)) or [0])
        for _, generated, _ in trained.values()
    )
    if peak < minimum["peak"]:
        raise SystemExit(
            f"the largest weight of planted errors is on the black object in {peak:.0%}, needed "
            f"at least {minimum['peak']:.0%}"
        )
    return scores


def quality_rows(
    trained: Mapping[str, TrainedCaptioner], test: Scenes, clean: np.ndarray, vocabulary: Vocabulary
) -> Rows:
    """Return the table of caption quality."""
    mislabelled_rows = np.flatnonzero(test.mislabelled)
    rows = []
    for kind, (model, greedy, _) in trained.items():
        beam = generate(model, test.images, vocabulary, width=5)
        for name, generated in {"greedy": greedy, "beam of 5": beam}.items():
            captions, references = select(clean, generated.captions, test.references)
            rows.append([
                f"{kind}, {name}",
                f"{bleu(captions, references):.1f}",
                f"{exact(captions, references):.1%}",
                f"{exact(*select(mislabelled_rows, generated.captions, test.references)):.1%}",
                f"{exact(*select(mislabelled_rows, generated.captions, test.captions)):.1%}",
            ])  # fmt: skip
    return (
        ["attention, search", "BLEU", "exact", "black object: exact", "planted error"],
        rows,
        f"BLEU and the fraction of captions that equal the reference, for {len(clean)} test scenes "
        f"without a planted error; then, for {len(mislabelled_rows)} test scenes with two coloured "
        "objects and a black one, the fraction of captions that equal the reference, and that "
        "repeat the planted error.",
    )


def pointing_rows(scores: Mapping[str, PointingScores]) -> Rows:
    """Return the table of pointing scores."""
    rows = []
    for kind, of_kind in scores.items():
        for words, (mass, chance, hits, count) in of_kind.items():
            cells = f"{mass:.1%}", f"{chance:.1%}", f"{mass / chance:.1f}", f"{hits:.1%}"
            rows.append([f"{kind}, {words}", *cells, str(count)])
    return (
        ["attention, words", "on the object", "chance", "times chance", "largest there", "words"],
        rows,
        "The share of the attention on the grid cells of the object that a word names, for the "
        "reference captions; the share of these cells in the grid, which is chance; the ratio of "
        "both; and how often the largest weight is on these cells.",
    )


def panels(
    rows: Sequence[int], generated: Captions, test: Scenes, errors: Sequence[WordError] = ()
) -> np.ndarray:
    """Draw a row of panels for each image, with an outline around the object of each word.

    With `errors`, only wrong words have an outline: around the black object if they repeat the
    planted error, otherwise around the object with the most attention.
    """
    width = 1 + max(len(generated.captions[i]) for i in rows)
    _, axes = plt.subplots(
        len(rows), width, figsize=(1.35 * width, 1.75 * len(rows)), layout="compressed",
        squeeze=False,
    )  # fmt: skip
    for i, line in zip(rows, axes, strict=True):
        words, objects = generated.captions[i], test.objects[i]
        for unused in line[len(words) + 1 :]:
            unused.remove()
        error_cells = {
            w.step: objects[-1 if repeats_planted_error(test, w) else np.argmax(w.masses)].cells
            for w in errors
            if w.image == i
        }
        plot.captions(
            test.images[i], words, generated.weights[i, : len(words)],
            cells=[error_cells.get(t) for t in range(len(words))] if error_cells
            else word_cells(objects, words),
            wrong=[t in error_cells for t in range(len(words))], ax=line[: len(words) + 1],
        )  # fmt: skip
    return axes


def examples(
    page: Gallery, trained: Mapping[str, TrainedCaptioner], test: Scenes, clean: np.ndarray
) -> None:
    """Add figures of correct captions of both networks."""
    rows = [
        i for i in clean
        if all(trained[kind].generated.captions[i] == test.references[i] for kind in KINDS)
        and len(test.references[i]) > 3
    ][:4]  # fmt: skip
    for kind, (_, generated, _) in trained.items():
        if rows:
            page.figure(
                f"captions-{kind}", f"{kind.capitalize()} attention, word by word",
                panels(rows, generated, test),
                "Each row is a test scene, each panel a word of the generated caption; all words "
                "are correct. Bright regions have large attention weights; each panel has its own "
                "scale. The orange outline marks the grid cells of the object that the word names. "
                "Shown are the first scenes with two objects that both networks caption correctly.",
                alt=f"Scenes with a panel for each word, bright where {kind} attention is large.",
            )  # fmt: skip


def planted_figures(
    page: Gallery, trained: Mapping[str, TrainedCaptioner], test: Scenes
) -> tuple[Rows, dict[str, list[WordError]]]:
    """Add figures of the planted errors; return their table and all other errors."""
    table, other = [], {}
    for kind, (_, generated, _) in trained.items():
        errors, planted = find_errors(test, generated), planted_errors(test, generated)
        other[kind] = [w for w in errors if w not in planted]
        numbers = [np.nan] * 4
        if planted:
            numbers = [
                np.mean([w.masses[-1] for w in planted]),
                np.mean([w.masses[w.target] for w in planted]),
                np.mean([test.objects[w.image][-1].cells for w in planted]),
                np.mean(peaks_on_black(test, generated, planted)),
            ]
            page.figure(
                f"misled-{kind}", f"Planted wrong words, {kind} attention",
                panels(first_images(planted), generated, test, errors),
                "The first test scenes in which the network repeats the planted error: a coloured "
                "object has the name of the black one. Wrong words are red. Bright regions have "
                "large attention weights. The orange outline marks the black object or, for other "
                "wrong words, the object with the most attention.",
                alt="Scenes with wrong captions, bright where the attention of each word is large.",
            )  # fmt: skip
        shares = [f"{number:.1%}" for number in numbers]
        count = f"{len({w.image for w in planted})} of {test.mislabelled.sum()}"
        table.append([kind, count, *shares])
    columns = ["attention", "repeated", "on black object", "on correct object", "chance", "peak"]
    reading = (
        "The number of test scenes with two coloured objects and a black one in which the network "
        "repeats the planted error; the share of the attention of the wrong word on the black "
        "object and on the object that it should name; the share of the cells of the black object, "
        "which is chance; and how often the largest weight is on the black object."
    )
    return (columns, table, reading), other


def other_errors(
    page: Gallery,
    trained: Mapping[str, TrainedCaptioner],
    test: Scenes,
    errors: Mapping[str, list[WordError]],
) -> Rows:
    """Add figures of all other errors; return the table of their kinds."""
    table = []
    for kind, of_kind in errors.items():
        groups = {"misclassified": 0, "confused": 0, "elsewhere": 0}
        for w in of_kind:
            objects = test.objects[w.image]
            attended = int(np.argmax(w.masses))
            groups[
                "misclassified" if attended == w.target
                else "confused" if w.word in (objects[attended].name, objects[attended].colour)
                else "elsewhere"
            ] += 1  # fmt: skip
        table.append([kind, str(len(of_kind)), *map(str, groups.values())])
        if not of_kind:
            continue
        references = "; ".join(" ".join(test.references[i]) for i in first_images(of_kind))
        page.figure(
            f"mistakes-{kind}", f"Other wrong words, {kind} attention",
            panels(first_images(of_kind), trained[kind].generated, test, of_kind),
            "The first test scenes with other wrong words, in red. The orange outline marks the "
            "object with the most attention. If it is the object that the word should name, the "
            "network misclassified it; if it is another one, the network confused the objects. The "
            f"reference captions are: {references}.",
            alt="Scenes with wrong captions, bright where the attention of each word is large.",
        )  # fmt: skip
    return (
        ["attention", "wrong words", "on correct object", "on object of the word", "elsewhere"],
        table,
        "All other wrong names and colours in the test, by the object with the most attention: the "
        "object that the word should name, which is misclassified; another object with the "
        "generated name or colour, which is confused with it; or neither.",
    )


def explain_names(
    page: Gallery, trained: Mapping[str, TrainedCaptioner], test: Scenes, vocabulary: Vocabulary
) -> Rows:
    """Compare attention, saliency and LRP for the first name of a caption."""
    table = []
    rows = [i for i in np.flatnonzero(~test.mislabelled) if len(test.objects[i]) > 1][:64]
    images = np.asarray(network_input(test.images[rows]))
    ids = vocabulary.encode([test.references[i] for i in rows])
    boxes = np.zeros(images.shape[:3], bool)
    for box, i in zip(boxes, rows, strict=True):
        obj = test.objects[i][0]
        box[obj.top : obj.top + SPRITE, obj.left : obj.left + SPRITE] = True
    targets = np.stack([np.full(len(rows), 2), ids[:, 2]], 1)
    for kind, (model, *_) in trained.items():
        weights = describing.caption_attention(model, test.images[rows], ids)[:, 2]
        maps = {"attention": weights.repeat(CELL, 1).repeat(CELL, 2) / CELL**2}
        for name, method in {"saliency": ja.saliency, "LRP": ja.lrp}.items():
            attribution = ja.explain(method, model, images, targets, args=(ids,))
            maps[name] = np.asarray(attribution.values.sum(-1))
        for name, heat in maps.items():
            positive = np.maximum(heat, 0)
            share = (positive * boxes).sum((1, 2)) / np.maximum(positive.sum((1, 2)), 1e-30)
            peak = [box.flat[one.argmax()] for box, one in zip(boxes, heat, strict=True)]
            shares = (f"{np.mean(part):.1%}" for part in (share, boxes, peak))
            table.append([f"{kind}, {name}", *shares])
        shown = rows[:4]
        _, axes = plt.subplots(
            len(maps), len(shown), figsize=(2.2 * len(shown), 2.3 * len(maps)), layout="compressed",
            squeeze=False,
        )  # fmt: skip
        for (name, heat), line in zip(maps.items(), axes, strict=True):
            plot.images(
                test.images[shown], heat[: len(shown)], ax=line, shared_scale=False,
                titles=[f"“{test.references[i][2]}”: {name}" for i in shown],
                label="of the largest",
            )  # fmt: skip
        page.figure(
            f"explained-{kind}", f"Attention and attributions of a word, {kind} attention", axes,
            "Each column is a test scene and the first name in its reference caption. Top: the "
            "attention weights of the locations. Middle: saliency, the magnitude of the gradient "
            "of the word's logit with respect to each pixel, which has no sign. Bottom: LRP, the "
            "contribution of each pixel to the logit; red supports the word, blue opposes it.",
            alt="Maps of attention, saliency and relevance of one word over four scenes.",
        )  # fmt: skip
    return (
        ["attention, method", "in the object's box", "chance", "largest there"],
        table,
        f"For the first name in the reference captions of {len(rows)} test scenes with several "
        "objects: the share of the positive values of attention, saliency and LRP within the 20 × "
        "20 pixels of the object; the share of these pixels in the image, which is chance; and how "
        "often the largest value is within these pixels.",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", help="folder of the page")
    parser.add_argument("--data", default="scenes", choices=("scenes", "stamps"))
    parser.add_argument("--full", action="store_true", help="sizes nearer the published ones")
    arguments = parser.parse_args()
    out = arguments.out or f"out/captioning-{arguments.data}"
    if arguments.data == "stamps":
        stamps.main(out, **({"steps": 20_000, "sizes": FULL} if arguments.full else {}))
    elif arguments.full:
        main(out, train_scenes=60_000, test_scenes=2_000, steps=30_000, sizes=FULL)
    else:
        main(out)
