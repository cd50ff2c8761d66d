"""Measure the limit of a cell's speed: matrix products and nonlinearities of its size."""

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cells import Cell

ROWS = {"cpu": 512, "gpu": 16384, "tpu": 16384}  # of a product, as in a good chunk
SECONDS = 0.3  # measured per library; the best call counts
NONLINEAR = ("tanh", "logistic", "exp")


class Limit(NamedTuple):
    """The limits of a cell's speed.

    Attributes:
        product: flop/s of a step's matrix product in the fastest library.
        libraries: flop/s of each library.
        nonlinear: tanh/s on an array of the size of a step's gates.
    """

    product: float
    libraries: dict[str, float]
    nonlinear: float

    def seconds(self, flops: int) -> float:
        """Return the time of this many operations as matrix products."""
        return flops / self.product


def measure(cell: Cell, platform: str) -> Limit:
    """Measure the best time of products (rows, D + H) by (D + H, 4H) and of tanh (rows, 4H).

    A GRU has 3 gates instead of 4.
    """
    net, rows = cell.network, ROWS[platform]
    width, gates = net.features + net.units, net.gates * net.units
    rng = np.random.default_rng(0)
    a = rng.normal(size=(rows, width)).astype(np.float32)
    b = rng.normal(size=(width, gates)).astype(np.float32)
    calls = {"JAX": _jax_product(a, b)}
    if platform == "cpu":
        out = np.empty((rows, gates), np.float32)
        calls["numpy"] = lambda: np.matmul(a, b, out=out)
    torch_call = _torch_product(a, b, platform)
    if torch_call is not None:
        calls["torch"] = torch_call
    flops = 2 * rows * width * gates
    libraries = {name: flops / _best(call) for name, call in calls.items()}
    z = jnp.asarray(rng.normal(size=(rows, gates)), jnp.float32)
    tanh = jax.jit(jnp.tanh)
    nonlinear = z.size / _best(lambda: tanh(z).block_until_ready())
    return Limit(max(libraries.values()), libraries, nonlinear)


def nonlinearities(by_primitive: dict[str, int]) -> int:
    """Return the number of tanh, sigmoids and exponentials of a program."""
    return sum(by_primitive.get(name, 0) for name in NONLINEAR)


def _jax_product(a: np.ndarray, b: np.ndarray) -> Callable[[], Any]:
    product, left, right = jax.jit(jnp.matmul), jnp.asarray(a), jnp.asarray(b)
    return lambda: product(left, right).block_until_ready()


def _torch_product(a: np.ndarray, b: np.ndarray, platform: str) -> Callable[[], Any] | None:
    try:
        import torch
    except ImportError:
        return None
    if platform == "tpu" or (platform == "gpu" and not torch.cuda.is_available()):
        return None
    where = "cuda" if platform == "gpu" else "cpu"
    left, right = torch.tensor(a, device=where), torch.tensor(b, device=where)
    out = torch.empty(len(a), b.shape[1], device=where)

    def product() -> None:
        torch.mm(left, right, out=out)
        if platform == "gpu":
            torch.cuda.synchronize()

    return product


def _best(call: Callable[[], Any]) -> float:
    call()
    seconds: list[float] = []
    while sum(seconds) < SECONDS or len(seconds) < 3:
        start = perf_counter()
        call()
        seconds.append(perf_counter() - start)
    return min(seconds)
