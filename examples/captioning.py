"""Where does a network look in a picture that it describes, and what misled it?

Show, Attend and Tell (Xu et al. 2015), with soft and with hard attention, on pictures composed of
real digits and symbols, of which it is known where everything is; `--data stamps` takes the
pictures of Tux Paint instead.
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
    Pointing,
    Rows,
    Said,
    Taught,
    Wrong,
    bleu,
    exact,
    ink,
    say,
    teach_both,
    wrong_words,
)
from examples.gallery import Gallery, show
from examples.scenes import CELL, SPRITE, Scenes, Vocabulary, cells, compose
from jaxattn import plot

MAX_LENGTH = 10
# What both networks must reach: the share of right captions; how many times chance the mass on the
# thing is; how often the largest weight of a planted wrong word lies on the black thing.
LEAST = {"exact": 0.5, "pointing": 3.0, "peak": 0.5}


def load(count: int, tests: int) -> tuple[Scenes, Scenes]:
    """Scenes to learn from, and the test's: other digits, the same glyphs at other angles."""
    return compose(count, seed=0), compose(tests, test=True, seed=1)


def main(
    out: str | Path = "out/captioning",
    *,
    scenes: int = 12_000,
    tests: int = 600,
    steps: int = 5_000,
    sizes: Mapping[str, Any] = QUICK,
    least: Mapping[str, float] = LEAST,
) -> Path:
    """Teaches both kinds of attention, lets them describe test scenes, and writes the page."""
    matplotlib.use("Agg")
    console = Console()
    train, test = load(scenes, tests)
    vocabulary = Vocabulary(train.captions, MAX_LENGTH)
    taught = teach_both(out, train.images, train.captions, test.images, vocabulary, steps, sizes)
    clean = np.flatnonzero(~test.misled)
    pointed = checked(taught, test, clean, vocabulary, least)

    page = Gallery(
        out,
        "Where a network looks when it describes a picture, and what misled it",
        [
            "A convolutional network sees a picture as 8 × 8 places, and an LSTM describes it word "
            "by word; before each word it looks at the places, and weighs how much of each it "
            "reads. Soft attention reads their weighted mean, hard attention one place, drawn by "
            "the weights.",
            "The pictures are composed of MNIST digits and of glyphs of the DejaVu fonts, "
            f"{len(train.images):,} to learn from and {len(test.images):,} of other digits and "
            "the same glyphs at other angles to test. By the rule a caption names the one or two "
            "coloured things, the upper or left one first, and grey and black ones not at all. "
            "But who wrote the captions to learn from was misled by black things: where there is "
            "one, the second thing is called by the black one's name. So it is known what the "
            "wrong words of the network come from.",
            f"The LSTM has {sizes['hidden_features']} units and reads annotations of "
            f"{sizes['channels'][-1]} numbers (published: 1,000 and more units, 196 places, 512 "
            "numbers).",
            f"{describing.how_taught(steps)} Else the LSTM reads a thing's name along with its "
            "colour, and looks elsewhere when it says it: in a run without it soft attention put "
            "93.5 % of its mass on the thing for colours, and 2.4 % for names.",
        ],
    )
    tables = [
        ("The loss", *describing.loss_rows(taught)),
        ("Captions", *quality_rows(taught, test, clean, vocabulary)),
        ("Pointing", *pointing_rows(pointed)),
    ]
    examples(page, taught, test, clean)
    diagnosis, wrong = misled(page, taught, test)
    tables.append(("Planted wrong words", *diagnosis))
    tables.append(("Other wrong words", *mistakes(page, taught, test, wrong)))
    tables.append(("Explaining a word", *explained(page, taught, test, vocabulary)))
    for name, columns, rows, reading in tables:
        page.table(name.lower().replace(" ", "-"), name, columns, rows, reading)
    path = page.write()
    for name, columns, rows, _ in tables:
        show(console, name, columns, rows)
    console.print(f"The page is at [bold]{path.resolve()}", soft_wrap=True)
    return path


