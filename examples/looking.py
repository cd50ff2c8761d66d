"""Figures and tables of the glimpses of a recurrent attention model."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

import jaxattn as ja
from examples.clutter import Digits, Scenes
from examples.explaining import select_examples
from examples.gallery import Gallery
from jaxattn import plot
from jaxattn.models import Glimpses, RecurrentAttention

LABEL, OTHER, LEARNED, RANDOM, PALE = "#0072b2", "#d55e00", "#0072b2", "#d55e00", "0.8"
WIDTH = 28  # width of a digit in pixels
CHOSEN = "Shown are the first images, correctly classified ones preferred."


def glimpse_all(model: RecurrentAttention, images: np.ndarray, **options: Any) -> Glimpses:
    """Return all glimpses of the images as NumPy arrays."""
    return jax.tree.map(np.asarray, model.look(images, **options))


def draw_path(
    model: RecurrentAttention, image: np.ndarray, glimpses: Glimpses, i: int, ax: Axes
) -> None:
    """Draw the path of image `i`; wider patches are cut at the edge."""
    plot.glimpses(
        image, glimpses.locations[i], model.sensor.size, scales=model.sensor.scales, ax=ax
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return class probabilities."""
    return np.asarray(jax.nn.softmax(logits))


def draw_probabilities(ax: Axes, probabilities: np.ndarray, label: int) -> None:
    """Draw the probabilities of the label and of three other classes after each glimpse."""
    steps = np.arange(1, len(probabilities) + 1)
    others = [k for k in np.argsort(-probabilities.max(0)) if k != label][:3]
    for k in others:
        ax.plot(steps, probabilities[:, k], color=OTHER, alpha=0.35, linewidth=1)
    ax.plot(steps, probabilities[:, label], color=LABEL, marker="o", markersize=4)
    strongest = int(others[np.argmax(probabilities[-1, others])])
    for k, colour in ((label, LABEL), (strongest, OTHER)):
        if k == label or probabilities[-1, k] > 0.1:
            ax.annotate(
                f"“{k}”", (steps[-1], probabilities[-1, k]), (4, 0), textcoords="offset points",
                va="center", color=colour, fontsize="small", annotation_clip=False,
            )  # fmt: skip
    ax.set(xticks=steps, ylim=(-0.05, 1.05), xlim=(0.7, steps[-1] + 0.3))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", linewidth=0.6)


