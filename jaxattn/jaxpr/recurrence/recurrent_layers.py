"""The recurrent layers of a traced program: loops that carry a state through products."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxattn.jaxpr.flat import Atom, Flat, Step, Var, is_elementwise
from jaxattn.jaxpr.recurrence.affine_maps import dependents
from jaxattn.jaxpr.recurrence.cells import Cell, recognise, unmasked
from jaxattn.jaxpr.recurrence.time_axis import follow
from jaxattn.jaxpr.structure.analysis import analyse
from jaxattn.jaxpr.structure.facts import Fact
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.primitive_classes import ADDING, CONTRACTING, LAYOUT


@dataclass(frozen=True, eq=False)
class Layer:
    """One direction of a recurrent layer.

    Attributes:
        name: its name.
        scan: its loop.
        structure: the body of the loop.
        cell: its cell.
        flipped: whether the series is reversed before the loop and its results after it.
        source: the value that the loop runs over, before it is reversed; `None` if it runs over
            none.
    """

    name: str
    scan: Step
    structure: Structure
    cell: Cell
    flipped: bool
    source: Var | None

    @property
    def direction(self) -> str:
        """Whether the layer runs "forward" or "backward" through its input."""
        return "backward" if self.flipped != bool(self.scan.eqn.params["reverse"]) else "forward"

    @property
    def length(self) -> int:
        """The number of time steps."""
        return int(self.scan.eqn.params["length"])

    @property
    def body(self) -> Flat:
        """The body of the loop."""
        return self.structure.flat

    @property
    def carries(self) -> list[Var]:
        """The variables of the body for the carried values."""
        n_consts, n_carry = self.scan.counts
        return self.body.inputs[n_consts : n_consts + n_carry]

    @property
    def varying(self) -> list[Var]:
        """The variables of the body for the carried values and the slices of series."""
        return self.body.inputs[self.scan.counts[0] :]


def find_layers(flat: Flat) -> list[Layer]:
    """Find the recurrent layers of a function, in the order in which they run.

    Args:
        flat: the function.
    """
    varying = dependents(flat, flat.inputs)
    found: list[Layer] = []
    for step in flat.steps:
        if step.name != "scan" or varying.isdisjoint(step.variables):
            continue
        n_consts, n_carry = step.counts
        facts = [Fact()] * n_consts + [Fact(True, True)] * (len(step.inputs) - n_consts)
        structure = analyse(step.bodies[0], facts)
        if not is_recurrent(structure, n_consts, n_carry):
            continue
        series = _series(flat, step, varying)
        for cell in recognise(structure, n_consts, n_carry):
            found.append(Layer(_path(step), step, structure, cell, *series))
    return _named(found)


def nested_layers(flat: Flat) -> int:
    """Return the number of recurrent loops inside of other loops or branches."""
    count = 0
    for step in flat.steps:
        for body in step.bodies:
            for inner in body.steps:
                if inner.name == "scan":
                    n_consts = inner.counts[0]
                    facts = [Fact()] * n_consts
                    facts += [Fact(True, True)] * (len(inner.inputs) - n_consts)
                    count += is_recurrent(analyse(inner.bodies[0], facts), *inner.counts)
            count += nested_layers(body)
    return count


def is_recurrent(structure: Structure, n_consts: int, n_carry: int) -> bool:
    """Return whether a state is multiplied, or changed by other than linear steps, and carried on.

    Args:
        structure: the body of a scan.
        n_consts: the number of its inputs that are constants.
        n_carry: the number of its inputs that are carried.
    """
    carries = structure.flat.inputs[n_consts : n_consts + n_carry]
    for carry, output in zip(carries, structure.flat.outputs[:n_carry], strict=True):
        new = unmasked(structure, carry, output)
        if carry.is_floating and carry.shape and _changes(structure, carry, new):
            return True
    return False


def _changes(structure: Structure, old: Var, new: Atom) -> bool:
    """Return whether a product or a nonlinear step lies between the old and the new state."""
    varying = dependents(structure.flat, [old])
    queue, visited = [new], {new, old}
    while queue:
        atom = queue.pop()
        step = structure.producers.get(atom) if isinstance(atom, Var) else None
        if step is None or varying.isdisjoint(step.variables):
            continue
        multiplies = step.name in CONTRACTING or (
            is_elementwise(step) and step.name not in ADDING and step.name not in LAYOUT
        )
        if multiplies and any(v.is_floating for v in step.outputs):
            return True
        operands = [v for v in step.variables if v in varying and v not in visited]
        visited.update(operands)
        queue += operands
    return False


def _series(flat: Flat, scan: Step, varying: set[Var]) -> tuple[bool, Var | None]:
    """Return whether the series of a loop is reversed before it, and the series itself."""
    for atom in scan.inputs[sum(scan.counts) :]:
        if isinstance(atom, Var) and atom in varying and atom.is_floating:
            series = follow(flat, atom, varying)
            return series.flipped, series.var
    return False, None


def _path(scan: Step) -> str:
    """Return the path of a loop, or if it has none, that of the layers inside of it."""
    if scan.path:
        return scan.path
    paths = [step.path for step in scan.bodies[0].steps if step.path]
    return posixpath.commonpath(paths) if paths else ""


def _named(found: Sequence[Layer]) -> list[Layer]:
    """Name layers by their paths, by their order where there is none, and by their direction."""
    groups: list[list[Layer]] = []
    for layer in found:
        last = groups[-1] if groups else []
        if len(last) == 1 and _is_pair(last[0], layer):
            last.append(layer)
        else:
            groups.append([layer])
    named: dict[Layer, str] = {}
    paths = [group[0].name for group in groups]
    position = dict.fromkeys(paths, 0)
    for group, path in zip(groups, paths, strict=True):
        number, position[path] = position[path], position[path] + 1
        name = path or f"rnn_{number}"
        if path and paths.count(path) > 1:
            name = f"{path}/{number}"
        for layer in group:
            named[layer] = f"{name}/{layer.direction}" if len(group) > 1 else name
    return [replace(layer, name=named[layer]) for layer in found]


def _is_pair(first: Layer, second: Layer) -> bool:
    """Return whether two layers are the directions of one bidirectional layer."""
    return (
        first.name == second.name
        and first.source is not None
        and first.source is second.source
        and first.direction != second.direction
        and first.cell.kind == second.cell.kind
    )


def without_layers(nested: int = 0) -> ValueError:
    """Return the error for a model without recurrent layers.

    Args:
        nested: the number of recurrent loops inside of other loops.
    """
    inside = f" {nested} inside of another loop or branch are not inspected." if nested else ""
    return ValueError(
        "`model` must have a recurrent layer, that is a `scan` whose state passes through "
        f"products; it has none.{inside} An unrolled layer has no `scan`."
    )


def choose(layers: Sequence[Layer], name: str | None, nested: int = 0) -> Layer:
    """Select a recurrent layer by its name, the end of it, or its path without the direction.

    Args:
        layers: the recurrent layers.
        name: the name; `None` for the only one.
        nested: the number of recurrent loops inside of other loops, for the error message.

    Raises:
        ValueError: if there is no such layer, or more than one.
    """
    names = [layer.name for layer in layers]
    if not layers:
        raise without_layers(nested)
    if name is None:
        if len(layers) > 1:
            raise ValueError(f"`layer` must be one of the recurrent layers {names}, got None.")
        return layers[0]
    wanted = name.replace(".", "/")
    for matches in (
        [layer for layer in layers if layer.name == wanted],
        [layer for layer in layers if layer.name.endswith(f"/{wanted}")],
    ):
        if len(matches) == 1:
            return matches[0]
    raise ValueError(f"`layer` must be one of the recurrent layers {names}, got {name!r}.")
