"""A planned call: its examples, part after part, and their attributions joined."""

import functools
from collections.abc import Iterator
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
from jaxattn.engine.plan import Workload, shrink
from jaxattn.engine.threads import side_by_side

#: Parts that are joined at once: the time to compile a join grows faster than their number.
_JOINED_AT_ONCE = 32


class Examples(NamedTuple):
    """The arguments of a method that differ between examples.

    Attributes:
        x: the inputs.
        index: the indices of the target, `None` if it is a callable.
        args: further inputs of `fn`.
        key: random keys.
        options: the options that have a leading axis of examples.
    """

    x: PyTree
    index: PyTree
    args: tuple[PyTree, ...]
    key: PyTree
    options: dict[str, Any]


class Work(NamedTuple):
    """A call, checked and planned, not yet run.

    Attributes:
        binding: all that the examples share.
        load: what the plan divides.
        plan: how many examples a part takes.
        examples: with a leading axis, unless the call is for one example.
    """

    binding: Binding
    load: Workload
    plan: Plan
    examples: Examples

    @property
    def batch(self) -> int:
        """The number of examples."""
        return 1 if self.load.batch is None else self.load.batch

    def part(self, start: int, size: int) -> PyTree:
        """Return `size` examples from `start` on; the last is repeated if there are fewer."""
        if size == self.batch:
            return self.examples
        leaves, treedef = jax.tree.flatten(self.examples)
        on_device = iter(_cut([leaf for leaf in leaves if not _is_host(leaf)], start, size))
        rows: slice | np.ndarray = slice(start, start + size)
        if start + size > self.batch:
            rows = np.minimum(np.arange(start, start + size), self.batch - 1)
        # Arrays on the host are cut there: a device need not hold all examples.
        parts = [leaf[rows] if _is_host(leaf) else next(on_device) for leaf in leaves]
        return jax.tree.unflatten(treedef, parts)

    def parts(self) -> Iterator[PyTree]:
        """Yield all examples, as many at a time as the plan takes."""
        size = self.plan.examples
        return (self.part(start, size) for start in range(0, self.batch, size))

    def compile(self) -> jax.stages.Compiled:
        """Compile the program of the plan."""
        return launch.compile_part(self.binding, self.examples, self.plan)


def compute(work: Work, progress: bool = False) -> Attribution:
    """Run a planned call: all of its parts, joined."""
    parts = list(_results(work, progress))
    if len(parts) == 1 and (
        work.load.batch is None or jax.tree.leaves(parts[0])[0].shape[0] == work.batch
    ):
        return parts[0]
    while len(parts) > _JOINED_AT_ONCE:
        starts = range(0, len(parts), _JOINED_AT_ONCE)
        parts = [_joined(parts[i : i + _JOINED_AT_ONCE], None) for i in starts]
    return _joined(parts, work.batch)


def _results(work: Work, progress: bool) -> Iterator[Attribution]:
    """Run part after part; the parts get smaller if the device lacks memory."""
    start, plan = 0, work.plan
    with rich.progress.Progress() if progress else nullcontext() as bar:
        if bar:
            task = bar.add_task("explaining", total=work.batch)
        while start < work.batch:
            parts = (work.part(i, plan.examples) for i in range(start, work.batch, plan.examples))
            try:
                for result in _run(work.binding, parts, plan):
                    if bar:  # it counts what is done, not what is dispatched
                        jax.block_until_ready(result)
                    start += plan.examples
                    if bar:
                        bar.update(task, completed=min(start, work.batch))
                    yield result
            except jax.errors.JaxRuntimeError as error:
                plan = shrink(work.binding, work.load, plan, error)


def _run(binding: Binding, parts: Iterator[PyTree], plan: Plan) -> Iterator[Attribution]:
    """Run parts one after the other, or on a CPU as many at a time as there are workers."""
    key = binding.key, plan
    if key not in MEMOS.completed:  # only the end of a first run shows that it fits the memory
        result = launch.run_part(binding, next(parts), plan)
        if all(map(is_concrete, jax.tree.leaves(result))):
            jax.block_until_ready(result)
            MEMOS.completed[key] = True
        yield result
    if plan.workers == 1:
        yield from (launch.run_part(binding, part, plan) for part in parts)
    else:
        yield from side_by_side(
            lambda part: launch.run_part(binding, part, plan), parts, plan.workers
        )


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


def _is_host(leaf: object) -> bool:
    return isinstance(leaf, np.ndarray)