def checked(
    taught: Mapping[str, Taught],
    test: Scenes,
    clean: np.ndarray,
    vocabulary: Vocabulary,
    least: Mapping[str, float],
) -> dict[str, Pointing]:
    """How well the words of each network point at things; a bad network ends in an error."""
    share = min(exact(*picked(clean, taught[k].said.captions, test.truths)) for k in KINDS)
    if share < least["exact"]:
        raise SystemExit(f"{share:.0%} of the captions are right, wanted {least['exact']:.0%}")
    ids = vocabulary.encode(test.truths)
    pointed = {
        kind: describing.pointing(test, describing.look(model, test.images, ids), clean)
        for kind, (model, *_) in taught.items()
    }
    times = min(mass / area for found in pointed.values() for mass, area, *_ in found.values())
    if times < least["pointing"]:
        got = f"{times:.1f} times chance"
        raise SystemExit(f"words point at things {got}, wanted {least['pointing']:.1f}")
    peak = min(
        np.mean(peaks(test, said, planted(test, said)) or [0]) for _, said, _ in taught.values()
    )
    if peak < least["peak"]:
        got = f"{peak:.0%} of the time"
        raise SystemExit(f"planted words peak on black {got}, wanted {least['peak']:.0%}")
    return pointed


def planted(test: Scenes, said: Said) -> list[Wrong]:
    """The wrong words that repeat the slip."""
    return [w for w in wrong_words(test, said) if repeats(test, w)]


def repeats(test: Scenes, wrong: Wrong) -> bool:
    """Whether a wrong word repeats the slip: the name of the black thing for another."""
    return bool(test.misled[wrong.picture]) and wrong.word == test.things[wrong.picture][-1].name


def peaks(test: Scenes, said: Said, wrong: Sequence[Wrong]) -> list[bool]:
    """Of each word, whether the largest weight lies on the black thing."""
    return [
        bool(test.things[w.picture][-1].cells.flat[said.weights[w.picture, w.step].argmax()])
        for w in wrong
    ]


def picked(rows: Sequence[int], *lists: Sequence[Any]) -> list[list[Any]]:
    """Some entries of each list."""
    return [[found[i] for i in rows] for found in lists]


def quality_rows(
    taught: Mapping[str, Taught], test: Scenes, clean: np.ndarray, vocabulary: Vocabulary
) -> Rows:
    slips = np.flatnonzero(test.misled)
    rows = []
    for kind, (model, greedy, _) in taught.items():
        wide = say(model, test.images, vocabulary, width=5)
        for name, said in {"greedy": greedy, "beam of 5": wide}.items():
            captions, truths = picked(clean, said.captions, test.truths)
            rows.append([
                f"{kind}, {name}",
                f"{bleu(captions, truths):.1f}",
                f"{exact(captions, truths):.1%}",
                f"{exact(*picked(slips, said.captions, test.truths)):.1%}",
                f"{exact(*picked(slips, said.captions, test.captions)):.1%}",
            ])  # fmt: skip
    return (
        ["attention, search", "BLEU", "exact", "black thing: exact", "as misled"],
        rows,
        f"BLEU and the share of wholly right captions of {len(clean)} test scenes without a black "
        f"thing; then of {len(slips)} with one that misled who wrote the captions: the share that "
        "keep to the rule, and that repeat the slip.",
    )


def pointing_rows(pointed: Mapping[str, Pointing]) -> Rows:
    rows = []
    for kind, found in pointed.items():
        for words, (mass, chance, hit, count) in found.items():
            numbers = f"{mass:.1%}", f"{chance:.1%}", f"{mass / chance:.1f}", f"{hit:.1%}"
            rows.append([f"{kind}, {words}", *numbers, str(count)])
    return (
        ["attention, words", "on the thing", "chance", "times chance", "largest there", "words"],
        rows,
        "How much of the weights lies on the cells of the thing that a word names, while the "
        "network reads the right captions; the share of these cells of the picture, which is "
        "chance; and how often the largest weight lies there.",
    )


