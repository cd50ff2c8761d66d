"""Values of a loop's body as polynomials of the activations and states that they consist of.

A cell can be written in many ways: `(1 - z) * n + z * h` and `n + z * (h - n)` are the same GRU,
and four gates may be four arrays or parts of one. As polynomials of parts of arrays they are equal.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from jaxattn.jaxpr.flat import Atom, Number, Step, Var, has_custom_derivative, is_elementwise
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.producers import literal_scalar

#: More terms than this are no cell: the value is taken as a whole.
_MOST_TERMS = 12
#: Primitives that return the elements of their first operand, in the same order if there is one
#: axis of more than one element.
_KEEPING = frozenset(
    "broadcast_in_dim convert_element_type copy copy_p expand_dims name optimization_barrier "
    "reduce_precision reshape squeeze transpose".split()
)


class Piece(NamedTuple):
    """Consecutive elements of a vector.

    Attributes:
        var: the vector.
        start: the position of the first element.
    """

    var: Var
    start: int = 0


#: A product of pieces, in a fixed order.
Term: TypeAlias = tuple[Piece, ...]
#: A sum of products with their coefficients.
Polynomial: TypeAlias = Mapping[Term, float]


def size_of(atom: Atom) -> int:
    """Return the number of elements."""
    size = 1
    for length in atom.aval.shape:
        size *= length
    return size


def is_vector(atom: Atom) -> bool:
    """Return whether at most one axis has more than one element."""
    return sum(length != 1 for length in atom.aval.shape) <= 1


class Polynomials:
    """The polynomials of the values of a body.

    Args:
        structure: the body.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self._known: dict[Var, Polynomial] = {}
        self._position = {var: i for i, var in enumerate(structure.facts)}

    def of(self, atom: Atom) -> Polynomial:
        """Return the polynomial of a value."""
        scalar = literal_scalar(atom, self.structure.producers)
        if scalar is not None and not isinstance(scalar, bool):
            return _cleaned({(): float(scalar)})
        if isinstance(atom, Number):
            return {}
        if atom not in self._known:
            self._known[atom] = self._expanded(atom)
        return self._known[atom]

    def part(self, atom: Atom, start: int, size: int) -> Polynomial:
        """Return the polynomial of consecutive elements of a value."""
        if size == size_of(atom):
            return self.of(atom)
        total: Polynomial = {}
        for term, factor in self.of(atom).items():
            product: Polynomial = {(): factor}
            for piece in term:
                product = self._times(product, self._shifted(piece, start, size))
            total = _plus(total, product)
        return total

    def is_gate(self, piece: Piece) -> bool:
        """Return whether all elements lie between 0 and 1 and depend on the input or the state."""
        fact = self.structure.facts[piece.var]
        return fact.depends_on_input and fact.bounds.within_unit

    def _shifted(self, piece: Piece, start: int, size: int) -> Polynomial:
        """Return the polynomial of a part of a piece, through concatenations."""
        start += piece.start
        step = self.structure.producers.get(piece.var)
        if step is not None and step.name == "concatenate" and is_vector(piece.var):
            before = 0
            for atom in step.inputs:
                if before <= start and start + size <= before + size_of(atom):
                    return self.part(atom, start - before, size)
                before += size_of(atom)
        return {(Piece(piece.var, start),): 1.0}

    def _expanded(self, var: Var) -> Polynomial:
        whole: Polynomial = {(Piece(var),): 1.0}
        step = self.structure.producers.get(var)
        if step is None or not is_vector(var) or not all(map(is_vector, step.inputs)):
            return whole
        if not self.structure.facts[var].depends_on_input:
            return whole
        rule = _RULES.get(step.name)
        found = whole if rule is None else rule(self, step, var)
        if not found or len(found) > _MOST_TERMS or self._is_composite_gate(var, found):
            return whole
        return found

    def _is_composite_gate(self, var: Var, found: Polynomial) -> bool:
        """Return whether scaling and shifting one activation makes a gate of it."""
        pieces = {piece for term in found for piece in term}
        if len(pieces) != 1 or max(map(len, found)) != 1:
            return False
        (piece,) = pieces
        is_new = piece.var is not var and not self.structure.facts[piece.var].bounds.within_unit
        return is_new and self.is_gate(Piece(var))

    def _times(self, a: Polynomial, b: Polynomial) -> Polynomial:
        product: dict[Term, float] = {}
        for left, scale in a.items():
            for right, factor in b.items():
                term = tuple(sorted((*left, *right), key=self._key))
                product[term] = product.get(term, 0.0) + scale * factor
        return _cleaned(product)

    def _key(self, piece: Piece) -> tuple[int, int]:
        return self._position[piece.var], piece.start

    # The rules of primitives.

    def kept(self, step: Step, var: Var) -> Polynomial:
        """Return the polynomial of a value with another layout or dtype."""
        same = size_of(step.inputs[0]) == size_of(var)
        return self.of(step.inputs[0]) if same else {}

    def split(self, step: Step, var: Var) -> Polynomial:
        """Return the polynomial of one part of a value."""
        start = 0
        for size, output in zip(step.eqn.params["sizes"], step.outputs, strict=True):
            if output is var:
                break
            start += int(size)
        lengths = step.inputs[0].aval.shape
        return self.part(step.inputs[0], start, size_of(var)) if lengths else {}

    def sliced(self, step: Step, var: Var) -> Polynomial:
        """Return the polynomial of a slice."""
        params = step.eqn.params
        if any(stride != 1 for stride in params["strides"] or ()):
            return {}
        return self.part(step.inputs[0], int(max(params["start_indices"])), size_of(var))

    def added(self, step: Step, var: Var) -> Polynomial:
        """Return the polynomial of a sum."""
        a, b = map(self.of, step.inputs)
        return _plus(a, b) if self._fit(step, var) else {}

    def subtracted(self, step: Step, var: Var) -> Polynomial:
        """Return the polynomial of a difference."""
        a, b = map(self.of, step.inputs)
        return _plus(a, b, -1.0) if self._fit(step, var) else {}

    def multiplied(self, step: Step, var: Var) -> Polynomial:
        """Return the polynomial of a product."""
        a, b = map(self.of, step.inputs)
        return self._times(a, b) if self._fit(step, var) else {}

    def divided(self, step: Step, var: Var) -> Polynomial:
        """Return the polynomial of a quotient by a number."""
        scalar = literal_scalar(step.inputs[1], self.structure.producers)
        return {} if not scalar else _plus({}, self.of(step.inputs[0]), 1 / float(scalar))

    def negated(self, step: Step, var: Var) -> Polynomial:
        """Return the polynomial of the negative."""
        return _plus({}, self.of(step.inputs[0]), -1.0)

    def _fit(self, step: Step, var: Var) -> bool:
        """Return whether each operand is a number or has as many elements as the result."""
        producers = self.structure.producers
        return all(
            size_of(a) == size_of(var) or literal_scalar(a, producers) is not None
            for a in step.inputs
        )


