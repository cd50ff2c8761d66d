"""Hand-written explanations, as an experienced user of JAX writes them: `vmap`, `grad`, `lax.map`.

Each is a function of weights, examples and classes that can be compiled. It has two settings: the
number of evaluations at once, and the place of the input projection. The fastest setting depends
on the device and the method, so all are tried.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.cells import Cell, Network

Projection = Literal["before", "inside", "joined"]
"""Input projection: one product before the scan, one per step, or one per step with the state's."""

Weights = dict[str, tuple[jax.Array, ...]]


class Setting(NamedTuple):
    """The number of evaluations at once, and the input projection."""

    chunk: int
    projection: Projection

    def __str__(self) -> str:
        return f"{self.chunk}, {self.projection}"


def lstm(
    weights: tuple[jax.Array, ...], xs: jax.Array, projection: Projection
) -> tuple[jax.Array, jax.Array]:
    """Return the last hidden state (H,) and all hidden states (T, H) of one series (T, D)."""
    kernel, recurrent, bias = weights
    both = jnp.concatenate([kernel, recurrent])

    def project(hidden: jax.Array, x: jax.Array) -> jax.Array:
        if projection == "before":
            return x + hidden @ recurrent
        if projection == "inside":
            return x @ kernel + hidden @ recurrent + bias
        return jnp.concatenate([x, hidden]) @ both + bias

    def step(carry: Any, x: jax.Array) -> Any:
        hidden, cell = carry
        i, f, g, o = jnp.split(project(hidden, x), 4)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    zeros = jnp.zeros(recurrent.shape[0], xs.dtype)
    inputs = xs @ kernel + bias if projection == "before" else xs
    (last, _), every = lax.scan(step, (zeros, zeros), inputs)
    return last, every


def logits(network: Network, projection: Projection, weights: Weights, x: jax.Array) -> jax.Array:
    """Return the output (K,), or (T, K) with one per time step, of one series (T, D)."""
    kernel, bias = weights["head"]
    last, every = lstm(weights["forward"], x, projection)
    if network.per_step:
        return every @ kernel + bias
    if network.bidirectional:
        last = jnp.concatenate([last, lstm(weights["backward"], x[::-1], projection)[0]])
    return last @ kernel + bias


def saliency(cell: Cell, setting: Setting) -> Callable[..., jax.Array]:
    """Compute |gradient| of each example's class, a chunk of examples at once."""
    network = partial(logits, cell.network, setting.projection)

    def explain(weights: Weights, xs: jax.Array, targets: jax.Array) -> jax.Array:
        def one(example: Any) -> jax.Array:
            x, target = example
            return jnp.abs(jax.grad(lambda x: network(weights, x)[target])(x))

        return lax.map(one, (xs, targets), batch_size=setting.chunk)

    return explain


def jacobian(cell: Cell, setting: Setting) -> Callable[..., jax.Array]:
    """Compute the derivative of every output, a chunk of examples at once."""
    network = partial(logits, cell.network, setting.projection)

    def explain(weights: Weights, xs: jax.Array, targets: None) -> jax.Array:
        one = jax.jacrev(lambda x: network(weights, x))
        return lax.map(one, xs, batch_size=setting.chunk)

    return explain


def temporal_jacobian(cell: Cell, setting: Setting) -> Callable[..., jax.Array]:
    """Compute the derivative of every time step's output, a chunk of cotangents at once."""
    network = partial(logits, cell.network, setting.projection)

    def explain(weights: Weights, xs: jax.Array, targets: None) -> jax.Array:
        def one(x: jax.Array) -> jax.Array:
            output, pullback = jax.vjp(lambda x: network(weights, x), x)
            seeds = jnp.eye(output.size, dtype=x.dtype).reshape(-1, *output.shape)
            rows = lax.map(lambda seed: pullback(seed)[0], seeds, batch_size=setting.chunk)
            return rows.reshape(*output.shape, *x.shape)

        return jax.vmap(one)(xs)

    return explain


def occlusion(cell: Cell, setting: Setting) -> Callable[..., jax.Array]:
    """Compute occlusion, the mean over the windows of each feature, a chunk of windows at once."""
    masks = jnp.asarray(cell.masks())
    network = partial(logits, cell.network, setting.projection)

    def explain(weights: Weights, xs: jax.Array, targets: jax.Array) -> jax.Array:
        def scores(xs: jax.Array) -> jax.Array:
            return jax.vmap(lambda x, k: network(weights, x)[k])(xs, targets)

        occluded = lax.map(lambda m: scores(jnp.where(m, 0, xs)), masks, batch_size=setting.chunk)
        drops = scores(xs) - occluded
        covers = masks.astype(xs.dtype)
        return jnp.einsum("wb,wtd->btd", drops, covers) / covers.sum(0)

    return explain


def integrated_gradients(cell: Cell, setting: Setting) -> Callable[..., jax.Array]:
    """Compute integrated gradients from zero, a chunk of midpoints at once."""
    num_steps = cell.options["num_steps"]
    alphas = (jnp.arange(num_steps) + 0.5) / num_steps
    network = partial(logits, cell.network, setting.projection)

    def explain(weights: Weights, xs: jax.Array, targets: jax.Array) -> jax.Array:
        slope = jax.grad(lambda x, k: network(weights, x)[k])
        slopes = lax.map(
            lambda a: jax.vmap(slope)(a * xs, targets), alphas, batch_size=setting.chunk
        )
        return xs * slopes.mean(0)

    return explain


def is_written(cell: Cell) -> bool:
    """Return whether the method and the network of a cell are written by hand."""
    methods = "jacobian", "saliency", "occlusion", "integrated_gradients"
    return cell.method in methods and cell.network.gates == 4


def largest_chunk(cell: Cell) -> int:
    """Return the largest chunk size of a cell, in the unit of its setting."""
    if cell.network.per_step:
        return cell.network.steps * cell.network.classes
    return {
        "jacobian": cell.batch,
        "saliency": cell.batch,
        "occlusion": cell.windows,
        "integrated_gradients": cell.options.get("num_steps"),
    }[cell.method]


def build(cell: Cell, setting: Setting) -> Callable[..., jax.Array]:
    """Return the explanation of a cell: a function of weights, examples and targets."""
    if cell.network.per_step:
        return temporal_jacobian(cell, setting)
    every = (jacobian, saliency, occlusion, integrated_gradients)
    return {function.__name__: function for function in every}[cell.method](cell, setting)
