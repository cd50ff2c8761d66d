"""Recurrent layers in a report: weights, and gates and memory for the first example."""

from collections.abc import Callable
from typing import Any

import jax

from jaxattn import plot
from jaxattn.introspect import gates, layers, memory_reach, summary, weights
from jaxattn.reporting.method_runs import reason

#: The most layers of which figures are drawn.
MOST_LAYERS = 4


def recurrent_parts(
    fn: Callable[..., Any], xs: Any, args: tuple[Any, ...]
) -> tuple[list[Any], list[tuple[str, str]]]:
    """Return the parts of a section about recurrent layers, and why some are missing.

    A function without recurrent layers has no parts.
    """
    x, first = (jax.tree.map(lambda leaf: leaf[0], each) for each in (xs, args))
    try:
        found = layers(fn, x, args=first)
        table = summary(fn, x, args=first) if found else None
    except Exception as error:  # whatever a model raises must not end the report
        return [], [("Recurrent layers", reason(error))]
    if table is None:
        return [], []
    parts: list[Any] = ["Saturation, gates and memory are those of example 0.", table]
    problems, reaches = [], {}
    known = [layer for layer in found if layer.kind != "unknown"]
    if len(known) > MOST_LAYERS:
        parts.append(f"Figures show the first {MOST_LAYERS} of {len(known)} layers.")
    for layer in known[:MOST_LAYERS]:
        call: dict[str, Any] = {"args": first, "layer": layer.name}
        try:
            activation = gates(fn, x, **call).activation
            parts.append(plot.gate_activations(activation, title=f"{layer.name}: gates"))
            parts.append(plot.rnn_heatmap(weights(fn, x, **call)))
            reaches[layer.name] = memory_reach(fn, x, **call)
        except Exception as error:  # as above
            problems.append((f"Recurrent layer {layer.name}", reason(error)))
    if reaches:
        parts.append(plot.memory_reach(reaches, title="Norm of the Jacobian of a later state"))
    return parts, problems