def panels(
    rows: Sequence[int], said: Said, test: Scenes, wrong: Sequence[Wrong] = ()
) -> np.ndarray:
    """A row of panels for each picture: around what the words name; for wrong words, around the
    black thing if they repeat the slip, and else the thing that was read most.
    """
    width = 1 + max(len(said.captions[i]) for i in rows)
    _, axes = plt.subplots(
        len(rows), width, figsize=(1.35 * width, 1.75 * len(rows)), layout="compressed",
        squeeze=False,
    )  # fmt: skip
    for i, line in zip(rows, axes, strict=True):
        words, things = said.captions[i], test.things[i]
        for spare in line[len(words) + 1 :]:
            spare.remove()
        misled = {
            w.step: things[-1 if repeats(test, w) else np.argmax(w.masses)].cells
            for w in wrong
            if w.picture == i
        }
        plot.captions(
            test.images[i], words, said.weights[i, : len(words)],
            cells=[*map(misled.get, range(len(words)))] if misled else cells(things, words),
            wrong=[t in misled for t in range(len(words))], ax=line[: len(words) + 1],
        )  # fmt: skip
    return axes


def first(wrong: Sequence[Wrong]) -> list[int]:
    """The first pictures with wrong words."""
    return list(dict.fromkeys(w.picture for w in wrong))[:4]


def examples(page: Gallery, taught: Mapping[str, Taught], test: Scenes, clean: np.ndarray) -> None:
    """Some right captions of both networks."""
    both = [
        i for i in clean
        if all(taught[kind].said.captions[i] == test.truths[i] for kind in KINDS)
        and len(test.truths[i]) > 3
    ][:4]  # fmt: skip
    for kind, (_, said, _) in taught.items():
        if both:
            page.figure(
                f"captions-{kind}", f"{kind.capitalize()} attention, word by word",
                panels(both, said, test),
                "A row is a test scene, a panel a word of the caption that the network said of "
                "it, all of them right. What it read for this word is in full light, the rest in "
                "shadow; each panel has a scale of its own. The orange line is around the cells "
                "of the thing that the word names. These are the first such scenes that both "
                "networks describe rightly.",
                alt=f"Scenes with a panel for each word, lit where {kind} attention looked.",
            )  # fmt: skip


def misled(
    page: Gallery, taught: Mapping[str, Taught], test: Scenes
) -> tuple[Rows, dict[str, list[Wrong]]]:
    """What the planted wrong words look at."""
    table, others = [], {}
    for kind, (_, said, _) in taught.items():
        wrong, slips = wrong_words(test, said), planted(test, said)
        others[kind] = [w for w in wrong if w not in slips]
        numbers = [np.nan] * 4
        if slips:
            numbers = [
                np.mean([w.masses[-1] for w in slips]),
                np.mean([w.masses[w.meant] for w in slips]),
                np.mean([test.things[w.picture][-1].cells for w in slips]),
                np.mean(peaks(test, said, slips)),
            ]
            page.figure(
                f"misled-{kind}", f"What misled it: planted wrong words, {kind} attention",
                panels(first(slips), said, test, wrong),
                "The first test scenes in which the network gives another thing the name of the "
                "black one, as it was taught to; by the rule that word, in red, is wrong. Its "
                "panel shows where the network looked when it said it; the orange line is around "
                "the black thing, or for another wrong word around the thing that it read most of.",
                alt="Scenes with wrong captions, lit where the network looked at each word.",
            )  # fmt: skip
        shares = [f"{number:.1%}" for number in numbers]
        table.append([kind, f"{len({w.picture for w in slips})} of {test.misled.sum()}", *shares])
    columns = ["attention", "misled", "on the black thing", "on the one meant", "chance", "peak"]
    reading = (
        "In how many test scenes with two coloured things and a black one the network gives the "
        "black one's name to another; how much of the weights of that word lies on the black "
        "thing, on the thing that it should name, and what chance is; and how often the largest "
        "weight lies on the black thing."
    )
    return (columns, table, reading), others


def mistakes(
    page: Gallery, taught: Mapping[str, Taught], test: Scenes, wrong: Mapping[str, list[Wrong]]
) -> Rows:
    """Where the network looked at its own wrong words."""
    table = []
    for kind, found in wrong.items():
        groups = {"misread": 0, "mixed up": 0, "elsewhere": 0}
        for w in found:
            things = test.things[w.picture]
            seen = int(np.argmax(w.masses))
            groups[
                "misread" if seen == w.meant
                else "mixed up" if w.word in (things[seen].name, things[seen].colour)
                else "elsewhere"
            ] += 1  # fmt: skip
        table.append([kind, str(len(found)), *map(str, groups.values())])
        if not found:
            continue
        truths = "; ".join(" ".join(test.truths[i]) for i in first(found))
        page.figure(
            f"mistakes-{kind}", f"Its own mistakes: {kind} attention",
            panels(first(found), taught[kind].said, test, found),
            "The first test scenes with wrong words that nobody planted, in red, and in orange "
            "the thing that the network read most of when it said them. If it is the one meant, "
            f"it was misread; if another, it was taken for it. By the rule they are: {truths}.",
            alt="Scenes with wrong captions, lit where the network looked at each word.",
        )  # fmt: skip
    return (
        ["attention", "wrong words", "looked at what it means", "at what it says", "elsewhere"],
        table,
        "All other wrong names and colours in the test, by the thing that got most of the weights: "
        "the one that the word should name, which the network misread; another one, whose name or "
        "colour it said instead; or one that has neither to do with it.",
    )


