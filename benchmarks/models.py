"""Check every method on networks of every library: `python -m benchmarks.models --help`.

Each cell of the table is computed and compared with a value that does not come from jaxattn, or
with a sum that it has to have. Where a call raises an error or warns, the script does what the
message says, and checks that. A value that differs is printed as WRONG, and the exit status is 1.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

os.environ["KERAS_BACKEND"] = "jax"  # read when Keras is imported

import jax
import jax.numpy as jnp
import numpy as np

import jaxattn as ja
from benchmarks import report, zoo

TARGET = 1
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
LIBRARIES = ("jax", "flax", "dm-haiku", "equinox", "keras", "keras-hub", "gemma")


class Wrong(Exception):
    """A value differs from its reference."""


class Case:
    """A network with the references of its first example.

    Attributes:
        network: the network and its parts.
        fn: the network, as a user passes it.
        x: the example.
        explained: what methods attribute to: `x`, or its embedding.
        output: the compiled output, from what is explained and the example.
    """

    def __init__(self, network: zoo.Model):
        self.network, self.fn, self.x = network, network.fn, network.xs[0]
        self.explained = network.explained(self.x)
        self.output = jax.jit(network.output)

    def score(self, explained: jax.Array | None = None) -> float:
        """Return the target, of the example by default."""
        explained = self.explained if explained is None else explained
        return float(self.output(explained, self.x)[TARGET])

    def gradient(self, x: jax.Array) -> jax.Array:
        """Differentiate the target with respect to what is explained."""
        slope = jax.grad(lambda explained: self.output(explained, x)[TARGET])
        return jax.jit(slope)(self.network.explained(x))

    @functools.cached_property
    def weights(self) -> list[jax.Array]:
        """The attention weights of each layer."""
        assert self.network.weights is not None
        return self.network.weights(self.x)

    def difference(self, baseline: jax.Array | float = 0.0) -> float:
        """Return the difference of the target from that of a baseline."""
        return self.score() - self.score(jnp.broadcast_to(baseline, self.explained.shape))


def equal(got: Any, expected: Any, tolerance: float = 1e-3) -> None:
    """Raise `Wrong` unless two arrays are equal, up to a batch axis of one example."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if got.size != expected.size:
        raise Wrong(f"shape {got.shape} instead of {expected.shape}")
    error = np.abs(got.reshape(expected.shape) - expected).max()
    if not error <= tolerance * max(np.abs(expected).max(), 1e-3):
        raise Wrong(f"{error:.2g} off, of {np.abs(expected).max():.2g}")


def sums_to(values: Any, expected: float, tolerance: float) -> None:
    """Raise `Wrong` unless the sum of finite values is right."""
    equal(np.asarray(values, np.float64).sum(), expected, tolerance)


# The methods. Each check takes a case and options, runs the method and raises `Wrong`.


def saliency(case: Case, **options: Any) -> None:
    equal(ja.saliency(case.fn, case.x, TARGET, **options).values, abs(case.gradient(case.x)))


def integrated_gradients(case: Case, **options: Any) -> None:
    values = ja.integrated_gradients(case.fn, case.x, TARGET, **options).values
    sums_to(values, case.difference(options.get("baseline", 0.0)), 1e-2)


def occlusion(case: Case, **options: Any) -> None:
    def score(x):
        return case.output(case.network.explained(x), x)[TARGET]

    effects = [score(case.x) - score(case.x.at[i].set(0)) for i in range(len(case.x))]
    expected = np.broadcast_to(np.reshape(effects, (-1,) + (1,) * (case.x.ndim - 1)), case.x.shape)
    equal(ja.occlusion(case.fn, case.x, TARGET, **options).values, expected)


def jacobian(case: Case, **options: Any) -> None:
    expected = jax.jit(jax.jacrev(case.output))(case.explained, case.x)
    equal(ja.jacobian(case.fn, case.x, **options).values, expected)


def lrp(case: Case, **options: Any) -> None:
    relevance = ja.lrp(case.fn, case.x, TARGET, **options)
    total = float(np.asarray(relevance.values, np.float64).sum() + relevance.info["absorbed"])
    equal(total, case.score())


def attnlrp(case: Case, **options: Any) -> None:
    lrp(case, attention="attnlrp", **options)


def deep_lift(case: Case, **options: Any) -> None:
    values = ja.deep_lift(case.fn, case.x, TARGET, **options).values
    sums_to(values, case.difference(), 1e-2)


def contextual_decomposition(case: Case, **options: Any) -> None:
    parts = ja.contextual_decomposition(case.fn, case.x, TARGET, **options)
    total = parts.values + parts.info["irrelevant"] + parts.info["bias"]
    equal(total, np.full(total.shape, case.score()))


def layers_of(values: Any, number: int) -> list[jax.Array]:
    """Return the weights of each layer; a scan over layers has stacked them."""
    leaves = jax.tree.leaves(values)
    return leaves if len(leaves) == number else list(leaves[0])


