"""Test the division of work over devices, over examples and inside of an example."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attributions import close
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxattn as ja
from jaxattn.engine.explain import prepare

B, T, D, K = 3, 12, 2, 3
rng = np.random.default_rng(0)
X = rng.normal(size=(B, T, D)).astype(np.float32)
W = rng.normal(size=(D, K)).astype(np.float32)


def fn(x):
    def step(h, row):
        h = jnp.tanh(h + row @ jnp.asarray(W, row.dtype))
        return h, h

    return jax.lax.scan(step, jnp.zeros(K, x.dtype), x)[0]


def mesh(*shape):
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    return Mesh(devices, ("rows", "columns")[: len(shape)])


@pytest.mark.parametrize(
    "batch, devices, rows",
    [
        (1, 8, 1),  # all devices inside of the one example
        (2, 8, 2),
        (8, 8, 8),
        (16, 8, 8),
        (1000, 8, 8),
        (1001, 8, 8),
        (3, 2, 1),  # with two rows, one row would be idle half of the time
        (5, 4, 2),
        (4, 2, 2),
    ],
)
def test_devices_are_assigned_to_examples_first(batch, devices, rows):
    xs = np.zeros((batch, T, D), np.float32)
    got = prepare(ja.occlusion, fn, xs, 0, window=1, mesh=mesh(devices), batch_size=4).plan.mesh
    assert got.devices.shape == (rows, devices // rows)
    assert list(got.devices.flat) == jax.devices()[:devices]


def test_batch_size_is_per_device():
    got = prepare(ja.occlusion, fn, X[:1], 0, window=1, mesh=mesh(4), batch_size=100).plan
    assert (got.examples, got.inside) == (1, 4)  # 12 windows and the unchanged input, on 4 devices
    few = prepare(ja.occlusion, fn, X[:1], 0, window=1, mesh=mesh(4), batch_size=3).plan
    assert few.in_flight == 3


@pytest.mark.representatives(
    "occlusion-options0-3-shape3",
    "integrated_gradients-options1-2-shape2",
    "jacobian-options3-2-shape2",
)
@pytest.mark.parametrize("batch, shape", [(1, (8,)), (1, (2, 2)), (2, (8,)), (3, (4,)), (3, (2,))])
@pytest.mark.parametrize(
    "name, options",
    [
        ("occlusion", {"window": 3}),
        ("integrated_gradients", {"num_steps": 13}),
        ("jacobian", {"mode": "forward"}),
        ("jacobian", {"mode": "reverse"}),
        ("smooth_grad", {"num_samples": 7}),
        ("smooth_grad", {"num_samples": 3, "method": ja.integrated_gradients, "num_steps": 5}),
        ("smooth_grad", {"num_samples": 5, "statistic": "variance"}),
    ],
)
def test_mesh_does_not_change_attributions(name, options, batch, shape):
    method = getattr(ja, name)
    targets = None if name == "jacobian" else 1
    key = jax.random.key(1)
    unsharded = ja.explain(method, fn, X[:batch], targets, key=key, **options)
    for batch_size in (None, 2):
        sharded = ja.explain(
            method, fn, X[:batch], targets, key=key, mesh=mesh(*shape), batch_size=batch_size,
            **options,
        )  # fmt: skip
        close(sharded, unsharded)


def test_time_steps_with_length_arg():
    def padded(x, length):
        return fn(jnp.where(jnp.arange(T)[:, None] < length, x, 0))

    lengths = jnp.full(1, T, jnp.int32)
    call = (ja.temporal_output_score, padded, X[:1], 1)
    unsharded = ja.explain(*call, args=(lengths,), length_arg=0)
    close(ja.explain(*call, args=(lengths,), length_arg=0, mesh=mesh(8)), unsharded)


def test_in_float64(x64):
    xs = X[:1].astype(np.float64)
    unsharded = ja.explain(ja.integrated_gradients, fn, xs, 1, num_steps=9)
    sharded = ja.explain(ja.integrated_gradients, fn, xs, 1, num_steps=9, mesh=mesh(4))
    close(sharded, unsharded, 1e-12)
    assert sharded.values.dtype == np.float64


def test_half_precision_is_summed_over_devices_in_single():
    xs = np.ones((1, 4), np.float16)
    got = ja.explain(
        ja.smooth_grad, lambda x: (x * np.float16(3000)).sum(), xs,
        key=jax.random.key(0), mesh=mesh(8),
    )  # fmt: skip
    np.testing.assert_array_equal(got.values, np.full((1, 4), 3000, np.float16))


def explicit(spec):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))
    return jax.device_put(np.ones((8, 8, 2), np.float32), NamedSharding(mesh, spec))


@pytest.mark.parametrize("spec", [PartitionSpec("d"), PartitionSpec(("d",), None)])
def test_examples_on_explicit_axes_require_a_mesh(spec):
    xs = explicit(spec)
    for method in (ja.saliency, ja.occlusion):
        with pytest.raises(ValueError, match=r"^`mesh` is missing: xs is sharded .*'d'.*mesh="):
            ja.explain(method, fn, xs, 1)
        with pytest.raises(ValueError, match=r"^`mesh` is missing: xs\['a'\] is sharded .*mesh="):
            ja.explain(method, lambda x: fn(x["a"]), {"a": xs}, 1)
        with pytest.raises(ValueError, match=r"^`mesh` is missing: args\[0\] is sharded .*mesh="):
            ja.explain(method, lambda x, y: fn(x + y), np.asarray(xs), 1, args=(xs,))
        unsharded = ja.explain(method, fn, np.asarray(xs), 1)
        close(ja.explain(method, fn, xs, 1, mesh=xs.sharding.mesh), unsharded)


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec(None, None, None)])
def test_replicated_examples_require_no_mesh(spec):
    xs = explicit(spec)
    close(ja.explain(ja.saliency, fn, xs, 1), ja.explain(ja.saliency, fn, np.asarray(xs), 1))


def test_examples_on_automatic_axes_require_no_mesh():
    xs = jax.device_put(
        np.ones((8, T, D), np.float32), NamedSharding(mesh(8), PartitionSpec("rows"))
    )
    close(ja.explain(ja.saliency, fn, xs, 1), ja.explain(ja.saliency, fn, np.asarray(xs), 1))


@pytest.mark.slow
def test_gradients_through_a_mesh():
    def loss(xs, **options):
        values = ja.explain(ja.occlusion, fn, xs, 1, window=3, **options).values
        mean = ja.explain(ja.integrated_gradients, fn, xs, 1, num_steps=5, **options).values
        return jnp.sum(jnp.sin(values)) + jnp.sum(jnp.cos(mean))

    close(jax.grad(lambda x: loss(x, mesh=mesh(4)))(X[:1]), jax.grad(loss)(X[:1]))


@pytest.mark.slow
def test_nested_explanation_stays_on_its_device():
    """JAX caches the trace of a jitted function across different placements."""

    @jax.jit
    def important(x):
        return ja.integrated_gradients(fn, x, 1, num_steps=5, check_finite=False).values.sum(0)

    unsharded = ja.explain(ja.occlusion, important, X[:1], 0, window=3)
    sharded = ja.explain(ja.occlusion, important, X[:1], 0, window=3, mesh=mesh(8))
    close(sharded, unsharded)


def test_devices_communicate_scores_only():
    work = prepare(ja.occlusion, fn, X[:1], 1, window=1, mesh=mesh(8), batch_size=8)
    text = work.compile().as_text()
    got = re.findall(r"= f32\[([\d,]*)\]\S* (all-\w+|collective-\w+|reduce-scatter)\(", text)
    (exchanged,) = [(shape, operation) for shape, operation in got]
    assert exchanged[1] == "all-gather"
    # 12 windows and the unchanged input, padded for 8 devices.
    assert np.prod(list(map(int, exchanged[0].split(",")))) == 16


def test_devices_do_not_communicate_with_enough_examples():
    work = prepare(ja.occlusion, fn, np.concatenate([X] * 4)[:8], 1, window=1, mesh=mesh(8))
    text = work.compile().as_text()
    assert not re.findall(r"(all-\w+|collective-\w+|reduce-scatter)\(", text)
