"""One part of a call: compiled, or run, for the shapes of its plan."""

import uuid
from collections.abc import Callable, Hashable
from typing import TypeVar

import jax
from jaxtyping import PyTree

from jaxattn._static import is_concrete
from jaxattn._types import Attribution
from jaxattn.engine.binding import Binding
from jaxattn.engine.compiled import Plan, Spec, jitted, run
from jaxattn.engine.placement import over_examples, part_struct
from jaxattn.jaxpr import lapack
from jaxattn.jaxpr.literals import LiteralsNeededError
from jaxattn.jaxpr.program import UntracedError

Result = TypeVar("Result")


def run_part(binding: Binding, examples: PyTree, plan: Plan) -> Attribution:
    """Run the compiled program on as many examples as the plan takes."""
    if plan.mesh is not None and all(map(is_concrete, jax.tree.leaves(examples))):
        examples = jax.device_put(examples, over_examples(plan.mesh))
    return _with_traces(binding, plan, lambda spec, arrays: jitted(spec)(spec, arrays, examples))


def compile_part(binding: Binding, examples: PyTree, plan: Plan) -> jax.stages.Compiled:
    """Compile the program of a plan; a later `run_part` finds it in the cache of JAX."""
    part = part_struct(examples, plan)
    return _with_traces(
        binding, plan, lambda spec, arrays: jitted(spec).lower(spec, arrays, part).compile()
    )


def decomposes_batches(binding: Binding, examples: PyTree, plan: Plan) -> bool:
    """Return whether the program of a plan decomposes batches of matrices on a CPU."""
    part = part_struct(examples, plan)
    jaxpr = _with_traces(
        binding, plan, lambda spec, arrays: jitted(spec).trace(spec, arrays, part).jaxpr
    )
    return lapack.takes_batches(jaxpr.jaxpr)


def trace_part(binding: Binding, examples: PyTree, plan: Plan) -> jax.stages.Traced:
    """Trace the program of a plan under a new name, which no cache holds."""

    def fresh(spec: Spec, arrays: PyTree, examples: PyTree) -> Attribution:
        return run(spec, arrays, examples)

    # The caches of JAX in memory go by the function, the one on disk by the program and its name.
    fresh.__name__ = f"run_{uuid.uuid4().hex}"
    jitted, part = jax.jit(fresh, static_argnums=0), part_struct(examples, plan)
    return _with_traces(binding, plan, lambda spec, arrays: jitted.trace(spec, arrays, part))


def _with_traces(binding: Binding, plan: Plan, call: Callable[[Spec, PyTree], Result]) -> Result:
    """Call until the programs have all that the method needs: signatures, and literals."""
    attempted: set[Hashable] = set()
    while True:
        fn, target = programs = binding.programs
        spec = Spec(
            binding.method, fn, target, binding.options, plan.single, plan.inside, plan.mesh
        )
        try:
            return call(spec, binding.arrays_on(plan.mesh))
        except UntracedError as error:
            binding.retrace(error, programs, attempted)
        except LiteralsNeededError:
            binding.keep_literals()
