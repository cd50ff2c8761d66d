"""Runs with changed rows recompute only what changes, and equal full runs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from reuse_reference import ACROSS, RNG, SHORT, TABLE, WIDE, D, H, T, U, V, W, X, check_reuse

from jaxattn.jaxpr.reuse.extents import UNCHANGED, Rows
from jaxattn.jaxpr.reuse.incremental import run_changed, run_clean
from jaxattn.jaxpr.reuse.reuse_plan import Traced, plan_reuse

pytestmark = pytest.mark.usefixtures("x64")


def rnn(xs, h=None, **options):
    """Return the last state and all states of a tanh network."""

    def advance(h, x):
        h = jnp.tanh(x @ W + h @ U)
        return h, h

    return lax.scan(advance, jnp.zeros(H) if h is None else h, xs, **options)


def lstm(xs):
    def advance(state, x):
        h, c = state
        i, f = jax.nn.sigmoid(x @ W + h @ U), jax.nn.sigmoid(h @ U - x @ W)
        c = f * c + i * jnp.tanh(x @ W)
        return (i * jnp.tanh(c), c), (h, i)

    return lax.scan(advance, (jnp.zeros(H), jnp.ones(H)), xs)


def counters(xs):
    """One counter affects changed values, one only unchanged values; one carry is a constant."""

    def advance(carry, x):
        n, m, h, _ = carry
        h = jnp.tanh(h @ U + x @ W * jnp.cos(n))
        return (n + 1.0, m * 0.5 + n, h, 2.0), (m, x * n, n * 2, 3.0, h[0])

    return lax.scan(advance, (0.0, 1.0, jnp.ones(H), 1.0), xs)


def shift_register(xs):
    """The carries are the last two inputs, unchanged, and two states that swap places."""

    def advance(carry, x):
        last, before, a, b = carry
        return (x, last, b + before.sum(), a * 0.5), (before, a)

    zero = jnp.zeros(D)
    return lax.scan(advance, (zero, zero, 0.0, 1.0), xs)


def no_carry_changes(xs):
    def advance(n, x):
        return n + 1.0, (jnp.tanh(x @ W) * n, n, x)

    return lax.scan(advance, 0.0, xs)


def encoder_decoder(xs):
    state, outputs = rnn(xs)

    def decode(carry, _):
        h, y = carry
        weights = jax.nn.softmax(outputs @ h)
        h = jnp.tanh(weights @ outputs + y @ U)
        return (h, h * 0.5), h

    return lax.scan(decode, (state, jnp.zeros(H)), None, length=4)[1]


def nested(xs):
    def advance(h, x):
        inner = lax.scan(lambda c, v: (jnp.tanh(c + v), c), h.sum(), x)
        return jnp.tanh(h @ U + inner[0] + inner[1].sum()), inner[1]

    return lax.scan(advance, jnp.zeros(H), xs)


def dense_inside(xs):
    """The input is also a constant of the scan: all steps change."""
    return lax.scan(lambda h, x: (jnp.tanh(h @ U + x @ W + xs.sum()), h), jnp.zeros(H), xs)


def shared(xs):
    """Apply one network to its own outputs, with the same weights in both directions."""
    up = rnn(xs)[1]
    down = rnn(up, reverse=True)[1]
    return rnn(jnp.tanh(up + down) @ U)[0]


def while_loop(xs):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, rnn(xs)[1]))


def branches(xs):
    h = rnn(xs)[0]
    return lax.cond(h[0] > 0, jnp.sin, jnp.cos, h), lax.cond(True, lambda x: x * 2, lambda x: x, xs)


def masked(xs):
    """Padding after 6 steps."""
    valid = np.arange(T) < 6

    def advance(h, inputs):
        x, ok = inputs
        return jnp.where(ok, jnp.tanh(x @ W + h @ U), h), h

    return lax.scan(advance, jnp.zeros(H), (xs, valid))


def dropout(xs):
    """One random key is carried, another one is not."""

    def advance(carry, x):
        key, h = carry
        key, draw = jax.random.split(key)
        keep = jax.random.bernoulli(draw, 0.7, (H,))
        return (key, jnp.tanh(jnp.where(keep, x @ W, 0) + h @ U)), h

    (_, h), ys = lax.scan(advance, (jax.random.key(0), jnp.zeros(H)), xs)
    return h, ys


@jax.custom_vjp
def scaled(x):
    """Not elementwise: the call of the custom rule is inlined."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


