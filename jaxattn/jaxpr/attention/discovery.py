"""Attention weights of a function: which softmaxes are attention, their names and layouts."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.extend.core as jex

from jaxattn.jaxpr.attention.origins import Origin, origin
from jaxattn.jaxpr.attention.readings import Reading, readings
from jaxattn.jaxpr.attention.sites import AxisOf, Site
from jaxattn.jaxpr.flat import Flat, Step, Var, flatten
from jaxattn.jaxpr.structure.analysis import analyse
from jaxattn.jaxpr.structure.facts import Fact

#: The last part of the name of weights that have no tag.
WEIGHTS = "attention_weights"


class Layout(NamedTuple):
    """The axes of weights by what they count: heads, queries and keys, each possibly none."""

    heads: tuple[int, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    dropped: tuple[int, ...]


class Weights(NamedTuple):
    """The attention weights of a layer.

    Attributes:
        name: the path of the layer and the tag of the weights, or what there is of these.
        step: the step that computes them.
        layout: the axes that they have.
    """

    name: str
    step: Step
    layout: Layout


class _Found(NamedTuple):
    output: Var
    reading: Reading
    step: Step
    layout: Layout


def find_attention(closed: jex.ClosedJaxpr) -> list[Weights]:
    """Find all attention weights of a function, in the order in which they are computed.

    These are the outputs of softmaxes and sigmoids that are contracted with values over their keys.
    A softmax over features that a layer of parameters adds, as for the words of a vocabulary or for
    experts, is not attention.
    """
    flat = flatten(closed)
    structure = analyse(flat, [Fact(v.is_floating, depends_on_input=True) for v in flat.inputs])
    lifted = _adds_batch_axis(flat)
    found = [f for site in Site(structure).sites() for f in _found_in(site, lifted)]
    # A softmax without and with a mask after it are one: the last counts.
    last = [f for f in found if not any(g.output in f.reading.passed - {f.output} for g in found)]
    once = list({f.reading.weights: f for f in last}.values())
    return [Weights(name, f.step, f.layout) for name, f in zip(_names(once), once, strict=True)]


def _found_in(site: Site, lifted: bool) -> Iterator[_Found]:
    """Yield the attention weights that a body computes itself."""
    for step in site.structure.flat.steps:
        softmax = site.structure.softmaxes.get(step)
        if softmax is not None:
            candidates = [tuple(softmax.layout[axis] for axis in softmax.axes)]
        elif step.name == "logistic":
            candidates = [(axis,) for axis in range(len(step.outputs[0].shape))]
        else:
            continue
        for keys in candidates:
            if not _are_positions(site, step.outputs[0], keys, known=softmax is None):
                continue
            reading = next(readings(site, step.outputs[0], keys, softmax is not None), None)
            if reading is not None:
                producer = reading.site.structure.producers[reading.weights]
                yield _Found(step.outputs[0], reading, producer, _layout(reading, lifted))
                break


def _are_positions(site: Site, weights: Var, keys: tuple[int, ...], known: bool) -> bool:
    """Return whether weights count positions along their keys, not features of a layer.

    Args:
        site: the site of the weights.
        weights: the weights.
        keys: their axes.
        known: whether the origin of the axes must be known.
    """
    if not site.depends(weights):
        return False
    origins = [origin(AxisOf(site, weights, key), deep=False) for key in keys]
    # Features of a dense layer may be added to scores of positions, as for relative positions.
    return all(Origin.INPUT in o or not (o or known) for o in origins)


def _layout(reading: Reading, lifted: bool) -> Layout:
    """Return what the axes of weights count.

    Args:
        reading: the weights, and which of their axes the values have.
        lifted: whether one axis of length 1 is that of a batch of one example.
    """
    shape = reading.weights.shape
    others = [axis for axis in range(len(shape)) if axis not in reading.keys]
    dropped = [axis for axis in others if reading.shared[axis] is None and shape[axis] == 1]
    free = [axis for axis in others if reading.shared[axis] is False]
    # The queries are positions too; heads that share their values come from parameters.
    origins = {axis: origin(AxisOf(reading.site, reading.weights, axis), True) for axis in free}
    positions = [axis for axis in free if origins[axis] is Origin.INPUT]
    unknown = [axis for axis in free if Origin.PARAMETER not in origins[axis]]
    queries = (positions or unknown or free)[-1:]
    heads = [axis for axis in others if axis not in (*dropped, *free)]
    heads += [axis for axis in free if axis not in queries]
    single = [axis for axis in heads if shape[axis] == 1]
    if lifted and not dropped and single:
        dropped = single[:1]
        heads.remove(single[0])
    return Layout(tuple(heads), tuple(queries), reading.keys, tuple(dropped))


def _names(found: Sequence[_Found]) -> list[str]:
    """Return names by the paths of layers and by tags; numbered, where several would be equal."""
    plain = ["/".join([*_layers(f.step.path), f.reading.tag or WEIGHTS]) for f in found]
    # A tag that occurs several times is the name of all of them, in their order.
    numbered = {
        name
        for name, count in Counter(plain).items()
        if count > 1 and name.rpartition("/")[2] == WEIGHTS
    }
    count = {name: itertools.count() for name in numbered}
    return [f"{name}_{next(count[name])}" if name in numbered else name for name in plain]


def _layers(path: str) -> list[str]:
    """Return the layers of a path, without the transformations that have an entry there."""
    return [part for part in path.split("/") if part and "(" not in part and "->" not in part]


def _adds_batch_axis(flat: Flat) -> bool:
    """Return whether a function first adds a leading axis of length 1 to its inputs."""
    readers = [step for step in flat.steps if any(v in flat.inputs for v in step.variables)]
    return bool(readers) and any(
        step.name in ("broadcast_in_dim", "reshape", "expand_dims")
        and step.outputs[0].shape == (1, *step.inputs[0].aval.shape)
        for step in readers
    )
