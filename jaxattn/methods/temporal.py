"""Temporal output scores: the target for each prefix or suffix of a series."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, PyTree

from jaxattn._types import (
    Attribution,
    Inputs,
    RandomKey,
    Scalar,
    Target,
    check_bool,
    check_count,
)
from jaxattn.engine.batch import chunked_map
from jaxattn.engine.method import method
from jaxattn.engine.target import Score, scored
from jaxattn.engine.window_groups import prefix_scores

Direction: TypeAlias = Literal["forward", "backward"]
Padding: TypeAlias = Literal["right", "left"]


def series_length(x: PyTree) -> int:
    """Return the number of time steps, the length of the first axis of every leaf.

    Raises:
        ValueError: if it differs between leaves, or is 0.
    """
    lengths = {leaf.shape[0] if leaf.shape else 0 for leaf in jax.tree.leaves(x)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"`x` must hold series of one length on the first axis, got {lengths}.")
    (total,) = lengths
    return total


def length_position(length_arg: int | np.integer, args: tuple[Any, ...]) -> int:
    """Return which of the further inputs is the length, checked."""
    position = check_count("length_arg", length_arg, 0)
    if not args:  # with `at`, they are part of the rest of fn
        raise ValueError(
            f"`length_arg` must be left out without args, and with `at`, got {position}."
        )
    if position >= len(args):
        raise ValueError(
            f"`length_arg` must be less than the number of args, {len(args)}, got {position}."
        )
    dtype = jnp.asarray(args[position]).dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"args[{position}] must be an integer length, got {dtype}.")
    return position


def _chosen(x: PyTree, steps: object) -> list[int]:
    """Check the option `steps`, and return the time steps at which the target is computed."""
    total = series_length(x)
    chosen = range(total) if steps is None else steps
    if not isinstance(chosen, Sequence) or not all(
        isinstance(t, int | np.integer) and not isinstance(t, bool) for t in chosen
    ):
        raise TypeError(
            "`steps` must be ints known before tracing, such as a tuple or a range, "
            f"got {chosen!r}."
        )
    if not chosen or min(chosen) < 0 or max(chosen) >= total:
        raise ValueError(f"`steps` must lie in [0, {total}), got {list(chosen)}.")
    return list(map(int, chosen))


def _evaluations(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    return len(_chosen(x, options.get("steps")))


def _in_flight(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    # Without a length one program runs after the other: there is nothing to vectorise.
    return 1 if options.get("length_arg") is None else _evaluations(x, output, options)


@method(
    evaluations=_evaluations,
    in_flight=_in_flight,
    per_example=(),
    takes_at=False,
    backward=False,
)
def temporal_output_score(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    direction: Direction = "forward",
    steps: Sequence[int | np.integer] | None = None,
    length_arg: int | np.integer | None = None,
    padding: Padding = "right",
    score: Score = "probability",
    reuse: bool = True,
) -> Attribution:
    """Compute the temporal output score: the target as if the series ended at each time step.

    Forward, the score at step t is the target of the prefix x[:t + 1]; backward, that of the suffix
    x[t:]. The network starts from its initial state each time, so a bidirectional one does not see
    the other steps. `x` holds time on the first axis of every leaf, and `fn` accepts a series of
    any length or, with `length_arg`, a padded series and its length.

    Cost: one evaluation of `fn` per step, and one more. Without `length_arg` each length is
    compiled separately; with it all steps are vectorised, and forward prefixes of a right-padded
    series share their computation. Deterministic.

    Args:
        direction: whether prefixes (`"forward"`) or suffixes (`"backward"`) are evaluated.
        steps: the time steps, counted from 0; all by default.
        length_arg: which of `args` holds the length of the valid part of `x`.
        padding: on which side of the valid part `fn` expects padding; used with `length_arg`.
        score: what of the output is the score: `"probability"` and `"log_probability"` apply a
            softmax over the last axis of the output; `"logit"` takes the output as it is, also for
            a network that ends in a softmax.
        reuse: whether prefixes share their computation; `False` evaluates each separately.

    Returns:
        values of shape (T,), or (len(steps),), in units of the score.

    Raises:
        TypeError: if `steps` is traced, `length_arg` is not an int, or `reuse` is not a bool.
        ValueError: if the target does not fit the output, for `at`, for a step outside the series,
            an unknown direction, padding or score, or a softmax over fewer than two entries.

    Reference:
        van der Westhuizen and Lasenby 2017, Techniques for visualizing LSTMs applied to
        electrocardiograms, arXiv:1705.08153.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return jnp.stack([x.sum(), x.max()])
        >>> x = jnp.array([1.0, 3.0, 2.0])
        >>> print(ja.temporal_output_score(fn, x, 0, score="logit").values)
        [1. 4. 6.]
        >>> print(ja.temporal_output_score(fn, x, 0, score="logit", direction="backward").values)
        [6. 5. 2.]
    """
    if direction not in ("forward", "backward"):
        raise ValueError(f'`direction` must be "forward" or "backward", got {direction!r}.')
    if padding not in ("right", "left"):
        raise ValueError(f'`padding` must be "right" or "left", got {padding!r}.')
    check_bool("reuse", reuse)

    def score_of(part: Inputs, args: tuple[Any, ...]) -> Scalar:
        return scored(fn, target, args, score=score)(part)[0]

    padded = None if length_arg is None else _Padded.of(score_of, x, args, length_arg, padding)
    chosen = _chosen(x, steps)
    output = fn(x, *args)
    if padded is None:
        cuts = [slice(None, t + 1) if direction == "forward" else slice(t, None) for t in chosen]
        parts = [jax.tree.map(lambda leaf, c=c: leaf[c], x) for c in cuts]
        return Attribution(jnp.stack([score_of(part, args) for part in parts]), output)
    scores = None
    if reuse and direction == "forward" and padding == "right":
        scores = padded.shared_scores(chosen, batch_size)
    if scores is None:
        scores = padded.scores(chosen, direction, batch_size)
    return Attribution(scores, output)


class _Padded(NamedTuple):
    """A padded series with a length among the further inputs.

    Attributes:
        score_of: maps a series and the further inputs to the score.
        x: the series.
        args: the further inputs.
        length_arg: which of these is the length.
        padding: on which side the padding lies.
        length: the length, as an int32: an unsigned or a short one would overflow below.
    """

    score_of: Callable[[Inputs, tuple[Any, ...]], Scalar]
    x: Inputs
    args: tuple[Any, ...]
    length_arg: int
    padding: Padding
    length: Int[Array, ""]

    @classmethod
    def of(
        cls,
        score_of: Callable[[Inputs, tuple[Any, ...]], Scalar],
        x: Inputs,
        args: tuple[Any, ...],
        length_arg: int | np.integer,
        padding: Padding,
    ) -> "_Padded":
        """Check which of the further inputs is the length."""
        position = length_position(length_arg, args)
        length = jnp.asarray(args[position]).astype(jnp.int32)
        return cls(score_of, x, args, position, padding, length)

    def _given(self) -> Integer[Array, ""]:
        """Return the length in its own dtype."""
        return jnp.asarray(self.args[self.length_arg])

    def _score_with(self, x: Inputs, length: Integer[Array, ""]) -> Scalar:
        """Compute the score of a series of another length."""
        before, after = self.args[: self.length_arg], self.args[self.length_arg + 1 :]
        return self.score_of(x, (*before, length.astype(self._given().dtype), *after))

    def shared_scores(
        self, chosen: list[int], batch_size: int | None
    ) -> Float[Array, " steps"] | None:
        """Compute the scores of prefixes of a right-padded series in one run where possible."""

        def score_of(length: Integer[Array, ""]) -> Scalar:
            return self._score_with(self.x, length)

        given = self._given()
        positions = jnp.asarray(chosen, jnp.int32)
        valid = jnp.clip(self.length, 0, positions + 1).astype(given.dtype)
        return prefix_scores(score_of, given, np.asarray(chosen) + 1, valid, batch_size)

    def scores(
        self, chosen: list[int], direction: Direction, batch_size: int | None
    ) -> Float[Array, " steps"]:
        """Compute the score of each part of the series, moved to where `fn` expects it."""
        total = jax.tree.leaves(self.x)[0].shape[0]
        first = 0 * self.length if self.padding == "right" else total - self.length
        last = first + self.length

        def score_at(t: Int[Array, ""]) -> Scalar:
            if direction == "forward":
                begin, end = first, jnp.minimum(t + 1, last)
            else:
                begin, end = jnp.maximum(t, first), last
            shift = -begin if self.padding == "right" else total - end
            shifted = jax.tree.map(lambda leaf: jnp.roll(leaf, shift, 0), self.x)
            return self._score_with(shifted, jnp.maximum(end - begin, 0))

        scores: Array = chunked_map(score_at, jnp.asarray(chosen, jnp.int32), batch_size)
        return scores
