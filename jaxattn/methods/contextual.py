"""Contextual decomposition: the contribution of a phrase, given its context."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target
from jaxattn.engine.batch import chunked_map
from jaxattn.engine.method import method
from jaxattn.engine.perturb import floating_leaves
from jaxattn.engine.target import scored
from jaxattn.jaxpr.propagation.decomposition import Split, decompose

#: `(start, stop)`, two ints or an array (2,), or a mask (T,) of booleans.
Phrase: TypeAlias = Sequence[int | np.integer] | Array | np.ndarray


def _evaluations(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    steps = jax.tree.leaves(x)[0].shape[:1]
    return 4 if options.get("phrase") is not None else 4 * (steps[0] if steps else 1)


@method(evaluations=_evaluations, backward=False, per_example=("phrase",))
def contextual_decomposition(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    phrase: Phrase | None = None,
) -> Attribution:
    """Compute contextual decomposition (CD): the contribution of a phrase, given its context.

    Each value in the network is the sum of a relevant part, which comes from the phrase and its
    interactions with itself and with biases, an irrelevant part, which includes all interactions
    with the context, and a bias. Both factors of a gated product are decomposed, except a gate on
    the output of a state, such as the output gate of an LSTM. Nonlinearities are decomposed by
    Shapley values of the parts. `x` is one array with time on the first axis, such as word
    embeddings (T, D), or (1, T, D).

    Cost: about four evaluations of `fn` for a phrase, and as many for each time step if `phrase` is
    left out. `batch_size` counts each phrase as four evaluations. Deterministic.

    Args:
        phrase: `(start, stop)`, the time steps from `start` up to but excluding `stop`. As an array
            (2,), or as a mask (T,) of booleans, it is traced: other phrases are not compiled again.
            `None` decomposes each time step by itself.

    Returns:
        values of shape (), or (T,) for each time step, signed, in units of the output: the relevant
        part of the target. `info["irrelevant"]` and `info["bias"]`, of the same shape, are the
        other parts; the three sum to the target.

    Raises:
        TypeError: if no leaf of `x` is floating, or `phrase` is not an array of numbers.
        ValueError: if the target does not fit the output; if `x` is not one array with a time axis;
            if the phrase is empty or lies outside `x`; if `fn` has side effects, or a loop whose
            length depends on the data.

    Reference:
        Murdoch et al. 2018, Beyond word importance: contextual decomposition to extract
        interactions from LSTMs, arXiv:1801.05453.

    Examples:
        A linear function has no interactions: each time step contributes its own term.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return (x @ jnp.array([1.0, -1.0])).sum() + 1
        >>> x = jnp.array([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]])
        >>> print(ja.contextual_decomposition(fn, x).values)
        [ 1.  1. -3.]
        >>> cd = ja.contextual_decomposition(fn, x, phrase=(0, 2))
        >>> print(cd.values, cd.info["irrelevant"], cd.info["bias"])
        2.0 -3.0 1.0
    """
    floating, merge = floating_leaves(x, "a decomposition")
    leaf = floating[0]
    if len(floating) != 1 or leaf.ndim == 0:
        raise ValueError(
            "`x` must be one array with time on its first axis for contextual_decomposition, got "
            f"shapes {[leaf.shape for leaf in floating]}."
        )
    # An intermediate of a model that takes batches has a batch axis of 1 before that of time.
    time = 1 if leaf.ndim == 3 and leaf.shape[0] == 1 else 0
    if leaf.shape[time] == 0:
        raise ValueError(f"`x` must hold at least one time step, got shape {leaf.shape}.")
    score = scored(fn, target, args)

    def decomposed(mask: Bool[Array, " T"]) -> Split:
        mask = jnp.expand_dims(mask, [axis for axis in range(leaf.ndim) if axis != time])
        return decompose(lambda value: score(merge([value])), leaf, mask)

    _, output = score(x)
    if phrase is None:
        masks = jnp.eye(leaf.shape[time], dtype=bool)
        size = None if batch_size is None else max(1, batch_size // 4)
        relevant, irrelevant, bias = chunked_map(decomposed, masks, size)
    else:
        relevant, irrelevant, bias = decomposed(_mask(phrase, leaf.shape[time]))
    return Attribution(relevant, output, {"irrelevant": irrelevant, "bias": bias})


def _mask(phrase: Phrase, steps: int) -> Bool[Array, " T"]:
    """Return the mask (T,) of a phrase."""
    expected = f"`phrase` must be (start, stop), two integers, or a mask of shape ({steps},)"
    try:
        given = jnp.asarray(phrase)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{expected}, got {phrase!r}.") from error
    if given.dtype == bool:
        if given.shape != (steps,):
            raise ValueError(f"{expected}, got a mask of shape {given.shape}.")
        return given
    if given.shape != (2,) or not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(f"{expected}, got {phrase!r}.")
    if isinstance(phrase, (tuple, list)) and all(isinstance(end, int) for end in phrase):
        start, stop = phrase
        if not 0 <= start < stop <= steps:
            raise ValueError(
                f"`phrase` must satisfy 0 <= start < stop <= {steps}, got ({start}, {stop})."
            )
    at = jnp.arange(steps)
    return (at >= given[0]) & (at < given[1])
