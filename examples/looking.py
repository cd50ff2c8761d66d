"""Figures and tables of where a network looks."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

import jaxattn as ja
from examples.clutter import Digits, Scenes
from examples.explaining import pick
from examples.gallery import Gallery
from jaxattn import plot
from jaxattn.models import Glimpses, RecurrentAttention

LABEL, RIVAL, LEARNED, RANDOM, PALE = "#0072b2", "#d55e00", "#0072b2", "#d55e00", "0.8"
WIDTH = 28  # of a digit
CHOSEN = "Images that it answers rightly along the path drawn are preferred."


def look(model: RecurrentAttention, images: np.ndarray, **options: Any) -> Glimpses:
    """Every glimpse of some images, as NumPy arrays."""
    return jax.tree.map(np.asarray, model.look(images, **options))


def path(model: RecurrentAttention, image: np.ndarray, seen: Glimpses, i: int, ax: Axes) -> None:
    """Draws one path, its wider patches cut at the edge."""
    plot.glimpses(image, seen.locations[i], model.sensor.size, scales=model.sensor.scales, ax=ax)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.softmax(logits))


def opinion(ax: Axes, chances: np.ndarray, label: int) -> None:
    """Draws the probabilities after each glimpse: the label's, and the strongest others'."""
    steps = np.arange(1, len(chances) + 1)
    others = [k for k in np.argsort(-chances.max(0)) if k != label][:3]
    for k in others:
        ax.plot(steps, chances[:, k], color=RIVAL, alpha=0.35, linewidth=1)
    ax.plot(steps, chances[:, label], color=LABEL, marker="o", markersize=4)
    rival = int(others[np.argmax(chances[-1, others])])
    for k, colour in ((label, LABEL), (rival, RIVAL)):
        if k == label or chances[-1, k] > 0.1:
            ax.annotate(
                f"“{k}”", (steps[-1], chances[-1, k]), (4, 0), textcoords="offset points",
                va="center", color=colour, fontsize="small", annotation_clip=False,
            )  # fmt: skip
    ax.set(xticks=steps, ylim=(-0.05, 1.05), xlim=(0.7, steps[-1] + 0.3))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", linewidth=0.6)


def panels(rows: int, columns: int, height: float, ratios: Sequence[float]) -> np.ndarray:
    figure, axes = plt.subplots(
        rows, columns, figsize=(2 * columns, height), layout="constrained", squeeze=False,
        height_ratios=ratios,
    )  # fmt: skip
    figure.get_layout_engine().set(w_pad=0.06)
    return axes


def with_opinions(
    axes: np.ndarray, model: RecurrentAttention, found: Digits | Scenes, seen: Glimpses,
    chosen: np.ndarray,
) -> None:  # fmt: skip
    """Draws paths, and beneath them what the network thinks after each glimpse."""
    for i, picture, below in zip(chosen, *axes, strict=True):
        path(model, found.images[i], seen, i, picture)
        opinion(below, softmax(seen.logits[i]), int(found.labels[i]))
        if below is not axes[1, 0]:
            below.set_yticklabels([])
    axes[1, 0].set(xlabel="glimpse", ylabel="probability")


def paths(page: Gallery, model: RecurrentAttention, found: Digits) -> None:
    seen = look(model, found.images)
    right = seen.logits[:, -1].argmax(-1) == found.labels
    chosen = pick(found.labels, right, (0, 2, 4, 5, 8))
    axes = panels(2, len(chosen), 3.9, (1.5, 1))
    with_opinions(axes, model, found, seen, chosen)
    page.figure(
        "mnist", "Reading a digit through a keyhole", axes,
        f"Each numbered box of {model.sensor.size} × {model.sensor.size} pixels is all that the "
        f"network sees at that moment, dark the first and bright the last. Beneath each digit, the "
        "probability of its label (blue) and of the strongest other answers (orange) after each "
        "glimpse: the network does not know what it has not yet seen. The paths follow the means, "
        f"without chance. {CHOSEN}",
        alt="Digits with the path of small boxes over them, and probabilities after each glimpse.",
    )  # fmt: skip


def clutter(
    page: Gallery, model: RecurrentAttention, scenes: Scenes, seen: Glimpses,
    blind: RecurrentAttention,
) -> None:  # fmt: skip
    right = seen.logits[:, -1].argmax(-1) == scenes.labels
    chosen = pick(scenes.labels, right, (1, 3, 5, 7, 9))
    images, labels = scenes.images[chosen], scenes.labels[chosen]
    axes = panels(3, len(chosen), 6.1, (1.5, 1, 1.5))
    with_opinions(axes[:2], model, scenes, seen, chosen)
    shape = (len(chosen), blind.num_glimpses, 2)
    places = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    groped = look(blind, images, locations=places)
    for i, ax in enumerate(axes[2]):
        path(blind, images[i], groped, i, ax)
        answer = int(groped.logits[i, -1].argmax())
        chance = softmax(groped.logits[i, -1])[answer]
        ax.set_xlabel(f"“{answer}”, {chance:.2f}", color=LABEL if answer == labels[i] else RIVAL)
    axes[0, 0].set_ylabel("learned glimpses")
    axes[2, 0].set_ylabel("random glimpses")
    widths = " and ".join(str(model.sensor.size * 2**s) for s in range(1, model.sensor.scales))
    page.figure(
        "clutter", "Finding a digit among fragments of others", axes,
        f"Above, the learned gaze: solid boxes are the sharp patches, dotted ones the blurred "
        f"patches {widths} pixels wide around them, cut at the edge. The paths follow the means; "
        "they begin at one place in all images, since nothing has been seen yet, and “Does it "
        "look at the digit?” counts how often they reach it. In the middle, the probability of the "
        "label (blue) and of the strongest other answers after each glimpse. At the bottom, the "
        "same network trained with random glimpses, on one random path: its answer, blue where it "
        "is right. Images that the learned gaze answers rightly are preferred, which favours it: "
        "the two are compared in “How often it is wrong”.",
        alt="Cluttered digits with learned paths, probabilities, and random paths.",
    )  # fmt: skip


def curves(page: Gallery, trained: Mapping[str, np.ndarray], errors: Mapping[str, Any]) -> None:
    names = {"learned": "learned glimpses", "random": "random glimpses", "MNIST": "MNIST, learned"}
    colours = {"learned": LEARNED, "random": RANDOM, "MNIST": "#009e73"}
    _, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained", sharey=True)
    for name, colour in colours.items():
        values = trained[name]
        left.plot(np.arange(1, len(values) + 1), 100 * values, color=colour, label=names[name])
        mean, error = 100 * errors[name].mean(), 100 * errors[name].error()
        steps = np.arange(1, len(mean) + 1)
        right.errorbar(steps, mean, error, color=colour, marker="o", markersize=4, capsize=2)
    left.set(xlabel="epoch", ylabel="error in %", title="training, one path an image", ylim=(0, 95))
    right.set(xlabel="glimpse", title="test, one path an image")
    left.legend(frameon=False)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="0.92", linewidth=0.6)
    page.figure(
        "training", "Learning, and what each glimpse adds", left,
        "Left: the share of wrong answers in training; in its first epochs the network for learned "
        "glimpses looks anywhere too, so that it can read at any place before it chooses one. "
        "Right: the error on test images if the network must answer after so many glimpses, with "
        "standard errors; it was trained to answer after the last.",
        alt="Training curves, and the test error after each glimpse, for three networks.",
    )  # fmt: skip


def on_the_digit(model: RecurrentAttention, scenes: Scenes) -> tuple[list[str], list[list[str]]]:
    """How often the means lie on the digit, beside locations anywhere."""
    learned = look(model, scenes.images).locations
    anywhere = np.random.default_rng(0).uniform(-1, 1, learned.shape)
    rows = []
    for name, places in (("learned", learned), ("anywhere", anywhere)):
        pixels = (places + 1) / 2 * scenes.images.shape[1:]
        corner = scenes.corners[:, None]
        inside = ((pixels >= corner) & (pixels < corner + WIDTH)).all(-1).mean(0)
        distance = np.linalg.norm(pixels - corner - WIDTH / 2, axis=-1)
        rows.append([f"{name}: on the digit", *(f"{share:.0%}" for share in inside)])
        rows.append([f"{name}: distance in pixels",
                     *(f"{d:.1f}" for d in np.median(distance, 0))])  # fmt: skip
    return ["gaze", *(f"glimpse {t + 1}" for t in range(learned.shape[1]))], rows


def covered(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The pixels that lie in any of the boxes."""
    inside = np.zeros(shape, bool)
    for top, left, bottom, right in boxes.reshape(-1, 4).clip(0):
        inside[top:bottom, left:right] = True
    return inside


