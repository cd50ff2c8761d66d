"""Optimisation of masks: steps of an optax optimiser in one compiled loop."""

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxattn._types import Scalar

#: Whether a mask keeps what preserves the output, or deletes what changes it.
MaskMode: TypeAlias = Literal["preservation", "deletion"]


def check_mode(mode: MaskMode) -> None:
    """Raise an error for an unknown mode."""
    if mode not in get_args(MaskMode):
        raise ValueError(f'`mode` must be "preservation" or "deletion", got {mode!r}.')


def clip(masks: list[Array]) -> list[Array]:
    """Return the masks with all numbers in [0, 1]."""
    return [jnp.clip(mask, 0, 1) for mask in masks]


def check_optimizer(optimizer: object) -> None:
    """Raise an error for an optimiser that is not one of optax's."""
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "`optimizer` must be an optax.GradientTransformation, such as optax.adam(0.1), got "
            f"{optimizer!r}."
        )


def adam() -> optax.GradientTransformation:
    """Return an optimiser for a mask together with a network.

    It soon forgets the large slopes of the first steps, besides which penalties would not count.
    Weights without a slope at first can be differentiated through.
    """
    return optax.adam(0.01, b2=0.9, eps_root=1e-16)


def minimised(
    objective: Callable[[PyTree, PyTree], Scalar],
    start: PyTree,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    projected: Callable[[PyTree], PyTree] = clip,
    each_step: PyTree = None,
) -> tuple[PyTree, Float[Array, " steps"]]:
    """Minimise an objective with an optax optimiser.

    Args:
        objective: the function of the parameters, and of the entry of `each_step`.
        start: the initial parameters.
        optimizer: the optimiser.
        num_steps: the number of its steps.
        projected: returns parameters that are permitted; applied after each step.
        each_step: further inputs, with a leading axis of steps.

    Returns:
        the parameters after the last step, and the objective before each step.
    """

    def step(state: tuple[PyTree, PyTree], given: PyTree) -> tuple[tuple[PyTree, PyTree], Scalar]:
        parameters, moments = state
        loss, slope = jax.value_and_grad(objective)(parameters, given)
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by its step count
            updates, moments = optimizer.update(slope, moments, parameters)
        parameters = projected(jax.tree.map(jnp.add, parameters, updates))
        return (parameters, moments), loss

    state = start, optimizer.init(start)
    (end, _), losses = jax.lax.scan(step, state, each_step, length=num_steps)
    return end, losses
