"""Contractions of the output of a softmax with values, which make it attention weights."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax.numpy as jnp

from jaxattn.jaxpr.attention.axis_sources import source_axes, target_axis
from jaxattn.jaxpr.attention.origins import free_axes
from jaxattn.jaxpr.attention.sites import ABSENT, Site
from jaxattn.jaxpr.flat import Atom, Step, Var, is_elementwise
from jaxattn.jaxpr.structure.primitive_classes import LAYOUT
from jaxattn.jaxpr.structure.producers import producer_behind

#: Elementwise steps that scale, mask or cast weights.
_SCALING = frozenset(
    "add convert_element_type copy div max mul reduce_precision select_n stop_gradient sub".split()
)
#: Those of them after which rows may not sum to 1.
_CHANGING = frozenset("add div mul sub".split())


class Reading(NamedTuple):
    """A contraction of weights with values.

    Attributes:
        weights: the value that counts as the weights: the last one that has a tag, else the output
            of the softmax, or its quotient by a sum over its keys.
        site: the site of `weights`.
        keys: the axes of the weights that are summed over.
        shared: for each axis of the weights, whether the values have it, too; `None` for an axis
            that the contraction no longer has.
        tag: the tag of the weights, if they have one.
        passed: the values on the way from the softmax to the contraction.
    """

    weights: Var
    site: Site
    keys: tuple[int, ...]
    shared: tuple[bool | None, ...]
    tag: str | None
    passed: frozenset[Var]


@dataclass(frozen=True)
class _Path:
    """A value on a path from a softmax.

    Attributes:
        site: the site of the value.
        var: the value.
        weights: the weights.
        weights_site: their site.
        axes: the axis of the value that each axis of the weights is, or is a part of, or `ABSENT`.
        keys: the axes of the weights that are summed over.
        scaled: whether the weights were multiplied by constants or masks, and may not sum to 1.
        varying: if the weights were multiplied by values, the axes along which these vary.
        tag: the tag of the weights.
        before: the values that were passed before.
    """

    site: Site
    var: Var
    weights: Var
    weights_site: Site
    axes: tuple[int, ...]
    keys: tuple[int, ...]
    scaled: bool = False
    varying: frozenset[int] | None = None
    tag: str | None = None
    before: frozenset[Var] = frozenset()

    @property
    def passed(self) -> frozenset[Var]:
        """The values on the path, with this one."""
        return self.before | {self.var}

    @property
    def key_axes(self) -> set[int]:
        """The axes of the value that are summed over."""
        return {self.axes[key] for key in self.keys}

    def as_weights(self, tag: str | None) -> "_Path":
        """Return the path on which this value counts as the weights."""
        axes = tuple(range(len(self.var.shape)))
        keys = tuple(sorted(self.key_axes))
        return replace(
            self, weights=self.var, weights_site=self.site, axes=axes, keys=keys, tag=tag,
            scaled=False,
        )  # fmt: skip


def readings(site: Site, output: Var, keys: tuple[int, ...], scaled: bool) -> Iterator[Reading]:
    """Find the contractions of the output of a softmax with values, over the axes of its sum.

    Args:
        site: the site of the softmax.
        output: its output.
        keys: the axes that it sums over.
        scaled: whether the weights may be multiplied by values first, and the product summed.
    """
    start = _Path(site, output, output, site, tuple(range(len(output.shape))), keys)
    queue, visited = [start], {output}
    while queue:
        path = queue.pop()
        for step in path.site.structure.users.get(path.var, []):
            shared = _contraction(path, step)
            if shared is not None:
                yield Reading(
                    path.weights, path.weights_site, path.keys, shared, path.tag, path.passed
                )
                continue
            for following in _after(path, step, scaled):
                if following.var not in visited:
                    visited.add(following.var)
                    queue.append(following)
        queue += [
            replace(path, site=around, var=var, axes=_moved(path.axes, by), before=path.passed)
            for around, var, by in path.site.results_of(path.var)
            if var not in visited
        ]


def _contraction(path: _Path, step: Step) -> tuple[bool | None, ...] | None:
    """Return which axes of the weights the values have, if a step contracts both over the keys."""
    if step.name == "reduce_sum" and path.varying is not None:
        if not path.key_axes <= {int(axis) for axis in step.eqn.params["axes"]}:
            return None
        return tuple(None if axis == ABSENT else axis in path.varying for axis in path.axes)
    if step.name != "dot_general" or path.varying is not None:
        return None
    contracted, batch = step.eqn.params["dimension_numbers"]
    for position, atom in enumerate(step.inputs):
        is_summed = path.key_axes <= {int(axis) for axis in contracted[position]}
        if atom is path.var and is_summed and path.site.depends(step.inputs[1 - position]):
            of_both = {int(axis) for axes in (contracted, batch) for axis in axes[position]}
            return tuple(None if axis == ABSENT else axis in of_both for axis in path.axes)
    return None


def _after(path: _Path, step: Step, scaled: bool) -> Iterator[_Path]:
    """Yield the values that a step makes of the weights, if they are still weights."""
    if step.name in ("scan", "cond"):
        for inner, var, by in path.site.uses_inside(step, path.var):
            axes = _moved(path.axes, by)
            if all(axes[key] != ABSENT for key in path.keys):
                yield replace(path, site=inner, var=var, axes=axes, before=path.passed)
        return
    if len(step.outputs) != 1 or not step.outputs[0].is_floating:
        return
    following = replace(path, var=step.outputs[0], before=path.passed)
    if step.name == "name" and path.varying is None and not path.scaled:
        yield following.as_weights(str(step.eqn.params["name"]))
    elif step.name == "dot_general":
        yield from _mixed_heads(following, path.var, step)
    elif is_elementwise(step):
        yield from _scaled(following, path.var, step, scaled)
    elif step.inputs[0] is path.var and source_axes(step, 0) is not None:
        axes = tuple(axis if axis == ABSENT else _target(step, axis) for axis in path.axes)
        varying = path.varying
        if varying is not None:
            varying = frozenset(_target(step, axis) for axis in varying)
        if all(axes[key] != ABSENT for key in path.keys):
            yield replace(following, axes=axes, varying=varying)


def _scaled(path: _Path, source: Var, step: Step, scaled: bool) -> Iterator[_Path]:
    """Yield the weights after an elementwise step: scaled, masked, cast or times values."""
    if step.name not in _SCALING:
        return
    others = [a for a in step.variables if a is not source and path.site.depends(a)]
    others = [a for a in others if not _is_mask(path.site, a)]
    if not others:
        yield replace(path, scaled=path.scaled or step.name in _CHANGING)
    elif len(others) > 1 or path.varying is not None:
        return
    elif step.name in ("add", "sub"):  # such as the difference of two attention matrices
        yield replace(path, scaled=True)
    elif step.name == "div" and _is_sum_of(path.site, others[0], source):
        yield path.as_weights(path.tag)
    elif step.name == "mul" and scaled:
        yield replace(path, varying=frozenset(_varying_axes(path.site, others[0])))


def _mixed_heads(path: _Path, source: Var, step: Step) -> Iterator[_Path]:
    """Yield the weights after heads were mixed by constants."""
    position = 0 if step.inputs[0] is source else 1
    if path.site.depends(step.inputs[1 - position]) or path.varying is not None:
        return
    _, batch = step.eqn.params["dimension_numbers"]
    free = free_axes(step, position)
    before = len(batch[0]) + (len(free_axes(step, 0)) if position else 0)
    places = {int(axis): i for i, axis in enumerate(batch[position])}
    places |= {axis: before + i for i, axis in enumerate(free)}
    axes = tuple(places.get(axis, ABSENT) for axis in path.axes)
    if all(axes[key] != ABSENT for key in path.keys):
        yield replace(path, axes=axes)


def _target(step: Step, axis: int) -> int:
    target = target_axis(step, axis)
    return ABSENT if target is None else target


def _moved(axes: tuple[int, ...], by: int) -> tuple[int, ...]:
    """Return axes with a leading axis more or less."""
    return tuple(max(axis + by, ABSENT) if axis != ABSENT else ABSENT for axis in axes)


def _is_mask(site: Site, atom: Atom) -> bool:
    """Return whether a value consists of booleans or integers, perhaps as floating numbers."""
    through = LAYOUT - {"convert_element_type"}
    step = producer_behind(atom, site.structure.producers, through)
    if step is not None and step.name == "convert_element_type":
        atom = step.inputs[0]
    return not jnp.issubdtype(atom.aval.dtype, jnp.floating)


def _is_sum_of(site: Site, atom: Atom, summed: Var) -> bool:
    """Return whether a value is the sum of the elements of another, perhaps bounded below."""
    through = LAYOUT | {"add", "max"}
    step = producer_behind(atom, site.structure.producers, through, "reduce_sum")
    return step is not None and step.inputs[0] is summed


def _varying_axes(site: Site, values: Atom) -> Iterator[int]:
    """Yield the axes along which values vary, before they were broadcast."""
    step = site.structure.producers.get(values) if isinstance(values, Var) else None
    for axis, size in enumerate(values.aval.shape):
        if size == 1:
            continue
        if step is None or step.name != "broadcast_in_dim" or source_axes(step, axis):
            yield axis
