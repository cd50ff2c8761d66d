"""Memos of earlier calls: traces, plans, and limits of devices."""

import dataclasses
import weakref
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import PyTree

from jaxattn._static import is_concrete
from jaxattn.engine.environment import Environment
from jaxattn.engine.lengths import Lengths
from jaxattn.jaxpr.program import Program, Signature
from jaxattn.jaxpr.rows import Rows

Entry = TypeVar("Entry")

#: Bytes of arrays that are kept with a trace.
_SMALL = 2**20

#: Entries of each kind that are kept.
CAPACITY = 1024


class Memo(dict[Hashable, Entry]):
    """A dictionary that drops its oldest entry when it is full; threads may share it."""

    def __setitem__(self, key: Hashable, entry: Entry) -> None:
        if len(self) >= CAPACITY:
            self.pop(next(iter([*self])), None)  # a copy: other threads may change the dictionary
        super().__setitem__(key, entry)


class KnownTrace(NamedTuple):
    """The program of a function, and its constants.

    Attributes:
        program: the program.
        held: weak references to what the function reads and counts by identity.
        constants: the constants of the trace: the positions of arrays among these, or small arrays.
    """

    program: Program
    held: tuple[weakref.ref[Any], ...]
    constants: tuple[Any, ...]

    @classmethod
    def of(
        cls, program: Program, constants: Sequence[Any], environment: Environment
    ) -> "KnownTrace | None":
        """Return what can be kept of a trace, `None` if it made large arrays."""
        position = {id(value): i for i, value in enumerate(environment.held)}
        made = [constant for constant in constants if id(constant) not in position]
        if not all(map(is_concrete, made)) or sum(map(_size, made)) > _SMALL:
            return None
        kept = [
            position.get(id(c), np.array(c) if isinstance(c, np.ndarray) else c) for c in constants
        ]
        return cls(program, tuple(map(weakref.ref, environment.held)), tuple(kept))

    def arrays(self, environment: Environment) -> list[Any] | None:
        """Return the constants of the trace in an environment, `None` if it holds other arrays."""
        if any(mine() is not held for mine, held in zip(self.held, environment.held, strict=True)):
            return None
        return [environment.held[c] if type(c) is int else c for c in self.constants]


def _size(array: Any) -> int:
    return int(np.size(array)) * 8


@dataclasses.dataclass(frozen=True)
class Memos:
    """All that is kept between calls.

    Attributes:
        traces: the programs of functions by what these read.
        signatures: the signatures beside the plain one with which a method calls a function.
        outputs: the abstract outputs of bound callables.
        rows: how many evaluations of a bound callable use a device well.
        probabilities: whether a bound callable ends in a softmax or a sigmoid.
        warned: the callables of which a call has warned.
        limits: the largest number of evaluations in flight that a device was seen to hold.
        suitable: the evaluations in flight with which a program suits its device.
        lengths: the lengths of batches with which a call was made.
        analysed: calls that analyse the structure of a function, and depend on its literals.
        completed: plans that have run to their end.
        serial: whether parts of a plan must run one after the other.
    """

    traces: Memo[KnownTrace] = dataclasses.field(default_factory=Memo)
    signatures: Memo[list[Signature]] = dataclasses.field(default_factory=Memo)
    outputs: Memo[PyTree] = dataclasses.field(default_factory=Memo)
    rows: Memo[Rows] = dataclasses.field(default_factory=Memo)
    probabilities: Memo[bool] = dataclasses.field(default_factory=Memo)
    warned: Memo[bool] = dataclasses.field(default_factory=Memo)
    limits: Memo[int] = dataclasses.field(default_factory=Memo)
    suitable: Memo[int] = dataclasses.field(default_factory=Memo)
    lengths: Memo[Lengths] = dataclasses.field(default_factory=Memo)
    analysed: Memo[bool] = dataclasses.field(default_factory=Memo)
    completed: Memo[bool] = dataclasses.field(default_factory=Memo)
    serial: Memo[bool] = dataclasses.field(default_factory=Memo)

    def clear(self) -> None:
        """Forget everything."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).clear()


MEMOS = Memos()
