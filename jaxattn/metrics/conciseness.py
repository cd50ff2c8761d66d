"""Complexity: over how many features an attribution spreads."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxattn._types import Attribution
from jaxattn.engine.numbers import check_number
from jaxattn.metrics.direction import metric
from jaxattn.metrics.rankings import flat, values_of


@metric(better="higher", low=0, high=1)
def sparseness(attribution: Attribution | PyTree[ArrayLike]) -> Float[Array, " B"]:
    """Compute the sparseness of attributions, the Gini index of their magnitudes.

    Higher is better, if few features shall explain the target: 0 if all magnitudes are equal, and
    1 - 1/n if one of n features has all. It does not measure whether these are the right features.

    Args:
        attribution: an `Attribution` of a batch, or values with a leading axis of length B. The
            features of all leaves count together.

    Returns:
        one number per example; NaN if all values are zero.

    Raises:
        ValueError: if the values are not finite.

    Reference:
        Chalasani et al. 2020, Concise explanations of neural networks using adversarial training,
        arXiv:1810.06583.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> print(ja.metrics.sparseness(jnp.array([[1.0, -1.0], [0.0, 3.0]])))
        [0.  0.5]
    """
    ordered = jnp.sort(_magnitudes(attribution), 1)
    number = ordered.shape[1]
    weights = 2 * jnp.arange(1, number + 1, dtype=ordered.dtype) - number - 1
    return (ordered * weights[None]).sum(1) / (number * ordered.sum(1))


@metric(better="lower", low=0)
def complexity(attribution: Attribution | PyTree[ArrayLike]) -> Float[Array, " B"]:
    """Compute the complexity of attributions, the entropy of their shares of the magnitude.

    Lower is better, if few features shall explain the target: 0 if one feature has all, and log n
    if all magnitudes of n features are equal. Arguments and errors are those of `sparseness`.

    Returns:
        one number per example, in nats; NaN if all values are zero.

    Reference:
        Bhatt et al. 2020, Evaluating and aggregating feature-based model explanations,
        arXiv:2005.00631.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> print(ja.metrics.complexity(jnp.array([[1.0, -1.0], [0.0, 3.0]])).round(3))
        [0.693 0.   ]
    """
    magnitudes = _magnitudes(attribution)
    shares = magnitudes / magnitudes.sum(1, keepdims=True)
    return jax.scipy.special.entr(shares).sum(1)


@metric(better="lower", low=0)
def effective_complexity(
    attribution: Attribution | PyTree[ArrayLike], *, tolerance: ArrayLike = 1e-5
) -> Float[Array, " B"]:
    """Compute the effective complexity: the number of features whose magnitude is not negligible.

    Lower is better, if few features shall explain the target; from 0 to the number of features. It
    counts the magnitudes above a threshold, as the library Quantus does; the authors of the metric
    search for the fewest features that keep the prediction. It depends on the scale of the
    attribution: compare methods whose values have the same units.

    Args:
        attribution: as for `sparseness`.
        tolerance: the largest magnitude that is negligible, in units of the attribution.

    Returns:
        one number per example.

    Raises:
        ValueError: for a negative tolerance, or if the values are not finite.

    Reference:
        Nguyen and Martinez 2020, On quantitative aspects of model interpretability,
        arXiv:2007.07584.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> print(ja.metrics.effective_complexity(jnp.array([[1.0, -1e-7, 0.0, -2.0]])))
        [2.]
    """
    magnitudes = _magnitudes(attribution)
    check_number("tolerance", tolerance)
    above = magnitudes > jnp.asarray(tolerance, magnitudes.dtype)
    return above.sum(1).astype(magnitudes.dtype)


def _magnitudes(attribution: Attribution | PyTree[ArrayLike]) -> Float[Array, "B n"]:
    return jnp.abs(jax.vmap(flat)(values_of(attribution)))
