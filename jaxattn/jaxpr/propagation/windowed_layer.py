"""An affine map of which only the elements are computed that its output consists of."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxattn.jaxpr.flat import Atom, Step, Var
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.propagation.walk import Read
from jaxattn.jaxpr.structure.affine import Affine

#: Steps whose output elements are functions of the operands' elements at the same place.
_ELEMENTWISE = frozenset("add add_any sub mul div neg name copy".split())


class Interval(NamedTuple):
    """The `size` elements of one axis that begin at `start`."""

    start: int
    size: int


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
        self.producers = {out: step for step in affine.steps for out in step.outputs}
        self.computed: dict[Atom, ArrayLike] = {}

    def output(self) -> Array:
        """Return the map's output."""
        return jnp.asarray(self._whole(self.affine.output))

    def _whole(self, atom: Atom) -> ArrayLike:
        """Return a value."""
        if atom in self.inputs:
            return self.inputs[atom]
        step = self.producers.get(atom) if isinstance(atom, Var) else None
        if step is None:
            return self.read(atom)
        if atom not in self.computed:
            if step.name in ("slice", "split"):
                whole = tuple(Interval(0, size) for size in atom.aval.shape)
                self.computed[atom] = self._part(atom, whole)
            else:
                values = bind(step.eqn, [self._whole(operand) for operand in step.inputs])
                self.computed.update(zip(step.outputs, values, strict=True))
        return self.computed[atom]

    def _part(self, atom: Atom, window: Window) -> ArrayLike:
        """Return some elements of a value."""
        step = self.producers.get(atom) if isinstance(atom, Var) else None
        if step is None or not isinstance(atom, Var) or atom in self.inputs:
            return _slice(self._whole(atom), window)
        if step.name == "slice" and step.eqn.params["strides"] is None:
            return self._part(step.inputs[0], _shifted(window, step.eqn.params["start_indices"]))
        if step.name == "split":
            axis, sizes = step.eqn.params["axis"], step.eqn.params["sizes"]
            first = int(sum(sizes[: step.outputs.index(atom)]))
            starts = [first if i == axis else 0 for i in range(len(window))]
            return self._part(step.inputs[0], _shifted(window, starts))
        if step.name in _ELEMENTWISE:
            return bind(step.eqn, [self._broadcast_part(a, window) for a in step.inputs])[0]
        if step.name == "dot_general":
            return bind(step.eqn, self._factors(step, window))[0]
        return _slice(self._whole(atom), window)

    def _broadcast_part(self, atom: Atom, window: Window) -> ArrayLike:
        """Return the elements of an operand that belong to some of what it is broadcast to."""
        shape = atom.aval.shape
        if not shape:
            return self._whole(atom)
        parts = zip(window, shape, strict=True)
        return self._part(atom, tuple(Interval(0, 1) if n == 1 else part for part, n in parts))

    def _factors(self, step: Step, window: Window) -> list[ArrayLike]:
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
            parts.append(self._part(factor, tuple(intervals[axis] for axis in range(len(shape)))))
        return parts


def _shifted(window: Window, starts: Sequence[int]) -> Window:
    pairs = zip(window, starts, strict=True)
    return tuple(Interval(start + part.start, part.size) for part, start in pairs)


def _slice(value: ArrayLike, window: Window) -> ArrayLike:
    shape = jnp.shape(value)
    if all(part == (0, size) for part, size in zip(window, shape, strict=True)):
        return value
    starts = [part.start for part in window]
    return jax.lax.slice(value, starts, [part.start + part.size for part in window])
