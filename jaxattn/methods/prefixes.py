"""Functions of a series that is cut after a time step, and any method on every prefix."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_bool
from jaxattn.engine.batch import chunked_map
from jaxattn.engine.method import method
from jaxattn.engine.options import count, traits_of, without_partial
from jaxattn.engine.perturb import broadcast_baseline, is_floating
from jaxattn.jaxpr.reuse.causal_steps import CausalSteps
from jaxattn.methods.gradients import gradient, options_of_method
from jaxattn.methods.temporal import length_position, series_length

PrefixReduction: TypeAlias = Literal["diagonal", "none"]


def output_of_one_step(output: PyTree, options: dict[str, Any]) -> PyTree:
    """Return the abstract output that a target selects from: that of one step if `per_step`."""
    if not options.get("per_step"):
        return output
    if any(not leaf.shape for leaf in jax.tree.leaves(output)):
        raise ValueError(_not_per_step(jax.tree.map(lambda leaf: leaf.shape, output)))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), output)


def _not_per_step(shapes: PyTree) -> str:
    return (
        "`per_step` must be False where the output of fn has no leading axis of time steps, got "
        f"True and an output of shape {shapes}."
    )


class Prefixes(NamedTuple):
    """A function of a series that is cut after a time step.

    Attributes:
        fn: the function.
        args: its further inputs.
        after: what stands after the cut where no length says so; like the series.
        length_arg: which of `args` is the length of the valid part, or `None`.
        per_step: whether `fn` returns an output per step.
        total: the number of time steps.
        causal: the function by time steps, where its outputs are known not to depend on later steps
            of the series: it is not cut then, so all prefixes share their evaluations.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    after: Inputs
    length_arg: int | None
    per_step: bool
    total: int
    causal: CausalSteps | None

    @classmethod
    def of(
        cls,
        fn: Callable[..., Any],
        x: Inputs,
        args: tuple[Any, ...],
        baseline: PyTree[ArrayLike],
        length_arg: int | np.integer | None,
        per_step: bool,
    ) -> "Prefixes":
        """Check the options of a method that cuts a series.

        Raises:
            TypeError: for a `per_step` that is no bool, or a length that is no integer.
            ValueError: for a `length_arg` that is out of range, series of different lengths, or an
                output without an axis of time if `per_step`.
        """
        check_bool("per_step", per_step)
        total = series_length(x)
        position = None if length_arg is None else length_position(length_arg, args)
        causal = None
        if per_step:
            output = jax.eval_shape(lambda x: fn(x, *args), x)
            if any(leaf.shape[:1] != (total,) for leaf in jax.tree.leaves(output)):
                raise ValueError(_not_per_step(jax.tree.map(lambda leaf: leaf.shape, output)))
            if position is None:
                causal = CausalSteps.of(lambda x: fn(x, *args), x)
        after = broadcast_baseline(baseline, x, keep_integers=True)
        return cls(fn, args, after, position, bool(per_step), total, causal)

    def output(self, x: Inputs, t: Int[Array, ""], args: tuple[Any, ...] | None = None) -> PyTree:
        """Return the output for the series cut after step `t`, that of step t if `per_step`.

        Args:
            x: the series.
            t: the last step that is seen.
            args: the further inputs, if others than those of the call.
        """
        args = self.args if args is None else args
        if self.causal is None and self.length_arg is None:
            x = jax.tree.map(lambda leaf, after: self.cut(leaf, t, after), x, self.after)
        if self.length_arg is not None:
            length = jnp.asarray(args[self.length_arg])
            shorter = jnp.minimum(t + 1, length.astype(jnp.int32)).astype(length.dtype)
            args = (*args[: self.length_arg], shorter, *args[self.length_arg + 1 :])
        output = self.fn(x, *args)
        return jax.tree.map(lambda leaf: leaf[t], output) if self.per_step else output

    def cut(self, leaf: Array, t: Int[Array, ""], after: ArrayLike) -> Array:
        """Return an array along time with `after` behind step `t`."""
        seen = self.every_step <= t
        return jnp.where(seen.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, after)

    @property
    def length(self) -> Int[Array, ""]:
        """The number of valid time steps."""
        length = self.total if self.length_arg is None else self.args[self.length_arg]
        return jnp.minimum(jnp.asarray(length).astype(jnp.int32), self.total)

    @property
    def every_step(self) -> Int[Array, " T"]:
        """The time steps."""
        return jnp.arange(self.total, dtype=jnp.int32)


#: The options of `time_forward` itself; all others are passed to its `method`.
_OWN = ("method", "reduction", "per_step", "length_arg", "baseline")


