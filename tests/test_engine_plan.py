"""Test the division of work into chunks and over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxattn as ja
from jaxattn.engine import memory, parts, plan as planning
from jaxattn.engine.explain import prepare
from jaxattn.engine.memo import MEMOS

B, N = 10, 6
X = np.random.default_rng(0).normal(size=(B, N)).astype(np.float32)


def fn(x):
    return jnp.stack([jnp.sin(x).sum(), jnp.cos(x).prod()])


@pytest.fixture(autouse=True)
def nothing_seen():
    """The first length of a batch is compiled as it is."""
    MEMOS.lengths.clear()


def plan(explained, /, **options):
    return prepare(explained, fn, X, 0, **options).plan


@pytest.mark.parametrize(
    "batch_size, examples, inside",
    [(1, 1, 1), (3, 3, 1), (7, 5, 1), (13, 10, 1), (14, 10, 1), (29, 10, 2), (70, 10, 7)],
)
def test_batch_size_is_divided_over_examples_before_evaluations(batch_size, examples, inside):
    # Occlusion evaluates 6 windows and the unchanged input of each example.
    got = plan(ja.occlusion, batch_size=batch_size)
    assert (got.examples, got.inside) == (examples, inside)
    assert got.in_flight == examples * inside <= batch_size
    assert plan(ja.occlusion, batch_size=1000) == plan(ja.occlusion, batch_size=70)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16, 40, 112, 500])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_parts_cover_all_examples_within_the_batch_size(batch_size, workers, monkeypatch):
    monkeypatch.setattr(planning, "_WORTH_A_THREAD", 0)
    monkeypatch.setattr(planning, "cores", lambda: workers)
    xs = np.concatenate([X] * 5)
    got = prepare(ja.occlusion, fn, xs, 0, batch_size=batch_size)
    plan = got.plan
    assert plan.workers == min(workers, batch_size)
    assert plan.in_flight == plan.examples * plan.inside * plan.workers <= batch_size
    calls = len(list(got.parts()))
    assert (calls - 1) * plan.examples < len(xs) <= calls * plan.examples
    # The work that is done once per example is vectorised over several examples.
    assert plan.inside == 1 or plan.examples * calls * plan.inside >= len(xs)
    if batch_size >= 16 * workers:
        assert plan.examples * calls > 16 * workers or calls == workers


def test_many_examples_are_divided_into_equal_parts():
    got = prepare(ja.occlusion, fn, np.concatenate([X] * 20), 0, batch_size=500).plan
    assert (got.examples, got.inside) == (67, 7)  # 200 in 3 parts


def test_batch_size_counts_nested_evaluations():
    got = plan(
        ja.smooth_grad,
        batch_size=150,
        key=jax.random.key(0),
        num_samples=4,
        method=ja.integrated_gradients,
        num_steps=5,
    )
    assert (got.examples, got.inside) == (10, 15)  # 20 evaluations per example
    assert plan(ja.integrated_gradients, batch_size=150, num_steps=20).inside == 15


def test_evaluations_in_flight_are_at_most_the_batch_size():
    """The leading axis of an equation is the number of evaluations in flight."""
    closed = jax.make_jaxpr(
        lambda x: ja.explain(ja.occlusion, fn, x, 0, batch_size=4).values,
    )(X)
    widest = max(
        var.aval.shape[0]
        for eqn in _all_eqns(closed.jaxpr)
        if eqn.primitive.name == "sin"
        for var in eqn.outvars
    )
    assert widest <= 4


def _all_eqns(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            if hasattr(value, "eqns"):
                yield from _all_eqns(getattr(value, "jaxpr", value))


def test_automatic_batch_size_fits_the_memory(monkeypatch):
    limit = 40_000
    expected = ja.explain(ja.jacobian, lambda x: jnp.outer(x, x) @ x, X)
    monkeypatch.setattr(memory, "budget", lambda device: limit)
    MEMOS.suitable.clear()

    def wide(x):
        return jnp.tanh(jnp.outer(x, jnp.arange(500.0))).sum(1)

    got = prepare(ja.occlusion, lambda x: wide(x)[0], X)
    compiled = got.compile()
    assert memory.needed(compiled) <= limit < 500 * N * 4 * B * N
    values = ja.explain(ja.occlusion, lambda x: wide(x)[0], X).values
    MEMOS.suitable.clear()
    monkeypatch.undo()
    np.testing.assert_allclose(
        values, ja.explain(ja.occlusion, lambda x: wide(x)[0], X).values, atol=1e-5
    )
    assert expected.values.shape == (B, N, N)


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.representatives("2")
def test_batch_is_padded_to_the_mesh(devices):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    unsharded = ja.explain(ja.occlusion, fn, X, 1)
    sharded = ja.explain(ja.occlusion, fn, X, 1, mesh=mesh)
    np.testing.assert_allclose(sharded.values, unsharded.values, atol=1e-6)
    assert sharded.values.shape == (B, N)


def test_committed_arrays_are_distributed_over_the_mesh():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    w = jax.device_put(jnp.arange(N, dtype=jnp.float32), jax.devices()[3])
    x = jax.device_put(X[:8], jax.devices()[1])
    got = ja.explain(ja.gradient, lambda x: x @ w, x, mesh=mesh)
    np.testing.assert_allclose(got.values, np.broadcast_to(np.arange(N), (8, N)), atol=1e-6)
    assert len(got.values.sharding.device_set) == 4


def test_progress_is_printed(capsys):
    ja.explain(ja.gradient, fn, X, 0, batch_size=3, progress=True)
    assert "explaining" in capsys.readouterr().out


def test_random_samples_are_independent_of_chunks_devices_and_batch():
    key = jax.random.key(3)
    whole = ja.explain(ja.smooth_grad, fn, X, 0, key=key, num_samples=4).values
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    for options in ({"batch_size": 2}, {"batch_size": 9}, {"mesh": mesh}):
        again = ja.explain(ja.smooth_grad, fn, X, 0, key=key, num_samples=4, **options).values
        np.testing.assert_allclose(again, whole, atol=1e-6)
    few = ja.explain(ja.smooth_grad, fn, X[:3], 0, key=key, num_samples=4).values
    np.testing.assert_allclose(few, whole[:3], atol=1e-6)
    other = ja.explain(ja.smooth_grad, fn, X, 0, key=jax.random.key(4), num_samples=4).values
    assert abs(other - whole).max() > 1e-3


def test_mesh_of_make_mesh():
    mesh = jax.make_mesh((8,), ("data",))
    got = ja.explain(ja.occlusion, fn, X, 1, mesh=mesh)
    np.testing.assert_allclose(got.values, ja.explain(ja.occlusion, fn, X, 1).values, atol=1e-6)


def test_many_chunks():
    xs = np.arange(300, dtype=np.float32).reshape(100, 3)
    got = ja.explain(ja.gradient, lambda x: (x**2).sum(), xs, batch_size=1)
    np.testing.assert_allclose(got.values, 2 * xs)
    np.testing.assert_allclose(got[7].values, 2 * xs[7])
    assert repr(got) == "Attribution(values=float32[100,3], output=float32[100], info={})"


@pytest.mark.parametrize("size", [1, 3, 4])
def test_host_arrays_are_sliced_on_the_host(size, monkeypatch):
    """A device need not hold the whole batch."""
    leaves_cut = []
    cut = parts._cut
    monkeypatch.setattr(
        parts, "_cut", lambda leaves, *at: leaves_cut.extend(leaves) or cut(leaves, *at)
    )
    got = ja.explain(ja.saliency, fn, X, np.arange(B) % 2, batch_size=size)
    expected = ja.explain(ja.saliency, fn, jnp.asarray(X), np.arange(B) % 2)
    assert not any(isinstance(leaf, np.ndarray) for leaf in leaves_cut)
    assert not any(leaf.ndim == 2 for leaf in leaves_cut)
    np.testing.assert_array_equal(got.values, expected.values)
    np.testing.assert_array_equal(got.output, expected.output)
