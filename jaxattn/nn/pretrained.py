"""Conversion of recurrent weights of PyTorch and Keras."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from jaxattn.nn.recurrent import GRU, Recurrent

Layer = TypeVar("Layer", bound=Recurrent)
Weights = Shaped[np.ndarray, "..."] | Shaped[jnp.ndarray, "..."]


class _Cell(NamedTuple):
    """The arrays of one direction with two biases, in the gate order of `jaxattn.nn`."""

    kernel: np.ndarray
    recurrent: np.ndarray
    bias: np.ndarray
    recurrent_bias: np.ndarray


def from_torch(layer: Layer, state_dict: Mapping[str, Weights], prefix: str = "") -> Layer:
    """Set the weights of a layer, in place, to those of PyTorch's `nn.LSTM`, `nn.GRU` or `nn.RNN`.

    PyTorch's two biases are added where only their sum matters. Without biases (`bias=False`) the
    biases of the layer are set to zero.

    Args:
        layer: An `LSTM`, `GRU` or `RNN` of the same sizes, layers and directions.
        state_dict: Arrays by PyTorch's names, for G gates: `weight_ih_l0` (G*H, D), `weight_hh_l0`
            (G*H, H), `bias_ih_l0` and `bias_hh_l0` (G*H,); the same with `_reverse` for the
            backward direction, and `_l1`, ... for further layers. Other names are ignored.
        prefix: Prefix of these names, such as "encoder.".

    Returns:
        The same layer.

    Raises:
        ValueError: If an array is missing, has another shape, or does not belong to the layer. The
            layer is then unchanged.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> weights = {"weight_ih_l0": np.ones((16, 3)), "weight_hh_l0": np.ones((16, 4))}
        >>> lstm = ja.nn.from_torch(ja.nn.LSTM(3, 4, rngs=nnx.Rngs(0)), weights)
        >>> lstm.weights().kernel.shape
        (3, 16)
    """
    name = re.compile(re.escape(prefix) + r"(weight|bias)_[a-z]+_l\d+(_reverse)?")
    unused = {key for key in state_dict if name.fullmatch(key)}
    biased = any(key.startswith(f"{prefix}bias") for key in unused)
    cells = []
    for index, cell in enumerate(layer.cells):
        number, backward = divmod(index, 2) if layer.bidirectional else (index, 0)
        arrays = {
            "weight_ih": np.zeros(cell.kernel.shape[::-1]),
            "weight_hh": np.zeros(cell.recurrent.shape[::-1]),
            "bias_ih": np.zeros(cell.bias.shape),
            "bias_hh": np.zeros(cell.bias.shape),
        }
        for kind, zeros in arrays.items():
            if biased or kind.startswith("weight"):
                key = f"{prefix}{kind}_l{number}" + "_reverse" * backward
                if key not in state_dict:
                    raise ValueError(f"`state_dict` must hold {key!r}, of shape {zeros.shape}.")
                arrays[kind] = _checked(f"`state_dict[{key!r}]`", state_dict[key], zeros.shape)
                unused.discard(key)
        kernel, recurrent, bias, recurrent_bias = arrays.values()
        cells.append(_Cell(kernel.T, recurrent.T, bias, recurrent_bias))
    if unused:
        raise ValueError(
            f"`state_dict` must hold no other arrays of a recurrent layer, got {sorted(unused)}."
        )
    return _fill(layer, cells)


def from_keras(layer: Layer, weights: Sequence[Weights]) -> Layer:
    """Set the weights of a layer, in place, to those of a Keras `LSTM`, `GRU` or `SimpleRNN`.

    A GRU must have `reset_after=True`, the default of Keras. This cannot be checked for a GRU
    without biases.

    Args:
        layer: An `LSTM`, `GRU` or `RNN` of the same sizes and directions.
        weights: The result of `get_weights()` of the Keras layer, or of a `Bidirectional` around
            it: for each direction a kernel (D, G*H), a recurrent kernel (H, G*H) and, unless
            `use_bias=False`, a bias (G*H,), for a GRU (2, 3*H). For a layer with `num_layers` > 1
            the concatenated lists of as many Keras layers.

    Returns:
        The same layer.

    Raises:
        ValueError: If the number of arrays or the shape of an array differs. The layer is then
            unchanged.

    Examples:
        >>> import numpy as np
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> weights = [np.ones((3, 16)), np.ones((4, 16)), np.ones(16)]
        >>> lstm = ja.nn.from_keras(ja.nn.LSTM(3, 4, rngs=nnx.Rngs(0)), weights)
        >>> lstm.weights().kernel.shape
        (3, 16)
    """
    each, rest = divmod(len(weights), len(layer.cells))
    if rest or each not in (2, 3):
        raise ValueError(
            f"`weights` must hold 3 arrays (2 without biases) for each of the layer's "
            f"{len(layer.cells)} cells, got {len(weights)} arrays."
        )
    gru = isinstance(layer, GRU)
    # In Keras the update gate of a GRU precedes its reset gate.
    order = [1, 0, 2] if gru else range(layer.num_gates)
    cells = []
    for index, cell in enumerate(layer.cells):
        arrays = {
            "kernel": np.zeros(cell.kernel.shape),
            "recurrent kernel": np.zeros(cell.recurrent.shape),
            "bias of reset_after=True" if gru else "bias": np.zeros((1 + gru, *cell.bias.shape)),
        }
        for i, (name, zeros) in enumerate(list(arrays.items())[:each]):
            place = index * each + i
            shape = zeros.shape if gru or i < 2 else cell.bias.shape
            array = _checked(f"`weights[{place}]`, the {name},", weights[place], shape)
            gates = np.split(array, layer.num_gates, axis=-1)
            arrays[name] = np.concatenate([gates[g] for g in order], axis=-1)
        kernel, recurrent, bias = arrays.values()
        bias = bias.reshape(-1, *cell.bias.shape)
        cells.append(_Cell(kernel, recurrent, bias[0], bias[1] if gru else 0 * bias[0]))
    return _fill(layer, cells)


def _checked(name: str, value: Weights, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}.")
    return array


def _fill(layer: Layer, cells: list[_Cell]) -> Layer:
    """Set all weights after all checks, so that an error leaves the layer unchanged."""
    for cell, new in zip(layer.cells, cells, strict=True):
        dtype = cell.kernel.dtype
        cell.kernel[...] = jnp.asarray(new.kernel, dtype)
        cell.recurrent[...] = jnp.asarray(new.recurrent, dtype)
        bias = new.bias + new.recurrent_bias
        if isinstance(layer, GRU):
            split = 2 * layer.hidden_features
            bias[split:] = new.bias[split:]
            cell.recurrent_bias[...] = jnp.asarray(new.recurrent_bias[split:], dtype)
        cell.bias[...] = jnp.asarray(bias, dtype)
    return layer
