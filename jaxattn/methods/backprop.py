"""Methods that modify the backward rule of ReLUs: guided backpropagation and DeconvNet."""

from collections.abc import Callable
from typing import Any

from jaxattn._types import Attribution, Inputs, RandomKey, Target
from jaxattn.engine.method import method
from jaxattn.jaxpr.relu import rectified
from jaxattn.methods.gradients import value_and_gradient


@method(for_logits=True)
def guided_backprop(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
) -> Attribution:
    """Compute guided backpropagation: the gradient, with negative gradients stopped at each ReLU.

    A gradient passes a ReLU only where both the gradient and the ReLU's input are positive. ReLUs
    are found in the traced program of `fn`, also inside loops and branches: `jax.nn.relu`, `relu6`,
    `max(x, 0)`, `where(x > 0, x, 0)` and `clip` at 0. Everything else keeps its derivative. So does
    a function with its own derivative rule (`jax.custom_jvp`, `jax.custom_vjp`), even if it
    contains a ReLU. An `fn` without a ReLU gets its gradient, with a warning.

    Cost: one evaluation of `fn` and one vector-Jacobian product per example. Deterministic.

    Returns:
        values of the shape of `x`, in units of the output per unit of `x`.

    Raises:
        TypeError: if no leaf of `x` is floating.
        ValueError: if the target does not fit the output, or a `while` loop of data-dependent
            length lies between `x` and the target.

    Reference:
        Springenberg et al. 2015, Striving for simplicity: the all convolutional net,
        arXiv:1412.6806.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     h = jax.nn.relu(x)
        ...     return 2 * h[0] - h[1] + h[2]
        >>> print(ja.guided_backprop(fn, jnp.array([1.0, 1.0, -1.0])).values)
        [2. 0. 0.]
    """
    result = value_and_gradient(rectified(fn, gated=True), x, target, args)
    return Attribution(result.gradient, result.output)


@method(for_logits=True)
def deconvnet(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
) -> Attribution:
    """Compute DeconvNet: the gradient, with each ReLU applied to the gradient instead of its input.

    A gradient passes a ReLU only where the gradient is positive, whatever the ReLU's input. ReLUs
    are found as by `jaxattn.guided_backprop`. An `fn` without a ReLU gets its gradient, with a
    warning.

    Cost: one evaluation of `fn` and one vector-Jacobian product per example. Deterministic.

    Returns:
        values of the shape of `x`, in units of the output per unit of `x`.

    Raises:
        TypeError: if no leaf of `x` is floating.
        ValueError: if the target does not fit the output, or a `while` loop of data-dependent
            length lies between `x` and the target.

    Reference:
        Zeiler and Fergus 2014, Visualizing and understanding convolutional networks,
        arXiv:1311.2901.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     h = jax.nn.relu(x)
        ...     return 2 * h[0] - h[1] + h[2]
        >>> print(ja.deconvnet(fn, jnp.array([1.0, 1.0, -1.0])).values)
        [2. 0. 1.]
    """
    result = value_and_gradient(rectified(fn, gated=False), x, target, args)
    return Attribution(result.gradient, result.output)
