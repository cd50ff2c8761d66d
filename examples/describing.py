"""Teaches a captioner, lets it speak, and measures where it looked."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxattn as ja
from examples.training import bar


class Taught(NamedTuple):
    """What became of the loss: its parts, (steps,), and the baseline of hard attention."""

    log_likelihood: np.ndarray
    penalty: np.ndarray
    entropy: np.ndarray
    baseline: np.ndarray


def teach(
    model: ja.models.Captioner,
    images: np.ndarray,
    ids: np.ndarray,
    *,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    penalty: float = 1.0,
    score_weight: float = 1.0,
    entropy_weight: float = 0.002,
    seed: int = 0,
) -> Taught:
    """Learns captions of pictures, integers up to 255, by Adam; updates the model in place."""
    graph, state = nnx.split(model)
    schedule = optax.warmup_cosine_decay_schedule(0, learning_rate, steps // 20 + 1, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def loss_of(state, images, ids, key, baseline):
        model = nnx.merge(graph, state)
        if model.hard:
            loss = ja.models.hard_caption_loss(
                model, images, ids, key=key, baseline=baseline,
                score_weight=score_weight, entropy_weight=entropy_weight,
            )  # fmt: skip
        else:
            loss = ja.models.soft_caption_loss(model, images, ids, penalty=penalty)
        return loss.value, loss

    @jax.jit
    def step(state, moments, baseline, images, ids, key):
        images = images.astype(jnp.float32) / 255
        slope, loss = jax.grad(loss_of, has_aux=True)(state, images, ids, key, baseline)
        updates, moments = optimizer.update(slope, moments, state)
        baseline = ja.models.moving_baseline(baseline, loss.log_likelihood)
        return optax.apply_updates(state, updates), moments, baseline, loss

    rng = np.random.default_rng(seed)
    kind = "hard" if model.hard else "soft"
    moments, baseline, history = optimizer.init(state), jnp.zeros(()), []
    order = np.concatenate([
        rng.permutation(len(images)) for _ in range(-(-steps * batch_size // len(images)))
    ])  # fmt: skip
    with bar() as progress:
        task = progress.add_task(f"teaching {kind} attention", total=steps, note="")
        for i in range(steps):
            rows = order[i * batch_size : (i + 1) * batch_size]
            key = jax.random.fold_in(jax.random.key(seed), i)
            state, moments, baseline, loss = step(
                state, moments, baseline, images[rows], ids[rows], key
            )
            history.append((*loss[1:], baseline))
            progress.advance(task)
            if i % 20 == 19:
                recent = np.mean([h[0] for h in history[-20:]])
                progress.update(task, note=f"log p {recent:.2f}")
    nnx.update(model, state)
    return Taught(*np.array(history, np.float32).T)
