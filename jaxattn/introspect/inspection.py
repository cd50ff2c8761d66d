"""Weights, states and gates of the recurrent layers of a model."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from jaxattn._types import Inputs
from jaxattn.engine.callable import as_function
from jaxattn.engine.intermediates import Reemitted
from jaxattn.introspect.observation import Observation, layers_of, observe, units_of
from jaxattn.introspect.results import GateValues, LayerInfo, States, Weights
from jaxattn.jaxpr.recurrence.cell_weights import cell_weights
from jaxattn.jaxpr.recurrence.observed_runs import Run


def layers(
    model: Callable[..., Any], x: Inputs, *, args: tuple[Any, ...] = ()
) -> tuple[LayerInfo, ...]:
    """List the recurrent layers of a model, each direction by itself.

    A layer is a `scan` whose state passes through products. Its name is the path of the layer where
    the library opens a scope for it, otherwise `rnn_0`, `rnn_1` and so on, in the order in which
    they run. The directions of a bidirectional layer have names such as `rnn_0/forward` and
    `rnn_0/backward`, or their own paths. Unrolled layers and loops inside of other loops are not
    found.

    Args:
        model: The model, of any kind that can be explained.
        x: One example; shapes are enough, such as `jax.ShapeDtypeStruct`.
        args: Further inputs of the model.

    Returns:
        The layers in the order in which they run.

    Raises:
        TypeError: If `model` cannot be called.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> lstm = ja.nn.LSTM(3, 4, bidirectional=True, rngs=nnx.Rngs(0))
        >>> [layer.name for layer in ja.introspect.layers(lstm, jnp.ones((5, 3)))]
        ['rnn_0/forward', 'rnn_0/backward']
    """
    found = layers_of(as_function(model), (x, *args))
    return tuple(
        LayerInfo(one.name, one.cell.kind, one.direction, one.length, units_of(one))
        for one in found
    )


def weights(
    model: Callable[..., Any],
    x: Inputs,
    *,
    args: tuple[Any, ...] = (),
    layer: str | None = None,
) -> Weights:
    """Return the weights of a recurrent layer by gate.

    They are the Jacobians of the pre-activations with respect to the input of the layer and its
    hidden state, which equal the parameters of the library by gate, however it stores them. NaN and
    infinite parameters stand in their places. The result can be differentiated with respect to the
    arrays of the model.

    Args:
        model: The model, of any kind that can be explained.
        x: One example; its values have no influence.
        args: Further inputs of the model.
        layer: Name of the layer, as `layers` lists it, or the end of one; None for the only one.

    Returns:
        The weights. The bias is the sum of all constants: of both biases of a library that has two,
        and of the 1 that haiku adds to the forget gate.

    Raises:
        ValueError: If there is no recurrent layer, `layer` does not name one, its gates are not
            recognised, or its pre-activations are not affine in its input and hidden state.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> lstm = ja.nn.LSTM(3, 4, rngs=nnx.Rngs(0))
        >>> weights = ja.introspect.weights(lstm, jnp.ones((5, 3)))
        >>> weights.kernel.forget.shape, weights.bias.forget
        ((3, 4), Array([1., 1., 1., 1.], dtype=float32))
    """
    result: Weights = _Weights(model, (layer,))(x, *args)
    return result


def states(
    model: Callable[..., Any],
    x: Inputs,
    *,
    args: tuple[Any, ...] = (),
    layer: str | None = None,
) -> States:
    """Return the states of a recurrent layer after each time step.

    Args:
        model: The model, of any kind that can be explained.
        x: One example; map over a batch with `jax.vmap`.
        args: Further inputs of the model.
        layer: Name of the layer, as `layers` lists it, or the end of one; None for the only one.

    Returns:
        The hidden states, and the cell states of an LSTM, by the time steps of the layer's input,
        also for a layer that runs backward. At steps of padding the state is that of the step
        before.

    Raises:
        ValueError: If there is no recurrent layer, or `layer` does not name one.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> lstm = ja.nn.LSTM(3, 4, rngs=nnx.Rngs(0))
        >>> states = ja.introspect.states(lstm, jnp.ones((5, 3)))
        >>> states.hidden.shape, states.cell.shape
        ((5, 4), (5, 4))
    """
    result: States = _States(model, (layer,))(x, *args)
    return result


def gates(
    model: Callable[..., Any],
    x: Inputs,
    *,
    args: tuple[Any, ...] = (),
    layer: str | None = None,
) -> GateValues:
    """Return the values of the gates of a recurrent layer at each time step.

    Args:
        model: The model, of any kind that can be explained.
        x: One example; map over a batch with `jax.vmap`.
        args: Further inputs of the model.
        layer: Name of the layer, as `layers` lists it, or the end of one; None for the only one.

    Returns:
        The values of the gates and their pre-activations, by the time steps of the layer's input.

    Raises:
        ValueError: If there is no recurrent layer, `layer` does not name one, or its gates are not
            recognised.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> gru = ja.nn.GRU(3, 4, rngs=nnx.Rngs(0))
        >>> gates = ja.introspect.gates(gru, jnp.ones((5, 3)))
        >>> [(name, values.shape) for name, values in gates.activation.items()]
        [('update', (5, 4)), ('reset', (5, 4)), ('new', (5, 4))]
    """
    result: GateValues = _Gates(model, (layer,))(x, *args)
    return result


def weights_by_gate(seen: Observation, run: Run) -> Weights:
    """Return the weights of an observed layer."""
    found = cell_weights(seen.flat, seen.layer, run)
    kernel, recurrent, bias, recurrent_bias = (
        {name: one[i] for name, one in found.items()} for i in range(4)
    )
    return Weights(
        seen.by_gate(kernel),
        seen.by_gate(recurrent),
        seen.by_gate(bias),
        recurrent_bias["new"] if seen.layer.cell.kind == "gru" else None,
        seen.layer.name,
        seen.layer.direction,
    )


def states_over_time(seen: Observation, run: Run) -> States:
    """Return the states of an observed layer."""
    after = [seen.in_time(values) for values in run.observed.after]
    cell, length = seen.layer.cell, seen.layer.length
    hidden = after[cell.hidden].reshape(length, -1) if cell.hidden >= 0 else None
    cells = after[cell.cell].reshape(length, -1) if cell.cell >= 0 else None
    return States(hidden, cells, tuple(after), seen.layer.name)


def gates_over_time(seen: Observation, run: Run) -> GateValues:
    """Return the gates of an observed layer."""
    activation, preactivation = (
        seen.by_gate({name: seen.in_time(values) for name, values in each.items()})
        for each in (run.observed.activation, run.observed.preactivation)
    )
    return GateValues(activation, preactivation, seen.layer.name)


def _weights(fn: Callable[..., PyTree], options: PyTree) -> Callable[..., Weights]:
    def call(*inputs: PyTree) -> Weights:
        seen = observe(fn, inputs, options[0])
        return weights_by_gate(seen, seen.run())

    return call


def _states(fn: Callable[..., PyTree], options: PyTree) -> Callable[..., States]:
    def call(*inputs: PyTree) -> States:
        seen = observe(fn, inputs, options[0], gates=False)
        return states_over_time(seen, seen.run())

    return call


def _gates(fn: Callable[..., PyTree], options: PyTree) -> Callable[..., GateValues]:
    def call(*inputs: PyTree) -> GateValues:
        seen = observe(fn, inputs, options[0])
        return gates_over_time(seen, seen.run())

    return call


class _Weights(Reemitted):
    change = staticmethod(_weights)


class _States(Reemitted):
    change = staticmethod(_states)


class _Gates(Reemitted):
    change = staticmethod(_gates)
