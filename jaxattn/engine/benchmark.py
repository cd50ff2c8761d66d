"""The cost of a method on a device: time, memory and arithmetic."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxattn._types import Attribution, Inputs, Method, RandomKey, Target
from jaxattn.engine.explain import explain, prepare
from jaxattn.engine.launch import trace_part
from jaxattn.engine.options import name_of
from jaxattn.jaxpr.flops import count_flops


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The cost of a call of `jaxattn.explain`, in seconds and bytes.

    Attributes:
        method: the method's name.
        platform: "cpu", "gpu" or "tpu".
        device: the name of the device.
        device_count: the number of devices.
        examples: the number of examples.
        evaluations: the number of evaluations of `fn`, as the method declares it; one with its
            gradient counts once.
        compile_seconds: to trace, lower and compile the program, without caches.
        repeats: the number of calls that were timed.
        run_seconds: the median time of a call, without compilation.
        run_seconds_q1: the first quartile.
        run_seconds_q3: the third quartile.
        peak_bytes: arguments, output and temporaries of the program on each device, as
            XLA reports them; `None` if it does not.
        flops: operations of a call on all devices, before XLA optimises, the body of a loop counted
            as often as it runs; the examples that fill up the last chunk count as well.
        flops_exact: whether `flops` is exact: with a loop of unknown length it is a lower bound.
    """

    method: str
    platform: str
    device: str
    device_count: int
    examples: int
    evaluations: int
    compile_seconds: float
    repeats: int
    run_seconds: float
    run_seconds_q1: float
    run_seconds_q3: float
    peak_bytes: int | None
    flops: int
    flops_exact: bool

    @property
    def examples_per_second(self) -> float:
        """Examples per second at the median time."""
        return self.examples / self.run_seconds

    @property
    def evaluations_per_second(self) -> float:
        """Evaluations of `fn` per second at the median time."""
        return self.evaluations / self.run_seconds

    @property
    def flops_per_second(self) -> float:
        """Operations per second at the median time."""
        return self.flops / self.run_seconds

    def __str__(self) -> str:
        low, middle, high = (
            f"{1e3 * s:.4g}" for s in (self.run_seconds_q1, self.run_seconds, self.run_seconds_q3)
        )
        memory = "" if self.peak_bytes is None else f"{self.peak_bytes / 2**20:.4g} MiB, "
        return (
            f"{self.method} on {self.device_count} x {self.device}: {self.examples} examples in "
            f"{middle} ms (quartiles {low} to {high}), {self.examples_per_second:.4g} examples/s, "
            f"{self.evaluations_per_second:.4g} evaluations/s, "
            f"{self.flops_per_second / 1e9:.4g} Gflop/s, {memory}"
            f"compiled in {self.compile_seconds:.3g} s"
        )


def benchmark(
    method_: Method,
    fn: Callable[..., Any],
    xs: Inputs,
    /,
    targets: Target = None,
    *,
    repeats: int = 10,
    args: tuple[Any, ...] = (),
    at: str | Sequence[str] | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    check_finite: bool = True,
    **options: Any,
) -> Benchmark:
    """Measure the time, memory and operations of a call of `jaxattn.explain`.

    A run is the whole call until its result is ready: checks, chunks, and transfers to the device
    (pass arrays that are there already to exclude these). A first run is not counted. Compilation
    is measured separately, on a copy of the program that no cache of JAX holds, in memory or on
    disk; JAX itself is warm by then.

    Args:
        method_: as for `jaxattn.explain`, like all arguments but `repeats`.
        fn: maps one example to an output.
        xs: the examples, each leaf with a leading axis of length B.
        targets: the entry of the output that is explained.
        repeats: the number of runs that are timed.
        args: further inputs of `fn`, each leaf with a leading axis of length B.
        at: the name of an intermediate that is explained instead of `xs`.
        key: a random key for methods that draw.
        batch_size: the maximum number of evaluations of `fn` in flight on a device.
        mesh: devices over which the examples are spread.
        check_finite: whether to raise an error for NaN and infinity in `xs`.
        **options: the method's own.

    Returns:
        the `Benchmark`.

    Raises:
        ValueError: for `repeats` that is not a positive int, and as `jaxattn.explain`.
        TypeError: as `jaxattn.explain`.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> def fn(x):
        ...     return (x**2).sum()
        >>> print(ja.benchmark(ja.occlusion, fn, jnp.ones((4, 8)), repeats=3))
        occlusion on 1 x ...: 4 examples in ... ms (quartiles ...), ...
    """
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"`repeats` must be a positive int, got {repeats!r}.")
    call: dict[str, Any] = {
        "args": args,
        "at": at,
        "key": key,
        "batch_size": batch_size,
        "mesh": mesh,
        "check_finite": check_finite,
        **options,
    }

    def run() -> Attribution:
        attribution: Attribution = explain(method_, fn, xs, targets, **call)
        return jax.block_until_ready(attribution)

    attribution = run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    low, middle, high = map(float, np.percentile(seconds, (25, 50, 75)))

    work = prepare(method_, fn, xs, targets, **call)
    start = time.perf_counter()
    traced = trace_part(work.binding, work.examples, work.plan)
    compiled = traced.lower().compile()
    compile_seconds = time.perf_counter() - start

    flops = count_flops(traced.jaxpr)
    calls = sum(plan.examples for plan in work.plans) / work.plan.examples
    devices = list(mesh.devices.flat if mesh else jax.tree.leaves(attribution)[0].devices())
    return Benchmark(
        method=name_of(method_),
        platform=devices[0].platform,
        device=devices[0].device_kind,
        device_count=len(devices),
        examples=work.batch,
        evaluations=work.batch * work.load.evaluations,
        compile_seconds=compile_seconds,
        repeats=repeats,
        run_seconds=middle,
        run_seconds_q1=low,
        run_seconds_q3=high,
        peak_bytes=_peak_bytes(compiled),
        flops=round(calls * flops.total),
        flops_exact=not flops.unbounded,
    )


def _peak_bytes(compiled: jax.stages.Compiled) -> int | None:
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    return int(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
