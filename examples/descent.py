"""Gradient descent on a loss function of a network."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from examples.training import bar


def descend(
    model: nnx.Module,
    loss: Callable[..., Any],
    batches: Sequence[tuple[Any, ...]],
    *,
    learning_rate: float,
    seed: int = 0,
) -> None:
    """Minimise `loss(model, key, *batch)` by Adam with a cosine schedule.

    The step is compiled once for each shape of a batch. The model is updated in place.
    """
    graph, state = nnx.split(model)
    schedule = optax.cosine_decay_schedule(learning_rate, len(batches))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    @jax.jit
    def step(state, moments, key, batch):
        def loss_of(state):
            return loss(nnx.merge(graph, state), key, *batch)

        value, gradients = jax.value_and_grad(loss_of)(state)
        updates, moments = optimizer.update(gradients, moments, state)
        return optax.apply_updates(state, updates), moments, value

    moments, losses = optimizer.init(state), []
    with bar() as progress:
        task = progress.add_task("training", total=len(batches), note="")
        for i, batch in enumerate(batches):
            key = jax.random.fold_in(jax.random.key(seed), i)
            state, moments, value = step(state, moments, key, batch)
            losses.append(value)
            progress.advance(task)
            if i % 50 == 49:
                progress.update(task, note=f"loss {jnp.stack(losses[-50:]).mean():.3f}")
    nnx.update(model, state)
