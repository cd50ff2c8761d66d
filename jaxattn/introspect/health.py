"""Signs of trouble in a recurrent layer: saturated gates, dead units, NaN and infinity."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, PyTree

from jaxattn._types import Inputs
from jaxattn.engine.intermediates import Reemitted
from jaxattn.introspect.inspection import weights_by_gate
from jaxattn.introspect.observation import observe
from jaxattn.introspect.results import FiniteReport, NonFinite, Saturation


def saturation(
    model: Callable[..., Any],
    x: Inputs,
    *,
    args: tuple[Any, ...] = (),
    layer: str | None = None,
    margin: float = 0.1,
) -> Saturation:
    """Compute the share of time steps in which each activation is saturated.

    A gate is saturated below `margin` and above 1 - `margin`. A tanh is saturated in the same parts
    of its range from -1 to 1, below -0.8 and above 0.8 by default. A ReLU is saturated at 0, its
    lower end.

    Args:
        model: The model, of any kind that can be explained.
        x: One example; map over a batch with `jax.vmap`.
        args: Further inputs of the model.
        layer: Name of the layer, as `layers` lists it, or the end of one; None for the only one.
        margin: The part of the range at each end, between 0 and 0.5.

    Returns:
        The shares near either end, between 0 and 1.

    Raises:
        ValueError: If there is no recurrent layer, `layer` does not name one, its gates are not
            recognised, or `margin` does not lie between 0 and 0.5.

    Reference:
        Karpathy, Johnson and Fei-Fei 2015, Visualizing and understanding recurrent networks,
        arXiv:1506.02078.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> lstm = ja.nn.LSTM(1, 2, rngs=nnx.Rngs(0))
        >>> found = ja.introspect.saturation(lstm, jnp.zeros((3, 1)))
        >>> print(found.low.forget, found.high.forget)  # the forget gate is 0.73
        [0. 0.] [0. 0.]
    """
    if not 0 < margin < 0.5:
        raise ValueError(f"`margin` must lie between 0 and 0.5, got {margin}.")
    result: Saturation = _Saturation(model, (layer, margin))(x, *args)
    return result


def dead_units(
    model: Callable[..., Any],
    x: Inputs,
    *,
    args: tuple[Any, ...] = (),
    layer: str | None = None,
    tolerance: float = 1e-6,
) -> Bool[Array, " H"]:
    """Return which units have the same hidden state at all time steps.

    Args:
        model: The model, of any kind that can be explained.
        x: One example. For a batch, map with `jax.vmap` and take `all(0)`: a unit is dead if it is
            dead in every example.
        args: Further inputs of the model.
        layer: Name of the layer, as `layers` lists it, or the end of one; None for the only one.
        tolerance: The largest difference between two states of a dead unit.

    Returns:
        Booleans `(H,)`. A unit whose states are NaN is not dead.

    Raises:
        ValueError: If there is no recurrent layer, `layer` does not name one, or its gates are not
            recognised.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> rnn = ja.nn.RNN(1, 2, activation="relu", rngs=nnx.Rngs(0))
        >>> print(ja.introspect.dead_units(rnn, jnp.zeros((5, 1))))
        [ True  True]
    """
    result: Array = _DeadUnits(model, (layer, tolerance))(x, *args)
    return result


def check_finite(
    model: Callable[..., Any],
    x: Inputs,
    *,
    args: tuple[Any, ...] = (),
    layer: str | None = None,
) -> FiniteReport:
    """Count NaN and infinite entries of weights, gates and states, by gate.

    Args:
        model: The model, of any kind that can be explained.
        x: One example; map over a batch with `jax.vmap`.
        args: Further inputs of the model.
        layer: Name of the layer, as `layers` lists it, or the end of one; None for the only one.

    Returns:
        The numbers of entries.

    Raises:
        ValueError: If there is no recurrent layer, `layer` does not name one, its gates are not
            recognised, or its pre-activations are not affine in its input and hidden state.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> lstm = ja.nn.LSTM(1, 2, rngs=nnx.Rngs(0))
        >>> kernel = lstm.cells[0]["kernel"]
        >>> kernel[...] = kernel[...].at[0, 3].set(jnp.nan)
        >>> report = ja.introspect.check_finite(lstm, jnp.ones((3, 1)))
        >>> int(report.kernel.forget.nan), int(report.kernel.input.nan)
        (1, 0)
    """
    result: FiniteReport = _CheckFinite(model, (layer,))(x, *args)
    return result


def _saturation(fn: Callable[..., PyTree], options: PyTree) -> Callable[..., Saturation]:
    layer, margin = options

    def call(*inputs: PyTree) -> Saturation:
        seen = observe(fn, inputs, layer)
        low: dict[str, Array] = {}
        high: dict[str, Array] = {}
        for name, values in seen.run().observed.activation.items():
            gate = seen.layer.cell.gates[name]
            width = gate.high - gate.low
            near = gate.low + margin * width if math.isfinite(width) else gate.low
            low[name] = (values <= near).mean(0, dtype=values.dtype)
            high[name] = (values >= gate.high - (near - gate.low)).mean(0, dtype=values.dtype)
        return Saturation(seen.by_gate(low), seen.by_gate(high), seen.layer.name)

    return call


def _dead_units(fn: Callable[..., PyTree], options: PyTree) -> Callable[..., Array]:
    layer, tolerance = options

    def call(*inputs: PyTree) -> Array:
        seen = observe(fn, inputs, layer)
        hidden = seen.run().observed.after[seen.layer.cell.hidden]
        hidden = hidden.reshape(seen.layer.length, -1)
        return hidden.max(0) - hidden.min(0) <= tolerance

    return call


def _check_finite(fn: Callable[..., PyTree], options: PyTree) -> Callable[..., FiniteReport]:
    (layer,) = options

    def call(*inputs: PyTree) -> FiniteReport:
        seen = observe(fn, inputs, layer)
        run = seen.run()
        weights = weights_by_gate(seen, run)
        hidden = run.observed.after[seen.layer.cell.hidden]
        kernel, recurrent, bias, activation, states = jax.tree.map(
            lambda values: NonFinite(jnp.isnan(values).sum(), jnp.isinf(values).sum()),
            (
                weights.kernel,
                weights.recurrent,
                weights.bias,
                seen.by_gate(run.observed.activation),
                hidden,
            ),
        )
        return FiniteReport(kernel, recurrent, bias, activation, states, seen.layer.name)

    return call


class _Saturation(Reemitted):
    change = staticmethod(_saturation)


class _DeadUnits(Reemitted):
    change = staticmethod(_dead_units)


class _CheckFinite(Reemitted):
    change = staticmethod(_check_finite)