def relevance(
    page: Gallery, model: RecurrentAttention, scenes: Scenes, count: int = 200
) -> tuple[list[str], list[list[str]]]:
    """Draws what LRP and saliency say beside the path, and how much of it lies in the boxes."""
    images = scenes.images[:count]
    seen = look(model, images)
    said = seen.logits[:, -1].argmax(-1)
    corners = np.concatenate([scenes.corners, scenes.corners + WIDTH], -1)[: len(images)]
    boxes = {"sharp patches": seen.boxes[:, :, 0], "all patches": seen.boxes, "the digit": corners}
    regions = {
        name: np.array([covered(some, images.shape[1:]) for some in found])
        for name, found in boxes.items()
    }
    values = {
        name: np.asarray(ja.explain(method, model, images, said).values)
        for name, method in {"LRP": ja.lrp, "saliency": ja.saliency}.items()
    }

    def share(heats, masks):
        return float(np.abs(heats)[masks].sum() / np.abs(heats).sum())

    rows = [[name, *(f"{share(heat, masks):.1%}" for masks in regions.values())]
            for name, heat in values.items()]  # fmt: skip
    rows.append(["share of the image", *(f"{np.mean(masks):.1%}" for masks in regions.values())])
    columns = ["share of magnitude in", *regions]
    outside = ~regions["all patches"]
    most = max(float(np.abs(heat[outside]).max(initial=0)) for heat in values.values())

    chosen = pick(scenes.labels[: len(images)], said == scenes.labels[: len(images)], (2, 4, 6, 8))
    axes = panels(3, len(chosen), 6.3, (1, 1, 1))
    for column, i in zip(axes.T, chosen, strict=True):
        path(model, images[i], seen, i, column[0])
        for ax, heat in zip(column[1:], values.values(), strict=True):
            plot.image(images[i], heat[i], ax=ax, colorbar=False)
            for top, left, *_ in seen.boxes[i][:, 0]:
                size = model.sensor.size
                box = plt.Rectangle((left - 0.5, top - 0.5), size, size, fill=False, color="0.5",
                                    linewidth=0.8)  # fmt: skip
                ax.add_patch(box)
    for ax, name in zip(axes[:, 0], ("path", *values), strict=True):
        ax.set_ylabel(name)
    page.figure(
        "relevance", "What of all that it saw made it say so?", axes,
        "Beneath each path, the pixels that speak for (red) and against (blue) the answer, by LRP, "
        "and those that it is sensitive to, by saliency; the sharp patches are framed. Beyond the "
        f"widest patches both are exactly zero: the largest value there, in {len(images)} scenes, "
        f"is {most:.0f}. What lies under no patch cannot have said anything. {CHOSEN}",
        alt="Paths over cluttered digits, and under them relevance and saliency.",
    )  # fmt: skip
    page.table(
        "regions", "Where relevance lies", columns, rows,
        f"The share of the attribution's magnitude in each region, over all of {len(images)} test "
        "scenes, beside the share of the image that the region takes: relevance that were spread "
        "evenly would have the numbers of the last row.",
    )  # fmt: skip
    if most:
        raise SystemExit(f"an attribution of {most} lies where the network never looked")
    return columns, rows