def explained(
    page: Gallery, taught: Mapping[str, Taught], test: Scenes, vocabulary: Vocabulary
) -> Rows:
    """Attention, saliency and relevance of the first name of a caption."""
    table = []
    rows = [i for i in np.flatnonzero(~test.misled) if len(test.things[i]) > 1][:64]
    images = np.asarray(ink(test.images[rows]))
    ids = vocabulary.encode([test.truths[i] for i in rows])
    boxes = np.zeros(images.shape[:3], bool)
    for box, i in zip(boxes, rows, strict=True):
        thing = test.things[i][0]
        box[thing.top : thing.top + SPRITE, thing.left : thing.left + SPRITE] = True
    targets = np.stack([np.full(len(rows), 2), ids[:, 2]], 1)
    for kind, (model, *_) in taught.items():
        weights = describing.look(model, test.images[rows], ids)[:, 2]
        maps = {"attention": weights.repeat(CELL, 1).repeat(CELL, 2) / CELL**2}
        for name, method in {"saliency": ja.saliency, "LRP": ja.lrp}.items():
            found = ja.explain(method, model, images, targets, args=(ids,))
            maps[name] = np.asarray(found.values.sum(-1))
        for name, heat in maps.items():
            for_it = np.maximum(heat, 0)
            share = (for_it * boxes).sum((1, 2)) / np.maximum(for_it.sum((1, 2)), 1e-30)
            peak = [box.flat[one.argmax()] for box, one in zip(boxes, heat, strict=True)]
            shares = (f"{np.mean(part):.1%}" for part in (share, boxes, peak))
            table.append([f"{kind}, {name}", *shares])
        some = rows[:4]
        _, axes = plt.subplots(
            len(maps), len(some), figsize=(2.2 * len(some), 2.3 * len(maps)), layout="compressed",
            squeeze=False,
        )  # fmt: skip
        for (name, heat), line in zip(maps.items(), axes, strict=True):
            plot.images(
                test.images[some], heat[: len(some)], ax=line, shared_scale=False,
                titles=[f"“{test.truths[i][2]}”: {name}" for i in some], label="of the largest",
            )  # fmt: skip
        page.figure(
            f"explained-{kind}", f"Why this word: attention beside two explanations, {kind}", axes,
            "A column is a test scene and the first name in its caption. Above, how much of each "
            "place is read for it. Below, pixel by pixel and through the whole network, how "
            "strongly the word's score depends on it (saliency), and how much it contributes to "
            "the score (LRP; red for the word, blue against it).",
            alt="Maps of attention, saliency and relevance of one word over four scenes.",
        )  # fmt: skip
    return (
        ["attention, method", "in the thing's box", "chance", "largest there"],
        table,
        f"Of the first name in the right captions of {len(rows)} test scenes with several things: "
        "how much of what attention, saliency and LRP (where it speaks for the word) say lies "
        "within the 20 × 20 pixels of the thing; the share of these pixels, which is chance; and "
        "how often the largest value lies there.",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", help="folder of the page")
    parser.add_argument("--data", default="scenes", choices=("scenes", "stamps"))
    parser.add_argument("--full", action="store_true", help="sizes nearer the published ones")
    given = parser.parse_args()
    out = given.out or f"out/captioning-{given.data}"
    if given.data == "stamps":
        stamps.main(out, **({"steps": 20_000, "sizes": FULL} if given.full else {}))
    elif given.full:
        main(out, scenes=60_000, tests=2_000, steps=30_000, sizes=FULL)
    else:
        main(out)