scaled.defvjp(lambda x: (scaled(x), x), lambda x, ct: (ct,))


def transformer(xs):
    q, k, v = xs @ W, xs @ U, xs
    rows = jax.nn.softmax(q @ k.T) @ v
    return jax.nn.layer_norm(rows + xs) if hasattr(jax.nn, "layer_norm") else rows + xs


def windows(xs):
    """Concatenate each step with the previous one."""
    before = jnp.pad(xs, ((1, 0), (0, 0)))[:-1]
    return rnn(jnp.concatenate([xs, before])), rnn(xs * before)


SAVING = {
    "rnn": lambda x: rnn(x)[0],
    "rnn steps": lambda x: rnn(x)[1],
    "rnn reversed": lambda x: rnn(x, reverse=True),
    "rnn unrolled": lambda x: rnn(x, unroll=4),
    "lstm": lstm,
    "lstm stacked": lambda x: lstm(jnp.tanh(lstm(x)[1][0])),
    "bidirectional": lambda x: (
        jnp.concatenate([rnn(x)[1], rnn(x, reverse=True)[1]], 1) @ U[[0] * 6]
    ),
    "bidirectional, stacked": lambda x: rnn(rnn(x)[1] + rnn(x, reverse=True)[1], reverse=True)[0],
    "counters": counters,
    "shift register": shift_register,
    "no carry moves": no_carry_changes,
    "encoder and decoder": encoder_decoder,
    "nested": nested,
    "masked": masked,
    "dropout": dropout,
    "shared weights": shared,
    "windows": windows,
    "last step": lambda x: jnp.tanh(rnn(x)[1][-1]) @ V,
    "early step": lambda x: jnp.tanh(rnn(x)[1][3]) @ V,
    "mean": lambda x: rnn(x)[1].mean(0),
    "attention": lambda x: jax.nn.softmax(rnn(x)[1] @ U[0]) @ rnn(x)[1],
    "projected before": lambda x: lax.scan(lambda h, r: (jnp.tanh(r + h @ U), None), U[0], x @ W)[
        0
    ],
    "flipped before": lambda x: rnn(x[::-1]),
    "cut before": lambda x: (rnn(x[:5]), rnn(x[2:]), rnn(x[3:6])),
    "padded before": lambda x: rnn(jnp.pad(x, ((2, 3), (0, 0)), constant_values=0.5)),
    "rolled before": lambda x: rnn(jnp.roll(x, 2, axis=0)),
    "transposed before": lambda x: rnn(x.T.T),
    "another axis": lambda x: rnn(jnp.moveaxis(jnp.moveaxis(x[None], 1, 2), 2, 0)[:, 0]),
    "vmapped": lambda x: jax.vmap(lambda s: rnn(s * x)[0])(jnp.arange(2.0)),
    "rematerialised": jax.checkpoint(lambda x: rnn(x)[0]),
    "jitted": jax.jit(lambda x: jax.jit(rnn)(x)[1]),
    "custom rule": lambda x: rnn(scaled(jax.nn.relu(x) + 0.1))[0],
    "length from the input": lambda x: rnn(x, h=jnp.ones(H))[0] * x.shape[0],
}
# A function, a row whose change makes the whole loop run again, and the smallest relative cost:
# that of all operations, or of the loop without the products outside of it.
WHOLE = {
    "both ways at once": (
        lambda x: rnn(jnp.stack([x, x[::-1]], 1).reshape(T, 2 * D)[:, :D]), T - 1, 1.0
    ),
    "cumsum": (lambda x: rnn(jnp.cumsum(x, 0)), T - 1, 1.0),
    "constants change": (dense_inside, T - 1, 1.0),
    "start changes": (lambda x: rnn(x, h=x[4]), 4, 0.6),
    "start alone changes": (lambda x: rnn(jnp.ones((T, D)), h=x.sum(0)), T - 1, 0.6),
    "no rows": (
        lambda x: lax.scan(lambda h, _: (jnp.tanh(h @ U), h), x[2], None, length=4), 2, 1.0
    ),
    "length 1": (lambda x: (rnn(x[3:4]), rnn(x[:1], h=x[5], reverse=True)), 0, 0.5),
    "transformer": (transformer, T - 1, 0.8),
    "sorted": (lambda x: rnn(jnp.sort(x, 0)), T - 1, 1.0),
    "own gradient": (jax.grad(lambda x: rnn(x)[0].sum()), T - 1, 0.5),
}  # fmt: skip
OTHERS = {
    "length 0": lambda x: (rnn(x[:0], h=x[1]), rnn(x[:0])),
    "while": while_loop,
    "cond": branches,
    "no loop": lambda x: jnp.tanh(x @ W).sum(),
    "constant": lambda x: (jnp.zeros(2), 1.0, x),
}


