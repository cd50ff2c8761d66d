"""Each primitive, and random chains of primitives, recomputed where the input has changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from reuse_reference import ACROSS, SHORT, WIDE, D, T, W, X, check_reuse

pytestmark = pytest.mark.usefixtures("x64")


PRIMITIVES = {
    "broadcast": lambda x: (
        jnp.broadcast_to(x, (2, T, D)),
        jnp.broadcast_to(x[:, None], (T, 4, D)),
    ),
    "broadcast of one row": lambda x: jnp.broadcast_to(x[3:4], (T, D)),
    "concatenate": lambda x: (jnp.concatenate([x, x + 1, W]), jnp.concatenate([x, x[::-1]], 1)),
    "dot": lambda x: (x @ W, W.T @ x.T, x @ x.T, x.T @ x),
    "dot, batched": lambda x: (
        jnp.einsum("td,td->t", x, X),
        jnp.einsum("td,td->t", x, x),
        jnp.einsum("td,tde->te", x, jnp.ones((T, D, 2))),
        jnp.einsum("td,std->st", x, jnp.ones((2, T, D))),
    ),
    "dynamic slice": lambda x: (
        lax.dynamic_slice(x, (2, 1), (4, 2)),
        lax.dynamic_slice(x, (20, 0), (4, D)),
        lax.dynamic_slice(x, (jnp.argmax(x[:, 0]), 0), (2, D)),
        lax.dynamic_slice(x, (jnp.asarray(X[0, 0] > 5, int), 0), (T, 2)),
    ),
    "gather": lambda x: (x[jnp.array([0, 4, 4])], jnp.take(x, jnp.array([0, 2]), axis=1)),
    "pad": lambda x: (
        lax.pad(x, 0.5, ((1, 2, 0), (0, 1, 0))),
        lax.pad(x, 0.5, ((-1, 2, 0), (0, 0, 1))),
        lax.pad(x, 0.5, ((1, 0, 1), (-1, 0, 0))),
        lax.pad(x, x[0, 0], ((1, 2, 0), (0, 0, 0))),
    ),
    "reshape": lambda x: (
        x.reshape(T, 1, D),
        x.reshape(1, T, D),
        x.reshape(-1),
        x.reshape(3, 3, D),
        x.reshape(D, T),
        lax.reshape(x, (D, T), (1, 0)),
    ),
    "reverse": lambda x: (x[::-1], x[:, ::-1], x[::-1, ::-1]),
    "slice": lambda x: (x[1:], x[:-1], x[2:7, 1:], x[::2], x[:, ::2], x[3], x[:, 1]),
    "split": lambda x: (jnp.split(x, 3), jnp.split(x, 3, axis=1)),
    "squeeze": lambda x: (lax.squeeze(x[:, :1], (1,)), lax.squeeze(x[2:3], (0,))),
    "transpose": lambda x: (x.T, jnp.transpose(x[None], (2, 0, 1))),
    "reduce": lambda x: [
        f(x, axis=a)
        for f in (jnp.sum, jnp.max, jnp.min, jnp.prod, jnp.argmax, jnp.argmin)
        for a in (0, 1)
    ],
    "reduce truth": lambda x: (jnp.all(x > 0, 1), jnp.any(x > 0, 1), jnp.any(x > 0, 0)),
    "accumulate": lambda x: [
        f(x, axis=a) for f in (lax.cumsum, lax.cumprod, lax.cummax, lax.cummin) for a in (0, 1)
    ],
    "select": lambda x: (
        jnp.where(x > 0, x, 1.0),
        jnp.where(x[0, 0] > 0, x, x + 1),
        jnp.clip(x, -1, 1),
        lax.clamp(x[0, 0] * 0, x, 1.0),
    ),
    "rules of cells": lambda x: (jax.nn.relu(x), jax.nn.silu(x), jax.nn.gelu(x)),
    "cast": lambda x: (x.astype(jnp.float32), x > 0, jnp.isfinite(x), (x * 3).astype(int)),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_each_primitive(name):
    check_reuse(PRIMITIVES[name], X, SHORT, WIDE, ACROSS)


def random_program(seed):
    """Return a chain of primitives that depends on the seed alone; some values are reused."""

    def fn(x):
        rng = np.random.default_rng(seed)
        made = [x]
        for _ in range(rng.integers(3, 9)):
            v, kind = made[-1], rng.integers(13)
            if v.ndim == 0 or v.size > 300:
                break
            axis = int(rng.integers(v.ndim))
            size = v.shape[axis]
            at, to = int(rng.integers(size)), int(rng.integers(3))
            new = [
                lambda v: jnp.transpose(v, rng.permutation(v.ndim).tolist()),
                lambda v: v.reshape(-1, v.shape[-1]),
                lambda v, a=axis: jnp.flip(v, a),
                lambda v, a=axis, i=at, n=size: lax.slice_in_dim(v, i, n, axis=a),
                lambda v, a=axis: jnp.concatenate([v, jnp.sin(v)], a),
                lambda v, a=axis, n=to: jnp.roll(jnp.pad(v, 1), n, a),
                lambda v, n=to: jnp.broadcast_to(v, (n + 1, *v.shape)),
                lambda v: v @ rng.normal(size=(v.shape[-1], 2)),
                lambda v: jnp.tanh(v) + v,
                lambda v, a=axis: v.mean(a),
                lambda v, a=axis: jnp.cumsum(v, a),
                lambda v, a=axis: jnp.expand_dims(v, a),
                lambda v, a=axis, i=at: lax.dynamic_slice_in_dim(v, i, 1, a),
            ][kind](v)
            old = made[rng.integers(len(made))]
            made.append(new + old if old.shape == new.shape else new)
        return made[-1], made[len(made) // 2]

    return fn


@pytest.mark.slow
@pytest.mark.representatives("0", "1")
@pytest.mark.parametrize("seed", range(8))
def test_random_programs(seed):
    def several(x):
        return [random_program(12 * seed + i)(x) for i in range(4)]

    check_reuse(several, X, WIDE, ACROSS)
