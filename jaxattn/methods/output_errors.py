"""How far the output for a perturbed input is from that for the input itself."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxattn._types import Inputs, Scalar, Target
from jaxattn.engine.batch import wide
from jaxattn.engine.perturb import is_floating
from jaxattn.engine.target import scored, select

#: The distance of two outputs.
OutputError: TypeAlias = Literal["squared", "cross_entropy"]


def output_error(
    fn: Callable[..., Any],
    target: Target,
    args: tuple[Any, ...],
    error: OutputError,
    output: PyTree,
) -> Callable[[Inputs], Scalar]:
    """Return the function from an input to the distance of its output from `output`.

    Args:
        fn: maps an input and `args` to an output.
        target: the entry of the output that is compared; `None` for the whole output.
        args: further inputs of `fn`.
        error: `"squared"` for the mean of the squared differences. `"cross_entropy"` for the
            cross-entropy of softmaxes over the last axis, less the entropy of that of `output`, and
            its mean over other axes; with a target, for the fall of its log-probability.
        output: the output to compare with.

    Raises:
        ValueError: for an unknown `error`, a target that does not fit the output, or a
            cross-entropy where fn has several outputs, fewer than two entries on the last axis of
            its output, or ends in a softmax.
        TypeError: if the output holds no floating-point numbers.
    """
    if error not in get_args(OutputError):
        raise ValueError(f'`error` must be "squared" or "cross_entropy", got {error!r}.')
    if error == "cross_entropy":
        return _cross_entropy(fn, target, args, output)

    def compared(output: PyTree) -> Array:
        if target is not None:
            scalar = select(output, target)
            return scalar[None].astype(wide(scalar.dtype))
        leaves = jax.tree.leaves(output)
        if not leaves or not all(map(is_floating, leaves)):
            raise TypeError(
                "`fn` must return real floating-point numbers, got "
                f"{', '.join(str(leaf.dtype) for leaf in leaves)}: convert the output with "
                "astype(jnp.float32)."
            )
        with jax.numpy_dtype_promotion("standard"):
            return jnp.concatenate([jnp.ravel(leaf).astype(wide(leaf.dtype)) for leaf in leaves])

    goal = compared(output)
    return lambda x: jnp.square(compared(fn(x, *args)) - goal).mean()


def _cross_entropy(
    fn: Callable[..., Any], target: Target, args: tuple[Any, ...], output: PyTree
) -> Callable[[Inputs], Scalar]:
    shapes = [leaf.shape for leaf in jax.tree.leaves(output)]
    if len(shapes) != 1 or shapes[0][-1:] < (2,):
        raise ValueError(
            '`error` must be "squared" unless fn returns one array with at least two entries on '
            f'its last axis, got "cross_entropy" and shapes {shapes}.'
        )
    (logits,) = jax.tree.leaves(output)
    if target is None:
        probability = jax.nn.softmax(logits, -1)

        def chosen(logs: Array) -> Array:
            return (probability * logs).sum(-1).mean()

    else:

        def chosen(logs: Array) -> Array:
            return select(logs, target)

    score_of = scored(fn, chosen, args, score="log_probability")
    goal = chosen(jax.nn.log_softmax(logits, -1))
    return lambda x: goal - score_of(x)[0]
