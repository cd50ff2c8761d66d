"""Sizes of parts for batches of many lengths, of which few sizes are compiled.

A program is compiled for one number of examples. The first length of a call is compiled as it is,
and so is one that is repeated. Batches of other lengths are divided into parts of few sizes, the
last of which is filled up.
"""

import dataclasses
from collections.abc import Iterator, Sequence

#: Sizes that are compiled for any length, beside the powers of two from 8 on.
_SMALL = 1, 4

#: Calls in succession after which a length is compiled as it is.
_REPEATED = 3

#: Lengths of one call that are compiled as they are.
_MOST_EXACT = 4

#: The share of a batch by which it may be filled up.
_FILLED = 0.25


@dataclasses.dataclass
class Lengths:
    """The lengths of the batches with which one call was made.

    Attributes:
        exact: the sizes of parts that were compiled as they were, by the length of the batch.
        last: the length of the last batch.
        times: how often in succession it was the length.
    """

    exact: dict[int, int] = dataclasses.field(default_factory=dict)
    last: int = 0
    times: int = 0

    def is_exact(self, batch: int) -> bool:
        """Count a batch, and return whether its length is to be compiled as it is."""
        self.times = self.times + 1 if batch == self.last else 1
        self.last = batch
        if batch in self.exact or not self.exact:
            return True
        return self.times >= _REPEATED and len(self.exact) < _MOST_EXACT


def part_sizes(batch: int, most: int, workers: int, exact: Sequence[int] = ()) -> Iterator[int]:
    """Yield the sizes of the parts of a batch, which fill it up at most by a quarter.

    Args:
        batch: the number of examples.
        most: the largest size of a part.
        workers: how many parts are computed at a time.
        exact: sizes that are compiled already, beside powers of two.
    """
    sizes = [size for size in (*_SMALL, *exact) if size <= most]
    sizes += [2**i for i in range(3, most.bit_length())]
    rest = batch
    while rest > 0:
        at_once = min(workers, rest)
        share = min(max(sizes), -(-rest // at_once))
        size = min(size for size in sizes if size >= share)
        parts = -(-rest // size)
        if parts * size - rest > max(1, _FILLED * batch):
            size = max(size for size in sizes if size <= share)
            parts = rest // (size * at_once) * at_once
        yield from (size,) * parts
        rest -= parts * size