def _prefixes_times(what: str, x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    """Count the evaluations of all prefixes: `what` is `"evaluations"` or `"in_flight"`."""
    inner = {name: value for name, value in options.items() if name not in _OWN}
    of_step = output_of_one_step(output, options)
    return series_length(x) * count(what, options.get("method", gradient), x, of_step, inner)


@method(
    for_logits=True,
    selects_from=output_of_one_step,
    evaluations=functools.partial(_prefixes_times, "evaluations"),
    in_flight=functools.partial(_prefixes_times, "in_flight"),
)
def time_forward(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    method: Callable[..., Attribution] = gradient,
    reduction: PrefixReduction = "diagonal",
    per_step: bool = False,
    length_arg: int | np.integer | None = None,
    baseline: PyTree[ArrayLike] = 0.0,
    **options: Any,
) -> Attribution:
    """Compute a method on every prefix of a series, with the target at its end.

    At step t the series is cut after x[t], and the method explains the target of that prefix. With
    `length_arg` the length is t + 1, or that of the series if it is shorter; without it, the steps
    after t are replaced by the baseline. With `per_step` the target is that of output t. A causal
    function with an output per step needs no length: output t does not depend on later steps.

    Cost: T times the cost of `method`, all in one program, and one evaluation of `fn`. For a causal
    function with an output per step, whose time steps meet in forward loops alone, all steps share
    the evaluations of one `method`, and only its vector-Jacobian products are taken T times. Draws
    with `key` if `method` does.

    The method receives all of `x`, and only `fn` is cut: what it computes from `x` itself, such as
    the range that relative noise of `jaxattn.smooth_grad` is a part of, or a moving average,
    includes later steps.

    Args:
        key: a random key for a `method` that draws; all prefixes share its draws.
        method: the method.
        reduction: `"diagonal"` for the values of x[t] in the prefix that ends with it; `"none"` for
            the values of all steps in all prefixes.
        per_step: whether `fn` returns one output per step, with time on the first axis. `target`
            then selects from the output of one step.
        length_arg: which of `args` holds the length of the valid part of `x`.
        baseline: what stands after the cut without `length_arg`, and the baseline of `method` if it
            takes one and has none of its own: a number or an array that broadcasts to `x`, or a
            pytree of these with the structure of `x`. Integer leaves are not cut.
        **options: options of `method`.

    Returns:
        values of the shape that `method` returns, where its first axis is time; with
        `reduction="none"` an axis of length T before it: values[t, s] is the value of x[s] for the
        target at step t, zero for s > t. `info` is that of `method`, with an axis of length T.

    Raises:
        TypeError: for an option that `method` does not have, a length that is no integer, a
            `per_step` that is no bool, or an `x` of integers alone without `length_arg`,
            unless `fn` is a scan that returns an output per step.
        ValueError: for an unknown reduction, a `length_arg` that is out of range, series of
            different lengths, an output without an axis of time if `per_step`, or values without
            one for `reduction="diagonal"`.

    Reference:
        Enguehard 2023, Time Interpret: a unified model interpretability library for time series,
        arXiv:2306.02968.

    Examples:
        Sums of squares up to each step; x[0] has the same gradient in all of them.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return jnp.cumsum(x ** 2)
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> print(ja.time_forward(fn, x, per_step=True, reduction="none").values)
        [[2. 0. 0.]
         [2. 4. 0.]
         [2. 4. 6.]]
        >>> print(ja.time_forward(fn, x, per_step=True, method=ja.occlusion).values)
        [1. 4. 9.]
    """
    if reduction not in get_args(PrefixReduction):
        raise ValueError(f'`reduction` must be "diagonal" or "none", got {reduction!r}.')
    options = options_of_method("time_forward", _OWN, method, options, baseline)
    prefixes = Prefixes.of(fn, x, args, baseline, length_arg, per_step)
    integers_alone = not any(map(is_floating, jax.tree.leaves(x)))
    if length_arg is None and prefixes.causal is None and integers_alone:
        raise TypeError(
            "`length_arg` is missing: `x` holds integers alone, which are not replaced after the "
            "cut. Give `fn` the length as one of args, or explain a floating-point intermediate, "
            'such as at="embedding".'
        )
    output = fn(x, *args)
    of_step = jax.eval_shape(lambda x: prefixes.output(x, jnp.asarray(0)), x)
    inner = count("in_flight", method, x, of_step, {"target": target, **options})
    backward = traits_of(without_partial(method)).backward
    sizes = _sizes(batch_size, prefixes, inner, backward)

    def explained(t: Int[Array, ""]) -> Attribution:
        def cut(x: Inputs, *args: Any) -> PyTree:
            return prefixes.output(x, t, args)

        shared = {"args": args, "key": key, "batch_size": sizes.of_method}
        result = method(cut, x, target, **shared, **options)
        values = result.values
        if reduction == "diagonal":
            values = jax.tree.map(lambda leaf: _row(leaf, t, prefixes.total), values)
        else:
            values = jax.tree.map(
                lambda leaf: prefixes.cut(leaf, t, 0) if _in_time(leaf, prefixes.total) else leaf,
                values,
            )
        return Attribution(values, (), result.info)

    result = chunked_map(explained, prefixes.every_step, sizes.steps)
    return Attribution(result.values, output, result.info)


class _Sizes(NamedTuple):
    """How many prefixes are in flight, and how many evaluations of the method on each."""

    steps: int | None
    of_method: int | None


def _sizes(batch_size: int | None, prefixes: Prefixes, inner: int, backward: bool) -> _Sizes:
    """Divide the evaluations in flight.

    Args:
        batch_size: their number; `None` for no limit.
        prefixes: the prefixes. Those of a causal function share evaluations if they go side by
            side.
        inner: how many evaluations the method has in flight on one prefix.
        backward: whether the method takes derivatives, which prefixes do not share.
    """
    if batch_size is None:
        return _Sizes(prefixes.total, None)
    if prefixes.causal is not None:
        steps = min(prefixes.total, batch_size)
        if not backward:
            return _Sizes(steps, min(inner, batch_size))
        return _Sizes(steps, max(1, batch_size // steps))
    return _Sizes(max(1, batch_size // inner), min(inner, batch_size))


def _in_time(values: Array, total: int) -> bool:
    """Return whether the first axis of values is that of time steps."""
    return values.shape[:1] == (total,)


def _row(values: Array, t: Int[Array, ""], total: int) -> Array:
    """Return the values of one time step."""
    if not _in_time(values, total):
        raise ValueError(
            '`reduction` must be "none" for a method whose values have no leading axis of time '
            f"steps, got values of shape {values.shape}."
        )
    return values[t]
