"""The entry point through which every method runs, eagerly or over a batch."""

import dataclasses
import functools
import threading
from contextvars import ContextVar

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from jaxattn._types import Attribution, Target
from jaxattn.engine.batch import Spread, alone, spread_over
from jaxattn.engine.callable import Recipe, rebuilding
from jaxattn.engine.each import Each, over_targets
from jaxattn.engine.options import traits_of
from jaxattn.jaxpr.literals import lifted_in_trace
from jaxattn.jaxpr.program import Program

#: The axes of the engine's meshes: over examples, and over evaluations of `fn` for each of them.
EXAMPLES, EVALUATIONS = "examples", "evaluations"

#: Whether the entry point traces a method, which is an ordinary function then.
in_engine: ContextVar[bool] = ContextVar("in_engine", default=False)


@dataclasses.dataclass(frozen=True)
class Spec:
    """All that is static in a call; equal specs share a compiled program."""

    method: Recipe
    fn: Recipe | Program
    target: Recipe | Program | None
    options: Recipe
    single: bool
    batch_size: int
    mesh: Mesh | None

    @property
    def lifted(self) -> bool:
        """Whether arrays of the function or of the target are literals of their traces."""
        programs = self.fn, self.target
        return any(isinstance(program, Program) and program.lifted for program in programs)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The layout of a call of the compiled program.

    Attributes:
        single: whether it takes one example without a leading axis.
        examples: the number of examples.
        inside: the evaluations of `fn` in flight inside of each.
        mesh: devices over which the examples are spread, and the evaluations inside of each.
        workers: the number of calls that run in parallel, each on a core.
    """

    single: bool
    examples: int
    inside: int
    mesh: Mesh | None
    workers: int = 1

    @property
    def in_flight(self) -> int:
        """The evaluations of `fn` in flight on a device."""
        rows = 1 if self.mesh is None else self.mesh.shape[EXAMPLES]
        return self.examples // rows * self.inside * self.workers


#: Programs that are kept. One takes some megabytes, and a loop over functions has no end.
PROGRAMS = 256

_making = threading.Lock()


@functools.lru_cache(maxsize=PROGRAMS)
def _jitted(spec: Spec) -> jax.stages.Wrapped:
    """Return a new jitted function: JAX drops its compiled programs together with it."""

    def fresh(spec: Spec, arrays: PyTree, examples: PyTree) -> Attribution:
        return run(spec, arrays, examples)

    fresh.__name__ = "run"
    return jax.jit(fresh, static_argnums=0)


def jitted(spec: Spec) -> jax.stages.Wrapped:
    """Return `run` as a jitted function, the same one for equal specs while it is kept.

    It takes a spec, too: of equal ones only that of the call itself certainly rebuilds its options.
    """
    with _making:
        return _jitted(spec)


def run(spec: Spec, arrays: PyTree, examples: PyTree) -> Attribution:
    """Run a method on one example, or on each example of a batch.

    Args:
        spec: all that is static.
        arrays: those of the function, of the target and of the options, and a random key.
        examples: inputs, target indices, further inputs, numbers, and options of one example.
    """

    def one(arrays: PyTree, example: PyTree) -> Attribution:
        of_fn, of_target, of_options, key = arrays
        x, index, args, number, batched = example
        if number is not None:  # chunks and devices change no draw
            key = jax.random.fold_in(key, number)
        method = spec.method.rebuild(())
        shared = None
        if spec.mesh is not None and spec.mesh.shape[EVALUATIONS] > 1:
            shared = Spread(EVALUATIONS, spec.mesh.shape[EVALUATIONS])
        target: Target = index
        if spec.target is not None:
            select = alone(rebuilding(spec.target, of_target))
            target = Each(index.indices, select) if isinstance(index, Each) else select
        fn = alone(rebuilding(spec.fn, of_fn))

        def of_target_and_size(target: Target, batch_size: int | None) -> Attribution:
            attribution: Attribution = method(
                fn,
                x,
                target,
                args=args,
                key=key,
                batch_size=batch_size,
                **spec.options.rebuild(of_options),
                **batched,
            )
            return attribution

        backward = traits_of(method).backward
        entered, lifted = in_engine.set(True), lifted_in_trace.set(spec.lifted)
        try:
            # Only the chunks of the method are spread, not those of an fn that itself explains.
            with spread_over(shared):
                return over_targets(of_target_and_size, target, spec.batch_size, backward=backward)
        finally:
            in_engine.reset(entered)
            lifted_in_trace.reset(lifted)

    if spec.single:
        return one(arrays, examples)
    each = jax.vmap(one, in_axes=(None, 0))
    if spec.mesh is None:
        return each(arrays, examples)
    split = PartitionSpec(EXAMPLES)
    # The constant initial carry of a scan counts as unvarying, and would fail the check.
    return jax.shard_map(
        each, mesh=spec.mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False
    )(arrays, examples)
