"""A planned call: its examples, part after part, and their attributions joined."""

import functools
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
from jaxtyping import PyTree

from jaxattn._static import is_concrete
from jaxattn._types import Attribution
from jaxattn.engine import launch
from jaxattn.engine.binding import Binding
from jaxattn.engine.compiled import Plan
from jaxattn.engine.memo import MEMOS
from jaxattn.engine.placement import device_of
from jaxattn.engine.plan import Workload, equal_parts, shrink
from jaxattn.engine.result_checks import check_result
from jaxattn.engine.threads import side_by_side

#: Parts that are joined at once: the time to compile a join grows faster than their number.
_JOINED_AT_ONCE = 32


class Examples(NamedTuple):
    """The arguments of a method that differ between examples.

    Attributes:
        x: the inputs.
        index: the indices of the target, `None` if it is a callable.
        args: further inputs of `fn`.
        number: the number of each example, which makes a random key of its own; `None` without a
            key, and for a call with one example.
        options: the options that have a leading axis of examples.
    """

    x: PyTree
    index: PyTree
    args: tuple[PyTree, ...]
    number: np.ndarray | None
    options: dict[str, Any]


class Work(NamedTuple):
    """A call, checked and planned, not yet run.

    Attributes:
        binding: all that the examples share.
        load: what the plan divides.
        plans: how many examples each part takes.
        examples: with a leading axis, unless the call is for one example.
    """

    binding: Binding
    load: Workload
    plans: list[Plan]
    examples: Examples

    @property
    def batch(self) -> int:
        """The number of examples."""
        return self.load.examples

    @property
    def plan(self) -> Plan:
        """The plan of the first part, which is the largest."""
        return self.plans[0]

    def part(self, start: int, size: int) -> PyTree:
        """Return `size` examples from `start` on; the last is repeated if there are fewer."""
        if size == self.batch:
            return self.examples
        leaves, treedef = jax.tree.flatten(self.examples)
        if self.load.in_few_sizes:
            leaves = list(map(_on_host, leaves))
        elsewhere = [leaf for leaf in leaves if not _is_host(leaf)]
        on_device = iter(_cut(elsewhere, start, size) if elsewhere else ())
        rows: slice | np.ndarray = slice(start, start + size)
        if start + size > self.batch:
            rows = np.minimum(np.arange(start, start + size), self.batch - 1)
        # Arrays on the host are cut there: a device need not hold all examples.
        parts = [leaf[rows] if _is_host(leaf) else next(on_device) for leaf in leaves]
        return jax.tree.unflatten(treedef, parts)

    def parts(self) -> Iterator[tuple[int, Plan, PyTree]]:
        """Yield the start of each part, its plan and its examples."""
        start = 0
        for plan in self.plans:
            yield start, plan, self.part(start, plan.examples)
            start += plan.examples

    def compile(self) -> jax.stages.Compiled:
        """Compile the program of the plan."""
        return launch.compile_part(self.binding, self.examples, self.plan)


def compute(work: Work, progress: bool = False) -> Attribution:
    """Run a planned call: all of its parts, joined and checked."""
    result = _computed(work, progress)
    check_result(work.binding, result)
    return result


def _computed(work: Work, progress: bool) -> Attribution:
    parts = list(_results(work, progress))
    if len(parts) == 1 and (
        work.load.batch is None or jax.tree.leaves(parts[0])[0].shape[0] == work.batch
    ):
        return parts[0]
    if work.load.in_few_sizes:
        rows = [list(map(_on_host, jax.tree.leaves(part))) for part in parts]
        if all(map(_is_host, itertools.chain(*rows))):  # nothing is compiled for this length
            leaves = [_concatenated(each, work.batch) for each in zip(*rows, strict=True)]
            return jax.tree.unflatten(jax.tree.structure(parts[0]), leaves)
    while len(parts) > _JOINED_AT_ONCE:
        starts = range(0, len(parts), _JOINED_AT_ONCE)
        parts = [_joined(parts[i : i + _JOINED_AT_ONCE], None) for i in starts]
    return _joined(parts, work.batch)


