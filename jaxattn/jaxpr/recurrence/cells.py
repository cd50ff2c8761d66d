"""Cells: the gates of an LSTM, a GRU or a simple recurrent network in the body of a loop.

A cell is recognised by its equations alone. With f, i, o, z between 0 and 1:

* LSTM: c' = f c + i g and h' = o act(c')
* GRU: h' = (1 - z) n + z h or h' = (1 - z) h + z n, where n depends on a further gate
* simple recurrent network: h' = act(a), where a is affine in the input and in h
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from jaxattn.jaxpr.flat import Atom, Var
from jaxattn.jaxpr.recurrence.affine_maps import AffineMap, contracts_between
from jaxattn.jaxpr.recurrence.polynomials import (
    Piece,
    Polynomial,
    Polynomials,
    is_vector,
    preactivation,
    size_of,
)
from jaxattn.jaxpr.structure.graph import Structure

#: The gates of each kind of cell, in the order of tables and figures.
GATES = {
    "lstm": ("input", "forget", "cell", "output"),
    "gru": ("update", "reset", "new"),
    "rnn": ("new",),
}


@dataclass(frozen=True)
class Gate:
    """A gate or a candidate state.

    Attributes:
        activation: where its values are.
        preactivation: where the operands of its activation are.
        low: the lower bound of its values.
        high: the upper bound.
    """

    activation: Piece
    preactivation: Piece
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Cell:
    """The cell of a recurrent layer.

    Attributes:
        kind: "lstm", "gru" or "rnn"; "unknown" if its gates are not recognised.
        hidden: the position of the hidden state in the carry; -1 if it is unknown.
        cell: the position of the cell state of an LSTM; -1 if there is none.
        new_hidden: the next hidden state, before steps of padding are masked.
        new_cell: the next cell state.
        gates: the gates by name.
        keeps_update: whether the update gate of a GRU is the factor of the old state, rather than
            that of the candidate.
        resets_product: whether the reset gate of a GRU multiplies the recurrent product, rather
            than the state.
    """

    kind: str
    hidden: int = -1
    cell: int = -1
    new_hidden: Var | None = None
    new_cell: Var | None = None
    gates: dict[str, Gate] = field(default_factory=dict)
    keeps_update: bool = True
    resets_product: bool = True


UNKNOWN = Cell("unknown")


def recognise(structure: Structure, n_consts: int, n_carry: int) -> list[Cell]:
    """Recognise the cells of a scan's body.

    Args:
        structure: the body.
        n_consts: the number of its inputs that are constants.
        n_carry: the number of its inputs that are carried.
    """
    carries = structure.flat.inputs[n_consts : n_consts + n_carry]
    updates = [unmasked(structure, *pair) for pair in zip(carries, structure.flat.outputs)]  # noqa: B905
    candidates = _Candidates(structure, Polynomials(structure), carries, updates)
    found: dict[int, Cell] = {}
    for find in (_lstm, _gru, _rnn):
        for cell in find(candidates):
            taken = {other.hidden for other in found.values()}
            if cell.hidden not in taken:
                found[cell.hidden] = cell
    return [found[index] for index in sorted(found)] or [UNKNOWN]


def unmasked(structure: Structure, carry: Var, output: Atom) -> Atom:
    """Return the next state, without the selection of the old one at steps of padding."""
    while isinstance(output, Var):
        step = structure.producers.get(output)
        if step is None or step.name != "select_n":
            break
        others = [case for case in step.inputs[1:] if case is not carry]
        if len(others) != 1:
            break
        (output,) = others
    return output


@dataclass(frozen=True)
class _Candidates:
    """A body with its polynomials, carried values and their next values."""

    structure: Structure
    polynomials: Polynomials
    carries: list[Var]
    updates: list[Atom]

    def states(self) -> Iterator[tuple[int, Var, Var, Polynomial]]:
        """Yield the position, the old and the new value of each state that is a vector."""
        for index, (old, new) in enumerate(zip(self.carries, self.updates, strict=True)):
            if isinstance(new, Var) and new is not old and old.is_floating and is_vector(old):
                yield index, old, new, self.polynomials.of(new)

    def gates(self, kind: str, pieces: Iterable[Piece]) -> dict[str, Gate] | None:
        """Return the gates by name; `None` if one is no activation of another value."""
        found = {}
        for name, piece in zip(GATES[kind], pieces, strict=True):
            before = preactivation(self.structure, piece)
            if before is None:
                return None
            found[name] = Gate(piece, before, *self.structure.facts[piece.var].bounds)
        return found


def _lstm(body: _Candidates) -> Iterator[Cell]:
    """Find c' = f c + i g, and the state h' = o act(c')."""
    is_gate = body.polynomials.is_gate
    for index, old, new, polynomial in body.states():
        forget = [p for term in polynomial for p in _without(term, Piece(old)) if len(term) == 2]
        added = [term for term in polynomial if Piece(old) not in term]
        if not _is_sum(polynomial, 2) or len(forget) != 1 or len(added) != 1 or len(added[0]) != 2:
            continue
        first, second = sorted(added[0], key=is_gate, reverse=True)
        if not is_gate(forget[0]) or not is_gate(first) or is_gate(second):
            continue
        for at, _, hidden, output in body.states():
            gate = None if at == index else _output_gate(body, output, new)
            gates = gate and body.gates("lstm", (first, forget[0], second, gate))
            if gates:
                yield Cell("lstm", at, index, hidden, new, gates)


def _output_gate(body: _Candidates, hidden: Polynomial, cell: Var) -> Piece | None:
    """Return o of h' = o act(c') or h' = o c'."""
    state = body.polynomials.of(cell)
    size = size_of(cell)
    for term in hidden if _is_sum(hidden, 1) else ():
        for gate, squashed in itertools.permutations(term) if len(term) == 2 else ():
            before = preactivation(body.structure, squashed)
            if before and body.polynomials.part(before.var, before.start, size) == state:
                return gate if body.polynomials.is_gate(gate) else None
    shared = set.intersection(*(set(term) for term in hidden)) if hidden else set()
    for gate in shared:
        rest = {_without(term, gate): factor for term, factor in hidden.items()}
        if rest == state and body.polynomials.is_gate(gate):
            return gate
    return None


def _gru(body: _Candidates) -> Iterator[Cell]:
    """Find h' = a - z a + z b, where a and b are the old state and the candidate."""
    for index, old, new, polynomial in body.states():
        negative = [term for term, factor in polynomial.items() if factor == -1]
        positive = [term for term, factor in polynomial.items() if factor == 1]
        if len(polynomial) != 3 or len(negative) != 1 or len(positive) != 2:
            continue
        alone, mixed = sorted(positive, key=len)
        gate = _without(negative[0], *alone) if len(alone) == 1 else ()
        other = _without(mixed, *gate) if len(gate) == 1 else ()
        if len(other) != 1 or not body.polynomials.is_gate(*gate):
            continue
        (first,), (second,) = alone, other
        if Piece(old) not in (first, second):
            continue
        candidate = second if first == Piece(old) else first
        yield from _with_reset(body, index, new, gate[0], candidate, second == Piece(old))


def _with_reset(
    body: _Candidates, index: int, new: Var, update: Piece, candidate: Piece, keeps: bool
) -> Iterator[Cell]:
    """Find the gate that the candidate depends on."""
    before = preactivation(body.structure, candidate)
    if before is None:
        return
    size = size_of(new)
    resets = _gates_behind(body, before, size)
    gates = body.gates("gru", (update, *resets, candidate)) if len(resets) == 1 else None
    if gates and resets[0] != update:
        inside = contracts_between(body.structure.flat, resets[0].var, before.var)
        yield Cell("gru", index, -1, new, None, gates, keeps, not inside)


def _gates_behind(body: _Candidates, piece: Piece, size: int) -> list[Piece]:
    """Return the gates that a value is computed from, without those behind other gates."""
    found: dict[Piece, None] = {}
    queue, visited = [body.polynomials.part(piece.var, piece.start, size)], set()
    while queue:
        for term in queue.pop():
            for part in term:
                if body.polynomials.is_gate(part):
                    found[part] = None
                    continue
                step = body.structure.producers.get(part.var)
                if step is None or part.var in visited:
                    continue
                visited.add(part.var)
                queue += [body.polynomials.of(v) for v in step.variables]
    return list(found)


def _rnn(body: _Candidates) -> Iterator[Cell]:
    """Find h' = act(a), where a is affine in h."""
    for index, old, new, polynomial in body.states():
        terms = list(polynomial)
        if not _is_sum(polynomial, 1) or len(terms) != 1 or len(terms[0]) != 1:
            continue
        gates = body.gates("rnn", terms[0])
        if gates is None:
            continue
        varying = [
            v for v in body.structure.flat.inputs if body.structure.facts[v].depends_on_input
        ]
        source = gates["new"].preactivation.var
        if old in AffineMap(body.structure.flat, source, varying).sources:
            yield Cell("rnn", index, -1, new, None, gates)


def _is_sum(polynomial: Polynomial, terms: int) -> bool:
    """Return whether a polynomial is a sum of this many terms with coefficients of 1."""
    return len(polynomial) == terms and all(abs(f - 1) < 1e-6 for f in polynomial.values())


def _without(term: tuple[Piece, ...], piece: Piece) -> tuple[Piece, ...]:
    """Return the other factors of a product, if the piece is one; otherwise none."""
    if piece not in term:
        return ()
    position = term.index(piece)
    return term[:position] + term[position + 1 :]
