"""The compiled entry point through which every method runs, eagerly or over a batch."""

import dataclasses
import functools
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from jaxattn._types import Attribution
from jaxattn.engine.batch import Spread, alone, spread_over
from jaxattn.engine.callable import Recipe, rebuilding
from jaxattn.jaxpr.program import Program

#: The axes of the engine's meshes: devices with other examples, and with other evaluations of `fn`.
EXAMPLES, EVALUATIONS = "examples", "evaluations"

#: Whether a method is being traced by the entry point, where it is just a function.
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


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a call of the compiled program is laid out.

    Attributes:
        single: whether it takes one example, not a batch.
        examples: how many examples it takes.
        inside: how many evaluations of `fn` are in flight inside of each.
        mesh: devices over which the examples are spread, and the evaluations inside of each.
        workers: how many calls run side by side, each on a core.
    """

    single: bool
    examples: int
    inside: int
    mesh: Mesh | None
    workers: int = 1

    @property
    def in_flight(self) -> int:
        """Evaluations of `fn` at once on a device."""
        rows = 1 if self.mesh is None else self.mesh.shape[EXAMPLES]
        return self.examples // rows * self.inside * self.workers


@functools.partial(jax.jit, static_argnums=0)
def run(spec: Spec, arrays: tuple[Any, Any, Any], examples: tuple[Any, ...]) -> Attribution:
    """Runs a method on one example, or on each of a batch."""

    def one(arrays: tuple[Any, Any, Any], example: tuple[Any, ...]) -> Attribution:
        of_fn, of_target, of_options = arrays
        x, index, args, key, batched = example
        method = spec.method.rebuild(())
        shared = None
        if spec.mesh is not None and spec.mesh.shape[EVALUATIONS] > 1:
            shared = Spread(EVALUATIONS, spec.mesh.shape[EVALUATIONS])
        entered = in_engine.set(True)
        try:
            # The method's chunks are spread, not those of an fn that itself explains.
            with spread_over(shared):
                answer: Attribution = method(
                    alone(rebuilding(spec.fn, of_fn)),
                    x,
                    index if spec.target is None else alone(rebuilding(spec.target, of_target)),
                    args=args,
                    key=key,
                    batch_size=spec.batch_size,
                    **spec.options.rebuild(of_options),
                    **batched,
                )
        finally:
            in_engine.reset(entered)
        return answer

    if spec.single:
        return one(arrays, examples)
    each = jax.vmap(one, in_axes=(None, 0))
    if spec.mesh is None:
        return each(arrays, examples)
    split = PartitionSpec(EXAMPLES)
    # A scan's constant initial carry counts as unvarying; the check would refuse it.
    return jax.shard_map(
        each, mesh=spec.mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False
    )(arrays, examples)
