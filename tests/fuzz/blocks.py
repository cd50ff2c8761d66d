"""Random blocks of networks: maps of (T, D) to (T, D).

A block is drawn from random numbers, and returns a function of the forms of operations (see
`forms`) and the input.
"""

import jax
import jax.numpy as jnp
import numpy as np
from draws import SOFTMAXES, Block
from layers import (
    bilinear_unit,
    convolution,
    dense,
    gated_unit,
    highway,
    layout,
    mask,
    maxout,
    mixing,
    norm,
    perceptron,
    pooling,
    selection,
)
from loops import gated_recurrence, linear_recurrence, recurrence, written_loop


def attention(draw):
    """Attention of one or several heads, with or without a mask, in several ways to write it."""
    heads, size = int(draw.rng.integers(1, 3)), 3
    query, key, value = (draw.weight(draw.width, heads * size) for _ in range(3))
    last = draw.dense(inputs=heads * size)
    score_name, softmax = draw.pick(**SOFTMAXES)
    causal = jnp.asarray(np.tril(np.ones((draw.length, draw.length), bool)))[None]
    mask_name, masked = draw.pick(
        none=lambda z: z,
        causal=lambda z: jnp.where(causal, z, -jnp.inf),
        finite=lambda z: jnp.where(causal, z, -1e9),
        bias=lambda z: z - 0.1 * jnp.arange(draw.length)[None, None].astype(z.dtype),
    )

    def apply(forms, x):
        q, k, v = (
            (x @ w).reshape(draw.length, heads, size).swapaxes(0, 1) for w in (query, key, value)
        )
        scores = forms.contraction(lambda q, k: q @ k.swapaxes(1, 2), q, k) / np.sqrt(size)
        weights = forms.weights(softmax(masked(scores), axis=-1))
        mixed = forms.contraction(jnp.matmul, weights, v)
        return last(mixed.swapaxes(0, 1).reshape(draw.length, heads * size))

    return Block(f"attention({score_name}, mask={mask_name}, heads={heads})", apply)


def additive_attention(draw):
    """Weights of time steps by a small network, times the steps."""
    hidden, vector = draw.dense(), draw.weight(draw.width, 1)
    score_name, softmax = draw.pick(**SOFTMAXES)
    valid = jnp.asarray(np.arange(draw.length) < draw.length - 1)[:, None]
    masked = bool(draw.rng.random() < 0.5)

    def apply(forms, x):
        scores = forms.activation(jnp.tanh, hidden(x)) @ vector
        scores = jnp.where(valid, scores, -1e9) if masked else scores
        weights = forms.weights(softmax(scores, axis=0))
        context = forms.contraction(lambda a, x: a.T @ x, weights, x)
        return x + context

    return Block(f"additive_attention({score_name}, masked={masked})", apply)


# Blocks of blocks.


def residual(draw):
    inner = random_block(draw)
    return Block(f"residual({inner.name})", lambda forms, x: x + inner.apply(forms, x))


def joined(draw):
    """Two blocks, concatenated and projected."""
    first, second = random_block(draw), random_block(draw)
    layer = draw.dense(inputs=2 * draw.width)

    def apply(forms, x):
        both = [first.apply(forms, x), second.apply(forms, x)]
        return layer(jnp.concatenate(both, axis=-1))

    return Block(f"joined({first.name}, {second.name})", apply)


def reversed_block(draw):
    inner = random_block(draw)
    return Block(f"reversed({inner.name})", lambda forms, x: inner.apply(forms, x[::-1])[::-1])


def recomputed(draw):
    inner = random_block(draw)
    return Block(
        f"recomputed({inner.name})",
        lambda forms, x: jax.checkpoint(lambda x: inner.apply(forms, x))(x),
    )


def vectorised(draw):
    """A block on two copies of the series, one of them scaled, that are averaged."""
    inner = random_block(draw)

    def apply(forms, x):
        copies = jnp.stack([x, 0.5 * x])
        return jax.vmap(lambda x: inner.apply(forms, x))(copies).mean(0)

    return Block(f"vectorised({inner.name})", apply)


SIMPLE = [
    dense, perceptron, gated_unit, selection, bilinear_unit, highway, maxout, norm, norm, mixing,
    convolution, pooling, layout, layout, mask, recurrence, recurrence, gated_recurrence,
    gated_recurrence, linear_recurrence, linear_recurrence, written_loop, attention, attention,
    additive_attention,
]  # fmt: skip
NESTED = [residual, residual, joined, reversed_block, recomputed, vectorised]


def random_block(draw, nested=False):
    """Return a random block, or with `nested` perhaps a block of blocks."""
    makers = NESTED if nested and draw.rng.random() < 0.35 else SIMPLE
    return makers[draw.rng.integers(len(makers))](draw)
