"""A network that sees a few small glimpses of an image, and learns where to look."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from rich.console import Console

from examples import checkpoints, clutter, gallery, looking, training
from jaxattn.models import RecurrentAttention, glimpse_loss

CLASSES, SIDE = 10, 60
PATHS = 10  # drawn for a test image; its probabilities are their mean
PLACES = 5  # in how many scenes each test digit stands
# Errors of Mnih et al. (2014), tables 1 and 2, each with its number of glimpses.
PUBLISHED = {
    "MNIST": "1.12% (6 glimpses), 1.07% (7)",
    "learned": "4.96% (4 glimpses), 4.08% (6), 4.04% (8)",
    "random": "14.4% (8 glimpses)",
}
PUBLISHED_SIZES = "1 × 8 × 8 pixels on MNIST, 3 × 12 × 12 pixels on cluttered digits"
GAIN = 4.0  # of scenes: thin strokes on much black are dim, and slow to learn from


class Plan(NamedTuple):
    """How a network looks, how large it is, and how long it trains."""

    size: int
    scales: int
    glimpses: int
    units: int
    warm: int  # epochs in which the glimpses lie anywhere, so that there is something to choose
    epochs: int  # in all
    rate: float = 1e-3
    gaze_rate: float = 3e-4  # of the location network, whose gradient is mostly noise
    batch: int = 64

    def __str__(self) -> str:
        patches = f"{self.scales} × {self.size} × {self.size} pixels, {self.glimpses} glimpses"
        return f"{patches}, {self.units} units, {self.epochs} epochs"


QUICK = Plan(8, 1, 6, 256, 0, 60, gaze_rate=1e-3), Plan(12, 3, 4, 128, 50, 400)
# Sensors and glimpses are published ones; how long to train is a choice made here.
FULL = Plan(8, 1, 6, 256, 0, 200), Plan(12, 3, 6, 256, 40, 400)


def build(plan: Plan) -> RecurrentAttention:
    return RecurrentAttention(
        CLASSES, size=plan.size, scales=plan.scales, num_glimpses=plan.glimpses,
        hidden_features=plan.units, rngs=nnx.Rngs(0),
    )  # fmt: skip


def anywhere(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Locations that are the same on all of an image, and look at nothing in particular."""
    return jax.random.uniform(key, (*shape, 2), minval=-1, maxval=1)


def train(
    model: RecurrentAttention,
    draw: Callable[[np.random.Generator], Any],
    plan: Plan,
    *,
    name: str,
    random: bool = False,
) -> np.ndarray:
    """Trains in place on images drawn anew for each epoch; returns each epoch's share of errors.

    `random` places the glimpses anywhere instead of learning where.
    """
    graph, state = nnx.split(model)
    rng, key = np.random.default_rng(0), jax.random.key(0)
    count = len(draw(np.random.default_rng(0)).labels) // plan.batch
    adams = {
        part: optax.adam(optax.cosine_decay_schedule(rate, plan.epochs * count))
        for part, rate in {"gaze": plan.gaze_rate, "rest": plan.rate}.items()
    }

    def part(path, _):
        return "gaze" if path[0].key == "location" else "rest"

    optimizer = optax.multi_transform(adams, jax.tree_util.tree_map_with_path(part, state))

    @partial(jax.jit, static_argnames="random")
    def step(state, moments, key, images, labels, random):
        def loss(state):
            places = anywhere(key, (1, len(labels), plan.glimpses)) if random else None
            model = nnx.merge(graph, state)
            found = glimpse_loss(model, images, labels, key=key, locations=places)
            return found.loss, found.reward

        slope, reward = jax.grad(loss, has_aux=True)(state)
        updates, moments = optimizer.update(slope, moments, state)
        return optax.apply_updates(state, updates), moments, 1 - reward

    moments, errors = optimizer.init(state), []
    with training.bar() as progress:
        task = progress.add_task(name, total=plan.epochs, note="")
        for epoch in range(plan.epochs):
            drawn, wrong = draw(rng), []
            for i, rows in enumerate(np.split(rng.permutation(count * plan.batch), count)):
                now = jax.random.fold_in(key, epoch * count + i)
                images, labels = drawn.images[rows], drawn.labels[rows]
                state, moments, share = step(
                    state, moments, now, images, labels, random=random or epoch < plan.warm
                )
                wrong.append(share)
            errors.append(float(jnp.stack(wrong).mean()))
            progress.update(task, advance=1, note=f"error {errors[-1]:.1%}")
    nnx.update(model, state)
    return np.array(errors)