def _results(work: Work, progress: bool) -> Iterator[Attribution]:
    """Run part after part; the parts get smaller if the device lacks memory."""
    start, plans = 0, deque(work.plans)
    with rich.progress.Progress() if progress else nullcontext() as bar:
        if bar:
            task = bar.add_task("explaining", total=work.batch)
        while plans:
            plan, size = plans[0], plans[0].examples
            count = len(list(itertools.takewhile(plan.__eq__, plans)))
            parts = (work.part(i, size) for i in range(start, start + count * size, size))
            try:
                for result in _run(work.binding, parts, plan):
                    if bar:  # it counts what is done, not what is dispatched
                        jax.block_until_ready(result)
                    start += size
                    plans.popleft()
                    if bar:
                        bar.update(task, completed=min(start, work.batch))
                    yield result
            except jax.errors.JaxRuntimeError as error:
                limit = shrink(work.binding, plan, error)
                plan = equal_parts(work.load, limit, plan.mesh)[0]
                plans = deque([plan] * -(-(work.batch - start) // plan.examples))


def _run(binding: Binding, parts: Iterator[PyTree], plan: Plan) -> Iterator[Attribution]:
    """Run parts one after the other, or on a CPU as many at a time as there are workers."""
    key, first = (binding.key, plan), next(parts)
    if key in MEMOS.completed:
        parts = itertools.chain([first], parts)
    else:  # only the end of a first run shows that it fits the memory
        result = launch.run_part(binding, first, plan)
        if all(map(is_concrete, jax.tree.leaves(result))):
            jax.block_until_ready(result)
            MEMOS.completed[key] = True
        yield result
    if plan.workers == 1 or _is_serial(binding, first, plan):
        yield from (launch.run_part(binding, part, plan) for part in parts)
    else:
        yield from side_by_side(
            lambda part: launch.run_part(binding, part, plan), parts, plan.workers
        )


def _is_serial(binding: Binding, part: PyTree, plan: Plan) -> bool:
    """Return whether parts must run one after the other.

    On a CPU a batch of matrices is decomposed in XLA's threads, and the thread that divides the
    batch waits there for the others: where as many programs do so as there are threads, all wait.
    """
    key = binding.key, plan
    if key not in MEMOS.serial:
        MEMOS.serial[key] = launch.decomposes_batches(binding, part, plan)
    return MEMOS.serial[key]


def _concatenated(rows: Sequence[np.ndarray], batch: int) -> jax.Array:
    """Concatenate the rows of parts on the host, without those that fill up the last."""
    return jax.device_put((rows[0] if len(rows) == 1 else np.concatenate(rows))[:batch])


@functools.partial(jax.jit, static_argnums=1)
def _joined(parts: list[Attribution], batch: int | None) -> Attribution:
    """Concatenate parts, without the examples that fill up the last."""
    joined: Attribution = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:batch], *parts)
    return joined


@functools.partial(jax.jit, static_argnums=2)
def _cut(examples: list[PyTree], start: int | jax.Array, size: int) -> list[PyTree]:
    """Return `size` examples from `start` on; the last is repeated if there are fewer."""

    def of_leaf(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] % size == 0:
            return jax.lax.dynamic_slice_in_dim(leaf, start, size)
        return leaf[jnp.minimum(start + jnp.arange(size), leaf.shape[0] - 1)]

    return [of_leaf(leaf) for leaf in examples]


def _on_host(leaf: Any) -> Any:
    """Return an array that is in the memory of the host as one of numpy, others as they are."""
    if not isinstance(leaf, jax.Array) or not is_concrete(leaf) or leaf.committed:
        return leaf
    if (
        jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        or device_of([leaf]).platform != "cpu"
    ):
        return leaf
    return np.asarray(leaf)


def _is_host(leaf: object) -> bool:
    return isinstance(leaf, np.ndarray)
