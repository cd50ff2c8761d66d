"""Plans: the evaluations of `fn` in flight, and their division over examples."""

import dataclasses
import warnings

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxattn._static import is_concrete
from jaxattn._types import check_count
from jaxattn.engine import launch, memory
from jaxattn.engine.batch import balanced
from jaxattn.engine.binding import Binding
from jaxattn.engine.compiled import Plan
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
        convolves: whether `fn` convolves.
        workers: how many threads there are for parts of the batch.
    """

    batch: int | None
    evaluations: int
    in_flight: int
    convolves: bool = False
    workers: int = 1


def make_plan(
    binding: Binding,
    load: Workload,
    examples: PyTree,
    batch_size: int | None,
    mesh: Mesh | None,
) -> Plan:
    """Divide the evaluations in flight over examples and inside of an example.

    Without `batch_size` the program is compiled with fewer evaluations in flight until it suits
    the memory of the device. `load` is completed by what the function's program tells.
    """
    limit_seen = MEMOS.limits.get(binding.key)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    leaves = jax.tree.leaves((examples, binding.arrays_on(None)))
    device = mesh.devices.flat[0] if mesh else device_of(leaves)
    concrete = all(map(is_concrete, leaves))
    rows = binding.rows
    load.convolves = rows.convolves
    if concrete and mesh is None and device.platform == "cpu" and not in_mesh():
        load.workers = _workers(rows.flops * load.evaluations, load.batch)
    if batch_size is not None:
        return divide(load, min(int(batch_size), limit_seen or int(batch_size)), mesh)
    limit = memory.default_in_flight(device, rows) * load.workers
    limit = min(limit, limit_seen or limit)
    if not concrete:
        return divide(load, limit, mesh)
    shapes = Signature.of((binding.option_arrays, examples))
    key = binding.key, shapes, limit, load.workers, mesh
    plan = MEMOS.plans.get(key)
    if plan is None:
        plan = divide(load, limit, mesh)
        MEMOS.plans[key] = plan = _fitted(binding, load, examples, plan, device, rows.least)
    return plan


def _fitted(
    binding: Binding, load: Workload, examples: PyTree, plan: Plan, device: jax.Device, least: int
) -> Plan:
    """Compile with fewer evaluations in flight until the program suits the device."""
    while True:
        try:
            needed = memory.needed(launch.compile_part(binding, examples, plan)) * plan.workers
        except jax.errors.JaxRuntimeError as error:
            plan = shrink(binding, load, plan, error)
            continue
        fewer = memory.fewer_in_flight(device, least * plan.workers, plan.in_flight, needed)
        if fewer == plan.in_flight:
            return plan
        plan = divide(load, fewer, plan.mesh)
        least = plan.in_flight  # smaller for the sake of the caches only once


def divide(load: Workload, limit: int, mesh: Mesh | None) -> Plan:
    """Divide at most `limit` evaluations in flight over examples and inside of each."""
    if load.batch is None:
        return Plan(True, 1, min(limit, load.in_flight), None)
    inside, rows = load.in_flight, 1
    if mesh is not None:
        mesh = divided(mesh, load.batch, inside)
        rows, columns = mesh.devices.shape
        inside = -(-inside // columns)
    workers = max(1, min(load.workers, limit))
    limit, batch = limit // workers, -(-load.batch // rows)
    # What is done once for each example is better done for several at once. But XLA takes the
    # reversed kernel of a gradient out of a loop, and with it the fast algorithm of a convolution.
    least = 1 if load.convolves else _AT_ONCE
    examples = min(limit, max(limit // inside, least))
    calls = -(-balanced(batch, examples)[0] // workers) * workers  # no thread idles at the end
    examples = -(-batch // calls)
    return Plan(False, examples * rows, min(inside, limit // examples), mesh, workers)


def shrink(binding: Binding, load: Workload, plan: Plan, error: Exception) -> Plan:
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
    return divide(load, limit, plan.mesh)


def _workers(flops: int, batch: int | None) -> int:
    """Return the number of threads for parts of the batch: short work is not worth a thread."""
    if batch is None or batch * flops < _WORTH_A_THREAD:
        return 1
    return min(cores(), batch)
