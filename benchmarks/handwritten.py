"""The explanations as a good user of JAX writes them by hand: an LSTM, `vmap`, `grad`, `lax.map`.

Each is one jitted function of weights, examples and classes, with one number to tune: how much goes
through the network at once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.cells import Cell, Network

Weights = dict[str, tuple[jax.Array, ...]]


def lstm(weights: tuple[jax.Array, ...], xs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The last hidden state (H,) and all of them (T, H), from one series (T, D)."""
    kernel, recurrent, bias = weights

    def step(carry: Any, projected: jax.Array) -> Any:
        hidden, cell = carry
        i, f, g, o = jnp.split(projected + hidden @ recurrent, 4)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    zeros = jnp.zeros(recurrent.shape[0], xs.dtype)
    (last, _), every = lax.scan(step, (zeros, zeros), xs @ kernel + bias)
    return last, every


def logits(network: Network, weights: Weights, x: jax.Array) -> jax.Array:
    """The output (K,), or (T, K) with one for each step, from one series (T, D)."""
    kernel, bias = weights["head"]
    last, every = lstm(weights["forward"], x)
    if network.per_step:
        return every @ kernel + bias
    if network.bidirectional:
        last = jnp.concatenate([last, lstm(weights["backward"], x[::-1])[0]])
    return last @ kernel + bias


def saliency(cell: Cell, chunk: int) -> Callable[..., jax.Array]:
    """|gradient| of each example's class; `chunk` examples at once."""

    def explain(weights: Weights, xs: jax.Array, targets: jax.Array) -> jax.Array:
        def one(example: Any) -> jax.Array:
            x, target = example
            return jnp.abs(jax.grad(lambda x: logits(cell.network, weights, x)[target])(x))

        return lax.map(one, (xs, targets), batch_size=chunk)

    return explain


def jacobian(cell: Cell, chunk: int) -> Callable[..., jax.Array]:
    """The derivative of every output; `chunk` examples at once."""

    def explain(weights: Weights, xs: jax.Array, targets: None) -> jax.Array:
        one = jax.jacrev(lambda x: logits(cell.network, weights, x))
        return lax.map(one, xs, batch_size=chunk)

    return explain


def temporal_jacobian(cell: Cell, chunk: int) -> Callable[..., jax.Array]:
    """The derivative of every step's output; `chunk` of the outputs are pulled back at once."""

    def explain(weights: Weights, xs: jax.Array, targets: None) -> jax.Array:
        def one(x: jax.Array) -> jax.Array:
            output, pullback = jax.vjp(lambda x: logits(cell.network, weights, x), x)
            seeds = jnp.eye(output.size, dtype=x.dtype).reshape(-1, *output.shape)
            rows = lax.map(lambda seed: pullback(seed)[0], seeds, batch_size=chunk)
            return rows.reshape(*output.shape, *x.shape)

        return jax.vmap(one)(xs)

    return explain


def occlusion(cell: Cell, chunk: int) -> Callable[..., jax.Array]:
    """What each window is worth, averaged over the windows of a number; `chunk` windows at once."""
    masks = jnp.asarray(cell.masks())

    def explain(weights: Weights, xs: jax.Array, targets: jax.Array) -> jax.Array:
        def scores(xs: jax.Array) -> jax.Array:
            return jax.vmap(lambda x, k: logits(cell.network, weights, x)[k])(xs, targets)

        occluded = lax.map(lambda m: scores(jnp.where(m, 0, xs)), masks, batch_size=chunk)
        drops = scores(xs) - occluded
        covers = masks.astype(xs.dtype)
        return jnp.einsum("wb,wtd->btd", drops, covers) / covers.sum(0)

    return explain


def integrated_gradients(cell: Cell, chunk: int) -> Callable[..., jax.Array]:
    """The mean gradient on the way from zero, times the input; `chunk` midpoints at once."""
    alphas = (jnp.arange(cell.num_steps) + 0.5) / cell.num_steps

    def explain(weights: Weights, xs: jax.Array, targets: jax.Array) -> jax.Array:
        slope = jax.grad(lambda x, k: logits(cell.network, weights, x)[k])
        slopes = lax.map(lambda a: jax.vmap(slope)(a * xs, targets), alphas, batch_size=chunk)
        return xs * slopes.mean(0)

    return explain


def chunked(cell: Cell) -> tuple[Callable[[Cell, int], Callable[..., jax.Array]], int]:
    """The function that builds a cell's explanation, and the largest chunk that it can use."""
    if cell.network.per_step:
        return temporal_jacobian, cell.network.steps * cell.network.classes
    return {
        "jacobian": (jacobian, cell.batch),
        "saliency": (saliency, cell.batch),
        "occlusion": (occlusion, cell.windows),
        "integrated_gradients": (integrated_gradients, cell.num_steps),
    }[cell.method]
