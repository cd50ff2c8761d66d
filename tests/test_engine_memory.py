"""Test recovery from insufficient device memory: computed parts are kept, chunks are halved."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxattn as ja
from jaxattn.engine import launch, memory, plan as planning
from jaxattn.engine.memo import MEMOS

B, N = 41, 6
X = np.random.default_rng(0).normal(size=(B, N)).astype(np.float32)
SHORT = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes."


def fn(x):
    return jnp.stack([jnp.sin(x).sum(), jnp.cos(x).prod()])


class Device:
    """Raise an out-of-memory error above a capacity, and record the requested evaluations."""

    def __init__(self, capacity, after=0):
        self.capacity, self.after, self.requested = capacity, after, []
        self._run = launch.run_part

    def __call__(self, binding, examples, plan):
        self.requested.append(plan.in_flight)
        if plan.in_flight > self.capacity and len(self.requested) > self.after:
            raise jax.errors.JaxRuntimeError(SHORT)
        return self._run(binding, examples, plan)


def test_trial_over_the_budget_is_halved(monkeypatch):
    monkeypatch.setattr(memory, "budget", lambda device: 1000)  # free memory varies between calls
    device = jax.devices()[0]
    assert [memory.fewer_in_flight(device, 1, n, 1001) for n in (8, 3, 1)] == [4, 1, 1]
    assert memory.fewer_in_flight(device, 1, 8, 1000) == 8


@pytest.fixture
def device(monkeypatch):
    def install(capacity, after=0):
        fake = Device(capacity, after)
        monkeypatch.setattr(launch, "run_part", lambda *call: fake(*call))
        return fake

    MEMOS.limits.clear()
    yield install
    MEMOS.limits.clear()


def explained(**options):
    return ja.explain(ja.occlusion, fn, X, 1, **options).values


def without_warnings(call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


@pytest.mark.parametrize("capacity", [1, 3, 7, 20])
@pytest.mark.parametrize("batch_size", [None, 30])
@pytest.mark.representatives("None-1", "30-7")
def test_remaining_work_continues_with_half(device, capacity, batch_size):
    expected = explained()
    fake = device(capacity)
    with pytest.warns(UserWarning, match=r"continues with \d+; pass batch_size=\d+") as caught:
        values = explained(batch_size=batch_size)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    sizes = list(dict.fromkeys(fake.requested))
    assert sizes == sorted(sizes, reverse=True)
    assert capacity / 2 <= sizes[-1] <= capacity or sizes[-1] == 1
    assert len(caught) == len(sizes) - 1


def test_computed_parts_are_kept(device):
    expected = explained()
    fake = device(7, after=2)  # two parts of 14 evaluations fit, then memory is insufficient
    with pytest.warns(UserWarning, match="for 14 evaluations of fn in flight.* continues with 7"):
        values = explained(batch_size=14)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert fake.requested == [14, 14, 14, 7, 7]


def test_next_call_uses_the_smaller_size_without_warning(device):
    fake = device(7)
    with pytest.warns(UserWarning):
        explained(batch_size=29)
    fake.requested.clear()
    for batch_size in (28, None, 1000):
        without_warnings(lambda size=batch_size: explained(batch_size=size))
    assert max(fake.requested) <= 7
    assert len(set(fake.requested)) == 1
    fake.requested.clear()
    without_warnings(lambda: explained(batch_size=3))
    assert set(fake.requested) == {3}


def test_single_example(device):
    expected = ja.occlusion(fn, X[0], 1).values
    fake = device(3)
    with pytest.warns(UserWarning, match="continues with 3"):
        values = ja.occlusion(fn, X[0], 1).values
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert fake.requested == [7, 3]


def test_size_on_a_mesh_is_per_device(device):
    expected = explained()
    fake = device(7)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    with pytest.warns(UserWarning):
        values = explained(mesh=mesh, batch_size=21)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert fake.requested[-1] <= 7


def test_single_evaluation_out_of_memory_raises(device):
    device(0)
    with (
        pytest.warns(UserWarning),
        pytest.raises(jax.errors.JaxRuntimeError, match=r"one evaluation of `fn` at a time.*EXH"),
    ):
        explained()


def test_other_errors_propagate(monkeypatch):
    def fails(*call):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(launch, "run_part", fails)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: broken"):
        without_warnings(explained)


def test_out_of_memory_at_compilation(device, monkeypatch):
    expected = explained()
    compiles = launch.compile_part

    def compile_(binding, examples, plan):
        if plan.in_flight > 7:
            raise jax.errors.JaxRuntimeError(SHORT)
        return compiles(binding, examples, plan)

    monkeypatch.setattr(launch, "compile_part", compile_)
    MEMOS.suitable.clear()
    with pytest.warns(UserWarning):
        np.testing.assert_allclose(explained(), expected, atol=1e-6)


@pytest.fixture
def threads(monkeypatch):
    monkeypatch.setattr(planning, "_WORTH_A_THREAD", 0)
    monkeypatch.setattr(planning, "cores", lambda: 2)


@pytest.mark.parametrize("capacity", [1, 2, 7, 20])
@pytest.mark.parametrize("after", [0, 2, 3])
@pytest.mark.representatives("0-1", "2-7", "3-20")
def test_remaining_work_continues_with_half_on_threads(device, threads, capacity, after):
    """Evaluations of concurrent threads count together, and computed parts are kept."""
    expected = explained()
    fake = device(capacity, after)
    with pytest.warns(UserWarning, match="continues with"):
        values = explained(batch_size=40)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert fake.requested[0] == 22  # 41 examples in 4 parts
    assert fake.requested[-1] <= capacity
    fake.requested.clear()
    without_warnings(lambda: explained(batch_size=40))
    assert max(fake.requested) <= capacity


def test_single_evaluation_out_of_memory_on_threads_raises(device, threads):
    device(0)
    with (
        pytest.warns(UserWarning),
        pytest.raises(jax.errors.JaxRuntimeError, match=r"one evaluation of `fn` at a time.*EXH"),
    ):
        explained()
