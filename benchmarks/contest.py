"""Measure contenders in turns, each at its best setting, and compare their results."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from time import perf_counter, sleep
from typing import Any, NamedTuple, get_args

import jax
import numpy as np

import jaxattn as ja
from benchmarks import captum_peer, handwritten, limits, timeshap_peer, tint_peer
from benchmarks.cells import Cell, Work, prepare
from benchmarks.progress import track
from jaxattn.jaxpr.flops import count_flops

SWEEPS = 3  # calls that decide which setting is the best
HOPELESS = 1.5  # a setting slower than the best by this factor is not called again
COARSER = 100  # factor of the tolerance where products are rounded to TF32's 10 bits
PAUSE = 0.25  # seconds until the spinning threads of another library sleep
TURN = 0.1  # seconds of a turn, filled with several calls if one is shorter
SLOW = 10.0  # seconds of a call of which one decides
FLOOR = 1e-30  # scale of a result that is zero everywhere


#: The libraries that can be measured. Each module says `why_not` on a device, its `versions`, the
#: `kinds` of settings in which it does the work of a cell, and can `build` it at a setting.
PEERS: Mapping[str, Any] = {
    "captum": captum_peer,
    "tint": tint_peer,
    "timeshap": timeshap_peer,
}


class Built(NamedTuple):
    """One contender at one setting, ready to run.

    Attributes:
        setting: the setting, as text.
        run: computes the result and waits for it.
        compile_seconds: time of tracing and compiling; `None` without compilation.
        peak_bytes: memory of the program according to XLA.
        flops: operations of the program.
        nonlinear: the number of tanh, sigmoids and exponentials among them.
        first_seconds: time of the first call: tracing, compiling and running.
        cached_seconds: time of a call with empty caches in memory, and the cache on disk.
        compared: computes the values that are compared, if they are not those of `run`.
    """

    setting: str
    run: Callable[[], Any]
    compile_seconds: float | None = None
    peak_bytes: int | None = None
    flops: int | None = None
    nonlinear: int = 0
    first_seconds: float | None = None
    cached_seconds: float | None = None
    compared: Callable[[], Any] | None = None


class Entry(NamedTuple):
    """The measurements of a contender in a cell.

    Attributes:
        built: the contender at its best setting.
        sweep: seconds at each setting that was tried; `None` where it failed.
        difference: the largest difference from jaxattn's result, relative to the largest value.
        seconds: seconds of each round.
        ratios: the ratio to jaxattn's seconds of the same round.
    """

    built: Built
    sweep: dict[str, float | None]
    difference: float
    seconds: list[float]
    ratios: list[float]


class DisagreementError(Exception):
    """A contender's result differs from jaxattn's, so its time is not comparable."""


Builders = Sequence[tuple[str, Callable[[], Built]]]


def contend(
    name: str,
    cell: Cell,
    peers: Sequence[str],
    platform: str,
    chunks: list[int] | None,
    rounds: int,
    *,
    tf32: bool = False,
    cache: bool = False,
) -> dict[str, Entry]:
    """Measure jaxattn, hand-written JAX and the peers on a cell, in turns.

    Args:
        name: the cell's name.
        cell: the work.
        peers: names of `PEERS`.
        platform: "cpu", "gpu" or "tpu".
        chunks: the chunk sizes to try; all powers of two by default.
        rounds: the number of turns of each contender.
        tf32: whether a GPU may round products to TF32.
        cache: whether JAX keeps compiled programs on disk; a call that loads them is measured too.

    Returns:
        An entry for each contender, jaxattn first.

    Raises:
        DisagreementError: if a result differs by more than the cell's tolerance.
    """
    work = prepare(cell)
    ours = jaxattn(work, cache)
    reference = np.asarray(ours.run())
    chosen, sweeps = {"jaxattn": ours}, {"jaxattn": {ours.setting: seconds_of(ours.run)}}
    differences = {"jaxattn": 0.0}
    tolerance = cell.tolerance * (COARSER if tf32 else 1)
    for contender, builders in contenders(work, peers, platform, chunks, tf32).items():
        best, sweep, worst = _sweep(f"{name}: {contender}", builders, reference, tolerance)
        chosen[contender], sweeps[contender], differences[contender] = best, sweep, worst
    turns: dict[str, list[float]] = {contender: [] for contender in chosen}
    for turn in track(range(rounds), "rounds", None, inside=name):
        order = list(chosen) if turn % 2 == 0 else list(chosen)[::-1]
        for contender in order:
            turns[contender].append(seconds_of(chosen[contender].run))
    return {
        contender: Entry(
            built,
            sweeps[contender],
            differences[contender],
            turns[contender],
            (np.asarray(turns[contender]) / np.asarray(turns["jaxattn"])).tolist(),
        )
        for contender, built in chosen.items()
    }


def contenders(
    work: Work, peers: Sequence[str], platform: str, chunks: list[int] | None, tf32: bool = False
) -> Mapping[str, Builders]:
    """Return the settings of each opponent that are tried."""
    cell = work.cell
    every: dict[str, Builders] = {}
    if handwritten.is_written(cell):
        sizes = powers_of_two(handwritten.largest_chunk(cell), chunks)
        by_hand_ways = [
            handwritten.Setting(size, projection)
            for projection in get_args(handwritten.Projection)
            for size in sizes
        ]
        every["handwritten"] = [(str(way), partial(by_hand, work, way)) for way in by_hand_ways]
    for peer in peers:
        for kind, ways in PEERS[peer].kinds(cell, platform, chunks, powers_of_two).items():
            every[f"{peer}{kind}"] = [
                (str(way), partial(by_peer, peer, work, way, platform, tf32)) for way in ways
            ]
    return every


def powers_of_two(largest: int, sizes: list[int] | None = None) -> list[int]:
    """Return the powers of two up to a number, and that number; or given sizes, limited to it."""
    if sizes is not None:
        return sorted({min(size, largest) for size in sizes})
    return [2**i for i in range(largest.bit_length()) if 2**i < largest] + [largest]


def jaxattn(work: Work, cache: bool = False) -> Built:
    """Prepare jaxattn with default options and examples on the device."""
    method, options = work.method, work.options
    xs, targets = jax.device_put((work.xs, work.targets))

    def run() -> Any:
        attribution = ja.explain(method, work.model, xs, targets, **options)
        return jax.block_until_ready(attribution).values

    start = perf_counter()
    run()
    first = perf_counter() - start
    cached = None
    if cache:
        jax.clear_caches()
        start = perf_counter()
        run()
        cached = perf_counter() - start
    figures = ja.benchmark(method, work.model, xs, targets, repeats=1, **options)
    program = jax.make_jaxpr(
        lambda xs, targets: ja.explain(method, work.model, xs, targets, **options).values
    )(xs, targets)
    return Built(
        "default",
        run,
        figures.compile_seconds,
        figures.peak_bytes,
        figures.flops,
        limits.nonlinearities(count_flops(program).by_primitive),
        first,
        cached,
    )


def by_peer(peer: str, work: Work, setting: Any, platform: str, tf32: bool) -> Built:
    """Prepare a library at a setting."""
    built = PEERS[peer].build(work, setting, platform, tf32)
    return Built(str(setting), built.run, compared=built.compared)


def by_hand(work: Work, setting: handwritten.Setting) -> Built:
    """Compile the hand-written explanation at a setting."""
    arguments = jax.device_put((work.weights, work.xs, work.targets))
    start = perf_counter()
    traced = jax.jit(handwritten.build(work.cell, setting)).trace(*arguments)
    compiled = traced.lower().compile()
    compile_seconds = perf_counter() - start
    memory = compiled.memory_analysis()
    peak = (
        None
        if memory is None
        else int(
            memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        )
    )

    def run() -> Any:
        return jax.block_until_ready(compiled(*arguments))

    return Built(str(setting), run, compile_seconds, peak, count_flops(traced.jaxpr).total)


def _sweep(
    who: str, builders: Builders, reference: np.ndarray, tolerance: float
) -> tuple[Built, dict[str, float | None], float]:
    """Return the fastest of the settings, the seconds of all, and its difference."""
    best: tuple[float, Built, float] | None = None
    sweep: dict[str, float | None] = {}
    error: Exception | None = None
    compared: Any = None  # of all settings
    for setting, build in track(builders, "settings", itemgetter(0), inside=who):
        try:
            built = build()
            result = built.run()
            if built.compared is not None:
                result = compared = built.compared() if compared is None else compared
        except (RuntimeError, MemoryError) as failure:  # a chunk too large for the device
            sweep[setting], error = None, failure
            continue
        difference = compare(f"{who} (setting {setting})", result, reference, tolerance)
        seconds = seconds_of(built.run, 0)
        if seconds < SLOW and (best is None or seconds < HOPELESS * best[0]):
            seconds = min([seconds, *(seconds_of(built.run, 0) for _ in range(SWEEPS - 1))])
        sweep[setting] = seconds
        if best is None or seconds < best[0]:
            best = seconds, built, difference
    if best is None:
        raise RuntimeError(f"{who} ran at none of its settings: {error}") from error
    return best[1], sweep, best[2]


def compare(who: str, result: Any, reference: np.ndarray, tolerance: float) -> float:
    """Return the largest difference, relative to the reference's largest value.

    Raises:
        DisagreementError: if the shapes differ, or the difference exceeds the tolerance.
    """
    values = np.asarray(result.cpu() if hasattr(result, "cpu") else result)
    if values.shape != reference.shape:
        raise DisagreementError(f"{who} has shape {values.shape}, jaxattn's {reference.shape}")
    scale = max(float(np.abs(reference).max()), FLOOR)
    difference = float(np.abs(values - reference).max()) / scale
    if not difference <= tolerance:  # true for NaN as well
        raise DisagreementError(
            f"{who} differs from jaxattn by {difference:.2g} of the largest value, "
            f"more than {tolerance:g}: no time is given"
        )
    return difference


def seconds_of(run: Callable[[], Any], turn: float = TURN) -> float:
    """Return the median seconds of the calls that fit in a turn, at least one."""
    sleep(PAUSE)
    seconds: list[float] = []
    while not seconds or sum(seconds) + seconds[-1] < turn:
        start = perf_counter()
        run()
        seconds.append(perf_counter() - start)
    return float(np.median(seconds))
