"""Test operation counts against counts by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxattn.jaxpr.flops import count_flops


def flops(fn, *shapes):
    return count_flops(jax.make_jaxpr(fn)(*(jnp.zeros(shape) for shape in shapes)))


def lstm_step(w, state, x):
    h, c = state
    i, f, g, o = jnp.split(jnp.concatenate([x, h]) @ w, 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def lstm(w, h, xs):
    return lax.scan(partial(lstm_step, w), (h, h), xs)


@pytest.mark.parametrize(
    ("fn", "shapes", "expected"),
    [
        (jnp.dot, [(3,), (3,)], 2 * 3),
        (jnp.matmul, [(2, 3), (3, 5)], 2 * 2 * 3 * 5),
        (jnp.matmul, [(7, 2, 3), (7, 3, 5)], 7 * 2 * 2 * 3 * 5),
        (partial(jnp.einsum, "abcd,cdae->be"), [(2, 3, 4, 5), (4, 5, 2, 6)], 2 * 3 * 6 * 2 * 4 * 5),
        (jnp.tanh, [(4, 5)], 20),
        (jnp.add, [(4, 5), (4, 5)], 20),
        (jnp.sum, [(4, 5)], 20),
        (partial(jnp.max, axis=0), [(4, 5)], 20),
        (partial(jnp.argmax, axis=0), [(4, 5)], 20),
        (partial(jnp.cumsum, axis=0), [(4, 5)], 20),
        (lambda x: lax.reduce_precision(x, 8, 7), [(4, 5)], 20),
        (lambda x: x.at[0].add(x[1]), [(4, 5)], 5),
        (lambda x: lax.reduce(x, 0.0, lambda a, b: a + b * b, (0,)), [(4, 5)], 20),
        (lambda x: x.T.reshape(2, 10)[:, ::2].astype(jnp.bfloat16)[::-1], [(4, 5)], 0),
        (lambda x: jnp.concatenate([jnp.pad(x, 1)[1:-1, 1:-1], x]), [(4, 5)], 0),
    ],
)
def test_one_primitive(fn, shapes, expected):
    assert flops(fn, *shapes).total == expected


def test_convolution():
    conv = partial(lax.conv_general_dilated, window_strides=(1, 1), padding="VALID")
    # (batch, output channels, height, width) of the output times the kernel of one channel.
    assert flops(conv, (2, 6, 8, 8), (4, 6, 3, 3)).total == 2 * (2 * 4 * 6 * 6) * (6 * 3 * 3)
    grouped = partial(conv, feature_group_count=3)
    assert flops(grouped, (2, 6, 8, 8), (9, 2, 3, 3)).total == 2 * (2 * 9 * 6 * 6) * (2 * 3 * 3)
    channels_last = partial(conv, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert flops(channels_last, (1, 5, 7, 2), (3, 2, 2, 4)).total == 2 * (4 * 3 * 6) * (2 * 3 * 2)


def test_pooling_costs_its_window_forward_and_backward():
    def pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID")

    assert flops(pool, (4, 6)).total == 6 * 4
    backward = flops(lambda x, ct: jax.vjp(pool, x)[1](ct), (4, 6), (2, 3)).by_primitive
    assert backward["select_and_scatter_add"] == 6 * 4


def test_lstm_scan():
    steps, inputs, units = 11, 3, 5
    counted = flops(lstm, (inputs + units, 4 * units), (units,), (steps, inputs))
    by_hand = {
        "dot_general": 2 * (inputs + units) * 4 * units,
        "logistic": 3 * units,
        "tanh": 2 * units,
        "mul": 3 * units,
        "add": units,
    }
    assert counted.by_primitive == {name: steps * n for name, n in by_hand.items()}
    assert next(iter(counted.by_primitive)) == "dot_general"
    assert counted.total == steps * sum(by_hand.values())
    assert not counted.unbounded


def test_every_scan_step_is_counted_unlike_xla():
    def scan(x, w, length):
        return lax.scan(lambda h, _: (w @ h, None), x, length=length)[0]

    x, w = jnp.zeros((4, 4)), jnp.zeros((4, 4))
    counts, xla = [], []
    for length in (2, 64):
        fn = partial(scan, length=length)
        counts.append(flops(fn, x.shape, w.shape).total)
        xla.append(jax.jit(fn).lower(x, w).compile().cost_analysis()["flops"])
    assert counts == [2 * 2 * 4**3, 64 * 2 * 4**3]
    assert xla[1] < 2 * xla[0]


def test_nested_scans_multiply():
    def inner(c, _):
        return jnp.sin(c), None

    def outer(c, _):
        return lax.scan(inner, c, length=3)[0] + 1.0, None

    counted = flops(lambda x: lax.scan(outer, x, length=5)[0], (7,))
    assert counted.by_primitive == {"sin": 5 * 3 * 7, "add": 5 * 7}


def test_cond_costs_its_most_expensive_branch():
    branches = [jnp.sin, lambda x: x @ x, jnp.cos]
    counted = flops(lambda i, x: lax.switch(i.astype(int), branches, x), (), (3, 3))
    assert counted.by_primitive == {"dot_general": 2 * 27, "clamp": 1}


def test_while_is_counted_once_and_marked_unbounded():
    def loop(x):
        return lax.while_loop(lambda x: x[0] < 1.0, jnp.sin, x)

    counted = flops(lambda x: lax.scan(lambda c, _: (loop(c), None), x, length=3)[0], (7,))
    assert counted.by_primitive == {"sin": 3 * 7, "lt": 3}
    assert counted.unbounded
    # JAX traces a loop of known length as a scan.
    known = flops(lambda x: lax.fori_loop(0, 9, lambda _, x: jnp.sin(x), x), (7,))
    assert known.by_primitive["sin"] == 9 * 7
    assert not known.unbounded


def custom_jvp(fn):
    wrapped = jax.custom_jvp(fn)
    wrapped.defjvp(lambda x, t: (fn(*x), jnp.cos(*x) * t[0]))
    return wrapped


def custom_vjp(fn):
    wrapped = jax.custom_vjp(fn)
    wrapped.defvjp(lambda x: (fn(x), x), lambda x, ct: (jnp.cos(x) * ct,))
    return wrapped


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, custom_jvp, custom_vjp])
def test_calls_cost_their_body(wrap):
    assert flops(wrap(jnp.sin), (7,)).by_primitive == {"sin": 7}
    assert flops(jax.grad(lambda x: wrap(jnp.sin)(x).sum()), (7,)).by_primitive["cos"] == 7


def test_linear_solve_costs_one_solve():
    def solve(matvec, b):
        return matvec(b) * 3.0

    def fn(x, b):
        return lax.custom_linear_solve(lambda v: x @ v, b, solve, symmetric=True)

    assert flops(fn, (4, 4), (4,)).by_primitive == {"dot_general": 2 * 16, "mul": 4}


def test_shard_map_costs_all_devices():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharded = jax.shard_map(jnp.sin, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    replicas = 2
    assert flops(sharded, (8, 3)).by_primitive == {"sin": replicas * 8 * 3}
    manual = jax.shard_map(
        jnp.sin, mesh=mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"}
    )
    assert flops(manual, (8, 3)).by_primitive == {"sin": 8 * 3}


def test_vmap_multiplies_and_grad_adds():
    def fn(w, x):
        return jnp.tanh(w @ x).sum()

    single = flops(fn, (5, 3), (3,))
    assert flops(jax.vmap(fn, (None, 0)), (5, 3), (9, 3)).total == 9 * single.total
    backwards = flops(jax.grad(fn, (0, 1)), (5, 3), (3,))
    # The forward product, the outer product for w and the transposed product for x.
    assert backwards.by_primitive["dot_general"] == 3 * single.by_primitive["dot_general"]


def test_unknown_primitive_costs_its_output():
    assert flops(jax.lax.linalg.cholesky, (4, 4)).by_primitive["cholesky"] == 16


def test_non_jaxpr_raises():
    with pytest.raises(TypeError, match=r"^`closed_jaxpr` must be a jaxpr, .*got ArrayImpl"):
        count_flops(jnp.zeros(3))
