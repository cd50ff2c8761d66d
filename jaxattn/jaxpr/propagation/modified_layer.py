"""The affine maps of a function, with their coefficients as they are or changed.

Relevance rules change coefficients: their squares, ones in their place, their positive parts. The
coefficients of a whole map are never laid out: the map's own steps are computed with changed ones.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxattn.jaxpr.flat import Step
from jaxattn.jaxpr.interpreter import bind
from jaxattn.jaxpr.propagation.windowed_layer import Read, Windowed
from jaxattn.jaxpr.structure.affine import Affine
from jaxattn.jaxpr.structure.graph import Structure
from jaxattn.jaxpr.structure.primitive_classes import CONTRACTING

#: What to make of a coefficient, or of the weights of a contraction.
Change: TypeAlias = Callable[[Any, bool], Any]


def plain(affine: Affine, read: Read) -> Callable[..., Any]:
    """The map as it is, biases included, as a function of its inputs."""

    def run(*inputs: Any) -> Any:
        return Windowed(affine, read, inputs)(affine.output, None)

    return run


def shift(structure: Structure, affine: Affine, read: Read) -> Any:
    """What the map adds, whatever its inputs: its biases. `None` where it adds nothing."""
    env: dict[Any, Any] = dict.fromkeys(affine.inputs)
    for step in affine.steps:
        own = [a in env for a in step.inputs]
        values = [env[a] if a in env else read(a) for a in step.inputs]
        adds = structure.adds(step) or structure.shifts(step)
        if adds:
            first, second = values
            if step.name == "sub" and second is not None:
                second = -second
            total, (out,) = _plus(first, second), step.outputs
            # A number that is written in the program has no shape.
            env[out] = None if total is None else jnp.broadcast_to(total, out.shape)
        elif all(v is None for v, mine in zip(values, own, strict=True) if mine) and not any(
            _is_data(step, i) and not mine for i, mine in enumerate(own)
        ):
            env.update(dict.fromkeys(step.outputs))
        else:
            zeros = [
                jnp.zeros(a.aval.shape, a.aval.dtype) if v is None else v
                for a, v in zip(step.inputs, values, strict=True)
            ]
            env.update(zip(step.outputs, bind(step.eqn, zeros), strict=True))
    return env[affine.output]


def changed(structure: Structure, affine: Affine, read: Read, change: Change) -> Callable[..., Any]:
    """The map with `change(weight, contracts)` for every coefficient, without biases."""

    def minus(x: Any) -> Any:
        return change(-jnp.ones((), x.dtype), False) * x

    def weigh(apply: Callable[[Any, Any], Any], x: Any, weight: Any, contracts: bool) -> Any:
        return apply(x, change(weight, contracts))

    def run(*inputs: Any) -> Any:
        return _evaluate(structure, affine, read, inputs, weigh, minus, _plus)

    return run


def signed(structure: Structure, affine: Affine, read: Read) -> Callable[..., Any]:
    """The map on pairs of positive and negative parts, without biases.

    With `(max(x, 0), min(x, 0))` for its inputs it answers the sums of the positive and of the
    negative contributions; with `(x, 0)` the contributions through positive coefficients and
    through negative ones.
    """

    def minus(x: Any) -> Any:
        return -x[1], -x[0]

    def plus(x: Any, y: Any) -> Any:
        return _plus(x[0], y[0]), _plus(x[1], y[1])

    def weigh(apply: Callable[[Any, Any], Any], x: Any, weight: Any, contracts: bool) -> Any:
        up, down = jnp.maximum(weight, 0), jnp.minimum(weight, 0)
        positive, negative = x
        return apply(positive, up) + apply(negative, down), apply(positive, down) + apply(
            negative, up
        )

    def run(*inputs: Any) -> Any:
        return _evaluate(structure, affine, read, inputs, weigh, minus, plus)

    return run


def _evaluate(
    structure: Structure,
    affine: Affine,
    read: Read,
    inputs: Sequence[Any],
    weigh: Callable[..., Any],
    minus: Callable[[Any], Any],
    plus: Callable[[Any, Any], Any],
) -> Any:
    """Computes a map without its biases, on arrays or on pairs of them."""
    env: dict[Any, Any] = dict(zip(affine.inputs, inputs, strict=True))
    for step in affine.steps:
        own = [i for i, a in enumerate(step.inputs) if a in env]
        if step.name == "neg":
            env[step.outputs[0]] = minus(env[step.inputs[0]])
        elif step.name in ("add", "add_any", "sub"):
            parts = [env[step.inputs[i]] for i in own]
            if step.name == "sub" and 1 in own:
                parts[-1] = minus(parts[-1])
            whole = parts[0] if len(parts) == 1 else plus(*parts)
            # A constant that is left out may have been what gave the sum its size.
            shape = step.outputs[0].aval.shape
            env[step.outputs[0]] = jax.tree.map(lambda x, s=shape: jnp.broadcast_to(x, s), whole)
        elif structure.scales(step) or step.name in CONTRACTING:
            (position,) = own
            env[step.outputs[0]] = _weighed(step, position, env, read, weigh)
        else:
            _lay_out(step, own, env, read)
    return env[affine.output]


def _weighed(
    step: Step, position: int, env: dict[Any, Any], read: Read, weigh: Callable[..., Any]
) -> Any:
    weight = read(step.inputs[1 - position])

    def apply(x: Any, weight: Any) -> Any:
        given = (x, weight) if position == 0 else (weight, x)
        if step.name == "div":
            return x * weight
        return bind(step.eqn, given)[0]

    weight = jnp.asarray(weight, step.inputs[1 - position].aval.dtype)
    if step.name == "div":
        weight = 1 / weight
    return weigh(apply, env[step.inputs[position]], weight, step.name in CONTRACTING)


def _lay_out(step: Step, own: list[int], env: dict[Any, Any], read: Read) -> None:
    """Moves or sums cells, with zeros for those that are constant."""

    def move(*parts: Any) -> list[Any]:
        given = dict(zip(own, parts, strict=True))
        operands = []
        for i, atom in enumerate(step.inputs):
            if i not in given and _is_data(step, i):
                given[i] = jnp.zeros(atom.aval.shape, atom.aval.dtype)
            operands.append(given[i] if i in given else read(atom))
        return list(bind(step.eqn, operands))

    parts = [env[step.inputs[i]] for i in own]
    if isinstance(parts[0], tuple):
        columns = [move(*column) for column in zip(*parts, strict=True)]
        moved: list[Any] = list(zip(*columns, strict=True))
    else:
        moved = move(*parts)
    env.update(zip(step.outputs, moved, strict=True))


def _is_data(step: Step, position: int) -> bool:
    """Whether an operand's numbers come out, rather than choose or weigh what does."""
    if step.name in ("mul", "div") or step.name in CONTRACTING:
        return False
    return bool(jnp.issubdtype(step.inputs[position].aval.dtype, jnp.floating))


def _plus(x: Any, y: Any) -> Any:
    if x is None or y is None:
        return y if x is None else x
    return x + y


def transposed(f: Callable[..., Any], inputs: Sequence[Any], cotangent: Any) -> tuple[Any, ...]:
    """What the transpose of a linear map's linear part gives for a cotangent."""
    return tuple(jax.vjp(f, *inputs)[1](cotangent))


def ones(structure: Structure, affine: Affine, read: Read) -> Callable[..., Any]:
    """The map with 1 for every coefficient, and 0 for those that mask."""

    def change(weight: Any, contracts: bool) -> Any:
        return jnp.ones_like(weight) if contracts else (weight != 0).astype(weight.dtype)

    return changed(structure, affine, read, change)
