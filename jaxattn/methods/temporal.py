"""Methods that follow a decision through time."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_bool, check_count
from jaxattn.engine.batch import chunked_map
from jaxattn.engine.method import method
from jaxattn.engine.target import scored
from jaxattn.engine.window_groups import prefix_scores


def _chosen(x: Any, steps: Any) -> list[int]:
    """The steps at which a score is wanted, checked."""
    lengths = {leaf.shape[0] if leaf.shape else 0 for leaf in jax.tree.leaves(x)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"x must hold series of one length on the first axis, got {lengths}")
    (total,) = lengths
    chosen = range(total) if steps is None else steps
    if not isinstance(chosen, Sequence) or not all(
        isinstance(t, int | np.integer) and not isinstance(t, bool) for t in chosen
    ):
        raise TypeError(
            f"steps must be ints known before tracing, such as a tuple or a range, got {chosen!r}"
        )
    if not chosen or min(chosen) < 0 or max(chosen) >= total:
        raise ValueError(f"steps must lie in [0, {total}), got {list(chosen)}")
    return list(map(int, chosen))


def _evaluations(x: Any, output: Any, options: dict[str, Any]) -> int:
    return len(_chosen(x, options.get("steps")))


def _in_flight(x: Any, output: Any, options: dict[str, Any]) -> int:
    # Without a length one program runs after the other: there is nothing to vectorise.
    return 1 if options.get("length_argnum") is None else _evaluations(x, output, options)


@method(evaluations=_evaluations, in_flight=_in_flight, per_example=(), takes_at=False)
def temporal_output_score(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
    direction: Literal["forward", "backward"] = "forward",
    steps: Sequence[int] | None = None,
    length_argnum: int | np.integer | None = None,
    padding: Literal["right", "left"] = "right",
    softmax: bool = True,
    reuse: bool = True,
) -> Attribution:
    """What the network would say if the series ended, or began, at each step.

    Forward, the score at step t is that of x[:t + 1]; backward, that of x[t:]. The network starts
    from its reset state each time, so a bidirectional one never sees what lies beyond.

    Args:
        fn: maps a series of any length to an output; or, given `length_argnum`, a padded series and
            its length.
        x: one example, time on the first axis of every leaf.
        target: which number of the output is followed; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained. A length among them belongs to the whole
            series, so say which it is with `length_argnum`.
        at: must be left out: it is the input that is cut.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: how many evaluations of `fn` are in flight.
        direction: whether the series is cut at its end or at its beginning.
        steps: at which steps, counted from 0; all by default. Each is compiled by itself
            unless `length_argnum` is given.
        length_argnum: which of `args` is the length of the valid part of `x`. Then all steps
            run in one vectorised call.
        padding: on which side of the valid part `fn` expects padding; only with `length_argnum`.
        softmax: whether to follow a probability, the softmax over the output's last axis; `False`
            for a network that ends in one, or to follow a logit.
        reuse: whether prefixes of a series padded on the right share what comes before they end;
            `False` runs each by itself.

    Returns:
        values of shape (T,), or (len(steps),).

    Raises:
        ValueError: if the target does not fit the output, for a step outside of the series, an
            unknown direction or padding, or a softmax over a single output.
        TypeError: if `steps` is traced, `length_argnum` is no int, or `reuse` is no bool.

    Reference:
        van der Westhuizen and Lasenby 2017, Techniques for visualizing LSTMs applied to
        electrocardiograms, arXiv:1705.08153.
    """
    if direction not in ("forward", "backward"):
        raise ValueError(f'direction must be "forward" or "backward", got {direction!r}')
    if padding not in ("right", "left"):
        raise ValueError(f'padding must be "right" or "left", got {padding!r}')
    check_bool("reuse", reuse)
    if length_argnum is not None:
        length_argnum = check_count("length_argnum", length_argnum, 0)
        if length_argnum >= len(args):
            raise ValueError(f"length_argnum is {length_argnum}, but args holds {len(args)} inputs")
    chosen = _chosen(x, steps)
    total = jax.tree.leaves(x)[0].shape[0]

    def score(part: Inputs, args: tuple[Any, ...]) -> Any:
        return scored(fn, target, args, softmax=softmax)(part)[0]

    output = fn(x, *args)
    if length_argnum is None:
        cuts = [slice(None, t + 1) if direction == "forward" else slice(t, None) for t in chosen]
        parts = [jax.tree.map(lambda leaf, c=c: leaf[c], x) for c in cuts]
        return Attribution(jnp.stack([score(part, args) for part in parts]), output)

    given = jnp.asarray(args[length_argnum])
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(f"args[{length_argnum}] must be an integer length, got {given.dtype}")
    length = given.astype(jnp.int32)  # an unsigned or a short one would wrap around below
    first = 0 * length if padding == "right" else total - length

    def score_at(t: Any) -> Any:
        begin, end = (
            (first, jnp.minimum(t + 1, first + length))
            if direction == "forward"
            else (jnp.maximum(t, first), first + length)
        )
        shift = -begin if padding == "right" else total - end
        moved = jax.tree.map(lambda leaf: jnp.roll(leaf, shift, 0), x)
        valid = jnp.maximum(end - begin, 0).astype(given.dtype)
        return score(moved, (*args[:length_argnum], valid, *args[length_argnum + 1 :]))

    positions = jnp.asarray(chosen, jnp.int32)
    if reuse and direction == "forward" and padding == "right":

        def score_of(valid: Any) -> Any:
            return score(x, (*args[:length_argnum], valid, *args[length_argnum + 1 :]))

        valid = jnp.clip(length, 0, positions + 1).astype(given.dtype)
        shared = prefix_scores(score_of, given, np.asarray(chosen) + 1, valid, batch_size)
        if shared is not None:
            return Attribution(shared, output)
    return Attribution(chunked_map(score_at, positions, batch_size), output)
