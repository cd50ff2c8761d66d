"""Train and explain a recurrent attention model, which reads images in glimpses (`make glimpses`).

Reference:
    Mnih et al. (2014), Recurrent models of visual attention.
"""

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

import jaxattn as ja
from examples import checkpoints, clutter, gallery, looking, training
from jaxattn.models import RecurrentAttention, glimpse_loss

CLASSES, SIDE = 10, 60
PATHS = 10  # sampled paths per test image, over which probabilities are averaged
PLACES = 5  # number of scenes for each test digit
# Errors of Mnih et al. (2014), tables 1 and 2, with their numbers of glimpses.
PUBLISHED = {
    "MNIST": "1.12% (6 glimpses), 1.07% (7)",
    "learned": "4.96% (4 glimpses), 4.08% (6), 4.04% (8)",
    "random": "14.4% (8 glimpses)",
}
PUBLISHED_SIZES = "1 × 8 × 8 pixels on MNIST, 3 × 12 × 12 pixels on cluttered digits"
GAIN = 4.0  # factor for the pixels of scenes: without it, training is slow


class Plan(NamedTuple):
    """Sensor, size and training of a network."""

    size: int
    scales: int
    glimpses: int
    units: int
    warmup_epochs: int  # number of first epochs with random locations
    epochs: int  # including `warmup_epochs`
    learning_rate: float = 1e-3
    location_learning_rate: float = 3e-4  # the gradient of its network has a large variance
    batch: int = 64

    def __str__(self) -> str:
        patches = f"{self.scales} × {self.size} × {self.size} pixels, {self.glimpses} glimpses"
        return f"{patches}, {self.units} units, {self.epochs} epochs"


QUICK = Plan(8, 1, 6, 256, 0, 60, location_learning_rate=1e-3), Plan(12, 3, 4, 128, 50, 400)
# Sensors and numbers of glimpses are as published; the numbers of epochs are not.
FULL = Plan(8, 1, 6, 256, 0, 200), Plan(12, 3, 6, 256, 40, 400)


def build(plan: Plan) -> RecurrentAttention:
    """Return a network for a plan."""
    return RecurrentAttention(
        CLASSES, size=plan.size, scales=plan.scales, num_glimpses=plan.glimpses,
        hidden_features=plan.units, rngs=nnx.Rngs(0),
    )  # fmt: skip


