"""When a device runs out of memory: what was computed is kept, and the rest goes on in halves."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxattn as ja
from jaxattn.engine import launch, plan as planning
from jaxattn.engine.memo import MEMOS

B, N = 41, 6
X = np.random.default_rng(0).normal(size=(B, N)).astype(np.float32)
SHORT = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes."


def fn(x):
    return jnp.stack([jnp.sin(x).sum(), jnp.cos(x).prod()])


class Device:
    """Runs no more evaluations at once than it can hold, and says what it was asked."""

    def __init__(self, holds, after=0):
        self.holds, self.after, self.asked = holds, after, []
        self._run = launch.run_part

    def __call__(self, binding, examples, plan):
        self.asked.append(plan.in_flight)
        if plan.in_flight > self.holds and len(self.asked) > self.after:
            raise jax.errors.JaxRuntimeError(SHORT)
        return self._run(binding, examples, plan)


@pytest.fixture
def device(monkeypatch):
    def install(holds, after=0):
        found = Device(holds, after)
        monkeypatch.setattr(launch, "run_part", lambda *call: found(*call))
        return found

    MEMOS.limits.clear()
    yield install
    MEMOS.limits.clear()


def explained(**options):
    return ja.explain(ja.occlusion, fn, X, 1, **options).values


def quiet(call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


@pytest.mark.parametrize("holds", [1, 3, 7, 20])
@pytest.mark.parametrize("batch_size", [None, 30])
def test_the_rest_goes_on_with_half(device, holds, batch_size):
    expected = explained()
    found = device(holds)
    with pytest.warns(UserWarning, match=r"continues with \d+; pass batch_size=\d+") as said:
        values = explained(batch_size=batch_size)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    sizes = list(dict.fromkeys(found.asked))
    assert sizes == sorted(sizes, reverse=True)
    assert holds / 2 <= sizes[-1] <= holds or sizes[-1] == 1
    assert len(said) == len(sizes) - 1


def test_what_was_computed_is_kept(device):
    expected = explained()
    found = device(7, after=2)  # two parts of 14 examples fit, then memory gets short
    with pytest.warns(UserWarning, match="for 14 evaluations of fn in flight.* continues with 7"):
        values = explained(batch_size=14)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert found.asked == [14, 14, 14, 7, 7]


def test_the_next_call_remembers_and_says_nothing(device):
    found = device(7)
    with pytest.warns(UserWarning):
        explained(batch_size=29)
    found.asked.clear()
    for batch_size in (28, None, 1000):
        quiet(lambda size=batch_size: explained(batch_size=size))
    assert max(found.asked) <= 7
    assert len(set(found.asked)) == 1
    found.asked.clear()
    quiet(lambda: explained(batch_size=3))
    assert set(found.asked) == {3}


def test_one_example_by_itself(device):
    expected = ja.occlusion(fn, X[0], 1).values
    found = device(3)
    with pytest.warns(UserWarning, match="continues with 3"):
        values = ja.occlusion(fn, X[0], 1).values
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert found.asked == [7, 3]


def test_on_a_mesh_the_size_is_that_of_a_device(device):
    expected = explained()
    found = device(7)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    with pytest.warns(UserWarning):
        values = explained(mesh=mesh, batch_size=21)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert found.asked[-1] <= 7


def test_when_one_does_not_fit_the_error_says_so(device):
    device(0)
    with (
        pytest.warns(UserWarning),
        pytest.raises(jax.errors.JaxRuntimeError, match=r"one evaluation of fn at a time.*EXH"),
    ):
        explained()


def test_other_errors_pass(monkeypatch):
    def fails(*call):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(launch, "run_part", fails)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: broken"):
        quiet(explained)


def test_a_program_that_cannot_be_compiled_for_want_of_memory(device, monkeypatch):
    expected = explained()
    compiles = launch.compile_part

    def compile_(binding, examples, plan):
        if plan.in_flight > 7:
            raise jax.errors.JaxRuntimeError(SHORT)
        return compiles(binding, examples, plan)

    monkeypatch.setattr(launch, "compile_part", compile_)
    MEMOS.plans.clear()
    with pytest.warns(UserWarning):
        np.testing.assert_allclose(explained(), expected, atol=1e-6)


@pytest.fixture
def threads(monkeypatch):
    monkeypatch.setattr(planning, "_WORTH_A_THREAD", 0)
    monkeypatch.setattr(planning, "cores", lambda: 2)


@pytest.mark.parametrize("holds", [1, 2, 7, 20])
@pytest.mark.parametrize("after", [0, 2, 3])
def test_side_by_side_too(device, threads, holds, after):
    """What runs at the same time counts together, and what was computed is kept."""
    expected = explained()
    found = device(holds, after)
    with pytest.warns(UserWarning, match="continues with"):
        values = explained(batch_size=40)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert found.asked[0] == 22  # 41 examples in 4 parts
    assert found.asked[-1] <= holds
    found.asked.clear()
    quiet(lambda: explained(batch_size=40))
    assert max(found.asked) <= holds


def test_side_by_side_when_one_does_not_fit(device, threads):
    device(0)
    with (
        pytest.warns(UserWarning),
        pytest.raises(jax.errors.JaxRuntimeError, match=r"one evaluation of fn at a time.*EXH"),
    ):
        explained()
