"""Parts of a call in parallel on the cores of a CPU.

XLA divides each operation over all cores, and for the small operations of a recurrent step the
cores mostly wait for each other. A core for each part waits for nothing.

The cores are those that the process may use. If many processes share a machine, assign cores to
each, as `taskset` does, or set `PYTHON_CPU_COUNT=1` from Python 3.13 on. `batch_size=1` keeps a
call in its thread, too.
"""

import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any, TypeVar

import jax

Part = TypeVar("Part")
Result = TypeVar("Result")

#: JAX's context managers hold in their own thread only; these are entered in the others too.
_CONTEXTS: dict[str, Callable[..., Any]] = {
    "jax_debug_nans": jax.debug_nans,
    "jax_default_device": jax.default_device,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_enable_x64": jax.enable_x64,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
}

#: Seconds after which the caller computes a part that no thread has started: other calls occupy the
#: threads, and may themselves wait for this part.
_PATIENCE = 0.005

#: A pool takes as long to start as a small part to compute, so all callers share it.
_pools: dict[int, ThreadPoolExecutor] = {}

if hasattr(os, "register_at_fork"):  # a child process has the pools, but not their threads
    os.register_at_fork(after_in_child=_pools.clear)


def cores() -> int:
    """Return how many cores this process may use, by its affinity or PYTHON_CPU_COUNT."""
    if hasattr(os, "process_cpu_count"):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def side_by_side(
    f: Callable[[Part], Result], parts: Iterable[Part], workers: int
) -> Iterator[Result]:
    """Yield `f(part)` in order; `workers` parts are computed at a time, each to its end.

    If the caller stops early, running parts are awaited, so that they hold no memory afterwards.

    Args:
        f: the function; it is called in other threads.
        parts: its arguments, which are read as threads become free.
        workers: the number of threads.
    """
    settings, free = _settings(), threading.Semaphore(workers)
    running: deque[tuple[Part, Future[tuple[Result] | None]]] = deque()

    def compute(part: Part) -> Result:
        with free:
            result: Result = jax.block_until_ready(f(part))
            return result

    def attempt(part: Part) -> tuple[Result] | None:
        with ExitStack() as entered:
            for name, value in settings.items():
                if name in _CONTEXTS and getattr(jax.config, name) != value:
                    entered.enter_context(_CONTEXTS[name](value))
            if _settings() != settings:  # f would be another function here
                return None
            try:
                return (compute(part),)
            except jax.errors.JaxRuntimeError:
                raise
            except Exception:  # it may depend on what holds in the caller's thread only
                return None

    def finished() -> Result:
        part, future = running[0]
        wait([future], _PATIENCE)
        result = None if future.cancel() else future.result()
        running.popleft()
        return compute(part) if result is None else result[0]

    try:
        for part in parts:
            future = _submit(workers, contextvars.copy_context().run, attempt, part)
            running.append((part, future))
            if len(running) > workers:
                yield finished()
        while running:
            yield finished()
    finally:
        wait([future for _, future in running if not future.cancel()])


def _submit(workers: int, f: Callable[..., Any], *inputs: object) -> Future[Any]:
    """Submit a call to the pool of so many workers; it is cancelled if no thread can start."""
    pool = _pools.get(workers)
    if pool is None:
        pool = _pools.setdefault(workers, ThreadPoolExecutor(workers, "jaxattn"))
    try:
        return pool.submit(f, *inputs)
    except RuntimeError:  # the interpreter ends
        never: Future[Any] = Future()
        never.cancel()
        never.set_running_or_notify_cancel()
        return never


def _settings() -> dict[str, Any]:
    """Return the settings of JAX as this thread sees them."""
    return {name: getattr(jax.config, name, None) for name in jax.config.values}