def chances(
    model: RecurrentAttention, images: np.ndarray, paths: int, *, random: bool, batch: int = 250
) -> np.ndarray:
    """The mean probabilities after each glimpse (B, n, K) over paths that are drawn."""
    graph, state = nnx.split(model)

    @jax.jit
    def some(state, images, key):
        def once(key):
            model = nnx.merge(graph, state)
            places = anywhere(key, (len(images), model.num_glimpses)) if random else None
            return jax.nn.softmax(model.look(images, key=key, locations=places).logits)

        return jax.vmap(once)(jax.random.split(key, paths)).mean(0)

    starts = range(0, len(images), batch)
    key = jax.random.key(1)
    return np.concatenate(
        [some(state, images[i : i + batch], jax.random.fold_in(key, i)) for i in starts]
    )


class Errors(NamedTuple):
    """Whether each answer is wrong (places, digits, n), after each glimpse."""

    wrong: np.ndarray

    @classmethod
    def of(cls, chances: np.ndarray, labels: np.ndarray, places: int = 1) -> "Errors":
        wrong = chances.argmax(-1) != labels[:, None]
        return cls(wrong.reshape(places, -1, wrong.shape[-1]).astype(float))

    def mean(self) -> np.ndarray:
        return self.wrong.mean((0, 1))

    def error(self) -> np.ndarray:
        """The standard error of the mean; scenes of one digit are not independent."""
        return self.wrong.mean(0).std(0, ddof=1) / np.sqrt(self.wrong.shape[1])

    def __str__(self) -> str:
        return f"{self.mean()[-1]:.2%} ± {self.error()[-1]:.2%}"


def redirected(model: RecurrentAttention, scenes: clutter.Scenes) -> list[list[str]]:
    """The error of one network along its own means, and when its gaze is put elsewhere."""
    shape = (len(scenes.labels), model.num_glimpses, 2)
    centres = (scenes.corners[:, None] + looking.WIDTH / 2) / SIDE * 2 - 1
    gazes = {
        "its own, along the means": None,
        "at the digit's centre throughout": np.broadcast_to(centres, shape),
        "anywhere": anywhere(jax.random.key(2), shape[:2]),
        "at the image's centre throughout": np.zeros(shape),
    }
    rows = []
    for name, places in gazes.items():
        places = None if places is None else np.asarray(places, np.float32)
        said = looking.look(model, scenes.images, locations=places).logits[:, -1].argmax(-1)
        rows.append([name, f"{(said != scenes.labels).mean():.1%}"])
    return rows


