"""Parts of a call side by side on the cores of a CPU.

XLA shares each operation out over all cores, and for the small operations of a recurrent step the
cores mostly wait for each other. A core for each part has nothing to wait for.
"""

import contextvars
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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

_pools: dict[int, ThreadPoolExecutor] = {}


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def side_by_side(
    f: Callable[[Part], Answer], parts: Iterable[Part], workers: int
) -> Iterator[Answer]:
    """`f` of each part, in order, of which `workers` run at a time, each to its end.

    Args:
        f: what to compute; it is called in other threads.
        parts: of what; they are asked for as threads get free.
        workers: how many threads there are.
    """
    settings = _settings()
    running: deque[tuple[Part, Future[tuple[bool, Any]]]] = deque()
    if workers not in _pools:
        _pools[workers] = ThreadPoolExecutor(workers, thread_name_prefix="jaxattn")

    def attempt(part: Part) -> tuple[bool, Any]:
        with ExitStack() as entered:
            for name, value in settings.items():
                if name in _CONTEXTS and getattr(jax.config, name) != value:
                    entered.enter_context(_CONTEXTS[name](value))
            if _settings() != settings:  # here f would be another function
                return False, None
            return True, jax.block_until_ready(f(part))

    def finished() -> Answer:
        part, future = running.popleft()
        done, answer = future.result()
        return answer if done else f(part)

    try:
        for part in parts:
            context = contextvars.copy_context()
            running.append((part, _pools[workers].submit(context.run, attempt, part)))
            if len(running) > workers:
                yield finished()
        while running:
            yield finished()
    finally:
        for _, future in running:
            future.cancel()


def _settings() -> dict[str, Any]:
    """JAX's settings as this thread sees them."""
    config: Any = jax.config  # its flags are made at run time
    return {name: getattr(config, name, None) for name in config.values}
