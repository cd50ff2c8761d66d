"""The page of a report, and the templates that lay it out."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from jaxattn._types import (
    Attribution,
    Inputs,
    Method,
    RandomKey,
    Target,
    check_bool,
)
from jaxattn.methods.gradients import gradient, input_x_gradient, saliency
from jaxattn.methods.integrated import integrated_gradients
from jaxattn.reporting import panels
from jaxattn.reporting.contents import Contents, classes_of, contents, outputs_of
from jaxattn.reporting.curve_drawing import curves_svg
from jaxattn.reporting.example_panels import shown
from jaxattn.reporting.inputs_shown import (
    Kind,
    Labels,
    checked_examples,
    checked_kind,
    checked_names,
    checked_outputs,
    checked_tokens,
)
from jaxattn.reporting.method_runs import methods_by_name
from jaxattn.reporting.provenance import call_of
from jaxattn.reporting.recurrent_inside import recurrent_parts
from jaxattn.reporting.sections import introduction, sections_of
from jaxattn.reporting.sheets import costs, metric_sheet, predictions

_METHODS = (gradient, saliency, input_x_gradient, integrated_gradients)


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
    output_tokens: Sequence[Sequence[str]] | None = None,
    metrics: Any = None,
    curves: bool = True,
    jacobian: bool = False,
    recurrent: bool = True,
    about: str | Sequence[str] = (),
    sections: Mapping[str, Any] | None = None,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
) -> Path:
    """Write predictions and explanations as one HTML file that needs no other file.

    The page has a table of the predictions, each example with all methods side by side, the time
    and the evaluations of each method, metrics, deletion curves, the attention of a network that
    has it, and the inside of its recurrent layers. A method that fails gets a panel with its error.

    Cost: two explanations per method and example, 12 evaluations for each deletion curve, and the
    cost of each metric.

    Args:
        fn: maps one example to an output, as for `jaxattn.explain`.
        xs: the examples: one array with a leading axis of length B.
        targets: the entry of the output that is explained, as for `jaxattn.explain`. By default the
            largest entry of an output that is a vector, and the best symbol at each of at most 100
            positions of an output (S, V) that is a sequence. Several targets (`jaxattn.each`) are
            drawn as a matrix of targets and tokens or time steps, or as an image each.
        methods: the methods, or a dict of methods or attributions by name.
        path: the path of the HTML file.
        title: the title of the page.
        kind: what an example is: `"image"` (H, W) or (H, W, C), `"series"` (T,) or (T, D), or
            `"text"` (T,) or (T, E). `"auto"` takes examples with `tokens` for text, those with
            three axes for images, and those with two axes, both of at least 6 and neither twice as
            long as the other, for images; all others for series.
        tokens: the T words of each example. Empty ones stand for padding and are not drawn.
        class_names: the name of each class, or of each symbol of an output sequence.
        output_tokens: the S words of the output sequence of each example, empty ones for padding;
            by default the names of the best symbols.
        metrics: the metrics, as for `jaxattn.metrics.table`; an empty list for none. They are not
            computed for several targets.
        curves: whether deletion curves are drawn.
        jacobian: whether the derivative of each class is shown, by a switch, if the output is a
            vector of at most 20 classes.
        recurrent: whether weights, gates and memory of recurrent layers are shown.
        about: the introduction: a text whose paragraphs are separated by empty lines, or a list of
            paragraphs.
        sections: further sections by heading: each a part or a list of them. A part is a text, a
            matplotlib figure or its Axes, which is closed, a table of rich, or an object that a
            notebook shows as HTML, which is not escaped.
        args: further inputs of `fn`, each leaf with a leading axis of length B.
        key: a random key, for methods and metrics that draw.
        batch_size: how many evaluations of `fn` are in flight.

    Returns:
        the path of the page.

    Raises:
        TypeError: if `xs` or the output is not one array, a method is not a method, or a part of a
            section cannot be shown.
        ValueError: for no methods, a kind that does not fit, tokens or class names of a wrong
            number, or examples without a leading axis. Whatever does not depend on a method is
            checked before the first one runs.
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
    for name, flag in (("jacobian", jacobian), ("curves", curves), ("recurrent", recurrent)):
        check_bool(name, flag)
    named = methods_by_name(methods)
    array = checked_examples(xs)
    shape = array.shape[1:]
    kind_ = checked_kind(kind, shape, tokens)
    lines = checked_tokens(tokens, len(array), shape[0])
    file = writable(path)
    outputs = outputs_of(fn, xs, args, batch_size)
    labels = Labels(
        kind_,
        checked_names(class_names, classes_of(outputs)),
        lines,
        checked_outputs(output_tokens, outputs.shape),
    )
    added = sections_of(sections or {})
    found = contents(
        fn,
        xs,
        outputs,
        targets,
        named,
        metrics=metrics,
        with_curves=curves,
        with_jacobian=jacobian,
        args=args,
        key=key,
        batch_size=batch_size,
    )
    inside, unseen = recurrent_parts(fn, xs, args) if recurrent else ([], [])
    page = rendered(
        found,
        labels,
        title=title,
        about=introduction(about),
        sections=added,
        inside=sections_of({"Recurrent layers": inside}) if inside else [],
        problems=[*found.problems, *unseen],
        made=call_of(fn, array, named, metrics, jacobian),
    )
    file.write_text(page, encoding="utf-8")
    return file


def writable(path: str | Path) -> Path:
    """Return the path of a file that can be written.

    Raises:
        TypeError: if it is not a path.
        OSError: if the folder does not exist, the path is a folder, or writing is not permitted.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"`path` must be the path of a file, got {path!r}.")
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


def rendered(found: Contents, labels: Labels, **more: Any) -> str:
    """Return the HTML of a page.

    Args:
        found: what is shown.
        labels: the names of classes and tokens.
        **more: further variables of the template.
    """
    signs = [panels.scale_of(e.values).signed for e in found.explained if e.values is not None]
    if found.jacobian is not None:
        signs.append(panels.scale_of(found.jacobian).signed)
    page: str = (
        templates()
        .get_template("page.html.j2")
        .render(
            wide=labels.kind != "image",
            predictions=predictions(found, labels),
            legends=[panels.legend(signed) for signed in sorted(set(signs))],
            switch=list(enumerate(labels.classes)) if found.jacobian is not None else [],
            examples=[shown(found, i, labels) for i in range(len(found.xs))],
            costs=costs(found),
            metrics=metric_sheet(found),
            curves=curves_svg(found.curves),
            notes=[(e.name, note) for e in found.explained for note in e.notes],
            **more,
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
