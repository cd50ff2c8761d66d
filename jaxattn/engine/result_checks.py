"""Checks of concrete results: of values that are likely useless, and of names that were wrong."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._static import is_concrete
from jaxattn._types import Attribution, AttributionWarning
from jaxattn.engine.binding import Binding
from jaxattn.engine.callable import rebuilding
from jaxattn.engine.convergence import check_convergence
from jaxattn.engine.memo import MEMOS
from jaxattn.engine.options import name_of, traits_of, without_partial
from jaxattn.jaxpr.capture import expose_attention

#: The ratio of relevance to score above which relevance is numerically useless.
_GROWTH = 1e4
#: The distance of a sum of attention weights from 1 that rounding explains in half precision.
_ROUNDING = 0.01


def check_target(binding: Binding) -> None:
    """Warn once for each function of a probability that is explained by a method for logits.

    A target that is a callable was chosen on purpose.
    """
    method = without_partial(binding.method.rebuild(()))
    expects_logits = traits_of(method).for_logits and binding.target is None
    if not expects_logits or not binding.is_probability:
        return
    if MEMOS.warned.get(binding.fn.program):
        return
    MEMOS.warned[binding.fn.program] = True
    warnings.warn(
        f"{name_of(method)}: `fn` ends in a softmax or a sigmoid, which saturates. Explain its "
        "logits with jaxattn.without_softmax(fn); to explain the probability itself without this "
        "warning, pass a callable `target`, such as lambda output: output[0].",
        AttributionWarning,
        stacklevel=4,
    )


def check_result(binding: Binding, result: Attribution) -> None:
    """Warn of values that do not converge, and of relevance that grows without bounds.

    Raises:
        ValueError: if what was named as attention weights does not hold any.
    """
    method = without_partial(binding.method.rebuild(()))
    check_convergence(name_of(method), traits_of(method).remedy, result)
    _check_weights(binding, result.info.get("row_error"))
    if "absorbed" in result.info and all(map(is_concrete, jax.tree.leaves(result))):
        gates = binding.options.rebuild(binding.option_arrays).get("gates", "all")
        if gates in ("half", "proportional"):
            _check_growth(result, gates)


def _check_weights(binding: Binding, row_error: jax.Array | None) -> None:
    """Raise an error if a name that was given as attention weights does not hold any."""
    if row_error is None or not is_concrete(row_error) or float(row_error.max()) <= _ROUNDING:
        return
    fn, arrays = binding.fn.program, binding.fn.arrays
    found: list[str] = []

    def search(arrays: list[Any], *inputs: Any) -> None:
        weights = expose_attention(rebuilding(fn, arrays), inputs).weights
        found.extend(each.name for each in weights)

    jax.eval_shape(search, arrays, *binding.signature.structs())
    named = binding.options.rebuild(binding.option_arrays).get("at", "attention")
    raise ValueError(
        "`at` must name attention weights, which are not negative and sum to 1 over T_in, got "
        f"{named!r}, whose rows deviate by {float(row_error.max()):.3g}. `fn` has the attention "
        f"weights {found}."
    )


def _check_growth(result: Attribution, gates: str) -> None:
    """Warn of relevance that is far larger than the score and the output."""
    largest, size = (float(x) for x in _sizes(result))
    if largest <= _GROWTH * size:
        return
    warnings.warn(
        f"lrp: relevance grows to {largest:.3g}, while the output is at most {size:.3g}. With "
        f'gates="{gates}" each time step may multiply it, because the rule divides by values close '
        'to zero: pass a larger `epsilon`, or gates="all".',
        AttributionWarning,
        stacklevel=5,
    )


@jax.jit
def _sizes(result: Attribution) -> tuple[jax.Array, jax.Array]:
    """Return the largest relevance, and the largest score or output."""

    def largest(tree: object) -> jax.Array:
        leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
        return jnp.stack([jnp.max(jnp.abs(x)).astype(jnp.float32) for x in leaves]).max()

    return largest((result.values, result.info)), largest(result.output)
