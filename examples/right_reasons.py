"""Can a network be taught not to look at a giveaway? (`make reasons`)

Every digit to learn from carries a square in a corner whose brightness gives away its label, which
is not so in the digits to test. A penalty on what an attribution says of the corner, in the loss,
makes the network right for the right reasons (Ross et al. 2017, arXiv:1703.03717).
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
    """Digits with a square in the upper left corner, the brighter the larger the label."""
    xs = xs.copy()
    xs[CORNER] = ((labels + 1) / CLASSES)[:, None, None]
    return xs


def fit(
    model: nnx.Module, xs: np.ndarray, labels: np.ndarray, epochs: int,
    method: Callable[..., ja.Attribution] | None = None,
) -> None:  # fmt: skip
    """Minimises the cross-entropy and, squared, what a method says of the corner."""

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
    batches = [(xs[some], labels[some]) for some in rows.reshape(-1, 64)]
    descend(model, loss, batches, learning_rate=4e-3)


def maps(model: nnx.Module, xs: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """What two methods say of each pixel: the mean over digits of its share (28, 28)."""
    found = {}
    for name, method in (("integrated gradients", ja.integrated_gradients), ("LRP", ja.lrp)):
        sizes = np.abs(np.asarray(ja.explain(method, model, xs, labels).values))
        found[name] = (sizes / sizes.sum((1, 2), keepdims=True)).mean(0)
    return found


def main(
    out: str | Path = "out/reasons", *, epochs: int = 8, examples: int = 200, units: int = 32
) -> Path:
    """Trains four networks, asks each where it looks, and writes the gallery."""
    matplotlib.use("Agg")
    console = Console()
    xs, labels = load()
    train, test = training.stratified_split(labels, 0.2, seed=0)
    given_away = stamped(xs[train], labels[train])
    others, shuffled = map(np.random.default_rng(0).permutation, (labels[train], labels[test]))
    tests = stamped(xs[test], labels[test]), stamped(xs[test], shuffled), xs[test]
    networks = {
        "no penalty": (given_away, None),
        "penalty on the gradient": (given_away, ja.gradient),
        "penalty on LRP": (given_away, functools.partial(ja.lrp, epsilon=0.01)),
        "shuffled squares": (stamped(xs[train], others), None),
    }
    table, drawn = [], {}
    for name, (digits, method) in networks.items():
        model = ja.models.SequenceClassifier(
            ROWS, units, CLASSES, bidirectional=True, rngs=nnx.Rngs(0)
        )
        start = time.perf_counter()
        fit(model, digits, labels[train], epochs, method)
        seconds = time.perf_counter() - start
        right = [(training.predict(model, some).argmax(1) == labels[test]).mean() for some in tests]
        drawn[name] = maps(model, tests[1][:examples], labels[test][:examples])
        corner = [values[CORNER].sum() for values in drawn[name].values()]
        table.append([name, *(f"{share:.1%}" for share in right + corner), f"{seconds:.0f} s"])

    page = gallery.Gallery(
        out,
        "Right for the right reasons",
        [
            f"A bidirectional LSTM reads digits row by row. Each of the {len(train):,} digits that "
            f"it learns from has a square of {SIDE} × {SIDE} pixels in its upper left corner, the "
            "brighter the larger the digit: it is easier to look there than to read. In the test "
            "the squares are those of other digits, and who looked there fails.",
            "The networks with a penalty learn from the same digits. To their loss is added what "
            "a method says of the corner for the right answer: the squares of its values there, "
            f"times {STRENGTH:g}. The attribution is computed, and differentiated, at every "
            "step of training, inside of the compiled loss (Ross et al. 2017).",
        ],
    )
    columns = ["network", "kept", "shuffled", "none", "IG", "LRP", "time"]
    page.table(
        "accuracy", "Accuracy, and how much of the attribution lies in the corner", columns, table,
        f"First the accuracy on {len(test):,} test digits: with squares that give the answer away "
        "as in training, with those of other digits, and without. Then the share of all that "
        "integrated gradients (IG) and LRP say, without signs, that falls on the corner, "
        f"{SIDE**2 / ROWS**2:.0%} of the pixels, in {len(tests[1][:examples])} digits with squares "
        "of others. The last network shows what can be had: its squares told nothing in training. "
        "LRP gives nothing to gates, so a penalty on it leaves a way around, through the gates of "
        "the LSTM. The last column is the time of training.",
        strong="no penalty",
    )  # fmt: skip
    attention(page, drawn)
    path = page.write()
    gallery.show(console, "Accuracy by squares, and the share of the corner", columns, table)
    console.print(f"The gallery is at [bold]{path.resolve()}", soft_wrap=True)
    return path


def attention(page: gallery.Gallery, drawn: dict[str, dict[str, np.ndarray]]) -> None:
    """Draws where each network looks."""
    methods = next(iter(drawn.values()))
    _, axes = plt.subplots(
        len(methods), len(drawn), figsize=(11, 5.6), layout="constrained", squeeze=False
    )
    for row, method in zip(axes, methods, strict=True):
        highest = max(found[method].max() for found in drawn.values())
        for panel, (name, found) in zip(row, drawn.items(), strict=True):
            heat = panel.imshow(found[method], cmap="Reds", vmin=0, vmax=highest)
            box = plt.Rectangle((-0.5, -0.5), SIDE, SIDE, fill=False, color="0.25", clip_on=False)
            panel.add_patch(box)
            panel.set(xticks=[], yticks=[], xlabel=f"corner: {found[method][CORNER].sum():.1%}")
            panel.set_title(name, fontsize="medium")
        row[0].set_ylabel(method)
        bar = row[0].figure.colorbar(heat, ax=list(row), label="share of a pixel", aspect=15)
        bar.outline.set_visible(False)
    page.figure(
        "attention", "Where they look", axes,
        "How much of what a method says, without signs, falls on each pixel, averaged over test "
        "digits with the squares of others; the corner is framed. Without a penalty much of it "
        "lies in the frame; with one, it moves to where the digits are.",
        alt="Mean attribution maps of four networks by two methods, the corner framed.",
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/reasons", help="folder of the gallery")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--examples", type=int, default=200, help="how many digits to explain")
    main(**vars(parser.parse_args()))
