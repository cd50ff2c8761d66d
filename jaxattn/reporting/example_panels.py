"""The panels of one example: input, attributions, derivatives of classes and attention."""

import dataclasses

import numpy as np
from jaxtyping import Float, Shaped

from jaxattn.reporting import panels
from jaxattn.reporting.contents import Contents
from jaxattn.reporting.inputs_shown import Labels
from jaxattn.reporting.matrices import matrix_panel
from jaxattn.reporting.sheets import named_class, predicted

#: The most matrices of one attention layer, and the most images of one method.
_MOST_HEADS, _MOST_IMAGES = 8, 24


@dataclasses.dataclass(frozen=True)
class Shown:
    """One example: its heading, and its panels by what they show."""

    number: int
    heading: str
    panels: list[panels.Panel]
    classes: list[panels.Panel]
    attention: list[panels.Panel]


def shown(found: Contents, i: int, labels: Labels) -> Shown:
    """Return the panels of one example, in the order of the page."""
    line = labels.line(i)
    drawn = [input_panel(found.xs[i], labels.kind, line)]
    several = None if found.several is None else labels.of_targets(i, found.several[i])
    for each in found.explained:
        if each.values is None:
            drawn.append(panels.failure(each.name, each.error))
        elif several is not None:
            drawn += several_panels(each.name, each.values[i], labels.kind, line, several)
        else:
            drawn.append(values_panel(each.name, each.values[i], labels.kind, line))
    classes = []
    best = predicted(found.outputs[i]) if found.jacobian is not None else None
    for k, values in enumerate(found.jacobian[i] if found.jacobian is not None else ()):
        panel = values_panel(f"derivative of {labels.classes[k]}", values, labels.kind, line)
        classes.append(dataclasses.replace(panel, group=k, shown=k == (best or 0)))
    attention = [
        panel
        for name, weights in found.attention.items()
        for panel in attention_panels(name, weights[i], line, several)
    ]
    return Shown(i, heading(found, i, labels), drawn, classes, attention)


def heading(found: Contents, i: int, labels: Labels) -> str:
    """Return the number of an example, with its prediction and what is explained."""
    output = found.outputs[i]
    text = f"Example {i}"
    if output.ndim == 2 and found.classes:
        return f"{text}: {labels.sequence(i, output)}"
    if found.classes is not None and found.classes > 1:
        best = predicted(output)
        text += ": NaN" if best is None else f": {named_class(labels.classes, best)}"
    elif output.size == 1:
        text += f": {output.ravel()[0]:.4g}"
    if found.targets is not None and found.classes:
        text += f" (explained: {named_class(labels.classes, int(found.targets[i]))})"
    return text


def values_panel(
    title: str, values: Shaped[np.ndarray, "..."], kind: str, tokens: list[str] | None
) -> panels.Panel:
    """Draw the values of one example as its kind requires."""
    if kind == "text" and tokens is not None:
        return panels.text_panel(title, values, tokens)
    return (
        panels.image_panel(title, values) if kind == "image" else panels.series_panel(title, values)
    )


def several_panels(
    title: str,
    values: Shaped[np.ndarray, "targets ..."],
    kind: str,
    tokens: list[str] | None,
    targets: list[str],
) -> list[panels.Panel]:
    """Draw the values of several targets.

    Images have a panel for each target. Texts and series have a matrix of targets and positions,
    whose entries are sums over features.
    """
    if len(values) != len(targets):
        return [panels.failure(title, f"Values of shape {values.shape} lack an axis of targets.")]
    if kind == "image":
        images = [
            panels.image_panel(f"{title}: {name}", each)
            for name, each in zip(targets, values, strict=True)
        ]
        rest = f"{len(images) - _MOST_IMAGES} of {len(images)} targets are not drawn."
        left_out = (
            [panels.Panel(title, panels.note(rest), "")] if len(images) > _MOST_IMAGES else []
        )
        return images[:_MOST_IMAGES] + left_out
    matrix = values.sum(-1) if values.ndim == 3 else values
    columns = tokens or [str(t) for t in range(matrix.shape[-1])]
    if matrix.shape != (len(targets), len(columns)):
        return [panels.failure(title, f"Values of shape {values.shape} are not a matrix.")]
    return [matrix_panel(title, *_rows_and_columns(matrix, targets, columns))]


def _rows_and_columns(
    matrix: Float[np.ndarray, "rows columns"], rows: list[str], columns: list[str]
) -> tuple[Float[np.ndarray, "shown_rows shown_columns"], list[str], list[str]]:
    """Return a matrix and its labels without rows and columns of padding."""
    matrix, columns = panels.without_padding(matrix, columns)
    transposed, rows = panels.without_padding(matrix.T, rows)
    return transposed.T, rows, columns


def input_panel(x: Shaped[np.ndarray, "..."], kind: str, tokens: list[str] | None) -> panels.Panel:
    """Draw the input of one example as its kind requires."""
    if kind == "text" and tokens is not None:
        return panels.input_text(tokens)
    return panels.input_image(x) if kind == "image" else panels.input_series(x)


def attention_panels(
    name: str,
    weights: Float[np.ndarray, "..."],
    tokens: list[str] | None,
    targets: list[str] | None,
) -> list[panels.Panel]:
    """Draw attention weights (..., queries, keys), one panel per matrix, up to eight."""
    matrices = weights.reshape(-1, *weights.shape[-2:])
    drawn = []
    for i, matrix in enumerate(matrices[:_MOST_HEADS]):
        title = name if len(matrices) == 1 else f"{name}, {i + 1} of {len(matrices)}"
        queries, keys = matrix.shape
        rows = next((words for words in (tokens, targets) if words and len(words) == queries), None)
        if tokens is not None and len(tokens) == keys and rows is not None:
            panel = matrix_panel(title, *_rows_and_columns(matrix, rows, tokens))
        else:
            panel = panels.image_panel(title, matrix)
        caption = f"{panel.caption}; {queries} queries down, {keys} keys across"
        drawn.append(dataclasses.replace(panel, caption=caption))
    return drawn
