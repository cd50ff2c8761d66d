"""An affine map of which only the elements are computed that its output consists of."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxattn.jaxpr.flat import Atom, Step
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.propagation.walk import Read
from jaxattn.jaxpr.structure.affine import Affine

#: Steps whose output elements are functions of the operands' elements at the same place.
_ELEMENTWISE = frozenset("add add_any sub mul div neg name copy".split())
#: The number of steps behind a slice of which only a part is computed.
_DEEPEST = 30


class Interval(NamedTuple):
    """The `size` elements of one axis that begin at `start`, `stride` apart."""

    start: int
    size: int
    stride: int = 1

    @property
    def stop(self) -> int:
        """The end of the interval, behind its last element."""
        return self.start + (self.size - 1) * self.stride + 1 if self.size else self.start

    def within(self, outer: "Interval") -> "Interval":
        """Return the elements of the axis that are these of another interval's elements."""
        start = outer.start + self.start * outer.stride if self.size else 0
        return Interval(start, self.size, self.stride * outer.stride)


#: The elements of a value that are needed: an interval of each axis.
Window: TypeAlias = tuple[Interval, ...]


class WindowedLayer:
    """Compute no more of an affine map than the elements that its output consists of.

    A gate's pre-activation is a slice of a product with the weights of all gates. With a slice of
    the weights instead it takes a quarter of the work, in the transpose too.

    Args:
        affine: the map.
        read: returns the value of an operand that is not computed by the map, such as a weight.
        inputs: the map's inputs.
    """

    def __init__(self, affine: Affine, read: Read, inputs: Sequence[Array]) -> None:
        self.affine, self.read = affine, read
        self.inputs: dict[Atom, Array] = dict(zip(affine.inputs, inputs, strict=True))
        self.producers: dict[Atom, Step] = {
            out: step for step in affine.steps for out in step.outputs
        }
        self.readers: Counter[Atom] = Counter(
            atom for step in affine.steps for atom in set(step.inputs)
        )
        self.computed: dict[Atom, ArrayLike] = {}

    def output(self) -> Array:
        """Return the map's output."""
        return jnp.asarray(self._whole(self.affine.output))

    def _whole(self, atom: Atom) -> ArrayLike:
        """Return a value."""
        queue = [atom]  # without recursion: sums may have thousands of terms
        while queue:
            step = self._step(queue[-1])
            if step is None or queue[-1] in self.computed:
                queue.pop()
                continue
            if step.name in ("slice", "split"):
                output = queue[-1]
                self.computed[output] = self._part(step.inputs[0], _sliced(step, output))
                continue
            missing = [a for a in step.inputs if self._step(a) and a not in self.computed]
            queue += missing
            if not missing:
                values = bind(step.eqn, [self._at_hand(a) for a in step.inputs])
                self.computed.update(zip(step.outputs, values, strict=True))
        return self._at_hand(atom)

    def _step(self, atom: Atom) -> Step | None:
        """Return the step of the map that computes a value."""
        return None if atom in self.inputs else self.producers.get(atom)

    def _at_hand(self, atom: Atom) -> ArrayLike:
        """Return an input of the map, a value that was computed, or a constant."""
        if atom in self.inputs:
            return self.inputs[atom]
        return self.computed[atom] if atom in self.computed else self.read(atom)

    def _part(self, atom: Atom, window: Window, depth: int = 0) -> ArrayLike:
        """Return some elements of a value."""
        step = self._step(atom)
        # One whole costs less than several parts, which may overlap.
        if step is None or self.readers[atom] > 1 or depth > _DEEPEST:
            return _slice(self._whole(atom), window)
        if step.name in ("slice", "split"):
            pairs = zip(window, _sliced(step, atom), strict=True)
            outer = tuple(part.within(outer) for part, outer in pairs)
            return self._part(step.inputs[0], outer, depth + 1)
        if step.name in _ELEMENTWISE:
            parts = [self._broadcast_part(a, window, depth + 1) for a in step.inputs]
            return bind(step.eqn, parts)[0]
        if step.name == "dot_general":
            return bind(step.eqn, self._factors(step, window, depth + 1))[0]
        return _slice(self._whole(atom), window)

    def _broadcast_part(self, atom: Atom, window: Window, depth: int) -> ArrayLike:
        """Return the elements of an operand that belong to some of what it is broadcast to."""
        shape = atom.aval.shape
        if not shape:
            return self._whole(atom)
        parts = zip(window, shape, strict=True)
        own = tuple(Interval(0, 1) if n == 1 else part for part, n in parts)
        return self._part(atom, own, depth)

    def _factors(self, step: Step, window: Window, depth: int) -> list[ArrayLike]:
        """Return the elements of both factors that some elements of their product depend on."""
        contracted_axes, batch_axes = step.eqn.params["dimension_numbers"]
        rest = list(window)
        batch = [rest.pop(0) for _ in batch_axes[0]]
        parts = []
        for factor, contracted, batched in zip(
            step.inputs, contracted_axes, batch_axes, strict=True
        ):
            shape = factor.aval.shape
            intervals = {axis: Interval(0, shape[axis]) for axis in contracted}
            intervals |= dict(zip(batched, batch, strict=True))
            for axis in range(len(shape)):
                if axis not in intervals:
                    intervals[axis] = rest.pop(0)
            own = tuple(intervals[axis] for axis in range(len(shape)))
            parts.append(self._part(factor, own, depth))
        return parts


def _sliced(step: Step, output: Atom) -> Window:
    """Return the elements of the operand of a slice or a split that an output consists of."""
    parameters, shape = step.eqn.params, output.aval.shape
    if step.name == "slice":
        strides = parameters["strides"] or (1,) * len(shape)
        return tuple(map(Interval, parameters["start_indices"], shape, strides))
    first = int(sum(parameters["sizes"][: [var is output for var in step.outputs].index(True)]))
    return tuple(
        Interval(first if axis == parameters["axis"] else 0, size)
        for axis, size in enumerate(shape)
    )


def _slice(value: ArrayLike, window: Window) -> ArrayLike:
    shape = jnp.shape(value)
    if all(part == Interval(0, size) for part, size in zip(window, shape, strict=True)):
        return value
    starts, stops, strides = zip(*((w.start, w.stop, w.stride) for w in window), strict=True)
    return jax.lax.slice(value, starts, stops, strides)
