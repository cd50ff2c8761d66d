"""Memos of earlier calls: traces, plans, and limits of devices."""

import dataclasses
from collections.abc import Hashable
from typing import TypeVar

from jaxtyping import PyTree

from jaxattn.engine.lengths import Lengths
from jaxattn.jaxpr.program import Signature
from jaxattn.jaxpr.rows import Rows

Entry = TypeVar("Entry")

#: Entries of each kind that are kept.
CAPACITY = 1024


class Memo(dict[Hashable, Entry]):
    """A dictionary that drops its oldest entry when it is full; threads may share it."""

    def __setitem__(self, key: Hashable, entry: Entry) -> None:
        if len(self) >= CAPACITY:
            self.pop(next(iter([*self])), None)  # a copy: other threads may change the dictionary
        super().__setitem__(key, entry)


@dataclasses.dataclass(frozen=True)
class Memos:
    """All that is kept between calls.

    Attributes:
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
    """

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

    def clear(self) -> None:
        """Forget everything."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).clear()


MEMOS = Memos()
