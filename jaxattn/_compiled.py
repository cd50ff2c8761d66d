"""The compiled entry point through which every method runs, eagerly or over a batch."""

import dataclasses
import functools
import inspect
import uuid
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import TraceContextError
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxattn import _memory
from jaxattn._batch import balanced
from jaxattn._callable import Recipe, as_function, bind, rebuilding
from jaxattn._static import UnkeyableError, is_array, is_concrete, typed_key
from jaxattn._target import batch_indices, single_output
from jaxattn._types import Attribution, Target
from jaxattn.jaxpr.capture import split_at
from jaxattn.jaxpr.program import Program, Signature, UntracedError

#: Which signatures a method calls functions with beside the plain one, learned at the first call.
_signatures: dict[Hashable, list[Signature]] = {}
#: What bound callables answer, and how many evaluations in flight fit the device.
_outputs: dict[Hashable, Any] = {}
_fitting: dict[Hashable, int] = {}


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
        mesh: devices over which the examples are spread.
    """

    single: bool
    examples: int
    inside: int
    mesh: Mesh | None


@functools.partial(jax.jit, static_argnums=0)
def run(spec: Spec, arrays: tuple[Any, Any, Any], examples: tuple[Any, ...]) -> Attribution:
    """Runs a method on one example, or on each of a batch."""

    def one(arrays: tuple[Any, Any, Any], example: tuple[Any, ...]) -> Attribution:
        of_fn, of_target, of_options = arrays
        x, index, args, key, batched = example
        method = spec.method.rebuild(())
        return method(
            rebuilding(spec.fn, of_fn),
            x,
            index if spec.target is None else rebuilding(spec.target, of_target),
            args=args,
            key=key,
            batch_size=spec.batch_size,
            **spec.options.rebuild(of_options),
            **batched,
        )

    if spec.single:
        return one(arrays, examples)
    each = jax.vmap(one, in_axes=(None, 0))
    if spec.mesh is None:
        return each(arrays, examples)
    split = PartitionSpec(spec.mesh.axis_names)
    # A scan's constant initial carry counts as unvarying; the check would refuse it.
    return jax.shard_map(
        each, mesh=spec.mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False
    )(arrays, examples)


class Job:
    """A method, its function and its options: all but the examples."""

    def __init__(
        self,
        method: Callable[..., Attribution],
        fn: Callable[..., Any],
        x: Any,
        target: Target,
        args: tuple[Any, ...],
        at: str | None,
        options: dict[str, Any],
        batched: dict[str, Any],
    ) -> None:
        self._method = static(method)
        named = {} if at is None else {"at": at}
        self._option_arrays, self._options = split_options(options | named)
        self._callables = fn, target
        self._plain = Signature.of((x, *args))
        self._memo = self._method, self._options, self._plain
        self._bind()
        explained = explained_input(fn, x, args, at)
        self.evaluations = evaluations(method, explained, self.output, options | batched)

    def _bind(self) -> None:
        """Splits `fn` and `target` into arrays and programs, for all signatures known by now."""
        fn, target = self._callables
        extra = _signatures.get((self._memo, "fn"), [])
        try:
            self._fn_arrays, self._fn = bind(fn, [self._plain, *extra])
            self.output = _output(self._fn, self._fn_arrays, self._plain)
        except Exception as error:
            hint = _hint(fn, self._plain, error)
            if hint is None:
                raise
            raise ValueError(hint) from error
        self._target_arrays: list[Any] = []
        self._target: Recipe | Program | None = None
        if callable(target):
            answers = Signature.of((self.output,))
            extra = _signatures.get((self._memo, "target"), [])
            self._target_arrays, self._target = bind(target, [answers, *extra])

    def _with_traces(self, call: Callable[[], Any]) -> Any:
        """Calls until the programs have been traced for all that the method calls them with."""
        while True:
            try:
                return call()
            except UntracedError as error:
                which = "fn" if error.program is self._fn else "target"
                _signatures.setdefault((self._memo, which), []).append(error.signature)
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
        given = target if is_array(target) else np.asarray(target)
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
        if batch_size is not None:
            if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
                raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
            return self._divide(batch, batch_size, mesh)
        device = (mesh.devices.flat[0] if mesh else None) or jax.devices()[0]
        limit = _memory.default_in_flight(device)
        leaves = jax.tree.leaves((self._fn_arrays, self._target_arrays, examples))
        if not all(map(is_concrete, leaves)):
            return self._divide(batch, limit, mesh)
        memo = self._memo, self._fn, self._target, batch, mesh
        while memo not in _fitting:
            plan = self._divide(batch, limit, mesh)
            if limit == 1 or _memory.needed(self.compile(examples, plan)) <= _memory.budget(device):
                _fitting[memo] = limit
            limit //= 2
        return self._divide(batch, _fitting[memo], mesh)

    def _divide(self, batch: int | None, limit: int, mesh: Mesh | None) -> Plan:
        inside = min(limit, self.evaluations)
        if batch is None:
            return Plan(True, 1, inside, None)
        devices = 1 if mesh is None else mesh.size
        _, examples = balanced(-(-batch // devices), max(1, limit // inside))
        return Plan(False, examples * devices, inside, mesh)

    def spec(self, plan: Plan) -> Spec:
        """The static half of a call."""
        return Spec(
            self._method, self._fn, self._target, self._options, plan.single, plan.inside, plan.mesh
        )

    def _arrays(self, mesh: Mesh | None) -> Any:
        """The traced half of a call, beside the examples: on each device of the mesh."""
        arrays = self._fn_arrays, self._target_arrays, self._option_arrays
        if mesh is None:
            return arrays
        return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))

    def compile(self, examples: Any, plan: Plan) -> Any:
        """The compiled program of a plan, which a later `run` finds in JAX's own cache."""
        part = _part(examples, plan)
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
        jitted, part = jax.jit(fresh, static_argnums=0), _part(examples, plan)
        traced: jax.stages.Traced = self._with_traces(
            lambda: jitted.trace(self.spec(plan), self._arrays(plan.mesh), part)
        )
        return traced

    def run(self, examples: Any, plan: Plan) -> Attribution:
        """Runs the compiled program on as many examples as the plan says."""
        if plan.mesh is not None:
            examples = jax.device_put(examples, _over(plan.mesh))
        answer: Attribution = self._with_traces(
            lambda: run(self.spec(plan), self._arrays(plan.mesh), examples)
        )
        return answer


