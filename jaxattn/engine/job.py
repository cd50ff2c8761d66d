"""A call of the engine: what it binds, how it is planned, compiled and run."""

import inspect
import threading
import uuid
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import TraceContextError
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxattn._static import is_array, is_concrete
from jaxattn._types import Attribution, Target, check_count
from jaxattn.engine import memory
from jaxattn.engine.batch import balanced
from jaxattn.engine.callable import Recipe, as_function, bind
from jaxattn.engine.compiled import Plan, Spec, run
from jaxattn.engine.options import count, split_options, static
from jaxattn.engine.placement import device_of, divided, in_mesh, over_examples, part_struct
from jaxattn.engine.target import batch_indices, single_output
from jaxattn.engine.threads import cores, side_by_side
from jaxattn.jaxpr.capture import split_at
from jaxattn.jaxpr.program import Program, Signature, UntracedError
from jaxattn.jaxpr.rows import Rows, worthwhile_rows

Value = TypeVar("Value")

#: Examples that a call takes at least, evaluations in flight permitting.
_AT_ONCE = 16

#: Operations that take a core about a millisecond.
_WORTH_A_THREAD = 5 * 10**7


class Memo(dict[Hashable, Value]):
    """What was learned at earlier calls; the oldest is forgotten first."""

    def __setitem__(self, key: Hashable, value: Value) -> None:
        if len(self) >= 1024:
            self.pop(next(iter([*self])), None)  # a copy: other threads may be at it
        super().__setitem__(key, value)


#: Which signatures a method calls functions with beside the plain one.
_signatures: Memo[list[Signature]] = Memo()
#: What bound callables answer.
_outputs: Memo[Any] = Memo()
#: How many evaluations in flight a device has been seen to hold at most.
_limits: Memo[int] = Memo()
#: Plans that have run to their end.
_proven: Memo[bool] = Memo()
#: What was found to suit a program and its device.
_plans: Memo[Plan] = Memo()
#: How many evaluations in flight a function wants.
_worthwhile: Memo[Rows] = Memo()


