"""Plans: the evaluations of `fn` in flight, and their division over examples."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeAlias

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxattn._static import is_concrete
from jaxattn._types import check_count
from jaxattn.engine import launch, memory
from jaxattn.engine.batch import balanced
from jaxattn.engine.binding import Binding
from jaxattn.engine.compiled import Plan
from jaxattn.engine.lengths import Lengths, part_sizes
from jaxattn.engine.memo import MEMOS
from jaxattn.engine.placement import device_of, divided, in_mesh
from jaxattn.engine.threads import cores
from jaxattn.jaxpr.program import Signature

#: Examples that a call takes at least, evaluations in flight permitting.
_AT_ONCE = 16

#: Operations that take a core about a millisecond.
_WORTH_A_THREAD = 5 * 10**7


@dataclasses.dataclass(slots=True)
class Workload:
    """The work that a plan divides.

    Attributes:
        batch: the number of examples, `None` for one without a leading axis.
        evaluations: the evaluations of `fn` that one example takes.
        in_flight: how many of these can run at once.
        targets: the number of targets that each take evaluations of their own.
        shares_states: whether evaluations of one example share the states of loops.
        convolves: whether `fn` convolves.
        workers: how many threads there are for parts of the batch.
        in_few_sizes: whether the parts have sizes that serve batches of any length.
    """

    batch: int | None
    evaluations: int
    in_flight: int
    targets: int = 1
    shares_states: bool = False
    convolves: bool = False
    workers: int = 1
    in_few_sizes: bool = False

    @property
    def examples(self) -> int:
        """The number of examples, one without a leading axis included."""
        return 1 if self.batch is None else self.batch


#: Divides the work into the plans of its parts, with a limit of evaluations in flight.
_Division: TypeAlias = Callable[[Workload, int, Mesh | None], list[Plan]]


def make_plans(
    binding: Binding,
    load: Workload,
    examples: PyTree,
    batch_size: int | None,
    mesh: Mesh | None,
) -> list[Plan]:
    """Divide the evaluations in flight over examples and inside of an example.

    Without `batch_size` the program is compiled with fewer evaluations in flight until it suits
    the memory of the device. `load` is completed by what the function's program tells.

    Returns:
        The plan of each part. Together they take all examples, or a few more.
    """
    limit_seen = MEMOS.limits.get(binding.key)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    leaves = jax.tree.leaves((examples, binding.arrays_on(None)))
    device = mesh.devices.flat[0] if mesh else device_of(leaves)
    concrete = all(map(is_concrete, leaves))
    rows = binding.rows
    load.convolves, load.shares_states = rows.convolves, load.shares_states and rows.loops
    if concrete and mesh is None and device.platform == "cpu" and not in_mesh():
        load.workers = _workers(rows.flops * load.evaluations * load.targets, load.batch)
    limit = memory.default_in_flight(device, rows) * load.workers
    limit = limit if batch_size is None else int(batch_size)
    limit = min(limit, limit_seen or limit)
    lengths = _lengths((binding.key, batch_size, mesh)) if concrete and load.batch else None
    if lengths is None or lengths.is_exact(load.examples):
        division: _Division = equal_parts
    else:
        division = functools.partial(few_sizes, exact=tuple(lengths.exact.values()))
        load.in_few_sizes = True
    if concrete and batch_size is None:
        # States that coalitions share take the same memory with fewer of them in flight.
        least = limit if load.shares_states else rows.least
        limit = _suitable(binding, load, examples, _Trial(division, limit, mesh, device, least))
    plans = division(load, limit, mesh)
    if lengths is not None and not load.in_few_sizes:
        lengths.exact[load.examples] = plans[0].examples
    return plans


def _lengths(key: Hashable) -> Lengths:
    if key not in MEMOS.lengths:
        MEMOS.lengths[key] = Lengths()
    return MEMOS.lengths[key]


class _Trial(NamedTuple):
    """A division of the work that is compiled to find how many evaluations are in flight.

    Attributes:
        division: divides the work.
        limit: the evaluations in flight of the first trial.
        mesh: the devices of the call.
        device: one of them.
        least: the evaluations with which the function runs at full speed.
    """

    division: _Division
    limit: int
    mesh: Mesh | None
    device: jax.Device
    least: int


def _suitable(binding: Binding, load: Workload, examples: PyTree, trial: _Trial) -> int:
    """Compile with fewer evaluations in flight until the program suits the device."""
    division, limit, mesh, device, least = trial
    plan = division(load, limit, mesh)[0]
    shapes = Signature.of(binding.option_arrays), tuple(examples.options)
    key = binding.key, shapes, limit, plan
    while key not in MEMOS.suitable:
        try:
            needed = memory.needed(launch.compile_part(binding, examples, plan)) * plan.workers
        except jax.errors.JaxRuntimeError as error:
            limit = shrink(binding, plan, error)
            plan = division(load, limit, mesh)[0]
            continue
        fewer = memory.fewer_in_flight(device, least * plan.workers, plan.in_flight, needed)
        if fewer == plan.in_flight:
            MEMOS.suitable[key] = limit
        else:
            limit = fewer
            plan = division(load, limit, mesh)[0]
            least = plan.in_flight  # smaller for the sake of the caches only once
    return MEMOS.suitable[key]


class _Shares(NamedTuple):
    """The evaluations in flight, divided over devices and threads.

    Attributes:
        mesh: the devices by examples and evaluations.
        rows: the devices that take different examples.
        workers: the number of threads.
        limit: the evaluations in flight on one device in one thread.
        inside: the evaluations of one example that may be in flight there.
        most: the largest number of examples there.
    """

    mesh: Mesh | None
    rows: int
    workers: int
    limit: int
    inside: int
    most: int

    def plan(self, examples: int) -> Plan:
        """Return the plan of a part with so many examples on each device."""
        inside = min(self.inside, self.limit // examples)
        return Plan(False, examples * self.rows, inside, self.mesh, self.workers)


def _shares(load: Workload, limit: int, mesh: Mesh | None) -> _Shares:
    inside, rows = load.in_flight, 1
    if mesh is not None:
        mesh = divided(mesh, load.examples, inside)
        rows, columns = mesh.devices.shape
        inside = -(-inside // columns)
    inside *= load.targets  # they are not divided over devices
    workers = max(1, min(load.workers, limit))
    limit = limit // workers
    # What is done once for each example is better done for several at once. But XLA takes the
    # reversed kernel of a gradient out of a loop, and with it the fast algorithm of a convolution.
    least = 1 if load.convolves else _AT_ONCE
    return _Shares(mesh, rows, workers, limit, inside, min(limit, max(limit // inside, least)))


def equal_parts(load: Workload, limit: int, mesh: Mesh | None) -> list[Plan]:
    """Divide a batch into equal parts with at most `limit` evaluations in flight."""
    if load.batch is None:
        return [Plan(True, 1, min(limit, load.in_flight * load.targets), None)]
    shares = _shares(load, limit, mesh)
    batch, workers = -(-load.batch // shares.rows), shares.workers
    calls = -(-balanced(batch, shares.most)[0] // workers) * workers  # no thread idles at the end
    plan = shares.plan(-(-batch // calls))
    return [plan] * -(-load.batch // plan.examples)


def few_sizes(load: Workload, limit: int, mesh: Mesh | None, *, exact: Sequence[int]) -> list[Plan]:
    """Divide a batch into parts of few sizes: `exact` ones and powers of two."""
    shares = _shares(load, limit, mesh)
    known = [size // shares.rows for size in exact if size % shares.rows == 0]
    batch = -(-load.examples // shares.rows)
    return list(map(shares.plan, part_sizes(batch, shares.most, shares.workers, known)))


def shrink(binding: Binding, plan: Plan, error: Exception) -> int:
    """Halve the evaluations in flight after an error for lack of memory, from now on.

    Raises:
        JaxRuntimeError: for any other error, and where only one evaluation was in flight.
    """
    if not memory.is_exhausted(error):
        raise error
    if plan.in_flight == 1:
        raise jax.errors.JaxRuntimeError(
            "The device has too little memory for one evaluation of `fn` at a time and the arrays "
            f"that the method keeps: {error}"
        ) from error
    limit = plan.in_flight // 2
    MEMOS.limits[binding.key] = limit
    warnings.warn(
        f"The device has too little memory for {plan.in_flight} evaluations of fn in flight. The "
        f"call continues with {limit}; pass batch_size={limit} to start with that many.",
        UserWarning,
        stacklevel=2,
    )
    return limit


def _workers(flops: int, batch: int | None) -> int:
    """Return the number of threads for parts of the batch: short work is not worth a thread."""
    if batch is None or batch * flops < _WORTH_A_THREAD:
        return 1
    return min(cores(), batch)