def main(
    out: str | Path = "out/glimpses",
    *,
    data: str | Path | None = None,
    full: bool = False,
    plans: tuple[Plan, Plan] | None = None,
    most_wrong: float = 0.08,
    least_margin: float | None = 0.05,
) -> Path:
    """Trains three networks, explains them, and writes the page; returns its path."""
    matplotlib.use("Agg")
    console = Console()
    plain, wide = plans or (FULL if full else QUICK)
    digits, held = clutter.load(data)

    def scatter(rng, found=digits):
        scenes = clutter.scattered(found, rng)
        return scenes._replace(images=scenes.images * np.float32(GAIN))

    every = np.tile(np.arange(len(held.labels)), PLACES)
    scenes = scatter(
        np.random.default_rng(1), clutter.Digits(held.images[every], held.labels[every])
    )

    networks = {"MNIST": build(plain), "learned": build(wide), "random": build(wide)}
    curves = {
        "MNIST": train(networks["MNIST"], lambda rng: clutter.shifted(digits, rng), plain,
                       name="MNIST, learned glimpses"),
        "learned": train(networks["learned"], scatter, wide, name="clutter, learned glimpses"),
        "random": train(networks["random"], scatter, wide, name="clutter, random glimpses",
                        random=True),
    }  # fmt: skip
    tests = {"MNIST": held, "learned": scenes, "random": scenes}
    said, errors = ({}, {}), ({}, {})  # of one path, and of the mean over several
    for i, paths in enumerate((1, PATHS)):
        for name, model in networks.items():
            images, labels = tests[name][:2]
            said[i][name] = chances(model, images, paths, random=name == "random")
            places = len(labels) // len(held.labels)
            errors[i][name] = Errors.of(said[i][name], labels, places)
        errors[i]["margin"] = Errors(errors[i]["random"].wrong - errors[i]["learned"].wrong)
    margin, plain_error = errors[1]["margin"], errors[1]["MNIST"]
    for name, model in networks.items():
        checkpoints.save(model, Path(out) / "checkpoints" / name)
    console.print(f"error on {len(held.labels):,} MNIST digits: [bold]{plain_error}")
    if plain_error.mean()[-1] > most_wrong:
        raise SystemExit(f"the network errs on {plain_error}, wanted {most_wrong:.0%}")
    wanted = 3 * margin.error()[-1]
    if least_margin is not None and margin.mean()[-1] < max(least_margin, wanted):
        raise SystemExit(f"learned glimpses beat random ones by {margin} only")

    page = gallery.Gallery(
        out,
        "Where to look: a network that sees in glimpses",
        [
            "A recurrent network never sees a whole image, only a few small glimpses of it, one "
            "after another. After each it decides where to look next. Nothing tells it where: a "
            "location cannot be differentiated, so it is drawn at random around a mean, and the "
            "mean moves towards draws after which the answer was right (REINFORCE). This is the "
            "recurrent attention model of Mnih et al. (2014).",
            f"MNIST: {plain}. Cluttered digits, {SIDE} × {SIDE} pixels: {wide}; the first patch of "
            "a glimpse is sharp, each next one twice as wide and as much blurred. Trained on "
            f"{len(digits.labels):,} digits, shifted or scattered anew in every epoch, and tested "
            f"on {len(held.labels):,} others. With --full: {FULL[0]}; {FULL[1]}. The published "
            f"networks learned from 60,000 digits and looked through {PUBLISHED_SIZES}, in as many "
            "glimpses as the table says.",
        ],
    )
    names = {
        "MNIST": "MNIST 28 × 28",
        "learned": f"cluttered {SIDE} × {SIDE}, learned glimpses",
        "random": f"cluttered {SIDE} × {SIDE}, random glimpses",
        "margin": "random less learned",
    }
    rows = [
        [title, str(errors[0][name]), str(errors[1][name]), PUBLISHED.get(name, "")]
        for name, title in names.items()
    ]
    columns = ["digits", "error, one path", f"mean of {PATHS} paths", "published, 60,000 digits"]
    page.table(
        "errors", "How often it is wrong", columns, rows,
        "Errors with standard errors. One path is what the network was trained for; the mean of "
        f"the probabilities over {PATHS} drawn paths sees {PATHS} times as much. Random glimpses: "
        "the same network, trained just as long, but all its glimpses, in training and in "
        "testing, lie anywhere. The last row compares the two on the same scenes. Published: "
        "Mnih et al. (2014), with the number of glimpses.",
        strong="random less learned",
    )  # fmt: skip
    looking.paths(page, networks["MNIST"], held)
    seen = looking.look(networks["learned"], scenes.images)
    looking.clutter(page, networks["learned"], scenes, seen, networks["random"])
    looking.curves(page, curves, errors[0])
    shares = looking.on_the_digit(networks["learned"], scenes)
    page.table(
        "aim", "Does it look at the digit?", *shares,
        "The share of glimpses of the cluttered test scenes whose centre lies on the 28 × 28 "
        "pixels that hold the digit, and the median distance from the digit's centre.",
    )  # fmt: skip
    relevance = looking.relevance(page, networks["learned"], scenes)
    gazes = ["gaze", "error"], redirected(networks["learned"], scenes)
    page.table(
        "redirected", "The same network, made to look elsewhere", *gazes,
        "The gaze of the network that learned where to look is put elsewhere, as "
        "ja.intervene(model, {“locations”: ...}) does; its weights stay. Each row is of one path "
        "an image.",
    )  # fmt: skip
    looking.mistakes(page, networks["learned"], scenes, seen)
    path = page.write()
    gallery.show(console, "Errors", columns, rows)
    gallery.show(console, "Glimpses on the digit", *shares)
    gallery.show(console, "Where relevance lies", *relevance)
    gallery.show(console, "The same network, made to look elsewhere", *gazes)
    console.print(f"The gallery is at [bold]{path.resolve()}", soft_wrap=True)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/glimpses", help="folder of the page")
    parser.add_argument("--data", help="folder of MNIST's four IDX files, .gz or not")
    parser.add_argument("--full", action="store_true", help="published sensors and glimpses: hours")
    main(**vars(parser.parse_args()))