def attention(case: Case, **options: Any) -> None:
    expected = case.weights
    values = layers_of(ja.attention(case.fn, case.x, **options).values, len(expected))
    for got, weights in zip(values, expected, strict=True):
        equal(got, weights)


def attention_rollout(case: Case, **options: Any) -> None:
    expected = np.eye(zoo.T)
    for weights in case.weights:
        expected = (np.asarray(weights).mean(0) + np.eye(zoo.T)) / 2 @ expected
    equal(ja.attention_rollout(case.fn, case.x, **options).values, expected)


def weights_by_name(case: Case) -> dict[str, jax.Array]:
    values = ja.attention(case.fn, case.x).values
    if not isinstance(values, dict):
        values = ja.capture(case.fn, "attention_weights")(case.x)[1]
    return {f"/{name}": weights for name, weights in values.items()}


def gradient_x_attention(case: Case, **options: Any) -> None:
    """Compare with the effect of changing all weights a little, each by a random share."""
    values = ja.gradient_x_attention(case.fn, case.x, TARGET, **options).values
    weights, step = weights_by_name(case), 1e-2
    rng = np.random.default_rng(0)
    shares = {
        name: rng.uniform(size=each.shape).astype(np.float32) for name, each in weights.items()
    }

    @jax.jit
    def score(size):
        changed = {name: each * (1 + size * shares[name]) for name, each in weights.items()}
        return ja.intervene(case.fn, changed)(case.x)[TARGET]

    pairs = zip(jax.tree.leaves(values), shares.values(), strict=True)
    got = sum(float((np.asarray(value) * share).sum()) for value, share in pairs)
    equal(got, (score(step) - score(-step)) / (2 * step), 1e-2)


def value_zeroing(case: Case, **options: Any) -> None:
    names = weights_by_name(case)

    @jax.jit
    def score(position):
        def zero(weights):
            return jnp.where(jnp.arange(weights.shape[-1]) == position, 0, weights)

        return ja.intervene(case.fn, dict.fromkeys(names, zero))(case.x)[TARGET]

    expected = [case.score() - score(position) for position in range(zoo.T)]
    equal(ja.value_zeroing(case.fn, case.x, TARGET, **options).values, expected)


def capture(case: Case, **options: Any) -> None:
    _, values = ja.capture(case.fn, case.network.layer)(case.x)
    (value,) = jax.tree.leaves(values)
    equal(value, case.network.inner(case.x))


def at(case: Case, **options: Any) -> None:
    network = case.network
    slope = jax.grad(lambda hidden: network.rest(hidden, case.x)[TARGET])
    values = ja.gradient(case.fn, case.x, TARGET, at=network.layer).values
    equal(values, jax.jit(slope)(network.inner(case.x)))


def explain(case: Case, **options: Any) -> None:
    xs = case.network.xs
    got = ja.explain(ja.saliency, case.fn, xs, TARGET, **options)
    equal(got.values, abs(np.stack([case.gradient(x) for x in xs])))
    equal(got.output, np.stack([case.output(case.network.explained(x), x) for x in xs]))


class Column(NamedTuple):
    """A method: its heading, what it is compared with, whether it needs attention, and its call."""

    heading: str
    check: Callable[..., None]
    reference: str
    attends: bool = False
    call: str = ""


COLUMNS = (
    Column("sal", saliency, "`jax.grad`"),
    Column("IG", integrated_gradients, "the difference of the target, to 1 %"),
    Column("occ", occlusion, "a loop of calls"),
    Column("Jac", jacobian, "`jax.jacrev`"),
    Column("LRP", lrp, "the target: values and absorbed relevance sum to it"),
    Column("AttnLRP", attnlrp, "the same", True, 'lrp(attention="attnlrp")'),
    Column("DL", deep_lift, "the difference of the target, to 1 %"),
    Column("CD", contextual_decomposition, "the target: the three parts sum to it"),
    Column("att", attention, "the weights that the model returns or sows", attends=True),
    Column("roll", attention_rollout, "the product of these weights", attends=True),
    Column("g×a", gradient_x_attention, "a finite difference, to 1 %", attends=True),
    Column("VZ", value_zeroing, "a loop of interventions", attends=True),
    Column("cap", capture, "the layer, called by itself", call="capture(fn, layer)"),
    Column("at", at, "`jax.grad` of the part behind the layer", call="gradient(at=layer)"),
    Column("expl", explain, "`jax.grad` of each example", call="explain(saliency, ...)"),
)


class Way(NamedTuple):
    """A way out where a method raises an error or warns.

    Attributes:
        message: a regular expression that the message contains.
        note: what to do, for the reader.
        options: returns the options to add, for a case.
        instead: the check of another method, if no option helps.
    """

    message: str
    note: str
    options: Callable[[Case], Mapping[str, Any]] = lambda case: {}
    instead: Callable[..., None] | None = None


