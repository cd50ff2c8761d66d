"""Weights from elsewhere: the layouts of PyTorch and Keras, rearranged into ours."""

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
    """One direction's arrays as both frameworks have them, but in our gate order."""

    kernel: np.ndarray
    recurrent: np.ndarray
    bias: np.ndarray
    recurrent_bias: np.ndarray


def from_torch(layer: Layer, state_dict: Mapping[str, Weights], prefix: str = "") -> Layer:
    """Fill a layer, in place, with the weights of PyTorch's `nn.LSTM`, `nn.GRU` or `nn.RNN`.

    PyTorch's two biases are added up where only their sum matters. Without biases (`bias=False`)
    ours become zero.

    Args:
        layer: an `LSTM`, `GRU` or `RNN` of the same sizes, layers and directions.
        state_dict: arrays by PyTorch's names, G gates: `weight_ih_l0` (G*H, D), `weight_hh_l0`
            (G*H, H), `bias_ih_l0` and `bias_hh_l0` (G*H,); the same with `_reverse` for the
            backward direction, and `_l1`, ... for further layers. Other names are ignored.
        prefix: what precedes those names, such as "encoder.".

    Returns:
        The same layer.

    Raises:
        ValueError: an array that is missing, has another shape, or has no place in the layer;
            the layer is then left as it was.
    """
    name = re.compile(re.escape(prefix) + r"(weight|bias)_[a-z]+_l\d+(_reverse)?")
    left = {key for key in state_dict if name.fullmatch(key)}
    biased = any(key.startswith(f"{prefix}bias") for key in left)
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
                    raise ValueError(f"state_dict lacks {key!r}, of shape {zeros.shape}")
                arrays[kind] = _checked(f"state_dict[{key!r}]", state_dict[key], zeros.shape)
                left.discard(key)
        kernel, recurrent, bias, recurrent_bias = arrays.values()
        cells.append(_Cell(kernel.T, recurrent.T, bias, recurrent_bias))
    if left:
        raise ValueError(f"the layer has no place for these arrays of state_dict: {sorted(left)}")
    return _fill(layer, cells)


def from_keras(layer: Layer, weights: Sequence[Weights]) -> Layer:
    """Fill a layer, in place, with the weights of a Keras `LSTM`, `GRU` or `SimpleRNN`.

    A GRU must have `reset_after=True`, Keras's default. (Without biases its arrays do not tell,
    and it is assumed.)

    Args:
        layer: an `LSTM`, `GRU` or `RNN` of the same sizes and directions.
        weights: what `get_weights()` of the Keras layer, or of a `Bidirectional` around it,
            returns: for each direction a kernel (D, G*H), a recurrent kernel (H, G*H) and, unless
            `use_bias=False`, a bias (G*H,), for a GRU (2, 3*H). For a layer with `num_layers` > 1
            the lists of that many Keras layers, one after another.

    Returns:
        The same layer.

    Raises:
        ValueError: another number of arrays, or an array of another shape; the layer is then left
            as it was.
    """
    each, rest = divmod(len(weights), len(layer.cells))
    if rest or each not in (2, 3):
        raise ValueError(
            f"weights must hold 3 arrays (2 without biases) for each of the layer's "
            f"{len(layer.cells)} cells, got {len(weights)} arrays"
        )
    gru = isinstance(layer, GRU)
    # Keras puts a GRU's update gate before its reset gate.
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
            array = _checked(f"weights[{place}], the {name},", weights[place], shape)
            gates = np.split(array, layer.num_gates, axis=-1)
            arrays[name] = np.concatenate([gates[g] for g in order], axis=-1)
        kernel, recurrent, bias = arrays.values()
        bias = bias.reshape(-1, *cell.bias.shape)
        cells.append(_Cell(kernel, recurrent, bias[0], bias[1] if gru else 0 * bias[0]))
    return _fill(layer, cells)


def _checked(name: str, value: Weights, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return array


def _fill(layer: Layer, cells: list[_Cell]) -> Layer:
    """Set all weights at once, so that a bad array leaves the layer as it was."""
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
