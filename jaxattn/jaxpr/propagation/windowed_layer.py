"""An affine map, of which only the cells are computed that come out of it."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax

from jaxattn.jaxpr.flat import Step
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.structure.affine import Affine

#: The value of an operand that is not part of the map: a weight, a bias, an index.
Read: TypeAlias = Callable[[Any], Any]
#: The cells of a value that are wanted: where they begin and how many they are, on each axis.
Window: TypeAlias = tuple[tuple[int, int], ...]


class Windowed:
    """Computes no more of a map than the cells that come out of it.

    A gate's pre-activation is a slice of a product with the weights of all gates. The slice of the
    weights is a quarter of the work, on the way back too.
    """

    def __init__(self, affine: Affine, read: Read, inputs: Sequence[Any]) -> None:
        self.read = read
        self.given = dict(zip(affine.inputs, inputs, strict=True))
        self.makers = {out: step for step in affine.steps for out in step.outputs}
        self.whole: dict[Any, Any] = {}

    def __call__(self, atom: Any, window: Window | None) -> Any:
        """The value of an operand, or of some of its cells."""
        step = self.makers.get(atom)
        if window is not None and step is not None and atom not in self.given:
            if step.name == "slice" and step.eqn.params["strides"] is None:
                return self(step.inputs[0], _within(window, step.eqn.params["start_indices"]))
            if step.name == "split":
                axis, sizes = step.eqn.params["axis"], step.eqn.params["sizes"]
                first = int(sum(sizes[: step.outputs.index(atom)]))
                starts = [first if i == axis else 0 for i in range(len(window))]
                return self(step.inputs[0], _within(window, starts))
            if step.name in ("add", "add_any", "sub", "mul", "div", "neg", "name", "copy"):
                return bind(step.eqn, [self(a, _fitting(window, a)) for a in step.inputs])[0]
            if step.name == "dot_general":
                return bind(step.eqn, self._factors(step, window))[0]
        value = self._all(atom)
        return value if window is None else _cut(value, window)

    def _all(self, atom: Any) -> Any:
        if atom in self.given:
            return self.given[atom]
        step = self.makers.get(atom)
        if step is None:
            return self.read(atom)
        if atom not in self.whole:
            if step.name in ("slice", "split"):
                self.whole[atom] = self(atom, tuple((0, n) for n in atom.shape))
            else:
                values = bind(step.eqn, [self(a, None) for a in step.inputs])
                self.whole.update(zip(step.outputs, values, strict=True))
        return self.whole[atom]

    def _factors(self, step: Step, window: Window) -> list[Any]:
        """The cells of both factors that some cells of their product are made of."""
        (left, right), (over, batch) = step.inputs, step.eqn.params["dimension_numbers"]
        rest = list(window)
        shared = [rest.pop(0) for _ in batch[0]]
        windows = []
        for factor, contracted, batched in zip((left, right), over, batch, strict=True):
            shape = factor.aval.shape
            cells = {axis: (0, shape[axis]) for axis in contracted} | dict(
                zip(batched, shared, strict=True)
            )
            for axis in range(len(shape)):
                if axis not in cells:
                    cells[axis] = rest.pop(0)
            windows.append(tuple(cells[axis] for axis in range(len(shape))))
        return [self(left, windows[0]), self(right, windows[1])]


def _within(window: Window, starts: Sequence[int]) -> Window:
    return tuple((start + first, n) for (first, n), start in zip(window, starts, strict=True))


def _fitting(window: Window, atom: Any) -> Window | None:
    """The part of an operand that goes with a part of what it is broadcast to."""
    shape = atom.aval.shape
    if not shape:
        return None
    return tuple((0, 1) if n == 1 else part for part, n in zip(window, shape, strict=True))


def _cut(value: Any, window: Window) -> Any:
    if all(part == (0, n) for part, n in zip(window, value.shape, strict=True)):
        return value
    return jax.lax.slice(value, [a for a, _ in window], [a + n for a, n in window])
