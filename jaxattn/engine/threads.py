"""Parts of a call side by side on the cores of a CPU.

XLA shares each operation out over all cores, and for the small operations of a recurrent step the
cores mostly wait for each other. A core for each part has nothing to wait for.

The cores are those that the process may use: where many processes share a machine, give each its
own, as `taskset` does, or `PYTHON_CPU_COUNT=1` from Python 3.13 on. `batch_size=1` keeps a call in
its thread too.
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
Answer = TypeVar("Answer")

#: JAX's context managers hold in their own thread only; these are entered in the others too.
_CONTEXTS: dict[str, Callable[[Any], Any]] = {
    "jax_debug_nans": jax.debug_nans,
    "jax_default_device": jax.default_device,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_enable_x64": jax.enable_x64,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
}

#: Seconds after which a part that no thread has taken up is computed by who waits for it: others
#: have the threads, and may themselves wait for this part.
_PATIENCE = 0.005

#: A pool costs as much to start as a small part to compute. It is shared by all who call.
_pools: dict[int, ThreadPoolExecutor] = {}

if hasattr(os, "register_at_fork"):  # a child has the pools, but not their threads
    os.register_at_fork(after_in_child=_pools.clear)


def cores() -> int:
    """How many cores this process may use, by its affinity or PYTHON_CPU_COUNT."""
    if hasattr(os, "process_cpu_count"):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def side_by_side(
    f: Callable[[Part], Answer], parts: Iterable[Part], workers: int
) -> Iterator[Answer]:
    """`f` of each part, in order, of which `workers` run at a time, each to its end.

    Where the end is not reached, what runs is waited for, so that it takes no memory any more.

    Args:
        f: what to compute; it is called in other threads.
        parts: of what; they are asked for as threads get free.
        workers: how many threads there are.
    """
    settings, free = _settings(), threading.Semaphore(workers)
    running: deque[tuple[Part, Future[tuple[Answer] | None]]] = deque()

    def compute(part: Part) -> Answer:
        with free:
            answer: Answer = jax.block_until_ready(f(part))
            return answer

    def attempt(part: Part) -> tuple[Answer] | None:
        with ExitStack() as entered:
            for name, value in settings.items():
                if name in _CONTEXTS and getattr(jax.config, name) != value:
                    entered.enter_context(_CONTEXTS[name](value))
            if _settings() != settings:  # here f would be another function
                return None
            try:
                return (compute(part),)
            except jax.errors.JaxRuntimeError:
                raise
            except Exception:  # it may miss what else holds in the caller's thread only
                return None

    def finished() -> Answer:
        part, future = running[0]
        wait([future], _PATIENCE)
        answer = None if future.cancel() else future.result()
        running.popleft()
        return compute(part) if answer is None else answer[0]

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


def _submit(workers: int, f: Callable[..., Any], *inputs: Any) -> Future[Any]:
    """A call in a thread of the pool of so many workers; it is cancelled where none can start."""
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
    """JAX's settings as this thread sees them."""
    config: Any = jax.config  # its flags are made at run time
    return {name: getattr(config, name, None) for name in config.values}
