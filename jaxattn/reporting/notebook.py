"""One `Attribution` as HTML, for notebooks."""

from typing import Any

import jax
import numpy as np

from jaxattn.reporting.example_panels import values_panel
from jaxattn.reporting.inputs_shown import checked_kind
from jaxattn.reporting.page import templates

#: The most numbers that are drawn; a larger result is shown by its repr.
MOST_VALUES = 100_000


def result_html(attribution: Any) -> str | None:
    """Return HTML of the values of one example; `None` for values that are not drawn.

    Values are drawn if they are one concrete array of one to three axes with at most 100 000
    numbers.
    """
    leaves = jax.tree.leaves(attribution.values)
    if len(leaves) != 1 or not 0 < np.size(leaves[0]) <= MOST_VALUES:
        return None
    try:
        values = np.asarray(leaves[0]).astype(np.float64)
    except (TypeError, ValueError):  # traced, or no numbers
        return None
    if not 1 <= values.ndim <= 3:
        return None
    kind = checked_kind("auto", values.shape, None)
    panel = values_panel(repr(attribution), values, kind, None)
    return str(templates().get_template("result.html.j2").render(panel=panel))
