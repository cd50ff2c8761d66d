"""What is inside of a recurrent layer, by gate: results as pytrees."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

import jax
from jax import Array
from jaxtyping import Float, Integer

Value = TypeVar("Value")


class _Named(Generic[Value]):
    """Values by the name of their gate."""

    def items(self) -> Iterator[tuple[str, Value]]:
        """Iterate over the names of the gates and their values."""
        for part in dataclasses.fields(self):  # type: ignore[arg-type]
            yield part.name, getattr(self, part.name)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LSTMGates(_Named[Value]):
    """One value for each gate of an LSTM: c' = forget * c + input * cell, h' = output * tanh(c').

    Attributes:
        input: Of the input gate.
        forget: Of the forget gate.
        cell: Of the candidate of the cell state.
        output: Of the output gate.
    """

    input: Value
    forget: Value
    cell: Value
    output: Value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GRUGates(_Named[Value]):
    """One value for each gate of a GRU.

    The update gate is the factor of the old state, or in some libraries that of the candidate.

    Attributes:
        update: Of the update gate.
        reset: Of the reset gate.
        new: Of the candidate of the hidden state.
    """

    update: Value
    reset: Value
    new: Value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RNNGates(_Named[Value]):
    """The value for the only pre-activation of a simple recurrent network, which has no gates.

    Attributes:
        new: Of the hidden state.
    """

    new: Value


Gates: TypeAlias = LSTMGates[Value] | GRUGates[Value] | RNNGates[Value]

_GATES: dict[str, Any] = {"lstm": LSTMGates, "gru": GRUGates, "rnn": RNNGates}


def gates_of(kind: str, values: Mapping[str, Value]) -> Gates[Value]:
    """Return values by gate.

    Args:
        kind: "lstm", "gru" or "rnn".
        values: the values by name.
    """
    gates: Gates[Value] = _GATES[kind](**values)
    return gates


def _static() -> Any:
    return dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class LayerInfo:
    """One direction of a recurrent layer.

    Attributes:
        name: Its name, for the argument `layer`.
        kind: "lstm", "gru", "rnn", or "unknown" if its equations are not recognised.
        direction: "forward" or "backward".
        steps: T, the number of time steps.
        units: H, the number of units; 0 for an unknown kind.
    """

    name: str
    kind: str
    direction: str
    steps: int
    units: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a recurrent layer by gate, or their gradients.

    Attributes:
        kernel: Weights `(D, H)` of the input, by gate.
        recurrent: Weights `(H, H)` of the hidden state, by gate; columns are units of the gate.
        bias: All that is added to the pre-activations `(H,)`, by gate.
        recurrent_bias: Bias `(H,)` inside of the product with the reset gate of a GRU; None for
            other kinds.
        layer: Name of the layer.
        direction: "forward" or "backward".
    """

    kernel: Gates[Float[Array, "D H"]]
    recurrent: Gates[Float[Array, "H H"]]
    bias: Gates[Float[Array, " H"]]
    recurrent_bias: Float[Array, " H"] | None
    layer: str = _static()
    direction: str = _static()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class States:
    """The states of a recurrent layer after each time step.

    Attributes:
        hidden: Hidden states `(T, H)`; None for an unknown kind.
        cell: Cell states `(T, H)`; None unless the layer is an LSTM.
        carries: All carried values `(T, ...)`, in the order of the loop.
        layer: Name of the layer.
    """

    hidden: Float[Array, "T H"] | None
    cell: Float[Array, "T H"] | None
    carries: tuple[Array, ...]
    layer: str = _static()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GateValues:
    """The values of gates over time.

    Attributes:
        activation: Values `(T, H)`, by gate.
        preactivation: Operands `(T, H)` of the activation functions, by gate.
        layer: Name of the layer.
    """

    activation: Gates[Float[Array, "T H"]]
    preactivation: Gates[Float[Array, "T H"]]
    layer: str = _static()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GateGradients:
    """The gradients of a score with respect to what is inside of a recurrent layer.

    Attributes:
        score: The score.
        inputs: Gradient with respect to `x`, in its shape, through the pre-activation of one gate
            alone; the sum over gates is the gradient through the layer. None if `x` holds integers.
        preactivation: Gradients `(T, H)` with respect to the pre-activations, by gate.
        activation: Gradients `(T, H)` with respect to the values of the gates.
        hidden: Gradients `(T, H)` with respect to the hidden states, through the outputs of the
            layer and through later states.
        cell: Gradients `(T, H)` with respect to the cell states; None unless the layer is an LSTM.
        output: Gradients `(T, H)` with respect to the outputs of the layer, as later layers read
            them.
        weights: Gradients with respect to the weights, by gate; None if the pre-activations are
            not affine in the input and the hidden state.
        layer: Name of the layer.
    """

    score: Float[Array, ""]
    inputs: Any
    preactivation: Gates[Float[Array, "T H"]]
    activation: Gates[Float[Array, "T H"]]
    hidden: Float[Array, "T H"]
    cell: Float[Array, "T H"] | None
    output: Float[Array, "T H"]
    weights: Weights | None
    layer: str = _static()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StateJacobians:
    """The derivatives of states with respect to earlier states, dh_t/dh_s at `[t, s]`.

    Entries are zero where step s comes after step t. A backward layer runs from the last time step
    to the first.

    Attributes:
        hidden: Of the hidden states, `(T, T)` for norms; None for an unknown kind.
        cell: Of the cell states; None unless the layer is an LSTM.
        state: Of all carried values at once; None for a known kind.
        layer: Name of the layer.
    """

    hidden: Array | None
    cell: Array | None
    state: Array | None
    layer: str = _static()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryReach:
    """How far the memory of a recurrent layer reaches.

    Attributes:
        norms: Mean over time steps t of the norm of dh_t/dh_(t-k), for k from 0 to T - 1.
        steps: The least k above 1 whose norm is below the fraction of that of k = 1; infinity if
            there is none.
        layer: Name of the layer.
    """

    norms: Float[Array, " T"]
    steps: Float[Array, ""]
    layer: str = _static()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Saturation:
    """The share of time steps in which an activation is near an end of its range.

    Attributes:
        low: Share `(H,)` near the lower end, by gate.
        high: Share `(H,)` near the upper end, by gate.
        layer: Name of the layer.
    """

    low: Gates[Float[Array, " H"]]
    high: Gates[Float[Array, " H"]]
    layer: str = _static()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NonFinite:
    """Numbers of entries that are NaN and that are infinite.

    Attributes:
        nan: The number of NaN.
        inf: The number of infinite entries of either sign.
    """

    nan: Integer[Array, ""]
    inf: Integer[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FiniteReport:
    """The numbers of non-finite entries inside of a recurrent layer, by gate.

    Attributes:
        kernel: Of the weights of the input.
        recurrent: Of the weights of the hidden state.
        bias: Of the biases.
        activation: Of the values of gates over time.
        hidden: Of the hidden states.
        layer: Name of the layer.
    """

    kernel: Gates[NonFinite]
    recurrent: Gates[NonFinite]
    bias: Gates[NonFinite]
    activation: Gates[NonFinite]
    hidden: NonFinite
    layer: str = _static()

    @property
    def total(self) -> Integer[Array, ""]:
        """The number of all non-finite entries."""
        total: Array = sum(jax.tree.leaves(self), start=jax.numpy.zeros((), int))
        return total
