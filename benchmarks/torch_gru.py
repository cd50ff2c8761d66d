"""The networks of State in torch, with the weights of jaxattn's."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.cells import Work


def gru(weights: Sequence[np.ndarray]) -> Any:
    """Return a GRU of torch from kernel, recurrent, bias and recurrent bias, in jaxattn's order."""
    import torch

    kernel, recurrent, bias, recurrent_bias = (torch.tensor(array) for array in weights)
    units = len(recurrent)
    layer = torch.nn.GRU(len(kernel), units, batch_first=True)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(kernel.T)
        layer.weight_hh_l0.copy_(recurrent.T)
        layer.bias_ih_l0.copy_(bias)
        layer.bias_hh_l0.zero_()[2 * units :] = recurrent_bias
    return layer


def linear(kernel: np.ndarray, bias: np.ndarray) -> Any:
    """Return a linear layer of torch from a kernel (D, K) and a bias (K,)."""
    import torch

    layer = torch.nn.Linear(*kernel.shape)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(kernel).T)
        layer.bias.copy_(torch.tensor(bias))
    return layer


def classifier(work: Work) -> Any:
    """Return the classifier of a work: from series, and states, to logits (B, T, 1) and states."""
    import torch

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = gru(work.weights["forward"]), linear(*work.weights["head"])

        def forward(self, xs: Any, states: Any = None) -> Any:
            outputs, last = self.gru(xs, states)
            return self.head(outputs), last

    return Classifier().requires_grad_(False)
