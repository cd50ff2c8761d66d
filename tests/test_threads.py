"""Parts of a call in several threads on the cores of a CPU: results do not depend on threads."""

import contextvars
import os
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxattn as ja
from jaxattn.engine import launch, plan as planning, threads as engine_threads
from jaxattn.engine.explain import prepare
from jaxattn.engine.threads import cores, side_by_side

B, N = 24, 6
X = np.random.default_rng(0).normal(size=(B, N)).astype(np.float32)


def fn(x):
    return jnp.stack([jnp.sin(x).sum(), jnp.cos(x).prod()])


@pytest.fixture
def threads(monkeypatch):
    """Use two threads for any amount of work; return the list of threads that computed."""
    monkeypatch.setattr(planning, "_WORTH_A_THREAD", 0)
    monkeypatch.setattr(planning, "cores", lambda: 2)
    used, run = [], launch.run_part

    def watched(*call):
        used.append(threading.current_thread())
        return run(*call)

    monkeypatch.setattr(launch, "run_part", watched)
    return used


@pytest.fixture
def patient(monkeypatch):
    """The caller waits for busy threads, however slow the machine, and never takes a part back."""
    monkeypatch.setattr(engine_threads, "_PATIENCE", 300)


def in_one_thread(monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.setattr(planning, "cores", lambda: 1)
        return call()


def others(used):
    return [thread for thread in used if thread is not threading.current_thread()]


# side_by_side


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_results_are_in_order(workers, count):
    def slow_first(i):
        time.sleep(0.002 * (count - i))
        return jnp.asarray(i)

    assert [int(a) for a in side_by_side(slow_first, range(count), workers)] == list(range(count))


def test_parts_are_generated_lazily():
    generated = []

    def parts():
        for i in range(9):
            generated.append(i)
            yield i

    for i, _ in enumerate(side_by_side(lambda part: part, parts(), 2)):
        assert len(generated) <= i + 3  # two that run, and the next


@pytest.mark.parametrize("workers", [2, 3])
def test_number_of_running_parts_is_limited(workers, monkeypatch):
    lock, now, most = threading.Lock(), 0, 0
    all_run = threading.Barrier(workers, timeout=300)

    def count(part, meet=lambda: time.sleep(0.01)):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        meet()
        with lock:
            now -= 1

    def call(_):
        list(side_by_side(count, range(8), workers))

    with monkeypatch.context() as patch:
        patch.setattr(engine_threads, "_PATIENCE", 300)
        list(side_by_side(lambda part: count(part, all_run.wait), range(4 * workers), workers))
    assert most == workers
    most = 0
    with ThreadPoolExecutor(3) as users:  # the pool is shared: waiting callers compute
        list(users.map(call, range(3)))
    assert most <= 3 * workers


@pytest.mark.parametrize("error", [ValueError, jax.errors.JaxRuntimeError])
def test_error_is_raised_at_its_position(error):
    ran, got = [], []

    def fail_at_3(part):
        if part == 3:
            raise error("three")
        time.sleep(0.005)
        ran.append(part)
        return part

    def collect():
        for result in side_by_side(fail_at_3, range(9), 2):
            got.append(result)

    with pytest.raises(error, match="three"):
        collect()
    assert got == [0, 1, 2]
    before = list(ran)  # no part runs any more, and the pool still works
    time.sleep(0.02)
    assert ran == before
    assert max(ran) < 6
    assert list(side_by_side(lambda part: part, range(4), 2)) == [0, 1, 2, 3]


def test_closing_early_stops_remaining_parts():
    ran = []

    def slow(part):
        time.sleep(0.005)
        ran.append(part)
        return part

    results = side_by_side(slow, range(100), 2)
    assert next(results) == 0
    results.close()
    before = list(ran)
    time.sleep(0.02)
    assert ran == before
    assert len(ran) < 6


def test_callers_that_wait_for_a_busy_pool_compute():
    """In nested calls all threads are busy, and wait for parts that have not started."""

    def outer(part):
        return sum(side_by_side(lambda inner: part * inner, range(4), 2))

    assert list(side_by_side(outer, range(5), 2)) == [6 * i for i in range(5)]


def test_context_variables_and_thread_local_data():
    here, variable = threading.local(), contextvars.ContextVar("variable")
    here.value = 7
    variable.set(5)
    # Contexts are copied. Thread-local data is not: the caller's thread computes such a part.
    assert list(side_by_side(lambda part: part + variable.get(), range(3), 2)) == [5, 6, 7]
    assert list(side_by_side(lambda part: part + here.value, range(3), 2)) == [7, 8, 9]


def test_pool_that_was_shut_down(monkeypatch):
    ended = ThreadPoolExecutor(2)
    ended.shutdown()
    monkeypatch.setitem(engine_threads._pools, 2, ended)
    assert list(side_by_side(lambda part: part, range(4), 2)) == [0, 1, 2, 3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child_starts_its_own_threads():
    assert list(side_by_side(lambda part: part, range(4), 2)) == [0, 1, 2, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python and JAX advise against it
        child = os.fork()
    if child == 0:
        os._exit(0 if not engine_threads._pools else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert engine_threads._pools


@pytest.mark.slow
def test_interrupt_ends_the_process():
    program = """
import _thread, signal, threading, time
from jaxattn.engine.threads import side_by_side
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
threading.Timer(0.2, _thread.interrupt_main).start()
list(side_by_side(lambda part: time.sleep(0.05), range(200), 2))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert "KeyboardInterrupt" in ended.stderr
    assert ended.returncode != 0


def test_cores_are_those_available_to_the_process(monkeypatch):
    if hasattr(os, "process_cpu_count"):
        monkeypatch.setattr(os, "process_cpu_count", lambda: 3)
    elif hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 4, 5})
    else:
        monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cores() == 3


# calls of explain


METHODS = {
    "occlusion": lambda xs, **o: ja.explain(ja.occlusion, fn, xs, 1, **o),
    "gradient": lambda xs, **o: ja.explain(ja.gradient, fn, xs, 1, **o),
    "smooth_grad": lambda xs, **o: ja.explain(
        ja.smooth_grad, fn, xs, 1, key=jax.random.key(0), num_samples=3, **o
    ),
    "jacobian": lambda xs, **o: ja.explain(ja.jacobian, fn, xs, **o),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", [None, 2, 5, 30])
@pytest.mark.representatives("None-occlusion", "2-gradient", "30-smooth_grad")
def test_results_equal_those_of_one_thread(method, batch_size, threads, patient, monkeypatch):
    def call():
        return METHODS[method](X, batch_size=batch_size)

    expected = in_one_thread(monkeypatch, call)
    assert not others(threads)
    call()
    threads.clear()
    found = call()
    assert others(threads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    jax.tree.map(np.testing.assert_array_equal, found, call())


def test_padded_last_part(threads):
    xs = X[:7]
    found = ja.explain(ja.gradient, lambda x: (x**2).sum(), xs, batch_size=4)
    np.testing.assert_allclose(found.values, 2 * xs)
    assert found.values.shape == xs.shape


CONTEXTS = {
    "x64": lambda: jax.enable_x64(True),
    "default_device": lambda: jax.default_device(jax.devices()[3]),
    "matmul_precision": lambda: jax.default_matmul_precision("highest"),
    "dtype_promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "debug_nans": lambda: jax.debug_nans(True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTEXTS)
def test_jax_settings_apply_in_threads(name, threads, patient):
    def call(xs=X):
        return ja.explain(ja.occlusion, fn, xs, 1, batch_size=20)

    plain = call()
    with CONTEXTS[name]():
        xs = X.astype(np.float64) if name == "x64" else X
        call(xs)
        threads.clear()
        found = call(xs)
        assert others(threads)
    assert found.values.dtype == (np.float64 if name == "x64" else np.float32)
    np.testing.assert_allclose(found.values, plain.values, atol=1e-5)
    if name == "default_device":
        assert found.values.devices() == {jax.devices()[3]}
    assert call().values.dtype == np.float32
    assert call().values.devices() == plain.values.devices()


def test_jax_checks_raise_in_threads():
    xs = [jnp.zeros(()), jnp.ones(())]
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        list(side_by_side(jax.jit(jnp.log), [xs[1], xs[1], -xs[1]], 2))
    with jax.numpy_rank_promotion("raise"), pytest.raises(ValueError, match="rank_promotion"):
        list(side_by_side(lambda x: x.reshape(1, 1) + jnp.ones(3), xs, 2))
    with jax.numpy_dtype_promotion("strict"), pytest.raises(Exception, match="promotion"):
        list(side_by_side(lambda x: x + jnp.ones((), jnp.int32), xs, 2))


@pytest.mark.parametrize("context", [jax.disable_jit, jax.log_compiles, jax.checking_leaks])
def test_other_settings_use_the_callers_thread(context):
    with context():
        found = list(side_by_side(lambda part: threading.current_thread(), range(3), 2))
    assert not others(found)


@pytest.mark.slow
def test_disable_jit(threads):
    expected = ja.explain(ja.occlusion, fn, X[:4], 1).values
    with jax.disable_jit():
        found = ja.explain(ja.occlusion, fn, X[:4], 1, batch_size=2).values
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_mesh_context_uses_the_callers_thread(threads):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def constrained(x):
        return fn(jax.lax.with_sharding_constraint(x, PartitionSpec()))

    with jax.set_mesh(mesh):
        found = ja.explain(ja.gradient, constrained, X, 1, batch_size=6).values
    assert not others(threads)
    np.testing.assert_allclose(found, ja.explain(ja.gradient, fn, X, 1).values, atol=1e-6)


@pytest.mark.slow
def test_concurrent_calls(threads):
    expected = {method: call(X) for method, call in METHODS.items()}

    def call(i):
        method = list(METHODS)[i % len(METHODS)]
        return method, METHODS[method](X, batch_size=[9, 30][i % 2])

    with ThreadPoolExecutor(4) as users:
        for method, found in users.map(call, range(12)):
            np.testing.assert_allclose(found.values, expected[method].values, atol=1e-6)


def test_concurrent_first_calls(threads):
    """Nothing is cached: all calls trace and bind at the same time."""

    def cubes(x):
        return jnp.stack([(x**3).sum(), x.prod()])

    with ThreadPoolExecutor(4) as users:
        calls = [users.submit(ja.explain, ja.occlusion, cubes, X, 0, window=w) for w in (1, 2) * 3]
        found = [call.result().values for call in calls]
    for i in range(2, 6):
        np.testing.assert_allclose(found[i], found[i % 2], atol=1e-6)


@pytest.mark.slow
def test_threads_compile_after_clear_caches(threads):
    def call():
        return ja.explain(ja.occlusion, fn, X, 1, batch_size=20, window=4).values

    expected = call()
    jax.clear_caches()
    np.testing.assert_allclose(call(), expected, atol=1e-6)


@pytest.mark.slow
def test_fn_that_calls_a_method(threads):
    def important(x):
        return ja.integrated_gradients(fn, x, 1, num_steps=5, check_finite=False).values.sum()

    found = ja.explain(ja.occlusion, important, X, batch_size=40).values
    again = ja.explain(ja.occlusion, important, X, batch_size=40).values
    one = ja.occlusion(important, X[5]).values
    np.testing.assert_array_equal(found, again)
    np.testing.assert_allclose(found[5], one, atol=1e-5)


@pytest.mark.slow
def test_parts_that_call_explain(threads):
    """A part cannot end before a part of another call has run in some thread."""

    def explained(x):
        return np.asarray(ja.explain(ja.gradient, fn, np.stack([x] * 4), 1).values[0].sum())

    expected = [explained(x) for x in X]
    found = list(side_by_side(explained, list(X), 2))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def workers(method=ja.occlusion, f=fn, xs=X, **options):
    return prepare(method, f, xs, 1, **options).plan.workers


def test_small_work_uses_one_thread():
    def network(x):
        return jnp.tanh(jnp.outer(x, jnp.ones(2000)) @ jnp.ones((2000, 2)))[0]

    assert workers() == 1
    assert workers(ja.gradient, network, X[:1]) == 1
    big = np.concatenate([X] * 200)
    assert workers(ja.occlusion, network, big) == min(cores(), len(big))


@pytest.mark.usefixtures("threads")
def test_cases_without_threads(monkeypatch):
    assert workers() == 2
    assert workers(xs=X[:1]) == 1
    assert workers(batch_size=1) == 1
    assert workers(mesh=Mesh(np.array(jax.devices()[:2]), ("data",))) == 1
    traced = []
    jax.make_jaxpr(lambda xs: traced.append(workers(xs=xs, check_finite=False)))(X)
    assert traced == [1]

    accelerator = Mock(spec=jax.Device, platform="gpu")
    monkeypatch.setattr(planning, "device_of", lambda leaves: accelerator)
    assert workers(batch_size=100) == 1


def test_inside_jit(threads):
    expected = METHODS["occlusion"](X).values
    threads.clear()
    found = jax.jit(lambda xs: METHODS["occlusion"](xs).values)(X)
    assert not others(threads)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_progress_counts_all_parts(threads, capsys):
    ja.explain(ja.gradient, fn, X, 0, batch_size=6, progress=True)
    assert "100%" in capsys.readouterr().out


def decomposed(x):
    return jnp.linalg.eigvalsh(jnp.outer(x, x)).sum()


def test_programs_that_decompose_batches_of_matrices_run_one_after_the_other(threads):
    """On a CPU as many of them as XLA has threads could wait for each other forever."""
    ja.explain(ja.occlusion, decomposed, X, batch_size=40)
    assert len(threads) > 1
    assert not others(threads)


@pytest.mark.parametrize("method", [ja.occlusion, ja.kernel_shap, ja.lime])
def test_other_programs_run_side_by_side(method, threads):
    ja.explain(method, jnp.sum, X, batch_size=40, key=jax.random.key(0))
    assert others(threads)