def panels(rows: int, columns: int, height: float, ratios: Sequence[float]) -> np.ndarray:
    """Return Axes in a new figure."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(2 * columns, height), layout="constrained", squeeze=False,
        height_ratios=ratios,
    )  # fmt: skip
    figure.get_layout_engine().set(w_pad=0.06)
    return axes


def draw_paths(
    axes: np.ndarray, model: RecurrentAttention, data: Digits | Scenes, glimpses: Glimpses,
    chosen: np.ndarray,
) -> None:  # fmt: skip
    """Draw paths, and below them the class probabilities after each glimpse."""
    for i, picture, lower in zip(chosen, *axes, strict=True):
        draw_path(model, data.images[i], glimpses, i, picture)
        draw_probabilities(lower, softmax(glimpses.logits[i]), int(data.labels[i]))
        if lower is not axes[1, 0]:
            lower.set_yticklabels([])
    axes[1, 0].set(xlabel="glimpse", ylabel="probability")


def paths(page: Gallery, model: RecurrentAttention, digits: Digits) -> None:
    """Add a figure of paths over MNIST digits."""
    glimpses = glimpse_all(model, digits.images)
    correct = glimpses.logits[:, -1].argmax(-1) == digits.labels
    chosen = select_examples(digits.labels, correct, (0, 2, 4, 5, 8))
    axes = panels(2, len(chosen), 3.9, (1.5, 1))
    draw_paths(axes, model, digits, glimpses, chosen)
    page.figure(
        "mnist", "Glimpses of MNIST digits", axes,
        f"Each numbered box of {model.sensor.size} × {model.sensor.size} pixels is one glimpse; "
        "the first is dark, the last bright. Below each digit are the probabilities of its label "
        "(blue) and of other classes (orange) after each glimpse. The locations are the means, "
        f"without sampling. {CHOSEN}",
        alt="Digits with the path of small boxes over them, and probabilities after each glimpse.",
    )  # fmt: skip


def clutter(
    page: Gallery, model: RecurrentAttention, scenes: Scenes, glimpses: Glimpses,
    random_model: RecurrentAttention,
) -> None:  # fmt: skip
    """Add a figure of learned and random paths over cluttered digits."""
    correct = glimpses.logits[:, -1].argmax(-1) == scenes.labels
    chosen = select_examples(scenes.labels, correct, (1, 3, 5, 7, 9))
    images, labels = scenes.images[chosen], scenes.labels[chosen]
    axes = panels(3, len(chosen), 6.1, (1.5, 1, 1.5))
    draw_paths(axes[:2], model, scenes, glimpses, chosen)
    shape = (len(chosen), random_model.num_glimpses, 2)
    locations = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    random_glimpses = glimpse_all(random_model, images, locations=locations)
    for i, ax in enumerate(axes[2]):
        draw_path(random_model, images[i], random_glimpses, i, ax)
        predicted = int(random_glimpses.logits[i, -1].argmax())
        probability = softmax(random_glimpses.logits[i, -1])[predicted]
        ax.set_xlabel(
            f"“{predicted}”, {probability:.2f}", color=LABEL if predicted == labels[i] else OTHER
        )
    axes[0, 0].set_ylabel("learned glimpses")
    axes[2, 0].set_ylabel("random glimpses")
    widths = " and ".join(str(model.sensor.size * 2**s) for s in range(1, model.sensor.scales))
    page.figure(
        "clutter", "Glimpses of cluttered digits", axes,
        "Top: learned locations. Solid boxes are the patches with full resolution, dotted boxes "
        f"the patches of {widths} pixels with lower resolution, cut at the edge. The locations are "
        "the means. All paths start at the same location, as the first one does not depend on the "
        "image. Middle: the probabilities of the label (blue) and of other classes (orange) after "
        "each glimpse. Bottom: the network with random glimpses on one random path, with its "
        "prediction, blue if it is correct. Images that are classified correctly with learned "
        "glimpses are preferred, which favours them; both networks are compared in “Test errors”.",
        alt="Cluttered digits with learned paths, probabilities, and random paths.",
    )  # fmt: skip


def curves(page: Gallery, trained: Mapping[str, np.ndarray], errors: Mapping[str, Any]) -> None:
    """Add a figure of the training errors and of the test errors after each glimpse."""
    names = {"learned": "learned glimpses", "random": "random glimpses", "MNIST": "MNIST, learned"}
    colours = {"learned": LEARNED, "random": RANDOM, "MNIST": "#009e73"}
    _, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained", sharey=True)
    for name, colour in colours.items():
        values = trained[name]
        left.plot(np.arange(1, len(values) + 1), 100 * values, color=colour, label=names[name])
        mean, error = 100 * errors[name].mean(), 100 * errors[name].error()
        steps = np.arange(1, len(mean) + 1)
        right.errorbar(steps, mean, error, color=colour, marker="o", markersize=4, capsize=2)
    left.set(
        xlabel="epoch", ylabel="error in %", title="training, one path per image", ylim=(0, 95)
    )
    right.set(xlabel="glimpse", title="test, one path per image")
    left.legend(frameon=False)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="0.92", linewidth=0.6)
    page.figure(
        "training", "Training errors, and test errors after each glimpse", left,
        "Left: the error rate in training. In the first epochs, the network with learned glimpses "
        "has random locations, too. Right: the test error of the prediction after each glimpse, "
        "with standard errors. The networks are trained on the prediction after the last glimpse.",
        alt="Training curves, and the test error after each glimpse, for three networks.",
    )  # fmt: skip


def on_the_digit(model: RecurrentAttention, scenes: Scenes) -> tuple[list[str], list[list[str]]]:
    """Return the fraction of mean locations on the digit, and of random locations."""
    learned = glimpse_all(model, scenes.images).locations
    uniform = np.random.default_rng(0).uniform(-1, 1, learned.shape)
    rows = []
    for name, locations in (("learned", learned), ("random", uniform)):
        pixels = (locations + 1) / 2 * scenes.images.shape[1:]
        corner = scenes.corners[:, None]
        inside = ((pixels >= corner) & (pixels < corner + WIDTH)).all(-1).mean(0)
        distance = np.linalg.norm(pixels - corner - WIDTH / 2, axis=-1)
        rows.append([f"{name}: on the digit", *(f"{share:.0%}" for share in inside)])
        rows.append([f"{name}: distance in pixels",
                     *(f"{d:.1f}" for d in np.median(distance, 0))])  # fmt: skip
    return ["locations", *(f"glimpse {t + 1}" for t in range(learned.shape[1]))], rows


def covered(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a mask of the pixels in any of the boxes."""
    inside = np.zeros(shape, bool)
    for top, left, bottom, right in boxes.reshape(-1, 4).clip(0):
        inside[top:bottom, left:right] = True
    return inside


