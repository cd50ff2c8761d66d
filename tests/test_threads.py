"""Parts of a call side by side on the cores of a CPU: the same numbers, whatever the thread."""

import contextvars
import os
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

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
    """Two cores, and work that is worth them; says which threads computed."""
    monkeypatch.setattr(planning, "_WORTH_A_THREAD", 0)
    monkeypatch.setattr(planning, "cores", lambda: 2)
    seen, run = [], launch.run_part

    def watched(*call):
        seen.append(threading.current_thread())
        return run(*call)

    monkeypatch.setattr(launch, "run_part", watched)
    return seen


@pytest.fixture
def patient(monkeypatch):
    """The caller waits for busy threads, however slow the machine, and never takes a part back."""
    monkeypatch.setattr(engine_threads, "_PATIENCE", 300)


def in_one_thread(monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.setattr(planning, "cores", lambda: 1)
        return call()


def others(seen):
    return [thread for thread in seen if thread is not threading.current_thread()]


# side_by_side by itself


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_answers_come_in_order(workers, count):
    def slow_first(i):
        time.sleep(0.002 * (count - i))
        return jnp.asarray(i)

    assert [int(a) for a in side_by_side(slow_first, range(count), workers)] == list(range(count))


def test_parts_are_asked_for_as_threads_get_free():
    asked = []

    def parts():
        for i in range(9):
            asked.append(i)
            yield i

    for i, _ in enumerate(side_by_side(lambda part: part, parts(), 2)):
        assert len(asked) <= i + 3  # two that run, and the next


@pytest.mark.parametrize("workers", [2, 3])
def test_no_more_run_than_there_are_workers(workers, monkeypatch):
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
    with ThreadPoolExecutor(3) as users:  # the pool is shared: who waits computes
        list(users.map(call, range(3)))
    assert most <= 3 * workers


@pytest.mark.parametrize("error", [ValueError, jax.errors.JaxRuntimeError])
def test_an_error_comes_out_at_its_place(error):
    ran, got = [], []

    def fail_at_3(part):
        if part == 3:
            raise error("three")
        time.sleep(0.005)
        ran.append(part)
        return part

    def collect():
        for answer in side_by_side(fail_at_3, range(9), 2):
            got.append(answer)

    with pytest.raises(error, match="three"):
        collect()
    assert got == [0, 1, 2]
    before = list(ran)  # nothing runs on, and the pool works
    time.sleep(0.02)
    assert ran == before
    assert max(ran) < 6
    assert list(side_by_side(lambda part: part, range(4), 2)) == [0, 1, 2, 3]


def test_one_who_stops_early_leaves_nothing_behind():
    ran = []

    def slow(part):
        time.sleep(0.005)
        ran.append(part)
        return part

    answers = side_by_side(slow, range(100), 2)
    assert next(answers) == 0
    answers.close()
    before = list(ran)
    time.sleep(0.02)
    assert ran == before
    assert len(ran) < 6


def test_who_waits_for_a_busy_pool_computes():
    """A part that itself goes side by side finds all threads taken, by those who wait for it."""

    def outer(part):
        return sum(side_by_side(lambda inner: part * inner, range(4), 2))

    assert list(side_by_side(outer, range(5), 2)) == [6 * i for i in range(5)]


def test_what_holds_in_the_callers_thread_only():
    here, variable = threading.local(), contextvars.ContextVar("variable")
    here.value = 7
    variable.set(5)
    # A context is copied; a thread's own data is not, and the part is computed where it is.
    assert list(side_by_side(lambda part: part + variable.get(), range(3), 2)) == [5, 6, 7]
    assert list(side_by_side(lambda part: part + here.value, range(3), 2)) == [7, 8, 9]


def test_after_the_interpreters_end_has_begun(monkeypatch):
    ended = ThreadPoolExecutor(2)
    ended.shutdown()
    monkeypatch.setitem(engine_threads._pools, 2, ended)
    assert list(side_by_side(lambda part: part, range(4), 2)) == [0, 1, 2, 3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_starts_its_own_threads():
    assert list(side_by_side(lambda part: part, range(4), 2)) == [0, 1, 2, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python and JAX advise against it
        child = os.fork()
    if child == 0:
        os._exit(0 if not engine_threads._pools else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert engine_threads._pools


def test_an_interrupt_ends_the_process():
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


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    if hasattr(os, "process_cpu_count"):
        monkeypatch.setattr(os, "process_cpu_count", lambda: 3)
    elif hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 4, 5})
    else:
        monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cores() == 3


# a call of explain


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
def test_results_equal_those_of_one_thread(method, batch_size, threads, patient, monkeypatch):
    def call():
        return METHODS[method](X, batch_size=batch_size)

    expected = in_one_thread(monkeypatch, call)
    assert not others(threads)
    call()
    threads.clear()
    found = call()
    assert len(others(threads)) >= 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    jax.tree.map(np.testing.assert_array_equal, found, call())


def test_a_part_that_fills_up_the_last(threads):
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


@pytest.mark.parametrize("name", CONTEXTS)
def test_jaxs_settings_hold_in_the_threads(name, threads, patient):
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


def test_a_setting_that_refuses_does_so_in_the_threads():
    xs = [jnp.zeros(()), jnp.ones(())]
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        list(side_by_side(jax.jit(jnp.log), [xs[1], xs[1], -xs[1]], 2))
    with jax.numpy_rank_promotion("raise"), pytest.raises(ValueError, match="rank_promotion"):
        list(side_by_side(lambda x: x.reshape(1, 1) + jnp.ones(3), xs, 2))
    with jax.numpy_dtype_promotion("strict"), pytest.raises(Exception, match="promotion"):
        list(side_by_side(lambda x: x + jnp.ones((), jnp.int32), xs, 2))


@pytest.mark.parametrize("context", [jax.disable_jit, jax.log_compiles, jax.checking_leaks])
def test_under_other_settings_the_caller_computes(context):
    with context():
        found = list(side_by_side(lambda part: threading.current_thread(), range(3), 2))
    assert not others(found)


def test_under_disabled_jit(threads):
    expected = ja.explain(ja.occlusion, fn, X[:4], 1).values
    with jax.disable_jit():
        found = ja.explain(ja.occlusion, fn, X[:4], 1, batch_size=2).values
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_where_the_caller_has_set_a_mesh_it_computes(threads):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def constrained(x):
        return fn(jax.lax.with_sharding_constraint(x, PartitionSpec()))

    with jax.set_mesh(mesh):
        found = ja.explain(ja.gradient, constrained, X, 1, batch_size=6).values
    assert not others(threads)
    np.testing.assert_allclose(found, ja.explain(ja.gradient, fn, X, 1).values, atol=1e-6)


def test_from_several_threads_at_once(threads):
    expected = {method: call(X) for method, call in METHODS.items()}

    def call(i):
        method = list(METHODS)[i % len(METHODS)]
        return method, METHODS[method](X, batch_size=[9, 30][i % 2])

    with ThreadPoolExecutor(4) as users:
        for method, found in users.map(call, range(12)):
            np.testing.assert_allclose(found.values, expected[method].values, atol=1e-6)


def test_a_new_function_from_several_threads_at_once(threads):
    """Nothing is known of it: all trace and bind at the same time."""

    def cubes(x):
        return jnp.stack([(x**3).sum(), x.prod()])

    with ThreadPoolExecutor(4) as users:
        calls = [users.submit(ja.explain, ja.occlusion, cubes, X, 0, window=w) for w in (1, 2) * 3]
        found = [call.result().values for call in calls]
    for i in range(2, 6):
        np.testing.assert_allclose(found[i], found[i % 2], atol=1e-6)


def test_after_jaxs_caches_were_cleared_threads_compile(threads):
    def call():
        return ja.explain(ja.occlusion, fn, X, 1, batch_size=20, window=4).values

    expected = call()
    jax.clear_caches()
    np.testing.assert_allclose(call(), expected, atol=1e-6)


def test_an_fn_that_itself_explains(threads):
    def important(x):
        return ja.integrated_gradients(fn, x, 1, num_steps=5, check_finite=False).values.sum()

    found = ja.explain(ja.occlusion, important, X, batch_size=40).values
    again = ja.explain(ja.occlusion, important, X, batch_size=40).values
    one = ja.occlusion(important, X[5]).values
    np.testing.assert_array_equal(found, again)
    np.testing.assert_allclose(found[5], one, atol=1e-5)


def test_a_callback_that_explains(threads):
    """A thread waits for a part that cannot end before another has run in some thread."""

    def explained(x):
        return np.asarray(ja.explain(ja.gradient, fn, np.stack([x] * 4), 1).values[0].sum())

    expected = [explained(x) for x in X]
    found = list(side_by_side(explained, list(X), 2))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def workers(method=ja.occlusion, f=fn, xs=X, **options):
    return prepare(method, f, xs, 1, **options).plan.workers


def test_tiny_work_needs_no_thread():
    def network(x):
        return jnp.tanh(jnp.outer(x, jnp.ones(2000)) @ jnp.ones((2000, 2)))[0]

    assert workers() == 1
    assert workers(ja.gradient, network, X[:1]) == 1
    big = np.concatenate([X] * 200)
    assert workers(ja.occlusion, network, big) == min(cores(), len(big))


@pytest.mark.usefixtures("threads")
def test_where_there_are_no_threads(monkeypatch):
    assert workers() == 2
    assert workers(xs=X[:1]) == 1
    assert workers(batch_size=1) == 1
    assert workers(mesh=Mesh(np.array(jax.devices()[:2]), ("data",))) == 1
    traced = []
    jax.make_jaxpr(lambda xs: traced.append(workers(xs=xs, check_finite=False)))(X)
    assert traced == [1]

    class Accelerator:
        platform = "gpu"

    monkeypatch.setattr(planning, "device_of", lambda leaves: Accelerator())
    assert workers(batch_size=100) == 1


def test_inside_of_jit(threads):
    expected = METHODS["occlusion"](X).values
    threads.clear()
    found = jax.jit(lambda xs: METHODS["occlusion"](xs).values)(X)
    assert not others(threads)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_progress_counts_all_parts(threads, capsys):
    ja.explain(ja.gradient, fn, X, 0, batch_size=6, progress=True)
    assert "100%" in capsys.readouterr().out