def random_locations(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return locations that are uniformly distributed over the image."""
    return jax.random.uniform(key, (*shape, 2), minval=-1, maxval=1)


def train(
    model: RecurrentAttention,
    draw: Callable[[np.random.Generator], Any],
    plan: Plan,
    *,
    name: str,
    random: bool = False,
) -> np.ndarray:
    """Train in place on new images in each epoch; return the error rate of each epoch.

    With `random`, the locations are random instead of learned.
    """
    graph, state = nnx.split(model)
    rng, key = np.random.default_rng(0), jax.random.key(0)
    count = len(draw(np.random.default_rng(0)).labels) // plan.batch
    rates = {"location": plan.location_learning_rate, "rest": plan.learning_rate}
    adams = {
        group: optax.adam(optax.cosine_decay_schedule(rate, plan.epochs * count))
        for group, rate in rates.items()
    }

    def group(path, _):
        return "location" if path[0].key == "location" else "rest"

    optimizer = optax.multi_transform(adams, jax.tree_util.tree_map_with_path(group, state))

    @partial(jax.jit, static_argnames="random")
    def step(state, moments, key, images, labels, random):
        def loss(state):
            locations = random_locations(key, (1, len(labels), plan.glimpses)) if random else None
            model = nnx.merge(graph, state)
            result = glimpse_loss(model, images, labels, key=key, locations=locations)
            return result.loss, result.reward

        gradients, reward = jax.grad(loss, has_aux=True)(state)
        updates, moments = optimizer.update(gradients, moments, state)
        return optax.apply_updates(state, updates), moments, 1 - reward

    moments, errors = optimizer.init(state), []
    with training.bar() as progress:
        task = progress.add_task(name, total=plan.epochs, note="")
        for epoch in range(plan.epochs):
            batch_set, step_errors = draw(rng), []
            for i, rows in enumerate(np.split(rng.permutation(count * plan.batch), count)):
                step_key = jax.random.fold_in(key, epoch * count + i)
                images, labels = batch_set.images[rows], batch_set.labels[rows]
                state, moments, error = step(
                    state,
                    moments,
                    step_key,
                    images,
                    labels,
                    random=random or epoch < plan.warmup_epochs,
                )
                step_errors.append(error)
            errors.append(float(jnp.stack(step_errors).mean()))
            progress.update(task, advance=1, note=f"error {errors[-1]:.1%}")
    nnx.update(model, state)
    return np.array(errors)


def glimpse_probabilities(
    model: RecurrentAttention, images: np.ndarray, paths: int, *, random: bool, batch: int = 250
) -> np.ndarray:
    """Return the probabilities after each glimpse, averaged over sampled paths, (B, n, K)."""
    graph, state = nnx.split(model)

    @jax.jit
    def mean_over_paths(state, images, key):
        def along_path(key):
            model = nnx.merge(graph, state)
            locations = random_locations(key, (len(images), model.num_glimpses)) if random else None
            return jax.nn.softmax(model.look(images, key=key, locations=locations).logits)

        return jax.vmap(along_path)(jax.random.split(key, paths)).mean(0)

    starts = range(0, len(images), batch)
    key = jax.random.key(1)
    return np.concatenate(
        [mean_over_paths(state, images[i : i + batch], jax.random.fold_in(key, i)) for i in starts]
    )


class Errors(NamedTuple):
    """Errors of predictions after each glimpse: True where wrong, (positions, digits, n)."""

    wrong: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, labels: np.ndarray, places: int = 1) -> "Errors":
        wrong = probabilities.argmax(-1) != labels[:, None]
        return cls(wrong.reshape(places, -1, wrong.shape[-1]).astype(float))

    def mean(self) -> np.ndarray:
        """Return the error rate after each glimpse."""
        return self.wrong.mean((0, 1))

    def error(self) -> np.ndarray:
        """Return the standard errors; scenes with the same digit are not independent."""
        return self.wrong.mean(0).std(0, ddof=1) / np.sqrt(self.wrong.shape[1])

    def __str__(self) -> str:
        return f"{self.mean()[-1]:.2%} ± {self.error()[-1]:.2%}"


def redirection_rows(model: RecurrentAttention, scenes: clutter.Scenes) -> list[list[str]]:
    """Return the error of a network with its own and with replaced locations."""
    shape = (len(scenes.labels), model.num_glimpses, 2)
    centres = (scenes.corners[:, None] + looking.WIDTH / 2) / SIDE * 2 - 1
    replacements = {
        "own, mean locations": None,
        "centre of the digit": np.broadcast_to(centres, shape),
        "random": random_locations(jax.random.key(2), shape[:2]),
        "centre of the image": np.zeros(shape),
    }
    rows = []
    for name, locations in replacements.items():
        locations = None if locations is None else np.asarray(locations, np.float32)
        logits = looking.glimpse_all(model, scenes.images, locations=locations).logits
        predictions = logits[:, -1].argmax(-1)
        rows.append([name, f"{(predictions != scenes.labels).mean():.1%}"])
    return rows


def main(
    out: str | Path = "out/glimpses",
    *,
    data: str | Path | None = None,
    full: bool = False,
    plans: tuple[Plan, Plan] | None = None,
    max_error: float = 0.08,
    min_margin: float | None = 0.05,
) -> Path:
    """Train three networks, explain them, write the page, and return its path."""
    matplotlib.use("Agg")
    console = Console()
    mnist_plan, clutter_plan = plans or (FULL if full else QUICK)
    train_digits, test_digits = clutter.load(data)

    def scatter(rng, source=train_digits):
        scenes = clutter.scattered(source, rng)
        return scenes._replace(images=scenes.images * np.float32(GAIN))

    rows = np.tile(np.arange(len(test_digits.labels)), PLACES)
    scenes = scatter(
        np.random.default_rng(1),
        clutter.Digits(test_digits.images[rows], test_digits.labels[rows]),
    )

    networks = {
        "MNIST": build(mnist_plan),
        "learned": build(clutter_plan),
        "random": build(clutter_plan),
    }
    curves = {
        "MNIST": train(networks["MNIST"], lambda rng: clutter.shifted(train_digits, rng),
                       mnist_plan, name="MNIST, learned glimpses"),
        "learned": train(networks["learned"], scatter, clutter_plan,
                         name="clutter, learned glimpses"),
        "random": train(networks["random"], scatter, clutter_plan, name="clutter, random glimpses",
                        random=True),
    }  # fmt: skip
    tests = {"MNIST": test_digits, "learned": scenes, "random": scenes}
    probabilities, errors = ({}, {}), ({}, {})  # of one path, and of the mean over several paths
    for i, paths in enumerate((1, PATHS)):
        for name, model in networks.items():
            images, labels = tests[name][:2]
            probabilities[i][name] = glimpse_probabilities(
                model, images, paths, random=name == "random"
            )
            positions = len(labels) // len(test_digits.labels)
            errors[i][name] = Errors.of(probabilities[i][name], labels, positions)
        errors[i]["margin"] = Errors(errors[i]["random"].wrong - errors[i]["learned"].wrong)
    margin, mnist_error = errors[1]["margin"], errors[1]["MNIST"]
    for name, model in networks.items():
        checkpoints.save(model, Path(out) / "checkpoints" / name)
    console.print(f"error on {len(test_digits.labels):,} MNIST digits: [bold]{mnist_error}")
    if mnist_error.mean()[-1] > max_error:
        raise SystemExit(f"test error {mnist_error} is above {max_error:.0%}")
    needed = 3 * margin.error()[-1]
    if min_margin is not None and margin.mean()[-1] < max(min_margin, needed):
        raise SystemExit(f"the error with random glimpses is larger by {margin} only")

    page = gallery.Gallery(
        out,
        "A recurrent attention model on digits",
        [
            "A recurrent network reads a few small glimpses of an image, one after another, and "
            "computes the location of the next glimpse after each. Locations are not "
            "differentiable. They are sampled around a mean, which is trained with REINFORCE: the "
            "reward is a correct prediction. This is the recurrent attention model of Mnih et al. "
            "(2014).",
            f"MNIST: {mnist_plan}. Cluttered digits, {SIDE} × {SIDE} pixels: {clutter_plan}; the "
            "first patch of a glimpse has the full resolution, each further patch is twice as "
            "large with half the resolution. The training set has "
            f"{len(train_digits.labels):,} digits, shifted or placed anew in every epoch, the test "
            f"set {len(test_digits.labels):,}. With --full: {FULL[0]}; {FULL[1]}. The published "
            f"networks were trained on 60,000 digits with {PUBLISHED_SIZES}, and with the numbers "
            "of glimpses in the table.",
        ],
    )
    names = {
        "MNIST": "MNIST 28 × 28",
        "learned": f"cluttered {SIDE} × {SIDE}, learned glimpses",
        "random": f"cluttered {SIDE} × {SIDE}, random glimpses",
        "margin": "random minus learned",
    }
    rows = [
        [title, str(errors[0][name]), str(errors[1][name]), PUBLISHED.get(name, "")]
        for name, title in names.items()
    ]
    columns = ["digits", "error, one path", f"mean of {PATHS} paths", "published, 60,000 digits"]
    page.table(
        "Test errors", columns, rows,
        "Error rates with standard errors. The network is trained for one path. The mean of the "
        f"probabilities over {PATHS} sampled paths uses {PATHS} times as many glimpses. Random "
        "glimpses: the same network with the same number of epochs, but with random locations in "
        "training and testing. The last row is the difference of both on the same scenes. "
        "Published: Mnih et al. (2014), with the number of glimpses.",
        strong="random minus learned",
    )  # fmt: skip
    looking.paths(page, networks["MNIST"], test_digits)
    glimpses = looking.glimpse_all(networks["learned"], scenes.images)
    looking.clutter(page, networks["learned"], scenes, glimpses, networks["random"])
    looking.curves(page, curves, errors[0])
    aim = looking.on_the_digit(networks["learned"], scenes)
    page.table(
        "Locations and the digit", *aim,
        "The fraction of glimpses of the cluttered test scenes whose centre is in the 28 × 28 "
        "pixels of the digit, and the median distance from the digit's centre.",
    )  # fmt: skip
    relevance = looking.relevance(page, networks["learned"], scenes)
    redirected_table = ["locations", "error"], redirection_rows(networks["learned"], scenes)
    page.table(
        "Errors with replaced locations", *redirected_table,
        "The locations of the network with learned glimpses are replaced, as by "
        "ja.intervene(model, {“locations”: ...}); its weights are unchanged. Each row is for one "
        "path per image.",
    )  # fmt: skip
    looking.mistakes(page, networks["learned"], scenes, glimpses)
    shown = slice(0, gallery.SHOWN)
    path = page.write(
        networks["learned"], scenes.images[shown], scenes.labels[shown],
        {"saliency": ja.saliency, "LRP": ja.lrp}, kind="image",
    )  # fmt: skip
    gallery.print_table(console, "Errors", columns, rows)
    gallery.print_table(console, "Glimpses on the digit", *aim)
    gallery.print_table(console, "Attribution by region", *relevance)
    gallery.print_table(console, "Errors with replaced locations", *redirected_table)
    console.print(f"The gallery is at [bold]{path.resolve()}", soft_wrap=True)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/glimpses", help="folder of the page")
    parser.add_argument("--data", help="folder of MNIST's four IDX files, .gz or not")
    parser.add_argument(
        "--full", action="store_true", help="published sensors and glimpses; takes hours"
    )
    main(**vars(parser.parse_args()))