@pytest.mark.representatives("rnn reversed", "lstm", "nested")
@pytest.mark.parametrize("name", SAVING)
def test_loops_start_at_the_first_change(name):
    costs = check_reuse(SAVING[name], X, SHORT, WIDE)
    assert costs[0] < 0.9, costs


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.representatives(
    "both ways at once", "transformer", "start changes", "sorted", "own gradient"
)
def test_loops_that_cannot_be_reused_are_computed_whole(name):
    fn, row, least = WHOLE[name]
    _, cost = check_reuse(fn, X, SHORT, [Rows(0, row, row + 1)])
    assert cost >= least


@pytest.mark.parametrize("name", OTHERS)
def test_functions_without_reuse_match(name):
    check_reuse(OTHERS[name], X, SHORT)


def test_tokens_are_embedded_by_row():
    ids = np.array([3, 0, 2, 4, 4, 1, 0, 2, 1])

    def fn(ids):
        return rnn(jnp.asarray(TABLE)[ids])[0]

    assert check_reuse(fn, ids, SHORT, WIDE)[0] < 0.8


def test_series_of_one_step():
    check_reuse(lambda x: (rnn(x), lstm(x)), X[:1], [Rows(0, 0, 1), UNCHANGED], [Rows(1, 0, 2)])


def test_non_finite_values_are_preserved():
    x = X.copy()
    x[4] = np.nan
    x[6, 1] = np.inf

    def fn(x):
        return rnn(x)[1], jnp.tanh(x), x.max(1)

    check_reuse(fn, x, SHORT, WIDE)


@pytest.mark.parametrize("dtype", [np.float32, "bfloat16"])
def test_dtypes_are_preserved(dtype):
    def fn(x):
        return lax.scan(lambda h, r: (jnp.tanh(h + r) * 0.5, h), jnp.zeros(D, x.dtype), x)

    check_reuse(fn, jnp.asarray(X, dtype), SHORT, rtol=1e-6 if dtype == np.float32 else 2e-2)


def test_changed_columns():
    def fn(x):
        return rnn(x), lstm(x), masked(x), counters(x), rnn(x[:, :1] * W[0, 0] @ W[:1])

    check_reuse(fn, X, ACROSS)


@pytest.mark.parametrize("fn", [lambda x: rnn(x)[1], lambda x: rnn(x, reverse=True)[1]])
def test_linear_functions_and_their_transposes(fn):
    """Inputs that are zero except in some rows, against whole inputs."""
    starts, width = (0, 3, 6), 3

    def whole(size, columns, lo):
        return jnp.zeros((T, size)).at[lo : lo + width].set(columns)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def pairs(x, ones):
        _, forward = jax.linearize(fn, x)
        backward = jax.linear_transpose(forward, x)
        compared = []
        for linear, size in ((forward, D), (lambda ct: backward(ct)[0], H)):
            zero = jnp.zeros((T, size))
            rows = [Rows(0, s, s + width) for s in starts]
            plan = plan_reuse(Traced.of(linear, zero), rows, linear=True)
            got = run_changed(plan, run_clean(plan, zero), list(ones))
            want = [linear(whole(size, one, s)) for s, one in zip(starts, ones, strict=True)]
            compared.append((got, jnp.stack(want)))
        return compared

    for got, want in pairs(X, RNG.normal(size=(3, width, D))):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
        assert np.abs(want).max() > 0.1