_RULES: dict[str, Callable[[Polynomials, Step, Var], Polynomial]] = {
    **dict.fromkeys(_KEEPING, Polynomials.kept),
    "split": Polynomials.split,
    "slice": Polynomials.sliced,
    "add": Polynomials.added,
    "add_any": Polynomials.added,
    "sub": Polynomials.subtracted,
    "mul": Polynomials.multiplied,
    "div": Polynomials.divided,
    "neg": Polynomials.negated,
}

#: Elementwise steps by which an activation may be made of another, such as a hard sigmoid.
_COMPOSING = frozenset("add sub mul div neg min max clamp".split())


def preactivation(structure: Structure, piece: Piece) -> Piece | None:
    """Return the operand of the activation that a piece is the output of.

    The operand of a logistic, a tanh or a ReLU is that of its step. A hard sigmoid, or a sigmoid
    written as a tanh, has several steps; its operand is that of the first.
    """
    step = structure.producers.get(piece.var)
    operand = None if step is None else _operand(structure, step)
    if step is None or operand is None:
        return None
    composite = step.name in _COMPOSING and structure.facts[piece.var].bounds.within_unit
    if not composite:
        is_linear = step.name in _COMPOSING - {"max", "min", "clamp"} or step.name in _KEEPING
        return None if is_linear else Piece(operand, piece.start)
    while True:
        step = structure.producers.get(operand)
        before = None if step is None else _operand(structure, step)
        if before is None:
            return Piece(operand, piece.start)
        operand = before


def _operand(structure: Structure, step: Step) -> Var | None:
    """Return the one operand that depends on the input, beside numbers, of an elementwise step."""
    if not is_elementwise(step) or step.name in ("select_n", "stop_gradient", "name"):
        return None
    dependent = [v for v in step.variables if structure.facts[v].depends_on_input]
    others = [a for a in step.inputs if a not in dependent]
    if len(dependent) != 1 or size_of(dependent[0]) != size_of(step.outputs[0]):
        return None
    if not has_custom_derivative(step) and any(
        literal_scalar(a, structure.producers) is None for a in others
    ):
        return None
    return dependent[0]


def _plus(a: Polynomial, b: Polynomial, scale: float = 1.0) -> Polynomial:
    total = dict(a)
    for term, factor in b.items():
        total[term] = total.get(term, 0.0) + scale * factor
    return _cleaned(total)


def _cleaned(terms: dict[Term, float]) -> Polynomial:
    return {term: factor for term, factor in terms.items() if abs(factor) > 1e-7}
