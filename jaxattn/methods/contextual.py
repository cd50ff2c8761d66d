"""Contextual decomposition: what a phrase by itself, in its context, contributes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxattn._types import Attribution, Inputs, RandomKey, Target
from jaxattn.engine.batch import chunked_map
from jaxattn.engine.method import method
from jaxattn.engine.perturb import floating_leaves
from jaxattn.engine.target import scored
from jaxattn.jaxpr.propagation.decomposition import Split, decompose


def _phrases(x: Any, output: Any, options: dict[str, Any]) -> int:
    steps = jax.tree.leaves(x)[0].shape[:1]
    return 4 if options.get("phrase") is not None else 4 * (steps[0] if steps else 1)


@method(evaluations=_phrases, per_example=("phrase",))
def contextual_decomposition(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    phrase: Any = None,
) -> Attribution:
    """The part of the explained number that a phrase makes, with its context as it is.

    Every value of the network is split in two, and a bias. The phrase's part takes what it makes
    with itself and with biases; what it makes with the context counts as context. In a product
    of gate and signal both are split, but for the gate on what a state shows, as an LSTM's output
    gate. Nonlinearities share as Shapley values of the two parts beside the bias do.

    Args:
        fn: maps `x` to an output, such as logits.
        x: one example, an array whose first axis is time, as word embeddings (T, D); or (1, T, D).
        target: which number of the output is explained; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: how many evaluations of `fn` are in flight; a phrase takes four.
        phrase: `(start, stop)`, the steps from `start` up to but without `stop`; an array (2,) of
            these, or a mask (T,) of booleans, is traced, so that other phrases compile nothing
            anew. `None` takes each step by itself.

    Returns:
        values of shape (), or (T,) for each step by itself, in units of the output.
        `info["irrelevant"]`, of the same shape, is what the context makes, and `info["bias"]` what
        neither does: the three sum to the explained number.

    Raises:
        TypeError: if `x` holds integers only.
        ValueError: if the target does not fit the output, `x` is not one array with a time axis,
            the phrase is empty or lies outside of `x`, for side effects, or for a branch or a loop
            whose choice or length depends on the data.

    Reference:
        Murdoch et al. 2018, Beyond word importance: contextual decomposition to extract
        interactions from LSTMs, arXiv:1801.05453.
    """
    floating, merge = floating_leaves(x, "a decomposition")
    leaf = floating[0]
    if len(floating) != 1 or leaf.ndim == 0:
        raise ValueError(
            "x must be one array with a first axis of time for contextual_decomposition, got "
            f"shapes {[leaf.shape for leaf in floating]}"
        )
    # An intermediate of a model that takes batches has a batch axis of 1 before that of time.
    time = 1 if leaf.ndim == 3 and leaf.shape[0] == 1 else 0
    if leaf.shape[time] == 0:
        raise ValueError(f"x has no time steps: its shape is {leaf.shape}")
    score = scored(fn, target, args)

    def split(mask: Any) -> Split:
        mask = jnp.expand_dims(mask, [axis for axis in range(leaf.ndim) if axis != time])
        return decompose(lambda value: score(merge([value])), leaf, mask)

    _, output = score(x)
    if phrase is None:
        masks = jnp.eye(leaf.shape[time], dtype=bool)
        size = None if batch_size is None else max(1, batch_size // 4)
        relevant, irrelevant, bias = chunked_map(split, masks, size)
    else:
        relevant, irrelevant, bias = split(_mask(phrase, leaf.shape[time]))
    return Attribution(relevant, output, {"irrelevant": irrelevant, "bias": bias})


def _mask(phrase: Any, steps: int) -> Any:
    """The steps of a phrase as booleans (T,)."""
    try:
        given = jnp.asarray(phrase)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"phrase must be (start, stop), two integers, or a mask ({steps},), got {phrase!r}"
        ) from error
    if given.dtype == bool:
        if given.shape != (steps,):
            raise ValueError(f"phrase must be a mask of shape ({steps},), got shape {given.shape}")
        return given
    if given.shape != (2,) or not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(
            f"phrase must be (start, stop), two integers, or a mask ({steps},), got {phrase!r}"
        )
    if isinstance(phrase, (tuple, list)) and all(isinstance(end, int) for end in phrase):
        start, stop = phrase
        if not 0 <= start < stop <= steps:
            raise ValueError(
                f"phrase must hold 0 <= start < stop <= {steps}, got ({start}, {stop})"
            )
    at = jnp.arange(steps)
    return (at >= given[0]) & (at < given[1])
