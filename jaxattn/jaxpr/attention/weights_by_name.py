"""Selection of attention weights by name."""

import fnmatch
from collections.abc import Sequence

from jaxattn.jaxpr.attention.discovery import Weights
from jaxattn.jaxpr.capture import Selection, Traced
from jaxattn.jaxpr.flat import flatten, primitives
from jaxattn.jaxpr.names import choose, is_named

#: The tag of weights whose structure is not that of a softmax, by default.
_TAG = "attention"
#: Parts of the names of primitives that compute attention in one operation.
_FUSED = ("pallas_call", "fmha", "dot_product_attention", "flash", "custom_call", "ffi_call")


class NoAttentionError(ValueError):
    """A function has no attention weights.

    Attributes:
        fused: the fused operation that may hold weights, or `None`.
    """

    fused: str | None = None


def select_attention(
    traced: Traced, found: Sequence[Weights], patterns: Sequence[str] | None
) -> Selection:
    """Return the full names of attention weights.

    Args:
        traced: the function, which tags the weights found in it.
        found: these weights.
        patterns: names of weights, or of their layers, as in `jaxattn.capture`; or of other
            intermediates that hold weights. `None` for all weights found, and others that are
            tagged "attention".

    Raises:
        ValueError: if a pattern matches nothing.
        NoAttentionError: if there is no attention.
    """
    names = list(dict.fromkeys(weights.name for weights in found))
    if patterns is not None:
        selection: Selection = {}
        for pattern in patterns:
            matching = _matching(pattern, names, traced)
            selection |= matching or choose([pattern], traced.places, "at")
        order = {place.name: None for place in traced.places}
        return {name: selection[name] for name in order if name in selection}
    selection = dict.fromkeys(names, True)
    tags = {place.name for place in traced.places if place.is_tag}
    if _TAG in tags and not any(name.rpartition("/")[2] == _TAG for name in names):
        selection[_TAG] = True
    if not selection:
        raise _nothing_found(traced)
    return selection


def _matching(pattern: str, names: Sequence[str], traced: Traced) -> Selection:
    """Return the weights that a pattern matches, by their name or by that of their layer."""
    found = [p for p in traced.places if p.is_tag and p.name in names]
    if is_named(pattern, found):
        return choose([pattern], found, "at")
    path = pattern.replace(".", "/")
    layers = (path[1:],) if path.startswith("/") else (path, f"*/{path}")
    return {
        name: True
        for name in names
        if any(fnmatch.fnmatchcase(name, f"{layer}/*") for layer in layers)
    }


def _nothing_found(traced: Traced) -> NoAttentionError:
    """Return the error that a function has no attention weights."""
    fused = [
        name
        for name in sorted(primitives(flatten(traced.closed)))
        if any(part in name for part in _FUSED)
    ]
    message = (
        "`fn` has no attention weights: no softmax or sigmoid of it is contracted with values over "
        "the positions that it runs over, and nothing is tagged 'attention'. Values that do not "
        "depend on `x` or `args`, such as a memory that `fn` closes over, do not count."
    )
    if fused:
        error = NoAttentionError(
            f"{message} It calls `{fused[0]}`, a fused operation that does not return its weights. "
            'Use jax.nn.dot_product_attention with implementation="xla", '
            "keras.config.disable_flash_attention(), or the equivalent of your library."
        )
        error.fused = fused[0]
        return error
    return NoAttentionError(
        f"{message} Give the name of other weights as `at`, or tag them: `jaxattn.tag`."
    )