WAYS = (
    Way(
        "at=|`at`",
        '`at="<embedding>"`: token ids have no gradient',
        lambda case: {"at": case.network.embedding},
    ),
    Way(
        'pass num_steps="auto"',
        '`num_steps="auto"`: a `ConvergenceWarning` says that 64 steps are too few',
        lambda case: {"num_steps": "auto"},
    ),
    Way(
        'pass num_steps="auto"',
        "`baseline=` another example: the zero baseline is singular for a normalisation, and the "
        "warning remains; or `deep_lift`",
        lambda case: {"baseline": case.network.explained(case.network.xs[1])},
    ),
    Way(
        'products="half" for all',
        '`products="half"`: the error asks how to divide the relevance of a product of two signals',
        lambda case: {"products": "half"},
    ),
)


class Cell(NamedTuple):
    """An entry of the table, and the notes on what it takes, or on what is wrong."""

    mark: str
    notes: tuple[str, ...] = ()

    @property
    def is_wrong(self) -> bool:
        return self.mark == "WRONG"


def cell(case: Case, column: Column, ways: Sequence[Way] = WAYS) -> Cell:
    """Check a method on a network, in the ways that its messages propose."""
    if column.attends and case.network.weights is None:
        return Cell("–")
    left, options, notes, check = list(ways), {}, (), column.check
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", ja.AttributionWarning)
                check(case, **options)
        except Wrong as difference:
            return Cell("WRONG", (*notes, str(difference)))
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            way = next((way for way in left if re.search(way.message, str(error))), None)
            if way is None:
                return Cell("WRONG", (*notes, text))
            left.remove(way)
            notes = (*notes, way.note)
            options |= way.options(case)
            check = way.instead or check
        else:
            refused = check is not column.check
            return Cell("refused" if refused else "✓ +" if notes else "✓", notes)


def table_row(name: str) -> list[Cell] | None:
    """Return the cells of a network, or `None` if its library is not installed."""
    try:
        case = Case(zoo.MODELS[name]())
    except ImportError:
        return None
    return [cell(case, column) for column in COLUMNS]


def page(rows: Mapping[str, list[Cell] | None]) -> str:
    """Return the table in Markdown."""
    notes: list[str] = []

    def shown(each: Cell) -> str:
        for note in each.notes:
            if note not in notes:
                notes.append(note)
        numbers = ",".join(str(notes.index(note) + 1) for note in each.notes)
        return f"{each.mark} {numbers}".strip()

    lines = []
    for name, cells in rows.items():
        entries = ["not installed"] if cells is None else map(shown, cells)
        lines.append(f"| {' | '.join([name, *entries])} |")
    versions = ", ".join(
        f"{library} {importlib.metadata.version(library)}"
        for library in LIBRARIES
        if importlib.util.find_spec(library.replace("dm-", "").replace("-", "_"))
    )
    legend = [
        f"| {column.heading} | `{column.call or column.check.__name__}` | {column.reference} |"
        for column in COLUMNS
    ]
    return "\n".join(
        [
            *INTRODUCTION.format(versions=versions).splitlines(),
            "",
            f"| {' | '.join(['network', *(column.heading for column in COLUMNS)])} |",
            f"|{' --- |' * (1 + len(COLUMNS))}",
            *lines,
            "",
            *(f"{i}. {note}" for i, note in enumerate(notes, 1)),
            "",
            "| column | method | compared with |",
            "| --- | --- | --- |",
            *legend,
            "",
        ]
    )


INTRODUCTION = """\
# Methods on networks of other libraries

`python -m benchmarks.models` writes this page. It runs each method on a small untrained network
of each library, and compares the result with a value that is computed in another way (last
table), to 0.1 % where nothing else is said. If a value differs, the page is not written.

Versions: {versions}.

* ✓: works without an option.
* ✓ + n: works with what note n says; without it the call raises an error or warns.
* refused n: an error; note n says what to do instead, which was compared as well.
* –: the network has no attention.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.models", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--only", metavar="TEXT", help="print the networks whose name contains this, write nothing"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="file of the table")
    arguments = parser.parse_args(argv)
    report.check_file(parser, "--page", arguments.page)
    # Only values are compared: compiling would take most of the time.
    jax.config.update("jax_disable_most_optimizations", True)
    names = [name for name in zoo.MODELS if (arguments.only or "") in name]
    if not names:
        parser.error(f"--only: no network has {arguments.only!r} in its name")
    rows, wrong = {}, 0
    for number, name in enumerate(names, 1):
        start = perf_counter()
        rows[name] = cells = table_row(name)
        seconds = perf_counter() - start
        marks = "not installed" if cells is None else " ".join(each.mark for each in cells)
        print(f"{number}/{len(names)} {name}, {seconds:.0f} s: {marks}", flush=True)
        for column, each in zip(COLUMNS, cells or (), strict=False):
            if each.is_wrong:
                wrong += 1
                print(
                    f"    WRONG {column.check.__name__}: {'; '.join(each.notes)[:600]}", flush=True
                )
    text = page(rows)
    if arguments.only is None and not wrong:
        arguments.page.write_text(text)
    else:
        print(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
