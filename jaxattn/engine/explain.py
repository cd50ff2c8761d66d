"""The engine: one compiled entry point for every method, over many examples and devices."""

import functools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
from jax.sharding import Mesh

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_bool
from jaxattn.engine.compiled import Plan, in_engine
from jaxattn.engine.examples import (
    batch_length,
    check_sharding,
    example_keys,
    example_structs,
    split_batched,
)
from jaxattn.engine.inputs import check_baseline_option, check_finite_numbers, check_inputs
from jaxattn.engine.job import Job, explained_input
from jaxattn.engine.method import check_options, job_of
from jaxattn.engine.options import traits_of, with_sizes


def explain(
    method_: Callable[..., Attribution],
    fn: Callable[..., Any],
    xs: Inputs,
    /,
    targets: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
    check_finite: bool = True,
    **options: Any,
) -> Attribution:
    """Runs a method over many examples: compiled once, vectorised, chunked, sharded.

    Args:
        method_: any method of jaxattn, or a function with the same signature.
        fn: maps one example to an output: an `nnx.Module`, an equinox module,
            `jax.tree_util.Partial(linen_model.apply, params)`, a Keras model, or a function.
            Modules and Keras models run in inference mode: dropout off, running statistics.
        xs: the examples, each leaf with a leading axis of length B.
        targets: which number of the output is explained: `None` for an output of size 1; an int or
            a tuple, one index for all examples; an array (B,) or (B, rank), one for each; or a
            callable from the output to a scalar.
        args: further inputs of `fn`, each leaf with a leading axis of length B; not explained.
        at: the name of an intermediate that is explained instead of `xs`: a tag or a layer's path,
            found as by `jaxattn.capture`. The values have its shape, stacked over the steps of a
            scan around it; what one step's value does through those of other steps is cut.
        key: a random key for methods that draw; example i draws with `fold_in(key, i)`, whatever
            the chunks and devices.
        batch_size: how many evaluations of `fn` are in flight on a device. `None` chooses from the
            compiled program's memory and the device.
        mesh: devices over which the examples are spread.
        progress: whether to show a progress bar over the chunks.
        check_finite: whether to refuse NaN and infinity in `xs`.
        **options: the method's own. A `baseline` may have a leading axis of length B.

    Returns:
        the method's `Attribution`, every leaf with a leading axis of length B.

    Raises:
        ValueError: for an empty batch, lengths that differ, targets that do not fit the output,
            inputs that are not finite, an `fn` that takes only batches, or examples sharded over
            explicit axes where no `mesh` is given.
        TypeError: for a `fn`, target, `mesh` or `progress` of a wrong kind, or `xs` that is a list
            of numbers.
    """
    check_bool("progress", progress)
    work = prepare(
        method_,
        fn,
        xs,
        targets,
        args=args,
        at=at,
        key=key,
        batch_size=batch_size,
        mesh=mesh,
        check_finite=check_finite,
        **options,
    )
    parts = list(_answers(work, progress))
    if len(parts) == 1 and jax.tree.leaves(parts[0])[0].shape[0] == work.batch:
        return parts[0]
    while len(parts) > 32:  # few operands at a time: XLA's time to compile them grows faster
        parts = [_joined(parts[i : i + 32], None) for i in range(0, len(parts), 32)]
    return _joined(parts, work.batch)


def _answers(work: "Work", progress: bool) -> Iterator[Attribution]:
    """Runs part after part; the parts get smaller where the memory does not suffice."""
    start, plan = 0, work.plan
    with rich.progress.Progress() if progress else nullcontext() as bar:
        if bar:
            task = bar.add_task("explaining", total=work.batch)
        while start < work.batch:
            starts = range(start, work.batch, plan.examples)
            try:
                for answer in work.job.answers((work.part(i, plan.examples) for i in starts), plan):
                    if bar:  # it counts what is done, not what is on its way
                        jax.block_until_ready(answer)
                    start += plan.examples
                    if bar:
                        bar.update(task, completed=min(start, work.batch))
                    yield answer
            except jax.errors.JaxRuntimeError as error:
                plan = work.job.smaller(plan, work.batch, error)


@functools.partial(jax.jit, static_argnums=1)
def _joined(parts: list[Attribution], batch: int | None) -> Attribution:
    """Parts one after the other, without what fills up the last."""
    joined: Attribution = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:batch], *parts)
    return joined


@functools.partial(jax.jit, static_argnums=2)
def _cut(examples: Any, start: Any, size: int) -> Any:
    """`size` examples from `start` on; the last is repeated to fill up."""

    def of_leaf(leaf: Any) -> Any:
        if leaf.shape[0] % size == 0:
            return jax.lax.dynamic_slice_in_dim(leaf, start, size)
        return leaf[jnp.minimum(start + jnp.arange(size), leaf.shape[0] - 1)]

    return jax.tree.map(of_leaf, examples)


def _is_host(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray)


class Work(NamedTuple):
    """A call of `explain`, checked and planned, not yet run."""

    job: Job
    plan: Plan
    examples: Any
    batch: int

    def part(self, start: int, size: int) -> Any:
        """`size` examples from `start` on; the last is repeated to fill up."""
        if size == self.batch:
            return self.examples
        leaves, treedef = jax.tree.flatten(self.examples)
        there = iter(_cut([leaf for leaf in leaves if not _is_host(leaf)], start, size))
        rows: Any = slice(start, start + size)
        if start + size > self.batch:
            rows = np.minimum(np.arange(start, start + size), self.batch - 1)
        # What lies on the host is cut there: a device need not hold all of it.
        cut = [leaf[rows] if _is_host(leaf) else next(there) for leaf in leaves]
        return jax.tree.unflatten(treedef, cut)

    def parts(self) -> Iterator[Any]:
        """All examples, as many at a time as the plan says."""
        size = self.plan.examples
        return (self.part(start, size) for start in range(0, self.batch, size))


def prepare(
    method_: Callable[..., Attribution],
    fn: Callable[..., Any],
    xs: Inputs,
    /,
    targets: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    check_finite: bool = True,
    **options: Any,
) -> Work:
    """Checks the arguments of `explain`, and plans; compiles where it must find a batch size."""
    check_inputs("xs", xs, args, key)
    args = tuple(args)
    batch = batch_length(xs, args)
    if check_finite:
        check_finite_numbers("xs", xs)
    partial: Any = method_
    while isinstance(partial, functools.partial) and not partial.args:
        # What it fixes is an option like others: an array is traced then, not baked in.
        partial, options = partial.func, {**partial.keywords, **options}
    method_ = partial
    if not callable(method_):
        raise TypeError(f"method must be callable, got {type(method_).__name__}")
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {type(mesh).__name__}")
    if mesh is not None:
        if in_engine.get():
            raise ValueError("mesh must be left out inside of an fn that is itself explained")
        mesh = Mesh(mesh.devices, mesh.axis_names)  # shard_map wants its axes automatic
    elif not in_engine.get():
        check_sharding(xs, args)
    check_options(method_, options, at)
    options = with_sizes(method_, options)
    x, one_args = example_structs((xs, args))
    keeps_input = traits_of(method_).keeps_input
    explained = explained_input(fn, x, one_args, None if keeps_input else at)
    check_baseline_option(options, explained, check_finite)
    shared, batched = split_batched(method_, options, explained, batch)
    one_batched = example_structs(batched)
    job = job_of(method_, fn, x, targets, one_args, at, explained, shared, one_batched)
    keys = None if key is None else example_keys(key, batch)
    examples = xs, job.indices(targets, batch), args, keys, batched
    return Work(job, job.plan(examples, batch, batch_size, mesh), examples, batch)