def relevance(
    page: Gallery, model: RecurrentAttention, scenes: Scenes, count: int = 200
) -> tuple[list[str], list[list[str]]]:
    """Add a figure of LRP and saliency, and the table of their shares in several regions."""
    images = scenes.images[:count]
    glimpses = glimpse_all(model, images)
    predictions = glimpses.logits[:, -1].argmax(-1)
    corners = np.concatenate([scenes.corners, scenes.corners + WIDTH], -1)[: len(images)]
    boxes = {
        "sharp patches": glimpses.boxes[:, :, 0],
        "all patches": glimpses.boxes,
        "the digit": corners,
    }
    regions = {
        name: np.array([covered(of_image, images.shape[1:]) for of_image in of_region])
        for name, of_region in boxes.items()
    }
    values = {
        name: np.asarray(ja.explain(method, model, images, predictions).values)
        for name, method in {"LRP": ja.lrp, "saliency": ja.saliency}.items()
    }

    def share(heats, masks):
        return float(np.abs(heats)[masks].sum() / np.abs(heats).sum())

    rows = [[name, *(f"{share(heat, masks):.1%}" for masks in regions.values())]
            for name, heat in values.items()]  # fmt: skip
    rows.append(["share of the image", *(f"{np.mean(masks):.1%}" for masks in regions.values())])
    columns = ["share of magnitude in", *regions]
    outside = ~regions["all patches"]
    largest = max(float(np.abs(heat[outside]).max(initial=0)) for heat in values.values())

    chosen = select_examples(
        scenes.labels[: len(images)], predictions == scenes.labels[: len(images)], (2, 4, 6, 8)
    )
    axes = panels(3, len(chosen), 6.3, (1, 1, 1))
    for column, i in zip(axes.T, chosen, strict=True):
        draw_path(model, images[i], glimpses, i, column[0])
        for ax, heat in zip(column[1:], values.values(), strict=True):
            plot.image(images[i], heat[i], ax=ax, colorbar=False)
            for top, left, *_ in glimpses.boxes[i][:, 0]:
                size = model.sensor.size
                box = plt.Rectangle((left - 0.5, top - 0.5), size, size, fill=False, color="0.5",
                                    linewidth=0.8)  # fmt: skip
                ax.add_patch(box)
    for ax, name in zip(axes[:, 0], ("path", *values), strict=True):
        ax.set_ylabel(name)
    page.figure(
        "relevance", "LRP and saliency of the prediction", axes,
        "Below each path: LRP, where red pixels support the predicted class and blue pixels oppose "
        "it; and saliency, the magnitude of the gradient, which has no sign. Patches with full "
        "resolution are framed. Outside of all patches both are exactly zero, as these pixels are "
        f"not read: the largest magnitude there, in {len(images)} scenes, is {largest:.0f}. "
        f"{CHOSEN}",
        alt="Paths over cluttered digits, and below them LRP and saliency.",
    )  # fmt: skip
    page.table(
        "Attribution by region", columns, rows,
        f"The share of the attribution's magnitude in each region, over {len(images)} test scenes. "
        "The last row is the share of the region in the image, which a uniform attribution would "
        "have.",
    )  # fmt: skip
    if largest:
        raise SystemExit(f"an attribution outside of all patches is {largest}, expected 0")
    return columns, rows


def mistakes(page: Gallery, model: RecurrentAttention, scenes: Scenes, glimpses: Glimpses) -> None:
    """Add a figure of the misclassified scenes with the highest probability, one per label."""
    final = softmax(glimpses.logits[:, -1])
    confidence = np.where(final.argmax(-1) == scenes.labels, 0, final.max(-1))
    order = np.argsort(-confidence)
    order = order[confidence[order] > 0]
    _, first_of_label = np.unique(scenes.labels[order], return_index=True)
    chosen = order[np.sort(first_of_label)][:5]
    if not len(chosen):
        return
    axes = panels(2, len(chosen), 4.2, (1.5, 1))
    draw_paths(axes, model, scenes, glimpses, chosen)
    for ax, i in zip(axes[0], chosen, strict=True):
        ax.set_title(f"label {scenes.labels[i]}, prediction {final[i].argmax()}", fontsize="medium")
    page.figure(
        "mistakes", "Misclassified digits", axes,
        "The misclassified scenes with the highest predicted probability, one per label, at most "
        "five. The locations are the means; the predictions are those after the last glimpse. The "
        "path shows whether the glimpses cover the digit. Below, the probability of the label is "
        "blue.",
        alt="Misclassified cluttered digits with their paths and class probabilities.",
    )  # fmt: skip
