"""Which part of a series tells who speaks, or what somebody does? (`make signals`)

The network is the one of the answer from which many learnt to look at self-attention: an LSTM of 60
units, `SeqSelfAttention` of 32 or `SeqWeightedAttention`, and a linear layer. There it reads 240
steps of 4 channels and ends in one sigmoid; here it reads series of JapaneseVowels and
BasicMotions, that come with the package aeon, and names one of several classes. The quick form has
the layers' published sizes; `--full` trains five networks of each kind instead of one.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from rich.console import Console

import jaxattn as ja
from examples import checkpoints, gallery
from examples.descent import descend
from examples.series import Series, load
from examples.stepwise import POINTS, Explained, agreement, chances, deletion, explain
from jaxattn import plot

KINDS = {"self": "SeqSelfAttention", "weighted": "SeqWeightedAttention"}
ABOUT = {
    "JapaneseVowels": "Nine men say two vowels; the 12 channels are the coefficients of a linear "
    "prediction of the sound. The question is who speaks.",
    "BasicMotions": "A smart watch has three channels of acceleration and three of rotation, ten "
    "times a second for ten seconds. The question is whether its owner stands, walks, runs, or "
    "plays badminton.",
}
# In standard deviations over all series; those of somebody who stands still are far less.
NOISE = {"JapaneseVowels": 0.5, "BasicMotions": 0.1}
LEAST_ACCURACY = {"JapaneseVowels": 0.95, "BasicMotions": 0.9}  # of 370 and of 40 test series


def fit(
    model: ja.models.SignalClassifier, series: Series, *, noise: float, epochs: int, seed: int
) -> None:
    """Minimises the cross-entropy of noisy copies of the series."""

    def loss(model, key, x, lengths, labels):
        noisy = x + noise * jax.random.normal(key, x.shape)
        logits = model(noisy, lengths)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    rng, count = np.random.default_rng(seed), len(series.labels)
    size = min(30, count // 4)
    plan = [
        rows
        for _ in range(epochs)
        for rows in rng.permutation(count)[: count // size * size].reshape(-1, size)
    ]
    batches = [tuple(part[rows] for part in series) for rows in plan]
    descend(model, loss, batches, learning_rate=6e-3, seed=seed)


def evenly(weights: jax.Array, lengths: np.ndarray) -> jax.Array:
    """The same weight for all steps of a series, for weights (B, T, T) or (B, T)."""
    alike = (np.arange(weights.shape[-1]) < lengths[:, None]) / lengths[:, None]
    alike = alike if weights.ndim == 2 else alike[:, None]
    return jnp.asarray(np.broadcast_to(alike, weights.shape), weights.dtype)


class Trained(NamedTuple):
    """A data set and its networks.

    Attributes:
        name: the data set's.
        classes: its classes' names.
        test: the series to test.
        networks: by kind, what is explained.
        accuracies: by kind, of every network that was trained.
        even: by kind, the accuracy of the explained network once it attends to all alike.
        learnt: how many series they learnt from.
    """

    name: str
    classes: list[str]
    test: Series
    networks: dict[str, ja.models.SignalClassifier]
    accuracies: dict[str, list[float]]
    even: dict[str, float]
    learnt: int


def trained(
    name: str, out: Path, *, epochs: int, seeds: int, hidden_features: int, units: int
) -> Trained:
    """Trains networks of both kinds, and keeps the first of each, in the folder too."""
    train, test, classes = load(name)
    found = Trained(name, classes, test, {}, {}, {}, len(train.labels))
    for kind in KINDS:
        scores = found.accuracies[kind] = []
        for seed in range(seeds):
            model = ja.models.SignalClassifier(
                train.x.shape[2], train.x.shape[1], len(classes), attention=kind,
                hidden_features=hidden_features, units=units, rngs=nnx.Rngs(seed),
            )  # fmt: skip
            fit(model, train, noise=NOISE[name], epochs=epochs, seed=seed)
            said = np.asarray(chances(model, test.x, test.lengths)).argmax(1)
            scores.append(float((said == test.labels).mean()))
            found.networks.setdefault(kind, model)
        if scores[0] < LEAST_ACCURACY[name]:
            raise SystemExit(
                f"the {kind} network reached {scores[0]:.1%} on {name}, "
                f"wanted {LEAST_ACCURACY[name]:.0%}"
            )
        checkpoints.save(found.networks[kind], out / "checkpoints" / f"{name}-{kind}")
        alike = {"attention": partial(evenly, lengths=test.lengths)}
        even = ja.intervene(found.networks[kind], alike)(test.x, test.lengths)
        found.even[kind] = float((np.argmax(even, 1) == test.labels).mean())
    return found


def main(
    out: str | Path = "out/signals",
    *,
    epochs: int = 100,
    seeds: int = 1,
    hidden_features: int = 60,
    units: int = 32,
) -> Path:
    """Trains, explains every test series, and writes the page."""
    matplotlib.use("Agg")
    console = Console()
    page = gallery.Gallery(
        out,
        "Which part of a series tells who speaks, or what somebody does?",
        [
            f"A network reads a series of several channels: an LSTM of {hidden_features} units, "
            "then attention over the LSTM's outputs, then one linear layer that reads all of it, "
            "values and weights. With SeqSelfAttention every time step attends to every other "
            f"(additive scores, {units} units); SeqWeightedAttention attends once, to the steps of "
            "the whole series. It is the network of a much-read answer to “How to visualize "
            "attention LSTM using keras-self-attention package?”, here on two data sets of the "
            "UEA archive.",
            *(f"{name}: {about}" for name, about in ABOUT.items()),
            "The pictures first show what can be seen by a layer's name: the attended values as "
            "curves, the attention as a map and as histograms. Then they ask whether the attention "
            "says what the network needs.",
        ],
    )
    sets = [
        trained(
            name, page.folder, epochs=epochs, seeds=seeds, hidden_features=hidden_features,
            units=units,
        )
        for name in ABOUT
    ]  # fmt: skip
    here = "; ".join(
        f"{data.name} {data.test.x.shape[1]} steps of {data.test.x.shape[2]} channels and "
        f"{len(data.classes)} classes"
        for data in sets
    )
    page.about.append(
        "The task is not that of the answer: there a series has 240 steps of 4 channels, the LSTM "
        "60 units, and the linear layer one output with a sigmoid. Here, padding included, it is: "
        f"{here}; the linear layer has an output for each class."
    )
    gallery.show(console, "Accuracy on test series", *on_accuracy(page, sets))
    tables = []
    for data in sets:
        explained = {kind: explain(model, data.test) for kind, model in data.networks.items()}
        if data.name == "JapaneseVowels":
            on_features(page, data)
        on_series(page, data, explained)
        tables.append(on_deletion(page, data, explained))
    path = page.write()
    for data, table in zip(sets, tables, strict=True):
        gallery.show(console, f"{data.name}: the answer without its first steps", *table)
    console.print(f"The page is at [bold]{path.resolve()}", soft_wrap=True)
    return path


def on_accuracy(page: gallery.Gallery, sets: list[Trained]) -> tuple[list[str], list[list[str]]]:
    """How good the networks are, and what their layers give out."""
    columns = ["series", "layer", "accuracy", "if even", "attended", "attention"]
    rows = []
    for data in sets:
        for kind, scores in data.accuracies.items():
            # Traced, not run: this tells the shapes of what a series gives at the layer's names.
            look = ja.capture(data.networks[kind])
            _, seen = jax.eval_shape(look, data.test.x[0], data.test.lengths[0])
            shapes = (str(seen[name].shape) for name in ("attended", "attention"))
            score = f"{np.mean(scores):.1%}"
            if len(scores) > 1:
                score += f" ± {np.std(scores, ddof=1):.1%}"
            rows.append([data.name, kind, score, f"{data.even[kind]:.1%}", *shapes])
    counts = "; ".join(f"{d.name}: {d.learnt} and {len(d.test.labels)}" for d in sets)
    page.table(
        "accuracy", "How good are the networks, also when they attend evenly?", columns, rows,
        f"Series to learn from and to test, in the archive's own division: {counts}. “Self” is the "
        "network with SeqSelfAttention, “weighted” that with SeqWeightedAttention; the accuracy is "
        f"the mean over {len(scores)} of a kind. Then comes that of the first if its attention is "
        "replaced, and every step that may be read gets the same weight. Where that hardly "
        "changes, the network does not need to read one step more than another. Where it falls, "
        "that does not show that it needs to: the linear layer reads the weights too, not only "
        "what they sum up, so that both of its inputs change at once. The last columns are the "
        "shapes of what one series gives at the layer's names.",
    )  # fmt: skip
    return columns, rows


def on_features(page: gallery.Gallery, data: Trained) -> None:
    """What the attention layers give out: curves, a map and histograms."""
    rows = [np.flatnonzero(data.test.labels == label)[0] for label in (0, 1)]
    x, lengths = data.test.x[rows], data.test.lengths[rows]
    names = [f"speaker {data.classes[data.test.labels[row]]}" for row in rows]
    _, seen = ja.capture(data.networks["self"], "attended", "attention")(x, lengths)
    # What belongs to padding is no curve.
    valid = np.arange(x.shape[1]) < lengths[:, None]
    values = np.where(valid[..., None], seen["attended"], np.nan)[:, : lengths.max()]
    count = values.shape[-1]
    for equal, heading, more in (
        (False, "free axes", "Each panel has its own scale, so that the shapes of the curves can "
         "be compared, however small they are."),
        (True, "equal axes", "All panels have one scale, and a red line at zero, so that sizes can "
         "be compared: what is flat here hardly changes from step to step."),
    ):  # fmt: skip
        axes = plot.features_1d(values, equal_axes=equal, columns=10, sample_names=names)
        page.figure(
            "channels-equal" if equal else "channels", f"The attended channels, {heading}", axes,
            f"The {count} channels of the values of SeqSelfAttention over the time steps, for one "
            f"utterance of each of two speakers. {more}",
            alt=f"{count} small panels of curves over time, two in each.",
        )  # fmt: skip
    maps = [weights[:n, :n] for weights, n in zip(seen["attention"], lengths, strict=True)]
    _, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for panel, weights, name in zip(axes, maps, names, strict=True):
        plot.features_2d(
            weights, ax=panel, cmap="bwr", titles=[name], xlabel="time step read",
            ylabel="time step that reads", label="weight",
        )  # fmt: skip
    page.figure(
        "attention", "The attention as a map", axes,
        "Each row is a time step, and shows which others it reads: red much, blue little; its "
        "weights sum to 1. Where columns are of one colour from top to bottom, all steps read the "
        "same ones, whatever they are themselves.",
        alt="Two square heat maps of attention weights, in blue, white and red.",
    )  # fmt: skip
    row = rows[0]
    _, seen = ja.capture(data.networks["weighted"], "attended", "attention")(
        data.test.x[row], data.test.lengths[row]
    )
    _, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    plot.features_hist(seen["attended"], ax=axes[0], xlabel="attended value")
    plot.features_hist(
        seen["attention"][: data.test.lengths[row]], ax=axes[1], xlabel="weight of a time step"
    )
    page.figure(
        "histograms", "SeqWeightedAttention: histograms", axes,
        f"One utterance: left the {len(seen['attended'])} attended values, right the "
        f"{data.test.lengths[row]} weights of its steps, which sum to 1. The further the weights "
        "are spread, the more some steps count for than others.",
        alt="Two histograms: the attended values, and the attention weights.",
    )  # fmt: skip


def on_series(page: gallery.Gallery, data: Trained, explained: dict[str, Explained]) -> None:
    """One test series: its channels, what two methods say of them, and the attention."""
    right = np.all([e.chances.argmax(1) == data.test.labels for e in explained.values()], 0)
    row = int(np.flatnonzero(right)[0]) if right.any() else 0
    length = int(data.test.lengths[row])
    _, axes = plt.subplots(
        4, 2, figsize=(10, 9.5), layout="constrained", sharex=True, squeeze=False
    )  # fmt: skip
    for column, (kind, found) in zip(axes.T, explained.items(), strict=True):
        heats = {
            "series": data.test.x[row],
            "LRP": found.values["LRP"][row],
            "saliency": found.values["saliency"][row],
        }
        for panel, (name, heat) in zip(column, heats.items(), strict=False):
            plot.features_2d(
                heat[:length].T, ax=panel, norm="auto", xlabel="", ylabel="channel",
                titles=[f"{KINDS[kind]}: {name}" if panel is column[0] else name], label=name,
            )  # fmt: skip
        weights = found.attention[row]
        if weights.ndim == 2:
            plot.features_2d(
                weights[:length, :length], ax=column[3], cmap="bwr", titles=["attention"],
                xlabel="time step (read)", ylabel="time step that reads", label="weight",
            )  # fmt: skip
        else:
            column[3].bar(np.arange(length), weights[:length], color="#0072b2")
            column[3].set_title("attention", fontsize="medium")
            column[3].set(xlabel="time step", ylabel="weight")
    label = data.classes[data.test.labels[row]]
    said = [f"{e.chances[row].max():.2f}" for e in explained.values()]
    page.figure(
        f"series-{data.name}", f"{data.name}: attention beside relevance", axes,
        f"One test series of class {label}, which both networks name, with probabilities "
        f"{said[0]} and {said[1]}. Time runs to the right in all panels. Relevance (LRP) tells for "
        "each channel at each step what it adds to the score of that answer, red for and blue "
        "against it; saliency how fast the score changes with it. The attention knows no channels: "
        "it can only tell when, and of the LSTM's outputs, which remember what came before.",
        alt="Heat maps of a series, of its relevance and saliency by channel and time, and of the "
        "attention over time, for two networks.",
    )  # fmt: skip


def on_deletion(
    page: gallery.Gallery, data: Trained, explained: dict[str, Explained]
) -> tuple[list[str], list[list[str]]]:
    """Does the attention name the steps that the network needs?"""
    _, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    columns, table = ["method"], {name: [name] for name in next(iter(explained.values())).steps}
    for panel, (kind, found) in zip(axes, explained.items(), strict=True):
        columns += [f"{kind} −20%", "AUC", "alike"]
        curves = {name: deletion(found, data.test, steps) for name, steps in found.steps.items()}
        order = sorted(curves, key=lambda name: curves[name].mean())
        plot.curve(
            POINTS, {name: curves[name] for name in order}, ax=panel, title=KINDS[kind],
            xlabel="share of the time steps deleted", ylabel="probability of the answer",
        )  # fmt: skip
        for name, curve in curves.items():
            areas = np.trapezoid(curve, POINTS, axis=1)
            error = areas.std(ddof=1) / np.sqrt(len(areas))
            alike = "" if name == "attention" else f"{agreement(found, data.test, name):+.2f}"
            table[name] += [f"{curve[:, 2].mean():.3f}", f"{areas.mean():.3f} ± {error:.3f}", alike]
    page.figure(
        f"deletion-{data.name}", f"{data.name}: does the attention name what the network needs?",
        axes,
        f"From each of {len(data.test.labels)} test series the time steps are deleted in the order "
        "in which each method ranks them, all channels at once; curves are means with a band of "
        "one standard error. The sooner a curve falls, the better the method knows which steps "
        "the answer rests on. The attention of a step is how much the others read of it.",
        alt="Deletion curves of attention and other methods, for two networks.",
    )  # fmt: skip
    page.table(
        f"methods-{data.name}", f"{data.name}: what is left", columns, list(table.values()),
        "For each network: the mean probability of its answer without the fifth of the steps that "
        "a method ranks first; the area under its curve (AUC) and its standard error, where low is "
        "good; and how much the method's ranking is like the attention's, the mean rank "
        "correlation over series, 0 for none.",
        strong="attention",
    )  # fmt: skip
    return columns, list(table.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/signals", help="folder of the page")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--full", action="store_true", help="five networks of each kind")
    given = parser.parse_args()
    main(given.out, epochs=given.epochs, seeds=5 if given.full else 1)