def _part(examples: Any, plan: Plan) -> Any:
    """As many examples as a plan takes, abstractly."""

    def struct(leaf: Any) -> jax.ShapeDtypeStruct:
        shape = jnp.shape(leaf) if plan.single else (plan.examples, *leaf.shape[1:])
        sharding = None if plan.mesh is None else _over(plan.mesh)
        return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf), sharding=sharding)

    return jax.tree.map(struct, examples)


def _over(mesh: Mesh) -> NamedSharding:
    """Examples spread over all devices of a mesh."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def explained_input(fn: Callable[..., Any], x: Any, args: tuple[Any, ...], at: str | None) -> Any:
    """What is explained, abstractly: the input, or the intermediate of that name."""
    if at is None:
        return Signature.of((x,)).structs()[0]
    inputs = Signature.of((x, *args)).structs()
    return jax.eval_shape(lambda *given: split_at(as_function(fn), given, at)[0], *inputs)


def evaluations(
    method: Callable[..., Attribution], x: Any, output: Any, options: dict[str, Any]
) -> int:
    """How many evaluations of `fn` a method needs for one example."""
    if isinstance(method, functools.partial):
        return evaluations(method.func, x, output, {**method.keywords, **options})
    count = getattr(method, "evaluations", None)
    return 1 if count is None else max(1, int(count(x, output, options)))


def unwrapped(method: Any) -> Any:
    """The method of which a `functools.partial` fixes options."""
    return unwrapped(method.func) if isinstance(method, functools.partial) else method


def static(value: Any) -> Recipe:
    """A recipe for what never changes; what may change gets one that equals no other."""
    try:
        return Recipe(typed_key(value), lambda arrays: value)
    except (UnkeyableError, RecursionError):
        return Recipe(object(), lambda arrays: value)


def split_options(options: dict[str, Any]) -> tuple[list[Any], Recipe]:
    """Parts the arrays in the options, which are traced, from the rest, which is static."""
    leaves, treedef = jax.tree.flatten(options)
    arrays = [leaf for leaf in leaves if is_array(leaf)]
    statics = [None if is_array(leaf) else static(leaf) for leaf in leaves]

    def rebuild(arrays: Any) -> Any:
        rest = iter(arrays)
        return jax.tree.unflatten(
            treedef, [next(rest) if s is None else s.rebuild(()) for s in statics]
        )

    return arrays, Recipe((static(treedef), *statics), rebuild)


def _output(fn: Recipe | Program, arrays: list[Any], signature: Signature) -> Any:
    """The abstract output of a bound callable."""
    if isinstance(fn, Program):
        return fn.output(signature)
    if (fn, signature) not in _outputs:
        inputs = signature.structs()
        _outputs[fn, signature] = jax.eval_shape(
            lambda arrays, inputs: fn.rebuild(arrays)(*inputs), arrays, inputs
        )
    return _outputs[fn, signature]


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
