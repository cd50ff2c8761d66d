"""Train a network with a penalty on its attributions to a spurious feature (`make reasons`).

The brightness of a square in a corner encodes the label of every training digit, but not of the
test digits. A penalty on the attributions of the corner makes the network ignore the square.

Reference:
    Ross et al. (2017), Right for the right reasons, arXiv:1703.03717.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from rich.console import Console

import jaxattn as ja
from examples import gallery, training
from examples.descent import descend
from examples.digits import CLASSES, ROWS, load

SIDE, STRENGTH = 4, 10.0
CORNER = np.s_[..., :SIDE, :SIDE]


def stamped(xs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return digits with a square in the upper left corner, brighter for larger labels."""
    xs = xs.copy()
    xs[CORNER] = ((labels + 1) / CLASSES)[:, None, None]
    return xs


def fit(
    model: nnx.Module, xs: np.ndarray, labels: np.ndarray, epochs: int,
    method: Callable[..., ja.Attribution] | None = None,
) -> None:  # fmt: skip
    """Minimize the cross-entropy plus the squared attributions of the corner by `method`."""

    def corner(model, x, label):
        def contrast(logits):
            return logits[label] - logits.mean()

        return jnp.square(method(model, x, contrast).values[CORNER]).sum()

    def loss(model, key, x, label):
        error = optax.softmax_cross_entropy_with_integer_labels(model(x), label).mean()
        if method is None:
            return error
        return error + STRENGTH * jax.vmap(corner, (None, 0, 0))(model, x, label).mean()

    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(len(xs))[: len(xs) // 64 * 64] for _ in range(epochs)])
    batches = [(xs[batch], labels[batch]) for batch in rows.reshape(-1, 64)]
    descend(model, loss, batches, learning_rate=4e-3)


def maps(model: nnx.Module, xs: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return, for two methods, each pixel's share of the attribution, averaged over digits."""
    shares = {}
    for name, method in (("integrated gradients", ja.integrated_gradients), ("LRP", ja.lrp)):
        magnitudes = np.abs(np.asarray(ja.explain(method, model, xs, labels).values))
        shares[name] = (magnitudes / magnitudes.sum((1, 2), keepdims=True)).mean(0)
    return shares


def main(
    out: str | Path = "out/reasons", *, epochs: int = 8, examples: int = 200, units: int = 32
) -> Path:
    """Train four networks, compute their attributions, and write the gallery."""
    matplotlib.use("Agg")
    console = Console()
    xs, labels = load()
    train, test = training.stratified_split(labels, 0.2, seed=0)
    stamped_train = stamped(xs[train], labels[train])
    shuffled_train, shuffled_test = map(
        np.random.default_rng(0).permutation, (labels[train], labels[test])
    )
    test_sets = stamped(xs[test], labels[test]), stamped(xs[test], shuffled_test), xs[test]
    networks = {
        "no penalty": (stamped_train, None),
        "penalty on the gradient": (stamped_train, ja.gradient),
        "penalty on LRP": (stamped_train, functools.partial(ja.lrp, epsilon=0.01)),
        "shuffled squares": (stamped(xs[train], shuffled_train), None),
    }
    table, shares, models = [], {}, {}
    for name, (digits, method) in networks.items():
        model = models[name] = ja.models.SequenceClassifier(
            ROWS, units, CLASSES, bidirectional=True, rngs=nnx.Rngs(0)
        )
        start = time.perf_counter()
        fit(model, digits, labels[train], epochs, method)
        seconds = time.perf_counter() - start
        accuracies = [
            (training.predict(model, xs_test).argmax(1) == labels[test]).mean()
            for xs_test in test_sets
        ]
        shares[name] = maps(model, test_sets[1][:examples], labels[test][:examples])
        corner_shares = [values[CORNER].sum() for values in shares[name].values()]
        table.append(
            [name, *(f"{share:.1%}" for share in accuracies + corner_shares), f"{seconds:.0f} s"]
        )

    page = gallery.Gallery(
        out,
        "Right for the right reasons: a penalty on attributions",
        [
            f"A bidirectional LSTM reads digits row by row. Each of the {len(train):,} training "
            f"digits has a square of {SIDE} × {SIDE} pixels in its upper left corner. Its "
            "brightness encodes the label, so that the network can use it instead of the digit. In "
            "the test set, the squares are those of other digits, and such a network fails.",
            "The networks with a penalty are trained on the same digits. The penalty is "
            f"{STRENGTH:g} times the sum of the squared attributions of the corner, for the label. "
            "The attribution is computed and differentiated in every training step, inside of the "
            "compiled loss (Ross et al. 2017).",
        ],
    )
    columns = ["network", "kept", "shuffled", "none", "IG", "LRP", "time"]
    page.table(
        "Accuracy, and the share of the attribution in the corner", columns, table,
        f"“Kept”, “shuffled” and “none” are accuracies on {len(test):,} test digits: with squares "
        "that encode the label as in training, with squares of other digits, and without squares. "
        "“IG” and “LRP” are the shares of the magnitude of integrated gradients and of LRP in the "
        f"corner, which has {SIDE**2 / ROWS**2:.0%} of the pixels, over "
        f"{len(test_sets[1][:examples])} digits with squares of other digits. The last network is "
        "the reference: its training squares were shuffled. LRP assigns no relevance to gates, so "
        "that a penalty on it does not cover the path through the gates of the LSTM. The last "
        "column is the training time.",
        strong="no penalty",
    )  # fmt: skip
    attention(page, shares)
    digits = test_sets[1][: gallery.SHOWN]
    shown_labels = labels[test][: gallery.SHOWN]
    penalised = ja.explain(ja.gradient, models["penalty on the gradient"], digits, shown_labels)
    methods = {
        "gradient, no penalty": ja.gradient, "LRP, no penalty": ja.lrp,
        "gradient, penalty on the gradient": penalised.values,
    }  # fmt: skip
    path = page.write(models["no penalty"], digits, shown_labels, methods, kind="image")
    gallery.print_table(
        console, "Accuracy by kind of square, and share of the corner", columns, table
    )
    console.print(f"The gallery is at [bold]{path.resolve()}", soft_wrap=True)
    return path


def attention(page: gallery.Gallery, shares: dict[str, dict[str, np.ndarray]]) -> None:
    """Draw the mean attribution maps of each network."""
    methods = next(iter(shares.values()))
    _, axes = plt.subplots(
        len(methods), len(shares), figsize=(11, 5.6), layout="constrained", squeeze=False
    )
    for row, method in zip(axes, methods, strict=True):
        highest = max(of_network[method].max() for of_network in shares.values())
        for panel, (name, of_network) in zip(row, shares.items(), strict=True):
            heat = panel.imshow(of_network[method], cmap="Purples", vmin=0, vmax=highest)
            box = plt.Rectangle((-0.5, -0.5), SIDE, SIDE, fill=False, color="0.25", clip_on=False)
            panel.add_patch(box)
            panel.set(
                xticks=[], yticks=[], xlabel=f"corner: {of_network[method][CORNER].sum():.1%}"
            )
            panel.set_title(name, fontsize="medium")
        row[0].set_ylabel(method)
        bar = row[0].figure.colorbar(heat, ax=list(row), label="share of a pixel", aspect=15)
        bar.outline.set_visible(False)
    page.figure(
        "attention", "Mean attribution maps", axes,
        "Each pixel shows its share of the magnitude of an attribution, averaged over test digits "
        "with squares of other digits. The corner is framed. Without a penalty, a large share "
        "lies in the frame; with a penalty, it lies on the digits.",
        alt="Mean attribution maps of four networks by two methods, the corner framed.",
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/reasons", help="folder of the gallery")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--examples", type=int, default=200, help="how many digits to explain")
    main(**vars(parser.parse_args()))