def mistakes(page: Gallery, model: RecurrentAttention, scenes: Scenes, seen: Glimpses) -> None:
    """Those scenes that the network is surest of and gets wrong, one of each label."""
    final = softmax(seen.logits[:, -1])
    sureness = np.where(final.argmax(-1) == scenes.labels, 0, final.max(-1))
    order = np.argsort(-sureness)
    order = order[sureness[order] > 0]
    _, firsts = np.unique(scenes.labels[order], return_index=True)
    chosen = order[np.sort(firsts)][:5]
    if not len(chosen):
        return
    axes = panels(2, len(chosen), 4.2, (1.5, 1))
    with_opinions(axes, model, scenes, seen, chosen)
    for ax, i in zip(axes[0], chosen, strict=True):
        ax.set_title(f"a {scenes.labels[i]}, taken for a {final[i].argmax()}", fontsize="medium")
    page.figure(
        "mistakes", "Mistakes, and where it looked", axes,
        "The scenes that it answers wrongly and is surest of, one for each label, at most five. "
        "The paths follow the means, and the answers are those at their ends. A path tells whether "
        "the network looked past the digit, or at it and misread it. Beneath, the label is blue.",
        alt="Cluttered digits that were misread, with the paths and the probabilities.",
    )  # fmt: skip