class Job:
    """A method, its function and its options: all but the examples."""

    def __init__(
        self,
        method: Callable[..., Attribution],
        fn: Callable[..., Any],
        x: Any,
        target: Target,
        args: tuple[Any, ...],
        at: str | Sequence[str] | None,
        explained: Any,
        options: dict[str, Any],
        batched: dict[str, Any],
    ) -> None:
        self._method = static(method)
        named = {} if at is None else {"at": at}
        self._option_arrays, self._options = split_options(options | named)
        self._callables = fn, target
        self._plain = Signature.of((x, *args))
        self._memo = self._method, self._options, self._plain
        self._binding = threading.Lock()
        self._bind()
        given = {"target": target, **options, **batched}
        self.evaluations = count("evaluations", method, explained, self.output, given)
        self._in_flight = count("in_flight", method, explained, self.output, given)

    def _bind(self) -> None:
        """Splits `fn` and `target` into arrays and programs, for all signatures known by now."""
        fn, target = self._callables
        try:
            self._fn_arrays, self._fn = self._bind_one(fn, self._plain)
            self.output = _output(self._fn, self._fn_arrays, self._plain)
        except Exception as error:
            hint = _hint(fn, self._plain, error)
            if hint is None:
                raise
            raise ValueError(hint) from error
        self._placed: dict[Mesh | None, Any] = {}
        self._target_arrays: list[Any] = []
        self._target: Recipe | Program | None = None
        if callable(target):
            answers = Signature.of((self.output,))
            self._target_arrays, self._target = self._bind_one(target, answers)

    def _bind_one(
        self, function: Callable[..., Any], signature: Signature
    ) -> tuple[list[Any], Recipe | Program]:
        extra = _signatures.get((self._memo, signature), [])
        try:
            return bind(function, [signature, *extra])
        except Exception:
            if not extra:
                raise
            # What another function was called with need not suit this one.
            del _signatures[self._memo, signature]
            return bind(function, [signature])

    def _with_traces(self, call: Callable[[], Any]) -> Any:
        """Calls until the programs have been traced for all that the method calls them with."""
        asked: set[Hashable] = set()
        while True:
            bound = self._fn, self._target
            try:
                return call()
            except UntracedError as error:
                with self._binding:
                    if (self._fn, self._target) == bound:  # else another thread has been here
                        self._bind_for(error, asked)

    def _bind_for(self, error: UntracedError, asked: set[Hashable]) -> None:
        """Binds anew, for what a program was called with and had not been traced for."""
        of_fn = error.program is self._fn
        if (of_fn, error.signature) in asked:  # it did not bind: its own error says why
            bind(self._callables[0 if of_fn else 1], [error.signature])
            raise error
        asked.add((of_fn, error.signature))
        first = self._plain if of_fn else Signature.of((self.output,))
        known = _signatures.get((self._memo, first), [])
        _signatures[self._memo, first] = [*known, error.signature]
        self._bind()

    def indices(self, target: Target, batch: int | None) -> Any:
        """Checks a target against the output; gives indices, one for each example of a batch."""
        if target is None or callable(target):
            return None
        shape = single_output(self.output, "target").shape
        known = is_array(target) or isinstance(target, (int, tuple, list, np.generic))
        if isinstance(target, bool) or not known:
            raise TypeError(
                "target must be None, an int, a tuple of ints, an integer array or a callable, "
                f"got {target!r}"
            )
        try:
            given = target if is_array(target) else np.asarray(target)
        except ValueError as error:
            raise ValueError(f"target must be of one shape for all, got {target!r}") from error
        if batch is None:
            return batch_indices(given, shape, None)
        if given.ndim and not isinstance(target, tuple):
            return batch_indices(given, shape, batch)
        one = batch_indices(given, shape, None)
        return one[None].repeat(batch, 0)

    def plan(
        self, examples: Any, batch: int | None, batch_size: int | None, mesh: Mesh | None
    ) -> Plan:
        """Divides the evaluations in flight over examples and inside of an example."""
        known = _limits.get((self._memo, self._fn, self._target))
        if batch_size is not None:
            check_count("batch_size", batch_size)
        leaves = jax.tree.leaves(
            (examples, self._fn_arrays, self._target_arrays, self._option_arrays)
        )
        device = mesh.devices.flat[0] if mesh else device_of(leaves)
        concrete = all(map(is_concrete, leaves))
        rows = self._rows()
        shared = concrete and mesh is None and device.platform == "cpu" and not in_mesh()
        self._workers = _workers(rows.flops * self.evaluations, batch) if shared else 1
        if batch_size is not None:
            return self._divide(batch, min(int(batch_size), known or int(batch_size)), mesh)
        limit = memory.default_in_flight(device, rows) * self._workers
        limit = min(limit, known or limit)
        if not concrete:
            return self._divide(batch, limit, mesh)
        shapes = Signature.of((self._option_arrays, examples))
        memo = self._memo, self._fn, self._target, shapes, limit, self._workers, mesh
        if memo not in _plans:
            plan = self._divide(batch, limit, mesh)
            _plans[memo] = self._fitting(examples, plan, batch, device, rows.least)
        return _plans[memo]

    def _fitting(
        self, examples: Any, plan: Plan, batch: int | None, device: jax.Device, least: int
    ) -> Plan:
        """Compiles with fewer evaluations in flight until the program suits the device."""
        while True:
            try:
                needed = memory.needed(self.compile(examples, plan)) * plan.workers
            except jax.errors.JaxRuntimeError as error:
                plan = self.smaller(plan, batch, error)
                continue
            fewer = memory.fewer_in_flight(device, least * plan.workers, plan.in_flight, needed)
            if fewer == plan.in_flight:
                return plan
            plan = self._divide(batch, fewer, plan.mesh)
            least = plan.in_flight  # smaller for the caches' sake only once

    def _rows(self) -> Rows:
        """How many evaluations in flight `fn` wants."""
        memo = self._fn, self._plain
        if memo not in _worthwhile:
            _traced(self._fn, self._fn_arrays, self._plain)
        return _worthwhile[memo]

    def _divide(self, batch: int | None, limit: int, mesh: Mesh | None) -> Plan:
        if batch is None:
            return Plan(True, 1, min(limit, self._in_flight), None)
        inside, rows = self._in_flight, 1
        if mesh is not None:
            mesh = divided(mesh, batch, inside)
            rows, columns = mesh.devices.shape
            inside = -(-inside // columns)
        workers = max(1, min(self._workers, limit))
        limit, batch = limit // workers, -(-batch // rows)
        # What is done once for each example is better done for some at once. But XLA takes what
        # a gradient makes of a kernel out of a loop, and with it the fast way to convolve.
        least = 1 if self._rows().convolves else _AT_ONCE
        examples = min(limit, max(limit // inside, least))
        calls = -(-balanced(batch, examples)[0] // workers) * workers  # none waits at the end
        examples = -(-batch // calls)
        return Plan(False, examples * rows, min(inside, limit // examples), mesh, workers)

    def spec(self, plan: Plan) -> Spec:
        """The static half of a call."""
        return Spec(
            self._method, self._fn, self._target, self._options, plan.single, plan.inside, plan.mesh
        )

    def _arrays(self, mesh: Mesh | None) -> Any:
        """The traced half of a call, beside the examples: on each device of the mesh."""
        if mesh not in self._placed:
            arrays = self._fn_arrays, self._target_arrays, self._option_arrays
            everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
            self._placed[mesh] = arrays if mesh is None else jax.device_put(arrays, everywhere)
        return self._placed[mesh]

    def compile(self, examples: Any, plan: Plan) -> Any:
        """The compiled program of a plan, which a later `run` finds in JAX's own cache."""
        part = part_struct(examples, plan)
        return self._with_traces(
            lambda: run.lower(self.spec(plan), self._arrays(plan.mesh), part).compile()
        )

    def trace_anew(self, examples: Any, plan: Plan) -> jax.stages.Traced:
        """The program of a plan, traced as if for the first time: no cache knows it."""

        def fresh(spec: Spec, arrays: Any, examples: Any) -> Attribution:
            answer: Attribution = inspect.unwrap(run)(spec, arrays, examples)
            return answer

        # JAX's caches in memory go by the function, the one on disk by the program and its name.
        fresh.__name__ = f"run_{uuid.uuid4().hex}"
        jitted, part = jax.jit(fresh, static_argnums=0), part_struct(examples, plan)
        traced: jax.stages.Traced = self._with_traces(
            lambda: jitted.trace(self.spec(plan), self._arrays(plan.mesh), part)
        )
        return traced

    def run(self, examples: Any, plan: Plan) -> Attribution:
        """Runs the compiled program on as many examples as the plan says."""
        if plan.mesh is not None and all(map(is_concrete, jax.tree.leaves(examples))):
            examples = jax.device_put(examples, over_examples(plan.mesh))
        answer: Attribution = self._with_traces(
            lambda: run(self.spec(plan), self._arrays(plan.mesh), examples)
        )
        return answer

    def answers(self, parts: Iterator[Any], plan: Plan) -> Iterator[Attribution]:
        """Runs part after part, or on a CPU as many at a time as there are workers."""
        known = self._memo, self._fn, self._target, plan
        if known not in _proven:  # whether it fits the memory shows only at the end
            answer = self.run(next(parts), plan)
            if all(map(is_concrete, jax.tree.leaves(answer))):
                jax.block_until_ready(answer)
                _proven[known] = True
            yield answer
        if plan.workers == 1:
            yield from (self.run(part, plan) for part in parts)
        else:
            yield from side_by_side(lambda part: self.run(part, plan), parts, plan.workers)

    def smaller(self, plan: Plan, batch: int | None, error: Exception) -> Plan:
        """After an error for want of memory: half as many evaluations in flight, from now on.

        Raises:
            JaxRuntimeError: for any other error, and where only one was in flight.
        """
        if not memory.is_exhausted(error):
            raise error
        if plan.in_flight == 1:
            raise jax.errors.JaxRuntimeError(
                "the device has too little memory for one evaluation of fn at a time, with what "
                f"the method keeps of it: {error}"
            ) from error
        limit = plan.in_flight // 2
        _limits[self._memo, self._fn, self._target] = limit
        warnings.warn(
            f"the device has too little memory for {plan.in_flight} evaluations of fn in flight: "
            f"the rest goes on with {limit}; batch_size={limit} would start there without a word",
            UserWarning,
            stacklevel=2,
        )
        return self._divide(batch, limit, plan.mesh)


def _workers(flops: int, batch: int | None) -> int:
    """How many cores take examples by themselves: what takes no time is not worth a thread."""
    if batch is None or batch * flops < _WORTH_A_THREAD:
        return 1
    return min(cores(), batch)


def explained_input(fn: Callable[..., Any], x: Any, args: tuple[Any, ...], at: str | None) -> Any:
    """What is explained, abstractly: the input, or the intermediate of that name."""
    if at is None:
        return Signature.of((x,)).structs()[0]
    inputs = Signature.of((x, *args)).structs()
    return jax.eval_shape(lambda *given: split_at(as_function(fn), given, at)[0], *inputs)


def _output(fn: Recipe | Program, arrays: list[Any], signature: Signature) -> Any:
    """The abstract output of a bound callable."""
    if isinstance(fn, Program):
        return fn.output(signature)
    if (fn, signature) not in _outputs:
        _traced(fn, arrays, signature)
    return _outputs[fn, signature]


def _traced(fn: Recipe | Program, arrays: list[Any], signature: Signature) -> None:
    """Learns from one trace of a bound callable what it answers and how many rows it wants."""
    if isinstance(fn, Program):
        jaxpr, output = fn.jaxpr(signature), fn.output(signature)
    else:
        trace = jax.make_jaxpr(
            lambda arrays, inputs: fn.rebuild(arrays)(*inputs), return_shape=True
        )
        closed, output = trace(arrays, signature.structs())
        jaxpr = closed.jaxpr
    _outputs[fn, signature] = output
    _worthwhile[fn, signature] = worthwhile_rows(jaxpr)


def _hint(fn: Callable[..., Any], signature: Signature, error: Exception) -> str | None:
    """What to do about an `fn` that fails on one example, where that can be known."""
    if isinstance(error, TraceContextError):
        return (
            "fn closes over an nnx module that changes its own state as it runs, such as nnx.RNN: "
            "give the module, or one of its methods, as fn itself"
        )
    one = signature.structs()
    batch = jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s.shape), s.dtype), one)
    try:
        jax.eval_shape(as_function(fn), *batch)
    except Exception:  # fn is wrong in some other way, and its own error says how
        return None
    shape = jax.tree.map(jnp.shape, one[0])
    return (
        f"fn fails on one example, of shape {shape}, but takes a batch: "
        "wrap it in jaxattn.unbatched"
    )
