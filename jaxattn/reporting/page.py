"""The page of a report: its rows and panels, and the templates that lay them out."""

import dataclasses
import functools
import importlib
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jinja2
import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from jaxattn._types import (
    Attribution,
    Inputs,
    Method,
    RandomKey,
    Target,
    check_bool,
)
from jaxattn.engine.options import name_of
from jaxattn.methods.gradients import gradient, input_x_gradient, saliency
from jaxattn.methods.integrated import integrated_gradients
from jaxattn.metrics.direction import Direction
from jaxattn.reporting import panels
from jaxattn.reporting.contents import Contents, contents, methods_by_name
from jaxattn.reporting.curve_drawing import curves_svg
from jaxattn.reporting.inputs_shown import (
    Kind,
    checked_examples,
    checked_kind,
    checked_names,
    checked_tokens,
)

_METHODS = (gradient, saliency, input_x_gradient, integrated_gradients)
_BETTER: dict[Direction, str] = {"higher": "higher is better", "lower": "lower is better",
                                 "zero": "zero is better"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table: what is read, and the number by which it sorts (`None`: by the text)."""

    text: str
    number: float | None = None
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table that can be sorted by each column."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclasses.dataclass(frozen=True)
class Shown:
    """One example: its heading, and the panels of its rows by their names."""

    number: int
    heading: str
    panels: list[panels.Panel]
    classes: list[panels.Panel]
    attention: list[panels.Panel]


def report(
    fn: Callable[..., Any],
    xs: Inputs,
    targets: Target = None,
    methods: Mapping[str, Method | Attribution] | Sequence[Method] = _METHODS,
    *,
    path: str | Path,
    title: str = "Explanations",
    kind: Kind = "auto",
    tokens: Sequence[Sequence[str]] | None = None,
    class_names: Sequence[str] | None = None,
    metrics: Any = None,
    jacobian: bool = False,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
) -> Path:
    """Write predictions and explanations as one HTML file that needs no other file.

    The page has a table of the predictions, each example with all methods side by side, the time
    and the evaluations of each method, metrics, deletion curves, and the attention of a network
    that has it. A method that fails gets a panel with its error.

    Cost: two explanations per method and example, `num_steps + 2` evaluations for each deletion
    curve, and the cost of each metric.

    Args:
        fn: maps one example to an output, as for `jaxattn.explain`.
        xs: the examples: one array with a leading axis of length B.
        targets: the entry of the output that is explained, as for `jaxattn.explain`. By default the
            largest entry of an output that is a vector.
        methods: the methods, or a dict of methods or attributions by name.
        path: the path of the HTML file.
        title: the title of the page.
        kind: what an example is: `"image"` (H, W) or (H, W, C), `"series"` (T,) or (T, D), or
            `"text"` (T,) or (T, E). `"auto"` takes examples with `tokens` for text, those with
            three axes for images, and those with two axes, both of at least 6 and neither twice as
            long as the other, for images; all others for series.
        tokens: the T words of each example.
        class_names: the name of each class.
        metrics: the metrics, as for `jaxattn.metrics.table`; an empty list for none.
        jacobian: whether the derivative of each class is shown, by a switch, if the output is a
            vector of at most 20 classes.
        args: further inputs of `fn`, each leaf with a leading axis of length B.
        key: a random key, for methods and metrics that draw.
        batch_size: how many evaluations of `fn` are in flight.

    Returns:
        the path of the page.

    Raises:
        TypeError: if `xs` or the output is not one array, or a method is not a method.
        ValueError: for no methods, a kind that does not fit, tokens or class names of a wrong
            number, or examples without a leading axis.
        OSError: if the file cannot be written; this is checked before anything is computed.

    Examples:
        >>> import tempfile, jax.numpy as jnp, jaxattn as ja
        >>> def fn(x):
        ...     return jnp.stack([x.sum(), (x**2).sum()])
        >>> folder = tempfile.TemporaryDirectory()
        >>> page = f"{folder.name}/report.html"
        >>> ja.report(fn, jnp.ones((2, 8)), None, [ja.gradient], path=page, metrics=[]).name
        'report.html'
    """
    check_bool("jacobian", jacobian)
    named = methods_by_name(methods)
    array = checked_examples(xs)
    shape = array.shape[1:]
    kind_ = checked_kind(kind, shape, tokens)
    lines = checked_tokens(tokens, len(array), shape[0])
    file = writable(path)
    found = contents(
        fn,
        xs,
        targets,
        named,
        metrics=metrics,
        with_jacobian=jacobian,
        args=args,
        key=key,
        batch_size=batch_size,
    )
    names = checked_names(class_names, found.classes)
    page = rendered(found, title, kind_, lines, names, call_of(fn, array, named, metrics, jacobian))
    file.write_text(page, encoding="utf-8")
    return file


def writable(path: str | Path) -> Path:
    """Return the path of a file that can be written.

    Raises:
        OSError: if the folder does not exist, the path is a folder, or writing is not permitted.
    """
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(f"`path` must be a file, got the folder {str(path)!r}.")
    new = not file.exists()
    try:
        with file.open("ab"):
            pass
    except OSError as error:
        raise type(error)(f"`path` {str(path)!r} cannot be written: {error.strerror}.") from error
    if new:
        file.unlink()
    return file


def rendered(
    found: Contents,
    title: str,
    kind: str,
    tokens: list[list[str]] | None,
    names: list[str],
    made: list[tuple[str, str]],
) -> str:
    """Return the HTML of a page."""
    signs = [panels.scale_of(e.values).signed for e in found.explained if e.values is not None]
    if found.jacobian is not None:
        signs.append(panels.scale_of(found.jacobian).signed)
    page: str = (
        templates()
        .get_template("page.html.j2")
        .render(
            title=title,
            wide=kind != "image",
            predictions=predictions(found, names),
            legends=[panels.legend(signed) for signed in sorted(set(signs))],
            switch=list(enumerate(names)) if found.jacobian is not None else [],
            examples=[shown(found, i, kind, tokens, names) for i in range(len(found.xs))],
            costs=costs(found),
            metrics=metric_sheet(found),
            curves=curves_svg(found.curves),
            notes=[(e.name, note) for e in found.explained for note in e.notes],
            problems=found.problems,
            made=made,
        )
    )
    return page


@functools.cache
def templates() -> jinja2.Environment:
    """Return the templates of this package; everything that they insert is escaped."""
    loader = jinja2.PackageLoader("jaxattn.reporting")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )

    def source(name: str) -> Markup:
        return Markup(loader.get_source(environment, name)[0])

    environment.globals["source"] = source
    return environment


def named_class(names: list[str], index: int) -> str:
    """Return the name of a class, or its number if it has none."""
    return names[index] if 0 <= index < len(names) else str(index)


def predicted(output: Float[np.ndarray, " K"]) -> int | None:
    """Return the largest entry; `None` if one is NaN."""
    return None if np.isnan(output).any() else int(output.argmax())


def shown(
    found: Contents, i: int, kind: str, tokens: list[list[str]] | None, names: list[str]
) -> Shown:
    """Return the panels of one example."""
    line = None if tokens is None else tokens[i]
    drawn = [panels.input_panel(found.xs[i], kind, line)]
    for each in found.explained:
        if each.values is None:
            drawn.append(panels.failure(each.name, each.error))
        else:
            drawn.append(panels.values_panel(each.name, each.values[i], kind, line))
    output, heading, first = found.outputs[i], f"Example {i}", 0
    if found.classes is not None and found.classes > 1:
        best = predicted(output)
        first = 0 if best is None else best
        heading += ": NaN" if best is None else f": {named_class(names, best)}"
    elif output.size == 1:
        heading += f": {output.ravel()[0]:.4g}"
    if found.targets is not None and found.classes:
        heading += f" (explained: {named_class(names, int(found.targets[i]))})"
    classes = []
    for k, values in enumerate(found.jacobian[i] if found.jacobian is not None else ()):
        panel = panels.values_panel(f"derivative of {names[k]}", values, kind, line)
        classes.append(dataclasses.replace(panel, group=k, shown=k == first))
    attention = [
        panel
        for name, weights in found.attention.items()
        for panel in panels.attention_panels(name, weights[i])
    ]
    return Shown(i, heading, drawn, classes, attention)


def number(value: float, digits: int = 4) -> Cell:
    """Return the cell of a number; NaN is written as NaN."""
    return Cell("NaN" if np.isnan(value) else f"{value:.{digits}g}", float(value))


def predictions(found: Contents, names: list[str]) -> Sheet:
    """Return the table of predictions: the largest scores of each example."""
    classes = found.classes
    rows: list[tuple[Cell, ...]] = []
    if classes is None or classes == 1:
        flat = found.outputs.reshape(len(found.outputs), -1)
        caption = f"Output of shape {found.outputs.shape[1:]}; of several numbers the mean"
        rows = [(Cell(str(i), i), number(float(output.mean()))) for i, output in enumerate(flat)]
        return Sheet(caption, ("example", "output"), tuple(rows))
    top = min(3, classes)
    columns = ["example", "prediction"]
    columns += ["explained"] if found.targets is not None else []
    columns += ["score", *(f"{place}. class" for place in ("2", "3")[: top - 1])]
    for i, output in enumerate(found.outputs):
        order = np.argsort(-output, kind="stable")[:top]
        best = predicted(output)
        row = [Cell(str(i), i), Cell("NaN" if best is None else named_class(names, best))]
        if found.targets is not None:
            row.append(Cell(named_class(names, int(found.targets[i]))))
        row.append(number(float(output[order[0]]) if best is not None else np.nan))
        for k in order[1:]:
            row.append(Cell(f"{names[k]} ({number(float(output[k])).text})", float(output[k])))
        rows.append(tuple(row))
    caption = "The largest entries of the output of each example"
    return Sheet(caption, tuple(columns), tuple(rows))


def costs(found: Contents) -> Sheet:
    """Return the table of the cost of each method."""
    columns = ("method", "first call (s)", "second call (s)", "evaluations per example", "state")
    rows = []
    for each in found.explained:
        untimed = np.isnan(each.first_seconds)
        times = [
            Cell("–", np.inf) if untimed else number(seconds, 3)
            for seconds in (each.first_seconds, each.second_seconds)
        ]
        declared = each.evaluations
        evaluations = (
            Cell("not declared", np.inf) if declared is None else Cell(f"{declared}", declared)
        )
        state = f"failed: {each.error}" if each.error else ("given" if untimed else "done")
        rows.append((Cell(each.name), *times, evaluations, Cell(state)))
    return Sheet(
        f"Seconds for {len(found.xs)} examples; the first call includes compilation",
        columns,
        tuple(rows),
    )


def metric_sheet(found: Contents) -> Sheet | None:
    """Return the table of metrics."""
    if found.table is None:
        return None
    table = found.table
    pairs = zip(table.metrics, table.better, strict=True)
    columns = ("method", *(f"{name} ({_BETTER[better]})" for name, better in pairs))
    rows = []
    for i, name in enumerate(table.methods):
        numbers = zip(table.mean[i], table.standard_error[i], table.best[i], strict=True)
        cells = [
            dataclasses.replace(
                number(mean, 3),
                text=number(mean, 3).text + ("" if np.isnan(error) else f" ± {error:.2g}"),
                best=bool(best),
            )
            for mean, error, best in numbers
        ]
        rows.append((Cell(name), *cells))
    return Sheet("Means with standard errors; the best in bold with a star", columns, tuple(rows))


def call_of(
    fn: Callable[..., Any],
    xs: np.ndarray,
    methods: Mapping[str, Any],
    metrics: Any,
    jacobian: bool,
) -> list[tuple[str, str]]:
    """Return the call that makes a page, the versions and the device."""
    described = []
    for name, method in methods.items():
        options = getattr(method, "keywords", {})
        inside = ", ".join(f"{key}={_short(value)}" for key, value in options.items())
        described.append(f"{name}({inside})" if inside else name)
    device = jax.devices()[0]
    names = (
        "default"
        if metrics is None
        else ", ".join(
            list(metrics) if isinstance(metrics, Mapping) else [name_of(each) for each in metrics]
        )
    )
    call = (
        f"jaxattn.report({name_of(fn)}, {xs.dtype}{list(xs.shape)}, "
        f"methods=[{', '.join(described)}], metrics=[{names}], jacobian={jacobian})"
    )
    versions = [
        f"{package} {importlib.metadata.version(package)}" for package in ("jax", "jaxlib", "numpy")
    ]
    versions.insert(0, f"jaxattn {importlib.import_module('jaxattn').__version__}")
    return [
        ("Call", call),
        ("Versions", ", ".join([*versions, f"Python {platform.python_version()}"])),
        ("Device", f"{jax.device_count()} × {device.device_kind} ({device.platform})"),
    ]


def _short(value: Any) -> str:
    if hasattr(value, "shape") and np.ndim(value):
        return f"array of shape {np.shape(value)}"
    return name_of(value) if callable(value) else repr(value)[:60]
