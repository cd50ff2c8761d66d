"""Compare self-attention over time series with attributions (`make signals`).

The network is an LSTM of 60 units, `SeqSelfAttention` of 32 units or `SeqWeightedAttention`, and a
linear layer, as in a widely read answer on Stack Overflow. There it reads 240 time steps of 4
channels and has one sigmoid output. Here it classifies the series of JapaneseVowels and
BasicMotions, which are part of the package aeon. The layers have the published sizes. `--full`
trains five networks of each kind instead of one.
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
from examples import checkpoints, gallery, method_curves
from examples.descent import descend
from examples.series import Series, load
from examples.stepwise import FRACTIONS, Explained, agreement, deletion, explain, probabilities
from jaxattn import plot

KINDS = {"self": "SeqSelfAttention", "weighted": "SeqWeightedAttention"}
ABOUT = {
    "JapaneseVowels": "Nine men utter two vowels. The 12 channels are coefficients of a linear "
    "prediction of the sound. The classes are the speakers.",
    "BasicMotions": "A smart watch records three channels of acceleration and three of rotation, "
    "ten times per second for ten seconds. The classes are standing, walking, running and "
    "badminton.",
}
# In standard deviations over all series; series of the class "standing" vary far less.
NOISE = {"JapaneseVowels": 0.5, "BasicMotions": 0.1}
MIN_ACCURACY = {"JapaneseVowels": 0.95, "BasicMotions": 0.9}  # for 370 and 40 test series


def fit(
    model: ja.models.SignalClassifier, series: Series, *, noise: float, epochs: int, seed: int
) -> None:
    """Minimize the cross-entropy of the series with additive noise."""

    def loss(model, key, x, lengths, labels):
        noisy = x + noise * jax.random.normal(key, x.shape)
        logits = model(noisy, lengths)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    rng, count = np.random.default_rng(seed), len(series.labels)
    size = min(30, count // 4)
    batch_rows = [
        rows
        for _ in range(epochs)
        for rows in rng.permutation(count)[: count // size * size].reshape(-1, size)
    ]
    batches = [tuple(part[rows] for part in series) for rows in batch_rows]
    descend(model, loss, batches, learning_rate=6e-3, seed=seed)


def uniform_attention(weights: jax.Array, lengths: np.ndarray) -> jax.Array:
    """Return uniform attention over the valid time steps, for weights (B, T, T) or (B, T)."""
    uniform = (np.arange(weights.shape[-1]) < lengths[:, None]) / lengths[:, None]
    uniform = uniform if weights.ndim == 2 else uniform[:, None]
    return jnp.asarray(np.broadcast_to(uniform, weights.shape), weights.dtype)


class Trained(NamedTuple):
    """A data set and its trained networks.

    Attributes:
        name: name of the data set.
        classes: names of the classes.
        test: the test series.
        networks: by kind, the explained network.
        accuracies: by kind, the accuracy of each trained network.
        uniform_accuracy: by kind, the accuracy of the explained network with uniform attention.
        train_count: the number of training series.
    """

    name: str
    classes: list[str]
    test: Series
    networks: dict[str, ja.models.SignalClassifier]
    accuracies: dict[str, list[float]]
    uniform_accuracy: dict[str, float]
    train_count: int


def trained(
    name: str, out: Path, *, epochs: int, seeds: int, hidden_features: int, units: int
) -> Trained:
    """Train networks of both kinds; return and save the first of each kind."""
    train, test, classes = load(name)
    result = Trained(name, classes, test, {}, {}, {}, len(train.labels))
    for kind in KINDS:
        scores = result.accuracies[kind] = []
        for seed in range(seeds):
            model = ja.models.SignalClassifier(
                train.x.shape[2], train.x.shape[1], len(classes), attention=kind,
                hidden_features=hidden_features, units=units, rngs=nnx.Rngs(seed),
            )  # fmt: skip
            fit(model, train, noise=NOISE[name], epochs=epochs, seed=seed)
            predictions = np.asarray(probabilities(model, test.x, test.lengths)).argmax(1)
            scores.append(float((predictions == test.labels).mean()))
            result.networks.setdefault(kind, model)
        if scores[0] < MIN_ACCURACY[name]:
            raise SystemExit(
                f"test accuracy {scores[0]:.1%} of the {kind} network on {name} is below "
                f"{MIN_ACCURACY[name]:.0%}"
            )
        checkpoints.save(result.networks[kind], out / "checkpoints" / f"{name}-{kind}")
        edits = {"attention": partial(uniform_attention, lengths=test.lengths)}
        logits = ja.intervene(result.networks[kind], edits)(test.x, test.lengths)
        result.uniform_accuracy[kind] = float((np.argmax(logits, 1) == test.labels).mean())
    return result


def main(
    out: str | Path = "out/signals",
    *,
    epochs: int = 100,
    seeds: int = 1,
    hidden_features: int = 60,
    units: int = 32,
) -> Path:
    """Train, explain every test series, and write the page."""
    matplotlib.use("Agg")
    console = Console()
    page = gallery.Gallery(
        out,
        "Attention and attributions of time series",
        [
            f"The network has an LSTM of {hidden_features} units, an attention layer over the "
            "LSTM's outputs, and a linear layer whose inputs are the attended values and the "
            "attention weights. With SeqSelfAttention, every time step attends to all time steps "
            f"(additive scores, {units} units). SeqWeightedAttention computes one weighted mean "
            "over the series. The network is from a widely read answer to “How to visualize "
            "attention LSTM using keras-self-attention package?”, applied here to two data sets of "
            "the UEA archive.",
            *(f"{name}: {about}" for name, about in ABOUT.items()),
            "The first figures show hidden states, captured by their names: the attended values as "
            "curves, the attention as a map and as histograms. The other figures compare the "
            "attention with attributions.",
        ],
    )
    sets = [
        trained(
            name, page.folder, epochs=epochs, seeds=seeds, hidden_features=hidden_features,
            units=units,
        )
        for name in ABOUT
    ]  # fmt: skip
    sizes = "; ".join(
        f"{data.name} {data.test.x.shape[1]} steps of {data.test.x.shape[2]} channels and "
        f"{len(data.classes)} classes"
        for data in sets
    )
    page.about.append(
        "The task differs from the published one, with 240 steps of 4 channels, an LSTM of 60 "
        "units, and a linear layer with one output with a sigmoid. Here, including padding, the "
        f"inputs are: {sizes}. The linear layer has one output per class."
    )
    gallery.print_table(console, "Accuracy on test series", *on_accuracy(page, sets))
    tables = []
    for data in sets:
        explained = {kind: explain(model, data.test) for kind, model in data.networks.items()}
        if data.name == "JapaneseVowels":
            on_features(page, data)
        on_series(page, data, explained)
        tables.append(on_deletion(page, data, explained))
    vowels = sets[0]
    shown = Series(*(part[: gallery.SHOWN] for part in vowels.test))
    path = page.write(
        next(iter(vowels.networks.values())), shown.x, shown.labels,
        {"saliency": ja.saliency, "input × gradient": ja.input_x_gradient, "LRP": ja.lrp},
        args=(shown.lengths,), kind="series", class_names=vowels.classes,
    )  # fmt: skip
    for data, table in zip(sets, tables, strict=True):
        gallery.print_table(console, f"{data.name}: deletion of time steps", *table)
    console.print(f"The page is at [bold]{path.resolve()}", soft_wrap=True)
    return path


def on_accuracy(page: gallery.Gallery, sets: list[Trained]) -> tuple[list[str], list[list[str]]]:
    """Add the table of accuracies and of the shapes of hidden states."""
    columns = ["series", "layer", "accuracy", "uniform", "attended", "attention"]
    rows = []
    for data in sets:
        for kind, scores in data.accuracies.items():
            # Abstract evaluation: the shapes of the hidden states of one series.
            captured = ja.capture(data.networks[kind])
            _, hidden = jax.eval_shape(captured, data.test.x[0], data.test.lengths[0])
            shapes = (str(hidden[name].shape) for name in ("attended", "attention"))
            score = f"{np.mean(scores):.1%}"
            if len(scores) > 1:
                score += f" ± {np.std(scores, ddof=1):.1%}"
            rows.append([data.name, kind, score, f"{data.uniform_accuracy[kind]:.1%}", *shapes])
    counts = "; ".join(f"{d.name}: {d.train_count} and {len(d.test.labels)}" for d in sets)
    page.table(
        "Test accuracy with learned and with uniform attention", columns, rows,
        f"Numbers of training and test series, in the archive's split: {counts}. “Self” is the "
        "network with SeqSelfAttention, “weighted” the network with SeqWeightedAttention. The "
        f"accuracy is the mean over {len(scores)} networks of each kind. “Uniform” is the accuracy "
        "of the first network with its attention replaced by uniform weights over the valid time "
        "steps. If it hardly changes, the prediction does not depend on the attention weights. A "
        "fall does not show the opposite: the weights are also an input of the linear layer, so "
        "that both of its inputs change. The last columns are the shapes of the hidden states of "
        "one series.",
    )  # fmt: skip
    return columns, rows


def on_features(page: gallery.Gallery, data: Trained) -> None:
    """Add figures of the hidden states: curves, attention maps and histograms."""
    rows = [np.flatnonzero(data.test.labels == label)[0] for label in (0, 1)]
    x, lengths = data.test.x[rows], data.test.lengths[rows]
    names = [f"speaker {data.classes[data.test.labels[row]]}" for row in rows]
    _, hidden = ja.capture(data.networks["self"], "attended", "attention")(x, lengths)
    # Values at padding are not drawn.
    valid = np.arange(x.shape[1]) < lengths[:, None]
    values = np.where(valid[..., None], hidden["attended"], np.nan)[:, : lengths.max()]
    count = values.shape[-1]
    for equal_axes, heading, scale_note in (
        (False, "free axes", "Each panel has its own scale, which shows the shapes of the curves."),
        (True, "equal axes", "All panels share one scale, with a red line at zero, which shows the "
         "magnitudes: a flat curve hardly changes between time steps."),
    ):  # fmt: skip
        axes = plot.features_1d(values, equal_axes=equal_axes, columns=10, sample_names=names)
        page.figure(
            "channels-equal" if equal_axes else "channels",
            f"The attended channels, {heading}", axes,
            f"The {count} channels of the output of SeqSelfAttention over the time steps, for one "
            f"utterance of each of two speakers. {scale_note}",
            alt=f"{count} small panels of curves over time, two in each.",
        )  # fmt: skip
    maps = [weights[:n, :n] for weights, n in zip(hidden["attention"], lengths, strict=True)]
    _, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for panel, weights, name in zip(axes, maps, names, strict=True):
        plot.features_2d(
            weights, ax=panel, titles=[name], xlabel="time step (key)",
            ylabel="time step (query)", label="weight",
        )  # fmt: skip
    page.figure(
        "attention", "Attention maps", axes,
        "Each row contains the attention weights of one time step over all time steps, which sum "
        "to 1: the darker, the larger. If a column has the same colour in all rows, the "
        "weights do not depend on the query.",
        alt="Two square heat maps of attention weights, in white and purple.",
    )  # fmt: skip
    row = rows[0]
    _, hidden = ja.capture(data.networks["weighted"], "attended", "attention")(
        data.test.x[row], data.test.lengths[row]
    )
    _, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    plot.features_hist(hidden["attended"], ax=axes[0], xlabel="attended value")
    plot.features_hist(
        hidden["attention"][: data.test.lengths[row]], ax=axes[1], xlabel="weight of a time step"
    )
    page.figure(
        "histograms", "SeqWeightedAttention: histograms", axes,
        f"One utterance. Left: the {len(hidden['attended'])} attended values. Right: the "
        f"{data.test.lengths[row]} attention weights of its time steps, which sum to 1. A wide "
        "histogram means unequal weights.",
        alt="Two histograms: the attended values, and the attention weights.",
    )  # fmt: skip


def on_series(page: gallery.Gallery, data: Trained, explained: dict[str, Explained]) -> None:
    """Add a figure of one test series, its attributions by two methods, and the attention."""
    correct = np.all([e.probabilities.argmax(1) == data.test.labels for e in explained.values()], 0)
    row = int(np.flatnonzero(correct)[0]) if correct.any() else 0
    length = int(data.test.lengths[row])
    _, axes = plt.subplots(
        4, 2, figsize=(10, 9.5), layout="constrained", sharex=True, squeeze=False
    )  # fmt: skip
    for column, (kind, of_network) in zip(axes.T, explained.items(), strict=True):
        heats = {
            "series": data.test.x[row],
            "LRP": of_network.values["LRP"][row],
            "saliency": of_network.values["saliency"][row],
        }
        for panel, (name, heat) in zip(column, heats.items(), strict=False):
            plot.features_2d(
                heat[:length].T, ax=panel, norm="auto", xlabel="", ylabel="channel",
                titles=[f"{KINDS[kind]}: {name}" if panel is column[0] else name], label=name,
            )  # fmt: skip
        weights = of_network.attention[row]
        if weights.ndim == 2:
            plot.features_2d(
                weights[:length, :length], ax=column[3], titles=["attention"],
                xlabel="time step (key)", ylabel="time step (query)", label="weight",
            )  # fmt: skip
        else:
            plot.features_0d(
                weights[:length], ax=column[3], line=True, xlabel="time step", ylabel="weight"
            )
            column[3].set_title("attention", fontsize="medium")
    label = data.classes[data.test.labels[row]]
    largest = [f"{e.probabilities[row].max():.2f}" for e in explained.values()]
    page.figure(
        f"series-{data.name}", f"{data.name}: attention and attributions", axes,
        f"One test series of class {label}. The networks predict probabilities of "
        f"{largest[0]} and {largest[1]} for their classes. Time runs to the right in all panels. "
        "LRP is the contribution of each channel and time step to the logit of the predicted "
        "class: red supports it, blue opposes it. Saliency is the magnitude of the gradient and "
        "has no sign. Attention has no channels; its weights refer to the LSTM's outputs, which "
        "depend on all previous time steps.",
        alt="Heat maps of a series, of its relevance and saliency by channel and time, and of the "
        "attention over time, for two networks.",
    )  # fmt: skip


def on_deletion(
    page: gallery.Gallery, data: Trained, explained: dict[str, Explained]
) -> tuple[list[str], list[list[str]]]:
    """Add the deletion curves of attention and other methods, and the table of their scores."""
    _, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    columns, table = ["method"], {name: [name] for name in next(iter(explained.values())).steps}
    for panel, (kind, of_network) in zip(axes, explained.items(), strict=True):
        columns += [f"{kind} −20%", "AUC", "r(attn)"]
        curves = {
            name: deletion(of_network, data.test, steps) for name, steps in of_network.steps.items()
        }
        order = sorted(curves, key=lambda name: curves[name].mean())
        method_curves.draw(
            panel, FRACTIONS, {name: curves[name] for name in order}, title=KINDS[kind],
            xlabel="fraction of the time steps deleted", ylabel="probability of the prediction",
            legend_outside=False,
        )  # fmt: skip
        for name, curve in curves.items():
            areas = np.trapezoid(curve, FRACTIONS, axis=1)
            error = areas.std(ddof=1) / np.sqrt(len(areas))
            correlation = (
                "" if name == "attention" else f"{agreement(of_network, data.test, name):+.2f}"
            )
            table[name] += [
                f"{curve[:, 2].mean():.3f}",
                f"{areas.mean():.3f} ± {error:.3f}",
                correlation,
            ]
    page.figure(
        f"deletion-{data.name}", f"{data.name}: deletion curves", axes,
        f"The time steps of {len(data.test.labels)} test series are deleted in descending order of "
        "their attribution, all channels at once. Curves are means, bands are one standard error. "
        "A steeper fall means a better ranking. For SeqSelfAttention, the attention of a time step "
        "is the mean over all queries. Each method has its own colour and line style, the same on "
        "all pages.",
        alt="Deletion curves of attention and other methods, for two networks.",
    )  # fmt: skip
    page.table(
        f"{data.name}: deletion scores", columns, list(table.values()),
        "For each network: the mean probability of its prediction without the fifth of the time "
        "steps with the highest attribution; the area under the curve (AUC) with its standard "
        "error, where lower is better; and the rank correlation with attention, averaged over "
        "series.",
        strong="attention",
    )  # fmt: skip
    return columns, list(table.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/signals", help="folder of the page")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--full", action="store_true", help="five networks of each kind")
    arguments = parser.parse_args()
    main(arguments.out, epochs=arguments.epochs, seeds=5 if arguments.full else 1)
