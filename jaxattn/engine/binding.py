"""A function, a target and a method's options, bound to the shapes with which they are called."""

import functools
import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxattn._static import HashedKey
from jaxattn._types import Method, RandomKey, Target
from jaxattn.engine.callable import Arrays, Recipe, as_function, bind, known
from jaxattn.engine.memo import MEMOS
from jaxattn.engine.options import selected_part, split_options, static_method
from jaxattn.jaxpr.capture import split_at
from jaxattn.jaxpr.program import Program, Signature, UntracedError
from jaxattn.jaxpr.rows import Rows, worthwhile_rows
from jaxattn.jaxpr.structure.softmaxes import returns_probabilities


class Bound(NamedTuple):
    """A callable as its arrays, which are traced, and a static program that takes them."""

    arrays: Arrays
    program: Recipe | Program


class Binding:
    """A method, its function, its target and its options: all of a call but the examples.

    Attributes:
        method: the method.
        options: its options without their arrays.
        option_arrays: the arrays of its options.
        random_key: the random key of the call.
        signature: that of `fn` for one example.
        fn: the bound function.
        output: its abstract output.
        selected: the part of the output that a target selects from.
        target: the bound target, `None` for one that is not a callable.
        targets: the number of targets, `None` for one without an axis.
        programs: those of the function and of the target.
    """

    fn: Bound
    output: PyTree
    selected: PyTree
    target: Bound | None
    programs: tuple[Recipe | Program, Recipe | Program | None]

    def __init__(
        self,
        method: Method,
        fn: Callable[..., Any],
        inputs: tuple[PyTree, ...],
        target: Target,
        options: Mapping[str, Any],
        random_key: RandomKey | None = None,
    ) -> None:
        self.method = static_method(method)
        self.option_arrays, self.options = split_options(dict(options))
        self.random_key = random_key
        self.signature = Signature.of(inputs)
        self.targets: int | None = None
        self._key = known(HashedKey((self.method, self.options, self.signature)))
        self._callables = fn, target
        self._select = functools.partial(selected_part, method, options=dict(options))
        self._lock = threading.Lock()
        self._bind()

    def _bind(self) -> None:
        """Split `fn` and `target` into arrays and programs, for all signatures met so far."""
        fn, target = self._callables
        self.fn = self._bind_one(fn, self.signature)
        self.output = _output(self.fn, self.signature)
        self.selected = self._select(self.output)
        of_output = Signature.of((self.selected,))
        self.target = self._bind_one(target, of_output) if callable(target) else None
        self.programs = self.fn.program, None if self.target is None else self.target.program
        self._placed: dict[Mesh | None, PyTree] = {}

    def _bind_one(self, function: Callable[..., Any], signature: Signature) -> Bound:
        extra = MEMOS.signatures.get((self._key, signature), [])
        lift = self._key not in MEMOS.analysed
        try:
            return Bound(*bind(function, [signature, *extra], lift))
        except Exception:
            if not extra:
                raise
            # Another function was called with these signatures; this one may not accept them.
            del MEMOS.signatures[self._key, signature]
            return Bound(*bind(function, [signature], lift))

    @property
    def key(self) -> Hashable:
        """What tells this call from others of the engine, but for the examples."""
        return self._key, self.targets, *self.programs

    @property
    def rows(self) -> Rows:
        """The number of evaluations of the function that uses a device well."""
        key = self.fn.program, self.signature
        if key not in MEMOS.rows:
            _trace(self.fn, self.signature)
        return MEMOS.rows[key]

    @property
    def is_probability(self) -> bool:
        """Whether the function ends in a softmax or a sigmoid."""
        key = self.fn.program, self.signature
        if key not in MEMOS.probabilities:
            _trace(self.fn, self.signature)
        return MEMOS.probabilities[key]

    def arrays_on(self, mesh: Mesh | None) -> PyTree:
        """Return the traced half of a call beside the examples, on each device of the mesh."""
        if mesh not in self._placed:
            target_arrays = [] if self.target is None else self.target.arrays
            arrays = self.fn.arrays, target_arrays, self.option_arrays, self.random_key
            if mesh is not None:
                arrays = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))
            self._placed[mesh] = arrays
        return self._placed[mesh]

    def keep_literals(self) -> None:
        """Bind again, with the literals of the function and of the target in their programs."""
        with self._lock:
            if self._key not in MEMOS.analysed:
                MEMOS.analysed[self._key] = True
            self._bind()

    def retrace(
        self,
        error: UntracedError,
        programs: tuple[Recipe | Program, Recipe | Program | None],
        attempted: set[Hashable],
    ) -> None:
        """Bind again, for a signature that a program was called with and not traced for.

        Args:
            error: names the program and the signature.
            programs: the programs that raised it. If others are bound by now, another thread has
                bound them, and nothing is done.
            attempted: what was bound already in this call.

        Raises:
            UntracedError: if binding for this signature did not help.
        """
        with self._lock:
            if self.programs != programs:
                return
            of_fn = error.program is self.fn.program
            if (of_fn, error.signature) in attempted:
                bind(self._callables[0 if of_fn else 1], [error.signature])  # its own error if any
                raise error
            attempted.add((of_fn, error.signature))
            plain = self.signature if of_fn else Signature.of((self.selected,))
            met = MEMOS.signatures.get((self._key, plain), [])
            MEMOS.signatures[self._key, plain] = [*met, error.signature]
            self._bind()


def explained_input(
    fn: Callable[..., Any], x: PyTree, args: tuple[PyTree, ...], at: str | None
) -> PyTree:
    """Return the abstract value that is explained: the input, or the intermediate named `at`."""
    if at is None:
        return Signature.of((x,)).structs()[0]
    inputs = Signature.of((x, *args)).structs()
    return jax.eval_shape(lambda *inputs: split_at(as_function(fn), inputs, at)[0], *inputs)


def _output(bound: Bound, signature: Signature) -> PyTree:
    """Return the abstract output of a bound callable."""
    if isinstance(bound.program, Program):
        return bound.program.output(signature)
    key = bound.program, signature
    if key not in MEMOS.outputs:
        _trace(bound, signature)
    return MEMOS.outputs[key]


def _trace(bound: Bound, signature: Signature) -> None:
    """Trace a bound callable once, and keep its abstract output and how many rows suit it."""
    program = bound.program
    if isinstance(program, Program):
        jaxpr, output = program.jaxpr(signature), program.output(signature)
    else:
        trace = jax.make_jaxpr(
            lambda arrays, inputs: program.rebuild(arrays)(*inputs), return_shape=True
        )
        closed, output = trace(bound.arrays, signature.structs())
        jaxpr = closed.jaxpr
    MEMOS.outputs[program, signature] = output
    MEMOS.probabilities[program, signature] = returns_probabilities(jaxpr)
    MEMOS.rows[program, signature] = worthwhile_rows(jaxpr)
