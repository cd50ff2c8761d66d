"""The number of programs that XLA compiles."""

import contextlib
from collections.abc import Iterator

import jax

_compiled: list[str] = []


def _listen(event: str, duration: float, **rest: object) -> None:
    if event.endswith("backend_compile_duration"):
        _compiled.append(event)


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def compiles(count: int, *, at_most: bool = False) -> Iterator[None]:
    """Assert that XLA compiles exactly, or at most, `count` programs."""
    before = len(_compiled)
    yield
    compiled = len(_compiled) - before
    assert compiled <= count if at_most else compiled == count
