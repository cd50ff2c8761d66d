"""A table of the recurrent layers of a model."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from rich.table import Table

from jaxattn._types import Inputs
from jaxattn.introspect.health import check_finite, saturation
from jaxattn.introspect.inspection import layers, weights
from jaxattn.introspect.results import LayerInfo
from jaxattn.jaxpr.recurrence.recurrent_layers import without_layers


def summary(
    model: Callable[..., Any],
    x: Inputs,
    *,
    args: tuple[Any, ...] = (),
    layer: str | None = None,
) -> Table:
    """Return a table of the recurrent layers of a model, with a row for each gate.

    Args:
        model: The model, of any kind that can be explained.
        x: One example, from which the saturation is computed.
        args: Further inputs of the model.
        layer: Name of a layer, as `layers` lists it; None for all.

    Returns:
        A table to print with `rich.print`: the layer, its kind and direction; by gate the shapes
        and root mean squares of the weights, the share of saturated time steps and units, and the
        numbers of NaN and infinite entries. Layers of an unknown kind have one row without numbers.

    Raises:
        ValueError: If there is no recurrent layer, or `layer` does not name one.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> lstm = ja.nn.LSTM(3, 4, rngs=nnx.Rngs(0))
        >>> ja.introspect.summary(lstm, jnp.ones((5, 3))).row_count
        4
    """
    found = layers(model, x, args=args)
    if not found:
        raise without_layers()
    chosen = [info for info in found if layer in (None, info.name)]
    if not chosen:
        names = [info.name for info in found]
        raise ValueError(f"`layer` must be one of the recurrent layers {names}, got {layer!r}.")
    table = Table(title="Recurrent layers: shapes and root mean squares of weights")
    for column in ("layer", "kind", "gate"):
        table.add_column(column)
    for column in ("kernel", "recurrent", "bias", "saturated", "NaN", "inf"):
        table.add_column(column, justify="right", no_wrap=True)
    for info in chosen:
        for row in _rows(model, x, args, info):
            table.add_row(*row)
        table.add_section()
    return table


def _rows(
    model: Callable[..., Any], x: Inputs, args: tuple[Any, ...], info: LayerInfo
) -> list[tuple[str, ...]]:
    """Return the rows of one layer; the first names it."""
    kind = f"{info.kind}, {info.direction}"
    if info.kind == "unknown":
        return [(info.name, kind)]
    own = weights(model, x, args=args, layer=info.name)
    report = check_finite(model, x, args=args, layer=info.name)
    ends = saturation(model, x, args=args, layer=info.name)
    rows: list[tuple[str, ...]] = []
    for gate, kernel in own.kernel.items():
        recurrent, bias = (getattr(part, gate) for part in (own.recurrent, own.bias))
        saturated = np.mean(getattr(ends.low, gate) + getattr(ends.high, gate))
        parts = (report.kernel, report.recurrent, report.bias, report.activation)
        counts = [getattr(part, gate) for part in parts]
        rows.append(
            (
                "" if rows else info.name,
                "" if rows else kind,
                gate,
                *(f"{'x'.join(map(str, a.shape))} {_rms(a)}" for a in (kernel, recurrent)),
                _rms(bias),
                f"{saturated:.0%}",
                str(sum(int(count.nan) for count in counts)),
                str(sum(int(count.inf) for count in counts)),
            )
        )
    return rows


def _rms(array: ArrayLike) -> str:
    return f"{np.sqrt(np.mean(np.square(np.asarray(array)))):.3f}"
