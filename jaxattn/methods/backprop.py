"""Methods that change which gradients a ReLU lets through."""

from collections.abc import Callable
from typing import Any

from jaxattn._types import Attribution, Inputs, RandomKey, Target
from jaxattn.engine.method import method
from jaxattn.jaxpr.relu import rectified
from jaxattn.methods.gradients import value_and_gradient


@method
def guided_backprop(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
) -> Attribution:
    """The gradient, which passes a ReLU only where both it and the ReLU's input are positive.

    ReLUs are found in the traced program, whatever library wrote them, also inside of loops and
    branches: `jax.nn.relu`, `relu6`, `max(x, 0)`, `where(x > 0, x, 0)`, `clip` at 0. Everything
    else keeps its derivative, and so does a function with a derivative rule of its own
    (`jax.custom_jvp`, `jax.custom_vjp`), even one that has a ReLU inside.

    Args:
        fn: maps `x` to an output. Without a ReLU the values are the plain gradient, with a warning.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: not used: one evaluation is needed.

    Returns:
        values of the shape of `x`, in units of the output per unit of `x`.

    Raises:
        TypeError: if `x` holds integers only.
        ValueError: if the target does not fit the output, or `fn` has a `while` loop of unknown
            length on the way from `x`.

    Reference:
        Springenberg et al. 2015, Striving for simplicity: the all convolutional net,
        arXiv:1412.6806.
    """
    _, output, slope = value_and_gradient(rectified(fn, gated=True), x, target, args)
    return Attribution(slope, output)


@method
def deconvnet(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    key: RandomKey | None = None,
    batch_size: int | None = None,
) -> Attribution:
    """The gradient, which passes a ReLU only where it is positive, whatever the ReLU's input.

    What counts as a ReLU is said at `jaxattn.guided_backprop`.

    Args:
        fn: maps `x` to an output. Without a ReLU the values are the plain gradient, with a warning.
        x: one example.
        target: which number of the output is explained; see `jaxattn.explain`.
        args: further inputs of `fn`, not explained.
        at: the name of an intermediate that is explained instead of `x`; see `jaxattn.tag`.
        check_finite: whether to refuse NaN and infinity in `x`, outside of `jit`.
        key: not used.
        batch_size: not used: one evaluation is needed.

    Returns:
        values of the shape of `x`, in units of the output per unit of `x`.

    Raises:
        TypeError: if `x` holds integers only.
        ValueError: if the target does not fit the output, or `fn` has a `while` loop of unknown
            length on the way from `x`.

    Reference:
        Zeiler and Fergus 2014, Visualizing and understanding convolutional networks,
        arXiv:1311.2901.
    """
    _, output, slope = value_and_gradient(rectified(fn, gated=False), x, target, args)
    return Attribution(slope, output)
