"""The engine: one compiled entry point for every method, over many examples and devices."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
from jax.sharding import Mesh

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_bool
from jaxattn.engine.callable import as_function
from jaxattn.engine.compiled import Plan, in_engine
from jaxattn.engine.examples import (
    batch_length,
    check_sharding,
    example_keys,
    example_structs,
    split_batched,
)
from jaxattn.engine.inputs import NUMBERS, check_baseline_option, check_finite_numbers, check_inputs
from jaxattn.engine.job import Job, explained_input
from jaxattn.engine.options import with_sizes
from jaxattn.jaxpr.capture import split_at

Core = TypeVar("Core", bound=Callable[..., Attribution])


def explain(
    method_: Callable[..., Attribution],
    fn: Callable[..., Any],
    xs: Inputs,
    /,
    targets: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | Sequence[str] | None = None,
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
    at: str | Sequence[str] | None = None,
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
    _check_options(method_, options, at)
    options = with_sizes(method_, options)
    x, one_args = example_structs((xs, args))
    keeps_input = getattr(method_, "keeps_input", False)
    explained = explained_input(fn, x, one_args, None if keeps_input else cast(str | None, at))
    check_baseline_option(options, explained, check_finite)
    shared, batched = split_batched(method_, options, explained, batch)
    one_batched = example_structs(batched)
    job = _job(method_, fn, x, targets, one_args, at, explained, shared, one_batched)
    keys = None if key is None else example_keys(key, batch)
    examples = xs, job.indices(targets, batch), args, keys, batched
    return Work(job, job.plan(examples, batch, batch_size, mesh), examples, batch)


def explainer(
    *,
    evaluations: Callable[..., int] = lambda x, output, options: 1,
    in_flight: Callable[..., int] | None = None,
    per_example: tuple[str, ...] = ("baseline",),
    sizes: tuple[str, ...] = (),
    takes_at: bool = True,
    needs_at: bool = False,
    keeps_input: bool = False,
) -> Callable[[Core], Core]:
    """Makes a method of a pure function of one example.

    Called with concrete arrays the method goes through the engine's compiled entry point; called
    under a transformation it is just the function.

    Args:
        evaluations: how many evaluations of `fn` one example needs, from the abstract `x` and
            output, and the options.
        in_flight: how many of these may run at once, likewise; all of them by default.
        takes_at: whether an intermediate can be explained instead of the input.
        needs_at: whether only an intermediate can.
        keeps_input: whether the method is given the input and `at`, not the intermediate as `x`.
        per_example: options that `explain` accepts with a leading axis of examples.
        sizes: options of which a numpy array is as good as a tuple, and is not traced.
    """

    def decorate(core: Core) -> Core:
        @functools.wraps(core)
        def method(
            fn: Callable[..., Any],
            x: Inputs,
            target: Target = None,
            *,
            args: tuple[Any, ...] = (),
            at: str | Sequence[str] | None = None,
            key: RandomKey | None = None,
            batch_size: int | None = None,
            check_finite: bool = True,
            **options: Any,
        ) -> Attribution:
            if in_engine.get():
                function = as_function(fn)
                if keeps_input and at is not None:
                    options["at"] = at
                elif at is not None:
                    x, function = split_at(function, (x, *args), cast(str, at))
                    args = ()
                shared = {"args": args, "key": key, "batch_size": batch_size, **options}
                return core(function, x, target, **shared)
            check_inputs("x", x, args, key)
            _check_options(method, options, at)
            options = with_sizes(method, options)
            if check_finite:
                check_finite_numbers("x", x)
            args = tuple(args)
            explained = explained_input(fn, x, args, None if keeps_input else cast(str | None, at))
            check_baseline_option(options, explained, check_finite)
            job = _job(method, fn, x, target, args, at, explained, options, {})
            example: Any = x, job.indices(target, None), args, key, {}
            plan = job.plan(example, None, batch_size, None)
            while True:
                try:
                    return job.run(example, plan)
                except jax.errors.JaxRuntimeError as error:
                    plan = job.smaller(plan, None, error)

        vars(method).update(
            evaluations=evaluations,
            in_flight=in_flight or evaluations,
            per_example=per_example,
            sizes=sizes,
            takes_at=takes_at,
            needs_at=needs_at,
            keeps_input=keeps_input,
            __signature__=_signature(core),
        )
        return cast(Core, method)

    return decorate


def _job(
    method: Callable[..., Attribution],
    fn: Callable[..., Any],
    x: Any,
    target: Target,
    args: tuple[Any, ...],
    *rest: Any,
) -> Job:
    """The job; where JAX cannot take what `fn` or a target answers, the error says whose it is."""
    try:
        return Job(method, fn, x, target, args, *rest)
    except TypeError as error:
        refusal = _no_array(fn, x, target, args)
        if refusal is None:
            raise
        raise TypeError(refusal) from error


def _no_array(fn: Any, x: Any, target: Target, args: tuple[Any, ...]) -> str | None:
    """What to say of an answer that is no array, where `fn` or a target gives one."""
    refusals: list[str] = []

    def look(must: str, answer: Any) -> None:
        for leaf in jax.tree.leaves(answer):
            if not isinstance(leaf, NUMBERS):
                refusals.append(f"{must}, got {type(leaf).__name__} {leaf!r}")

    def run(*inputs: Any) -> None:
        output = as_function(fn)(*inputs)
        look("fn must answer arrays", output)
        if not refusals and callable(target):
            look("target must give one number of the output", target(output))

    try:
        jax.eval_shape(run, x, *args)
    except Exception:  # something else is wrong, and its own error says what
        return None
    return refusals[0] if refusals else None


def _signature(core: Callable[..., Any]) -> inspect.Signature:
    """The signature of `core` with what every method takes beside: `at` and `check_finite`."""
    shown = dict(inspect.signature(core).parameters)
    options = shown.pop("options", None)
    for name, default, annotation in (("at", None, str | None), ("check_finite", True, bool)):
        keyword = inspect.Parameter.KEYWORD_ONLY
        new = inspect.Parameter(name, keyword, default=default, annotation=annotation)
        shown.setdefault(name, new)
    return inspect.Signature([*shown.values(), *filter(None, [options])])


def _check_options(
    method: Callable[..., Attribution], options: dict[str, Any], at: str | Sequence[str] | None
) -> None:
    """Refuses options that the method does not have, and names those that it has."""
    default = inspect.signature(method).parameters.get("at")
    names_weights = default is not None and isinstance(default.default, str)
    if not (at is None or isinstance(at, str) or names_weights):
        raise TypeError(f"at must be the name of an intermediate, got {at!r}")
    if at is not None and not getattr(method, "takes_at", True):
        raise ValueError(f"at={at!r} has no meaning for {method.__name__}, which cuts the input")
    if at is None and getattr(method, "needs_at", False):
        raise ValueError(
            f"at is missing: {method.__name__} explains an intermediate, give its name; "
            "see jaxattn.tag"
        )
    if not hasattr(method, "evaluations"):
        return
    own = inspect.signature(method).parameters
    if "options" in own:
        return
    every = ("fn", "x", "target", "args", "at", "key", "batch_size", "check_finite")
    for name in options:
        if name not in own or name in every:
            known = ", ".join(n for n in own if n not in every) or "none of its own"
            hint = ": explain calls it targets" if name == "target" else ""
            raise TypeError(
                f"{method.__name__} has no option {name!r}{hint}; its options are {known}"
            )
