"""The parameters of a model by layer, in the order in which the model uses them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PyTree

from jaxattn._static import is_array
from jaxattn._types import Inputs, RandomKey
from jaxattn.engine.callable import as_function
from jaxattn.engine.examples import example_structs
from jaxattn.jaxpr.flat import Flat, Step, Var, flatten


class Parameters(NamedTuple):
    """The floating-point parameters of a model.

    Attributes:
        arrays: the parameters.
        layers: the name of each one's layer.
        rebuild: returns the model with other parameters.
    """

    arrays: list[Array]
    layers: list[str]
    rebuild: Callable[[Sequence[Array]], Any]

    @classmethod
    def of(cls, model: Any) -> "Parameters":
        """Find the parameters of an nnx module, or of a callable pytree of arrays.

        Raises:
            TypeError: for a model without parameters, such as a function that closes over them.
        """
        tree = model
        remade: Callable[[PyTree], Any] = _same
        if isinstance(model, nnx.Module):
            graphdef, *states = nnx.split(model, nnx.Param, ...)
            tree, beside = map(nnx.as_pure, states)
            remade = functools.partial(_merged, graphdef, beside)
        found, treedef = jax.tree_util.tree_flatten_with_path(tree)
        # The first two keys of a Partial are the positions of its arguments.
        start = 2 if isinstance(model, jax.tree_util.Partial) else 0
        keys = [_keys(path[start:] or path[-1:]) for path, _ in found]
        # linen keeps statistics beside the parameters.
        only = any("params" in each for each in keys)
        chosen = [
            i
            for i, (_, leaf) in enumerate(found)
            if is_array(leaf)
            and jnp.issubdtype(leaf.dtype, jnp.floating)
            and (not only or "params" in keys[i])
        ]
        if not chosen:
            raise TypeError(
                f"`model` must have parameters, got {type(model).__name__}: pass an nnx.Module, an "
                "equinox module, or jax.tree_util.Partial(apply, params)."
            )

        def rebuild(arrays: Sequence[Array]) -> Any:
            leaves = [leaf for _, leaf in found]
            for i, array in zip(chosen, arrays, strict=True):
                leaves[i] = array
            return remade(jax.tree.unflatten(treedef, leaves))

        arrays = [jnp.asarray(found[i][1]) for i in chosen]
        return cls(arrays, [_layer(keys[i]) for i in chosen], rebuild)

    def randomised(self, layers: Sequence[str], key: RandomKey) -> Any:
        """Return the model with some layers drawn anew.

        Each array is drawn from a normal distribution with its own mean and standard deviation. The
        draws of an array do not depend on the other layers.
        """

        def drawn(i: int, array: Array) -> Array:
            noise = jax.random.normal(jax.random.fold_in(key, i), array.shape, array.dtype)
            return array.mean() + array.std() * noise

        new = [
            drawn(i, array) if layer in layers else array
            for i, (array, layer) in enumerate(zip(self.arrays, self.layers, strict=True))
        ]
        return self.rebuild(new)

    def in_order(self, xs: Inputs, args: tuple[Any, ...]) -> list[str]:
        """Return the layers in the order in which the model uses them for an example."""
        x, *rest = example_structs((xs, *args))

        def call(arrays: list[Array], x: Inputs, *args: Any) -> PyTree:
            return as_function(self.rebuild(arrays))(x, *args)

        flat = flatten(jax.make_jaxpr(call)(self.arrays, x, *rest))
        number = len(self.arrays)
        parameters = dict(zip(flat.inputs[:number], range(number), strict=True))
        used: list[int] = []
        _visit(flat, {v: {i} for v, i in parameters.items()}, set(flat.inputs[number:]), used)
        order = [*used, *range(number)]  # those that are not used come last
        return list(dict.fromkeys(self.layers[i] for i in order))


def _same(tree: PyTree) -> PyTree:
    return tree


def _merged(graphdef: Any, beside: PyTree, parameters: PyTree) -> Any:
    return nnx.merge(graphdef, parameters, beside)


def _keys(path: Sequence[Any]) -> list[str]:
    """Return the names of the nodes above a leaf, and of the leaf."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/").split("/")


def _layer(keys: list[str]) -> str:
    """Return the name of the layer of a parameter, or its own name if it has no layer."""
    if "params" in keys:
        keys = keys[keys.index("params") + 1 :]
    return "/".join(keys[:-1] or keys)


def _visit(flat: Flat, parameters: dict[Var, set[int]], varying: set[Var], used: list[int]) -> None:
    """List the parameters in the order in which they meet a value that depends on the input.

    Args:
        flat: the function, or the body of a loop.
        parameters: the parameters that each value is computed from.
        varying: the values that depend on the input.
        used: the list, which is extended.
    """
    for step in flat.steps:
        from_parameters = [parameters.get(v, set()) for v in step.variables if v not in varying]
        if not any(v in varying for v in step.variables):
            for output in step.outputs:
                parameters[output] = set().union(*from_parameters)
            continue
        varying.update(step.outputs)
        if step.name == "scan":
            _visit_body(step, parameters, varying, used)
        for found in from_parameters:
            used.extend(sorted(found - set(used)))


def _visit_body(
    step: Step, parameters: dict[Var, set[int]], varying: set[Var], used: list[int]
) -> None:
    """Visit the body of a scan, all of whose carries vary."""
    (body,) = step.bodies
    constants, carries = step.counts
    inside: dict[Var, set[int]] = {}
    changing = set(body.inputs[constants : constants + carries])
    for outer, inner in zip(step.inputs, body.inputs, strict=True):
        if isinstance(outer, Var) and outer in varying:
            changing.add(inner)
        elif isinstance(outer, Var) and inner not in changing:
            inside[inner] = parameters.get(outer, set())
    _visit(body, inside, changing, used)
