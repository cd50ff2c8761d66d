"""Recurrent layers: the step functions scanned over time, in both directions, past any padding."""

import abc
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Integer, Shaped

from jaxattn.nn.steps import (
    GRUWeights,
    LSTMState,
    LSTMWeights,
    RNNWeights,
    gru_step,
    lstm_step,
    rnn_step,
)

Padding = Literal["right", "left"]


class Recurrence(NamedTuple):
    """What a recurrent layer returns.

    Attributes:
        outputs: the last layer's hidden state after each step, the directions concatenated; zero at
            padding.
        state: the last layer's final hidden state: the forward direction's after the last valid
            step and the backward direction's after the first, concatenated.
    """

    outputs: Float[Array, "*batch T H*directions"]
    state: Float[Array, "*batch H*directions"]


def valid_steps(
    lengths: Integer[ArrayLike, "*batch"], num_steps: int, padding: Padding = "right"
) -> Bool[Array, "*batch T"]:
    """Mark the steps that are not padding.

    Args:
        lengths: number of valid steps of each example, integers from 0 to `num_steps`.
        num_steps: T, padding included.
        padding: the side on which the padding lies.

    Returns:
        True at valid steps, (..., T).

    Raises:
        TypeError: lengths that are not integers.
        ValueError: lengths outside [0, T], unless they are traced; an unknown `padding`.
    """
    _check_padding(padding)
    try:
        concrete = np.asarray(lengths)
    except jax.errors.TracerArrayConversionError:
        concrete = None  # a traced length has no value to check
    lengths = jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"lengths must be integers, got dtype {lengths.dtype}")
    if concrete is not None and np.any((concrete < 0) | (concrete > num_steps)):
        raise ValueError(f"lengths must lie in [0, T] = [0, {num_steps}], got {concrete}")
    lengths = lengths.astype(jnp.int32)[..., None]
    steps = jax.lax.broadcasted_iota(jnp.int32, (*lengths.shape[:-1], num_steps), lengths.ndim - 1)
    return steps < lengths if padding == "right" else steps >= num_steps - lengths


class Recurrent(nnx.Module):
    """What `LSTM`, `GRU` and `RNN` share: the weights of every cell, and one scan for each layer.

    A cell is one direction of one layer. `cells` holds them in the order layer 0 forward, layer 0
    backward, layer 1 forward, ... Each gate's block of the kernel is drawn by Glorot's uniform
    rule, its block of the recurrent kernel is orthogonal.

    Args:
        in_features: D, size of the input at each step.
        hidden_features: H, number of units of each direction.
        num_layers: how many layers to stack, each reading the outputs of the one below.
        bidirectional: add units that read the sequence backward.
        param_dtype: dtype of the weights.
        rngs: random streams; the weights are drawn from `params`.

    Raises:
        ValueError: a size below 1.
        TypeError: a `param_dtype` that is not floating.
    """

    num_gates: ClassVar[int]
    weights_type: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        for name in ("in_features", "hidden_features", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not jnp.issubdtype(param_dtype, jnp.floating):
            raise TypeError(f"param_dtype must be floating, got {param_dtype}")

        def draw(initializer: Callable[..., Array], rows: int) -> Array:
            # An orthogonal draw takes a QR decomposition, which half precision lacks.
            dtype = jnp.float32 if jnp.finfo(param_dtype).bits < 32 else param_dtype
            gates = [
                initializer(rngs.params(), (rows, hidden_features), dtype)
                for _ in range(self.num_gates)
            ]
            return jnp.concatenate(gates, axis=1)

        directions = 2 if bidirectional else 1
        self.cells: nnx.List[nnx.Dict] = nnx.List()
        for index in range(num_layers * directions):
            rows = in_features if index < directions else directions * hidden_features
            arrays = {
                "kernel": draw(initializers.glorot_uniform(), rows),
                "recurrent": draw(initializers.orthogonal(), hidden_features),
                **self._biases(),
            }
            params = {name: nnx.Param(a.astype(param_dtype)) for name, a in arrays.items()}
            self.cells.append(nnx.Dict(params))

    def weights(self, layer: int = 0, *, backward: bool = False) -> Any:
        """Return the weights of one cell, ready for the step function.

        Args:
            layer: index of the layer, 0 nearest the input.
            backward: the backward direction's weights instead of the forward's.

        Returns:
            `LSTMWeights`, `GRUWeights` or `RNNWeights`.

        Raises:
            ValueError: a layer or direction that does not exist.
        """
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"layer must lie in [0, {self.num_layers}), got {layer}")
        if backward and not self.bidirectional:
            raise ValueError("backward=True, but the layer is not bidirectional")
        cell = self.cells[2 * layer + backward if self.bidirectional else layer]
        return self.weights_type(**{name: cell[name][...] for name in cell})

    def __call__(
        self,
        x: Shaped[ArrayLike, "*batch T D"],
        lengths: Integer[ArrayLike, "*batch"] | None = None,
        *,
        padding: Padding = "right",
    ) -> Recurrence:
        """Run the layers over time.

        Padding changes no result, whatever it holds (NaN and infinity included), and its gradient
        is exactly zero. A length of 0 gives the zero state. The dtype is the one to which `x` and
        the weights promote.

        Args:
            x: one example (T, D), or a batch of any rank (..., T, D); integers are converted.
            lengths: number of valid steps of each example, integers of shape (...): a scalar for
                one example. They may be traced. None: no padding.
            padding: the side on which the padding lies.

        Returns:
            The outputs (..., T, H * directions) and the final state (..., H * directions).

        Raises:
            ValueError: an `x` of another shape, lengths that do not match its leading axes or lie
                outside [0, T], an unknown `padding`.
            TypeError: an `x` that is not real numbers, lengths that are not integers.
        """
        x = jnp.asarray(x)
        if x.ndim < 2 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must have shape (..., T, {self.in_features}), got {x.shape}")
        if not jnp.issubdtype(x.dtype, jnp.floating) and not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"x must be real numbers, got dtype {x.dtype}")
        batch = x.shape[:-2]
        if lengths is not None and jnp.shape(lengths) != batch:
            got = jnp.shape(lengths)
            raise ValueError(f"lengths must have shape {batch} for x of shape {x.shape}, got {got}")
        _check_padding(padding)
        valid = None if lengths is None else valid_steps(lengths, x.shape[-2], padding)
        cells = [
            [self.weights(i, backward=b) for b in (False, True)[: 1 + self.bidirectional]]
            for i in range(self.num_layers)
        ]
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.promote_types(x.dtype, cells[0][0].kernel.dtype)
        cells = jax.tree.map(lambda w: w.astype(dtype), cells)

        def run(x: Array, valid: Array | None) -> Recurrence:
            outputs = x
            for directions in cells:
                initial = self._initial(dtype)
                outputs, state = _scan(self._step(), directions, initial, outputs, valid)
            return Recurrence(outputs, state)

        for _ in batch:
            run = jax.vmap(run)
        return run(x.astype(dtype), valid)

    def _biases(self) -> dict[str, Array]:
        return {"bias": jnp.zeros(self.num_gates * self.hidden_features)}

    def _initial(self, dtype: DTypeLike) -> Any:
        return jnp.zeros(self.hidden_features, dtype)

    @abc.abstractmethod
    def _step(self) -> Callable[..., Any]:
        """The pure step function that is scanned."""


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997); equations in `lstm_step`.

    Gates in the order input, forget, cell, output. The forget gate's bias starts at 1, the others
    at 0. Arguments and errors: see `Recurrent`.
    """

    num_gates = 4
    weights_type = LSTMWeights

    def _biases(self) -> dict[str, Array]:
        return {"bias": jnp.repeat(jnp.array([0.0, 1.0, 0.0, 0.0]), self.hidden_features)}

    def _initial(self, dtype: DTypeLike) -> LSTMState:
        zeros = jnp.zeros(self.hidden_features, dtype)
        return LSTMState(zeros, zeros)

    def _step(self) -> Callable[..., Any]:
        return lstm_step


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al. 2014); equations in `gru_step`.

    Gates in the order reset, update, new; the reset applies after the recurrent product. Biases
    start at 0. Arguments and errors: see `Recurrent`.
    """

    num_gates = 3
    weights_type = GRUWeights

    def _biases(self) -> dict[str, Array]:
        return super()._biases() | {"recurrent_bias": jnp.zeros(self.hidden_features)}

    def _step(self) -> Callable[..., Any]:
        return gru_step


_RNN_STEPS: dict[str, Callable[..., Any]] = {
    "tanh": rnn_step,
    "relu": partial(rnn_step, activation=jax.nn.relu),
}


class RNN(Recurrent):
    """Simple recurrent network (Elman 1990); equation in `rnn_step`.

    `activation` is "tanh" or "relu". Biases start at 0. Other arguments and errors: see
    `Recurrent`.
    """

    num_gates = 1
    weights_type = RNNWeights

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        activation: Literal["tanh", "relu"] = "tanh",
        **options: Any,
    ):
        if activation not in _RNN_STEPS:
            raise ValueError(f"activation must be 'tanh' or 'relu', got {activation!r}")
        super().__init__(in_features, hidden_features, **options)
        self.activation = activation

    def _step(self) -> Callable[..., Any]:
        return _RNN_STEPS[self.activation]


def _check_padding(padding: Padding) -> None:
    if padding not in ("right", "left"):
        raise ValueError(f"padding must be 'right' or 'left', got {padding!r}")


# A scan called eagerly compiles anew at every call, unless a stable function is jitted around it.
@partial(jax.jit, static_argnames="step")
def _scan(
    step: Callable[..., Any], weights: list[Any], initial: Any, x: Array, valid: Array | None
) -> Recurrence:
    """Run one layer over one example (T, D); `weights` has one entry for each direction."""

    def advance(weights: Any, state: Any, now: tuple[Array, Array | None]) -> tuple[Any, Array]:
        x, valid = now
        if valid is None:
            state = step(weights, state, x)
            return state, jax.tree.leaves(state)[0]  # hidden comes first
        # The input too: a NaN in a step whose result is thrown away still reaches the gradient.
        new = step(weights, state, jnp.where(valid, x, 0))
        state = jax.tree.map(lambda new, old: jnp.where(valid, new, old), new, state)
        return state, jnp.where(valid, jax.tree.leaves(state)[0], 0)

    # A scan for each direction, the product with the input inside of it. With x @ kernel ahead of
    # the loop, or both directions in one scan, nothing was faster on a CPU (see `_affine`).
    outputs, finals = [], []
    for direction, reverse in zip(weights, (False, True), strict=False):
        body = partial(advance, direction)
        state, hidden = jax.lax.scan(body, initial, (x, valid), reverse=reverse)
        outputs.append(hidden)
        finals.append(jax.tree.leaves(state)[0])
    return Recurrence(jnp.concatenate(outputs, axis=1), jnp.concatenate(finals))
